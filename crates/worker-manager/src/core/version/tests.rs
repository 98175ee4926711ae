//! One version in single scenarios.

use super::*;
use crate::core::event::WorkerId;
use crate::core::keep_alive::{HistogramRules, KeepAlive};
use crate::core::placement::WorkerLimits;
use crate::core::shared::Rules;

mod world;

const PATIENCE: Duration = Duration::from_millis(20);
const ON_DEMAND: Purpose = Purpose::OnDemand;
const PROVISIONED: Purpose = Purpose::Provisioned;
const HERE: WorkerId = WorkerId(0);
const FULL: Throttle = Throttle { reason: ThrottleReason::HostCapacity, retry_after: Duration::from_secs(1) };

/// Versions of functions of their own.
struct Driven<const N: usize> {
    shared: Shared,
    versions: [Version; N],
    now: Instant,
}

impl<const N: usize> Driven<N> {
    fn with(rules: Rules, environments: u32) -> Self {
        let now = Instant::now();
        let shared = Shared::new(rules, &[WorkerLimits::of_environments(environments)], now);
        let versions = std::array::from_fn(|_| Version::new(&shared, &shared.function(), Size::of_memory(128), 1, now));
        Self { shared, versions, now }
    }

    /// What comes of an event to a version, without the wake-ups of idle environments.
    fn of(&mut self, version: usize, ms: u64, event: Event) -> Vec<Action> {
        self.now += Duration::from_millis(ms);
        let mut actions = Vec::new();
        self.versions[version].step(&self.shared, event, self.now, &mut actions);
        let soon = self.now + Duration::from_secs(5);
        actions.retain(|action| !matches!(action, Action::WakeAt(at) if *at > soon));
        actions
    }
}

impl Driven<1> {
    fn new() -> Self {
        Self::with(Rules::default(), 1_000)
    }

    fn after(&mut self, ms: u64, event: Event) -> Vec<Action> {
        self.of(0, ms, event)
    }

    /// A version with one environment that has just answered request 0.
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
    assert_eq!(start, [Action::Start(EnvironmentId(0), ON_DEMAND, HERE)]);
    let ready = driven.after(50, Event::Ready(EnvironmentId(0), Initialized::Yes));
    assert_eq!(ready, [Action::Dispatch(RequestId(7), EnvironmentId(0))]);
}

#[test]
fn two_requests_at_once_get_an_environment_each() {
    let mut driven = Driven::new();
    driven.after(0, Event::Request(RequestId(1)));
    let second = driven.after(0, Event::Request(RequestId(2)));
    assert_eq!(second, [Action::Start(EnvironmentId(1), ON_DEMAND, HERE)]);
}

#[test]
fn a_request_that_comes_while_the_environment_settles_waits_for_it() {
    let mut driven = Driven::settled();
    let asked = driven.after(1, Event::Request(RequestId(1)));
    assert_eq!(asked, [Action::WakeAt(driven.now + PATIENCE)]);
    assert_eq!(driven.after(1, Event::Idle(EnvironmentId(0))), [Action::Dispatch(RequestId(1), EnvironmentId(0))]);
}

#[test]
fn a_request_that_has_waited_too_long_for_a_settling_environment_gets_its_own() {
    let mut driven = Driven::settled();
    driven.after(1, Event::Request(RequestId(1)));
    assert_eq!(driven.after(20, Event::Tick), [Action::Start(EnvironmentId(1), ON_DEMAND, HERE)]);
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
        [Action::Start(EnvironmentId(1), PROVISIONED, HERE), Action::Start(EnvironmentId(2), PROVISIONED, HERE)]
    );
    driven.after(50, Event::Ready(EnvironmentId(1), Initialized::Yes));
    driven.after(0, Event::Ready(EnvironmentId(2), Initialized::Yes));
    let status = driven.versions[0].provisioned();
    assert_eq!((status.requested, status.allocated, status.available), (2, 2, 2));
    assert_eq!(driven.after(0, Event::Request(RequestId(5))), [Action::Dispatch(RequestId(5), EnvironmentId(2))]);
    assert_eq!(driven.versions[0].provisioned().available, 1);
    let died = driven.after(0, Event::Gone(EnvironmentId(1)));
    assert_eq!(died, [Action::Start(EnvironmentId(3), PROVISIONED, HERE)]);
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
    assert_eq!(driven.versions[0].provisioned().failed, Some(ProvisionFailure::Initialization));
    assert_eq!(driven.after(0, Event::Tick), []);
    assert_eq!(driven.after(0, Event::SetProvisioned(1)), [Action::Start(EnvironmentId(1), PROVISIONED, HERE)]);
}

