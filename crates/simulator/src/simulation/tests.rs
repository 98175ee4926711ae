//! Small traces whose outcome can be told beforehand, and any trace at all.

use proptest::prelude::*;

use super::*;
use crate::trace::{Assumptions, Function, Source, generated};

const MINUTE: u64 = 60;

/// A function of 100 MiB that starts in about 100 ms, invoked for 200 ms at each of these seconds.
fn function(seconds: impl IntoIterator<Item = u64>) -> Function {
    let times = seconds.into_iter().map(|second| (second * 1_000_000, 200_000)).collect();
    Function {
        name: "app/function".into(),
        memory_mib: 100,
        cold_start: Duration::from_millis(100),
        source: Source::Exact(times),
    }
}

fn trace(functions: Vec<Function>, hours: u64) -> Trace {
    Trace { name: "test".into(), functions, length: Duration::from_secs(hours * 3_600), seed: 1 }
}

fn replay(trace: &Trace, cluster: &Cluster, policy: &str) -> Outcome {
    run(trace, cluster, policy.parse().unwrap(), &mut |_| ())
}

/// Whether each invocation came to an end of some kind, and nothing was left.
fn adds_up(outcome: &Outcome) -> bool {
    let throttled: u64 = outcome.throttles.values().sum();
    outcome.served + throttled + outcome.failures + outcome.unfinished == outcome.invocations && outcome.left_over == 0
}

#[test]
fn the_second_invocation_within_the_time_kept_is_warm() {
    let trace = trace(vec![function([0, 9 * MINUTE, 30 * MINUTE])], 1);
    let outcome = replay(&trace, &Cluster::default(), "fixed:10m");
    assert_eq!((outcome.served, outcome.cold_starts, outcome.starts), (3, 2, 2));
    assert!((50.0..200.0).contains(&outcome.added.p99_ms), "{outcome:?}");
    // Idle for nine minutes and twice for ten, with 100 MiB.
    let wasted = outcome.wasted_mib_seconds / 100.0 / MINUTE as f64;
    assert!((28.9..29.1).contains(&wasted), "{wasted} min");
    let used = outcome.used_mib_seconds / 100.0;
    assert!((used - 0.6).abs() < 1e-9, "{used} s");
    assert_eq!((outcome.peak_mib, outcome.peak_environments), (100, 1));
    assert!(adds_up(&outcome));
}

#[test]
fn keeping_longer_trades_memory_for_cold_starts() {
    let trace = trace(vec![function((0..20).map(|index| index * 15 * MINUTE))], 5);
    let short = replay(&trace, &Cluster::default(), "fixed:10m");
    let long = replay(&trace, &Cluster::default(), "fixed:20m");
    assert_eq!((short.cold_starts, long.cold_starts), (20, 1));
    assert!(short.wasted_mib_seconds < long.wasted_mib_seconds);
}

#[test]
fn the_histogram_learns_a_period_and_starts_ahead_of_it() {
    let trace = trace(vec![function((0..100).map(|index| index * 30 * MINUTE))], 50);
    let fixed = replay(&trace, &Cluster::default(), "fixed:10m");
    let histogram = replay(&trace, &Cluster::default(), "histogram");
    assert_eq!(fixed.cold_starts, 100);
    assert!(histogram.cold_starts < 20, "{histogram:?}");
    assert!(histogram.prewarms_used > 80 && histogram.prewarms >= histogram.prewarms_used, "{histogram:?}");
    assert!(histogram.wasted_mib_seconds < fixed.wasted_mib_seconds, "{histogram:?}");
    assert!(adds_up(&histogram));
}

#[test]
fn a_full_worker_gives_up_idle_environments_and_never_holds_more_than_it_has() {
    let functions = (0..5).map(|first| function((0..50).map(|index| first + index * 5))).collect();
    let cluster = Cluster { workers: 1, memory_mib: 300, ..Cluster::default() };
    let outcome = replay(&trace(functions, 1), &cluster, "fixed:10m");
    assert!(outcome.evictions > 100, "{outcome:?}");
    assert!(outcome.peak_mib <= 300, "{outcome:?}");
    assert_eq!(outcome.served, 250);
    assert!(adds_up(&outcome));
}

#[test]
fn what_is_over_a_limit_is_throttled_and_counted_by_limit() {
    let cluster = Cluster { account_concurrency: 3, ..Cluster::default() };
    let outcome = replay(&trace(vec![function([10; 5])], 1), &cluster, "fixed:10m");
    assert_eq!(outcome.served, 3);
    assert_eq!(outcome.throttles.get("AccountConcurrency"), Some(&2), "{outcome:?}");

    let cluster = Cluster { memory_mib: 64, ..Cluster::default() };
    let outcome = replay(&trace(vec![function([10])], 1), &cluster, "fixed:10m");
    assert_eq!(outcome.served, 0);
    assert_eq!(outcome.throttles.get("HostCapacity"), Some(&1), "{outcome:?}");
}

#[test]
fn policies_are_compared_in_their_order_with_the_same_result_each_time() {
    let options = generated::Options {
        functions: 40,
        length: Duration::from_secs(6 * 3_600),
        max_rate: 0.05,
        seed: 3,
        assumptions: Assumptions::default(),
    };
    let trace = generated::generate(&options);
    let cluster = Cluster { workers: 2, memory_mib: 2_048, ..Cluster::default() };
    let policies: Vec<Policy> =
        ["fixed:1m", "histogram", "fixed:10m"].iter().map(|text| text.parse().unwrap()).collect();
    let outcomes = compare(&trace, &cluster, &policies, &|_, _| ());
    assert_eq!(outcomes.iter().map(|o| o.policy.as_str()).collect::<Vec<_>>(), ["fixed:1m", "histogram", "fixed:10m"]);
    assert!(outcomes.iter().all(adds_up));
    assert!(outcomes[0].cold_starts > outcomes[2].cold_starts, "{outcomes:?}");
    assert_eq!(compare(&trace, &cluster, &policies, &|_, _| ()), outcomes);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn every_invocation_ends_in_one_way_and_no_worker_holds_more_than_it_has(
        seed in 0..1_000u64,
        functions in 1..12u32,
        workers in 1..4u32,
        memory_mib in 100..2_000u64,
        account_concurrency in 1..50u32,
        policy in prop::sample::select(vec!["fixed:0s", "fixed:1m", "fixed:10m", "histogram", "histogram:1m"]),
    ) {
        let trace = generated::generate(&generated::Options {
            functions,
            length: Duration::from_secs(2 * 3_600),
            max_rate: 0.2,
            seed,
            assumptions: Assumptions::default(),
        });
        let cluster = Cluster { workers, memory_mib, account_concurrency, ..Cluster::default() };
        let outcome = replay(&trace, &cluster, policy);
        prop_assert!(adds_up(&outcome), "{:?}", outcome);
        prop_assert!(outcome.peak_mib <= memory_mib * u64::from(workers), "{:?}", outcome);
        prop_assert!(outcome.cold_starts <= outcome.served);
    }
}
