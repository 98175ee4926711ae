//! How often something may happen: so many at once, continuously regained.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// A limit of a rate without a lock: one number, the time at which everything that was taken has been regained (the
/// virtual scheduling form of the leaky bucket, ITU-T I.371 annex A). Times are nanoseconds since a common beginning.
#[derive(Debug, Default)]
pub(crate) struct Rate {
    regained: AtomicU64,
}

/// What a [`Rate`] allows for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Allowance {
    /// What one costs, in nanoseconds: the time in which one is regained.
    pub(crate) each: u64,
    /// What may be spent at once, in nanoseconds.
    pub(crate) burst: u64,
}

impl Allowance {
    /// `count` in `period`, all of them at once if need be.
    pub(crate) fn new(count: u64, period: Duration) -> Self {
        let burst = u64::try_from(period.as_nanos()).unwrap_or(u64::MAX);
        Self { each: burst / count.max(1), burst }
    }
}

impl Rate {
    /// Takes one; or says how long until one is there.
    pub(crate) fn take(&self, allowance: Allowance, now: u64) -> Result<(), Duration> {
        let next = |regained: u64| {
            let next = regained.max(now).saturating_add(allowance.each);
            (next - now <= allowance.burst).then_some(next)
        };
        match self.regained.fetch_update(Ordering::Relaxed, Ordering::Relaxed, next) {
            Ok(_) => Ok(()),
            Err(regained) => {
                let next = regained.max(now).saturating_add(allowance.each);
                Err(Duration::from_nanos((next - now).saturating_sub(allowance.burst)))
            }
        }
    }

    /// One was taken and not needed.
    pub(crate) fn give_back(&self, allowance: Allowance) {
        let less = |regained: u64| Some(regained.saturating_sub(allowance.each));
        let _ = self.regained.fetch_update(Ordering::Relaxed, Ordering::Relaxed, less);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: u64 = 1_000_000_000;

    #[test]
    fn a_burst_is_allowed_and_then_the_rate_and_nothing_adds_up_beyond_a_period() {
        let (rate, allowance) = (Rate::default(), Allowance::new(1_000, Duration::from_secs(10)));
        let taken_at = |now: u64| std::iter::from_fn(|| rate.take(allowance, now).ok()).count();
        assert_eq!(taken_at(0), 1_000);
        assert_eq!(rate.take(allowance, 0), Err(Duration::from_millis(10)));
        assert_eq!(taken_at(SECOND), 100);
        assert_eq!(taken_at(SECOND + SECOND / 2), 50);
        assert_eq!(taken_at(3_600 * SECOND), 1_000);
        rate.give_back(allowance);
        assert_eq!(taken_at(3_600 * SECOND), 1);
    }

    #[test]
    fn a_rate_beyond_counting_is_none() {
        let (rate, allowance) = (Rate::default(), Allowance::new(u64::MAX, Duration::from_secs(1)));
        assert!((0..10_000).all(|_| rate.take(allowance, 5).is_ok()));
    }
}