#[test]
fn a_retired_pool_lets_the_busy_finish_and_keeps_nothing() {
    let mut driven = Driven::settled();
    assert_eq!(driven.after(0, Event::Retire), []);
    assert!(!driven.versions[0].is_empty());
    assert_eq!(driven.after(0, Event::Idle(EnvironmentId(0))), [Action::Retire(EnvironmentId(0))]);
    assert!(!driven.versions[0].is_empty());
    assert_eq!(driven.after(0, Event::Gone(EnvironmentId(0))), []);
    assert!(driven.versions[0].is_empty());
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
    assert_eq!(driven.versions[0].provisioned().failed, Some(ProvisionFailure::Initialization));
}

#[test]
fn an_ended_pool_ends_everything_and_starts_nothing_again() {
    let mut driven = Driven::new();
    driven.after(0, Event::SetProvisioned(1));
    driven.after(0, Event::Ready(EnvironmentId(0), Initialized::Yes));
    driven.after(0, Event::Request(RequestId(1)));
    driven.after(0, Event::Request(RequestId(2)));
    let ended = driven.after(0, Event::End);
    assert_eq!(ended, [Action::Fail(RequestId(2)), Action::Retire(EnvironmentId(0)), Action::Retire(EnvironmentId(1))]);
    for late in [
        Event::Gone(EnvironmentId(0)),
        Event::Ready(EnvironmentId(1), Initialized::Yes),
        Event::Gone(EnvironmentId(1)),
        Event::SetProvisioned(3),
        Event::Tick,
    ] {
        assert_eq!(driven.after(1, late), [], "{late:?}");
    }
    assert!(driven.versions[0].is_empty());
    assert_eq!(driven.after(0, Event::Request(RequestId(3))), [Action::Fail(RequestId(3))]);
}

#[test]
fn a_request_waits_for_a_busy_environment_that_is_known_to_be_quicker_than_a_cold_start() {
    let mut driven = Driven::new();
    let (only, one) = (EnvironmentId(0), EnvironmentId(1));
    driven.after(0, Event::Request(RequestId(0)));
    driven.after(200, Event::Ready(only, Initialized::Yes));
    driven.after(4, Event::Idle(only));
    for n in 1..20 {
        assert_eq!(driven.after(1, Event::Request(RequestId(n))), [Action::Dispatch(RequestId(n), only)]);
        driven.after(4, Event::Idle(only));
    }
    driven.after(1, Event::Request(RequestId(20)));
    let until = driven.now + Duration::from_millis(100);
    assert_eq!(driven.after(0, Event::Request(RequestId(21))), [Action::WakeAt(until)]);
    // One more than will be free soon is not kept waiting.
    assert_eq!(driven.after(0, Event::Request(RequestId(22))), [Action::Start(one, ON_DEMAND, HERE)]);
    assert_eq!(driven.after(4, Event::Idle(only)), [Action::Dispatch(RequestId(21), only)]);
    assert_eq!(driven.after(4, Event::Idle(only)), [Action::Dispatch(RequestId(22), only)]);
    // What takes longer than it ever did is not counted on.
    driven.after(192, Event::Ready(one, Initialized::Yes));
    driven.after(0, Event::Request(RequestId(23)));
    driven.after(100, Event::Tick);
    assert_eq!(driven.after(0, Event::Request(RequestId(24))), [Action::Start(EnvironmentId(2), ON_DEMAND, HERE)]);
}

