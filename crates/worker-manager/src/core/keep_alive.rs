//! How long an idle environment is kept, and when one is made ahead of an expected invocation.
//!
//! Two policies: a fixed time, as most platforms have it, and the hybrid histogram of "Serverless in the Wild"
//! (Shahrad et al., USENIX ATC 2020): per version, how long environments were idle before they were used again, in bins
//! of a minute up to four hours. Where the bins stand out, an environment goes right after its use and a new one comes
//! shortly before the 5th percentile, to be kept until after the 99th; where they do not, the fixed time holds.
//!
//! The paper looks at applications with one environment. Here each environment's own idle time counts, so that the
//! tenth environment of a function that has bursts of ten is judged by the bursts and not by the function's next
//! request; an environment that has gone leaves a note of when it was last used, so that the cold start that it might
//! have spared counts as a sample, too.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

/// A policy.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum KeepAlive {
    /// Every idle environment is kept for so long.
    Fixed(Duration),
    /// As long as the version's history suggests.
    Histogram(HistogramRules),
}

/// The parameters of the hybrid histogram; the defaults are the paper's, but for `least` and `linger`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct HistogramRules {
    /// Kept for so long where the history says nothing. The paper's: 10 minutes, as the fixed policy's.
    pub standard: Duration,
    /// Idle times needed before they are believed.
    pub least: u32,
    /// The coefficient of variation of the bin counts from which on the histogram stands out.
    pub variation: f64,
    /// The largest share of idle times beyond the last bin with which the histogram is believed.
    pub out_of_bounds: f64,
    /// By this share the first invocation is expected earlier, and the last later, than the percentiles say.
    pub margin: f64,
    /// How long an environment that is expected to be of no use is kept anyway.
    pub linger: Duration,
}

impl Default for HistogramRules {
    fn default() -> Self {
        Self {
            standard: Duration::from_secs(600),
            least: 10,
            variation: 2.0,
            out_of_bounds: 0.5,
            margin: 0.1,
            linger: Duration::from_secs(1),
        }
    }
}

/// What a policy says of an environment, counted from its last use.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Windows {
    /// It goes after this time.
    pub(crate) keep: Duration,
    /// After this time one is to be there again, and kept until the second time.
    pub(crate) prewarm: Option<(Duration, Duration)>,
}

const BIN: Duration = Duration::from_secs(60);
const BINS: usize = 240;
/// So many samples, then all count half: what was a year ago does not outweigh this week.
const FULL: u32 = 4_096;
/// Notes of environments that have gone.
const NOTES: usize = 32;

/// A version's history, under its policy.
#[derive(Debug)]
pub(crate) struct Keeper {
    policy: KeepAlive,
    /// Only where the policy learns.
    history: Option<Box<History>>,
}

#[derive(Debug)]
struct History {
    bins: [u16; BINS],
    within: u32,
    beyond: u32,
    /// When environments that have gone were last used, the last used last.
    notes: VecDeque<Instant>,
    /// Said last, and of how many samples.
    said: (u32, Option<(usize, usize)>),
}

impl Keeper {
    pub(crate) fn new(policy: KeepAlive) -> Self {
        let history = match policy {
            KeepAlive::Fixed(_) => None,
            KeepAlive::Histogram(_) => Some(Box::new(History {
                bins: [0; BINS],
                within: 0,
                beyond: 0,
                notes: VecDeque::new(),
                said: (0, None),
            })),
        };
        Self { policy, history }
    }

    /// Whether there is anything in here that is worth keeping after `unused`, the time since the last use.
    pub(crate) fn remembers(&self, unused: Duration) -> bool {
        self.history.as_ref().is_some_and(|history| history.within + history.beyond > 0) && unused < BIN * BINS as u32
    }

    /// An environment that had been idle for so long was used.
    pub(crate) fn reused(&mut self, idle: Duration) {
        if let Some(history) = &mut self.history {
            history.record(idle);
        }
    }

    /// An environment that was last used then goes since its time is over.
    pub(crate) fn expired(&mut self, last_used: Instant) {
        if let Some(history) = &mut self.history {
            let at = history.notes.partition_point(|note| *note <= last_used);
            history.notes.insert(at, last_used);
            if history.notes.len() > NOTES {
                history.notes.pop_front();
            }
        }
    }

    /// An environment is started for lack of one.
    pub(crate) fn missed(&mut self, now: Instant) {
        if let Some(history) = &mut self.history
            && let Some(last_used) = history.notes.pop_back()
        {
            history.record(now.saturating_duration_since(last_used));
        }
    }

    /// One is made ahead: which last use it takes over.
    pub(crate) fn prewarmed(&mut self) -> Option<Instant> {
        self.history.as_mut().and_then(|history| history.notes.pop_back())
    }

    /// What to do with an environment that has become idle.
    pub(crate) fn windows(&mut self) -> Windows {
        let rules = match self.policy {
            KeepAlive::Fixed(keep) => return Windows { keep, prewarm: None },
            KeepAlive::Histogram(rules) => rules,
        };
        let percentiles = self.history.as_mut().and_then(|history| history.percentiles(&rules));
        let Some((head, tail)) = percentiles else { return Windows { keep: rules.standard, prewarm: None } };
        let until = BIN.mul_f64((tail + 1) as f64 * (1.0 + rules.margin));
        let ahead = BIN.mul_f64(head as f64 * (1.0 - rules.margin));
        // Going and coming again for less than a bin is not worth it, and no finer than the histogram sees.
        if ahead < BIN {
            Windows { keep: until, prewarm: None }
        } else {
            Windows { keep: rules.linger, prewarm: Some((ahead, until)) }
        }
    }
}

impl History {
    fn record(&mut self, idle: Duration) {
        let bin = idle.as_secs() / BIN.as_secs();
        match usize::try_from(bin).ok().and_then(|bin| self.bins.get_mut(bin)) {
            Some(count) => {
                *count += 1;
                self.within += 1;
            }
            None => self.beyond += 1,
        }
        if self.within + self.beyond >= FULL {
            self.bins.iter_mut().for_each(|count| *count /= 2);
            self.within = self.bins.iter().map(|count| u32::from(*count)).sum();
            self.beyond /= 2;
            self.said.0 = 0;
        }
    }

    /// The bins of the 5th and of the 99th percentile, where the histogram is to be believed.
    fn percentiles(&mut self, rules: &HistogramRules) -> Option<(usize, usize)> {
        let samples = self.within + self.beyond;
        if samples < rules.least {
            return None;
        }
        // Looking through all bins is for when enough has been added to change anything.
        if self.said.0 == 0 || samples > self.said.0 + self.said.0 / 32 {
            self.said = (samples, self.look(rules, samples));
        }
        self.said.1
    }

    fn look(&self, rules: &HistogramRules, samples: u32) -> Option<(usize, usize)> {
        if self.within == 0 || f64::from(self.beyond) > rules.out_of_bounds * f64::from(samples) {
            return None;
        }
        let mean = f64::from(self.within) / BINS as f64;
        let squares: f64 = self.bins.iter().map(|count| (f64::from(*count) - mean).powi(2)).sum();
        if (squares / BINS as f64).sqrt() / mean < rules.variation {
            return None;
        }
        let percentile = |share: f64| {
            let wanted = (share * f64::from(self.within)).max(1.0);
            let mut seen = 0;
            self.bins.iter().position(|count| {
                seen += u32::from(*count);
                f64::from(seen) >= wanted
            })
        };
        Some((percentile(0.05)?, percentile(0.99)?))
    }
}

#[cfg(test)]
mod tests;
