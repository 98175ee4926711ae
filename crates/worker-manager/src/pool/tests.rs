//! The pool in single scenarios, and under random events against what must always hold.

use std::collections::HashSet;

use proptest::prelude::*;

use super::*;

const RULES: Rules = Rules { patience: Duration::from_millis(20), idle_timeout: Duration::from_secs(600) };

struct Driven {
    pool: Pool,
    now: Instant,
}

impl Driven {
    fn new() -> Self {
        Self { pool: Pool::new(RULES), now: Instant::now() }
    }

    fn after(&mut self, ms: u64, event: Event) -> Vec<Action> {
        self.now += Duration::from_millis(ms);
        let mut actions = Vec::new();
        self.pool.step(event, self.now, &mut actions);
        actions
    }

    /// A pool with one environment that has just answered request 0.
    fn settled() -> Self {
        let mut driven = Self::new();
        driven.after(0, Event::Request(RequestId(0)));
        driven.after(50, Event::Ready(EnvironmentId(0), Initialized::Yes));
        driven.after(1, Event::Settling(EnvironmentId(0)));
        driven
    }
}

#[test]
fn a_request_without_an_environment_starts_one_and_is_dispatched_to_it() {
    let mut driven = Driven::new();
    let start = driven.after(0, Event::Request(RequestId(7)));
    assert_eq!(start, [Action::Start(EnvironmentId(0), Purpose::OnDemand)]);
    let ready = driven.after(50, Event::Ready(EnvironmentId(0), Initialized::Yes));
    assert_eq!(ready, [Action::Dispatch(RequestId(7), EnvironmentId(0))]);
}

#[test]
fn two_requests_at_once_get_an_environment_each() {
    let mut driven = Driven::new();
    driven.after(0, Event::Request(RequestId(1)));
    let second = driven.after(0, Event::Request(RequestId(2)));
    assert_eq!(second, [Action::Start(EnvironmentId(1), Purpose::OnDemand)]);
}

#[test]
fn a_request_that_comes_while_the_environment_settles_waits_for_it() {
    let mut driven = Driven::settled();
    let asked = driven.after(1, Event::Request(RequestId(1)));
    assert_eq!(asked, [Action::WakeAt(driven.now + RULES.patience)]);
    assert_eq!(driven.after(1, Event::Idle(EnvironmentId(0))), [Action::Dispatch(RequestId(1), EnvironmentId(0))]);
}

#[test]
fn a_request_that_has_waited_too_long_for_a_settling_environment_gets_its_own() {
    let mut driven = Driven::settled();
    driven.after(1, Event::Request(RequestId(1)));
    assert_eq!(driven.after(20, Event::Tick), [Action::Start(EnvironmentId(1), Purpose::OnDemand)]);
    // The settling one is still the first to be free: it serves, and the new one becomes a spare.
    assert_eq!(driven.after(1, Event::Idle(EnvironmentId(0))), [Action::Dispatch(RequestId(1), EnvironmentId(0))]);
    assert_eq!(driven.after(1, Event::Ready(EnvironmentId(1), Initialized::Yes)), []);
    assert_eq!(driven.after(1, Event::Request(RequestId(2))), [Action::Dispatch(RequestId(2), EnvironmentId(1))]);
}

#[test]
fn the_last_used_environment_is_reused_first() {
    let mut driven = Driven::new();
    for n in 0..3 {
        driven.after(0, Event::Request(RequestId(n)));
    }
    for n in 0..3 {
        driven.after(1, Event::Ready(EnvironmentId(n), Initialized::Yes));
    }
    for n in [2, 0, 1] {
        driven.after(1, Event::Idle(EnvironmentId(n)));
    }
    assert_eq!(driven.after(1, Event::Request(RequestId(9))), [Action::Dispatch(RequestId(9), EnvironmentId(1))]);
}

#[test]
fn idle_environments_are_retired_when_their_time_is_over() {
    let mut driven = Driven::settled();
    driven.after(0, Event::Idle(EnvironmentId(0)));
    assert_eq!(driven.after(599_999, Event::Tick), []);
    assert_eq!(driven.after(1, Event::Tick), [Action::Retire(EnvironmentId(0))]);
}

