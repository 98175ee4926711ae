//! Waiting requests and what is done for them: counting on an environment that will soon be free, starting one, waiting
//! for room, or giving up.

use super::*;
use crate::core::concurrency::SOON;

/// What came of wanting an environment.
enum Started {
    /// It is on its way, or waits for a place.
    Yes,
    /// It may not be, or cannot.
    No(Throttle),
}

impl Version {
    /// How long a request that finds nothing free counts on an environment that will soon be.
    pub(super) fn patience(&self, shared: &Shared, now: Instant) -> Duration {
        let ahead = self.waiting.len();
        if ahead < self.settling {
            shared.rules.patience
        } else if ahead < self.settling + self.soon_free(shared, now) {
            self.worth_waiting(shared).max(shared.rules.patience)
        } else {
            Duration::ZERO
        }
    }

    /// How long waiting is better than a cold start: if it comes to nothing, the request has lost half as much again.
    fn worth_waiting(&self, shared: &Shared) -> Duration {
        (self.cold.mean().unwrap_or_default() / 2).min(shared.rules.longest_wait)
    }

    /// How many busy environments are expected to be free before waiting for them is worse than a cold start.
    fn soon_free(&self, shared: &Shared, now: Instant) -> usize {
        let (Some(run), wait) = (self.run.most(), self.worth_waiting(shared)) else { return 0 };
        if wait.is_zero() {
            return 0;
        }
        let soon = |flight: &&Flight| {
            let end = flight.since + run;
            now <= end && end <= now + wait
        };
        // Environments are many only where invocations are; looking at some of them says enough.
        let flights = self.environments.values().filter_map(|environment| match &environment.stage {
            Stage::Up(up) => Some(&up.flights),
            Stage::Wanted { .. } | Stage::Starting { .. } => None,
        });
        flights.flatten().take(64).filter(soon).count()
    }

    /// How many requests what is on its way will serve at once. What is provisioned counts where nothing else may be
    /// started.
    pub(super) fn coming(&self) -> usize {
        let provisioned = if self.is_at_most() { self.provisioned_coming } else { 0 };
        (self.starting + self.wanted.len() + provisioned).saturating_mul(self.slots)
    }

    /// Starts what the waiting requests need beyond what is on its way.
    pub(super) fn cover(&mut self, shared: &Shared, now: Instant, actions: &mut Vec<Action>) {
        if self.waiting.is_empty() {
            return;
        }
        let impatient = self.waiting.iter().filter(|waiting| waiting.patient_until <= now).count();
        let patient = self.waiting.len() - impatient;
        let soon = if patient > self.settling { self.soon_free(shared, now) } else { 0 };
        let mut needed = impatient + patient.saturating_sub(self.settling + soon);
        while self.coming() < needed {
            match self.start(shared, Purpose::OnDemand, now, actions) {
                Started::Yes => {}
                Started::No(throttle) => {
                    // The newest has the least claim to what is on its way.
                    let Some(newest) = self.waiting.pop_back() else { break };
                    self.throttle(newest, throttle, actions);
                    needed -= 1;
                }
            }
        }
        if let Some(at) = self.waiting.iter().map(|w| w.patient_until).filter(|at| *at > now).min() {
            self.wake(at, actions);
        }
        self.wake_for_room(shared, actions);
    }

    /// Keeps as many provisioned environments as asked for.
    pub(super) fn provision(&mut self, shared: &Shared, now: Instant, actions: &mut Vec<Action>) {
        let target = self.to_provision();
        while self.provisioned > target {
            // Idle ones go now, and those without a place; busy and starting ones when they become free.
            let wanted = || {
                let mut all = self.environments.iter();
                let is = |e: &Environment| e.purpose == Purpose::Provisioned && matches!(e.stage, Stage::Wanted { .. });
                all.find(|(_, environment)| is(environment)).map(|(id, _)| *id)
            };
            let Some(id) = wanted().or_else(|| self.reserve.pop()) else { break };
            self.retire(shared, id, actions);
        }
        while self.provisioned < target && self.provisioned_failed.is_none() {
            if self.is_at_most() {
                // There are more than are provisioned, since no more are to be than there may be.
                if !self.adopt(shared) {
                    break;
                }
                continue;
            }
            match self.start(shared, Purpose::Provisioned, now, actions) {
                Started::Yes => {}
                Started::No(_) => self.provisioned_failed = Some(ProvisionFailure::NoRoom),
            }
        }
        self.wake_for_room(shared, actions);
    }

    /// Makes one ahead of an expected invocation, if there is a place for it; whether there is.
    pub(super) fn start_ahead(&mut self, shared: &Shared, now: Instant, actions: &mut Vec<Action>) -> bool {
        matches!(self.start(shared, Purpose::Prewarm, now, actions), Started::Yes)
    }

    /// Finds a place for the version's initialization.
    pub(super) fn initialize(&mut self, shared: &Shared, now: Instant, actions: &mut Vec<Action>) {
        if self.ended || matches!(self.start(shared, Purpose::Snapshot, now, actions), Started::No(_)) {
            actions.push(Action::Decline);
        }
    }

