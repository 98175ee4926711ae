//! What one policy did with a trace, in numbers, and those of several policies side by side.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use serde::Serialize;

/// What one policy did with a trace.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Outcome {
    /// The policy, as it is asked for.
    pub policy: String,
    /// Invocations that arrived.
    pub invocations: u64,
    /// Those that were served, or were being served when the trace ended.
    pub served: u64,
    /// Those served that waited for an environment to start.
    pub cold_starts: u64,
    /// Those served that waited for an environment that was there and busy.
    pub waits: u64,
    /// Invocations over a limit, by limit.
    pub throttles: BTreeMap<String, u64>,
    /// Invocations that no environment came for.
    pub failures: u64,
    /// Invocations that were waiting when the trace ended.
    pub unfinished: u64,
    /// What was added to the invocations by waiting.
    pub added: Added,
    /// Three of four functions have at most this percentage of cold starts.
    pub cold_percent_of_functions_p75: f64,
    /// MiB·s of environments that were initialized and idle.
    pub wasted_mib_seconds: f64,
    /// MiB·s of environments that served.
    pub used_mib_seconds: f64,
    /// MiB·s of environments that started.
    pub starting_mib_seconds: f64,
    /// The most memory held at once.
    pub peak_mib: u64,
    /// The most environments at once.
    pub peak_environments: u64,
    /// Environments started, for whatever reason.
    pub starts: u64,
    /// Idle environments that made room for another function's.
    pub evictions: u64,
    /// Environments started ahead of an expected invocation.
    pub prewarms: u64,
    /// Those of them that an invocation came for.
    pub prewarms_used: u64,
    /// Places, invocations and wants that were there after everything had been told to end. Anything but 0 is a mistake in
    /// the core or in the simulation.
    pub left_over: u64,
    /// For the plot.
    #[serde(skip)]
    pub curves: Curves,
}

/// Latency added before the handler runs, in milliseconds.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize)]
pub struct Added {
    /// Median.
    pub p50_ms: f64,
    /// 99 of 100.
    pub p99_ms: f64,
    /// 999 of 1,000.
    pub p999_ms: f64,
}

/// What a plot draws, as points.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Curves {
    /// Percentage of cold starts of a function, and percent of the functions that have no more.
    pub cold_of_functions: Vec<(f64, f64)>,
    /// Hours since the begin, and GiB of idle memory.
    pub idle: Vec<(f64, f64)>,
    /// Milliseconds, and percent of the invocations to which so much or more was added.
    pub slower: Vec<(f64, f64)>,
}

impl Outcome {
    /// Part of the invocations served that were cold, 0 to 1.
    pub fn cold_rate(&self) -> f64 {
        self.cold_starts as f64 / self.served.max(1) as f64
    }

    fn throttled(&self) -> u64 {
        self.throttles.values().sum()
    }
}