#[test]
fn a_function_is_scaled_by_so_many_environments_at_once_and_then_by_the_rate() {
    let rules = Rules { scaling_environments: 5, requests_per_unit: 1_000, ..Rules::default() };
    let mut driven = Driven::<1>::with(rules, 100);
    let mut started = 0;
    let mut throttled = Vec::new();
    for n in 0..8 {
        match driven.after(0, Event::Request(RequestId(n)))[..] {
            [Action::Start(..)] => started += 1,
            [Action::Throttle(request, throttle)] => throttled.push((request, throttle)),
            ref other => panic!("{other:?}"),
        }
    }
    let throttle = Throttle { reason: ThrottleReason::ScalingRate, retry_after: Duration::from_secs(2) };
    assert_eq!(started, 5);
    assert_eq!(throttled, [5, 6, 7].map(|n| (RequestId(n), throttle)));
    assert!(matches!(driven.after(2_000, Event::Request(RequestId(8)))[..], [Action::Start(..)]));
    assert_eq!(driven.shared.in_flight(), 6);
}

#[test]
fn a_request_on_a_full_worker_has_the_least_valuable_idle_environment_go() {
    let mut driven = Driven::<3>::with(Rules::default(), 2);
    let (first, second) = (EnvironmentId(0), EnvironmentId(1));
    for version in [0, 1] {
        driven.of(version, 1, Event::Request(RequestId(0)));
        driven.of(version, 10, Event::Ready(first, Initialized::Yes));
        driven.of(version, 1, Event::Idle(first));
    }
    // Version 0 was used before, but is of more use.
    driven.of(0, 0, Event::Request(RequestId(1)));
    driven.of(0, 0, Event::Idle(first));
    let victim = driven.versions[1].id();
    let asked = driven.of(2, 0, Event::Request(RequestId(0)));
    let deadline = driven.now + Duration::from_secs(1);
    assert_eq!(asked, [Action::Tell(victim, Told::Evict(first)), Action::WakeAt(deadline)]);
    assert_eq!(driven.of(1, 0, Event::Told(Told::Evict(first))), [Action::Retire(first)]);
    let waiting = driven.versions[2].id();
    assert_eq!(driven.of(1, 5, Event::Gone(first)), [Action::Tell(waiting, Told::Room(first))]);
    assert_eq!(driven.of(2, 0, Event::Told(Told::Room(first))), [Action::Start(first, ON_DEMAND, HERE)]);
    driven.of(2, 5, Event::Ready(first, Initialized::Yes));
    // Version 0 finds use for its own before it hears that it should go.
    let asked = driven.of(1, 0, Event::Request(RequestId(1)));
    assert_eq!(asked[0], Action::Tell(driven.versions[0].id(), Told::Evict(first)));
    assert_eq!(driven.of(0, 0, Event::Request(RequestId(2))), [Action::Dispatch(RequestId(2), first)]);
    assert_eq!(driven.of(0, 0, Event::Told(Told::Evict(first))), []);
    // Now nothing is idle: what is next has to go.
    let tells = driven.of(2, 1, Event::Idle(first));
    assert_eq!(tells, [Action::Tell(waiting, Told::Evict(first))]);
    driven.of(2, 0, Event::Told(Told::Evict(first)));
    let room = driven.of(2, 0, Event::Gone(first));
    assert_eq!(room, [Action::Tell(victim, Told::Room(second))]);
    assert_eq!(driven.shared.figures().fleet.evictions, 2);
}

