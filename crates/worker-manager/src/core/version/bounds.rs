//! Between how many environments a version has: the bounds of a scaling configuration.
//!
//! The lower bound is that of provisioned environments. Where the upper one is in the way of those, environments that were
//! started for requests become provisioned ones, so that both hold whatever was there before.

use super::*;

impl Version {
    /// How many provisioned environments there shall be.
    pub(super) fn to_provision(&self) -> usize {
        self.provisioned_target.min(self.most.unwrap_or(u32::MAX)) as usize
    }

    /// Whether there are as many environments as there may be.
    pub(super) fn is_at_most(&self) -> bool {
        self.most.is_some_and(|most| self.environments.len() - self.making >= most as usize)
    }

    /// Whether there are more environments than there may be.
    pub(super) fn is_beyond_most(&self) -> bool {
        self.most.is_some_and(|most| self.environments.len() - self.making > most as usize)
    }

    /// The upper bound has changed. What is beyond it goes, but for what is at work or will be.
    pub(super) fn bound(&mut self, shared: &Shared, now: Instant, actions: &mut Vec<Action>) {
        while self.is_beyond_most() {
            let without_place = |(_, environment): &(&EnvironmentId, &Environment)| match environment.stage {
                Stage::Wanted { .. } => environment.purpose != Purpose::Snapshot,
                Stage::Starting { .. } | Stage::Up(_) => false,
            };
            let first = self.environments.iter().find(without_place).map(|(id, _)| *id);
            let Some(id) = first.or_else(|| self.idle.pop_front()) else { break };
            self.retire(shared, id, actions);
        }
        self.provision(shared, now, actions);
        self.cover(shared, now, actions);
    }

    /// Makes a provisioned environment of one that is there, an idle one first; whether there is one.
    pub(super) fn adopt(&mut self, shared: &Shared) -> bool {
        let id = self.idle.pop_back().or_else(|| {
            let others = || self.environments.iter().filter(|(_, other)| other.purpose.is_on_demand());
            let up = others().find(|(_, other)| matches!(other.stage, Stage::Up(_)));
            up.or_else(|| others().next()).map(|(id, _)| *id)
        });
        let Some(id) = id else { return false };
        let Some(environment) = self.environments.get_mut(&id) else { return false };
        environment.purpose = Purpose::Provisioned;
        self.provisioned += 1;
        match &environment.stage {
            Stage::Wanted { .. } => {
                self.wanted.retain(|wanted| *wanted != id);
                self.provisioned_coming += 1;
            }
            Stage::Starting { .. } => {
                self.starting -= 1;
                self.provisioned_coming += 1;
            }
            Stage::Up(up) if up.taken() == 0 => {
                shared.fleet.works(&up.seat);
                self.reserve.push(id);
            }
            Stage::Up(_) => {}
        }
        true
    }
}
