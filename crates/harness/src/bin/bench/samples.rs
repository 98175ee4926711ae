//! Measured times and their quantiles.

use std::time::Duration;

/// Times of one kind, in the order in which they came.
#[derive(Default)]
pub struct Samples(Vec<Duration>);

impl Samples {
    /// Takes one more.
    pub fn push(&mut self, time: Duration) {
        self.0.push(time);
    }

    /// Takes all of another's.
    pub fn extend(&mut self, other: Samples) {
        self.0.extend(other.0);
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// The smallest time that at least `quantile` (0 to 1) of the samples do not exceed, in milliseconds; NaN without samples.
    pub fn quantile(&self, quantile: f64) -> f64 {
        let mut sorted = self.0.clone();
        sorted.sort_unstable();
        let place = (quantile * sorted.len() as f64).ceil() as usize;
        sorted.get(place.saturating_sub(1)).map_or(f64::NAN, |time| time.as_secs_f64() * 1000.0)
    }

    /// The median, in milliseconds.
    pub fn median(&self) -> f64 {
        self.quantile(0.5)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_are_of_the_nearest_rank() {
        let mut samples = Samples::default();
        assert!(samples.median().is_nan());
        for ms in [4, 1, 3, 2] {
            samples.push(Duration::from_millis(ms));
        }
        assert_eq!([0.0, 0.5, 0.51, 1.0].map(|quantile| samples.quantile(quantile)), [1.0, 2.0, 3.0, 4.0]);
    }
}