#[test]
fn a_request_that_finds_no_room_in_time_is_throttled_and_its_place_is_not_taken_later() {
    let mut driven = Driven::<2>::with(Rules::default(), 1);
    let only = EnvironmentId(0);
    driven.of(0, 0, Event::Request(RequestId(0)));
    driven.of(0, 5, Event::Ready(only, Initialized::Yes));
    let deadline = driven.now + Duration::from_secs(1);
    assert_eq!(driven.of(1, 0, Event::Request(RequestId(0))), [Action::WakeAt(deadline)]);
    assert_eq!(driven.of(1, 999, Event::Tick), []);
    assert_eq!(driven.of(1, 1, Event::Tick), [Action::Throttle(RequestId(0), FULL)]);
    assert_eq!(driven.shared.in_flight(), 1);
    assert_eq!(driven.of(0, 0, Event::Idle(only)), []);
    assert!(driven.versions[1].is_empty());
    assert_eq!(driven.shared.figures().fleet.waiting, 0);
}

#[test]
fn a_function_with_many_requests_lets_another_have_its_turn() {
    let mut driven = Driven::<2>::with(Rules::default(), 2);
    let [zero, one] = [0, 1].map(EnvironmentId);
    for n in 0..10 {
        driven.of(0, 0, Event::Request(RequestId(n)));
    }
    for id in [zero, one] {
        driven.of(0, 5, Event::Ready(id, Initialized::Yes));
    }
    driven.of(1, 0, Event::Request(RequestId(0)));
    // Eight wait for the first function, and yet.
    assert_eq!(driven.of(0, 1, Event::Idle(zero))[0], Action::Retire(zero));
    // Half is its due.
    assert_eq!(driven.of(0, 0, Event::Idle(one)), [Action::Dispatch(RequestId(2), one)]);
    let quiet = driven.versions[1].id();
    assert_eq!(driven.of(0, 0, Event::Gone(zero)), [Action::Tell(quiet, Told::Room(zero))]);
    driven.of(1, 0, Event::Told(Told::Room(zero)));
    driven.of(1, 5, Event::Ready(zero, Initialized::Yes));
    let loud = driven.versions[0].id();
    let back = driven.of(1, 1, Event::Idle(zero));
    assert_eq!(back, [Action::Tell(quiet, Told::Evict(zero))], "nobody of its own waits for it");
    driven.of(1, 0, Event::Told(Told::Evict(zero)));
    assert!(matches!(driven.of(1, 0, Event::Gone(zero))[..], [Action::Tell(to, Told::Room(_))] if to == loud));
}

#[test]
fn a_provisioned_environment_without_room_is_reported() {
    let mut driven = Driven::<2>::with(Rules::default(), 1);
    driven.of(0, 0, Event::Request(RequestId(0)));
    let deadline = driven.now + Duration::from_secs(1);
    assert_eq!(driven.of(1, 0, Event::SetProvisioned(1)), [Action::WakeAt(deadline)]);
    assert_eq!(driven.of(1, 1_000, Event::Tick), []);
    let status = driven.versions[1].provisioned();
    assert_eq!((status.failed, status.allocated), (Some(ProvisionFailure::NoRoom), 0));
    driven.of(0, 0, Event::Gone(EnvironmentId(0)));
    assert_eq!(driven.of(1, 0, Event::SetProvisioned(1)), [Action::Start(EnvironmentId(1), PROVISIONED, HERE)]);
}

