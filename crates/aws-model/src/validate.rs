//! The model's constraints, checked as Lambda checks them and reported in its words.
//!
//! A scalar reports each broken constraint by itself. A list or map of scalars reports all constraints of its elements
//! as one, whichever broke. Paths are lowerCamel and dotted; elements of lists of structures count from 1.

use std::fmt::Write;

use serde_json::{Map, Value};

use crate::error::ApiError;
use crate::shape::{Kind, Limits, Shape};

/// Checks a whole input.
///
/// # Errors
/// One ValidationException that names every violation.
pub(crate) fn check(input: &Shape, object: &Map<String, Value>) -> Result<(), ApiError> {
    let mut violations = Vec::new();
    structure(input, object, "", &mut violations);
    if violations.is_empty() {
        return Ok(());
    }
    let plural = if violations.len() == 1 { "error" } else { "errors" };
    Err(ApiError::validation(format!("{} validation {plural} detected: {}", violations.len(), violations.join("; "))))
}

fn structure(shape: &Shape, object: &Map<String, Value>, path: &str, violations: &mut Vec<String>) {
    for member in shape.members() {
        match object.get(member.name) {
            None if member.required => {
                let path = join(path, member.name);
                violations
                    .push(format!("Value null at '{path}' failed to satisfy constraint: Member must not be null"));
            }
            None => {}
            // An unknown runtime is a semantic error (InvalidParameterValueException), found by the control plane.
            Some(_) if member.name == "Runtime" => {}
            Some(value) => self::value(member.shape, value, path, member.name, violations),
        }
    }
}

fn value(shape: &Shape, value: &Value, parent: &str, name: &str, violations: &mut Vec<String>) {
    let mut report = |constraint: String| {
        let path = join(parent, name);
        let shown = if shape.sensitive { String::new() } else { format!(" '{}'", Java(shape, value)) };
        violations.push(format!("Value{shown} at '{path}' failed to satisfy constraint: {constraint}"));
    };
    match (&shape.kind, value) {
        (Kind::List { limits, element }, Value::Array(list)) => {
            for constraint in length(limits, list.len()) {
                report(constraint);
            }
            if let Kind::Structure(_) = element.kind {
                for (index, item) in list.iter().enumerate() {
                    if let Value::Object(object) = item {
                        let path = format!("{}.{}.member", join(parent, name), index + 1);
                        structure(element, object, &path, violations);
                    }
                }
            } else if list.iter().any(|item| !broken(element, item).is_empty()) {
                // What a layer is compatible with was recorded in words of its own.
                report(match name {
                    "CompatibleRuntimes" => every(element).join(", "),
                    "CompatibleArchitectures" => {
                        format!("Member must satisfy constraint: [{}]", every(element).join(", "))
                    }
                    _ => format!("Member must satisfy constraint: [{}]", within(element)),
                });
            }
        }
        (Kind::Map { limits, key, value }, Value::Object(object)) => {
            for constraint in length(limits, object.len()) {
                report(constraint);
            }
            if object.values().any(|item| !broken(value, item).is_empty()) {
                report(format!("Map value must satisfy constraint: [{}]", within(value)));
            }
            if object.keys().any(|item| !broken(key, &Value::String(item.clone())).is_empty()) {
                report(format!("Map keys must satisfy constraint: [{}]", within(key)));
            }
        }
        (Kind::Structure(_), Value::Object(object)) => structure(shape, object, &join(parent, name), violations),
        _ => {
            for constraint in broken(shape, value) {
                report(constraint);
            }
        }
    }
}

fn join(parent: &str, name: &str) -> String {
    let mut letters = name.chars();
    let first = letters.next().map(|letter| letter.to_ascii_lowercase());
    let camel: String = first.into_iter().chain(letters).collect();
    if parent.is_empty() { camel } else { format!("{parent}.{camel}") }
}

/// The constraints of a value that is no structure which the value breaks.
fn broken(shape: &Shape, value: &Value) -> Vec<String> {
    match (&shape.kind, value) {
        (Kind::String { limits, pattern, values }, Value::String(text)) => {
            let mut broken = Vec::new();
            if !values.is_empty() && !values.contains(&text.as_str()) {
                broken.push(set(values));
            }
            if let Some(pattern) = pattern
                && !pattern.matches(text)
            {
                broken.push(format!("Member must satisfy regular expression pattern: {}", pattern.source));
            }
            broken.extend(length(limits, utf16_length(text)));
            broken
        }
        (Kind::Integer(limits) | Kind::Long(limits), Value::Number(number)) => {
            let value = number.as_i64().unwrap_or(i64::MAX);
            let mut broken = Vec::new();
            broken.extend(limits.max.filter(|max| value > *max).map(at_most));
            broken.extend(limits.min.filter(|min| value < *min).map(at_least));
            broken
        }
        (Kind::Double { min, max }, Value::Number(number)) => {
            let value = number.as_f64().unwrap_or(f64::MAX);
            let mut broken = Vec::new();
            broken.extend(max.filter(|max| value > *max).map(|max| at_most(format!("{max:?}"))));
            broken.extend(min.filter(|min| value < *min).map(|min| at_least(format!("{min:?}"))));
            broken
        }
        (Kind::Blob(limits), Value::String(text)) => {
            let padding = text.bytes().rev().take_while(|byte| *byte == b'=').count();
            length(limits, (text.len() / 4 * 3).saturating_sub(padding))
        }
        (Kind::List { limits, .. }, Value::Array(list)) => length(limits, list.len()),
        _ => Vec::new(),
    }
}

