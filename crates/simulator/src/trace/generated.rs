//! A workload made by seed from the distributions that were published of Azure Functions.
//!
//! Source: Shahrad et al., "Serverless in the Wild: Characterizing and Optimizing the Serverless Workload at a Large
//! Cloud Provider", USENIX ATC 2020. Said there: which part of the functions has which trigger, that 45 % of the
//! applications are invoked once an hour or less and 81 % once a minute or less while the most popular ones reach eight
//! orders of magnitude more, the log-normal fit of execution times and the Burr fit of memory, and that gaps are seldom
//! Poisson: about 40 % of the applications have a coefficient of variation above 1, and one in ten of those without
//! timers is near 0. Assumed here, because it is not: how popularity goes between those points, the periods of timers,
//! and that the most popular functions are short ones, as otherwise one of them would fill a data centre.

use std::time::Duration;

use super::{Assumptions, Durations, Function, Gaps, Source, Trace, burr_memory};
use crate::random::Random;

/// How a function is triggered; the names are those of the Azure data set.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Trigger {
    Http,
    Queue,
    Event,
    Orchestration,
    Timer,
    Storage,
    Others,
}

/// Percent of the functions (table in figure 2).
const TRIGGERS: [(Trigger, f64); 7] = [
    (Trigger::Http, 55.0),
    (Trigger::Queue, 15.2),
    (Trigger::Event, 2.2),
    (Trigger::Orchestration, 6.9),
    (Trigger::Timer, 15.6),
    (Trigger::Storage, 2.8),
    (Trigger::Others, 2.2),
];

/// Part of the functions, and invocations a day that they have at most.
const POPULARITY: [(f64, f64); 7] =
    [(0.0, 0.07), (0.2, 2.0), (0.45, 24.0), (0.81, 1_440.0), (0.96, 86_400.0), (0.995, 1e6), (1.0, 1e8)];

/// Periods of timers in minutes, and their weights.
const PERIODS: [(u64, f64); 8] =
    [(1, 15.0), (5, 25.0), (10, 12.0), (15, 12.0), (30, 8.0), (60, 14.0), (360, 4.0), (1_440, 10.0)];

/// Coefficients of variation of the gaps, where a timer is not what invokes.
const VARIATION: [(f64, f64); 5] = [(0.0, 0.02), (0.1, 0.1), (0.3, 0.8), (0.6, 1.0), (1.0, 8.0)];

/// Mean and deviation of the logarithm of a function's average execution time in seconds.
const EXECUTION: (f64, f64) = (-0.38, 2.36);

/// Invocations of one function in flight on average, at most.
const BUSIEST: f64 = 10.0;

/// What to generate.
#[derive(Debug, Clone, Copy)]
pub struct Options {
    /// How many functions.
    pub functions: u32,
    /// How long.
    pub length: Duration,
    /// Invocations a second that a function has at most, on average.
    pub max_rate: f64,
    /// Decides everything.
    pub seed: u64,
    /// What the publications do not say.
    pub assumptions: Assumptions,
}

/// Makes the workload.
pub fn generate(options: &Options) -> Trace {
    let functions = (0..options.functions).map(|index| function(index, options)).collect();
    Trace { name: format!("generated, seed {}", options.seed), functions, length: options.length, seed: options.seed }
}

fn function(index: u32, options: &Options) -> Function {
    // Another sequence than the one that the function's invocations are drawn from.
    let mut random = Random::new(!options.seed, u64::from(index));
    let trigger = weighted(&TRIGGERS, &mut random);
    let gaps = match trigger {
        Trigger::Timer => timer(&mut random),
        Trigger::Http
        | Trigger::Queue
        | Trigger::Event
        | Trigger::Orchestration
        | Trigger::Storage
        | Trigger::Others => {
            let rate = (random.quantile_log(&POPULARITY) / 86_400.0).min(options.max_rate);
            Gaps::Random { mean: 1.0 / rate, variation: random.quantile_log(&VARIATION) }
        }
    };
    let mean_gap = match gaps {
        Gaps::Timer { period, .. } => period as f64 / 1e6,
        Gaps::Random { mean, .. } => mean,
    };
    let seconds = random.log_normal(EXECUTION.0, EXECUTION.1).min(BUSIEST * mean_gap);
    Function {
        name: format!("{trigger:?}-{index}").to_lowercase(),
        memory_mib: burr_memory(&mut random),
        cold_start: options.assumptions.cold_start(&mut random),
        source: Source::Process { gaps, durations: Durations::LogNormal { median: seconds * 1e3, sigma: 0.5 } },
    }
}

/// A period, and when in it. Most schedules are written in whole hours and minutes, so timers come together.
fn timer(random: &mut Random) -> Gaps {
    let period = weighted(&PERIODS, random) * 60_000_000;
    let minute = if random.uniform() < 0.5 { 0 } else { random.below(period as usize / 60_000_000) as u64 };
    // Within the first second, as a scheduler gets to them.
    let phase = minute * 60_000_000 + (random.uniform() * 1e6) as u64;
    Gaps::Timer { period, phase }
}

fn weighted<T: Copy, const N: usize>(choices: &[(T, f64); N], random: &mut Random) -> T {
    let total: f64 = choices.iter().map(|(_, weight)| weight).sum();
    let mut left = random.uniform() * total;
    let mut chosen = choices[0].0;
    for (choice, weight) in choices {
        chosen = *choice;
        left -= weight;
        if left <= 0.0 {
            break;
        }
    }
    chosen
}
