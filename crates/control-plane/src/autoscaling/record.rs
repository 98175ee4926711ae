//! What is kept of scalable targets. A target is one document, with its policies and scheduled actions in it; each
//! activity is one of its own.

use std::collections::BTreeMap;
use std::fmt;

use aws_model::arn::Qualifier;
use serde::{Deserialize, Serialize};

use crate::record::Timestamp;

/// What scales: the provisioned concurrency of a version or an alias. As text `function:NAME:QUALIFIER`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Resource {
    pub function: String,
    /// A number or the name of an alias.
    pub qualifier: String,
}

impl Resource {
    /// Reads `function:NAME:QUALIFIER`; nothing where it is something else, or `$LATEST`.
    pub fn parse(text: &str) -> Option<Self> {
        let (function, qualifier) = text.strip_prefix("function:")?.split_once(':')?;
        let word = |text: &str, most: usize| {
            let plain = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_';
            (1..=most).contains(&text.len()) && text.bytes().all(plain)
        };
        let scales = matches!(Qualifier::parse(qualifier), Qualifier::Version(_) | Qualifier::Alias(_));
        let good = word(function, 140) && word(qualifier, 128) && scales;
        good.then(|| Self { function: function.to_owned(), qualifier: qualifier.to_owned() })
    }
}

impl fmt::Display for Resource {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "function:{}:{}", self.function, self.qualifier)
    }
}

/// A scalable target.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Target {
    /// The last part of its ARN.
    pub id: String,
    pub resource: Resource,
    /// Bounds of the capacity, which is a number of environments.
    pub min: u32,
    pub max: u32,
    pub role: Option<String>,
    pub created: Timestamp,
    #[serde(default)]
    pub suspended: Suspended,
    #[serde(default)]
    pub tags: BTreeMap<String, String>,
    #[serde(default)]
    pub policies: BTreeMap<String, Policy>,
    #[serde(default)]
    pub actions: BTreeMap<String, ScheduledAction>,
    /// The bounds were given anew, and the capacity was not yet compared with them.
    #[serde(default)]
    pub unsettled: bool,
}

/// Which kinds of scaling rest.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Suspended {
    pub dynamic_in: bool,
    pub dynamic_out: bool,
    pub scheduled: bool,
}

/// A target tracking policy.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Policy {
    pub created: Timestamp,
    /// The utilization to hold: used environments as a share of those that are ready.
    pub target_value: f64,
    pub metric: Metric,
    /// Seconds; 0 where absent.
    pub out_cooldown: Option<u32>,
    /// Seconds; 0 where absent.
    pub in_cooldown: Option<u32>,
    pub disable_in: Option<bool>,
    /// What the names of its alarms end with.
    pub high_alarm: String,
    pub low_alarm: String,
}

/// The metric of a policy: always the utilization of the target itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Metric {
    /// `LambdaProvisionedConcurrencyUtilization`, whose alarms go by the average of a minute.
    Predefined,
    /// Described as CloudWatch names it.
    Customized { statistic: Statistic, dimensions: Vec<(String, String)>, unit: Option<String> },
}

/// What stands for the seconds of a minute.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Statistic {
    Average,
    Minimum,
    Maximum,
}

impl Metric {
    pub fn statistic(&self) -> Statistic {
        match self {
            Self::Predefined => Statistic::Average,
            Self::Customized { statistic, .. } => *statistic,
        }
    }
}

/// Bounds that come into force by the clock.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ScheduledAction {
    pub created: Timestamp,
    /// As it was given: `at(..)`, `rate(..)` or `cron(..)`.
    pub schedule: String,
    /// The zone of the wall clock; UTC where absent.
    pub zone: Option<String>,
    pub start: Option<Timestamp>,
    pub end: Option<Timestamp>,
    pub min: Option<u32>,
    pub max: Option<u32>,
    /// Moments up to here have been carried out, or passed before the schedule was given.
    pub handled: Timestamp,
}

/// Something that scaling did, or found nothing to do about.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Activity {
    pub id: String,
    pub resource: Resource,
    pub description: String,
    pub cause: String,
    pub start: Timestamp,
    pub end: Option<Timestamp>,
    pub status: Status,
    pub message: Option<String>,
    /// Not empty: the capacity stayed what it was.
    #[serde(default)]
    pub reasons: Vec<NotScaled>,
    /// The capacity that it leads to.
    pub desired: Option<u32>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Status {
    InProgress,
    Successful,
    /// Somebody set another capacity before this one was there.
    Overridden,
    Failed,
    /// Nothing was to be done.
    Unfulfilled,
}

/// Why a policy that was due to scale did not.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum NotScaled {
    AlreadyAtMax { max: u32, current: u32 },
    AlreadyAtMin { min: u32, current: u32 },
    AlreadyAtDesired { current: u32 },
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn resources_are_versions_and_aliases() {
        let resource = Resource::parse("function:my-fn:live").unwrap();
        assert_eq!((resource.function.as_str(), resource.qualifier.as_str()), ("my-fn", "live"));
        assert_eq!(resource.to_string(), "function:my-fn:live");
        assert!(Resource::parse("function:f:12").is_some());
        for text in [
            "",
            "function:f",
            "function:f:",
            "function::1",
            "function:f:$LATEST",
            "table/f",
            "function:f:a:b",
            "function:f g:a",
        ] {
            assert_eq!(Resource::parse(text), None, "{text}");
        }
    }
}