/// Every constraint of what a list or map holds, broken or not.
fn within(shape: &Shape) -> String {
    let mut all = every(shape);
    all.push("Member must not be null".to_owned());
    all.join(", ")
}

/// Every constraint that a shape has, broken or not.
fn every(shape: &Shape) -> Vec<String> {
    let mut all = Vec::new();
    match &shape.kind {
        Kind::String { limits, pattern, values } => {
            all.extend(limits.max.map(longest));
            all.extend(limits.min.map(shortest));
            if !values.is_empty() {
                all.push(set(values));
            }
            if let Some(pattern) = pattern {
                all.push(format!("Member must satisfy regular expression pattern: {}", pattern.source));
            }
        }
        Kind::Integer(limits) | Kind::Long(limits) => {
            all.extend(limits.max.map(at_most));
            all.extend(limits.min.map(at_least));
        }
        Kind::Double { min, max } => {
            all.extend(max.map(|max| at_most(format!("{max:?}"))));
            all.extend(min.map(|min| at_least(format!("{min:?}"))));
        }
        Kind::List { limits, .. } | Kind::Map { limits, .. } | Kind::Blob(limits) => {
            all.extend(limits.max.map(longest));
            all.extend(limits.min.map(shortest));
        }
        Kind::Structure(_) | Kind::Boolean | Kind::Timestamp => {}
    }
    all
}

fn length(limits: &Limits, length: usize) -> Vec<String> {
    let length = i64::try_from(length).unwrap_or(i64::MAX);
    let mut broken = Vec::new();
    broken.extend(limits.max.filter(|max| length > *max).map(longest));
    broken.extend(limits.min.filter(|min| length < *min).map(shortest));
    broken
}

/// Java counts UTF-16 units.
fn utf16_length(text: &str) -> usize {
    if text.is_ascii() { text.len() } else { text.encode_utf16().count() }
}

fn longest(bound: i64) -> String {
    format!("Member must have length less than or equal to {bound}")
}

fn shortest(bound: i64) -> String {
    format!("Member must have length greater than or equal to {bound}")
}

fn at_most(bound: impl std::fmt::Display) -> String {
    format!("Member must have value less than or equal to {bound}")
}

fn at_least(bound: impl std::fmt::Display) -> String {
    format!("Member must have value greater than or equal to {bound}")
}

fn set(values: &[&str]) -> String {
    // The service was recorded naming some sets in another order than its model.
    let values = match values {
        ["TRIM_HORIZON", "LATEST", "AT_TIMESTAMP"] => &["LATEST", "AT_TIMESTAMP", "TRIM_HORIZON"],
        _ => values,
    };
    format!("Member must satisfy enum value set: [{}]", values.join(", "))
}

/// A value of a shape as Java's `toString` shows it: `[a, b]`, `{2=2.0}`.
struct Java<'a>(&'a Shape, &'a Value);

impl std::fmt::Display for Java<'_> {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let part = match &self.0.kind {
            Kind::List { element, .. } => element,
            Kind::Map { value, .. } => value,
            _ => self.0,
        };
        match (self.1, &self.0.kind) {
            (Value::String(text), _) => formatter.write_str(text),
            (Value::Array(list), _) => {
                formatter.write_char('[')?;
                for (index, item) in list.iter().enumerate() {
                    let comma = if index == 0 { "" } else { ", " };
                    write!(formatter, "{comma}{}", Java(part, item))?;
                }
                formatter.write_char(']')
            }
            (Value::Object(object), _) => {
                formatter.write_char('{')?;
                for (index, (key, item)) in object.iter().enumerate() {
                    let comma = if index == 0 { "" } else { ", " };
                    write!(formatter, "{comma}{key}={}", Java(part, item))?;
                }
                formatter.write_char('}')
            }
            // A double is printed as one, however it was written.
            (Value::Number(number), Kind::Double { .. }) => {
                write!(formatter, "{:?}", number.as_f64().unwrap_or(f64::NAN))
            }
            (scalar, _) => write!(formatter, "{scalar}"),
        }
    }
}
