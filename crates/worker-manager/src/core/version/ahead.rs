//! Idle environments: how long they are kept, and when one is made ahead of an expected invocation.

use super::*;
use crate::core::keep_alive::Windows;

impl Version {
    /// Says until when an environment that has become idle is kept.
    pub(super) fn keep(&mut self, id: EnvironmentId, now: Instant, actions: &mut Vec<Action>) {
        let Windows { keep, prewarm } = self.keeper.windows();
        let Some(Environment { purpose, stage: Stage::Up(up) }) = self.environments.get_mut(&id) else { return };
        let (base, made_ahead) = (up.last_used, *purpose == Purpose::Prewarm && up.uses == 0);
        let keep_until = match prewarm {
            // Made for the invocation that is expected: kept until it is expected no more.
            Some((_, until)) if made_ahead => base + until,
            Some(_) | None if made_ahead => now + keep,
            Some(_) | None => base + keep,
        };
        up.keep_until = keep_until;
        self.wake(keep_until, actions);
        if let Some((ahead, until)) = prewarm
            && !made_ahead
        {
            self.expected = Some((base + ahead, base + until));
            self.wake(base + ahead, actions);
        }
    }

    /// Retires what has been idle for too long.
    pub(super) fn expire(&mut self, shared: &Shared, now: Instant, actions: &mut Vec<Action>) {
        let due = |up: &Up| up.keep_until <= now;
        let expired: Vec<(EnvironmentId, Instant)> = self
            .idle
            .iter()
            .filter_map(|id| match &self.environments.get(id)?.stage {
                Stage::Up(up) if due(up) => Some((*id, up.last_used)),
                Stage::Up(_) | Stage::Wanted { .. } | Stage::Starting { .. } => None,
            })
            .collect();
        for (id, last_used) in expired {
            self.idle.retain(|idle| *idle != id);
            self.keeper.expired(last_used);
            self.retire(shared, id, actions);
        }
    }

    /// Makes an environment ahead of an invocation that is now expected, unless there is one.
    pub(super) fn prewarm(&mut self, shared: &Shared, now: Instant, actions: &mut Vec<Action>) {
        let Some((ahead, until)) = self.expected else { return };
        if now < ahead {
            self.wake(ahead, actions);
            return;
        }
        self.expected = None;
        let is_there = !self.environments.is_empty();
        if !self.retired && !is_there && now < until && self.start_ahead(shared, now, actions) {
            // What is made takes over the last use: whoever comes finds it idle since then.
            self.keeper.prewarmed();
        }
    }

    /// Asks to be woken when the next idle environment's time is over.
    pub(super) fn wake_for_idle(&mut self, actions: &mut Vec<Action>) {
        let next = self.idle.iter().filter_map(|id| match &self.environments.get(id)?.stage {
            Stage::Up(up) => Some(up.keep_until),
            Stage::Wanted { .. } | Stage::Starting { .. } => None,
        });
        if let Some(at) = next.min() {
            self.wake(at, actions);
        }
    }
}