#[test]
fn an_initialization_for_a_snapshot_has_a_place_like_any_environment() {
    let mut driven = Driven::<2>::with(Rules::default(), 1);
    let zero = EnvironmentId(0);
    driven.of(0, 0, Event::Request(RequestId(0)));
    driven.of(0, 50, Event::Ready(zero, Initialized::Yes));
    assert_eq!(driven.of(1, 0, Event::Initialize), [], "it waits, however long");
    assert_eq!(driven.of(1, 60_000, Event::Tick), []);
    driven.of(0, 0, Event::Idle(zero));
    driven.of(0, 0, Event::Told(Told::Evict(zero)));
    let [Action::Tell(_, room)] = driven.of(0, 0, Event::Gone(zero))[..] else { panic!("there is room") };
    assert_eq!(driven.of(1, 0, Event::Told(room)), [Action::Start(zero, Purpose::Snapshot, HERE)]);
    assert_eq!(driven.of(0, 0, Event::Request(RequestId(1))).len(), 1, "it waits for room");
    let counts = driven.versions[1].function.figures();
    assert_eq!((counts.started_snapshot, counts.started_on_demand), (1, 0));
    assert!(matches!(driven.of(1, 0, Event::Gone(zero))[..], [Action::Tell(_, Told::Room(_))]));
    assert!(driven.versions[1].is_empty());
    driven.of(1, 0, Event::End);
    assert_eq!(driven.of(1, 0, Event::Initialize), [Action::Decline]);
}

#[test]
fn what_is_larger_than_the_worker_is_refused_at_once() {
    let now = Instant::now();
    let limits = WorkerLimits { memory_mb: 1_000, ..WorkerLimits::of_environments(10) };
    let shared = Shared::new(Rules::default(), &[limits], now);
    let mut version = Version::new(&shared, &shared.function(), Size::of_memory(1_001), 1, now);
    let mut actions = Vec::new();
    version.step(&shared, Event::Request(RequestId(0)), now, &mut actions);
    assert_eq!(actions, [Action::Throttle(RequestId(0), FULL)]);
    assert_eq!(shared.in_flight(), 0);
    actions.clear();
    version.step(&shared, Event::Initialize, now, &mut actions);
    assert_eq!(actions, [Action::Decline]);
}

#[test]
fn a_large_environment_has_several_small_ones_go() {
    let now = Instant::now();
    let limits = WorkerLimits { memory_mb: 1_000, ..WorkerLimits::of_environments(10) };
    let shared = Shared::new(Rules::default(), &[limits], now);
    let mut small = Version::new(&shared, &shared.function(), Size::of_memory(200), 1, now);
    let mut large = Version::new(&shared, &shared.function(), Size::of_memory(700), 1, now);
    let mut actions = Vec::new();
    let events = |of: fn(u64) -> Event| (0..5).map(of);
    for event in events(|n| Event::Request(RequestId(n)))
        .chain(events(|n| Event::Ready(EnvironmentId(n), Initialized::Yes)))
        .chain(events(|n| Event::Idle(EnvironmentId(n))))
    {
        small.step(&shared, event, now, &mut actions);
    }
    actions.clear();
    large.step(&shared, Event::Request(RequestId(0)), now, &mut actions);
    let evicted: Vec<Told> =
        actions.iter().filter_map(|a| if let Action::Tell(_, told) = a { Some(*told) } else { None }).collect();
    assert_eq!(evicted, [0, 1, 2, 3].map(|n| Told::Evict(EnvironmentId(n))));
}

#[test]
fn an_environment_is_made_ahead_of_an_invocation_that_comes_every_half_hour() {
    let rules = Rules { keep_alive: KeepAlive::Histogram(HistogramRules::default()), ..Rules::default() };
    let mut driven = Driven::<1>::with(rules, 10);
    let minutes = |n: u64| n * 60_000;
    let (mut next, mut cold, mut alive) = (0, 0, None);
    for round in 0..40 {
        // The driver: a tick each minute is more than was asked for.
        for _ in 0..30 {
            for action in driven.after(minutes(1), Event::Tick) {
                match action {
                    Action::Start(id, Purpose::Prewarm, _) => {
                        driven.after(10, Event::Ready(id, Initialized::Yes));
                        (alive, next) = (Some(id), id.0 + 1);
                    }
                    Action::Retire(id) => {
                        driven.after(0, Event::Gone(id));
                        alive = None;
                    }
                    other => assert!(matches!(other, Action::WakeAt(_)), "{other:?}"),
                }
            }
        }
        let request = RequestId(round);
        if let [Action::Start(id, ON_DEMAND, _)] = driven.after(0, Event::Request(request))[..] {
            (cold, next, alive) = (cold + 1, id.0 + 1, Some(id));
            driven.after(10, Event::Ready(id, Initialized::Yes));
        }
        driven.after(10, Event::Idle(alive.expect("it serves")));
    }
    assert!((10..=12).contains(&cold), "{cold} cold starts until the pattern was known");
    assert_eq!(driven.shared.figures().prewarms_used, 40 - cold);
    assert!(next > 30, "between invocations nothing is kept");
}

