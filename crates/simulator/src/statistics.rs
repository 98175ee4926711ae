//! What a simulation counts: latencies, memory over time, cold starts of each function.

use std::time::Duration;

/// Counts of durations, each known to about 3 %: 32 steps for each doubling of the microseconds.
#[derive(Debug, Clone)]
pub struct Latencies {
    counts: Vec<u64>,
    total: u64,
}

/// Each doubling has two to the power of this many steps.
const STEP_BITS: u32 = 5;

impl Default for Latencies {
    fn default() -> Self {
        Self { counts: vec![0; ((65 - STEP_BITS as usize) << STEP_BITS) + 1], total: 0 }
    }
}

impl Latencies {
    /// Counts one.
    pub fn add(&mut self, latency: Duration) {
        if let Some(count) = self.counts.get_mut(bucket(micros(latency))) {
            *count += 1;
            self.total += 1;
        }
    }

    /// The least duration that this part (0 to 1) of those counted do not exceed; zero when there are none.
    pub fn quantile(&self, part: f64) -> Duration {
        // As a whole number of samples; a total beyond 2^53 is out of reach.
        let rank = ((self.total as f64 * part).ceil() as u64).clamp(1, self.total.max(1));
        let mut seen = 0;
        for (bucket, count) in self.counts.iter().enumerate() {
            seen += count;
            if seen >= rank {
                return Duration::from_micros(least(bucket));
            }
        }
        Duration::ZERO
    }

    /// Milliseconds, and the percentage of those counted that took so long or longer.
    pub fn at_least(&self) -> Vec<(f64, f64)> {
        let mut left = self.total;
        let mut points = Vec::new();
        for (bucket, count) in self.counts.iter().enumerate().filter(|(_, count)| **count > 0) {
            points.push((least(bucket) as f64 / 1e3, 100.0 * left as f64 / self.total as f64));
            left -= count;
        }
        points
    }
}

/// Small numbers have a bucket each; of the larger ones, each doubling has as many.
fn bucket(micros: u64) -> usize {
    let doubling = micros.checked_ilog2().unwrap_or(0).saturating_sub(STEP_BITS);
    // In range of usize: at most 59 doublings of 32 steps each, and the 64 first numbers.
    ((u64::from(doubling) << STEP_BITS) + (micros >> doubling)) as usize
}

/// The least number in a bucket.
fn least(bucket: usize) -> u64 {
    let bucket = bucket as u64;
    let doubling = (bucket >> STEP_BITS).saturating_sub(1);
    (bucket - (doubling << STEP_BITS)) << doubling
}

/// What an environment is at, as far as memory goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Holding {
    /// Being started.
    Starting,
    /// Initialized and without an invocation: its memory is wasted, but for the cold starts that it saves.
    Idle,
    /// Serving an invocation.
    Busy,
}

/// MiB held in each way at one time, or MiB·µs over a while.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Held {
    /// See [`Holding::Starting`].
    pub starting: u128,
    /// See [`Holding::Idle`].
    pub idle: u128,
    /// See [`Holding::Busy`].
    pub busy: u128,
}

impl Held {
    fn of(&mut self, holding: Holding) -> &mut u128 {
        match holding {
            Holding::Starting => &mut self.starting,
            Holding::Idle => &mut self.idle,
            Holding::Busy => &mut self.busy,
        }
    }

    fn add(&mut self, other: &Self, times: u128) {
        self.starting += other.starting * times;
        self.idle += other.idle * times;
        self.busy += other.busy * times;
    }

    fn sum(&self) -> u128 {
        self.starting + self.idle + self.busy
    }
}

/// Adds up memory over time.
#[derive(Debug, Clone)]
pub struct Memory {
    /// In microseconds, as all times in here.
    now: u64,
    current: Held,
    environments: u64,
    total: Held,
    /// As `total`, for each of equal parts of the trace.
    parts: Vec<Held>,
    part: u64,
    /// Which part `now` is in, and where that ends.
    index: usize,
    part_end: u64,
    peak_mib: u128,
    peak_environments: u64,
}

/// Points of a curve over time.
const PARTS: u64 = 288;

impl Memory {
    /// For a trace of this length.
    pub fn new(length: Duration) -> Self {
        let part = (micros(length) / PARTS).max(1);
        Self {
            now: 0,
            current: Held::default(),
            environments: 0,
            total: Held::default(),
            parts: vec![Held::default(); PARTS as usize],
            part,
            index: 0,
            part_end: part,
            peak_mib: 0,
            peak_environments: 0,
        }
    }

