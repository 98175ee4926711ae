//! What is replayed: functions, and when each of them is invoked for how long.
//!
//! A trace is a description; [`Trace::arrivals`] makes the invocations from it one after the other, so that a day of
//! many millions of them needs no memory. The same trace gives the same invocations each time it is asked.

pub mod azure2019;
pub mod azure2021;
pub mod generated;

mod arrivals;

use std::path::PathBuf;
use std::time::Duration;

pub use arrivals::Arrivals;

use crate::random::Random;

/// Longest time that a function may run, which is Lambda's; what traces say beyond it is cut off.
pub const LONGEST: Duration = Duration::from_secs(900);

/// Shortest time that an invocation is taken to last; traces know shorter ones only as 0.
pub const SHORTEST: Duration = Duration::from_millis(1);

/// Functions and their invocations.
#[derive(Debug, Clone)]
pub struct Trace {
    /// Where it is from, for people.
    pub name: String,
    /// The functions; an [`Arrival`] names one by its place in here.
    pub functions: Vec<Function>,
    /// From the first moment to the last. Invocations that begin later are left out.
    pub length: Duration,
    /// Decides what the trace leaves open.
    pub seed: u64,
}

/// A function of a trace.
#[derive(Debug, Clone)]
pub struct Function {
    /// As the trace calls it.
    pub name: String,
    /// What one environment of it takes, in MiB.
    pub memory_mib: u32,
    /// How long one environment usually takes from the decision to start it until it can serve.
    pub cold_start: Duration,
    /// When it is invoked, and for how long.
    pub source: Source,
}

/// When a function is invoked, and for how long.
#[derive(Debug, Clone)]
pub enum Source {
    /// Exact times: begin and duration in microseconds, ascending.
    Exact(Vec<(u64, u32)>),
    /// Invocations per minute: minute and count, ascending. Where in the minute is left open.
    PerMinute {
        /// Minute since the begin of the trace, and how many begin in it (at least one).
        counts: Vec<(u32, u32)>,
        /// How long they last.
        durations: Durations,
    },
    /// A process that goes on for ever.
    Process {
        /// Gaps between invocations.
        gaps: Gaps,
        /// How long they last.
        durations: Durations,
    },
}

/// How long invocations of one function last.
#[derive(Debug, Clone)]
pub enum Durations {
    /// Points of the inverse distribution function: probability and milliseconds.
    Percentiles(Vec<(f64, f64)>),
    /// Log-normal, in milliseconds.
    LogNormal {
        /// The median in milliseconds.
        median: f64,
        /// Deviation of the logarithm.
        sigma: f64,
    },
}

impl Durations {
    /// Draws one.
    pub fn draw(&self, random: &mut Random) -> Duration {
        let millis = match self {
            Self::Percentiles(points) => random.quantile(points),
            Self::LogNormal { median, sigma } => random.log_normal(median.ln(), *sigma),
        };
        clamp_duration(millis / 1e3)
    }
}

/// A duration in seconds from a trace, within what a function may take.
pub fn clamp_duration(seconds: f64) -> Duration {
    // `max` and `min` also turn what is not a number into a bound, so the conversion cannot fail.
    Duration::from_secs_f64(seconds.max(SHORTEST.as_secs_f64()).min(LONGEST.as_secs_f64()))
}

/// The gaps between the invocations of one function.
#[derive(Debug, Clone, Copy)]
pub enum Gaps {
    /// A timer: always the same period.
    Timer {
        /// In microseconds.
        period: u64,
        /// The first invocation, in microseconds.
        phase: u64,
    },
    /// Independent gaps, more frequent by day than by night.
    Random {
        /// Mean gap in seconds.
        mean: f64,
        /// Coefficient of variation of the gaps.
        variation: f64,
    },
}

/// One invocation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Arrival {
    /// Since the begin of the trace.
    pub at: Duration,
    /// Which of [`Trace::functions`].
    pub function: u32,
    /// How long the handler runs.
    pub duration: Duration,
}

impl Trace {
    /// The invocations, in order of time.
    pub fn arrivals(&self) -> Arrivals<'_> {
        Arrivals::new(self)
    }

    /// Keeps so many of the functions, chosen by the seed.
    pub fn sample(&mut self, functions: usize) {
        let mut random = Random::new(self.seed, u64::MAX);
        let total = self.functions.len();
        if functions >= total {
            return;
        }
        // The first places of a shuffle; the order of the trace is kept, so that equal choices give equal traces.
        let mut places: Vec<usize> = (0..total).collect();
        for place in 0..functions {
            let other = place + random.below(total - place);
            places.swap(place, other);
        }
        let mut keep = vec![false; total];
        for place in &places[..functions] {
            keep[*place] = true;
        }
        let mut keep = keep.into_iter();
        self.functions.retain(|_| keep.next().unwrap_or(false));
    }
}

/// What traces do not say and a simulation needs.
#[derive(Debug, Clone, Copy)]
pub struct Assumptions {
    /// The median over functions of how long a cold start takes.
    pub cold_start: Duration,
}

impl Default for Assumptions {
    fn default() -> Self {
        Self { cold_start: Duration::from_millis(250) }
    }
}

impl Assumptions {
    /// How long cold starts of one function usually take: log-normal over functions, since what differs is how much
    /// code they load, with nine of ten between a third and three times the median.
    pub(crate) fn cold_start(&self, random: &mut Random) -> Duration {
        let seconds = self.cold_start.as_secs_f64() * random.log_normal(0.0, 0.67);
        Duration::from_secs_f64(seconds.clamp(0.0, 60.0))
    }
}

/// MiB of an application's memory: a Burr distribution, as fitted to Azure's applications (Shahrad et al., "Serverless
/// in the Wild", USENIX ATC 2020, figure 8), within what Lambda offers.
pub(crate) fn burr_memory(random: &mut Random) -> u32 {
    clamp_memory(random.burr(11.652, 0.221, 107.083))
}

/// Whole MiB, rounded up, within 1 and what Lambda offers.
pub(crate) fn clamp_memory(mib: f64) -> u32 {
    // The conversion makes 0 of what is not a number.
    (mib.ceil() as u32).clamp(1, 10_240)
}

/// A trace could not be read.
#[derive(Debug, thiserror::Error)]
pub enum TraceError {
    /// The file or directory cannot be read.
    #[error("cannot read {path}")]
    Read {
        /// Which.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The directory has no file of this kind.
    #[error("no {wanted} in {directory}; unpack the whole Azure Functions data set of 2019 there")]
    Missing {
        /// Where it was looked for.
        directory: PathBuf,
        /// The name with `XX` for the day.
        wanted: &'static str,
    },
    /// A line does not have the columns of its schema.
    #[error("{path}, line {line}: {problem}")]
    Line {
        /// The file.
        path: PathBuf,
        /// From 1.
        line: u64,
        /// What is wrong with it.
        problem: String,
    },
}

#[cfg(test)]
mod tests;
