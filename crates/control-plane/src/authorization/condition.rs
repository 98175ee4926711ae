//! Conditions of a statement: an operator, a key of the request, and the values that it may have.

use std::net::IpAddr;

use serde_json::{Map, Value};
use time::OffsetDateTime;
use time::format_description::well_known::Iso8601;

use super::document::Malformed;
use super::{Context, pattern, texts};

/// One condition.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Condition {
    test: Test,
    /// Holds when the test does not.
    negated: bool,
    set: Set,
    if_exists: bool,
    /// Lower case.
    key: String,
    values: Vec<String>,
}

/// How several values in the request are treated.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Set {
    Single,
    Any,
    All,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Test {
    Equals,
    EqualsIgnoreCase,
    Like,
    Arn,
    Number(Order),
    Date(Order),
    Bool,
    Ip,
    Null,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Order {
    Equal,
    Less,
    LessOrEqual,
    Greater,
    GreaterOrEqual,
}

impl Order {
    fn holds<T: PartialOrd>(self, found: &T, wanted: &T) -> bool {
        match self {
            Self::Equal => found == wanted,
            Self::Less => found < wanted,
            Self::LessOrEqual => found <= wanted,
            Self::Greater => found > wanted,
            Self::GreaterOrEqual => found >= wanted,
        }
    }
}

impl Condition {
    /// Reads `{"StringEquals": {"aws:SourceAccount": ["1", "2"]}, ...}`.
    pub(super) fn parse_all(conditions: &Map<String, Value>) -> Result<Vec<Self>, Malformed> {
        let mut all = Vec::new();
        for (operator, keys) in conditions {
            let keys = keys.as_object().ok_or(Malformed::Syntax)?;
            for (key, values) in keys {
                all.push(Self::parse(operator, key, texts(values).ok_or(Malformed::Syntax)?)?);
            }
        }
        Ok(all)
    }

    fn parse(operator: &str, key: &str, values: Vec<String>) -> Result<Self, Malformed> {
        let (set, name) = match operator.split_once(':') {
            Some(("ForAnyValue", name)) => (Set::Any, name),
            Some(("ForAllValues", name)) => (Set::All, name),
            Some(_) => return Err(Malformed::Operator(operator.to_owned())),
            None => (Set::Single, operator),
        };
        let (name, if_exists) = match name.strip_suffix("IfExists") {
            Some(name) => (name, true),
            None => (name, false),
        };
        let (test, negated) = match name {
            "StringEquals" | "BinaryEquals" => (Test::Equals, false),
            "StringNotEquals" => (Test::Equals, true),
            "StringEqualsIgnoreCase" => (Test::EqualsIgnoreCase, false),
            "StringNotEqualsIgnoreCase" => (Test::EqualsIgnoreCase, true),
            "StringLike" => (Test::Like, false),
            "StringNotLike" => (Test::Like, true),
            "ArnEquals" | "ArnLike" => (Test::Arn, false),
            "ArnNotEquals" | "ArnNotLike" => (Test::Arn, true),
            "NumericEquals" => (Test::Number(Order::Equal), false),
            "NumericNotEquals" => (Test::Number(Order::Equal), true),
            "NumericLessThan" => (Test::Number(Order::Less), false),
            "NumericLessThanEquals" => (Test::Number(Order::LessOrEqual), false),
            "NumericGreaterThan" => (Test::Number(Order::Greater), false),
            "NumericGreaterThanEquals" => (Test::Number(Order::GreaterOrEqual), false),
            "DateEquals" => (Test::Date(Order::Equal), false),
            "DateNotEquals" => (Test::Date(Order::Equal), true),
            "DateLessThan" => (Test::Date(Order::Less), false),
            "DateLessThanEquals" => (Test::Date(Order::LessOrEqual), false),
            "DateGreaterThan" => (Test::Date(Order::Greater), false),
            "DateGreaterThanEquals" => (Test::Date(Order::GreaterOrEqual), false),
            "Bool" => (Test::Bool, false),
            "IpAddress" => (Test::Ip, false),
            "NotIpAddress" => (Test::Ip, true),
            "Null" => (Test::Null, false),
            _ => return Err(Malformed::Operator(operator.to_owned())),
        };
        Ok(Self { test, negated, set, if_exists, key: key.to_ascii_lowercase(), values })
    }

    /// Whether the condition holds for a request.
    pub(super) fn holds(&self, context: &Context) -> bool {
        let found = context.get(&self.key).map(Vec::as_slice).unwrap_or_default();
        if self.test == Test::Null {
            return self.values.iter().any(|value| value.eq_ignore_ascii_case("true") == found.is_empty());
        }
        if found.is_empty() {
            // Nothing differs from every value; and of nothing, all is as it should be.
            return self.if_exists
                || match self.set {
                    Set::Single => self.negated,
                    Set::Any => false,
                    Set::All => true,
                };
        }
        let one =
            |found: &String| self.values.iter().any(|wanted| self.test.holds(found, wanted, context)) != self.negated;
        match self.set {
            Set::Single | Set::All => found.iter().all(one),
            Set::Any => found.iter().any(one),
        }
    }
}

impl Test {
    fn holds(self, found: &str, wanted: &str, context: &Context) -> bool {
        let expanded = || pattern::expanded(wanted, context);
        match self {
            Self::Equals => expanded().is_some_and(|wanted| found == wanted),
            Self::EqualsIgnoreCase => expanded().is_some_and(|wanted| found.to_lowercase() == wanted.to_lowercase()),
            Self::Like => pattern::fits(wanted, found, context),
            Self::Arn => pattern::fits_arn(wanted, found, context),
            Self::Number(order) => match (found.parse::<f64>(), wanted.parse::<f64>()) {
                (Ok(found), Ok(wanted)) => order.holds(&found, &wanted),
                _ => false,
            },
            Self::Date(order) => match (date(found), date(wanted)) {
                (Some(found), Some(wanted)) => order.holds(&found, &wanted),
                _ => false,
            },
            Self::Bool => found.eq_ignore_ascii_case(wanted),
            Self::Ip => in_network(found, wanted),
            // Judged before.
            Self::Null => false,
        }
    }
}

/// Seconds since 1970, given so or as an ISO 8601 date.
fn date(text: &str) -> Option<i64> {
    text.parse().ok().or_else(|| {
        let moment = OffsetDateTime::parse(text, &Iso8601::DEFAULT).ok();
        let day = || time::Date::parse(text, &Iso8601::DEFAULT).ok().map(|day| day.midnight().assume_utc());
        moment.or_else(day).map(OffsetDateTime::unix_timestamp)
    })
}

/// Whether an address lies in a network such as `203.0.113.0/24`, or is the one given.
fn in_network(address: &str, network: &str) -> bool {
    let (base, length) = match network.split_once('/') {
        Some((base, length)) => (base, Some(length)),
        None => (network, None),
    };
    let (Ok(address), Ok(base)) = (address.parse::<IpAddr>(), base.parse::<IpAddr>()) else { return false };
    let (address, base, bits) = match (address, base) {
        (IpAddr::V4(address), IpAddr::V4(base)) => (u128::from(address.to_bits()), u128::from(base.to_bits()), 32),
        (IpAddr::V6(address), IpAddr::V6(base)) => (address.to_bits(), base.to_bits(), 128),
        (IpAddr::V4(_), IpAddr::V6(_)) | (IpAddr::V6(_), IpAddr::V4(_)) => return false,
    };
    let length: u32 = match length.map(str::parse) {
        None => bits,
        Some(Ok(length)) if length <= bits => length,
        Some(_) => return false,
    };
    let shift = bits - length;
    address.checked_shr(shift).unwrap_or(0) == base.checked_shr(shift).unwrap_or(0)
}
