//! How long something takes, learned from how long it took.

use std::time::Duration;

/// A moving mean and deviation, as TCP keeps them of round trips (RFC 6298: 1/8 and 1/4).
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub(crate) struct Estimate {
    known: Option<(f64, f64)>,
}

impl Estimate {
    /// It took so long this time.
    pub(crate) fn record(&mut self, took: Duration) {
        let took = took.as_secs_f64();
        self.known = Some(match self.known {
            None => (took, took / 2.0),
            Some((mean, deviation)) => {
                let error = (took - mean).abs();
                (mean + (took - mean) / 8.0, deviation + (error - deviation) / 4.0)
            }
        });
    }

    /// How long it takes on average.
    pub(crate) fn mean(&self) -> Option<Duration> {
        self.known.map(|(mean, _)| Duration::from_secs_f64(mean))
    }

    /// How long it takes at most, all but a few times.
    pub(crate) fn most(&self) -> Option<Duration> {
        self.known.map(|(mean, deviation)| Duration::from_secs_f64(mean + 2.0 * deviation))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_follows_what_it_sees_and_is_sure_of_what_never_changes() {
        let ms = Duration::from_millis;
        let mut estimate = Estimate::default();
        assert_eq!((estimate.mean(), estimate.most()), (None, None));
        estimate.record(ms(100));
        assert_eq!((estimate.mean(), estimate.most()), (Some(ms(100)), Some(ms(200))));
        (0..50).for_each(|_| estimate.record(ms(100)));
        assert!(estimate.most().unwrap() < ms(101));
        (0..50).for_each(|_| estimate.record(ms(20)));
        assert!(estimate.mean().unwrap() < ms(21));
    }
}
