//! Who serves whom: from a request's arrival to its slot being free again.

use super::*;

impl Version {
    pub(super) fn request(&mut self, shared: &Shared, request: RequestId, now: Instant, actions: &mut Vec<Action>) {
        if self.ended {
            actions.push(Action::Fail(request));
            return;
        }
        let ticket = match self.function.enter(shared.nanos(now)) {
            Ok(ticket) => ticket,
            Err(throttle) => {
                actions.push(Action::Throttle(request, throttle));
                return;
            }
        };
        self.expected = None;
        match self.take_free(shared, now) {
            Some(id) => self.dispatch(shared, request, ticket, id, now, actions),
            None => {
                let patient_until = now + self.patience(shared, now);
                self.waiting.push_back(Waiting { request, ticket, since: now, patient_until });
                self.cover(shared, now, actions);
            }
        }
    }

    /// An environment with a free slot. First those at work, so that the idle ones stay idle; then provisioned ones:
    /// what was paid for is used before what happens to be there.
    fn take_free(&mut self, shared: &Shared, now: Instant) -> Option<EnvironmentId> {
        if let Some(id) = self.open.last() {
            return Some(*id);
        }
        let id = self.reserve.pop().or_else(|| self.idle.pop_back())?;
        if let Some(up) = self.up(id) {
            let idle = now.saturating_duration_since(up.last_used);
            shared.fleet.works(&up.seat);
            self.keeper.reused(idle);
        }
        Some(id)
    }

    fn dispatch(
        &mut self,
        shared: &Shared,
        request: RequestId,
        ticket: Ticket,
        id: EnvironmentId,
        now: Instant,
        actions: &mut Vec<Action>,
    ) {
        let slots = self.slots;
        let Some(Environment { purpose, stage: Stage::Up(up) }) = self.environments.get_mut(&id) else { return };
        let purpose = *purpose;
        up.flights.push(Flight { since: now, _ticket: ticket });
        let first = up.uses == 0;
        up.uses = up.uses.saturating_add(1);
        let has_slots = up.taken() < slots;
        if first && purpose == Purpose::Prewarm {
            shared.prewarms_used.fetch_add(1, Ordering::Relaxed);
        }
        if slots > 1 {
            self.open.retain(|open| *open != id);
            if has_slots {
                self.open.push(id);
            }
        }
        // What has a scaling configuration has environments of one kind only, whatever each was started for.
        if self.provisioned_target > 0 && self.most.is_none() && purpose != Purpose::Provisioned {
            self.function.spilled();
        }
        actions.push(Action::Dispatch(request, id));
    }

    pub(super) fn ready(
        &mut self,
        shared: &Shared,
        id: EnvironmentId,
        initialized: Initialized,
        now: Instant,
        actions: &mut Vec<Action>,
    ) {
        let last_used = self.last_used;
        let Some(environment) = self.environments.get_mut(&id) else { return };
        let Stage::Starting { seat, since } = &environment.stage else { return };
        let took = now.saturating_duration_since(*since);
        // One that was made ahead is as old as the use that it takes over.
        let last_used = if environment.purpose == Purpose::Prewarm { last_used } else { now };
        let seat = Arc::clone(seat);
        let up = Up { seat, flights: Vec::new(), settling: 0, last_used, keep_until: now, uses: 0 };
        environment.stage = Stage::Up(up);
        self.starting -= usize::from(environment.purpose.is_on_demand());
        self.provisioned_coming -= usize::from(environment.purpose == Purpose::Provisioned);
        match initialized {
            Initialized::Yes => self.cold.record(took),
            Initialized::Failed if self.is_provisioned(id) => {
                self.provisioned_failed = Some(ProvisionFailure::Initialization);
                if self.waiting.is_empty() {
                    self.retire(shared, id, actions);
                    return;
                }
            }
            Initialized::Failed => {}
        }
        self.free(shared, id, now, actions);
    }

    /// An invocation is answered; its place in the account is free before the caller knows.
    pub(super) fn settling(&mut self, id: EnvironmentId, now: Instant) {
        if let Some(up) = self.up(id)
            && !up.flights.is_empty()
        {
            let flight = up.flights.remove(0);
            up.settling += 1;
            self.settling += 1;
            self.run.record(now.saturating_duration_since(flight.since));
        }
    }

    pub(super) fn slot_free(&mut self, shared: &Shared, id: EnvironmentId, now: Instant, actions: &mut Vec<Action>) {
        let Some(up) = self.up(id) else { return };
        if up.settling == 0 {
            if up.flights.is_empty() {
                return;
            }
            self.settling(id, now);
        }
        let Some(up) = self.up(id) else { return };
        up.settling -= 1;
        up.last_used = now;
        self.settling -= 1;
        self.last_used = now;
        self.free(shared, id, now, actions);
    }

    /// An environment has a free slot, or several: it serves those who have waited longest, or rests.
    fn free(&mut self, shared: &Shared, id: EnvironmentId, now: Instant, actions: &mut Vec<Action>) {
        let (slots, evictable) = (self.slots, !self.is_provisioned(id));
        let Some(up) = self.up(id) else { return };
        let (mut left, seat) = (slots - up.taken().min(slots), Arc::clone(&up.seat));
        let unused = left == slots;
        let beyond = self.is_beyond_most() && (evictable || self.is_surplus(id));
        let owes = || evictable && !self.waiting.is_empty() && shared.fleet.is_hungry() && shared.fleet.owes(&seat);
        if unused && (beyond || owes()) {
            self.open.retain(|open| *open != id);
            self.retire(shared, id, actions);
            self.cover(shared, now, actions);
            return;
        }
        let mut served = false;
        while left > 0
            && let Some(next) = self.waiting.pop_front()
        {
            self.dispatch(shared, next.request, next.ticket, id, now, actions);
            (left, served) = (left - 1, true);
        }
        if served {
            self.cancel_surplus(shared, actions);
        } else if unused {
            self.open.retain(|open| *open != id);
            if self.retired || self.is_surplus(id) {
                self.retire(shared, id, actions);
            } else {
                self.rest(shared, id, now, actions);
            }
        } else if !self.open.contains(&id) {
            self.open.push(id);
        }
    }

    /// An environment is idle.
    fn rest(&mut self, shared: &Shared, id: EnvironmentId, now: Instant, actions: &mut Vec<Action>) {
        if self.is_provisioned(id) {
            self.reserve.push(id);
            return;
        }
        self.idle.push_back(id);
        let uses = self.up(id).map_or(0, |up| up.uses);
        let value = self.value(uses);
        self.keep(id, now, actions);
        if let Some(up) = self.up(id) {
            let seat = Arc::clone(&up.seat);
            shared.fleet.rests(&seat, value, shared.nanos(now));
            if shared.fleet.is_hungry() {
                shared.fleet.reconsider(actions);
            }
        }
    }

    /// What an idle environment saves, for a MiB: the time of a start, as often as it has been of use itself. The uses of
    /// its version would say nothing of the tenth environment, which only bursts need. Times of the same order are the
    /// same, since they vary by as much.
    pub(super) fn value(&self, uses: u32) -> f64 {
        let cost = self.cold.mean().unwrap_or_default().as_millis().max(64);
        let cost = u64::try_from(cost).unwrap_or(u64::MAX).checked_next_power_of_two().unwrap_or(1 << 63);
        f64::from(uses.max(1)) * cost as f64 / f64::from(self.size.memory_mb.max(1))
    }
}
