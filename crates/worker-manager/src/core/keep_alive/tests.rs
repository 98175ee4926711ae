//! The policies on histories made by hand.

use super::*;

const MINUTE: Duration = Duration::from_secs(60);

fn learning() -> Keeper {
    Keeper::new(KeepAlive::Histogram(HistogramRules::default()))
}

#[test]
fn a_fixed_time_is_kept_whatever_happens() {
    let mut keeper = Keeper::new(KeepAlive::Fixed(MINUTE));
    (0..50).for_each(|_| keeper.reused(20 * MINUTE));
    assert_eq!(keeper.windows(), Windows { keep: MINUTE, prewarm: None });
    assert!(!keeper.remembers(Duration::ZERO));
}

#[test]
fn a_regular_function_is_let_go_and_prewarmed() {
    let mut keeper = learning();
    let standard = Windows { keep: 10 * MINUTE, prewarm: None };
    assert_eq!(keeper.windows(), standard);
    (0..9).for_each(|_| keeper.reused(30 * MINUTE));
    assert_eq!(keeper.windows(), standard, "too few to be believed");
    keeper.reused(30 * MINUTE);
    let expected =
        Windows { keep: HistogramRules::default().linger, prewarm: Some((MINUTE.mul_f64(27.0), MINUTE.mul_f64(34.1))) };
    assert_eq!(keeper.windows(), expected);
    assert!(keeper.remembers(239 * MINUTE) && !keeper.remembers(240 * MINUTE));
}

#[test]
fn a_busy_function_is_kept_no_longer_than_it_ever_rests() {
    let mut keeper = learning();
    (0..100).for_each(|_| keeper.reused(Duration::from_secs(5)));
    assert_eq!(keeper.windows(), Windows { keep: MINUTE.mul_f64(1.1), prewarm: None });
}

#[test]
fn what_has_no_pattern_is_kept_for_the_standard_time() {
    let mut keeper = learning();
    (0..BINS as u32).for_each(|minute| keeper.reused(minute * MINUTE));
    assert_eq!(keeper.windows(), Windows { keep: 10 * MINUTE, prewarm: None });
    let mut rare = learning();
    (0..20).for_each(|_| rare.reused(300 * MINUTE));
    (0..5).for_each(|_| rare.reused(30 * MINUTE));
    assert_eq!(rare.windows(), Windows { keep: 10 * MINUTE, prewarm: None });
}

#[test]
fn a_cold_start_counts_as_the_idle_time_that_it_would_have_been() {
    let (mut keeper, begin) = (learning(), Instant::now());
    for round in 0..10 {
        let used = begin + round * 60 * MINUTE;
        keeper.expired(used);
        keeper.missed(used + 20 * MINUTE);
    }
    keeper.missed(begin + 1_000 * MINUTE);
    assert_eq!(keeper.windows().prewarm.map(|(ahead, _)| ahead), Some(18 * MINUTE));
}

#[test]
fn old_habits_fade() {
    let mut keeper = learning();
    (0..2_000).for_each(|_| keeper.reused(60 * MINUTE));
    (0..60_000).for_each(|_| keeper.reused(5 * MINUTE));
    assert_eq!(keeper.windows().prewarm, Some((MINUTE.mul_f64(4.5), MINUTE.mul_f64(6.6))));
}
