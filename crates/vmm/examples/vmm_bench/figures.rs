//! Samples, the memory of processes, and lines of the table.

use std::fmt;
use std::fs;
use std::time::Duration;

use crate::Result;

/// Milliseconds.
pub fn ms(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1000.0
}

/// Bytes for people.
pub fn mib(bytes: u64) -> String {
    format!("{:.2} MiB", bytes as f64 / f64::from(1 << 20))
}

/// The title of a part of the table.
pub fn head(title: &str) {
    println!("\n{title}");
}

/// A line of it.
pub fn line(name: &str, value: &str) {
    println!("  {name:<58}{value:>20}");
}

/// Values of the same thing.
#[derive(Debug, Default)]
pub struct Samples(Vec<f64>);

impl Samples {
    pub fn add(&mut self, value: f64) {
        self.0.push(value);
    }

    /// The smallest sample that so many in a hundred do not exceed; 0 of none.
    pub fn percentile(&self, percent: usize) -> f64 {
        let mut sorted = self.0.clone();
        sorted.sort_by(f64::total_cmp);
        let rank = (sorted.len() * percent).div_ceil(100).max(1);
        sorted.get(rank - 1).copied().unwrap_or(0.0)
    }

    pub fn mean(&self) -> f64 {
        self.0.iter().sum::<f64>() / self.0.len().max(1) as f64
    }
}

impl fmt::Display for Samples {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:9.2} {:9.2}", self.percentile(50), self.percentile(90))
    }
}

/// The memory that a VMM process takes, in bytes.
#[derive(Debug, Default, Clone, Copy)]
pub struct Footprint {
    /// Its own beside the guest's: in no other process, and not in a file of the guest's memory.
    pub private: u64,
    /// The same, with its share of what several have (the program's code).
    pub proportional: u64,
    /// The guest's pages that were copied because it wrote to them.
    pub copied: u64,
    /// Page tables.
    pub tables: u64,
}

impl Footprint {
    pub fn of(pid: i32) -> Result<Footprint> {
        let mut footprint = Footprint::default();
        let mut guest = false;
        for line in fs::read_to_string(format!("/proc/{pid}/smaps"))?.lines() {
            let mut words = line.split_ascii_whitespace();
            let Some((key, value)) = words.next().zip(words.next()) else { continue };
            let Some(key) = key.strip_suffix(':') else {
                // The first line of a mapping; its last word is the file, `/memfd:name` here.
                guest = line.contains("/memfd:");
                continue;
            };
            let bytes = value.parse::<u64>().unwrap_or(0) << 10;
            match key {
                "Anonymous" if guest => footprint.copied += bytes,
                "Private_Clean" | "Private_Dirty" if !guest => footprint.private += bytes,
                "Pss" if !guest => footprint.proportional += bytes,
                _ => {}
            }
        }
        let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
        let tables = status.lines().find_map(|line| line.strip_prefix("VmPTE:"));
        let tables = tables.and_then(|rest| rest.split_ascii_whitespace().next()?.parse::<u64>().ok());
        footprint.tables = tables.unwrap_or(0) << 10;
        Ok(footprint)
    }

    pub fn print(&self) {
        line("private, without the guest's memory", &mib(self.private));
        line("proportional, with its share of the program's code", &mib(self.proportional));
        line("page tables", &mib(self.tables));
    }
}