#[test]
fn an_environment_with_several_slots_serves_several_at_once() {
    let now = Instant::now();
    let shared = Shared::new(Rules::default(), &[WorkerLimits::of_environments(10)], now);
    let mut version = Version::new(&shared, &shared.function(), Size::of_memory(128), 3, now);
    let only = EnvironmentId(0);
    let mut after = |ms: u64, event: Event| {
        let mut actions = Vec::new();
        version.step(&shared, event, now + Duration::from_millis(ms), &mut actions);
        actions.retain(|action| !matches!(action, Action::WakeAt(_)));
        actions
    };
    let dispatch = |n: u64| Action::Dispatch(RequestId(n), only);
    assert_eq!(after(0, Event::Request(RequestId(0))), [Action::Start(only, ON_DEMAND, HERE)]);
    assert_eq!(after(9, Event::Ready(only, Initialized::Yes)), [dispatch(0)]);
    assert_eq!(after(9, Event::Request(RequestId(1))), [dispatch(1)]);
    assert_eq!(after(9, Event::Request(RequestId(2))), [dispatch(2)]);
    assert_eq!(after(9, Event::Request(RequestId(3))), [Action::Start(EnvironmentId(1), ON_DEMAND, HERE)]);
    after(10, Event::Settling(only));
    assert_eq!(after(10, Event::Idle(only)), [dispatch(3)]);
    for _ in 0..3 {
        assert_eq!(after(20, Event::Idle(only)), []);
    }
    assert_eq!(after(20, Event::Idle(only)), [], "once too often does no harm");
    assert_eq!(after(21, Event::Request(RequestId(4))), [dispatch(4)]);
    assert_eq!(after(21, Event::Gone(only)), []);
    assert_eq!(shared.in_flight(), 0);
}

#[test]
fn a_cold_environment_with_several_slots_is_waited_for_by_as_many() {
    let now = Instant::now();
    let shared = Shared::new(Rules::default(), &[WorkerLimits::of_environments(10)], now);
    let mut version = Version::new(&shared, &shared.function(), Size::of_memory(128), 2, now);
    let mut after = |event: Event| {
        let mut actions = Vec::new();
        version.step(&shared, event, now, &mut actions);
        actions
    };
    let [zero, one] = [0, 1].map(EnvironmentId);
    assert_eq!(after(Event::Request(RequestId(0))), [Action::Start(zero, ON_DEMAND, HERE)]);
    assert_eq!(after(Event::Request(RequestId(1))), []);
    assert_eq!(after(Event::Request(RequestId(2))), [Action::Start(one, ON_DEMAND, HERE)]);
    let both = [Action::Dispatch(RequestId(0), zero), Action::Dispatch(RequestId(1), zero)];
    assert_eq!(after(Event::Ready(zero, Initialized::Yes)), both);
    assert_eq!(after(Event::Request(RequestId(3))), []);
    // Where it does not come to be, all whom it would have served hear of it.
    assert_eq!(after(Event::Gone(one)), [Action::Fail(RequestId(2)), Action::Fail(RequestId(3))]);
}

