//! How long idle environments are kept: what a simulation compares.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

/// A policy by the name that people give it: `fixed:10m` or `histogram`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Policy {
    /// An environment is kept for so long after its last invocation.
    Fixed(Duration),
    /// Each function's own idle times say when to let go and when to start ahead of the next invocation; where they say
    /// nothing, environments are kept for so long.
    Histogram(Duration),
}

/// What the server keeps environments for unless told otherwise.
const STANDARD: Duration = Duration::from_secs(600);

/// A text is no policy.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} is no policy; say fixed:10m (or 30s, 2h), histogram, or histogram:10m")]
pub struct PolicyError {
    text: String,
}

impl FromStr for Policy {
    type Err = PolicyError;

    fn from_str(text: &str) -> Result<Self, PolicyError> {
        let (kind, duration) = match text.split_once(':') {
            Some((kind, duration)) => (kind, Some(parse_duration(duration))),
            None => (text, None),
        };
        match (kind, duration) {
            ("fixed", None) => Ok(Self::Fixed(STANDARD)),
            ("fixed", Some(Some(kept))) => Ok(Self::Fixed(kept)),
            ("histogram", None) => Ok(Self::Histogram(STANDARD)),
            ("histogram", Some(Some(kept))) => Ok(Self::Histogram(kept)),
            (_, _) => Err(PolicyError { text: text.to_owned() }),
        }
    }
}

impl fmt::Display for Policy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Fixed(kept) => write!(f, "fixed:{}", Written(*kept)),
            Self::Histogram(STANDARD) => f.write_str("histogram"),
            Self::Histogram(kept) => write!(f, "histogram:{}", Written(*kept)),
        }
    }
}

/// Whole seconds, minutes or hours, up to a week.
fn parse_duration(text: &str) -> Option<Duration> {
    let digits = text.trim_end_matches(|c: char| !c.is_ascii_digit());
    let unit = match text.get(digits.len()..)? {
        "s" => 1,
        "m" => 60,
        "h" => 3_600,
        _ => return None,
    };
    let seconds = digits.parse::<u64>().ok()?.checked_mul(unit)?;
    (seconds <= 7 * 86_400).then(|| Duration::from_secs(seconds))
}

struct Written(Duration);

impl fmt::Display for Written {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let seconds = self.0.as_secs();
        match (seconds % 3_600, seconds % 60) {
            (0, _) if seconds > 0 => write!(f, "{}h", seconds / 3_600),
            (_, 0) if seconds > 0 => write!(f, "{}m", seconds / 60),
            (_, _) => write!(f, "{seconds}s"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn policies_are_read_and_written() {
        for (text, written) in [
            ("fixed:10m", "fixed:10m"),
            ("fixed", "fixed:10m"),
            ("fixed:90s", "fixed:90s"),
            ("fixed:7200s", "fixed:2h"),
            ("fixed:0s", "fixed:0s"),
            ("histogram", "histogram"),
            ("histogram:10m", "histogram"),
            ("histogram:1h", "histogram:1h"),
        ] {
            assert_eq!(text.parse::<Policy>().unwrap().to_string(), written);
        }
    }

    #[test]
    fn what_is_no_policy_is_refused() {
        for text in ["", "lru", "fixed:", "fixed:10", "fixed:m", "fixed:-1s", "fixed:1d", "histogram:x", "fixed:9999h"]
        {
            assert_eq!(
                text.parse::<Policy>().unwrap_err().to_string(),
                format!("{text:?} is no policy; say fixed:10m (or 30s, 2h), histogram, or histogram:10m")
            );
        }
    }
}
