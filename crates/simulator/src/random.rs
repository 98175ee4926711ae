//! Random numbers by seed, and the distributions that workloads are made of.

/// A source of random numbers; the same seed gives the same numbers each time.
#[derive(Debug, Clone)]
pub struct Random(fastrand::Rng);

impl Random {
    /// A source of its own for part `index` of what `seed` stands for, so that parts do not change with each other.
    pub fn new(seed: u64, index: u64) -> Self {
        // Neighbouring seeds give neighbouring first numbers unless they are mixed (the constants are SplitMix64's).
        let mut mixed = seed ^ index.wrapping_mul(0x9e37_79b9_7f4a_7c15);
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        Self(fastrand::Rng::with_seed(mixed ^ (mixed >> 31)))
    }

    /// Evenly in 0 (excluded) to 1 (excluded).
    pub fn uniform(&mut self) -> f64 {
        // 0 would be an infinity in the logarithms below.
        self.0.f64().max(f64::MIN_POSITIVE)
    }

    /// Evenly in `0..bound`.
    ///
    /// # Panics
    /// When `bound` is 0.
    pub fn below(&mut self, bound: usize) -> usize {
        self.0.usize(..bound)
    }

    /// Normal with mean 0 and deviation 1 (Box-Muller).
    pub fn normal(&mut self) -> f64 {
        let radius = (-2.0 * self.uniform().ln()).sqrt();
        radius * (std::f64::consts::TAU * self.uniform()).cos()
    }

    /// Log-normal: `mu` and `sigma` are mean and deviation of the logarithm.
    pub fn log_normal(&mut self, mu: f64, sigma: f64) -> f64 {
        (mu + sigma * self.normal()).exp()
    }

    /// Burr (type XII) with shapes `c` and `k` and scale `lambda`.
    pub fn burr(&mut self, c: f64, k: f64, lambda: f64) -> f64 {
        lambda * (self.uniform().powf(-1.0 / k) - 1.0).powf(1.0 / c)
    }

    /// Gamma with mean 1 and this coefficient of variation: 1 is the exponential distribution, less is more regular,
    /// more comes in bursts. (Marsaglia and Tsang, "A simple method for generating gamma variables", 2000.)
    pub fn gamma(&mut self, variation: f64) -> f64 {
        let shape = 1.0 / (variation * variation);
        // The method asks for a shape of at least 1; a smaller one is reached from the next larger by a power.
        let (raised, boost) = if shape < 1.0 { (shape + 1.0, self.uniform().powf(1.0 / shape)) } else { (shape, 1.0) };
        let d = raised - 1.0 / 3.0;
        let c = 1.0 / (9.0 * d).sqrt();
        loop {
            let x = self.normal();
            let v = (1.0 + c * x).powi(3);
            if v > 0.0 && self.uniform().ln() < 0.5 * x * x + d - d * v + d * v.ln() {
                return d * v * boost / shape;
            }
        }
    }

    /// From the inverse of a distribution function that is given at some points `(probability, value)`, straight in
    /// the logarithm of the values between them. Probabilities and values ascend.
    pub fn quantile_log(&mut self, points: &[(f64, f64)]) -> f64 {
        interpolate(points, self.uniform(), |a, b, part| (a.ln() + (b.ln() - a.ln()) * part).exp())
    }

    /// As [`Random::quantile_log`], straight in the values.
    pub fn quantile(&mut self, points: &[(f64, f64)]) -> f64 {
        interpolate(points, self.uniform(), |a, b, part| a + (b - a) * part)
    }
}

fn interpolate(points: &[(f64, f64)], at: f64, between: impl Fn(f64, f64, f64) -> f64) -> f64 {
    let above = points.partition_point(|(probability, _)| *probability < at);
    match (above.checked_sub(1).and_then(|below| points.get(below)), points.get(above)) {
        (Some(&(from, a)), Some(&(to, b))) if to > from => between(a, b, (at - from) / (to - from)),
        (_, Some(&(_, value))) | (Some(&(_, value)), None) => value,
        (None, None) => 0.0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SAMPLES: usize = 40_000;

    fn sample(mut draw: impl FnMut(&mut Random) -> f64) -> Vec<f64> {
        let mut random = Random::new(1, 0);
        let mut values: Vec<f64> = (0..SAMPLES).map(|_| draw(&mut random)).collect();
        values.sort_by(f64::total_cmp);
        values
    }

    fn mean(values: &[f64]) -> f64 {
        values.iter().sum::<f64>() / values.len() as f64
    }

    fn variation(values: &[f64]) -> f64 {
        let mean = mean(values);
        (values.iter().map(|v| (v - mean).powi(2)).sum::<f64>() / values.len() as f64).sqrt() / mean
    }

    fn close(found: f64, wanted: f64, tolerance: f64) {
        assert!((found - wanted).abs() <= tolerance * wanted, "{found} is not near {wanted}");
    }

    #[test]
    fn one_seed_gives_one_sequence_and_parts_differ() {
        let draw = |seed, index| {
            let mut random = Random::new(seed, index);
            [random.uniform(), random.uniform()]
        };
        assert_eq!(draw(7, 3), draw(7, 3));
        assert_ne!(draw(7, 3), draw(7, 4));
        assert_ne!(draw(7, 3), draw(8, 3));
    }

    #[test]
    fn gamma_has_mean_one_and_the_variation_asked_for() {
        for wanted in [0.1, 0.5, 1.0, 2.0, 4.0] {
            let values = sample(|random| random.gamma(wanted));
            close(mean(&values), 1.0, 0.1);
            close(variation(&values), wanted, 0.1);
        }
    }

    #[test]
    fn log_normal_and_burr_have_their_medians() {
        close(sample(|random| random.log_normal(-0.38, 2.36))[SAMPLES / 2], (-0.38_f64).exp(), 0.05);
        // The median of Burr XII: lambda (2^(1/k) - 1)^(1/c).
        let median = 107.083 * (2f64.powf(1.0 / 0.221) - 1.0).powf(1.0 / 11.652);
        close(sample(|random| random.burr(11.652, 0.221, 107.083))[SAMPLES / 2], median, 0.02);
    }

    #[test]
    fn quantiles_go_through_their_points() {
        let points = [(0.0, 1.0), (0.5, 100.0), (1.0, 1000.0)];
        let log = sample(|random| random.quantile_log(&points));
        close(log[SAMPLES / 4], 10.0, 0.05);
        close(log[SAMPLES / 2], 100.0, 0.05);
        close(sample(|random| random.quantile(&points))[SAMPLES / 4], 50.5, 0.05);
        assert_eq!(Random::new(1, 0).quantile(&[(0.5, 3.0)]), 3.0);
        assert_eq!(Random::new(1, 0).quantile(&[]), 0.0);
    }
}