#[test]
fn provisioned_environments_stay_are_used_first_and_are_replaced_when_they_die() {
    let mut driven = Driven::settled();
    driven.after(0, Event::Idle(EnvironmentId(0)));
    assert_eq!(
        driven.after(0, Event::SetProvisioned(2)),
        [Action::Start(EnvironmentId(1), Purpose::Provisioned), Action::Start(EnvironmentId(2), Purpose::Provisioned)]
    );
    driven.after(50, Event::Ready(EnvironmentId(1), Initialized::Yes));
    driven.after(0, Event::Ready(EnvironmentId(2), Initialized::Yes));
    let status = driven.pool.provisioned();
    assert_eq!((status.requested, status.allocated, status.available), (2, 2, 2));
    assert_eq!(driven.after(0, Event::Request(RequestId(5))), [Action::Dispatch(RequestId(5), EnvironmentId(2))]);
    assert_eq!(driven.pool.provisioned().available, 1);
    let died = driven.after(0, Event::Gone(EnvironmentId(1)));
    assert_eq!(died, [Action::Start(EnvironmentId(3), Purpose::Provisioned)]);
    assert_eq!(driven.after(3_600_000, Event::Tick), [Action::Retire(EnvironmentId(0))]);
}

#[test]
fn a_provisioned_initialization_that_fails_is_reported_and_not_tried_for_ever() {
    let mut driven = Driven::new();
    driven.after(0, Event::SetProvisioned(1));
    assert_eq!(
        driven.after(5, Event::Ready(EnvironmentId(0), Initialized::Failed)),
        [Action::Retire(EnvironmentId(0))]
    );
    assert!(driven.pool.provisioned().init_failed);
    assert_eq!(driven.after(0, Event::Tick), []);
    assert_eq!(driven.after(0, Event::SetProvisioned(1)), [Action::Start(EnvironmentId(1), Purpose::Provisioned)]);
}

#[test]
fn a_retired_pool_lets_the_busy_finish_and_keeps_nothing() {
    let mut driven = Driven::settled();
    assert_eq!(driven.after(0, Event::Retire), []);
    assert!(!driven.pool.is_empty());
    assert_eq!(driven.after(0, Event::Idle(EnvironmentId(0))), [Action::Retire(EnvironmentId(0))]);
    assert!(driven.pool.is_empty());
    assert_eq!(driven.after(0, Event::SetProvisioned(1)), []);
}

#[test]
fn a_request_whose_environment_could_not_be_made_fails() {
    let mut driven = Driven::new();
    driven.after(0, Event::Request(RequestId(1)));
    assert_eq!(driven.after(5, Event::Gone(EnvironmentId(0))), [Action::Fail(RequestId(1))]);
}

#[test]
fn a_provisioned_initialization_that_failed_is_reported_even_if_a_waiting_request_takes_the_environment() {
    let mut driven = Driven::new();
    driven.after(0, Event::SetProvisioned(1));
    driven.after(0, Event::Request(RequestId(1)));
    let actions = driven.after(5, Event::Ready(EnvironmentId(0), Initialized::Failed));
    assert_eq!(actions, [Action::Dispatch(RequestId(1), EnvironmentId(0))]);
    assert!(driven.pool.provisioned().init_failed);
}

#[test]
fn an_ended_pool_ends_everything_and_starts_nothing_again() {
    let mut driven = Driven::new();
    driven.after(0, Event::SetProvisioned(1));
    driven.after(0, Event::Ready(EnvironmentId(0), Initialized::Yes));
    driven.after(0, Event::Request(RequestId(1)));
    driven.after(0, Event::Request(RequestId(2)));
    let mut ended = driven.after(0, Event::End);
    ended.sort_by_key(|action| format!("{action:?}"));
    assert_eq!(ended, [Action::Fail(RequestId(2)), Action::Retire(EnvironmentId(0)), Action::Retire(EnvironmentId(1))]);
    assert!(driven.pool.is_empty());
    for late in [
        Event::Gone(EnvironmentId(0)),
        Event::Ready(EnvironmentId(1), Initialized::Yes),
        Event::Gone(EnvironmentId(1)),
        Event::SetProvisioned(3),
        Event::Tick,
    ] {
        assert_eq!(driven.after(1, late), [], "{late:?}");
    }
    assert_eq!(driven.after(0, Event::Request(RequestId(3))), [Action::Fail(RequestId(3))]);
}