    /// An environment of `mib` goes from one state to another; `None` is not to be there. Times ascend.
    pub fn change(&mut self, at: Duration, mib: u32, from: Option<Holding>, to: Option<Holding>) {
        self.advance(at);
        if let Some(from) = from {
            let held = self.current.of(from);
            *held = held.saturating_sub(u128::from(mib));
            self.environments = self.environments.saturating_sub(1);
        }
        if let Some(to) = to {
            *self.current.of(to) += u128::from(mib);
            self.environments += 1;
        }
        self.peak_mib = self.peak_mib.max(self.current.sum());
        self.peak_environments = self.peak_environments.max(self.environments);
    }

    /// Time goes on to `at`.
    pub fn advance(&mut self, at: Duration) {
        let at = micros(at);
        while self.now < at {
            // Beyond the last part, what is left goes in one step, and into the total alone.
            let next = if self.index < self.parts.len() { at.min(self.part_end) } else { at };
            let took = u128::from(next - self.now);
            self.total.add(&self.current, took);
            if let Some(part) = self.parts.get_mut(self.index) {
                part.add(&self.current, took);
            }
            self.now = next;
            if next == self.part_end {
                self.index += 1;
                self.part_end += self.part;
            }
        }
    }

    /// Over all time, in MiB·µs.
    pub fn total(&self) -> Held {
        self.total
    }

    /// The most that was held at once: MiB, and environments.
    pub fn peak(&self) -> (u128, u64) {
        (self.peak_mib, self.peak_environments)
    }

    /// Idle MiB on average in each part of the trace, with the middle of the part in hours.
    pub fn idle_over_time(&self) -> Vec<(f64, f64)> {
        let part = self.part as f64;
        let hours = part / 3.6e9;
        self.parts
            .iter()
            .zip(0u32..)
            .map(|(held, at)| ((f64::from(at) + 0.5) * hours, held.idle as f64 / part))
            .collect()
    }
}

fn micros(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}

/// How often one function was invoked, and how often cold.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Starts {
    /// Invocations that were served.
    pub served: u64,
    /// Those of them that waited for an environment to start.
    pub cold: u64,
}

/// Percent of cold starts of each function that was served at all, ascending.
pub fn cold_percentages(functions: &[Starts]) -> Vec<f64> {
    let mut percentages: Vec<f64> = functions
        .iter()
        .filter(|starts| starts.served > 0)
        .map(|starts| 100.0 * starts.cold as f64 / starts.served as f64)
        .collect();
    percentages.sort_unstable_by(f64::total_cmp);
    percentages
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn each_number_is_in_the_bucket_that_begins_no_more_than_a_step_below() {
        for micros in (0..5_000).chain([1 << 20, (1 << 20) + 12_345, 86_400_000_000, u64::MAX]) {
            let from = least(bucket(micros));
            assert!(from <= micros && micros - from <= micros >> STEP_BITS, "{micros} in the bucket of {from}");
        }
    }

    #[test]
    fn quantiles_are_those_of_what_was_added() {
        let mut latencies = Latencies::default();
        assert_eq!(latencies.quantile(0.5), Duration::ZERO);
        for _ in 0..990 {
            latencies.add(Duration::ZERO);
        }
        for _ in 0..10 {
            latencies.add(Duration::from_millis(250));
        }
        assert_eq!(latencies.quantile(0.99), Duration::ZERO);
        let tail = latencies.quantile(0.999).as_secs_f64();
        assert!((0.24..=0.25).contains(&tail), "{tail}");
        let curve = latencies.at_least();
        assert_eq!(curve.iter().map(|(_, percent)| *percent).collect::<Vec<_>>(), [100.0, 1.0]);
    }

    #[test]
    fn memory_is_added_up_by_what_it_was_held_for() {
        let mut memory = Memory::new(288 * SECOND);
        memory.change(10 * SECOND, 100, None, Some(Holding::Starting));
        memory.change(11 * SECOND, 100, Some(Holding::Starting), Some(Holding::Busy));
        memory.change(11 * SECOND, 50, None, Some(Holding::Idle));
        memory.change(14 * SECOND, 100, Some(Holding::Busy), Some(Holding::Idle));
        memory.change(20 * SECOND, 100, Some(Holding::Idle), None);
        memory.advance(300 * SECOND);
        let seconds = |held: u128| held / 1_000_000;
        let total = memory.total();
        assert_eq!(seconds(total.starting), 100);
        assert_eq!(seconds(total.busy), 300);
        assert_eq!(seconds(total.idle), 50 * 289 + 100 * 6);
        assert_eq!(memory.peak(), (150, 2));
        let curve = memory.idle_over_time();
        assert_eq!((curve[13].1, curve[14].1, curve[287].1), (50.0, 150.0, 50.0));
    }

    #[test]
    fn functions_that_were_never_served_have_no_percentage() {
        let starts = |served, cold| Starts { served, cold };
        assert_eq!(cold_percentages(&[starts(4, 4), starts(0, 0), starts(4, 1)]), [25.0, 100.0]);
    }
}