    fn start(&mut self, shared: &Shared, purpose: Purpose, now: Instant, actions: &mut Vec<Action>) -> Started {
        let rated = purpose.is_on_demand();
        if purpose != Purpose::Snapshot && self.is_at_most() {
            return Started::No(Throttle { reason: ThrottleReason::MostEnvironments, retry_after: SOON });
        }
        if rated && let Err(throttle) = self.function.scale(shared.nanos(now)) {
            return Started::No(throttle);
        }
        let id = EnvironmentId(self.next_id);
        let stage = match shared.fleet.place(self.want(id, purpose), purpose != Purpose::Prewarm, actions) {
            Placement::Placed(seat) => {
                actions.push(Action::Start(id, purpose, seat.worker()));
                self.starting += usize::from(rated);
                self.function.started(purpose);
                Stage::Starting { seat, since: now }
            }
            Placement::Waiting => {
                if purpose == Purpose::OnDemand {
                    self.wanted.push_back(id);
                }
                Stage::Wanted { since: now }
            }
            Placement::Full | Placement::TooLarge => {
                if rated {
                    self.function.scale_back();
                }
                return Started::No(full());
            }
        };
        if purpose == Purpose::OnDemand {
            self.keeper.missed(now);
        }
        self.next_id += 1;
        self.environments.insert(id, Environment { purpose, stage });
        self.provisioned += usize::from(purpose == Purpose::Provisioned);
        self.provisioned_coming += usize::from(purpose == Purpose::Provisioned);
        self.making += usize::from(purpose == Purpose::Snapshot);
        Started::Yes
    }

    /// There is a place for an environment that waited for one.
    pub(super) fn room(&mut self, shared: &Shared, id: EnvironmentId, now: Instant, actions: &mut Vec<Action>) {
        let Some(seat) = shared.fleet.claim(self.id, id) else { return };
        let Some(environment) = self.environments.get_mut(&id) else {
            shared.fleet.gone(&seat, actions);
            return;
        };
        let purpose = environment.purpose;
        actions.push(Action::Start(id, purpose, seat.worker()));
        environment.stage = Stage::Starting { seat, since: now };
        self.function.started(purpose);
        if purpose.is_on_demand() {
            self.wanted.retain(|wanted| *wanted != id);
            self.starting += 1;
        }
    }

    /// No more environments wait for a place than requests wait for them.
    pub(super) fn cancel_surplus(&mut self, shared: &Shared, actions: &mut Vec<Action>) {
        while self.starting + self.wanted.len() > self.waiting.len().div_ceil(self.slots)
            && let Some(id) = self.wanted.back().copied()
        {
            self.retire(shared, id, actions);
        }
    }

    /// Gives up waiting for room where that has taken too long.
    pub(super) fn refuse(&mut self, shared: &Shared, now: Instant, actions: &mut Vec<Action>) {
        let late = |since: Instant| since + shared.rules.room_patience <= now;
        while !self.wanted.is_empty()
            && self.waiting.len() > self.starting * self.slots
            && self.waiting.front().is_some_and(|first| late(first.since))
            && let Some(first) = self.waiting.pop_front()
        {
            self.throttle(first, full(), actions);
            self.cancel_surplus(shared, actions);
        }
        let refused = |environment: &Environment| match environment.stage {
            Stage::Wanted { since } => environment.purpose == Purpose::Provisioned && late(since),
            Stage::Starting { .. } | Stage::Up(_) => false,
        };
        if self.provisioned == 0 {
            return;
        }
        let refused: Vec<EnvironmentId> =
            self.environments.iter().filter(|(_, e)| refused(e)).map(|(id, _)| *id).collect();
        for id in refused {
            self.provisioned_failed = Some(ProvisionFailure::NoRoom);
            self.retire(shared, id, actions);
        }
    }

    /// Asks to be woken when waiting for room has taken too long.
    pub(super) fn wake_for_room(&mut self, shared: &Shared, actions: &mut Vec<Action>) {
        let request = (!self.wanted.is_empty() && self.waiting.len() > self.starting * self.slots)
            .then(|| self.waiting.front().map(|first| first.since))
            .flatten();
        let provisioned = if self.provisioned > 0 {
            let wanted = self.environments.values().filter_map(|environment| match environment.stage {
                Stage::Wanted { since } if environment.purpose == Purpose::Provisioned => Some(since),
                Stage::Wanted { .. } | Stage::Starting { .. } | Stage::Up(_) => None,
            });
            wanted.min()
        } else {
            None
        };
        if let Some(since) = request.into_iter().chain(provisioned).min() {
            self.wake(since + shared.rules.room_patience, actions);
        }
    }

    fn throttle(&mut self, waiting: Waiting, throttle: Throttle, actions: &mut Vec<Action>) {
        self.function.throttled(throttle.reason);
        drop(waiting.ticket);
        actions.push(Action::Throttle(waiting.request, throttle));
    }
}

fn full() -> Throttle {
    Throttle { reason: ThrottleReason::HostCapacity, retry_after: SOON }
}
