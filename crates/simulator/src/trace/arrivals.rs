//! The invocations of a trace, one after the other: each function makes its own, a heap merges them.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::collections::binary_heap::PeekMut;
use std::time::Duration;

use super::{Arrival, Durations, Function, Gaps, Source, Trace};
use crate::random::Random;

const MINUTE: u64 = 60_000_000;
const DAY: f64 = 86_400.0 * 1e6;

/// The invocations of a [`Trace`], in order of time; those of the same microsecond in order of functions.
#[derive(Debug)]
pub struct Arrivals<'a> {
    makers: Vec<Maker<'a>>,
    /// The next begin of each function that has one.
    next: BinaryHeap<Reverse<(u64, u32)>>,
    end: u64,
}

impl<'a> Arrivals<'a> {
    pub(super) fn new(trace: &'a Trace) -> Self {
        let end = u64::try_from(trace.length.as_micros()).unwrap_or(u64::MAX);
        let mut makers: Vec<Maker<'a>> = (0u64..)
            .zip(&trace.functions)
            .map(|(index, function)| Maker::new(function, Random::new(trace.seed, index)))
            .collect();
        let next = (0u32..).zip(&mut makers).filter_map(|(index, maker)| Some(Reverse((maker.begin()?, index))));
        let next = next.collect();
        Self { makers, next, end }
    }
}

impl Iterator for Arrivals<'_> {
    type Item = Arrival;

    fn next(&mut self) -> Option<Arrival> {
        let mut first = self.next.peek_mut().filter(|first| first.0.0 < self.end)?;
        let Reverse((at, function)) = *first;
        let maker = self.makers.get_mut(function as usize)?;
        let duration = maker.duration();
        match maker.begin() {
            // Put in the place of the one that is taken, which moves it less than taking and adding would.
            Some(next) => *first = Reverse((next, function)),
            None => drop(PeekMut::pop(first)),
        }
        Some(Arrival { at: Duration::from_micros(at), function, duration })
    }
}

/// Makes the invocations of one function: [`Maker::begin`] and [`Maker::duration`] by turns.
#[derive(Debug)]
struct Maker<'a> {
    source: &'a Source,
    random: Random,
    /// Invocations made of [`Source::Exact`], or entries used of [`Source::PerMinute`].
    place: usize,
    /// What is left of the current minute of [`Source::PerMinute`].
    minute: Minute,
    /// The last begin, in microseconds.
    last: f64,
    first: bool,
}

impl<'a> Maker<'a> {
    fn new(function: &'a Function, random: Random) -> Self {
        Self { source: &function.source, random, place: 0, minute: Minute::default(), last: 0.0, first: true }
    }

    /// The begin of the next invocation, in microseconds.
    fn begin(&mut self) -> Option<u64> {
        match self.source {
            Source::Exact(times) => times.get(self.place).map(|(at, _)| *at),
            Source::PerMinute { counts, .. } => {
                while self.minute.left == 0 {
                    let (minute, count) = *counts.get(self.place)?;
                    self.place += 1;
                    self.minute = Minute { from: u64::from(minute) * MINUTE, left: count, gone: 0.0 };
                }
                Some(self.minute.next(&mut self.random))
            }
            Source::Process { gaps: Gaps::Timer { period, phase }, .. } => {
                let at = phase + period * self.place as u64;
                self.place += 1;
                Some(at)
            }
            Source::Process { gaps: Gaps::Random { mean, variation }, .. } => {
                let mut gap = mean * 1e6 * self.random.gamma(*variation) / activity(self.last);
                if std::mem::take(&mut self.first) {
                    // The trace begins somewhere within a gap.
                    gap *= self.random.uniform();
                }
                self.last += gap;
                // As a whole number of microseconds; beyond the end of any trace it is no matter which.
                Some(self.last as u64)
            }
        }
    }

    /// How long the invocation whose begin came last takes.
    fn duration(&mut self) -> Duration {
        match self.source {
            Source::Exact(times) => {
                let duration = times.get(self.place).map_or(0, |(_, duration)| *duration);
                self.place += 1;
                Duration::from_micros(u64::from(duration))
            }
            Source::PerMinute { durations, .. } | Source::Process { durations, .. } => self.draw(durations),
        }
    }

    fn draw(&mut self, durations: &Durations) -> Duration {
        durations.draw(&mut self.random)
    }
}

/// The rest of a minute with so many invocations, evenly spread by chance.
#[derive(Debug, Default)]
struct Minute {
    /// Its begin in microseconds.
    from: u64,
    /// Invocations that are still to come.
    left: u32,
    /// The part of it that is over, 0 to 1.
    gone: f64,
}

impl Minute {
    /// The next of several even choices in ascending order: the least of those that are left, in what is left of the
    /// minute. So a minute with any number of them takes no memory.
    fn next(&mut self, random: &mut Random) -> u64 {
        self.gone += (1.0 - self.gone) * (1.0 - random.uniform().powf(1.0 / f64::from(self.left.max(1))));
        self.left = self.left.saturating_sub(1);
        self.from + ((self.gone * MINUTE as f64) as u64).min(MINUTE - 1)
    }
}

/// How frequent invocations are at a time of the day, around 1. Half of the peak is there at all times (Shahrad et
/// al., figure 4), so the swing is a third of the mean.
fn activity(micros: f64) -> f64 {
    1.0 - (std::f64::consts::TAU * micros / DAY).cos() / 3.0
}