/// A row of the table: its heading, and what it says of an outcome beside the first one.
type Row = (&'static str, fn(&Outcome, &Outcome) -> String);

const ROWS: [Row; 18] = [
    ("invocations", |o, _| whole(o.invocations)),
    ("cold starts", |o, _| whole(o.cold_starts)),
    ("  of those served", |o, _| format!("{:.3} %", 100.0 * o.cold_rate())),
    ("  of a function, p75", |o, _| format!("{:.1} %", o.cold_percent_of_functions_p75)),
    ("waits for a busy one", |o, _| whole(o.waits)),
    ("added latency p50", |o, _| millis(o.added.p50_ms)),
    ("added latency p99", |o, _| millis(o.added.p99_ms)),
    ("added latency p99.9", |o, _| millis(o.added.p999_ms)),
    ("throttles", |o, _| whole(o.throttled())),
    ("failed or unfinished", |o, _| whole(o.failures + o.unfinished)),
    ("memory wasted, GiB·h", |o, _| gib_hours(o.wasted_mib_seconds)),
    ("  beside the first", |o, first| relative(o.wasted_mib_seconds, first.wasted_mib_seconds)),
    ("memory used, GiB·h", |o, _| gib_hours(o.used_mib_seconds)),
    ("peak memory, GiB", |o, _| format!("{:.1}", o.peak_mib as f64 / 1_024.0)),
    ("peak environments", |o, _| whole(o.peak_environments)),
    ("environments started", |o, _| whole(o.starts)),
    ("evictions", |o, _| whole(o.evictions)),
    ("prewarms / used", |o, _| format!("{} / {}", whole(o.prewarms), whole(o.prewarms_used))),
];

/// A table for people, a column for each outcome; throttles by limit stand below where there were any.
pub fn table(outcomes: &[Outcome]) -> String {
    let Some(first) = outcomes.first() else { return String::new() };
    let mut columns = vec![ROWS.iter().map(|(heading, _)| (*heading).to_owned()).collect::<Vec<_>>()];
    columns[0].insert(0, String::new());
    for outcome in outcomes {
        let mut column: Vec<String> = ROWS.iter().map(|(_, value)| value(outcome, first)).collect();
        column.insert(0, outcome.policy.clone());
        columns.push(column);
    }
    let width = |column: &[String]| column.iter().map(|cell| cell.chars().count()).max().unwrap_or(0);
    let widths: Vec<usize> = columns.iter().map(|column| width(column)).collect();
    let mut text = String::new();
    for row in 0..=ROWS.len() {
        let mut line = String::new();
        for (index, (column, width)) in columns.iter().zip(&widths).enumerate() {
            let cell = &column[row];
            let padding = " ".repeat(width - cell.chars().count());
            // Writing to a String cannot fail, here and below.
            let _ = match index {
                0 => write!(line, "{cell}{padding}"),
                _ => write!(line, "  {padding}{cell}"),
            };
        }
        text.push_str(line.trim_end());
        text.push('\n');
    }
    for outcome in outcomes {
        for (limit, count) in &outcome.throttles {
            let _ = writeln!(text, "throttled with {}: {limit} {}", outcome.policy, whole(*count));
        }
    }
    text
}

/// With commas between thousands.
fn whole(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::with_capacity(digits.len() + digits.len() / 3);
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

fn millis(millis: f64) -> String {
    if millis < 100.0 { format!("{millis:.1} ms") } else { format!("{millis:.0} ms") }
}

fn gib_hours(mib_seconds: f64) -> String {
    format!("{:.1}", mib_seconds / 1_024.0 / 3_600.0)
}

fn relative(value: f64, first: f64) -> String {
    if first > 0.0 { format!("{:.0} %", 100.0 * value / first) } else { "-".to_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn outcome(policy: &str, cold_starts: u64, wasted: f64) -> Outcome {
        Outcome {
            policy: policy.into(),
            invocations: 1_234_567,
            served: 1_000_000,
            cold_starts,
            waits: 0,
            throttles: BTreeMap::new(),
            failures: 1,
            unfinished: 2,
            added: Added { p50_ms: 0.0, p99_ms: 250.4, p999_ms: 1_234.5 },
            cold_percent_of_functions_p75: 33.333,
            wasted_mib_seconds: wasted,
            used_mib_seconds: 0.0,
            starting_mib_seconds: 0.0,
            peak_mib: 2_048,
            peak_environments: 12,
            starts: 3,
            evictions: 0,
            prewarms: 10,
            prewarms_used: 9,
            left_over: 0,
            curves: Curves::default(),
        }
    }

    #[test]
    fn outcomes_stand_side_by_side() {
        let mut second = outcome("histogram", 500, 1_024.0 * 1_800.0);
        second.throttles.insert("HostCapacity".into(), 1_500);
        let text = table(&[outcome("fixed:10m", 1_000, 1_024.0 * 3_600.0), second]);
        let row = |heading: &str| {
            let line = text.lines().find(|line| line.starts_with(heading)).unwrap();
            line[heading.len()..].split_whitespace().collect::<Vec<_>>().join(" ")
        };
        assert_eq!(row(" "), "fixed:10m histogram");
        assert_eq!(row("invocations"), "1,234,567 1,234,567");
        assert_eq!(row("  of those served"), "0.100 % 0.050 %");
        assert_eq!(row("  of a function, p75"), "33.3 % 33.3 %");
        assert_eq!(row("added latency p99 "), "250 ms 250 ms");
        assert_eq!(row("memory wasted, GiB·h"), "1.0 0.5");
        assert_eq!(row("  beside the first"), "100 % 50 %");
        assert_eq!(row("throttles"), "0 1,500");
        assert_eq!(row("throttled with histogram:"), "HostCapacity 1,500");
        assert_eq!(row("prewarms / used"), "10 / 9 10 / 9");
        assert_eq!(table(&[]), "");
    }
}