#[test]
fn no_more_environments_are_started_than_there_may_be() {
    let mut driven = Driven::new();
    let most = Throttle { reason: ThrottleReason::MostEnvironments, retry_after: Duration::from_secs(1) };
    assert_eq!(driven.after(0, Event::SetMost(Some(2))), []);
    for n in 0..2 {
        let start = driven.after(0, Event::Request(RequestId(n)));
        assert_eq!(start, [Action::Start(EnvironmentId(n), ON_DEMAND, HERE)]);
        driven.after(10, Event::Ready(EnvironmentId(n), Initialized::Yes));
    }
    assert_eq!(driven.after(0, Event::Request(RequestId(2))), [Action::Throttle(RequestId(2), most)]);
    assert_eq!(driven.shared.in_flight(), 2);
    // One less: the first that is idle goes, though it could be of use again.
    assert_eq!(driven.after(0, Event::SetMost(Some(1))), []);
    assert_eq!(driven.after(1, Event::Idle(EnvironmentId(0))), [Action::Retire(EnvironmentId(0))]);
    assert_eq!(driven.after(1, Event::Idle(EnvironmentId(1))), []);
    assert_eq!(driven.after(0, Event::SetMost(Some(0))), [Action::Retire(EnvironmentId(1))]);
    assert_eq!(driven.after(0, Event::Request(RequestId(3))), [Action::Throttle(RequestId(3), most)]);
    assert!(!driven.versions[0].is_forgettable(driven.now), "the bound would be lost");
    assert_eq!(driven.after(0, Event::SetMost(None)), []);
    assert!(matches!(driven.after(0, Event::Request(RequestId(4)))[..], [Action::Start(..)]));
}

#[test]
fn both_bounds_hold_whatever_was_there_before() {
    let mut driven = Driven::new();
    for n in 0..2 {
        driven.after(0, Event::Request(RequestId(n)));
        driven.after(10, Event::Ready(EnvironmentId(n), Initialized::Yes));
    }
    driven.after(0, Event::Idle(EnvironmentId(0)));
    // What is there becomes what is kept.
    assert_eq!(driven.after(0, Event::SetMost(Some(2))), []);
    assert_eq!(driven.after(0, Event::SetProvisioned(2)), []);
    let status = driven.versions[0].provisioned();
    assert_eq!((status.allocated, status.available, status.failed), (2, 1, None));
    driven.after(0, Event::Idle(EnvironmentId(1)));
    assert_eq!(driven.after(3_600_000, Event::Tick), []);
    // One that ends is replaced, and whoever comes meanwhile waits for it.
    assert_eq!(driven.after(0, Event::Request(RequestId(2))), [Action::Dispatch(RequestId(2), EnvironmentId(1))]);
    let replaced = driven.after(0, Event::Gone(EnvironmentId(0)));
    assert_eq!(replaced, [Action::Start(EnvironmentId(2), PROVISIONED, HERE)]);
    assert_eq!(driven.after(0, Event::Request(RequestId(3))), []);
    let ready = driven.after(10, Event::Ready(EnvironmentId(2), Initialized::Yes));
    assert_eq!(ready, [Action::Dispatch(RequestId(3), EnvironmentId(2))]);
    assert_eq!(driven.versions[0].function.figures().spilled, 0);
}

#[test]
fn invocations_beyond_the_provisioned_environments_are_counted_as_spilled() {
    let mut driven = Driven::new();
    driven.after(0, Event::SetProvisioned(1));
    driven.after(0, Event::Ready(EnvironmentId(0), Initialized::Yes));
    driven.after(0, Event::Request(RequestId(0)));
    driven.after(0, Event::Request(RequestId(1)));
    driven.after(0, Event::Ready(EnvironmentId(1), Initialized::Yes));
    let figures = driven.versions[0].function.figures();
    assert_eq!((figures.invocations, figures.spilled, figures.peak), (2, 1, 2));
    assert_eq!((figures.started_on_demand, figures.started_provisioned), (1, 1));
    let now = driven.versions[0].figures();
    assert_eq!((now.busy, now.provisioned.allocated, now.provisioned.available), (2, 1, 0));
}
