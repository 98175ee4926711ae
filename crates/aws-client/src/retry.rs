//! When to try again, and after how long: full jitter below a bound that doubles, as the SDKs' standard mode does.

use std::time::Duration;

use hyper::StatusCode;

/// Bound of the first pause.
const FIRST: Duration = Duration::from_millis(100);
/// Bound of every later one.
const LONGEST: Duration = Duration::from_secs(5);

/// The pause before another try. `failed` counts the tries so far, from 1; `random` is from 0 to 1.
pub(crate) fn pause(failed: u32, random: f64) -> Duration {
    let bound = FIRST.saturating_mul(1 << failed.saturating_sub(1).min(10)).min(LONGEST);
    bound.mul_f64(random.clamp(0.0, 1.0))
}

/// Whether an answer with this status may be another one in a moment.
pub(crate) fn is_transient(status: StatusCode) -> bool {
    matches!(status.as_u16(), 429 | 500 | 502 | 503 | 504)
}

/// From 0 up to 1.
pub(crate) fn random() -> f64 {
    let (bits, _) = uuid::Uuid::new_v4().as_u64_pair();
    // The upper 48 bits: a UUID's version is in the others.
    (bits >> 16) as f64 / (1_u64 << 48) as f64
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn pauses_double_up_to_a_bound() {
        let bounds: Vec<u128> = (1..=8).map(|failed| pause(failed, 1.0).as_millis()).collect();
        assert_eq!(bounds, [100, 200, 400, 800, 1_600, 3_200, 5_000, 5_000]);
        assert_eq!(pause(3, 0.0), Duration::ZERO);
    }

    proptest! {
        #[test]
        fn every_pause_is_below_its_bound(failed in 0_u32.., random in -1.0_f64..2.0) {
            prop_assert!(pause(failed, random) <= LONGEST);
        }
    }

    #[test]
    fn randomness_is_spread_over_its_range() {
        let numbers: Vec<f64> = (0..1_000).map(|_| random()).collect();
        assert!(numbers.iter().all(|number| (0.0..1.0).contains(number)));
        assert!(numbers.iter().any(|number| *number < 0.1) && numbers.iter().any(|number| *number > 0.9));
    }
}