proptest! {
    #[test]
    fn no_interleaving_loses_a_request_or_serves_two_at_once(
        events in prop::collection::vec((0u8..13, 0u64..40, any::<prop::sample::Index>(), 0u32..4), 0..120),
    ) {
        let mut driven = Driven::new();
        let (mut requests, mut served) = (0u64, HashSet::new());
        let mut busy: Vec<EnvironmentId> = Vec::new();
        let mut settling: Vec<EnvironmentId> = Vec::new();
        let mut starting: Vec<EnvironmentId> = Vec::new();
        let mut free: Vec<EnvironmentId> = Vec::new();
        let pick = |list: &Vec<EnvironmentId>, at: prop::sample::Index| (!list.is_empty()).then(|| list[at.index(list.len())]);
        for (kind, wait, at, count) in events {
            let event = match kind {
                0..=3 => {
                    requests += 1;
                    Event::Request(RequestId(requests))
                }
                4 | 5 => match pick(&starting, at) {
                    Some(id) => {
                        starting.retain(|e| *e != id);
                        free.push(id);
                        Event::Ready(id, if count == 0 { Initialized::Failed } else { Initialized::Yes })
                    }
                    None => Event::Tick,
                },
                6 => match pick(&busy, at) {
                    Some(id) => {
                        busy.retain(|e| *e != id);
                        settling.push(id);
                        Event::Settling(id)
                    }
                    None => Event::Tick,
                },
                7 | 8 => match pick(&settling, at) {
                    Some(id) => {
                        settling.retain(|e| *e != id);
                        free.push(id);
                        Event::Idle(id)
                    }
                    None => Event::Tick,
                },
                9 => {
                    let all: Vec<_> = [&busy, &settling, &starting, &free].into_iter().flatten().copied().collect();
                    match pick(&all, at) {
                        Some(id) => {
                            for list in [&mut busy, &mut settling, &mut starting, &mut free] {
                                list.retain(|e| *e != id);
                            }
                            Event::Gone(id)
                        }
                        None => Event::GiveUpOne,
                    }
                }
                10 => Event::SetProvisioned(count),
                11 if count == 0 => Event::Retire,
                12 => match pick(&starting, at) {
                    Some(id) => {
                        starting.retain(|e| *e != id);
                        Event::StartRefused(id)
                    }
                    None => Event::GiveUpOne,
                },
                _ => Event::Tick,
            };
            for action in driven.after(wait, event) {
                match action {
                    Action::Dispatch(request, id) => {
                        prop_assert!(served.insert(request), "{request:?} was served twice");
                        prop_assert!(free.contains(&id), "{id:?} was not free");
                        free.retain(|e| *e != id);
                        busy.push(id);
                    }
                    Action::Start(id, _) => starting.push(id),
                    Action::Retire(id) => {
                        prop_assert!(free.contains(&id), "{id:?} was retired while in use");
                        free.retain(|e| *e != id);
                    }
                    Action::Fail(request) => prop_assert!(served.insert(request), "{request:?} was answered twice"),
                    Action::WakeAt(at) => prop_assert!(at >= driven.now),
                }
            }
        }
        let provisioned = driven.pool.provisioned();
        let counted = driven.pool.environments.values().filter(|e| e.provisioned).count();
        prop_assert_eq!(driven.pool.provisioned, counted);
        prop_assert!(provisioned.available <= provisioned.allocated);
        // Whatever waits now is served once time passes and what was started becomes ready.
        let mut rounds = 0;
        while (served.len() as u64) < requests {
            rounds += 1;
            prop_assert!(rounds < 1_000, "{} of {requests} requests are stuck", requests - served.len() as u64);
            let mut actions = driven.after(30, Event::Tick);
            for id in std::mem::take(&mut starting) {
                actions.extend(driven.after(0, Event::Ready(id, Initialized::Yes)));
            }
            for action in actions {
                match action {
                    Action::Dispatch(request, _) | Action::Fail(request) => {
                        prop_assert!(served.insert(request));
                    }
                    Action::Start(id, _) => starting.push(id),
                    Action::Retire(_) | Action::WakeAt(_) => {}
                }
            }
        }
        driven.after(0, Event::End);
        prop_assert!(driven.pool.is_empty());
        prop_assert_eq!(driven.pool.provisioned, 0);
    }
}
