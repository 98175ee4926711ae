//! From a request line to the operation it names.
//!
//! The path is split before it is decoded: a label may carry `%2F` (durable execution ARNs) and `%3A` (any ARN). Two
//! pairs of operations share method and path and differ by a query item. Old clients end some paths with a slash.

use std::borrow::Cow;

use thiserror::Error;

use crate::error::ApiError;
use crate::generated::operations::{OPERATIONS, Operation};
use crate::operation::{OperationInfo, Segment};

/// No path of the API is longer than this many segments.
const LONGEST_PATH: usize = 8;
/// No path of the API has more labels than this.
const MOST_LABELS: usize = 3;

/// The operation that a request names, and the labels of its path.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Routed {
    pub operation: Operation,
    pub labels: Labels,
}

/// The decoded labels of a path, by their names in the model.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Labels {
    entries: [(&'static str, String); MOST_LABELS],
    length: usize,
}

impl Labels {
    /// The value of a label such as `FunctionName`.
    pub fn get(&self, name: &str) -> Option<&str> {
        self.iter().find(|(label, _)| *label == name).map(|(_, value)| value)
    }

    /// Names and values in the order of the path.
    pub fn iter(&self) -> impl Iterator<Item = (&'static str, &str)> {
        self.entries[..self.length].iter().map(|(name, value)| (*name, value.as_str()))
    }

    fn push(&mut self, name: &'static str, value: String) {
        // A test checks that no operation has more labels than there is room for.
        self.entries[self.length] = (name, value);
        self.length += 1;
    }
}

/// Why a request line names no operation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum RouteError {
    /// No operation has such a path.
    #[error("no operation has this path")]
    NotFound,
    /// The path belongs to an operation, the method does not.
    #[error("no operation has this method on this path")]
    MethodNotAllowed,
    /// A label is not percent-encoded UTF-8.
    #[error("the path is not percent-encoded utf-8")]
    Malformed,
}

impl From<RouteError> for ApiError {
    fn from(error: RouteError) -> Self {
        match error {
            RouteError::NotFound | RouteError::MethodNotAllowed => Self::unknown_operation(),
            RouteError::Malformed => Self::serialization("The request path is not percent-encoded UTF-8."),
        }
    }
}

/// Finds the operation of a request. `raw_path` is the path as it came, still percent-encoded; `query` stands without
/// its question mark.
///
/// # Errors
/// [`RouteError`] when the request is none of Lambda's.
pub fn route(method: &str, raw_path: &str, query: Option<&str>) -> Result<Routed, RouteError> {
    let trimmed = raw_path.strip_prefix('/').ok_or(RouteError::NotFound)?;
    let trimmed = trimmed.strip_suffix('/').unwrap_or(trimmed);
    let mut buffer = [""; LONGEST_PATH];
    let mut length = 0;
    for segment in trimmed.split('/') {
        *buffer.get_mut(length).ok_or(RouteError::NotFound)? = segment;
        length += 1;
    }
    let segments = &buffer[..length];

    // The hot one is tried first.
    let invoke = Operation::Invoke.info();
    if method == invoke.method && fits(invoke, segments) {
        return routed(Operation::Invoke, segments);
    }
    let mut found = None;
    let mut path_known = false;
    for (info, operation) in OPERATIONS.iter().zip(Operation::ALL) {
        if !fits(info, segments) {
            continue;
        }
        path_known = true;
        if info.method != method {
            continue;
        }
        match info.query {
            // The operation that asks for a query item wins over the one that does not.
            Some((key, value)) => {
                if query.is_some_and(|query| query_pairs(query).any(|(k, v)| k == key && v == value)) {
                    return routed(*operation, segments);
                }
            }
            None => found = Some(*operation),
        }
    }
    match found {
        Some(operation) => routed(operation, segments),
        None if path_known => Err(RouteError::MethodNotAllowed),
        None => Err(RouteError::NotFound),
    }
}

fn fits(info: &OperationInfo, segments: &[&str]) -> bool {
    info.segments.len() == segments.len()
        && info.segments.iter().zip(segments).all(|(template, segment)| match template {
            Segment::Literal(literal) => literal == segment,
            Segment::Label(_) => true,
        })
}

fn routed(operation: Operation, segments: &[&str]) -> Result<Routed, RouteError> {
    let mut labels = Labels::default();
    for (template, segment) in operation.info().segments.iter().zip(segments) {
        if let Segment::Label(name) = template {
            labels.push(name, percent_decode(segment).ok_or(RouteError::Malformed)?.into_owned());
        }
    }
    Ok(Routed { operation, labels })
}

/// The decoded items of a query string. An item that is not percent-encoded UTF-8 is left as it came.
pub fn query_pairs(query: &str) -> impl Iterator<Item = (Cow<'_, str>, Cow<'_, str>)> {
    fn decode(part: &str) -> Cow<'_, str> {
        if part.contains('+') {
            let spaced = part.replace('+', " ");
            return percent_decode(&spaced)
                .map(|decoded| Cow::Owned(decoded.into_owned()))
                .unwrap_or(Cow::Borrowed(part));
        }
        percent_decode(part).unwrap_or(Cow::Borrowed(part))
    }
    query.split('&').filter(|item| !item.is_empty()).map(|item| {
        let (key, value) = item.split_once('=').unwrap_or((item, ""));
        (decode(key), decode(value))
    })
}

/// Undoes percent-encoding; `None` when the escapes are broken or the result is not UTF-8.
pub fn percent_decode(text: &str) -> Option<Cow<'_, str>> {
    if !text.contains('%') {
        return Some(Cow::Borrowed(text));
    }
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        if byte != b'%' {
            bytes.push(byte);
            continue;
        }
        let high = char::from(rest.next()?).to_digit(16)?;
        let low = char::from(rest.next()?).to_digit(16)?;
        bytes.push(u8::try_from(high * 16 + low).ok()?);
    }
    String::from_utf8(bytes).ok().map(Cow::Owned)
}

#[cfg(test)]
mod tests;
