//! From an HTTP request to the input structure of its operation.
//!
//! Three steps, each with its own error: the parts are read into one JSON object whose types are the model's
//! (SerializationException), the constraints are checked (ValidationException), the object becomes the Rust type.

use serde::de::DeserializeOwned;
use serde_json::{Map, Number, Value};

use crate::error::ApiError;
use crate::generated::operations::Operation;
use crate::route::{Labels, query_pairs};
use crate::shape::{Kind, Location, Member, Shape};
use crate::validate;

/// Reads the input of `operation`. A member that is the raw body (the payload of Invoke) stays `None`: the body is
/// at hand where it is needed, and is not copied.
///
/// `query` stands without its question mark; `headers` looks a header up, in any case of its name.
///
/// # Errors
/// The answer to send: SerializationException when a part cannot be read as the model's type, ValidationException
/// naming every broken constraint.
pub fn decode<T: DeserializeOwned>(
    operation: Operation,
    labels: &Labels,
    query: Option<&str>,
    headers: impl Fn(&str) -> Option<String>,
    body: &[u8],
) -> Result<T, ApiError> {
    let input = operation.info().input;
    let mut object = read_body(input, body)?;
    for member in input.members() {
        let value = match member.location {
            Location::Uri(name) => labels.get(name).map(|text| from_text(member.shape, text)).transpose()?,
            Location::Query(name) => from_query(member.shape, name, query.unwrap_or(""))?,
            Location::Header(name) => headers(name).map(|text| from_text(member.shape, &text)).transpose()?,
            Location::Body | Location::Payload => continue,
        };
        if let Some(value) = value {
            object.insert(member.name.to_owned(), value);
        }
    }
    validate::check(input, &object)?;
    // Types and base64 were checked above, so this can only fail when tables and types disagree.
    serde_json::from_value(Value::Object(object)).map_err(|error| ApiError::serialization(error.to_string()))
}

/// The members that travel in the body, with the model's types.
fn read_body(input: &Shape, body: &[u8]) -> Result<Map<String, Value>, ApiError> {
    let payload = input.members().iter().find(|member| matches!(member.location, Location::Payload));
    let mut object = Map::new();
    let in_body = match payload {
        Some(Member { shape: Shape { kind: Kind::Blob(_), .. }, .. }) => return Ok(object),
        Some(_) => true,
        None => input.members().iter().any(|member| matches!(member.location, Location::Body)),
    };
    if !in_body || body.iter().all(u8::is_ascii_whitespace) {
        return Ok(object);
    }
    let value: Value = serde_json::from_slice(body)
        .map_err(|_| ApiError::serialization("Unable to parse the request body as JSON."))?;
    match payload {
        Some(member) => {
            if let Some(value) = coerce(member.shape, value)? {
                object.insert(member.name.to_owned(), value);
            }
        }
        None => {
            let Value::Object(mut given) = value else { return Err(unexpected(&value, "Expected a structure")) };
            for member in input.members() {
                if let Location::Body = member.location
                    && let Some(value) = given.remove(member.name)
                    && let Some(value) = coerce(member.shape, value)?
                {
                    object.insert(member.name.to_owned(), value);
                }
            }
        }
    }
    Ok(object)
}

/// A JSON value as the shape's type; `None` for null, which is the same as absent.
fn coerce(shape: &Shape, value: Value) -> Result<Option<Value>, ApiError> {
    let value = match (&shape.kind, value) {
        (_, Value::Null) => return Ok(None),
        (Kind::Structure(members), Value::Object(mut given)) => {
            let mut object = Map::new();
            for member in *members {
                if let Some(value) = given.remove(member.name)
                    && let Some(value) = coerce(member.shape, value)?
                {
                    object.insert(member.name.to_owned(), value);
                }
            }
            Value::Object(object)
        }
        (Kind::Map { value: shape, .. }, Value::Object(given)) => {
            let mut object = Map::new();
            for (key, value) in given {
                if let Some(value) = coerce(shape, value)? {
                    object.insert(key, value);
                }
            }
            Value::Object(object)
        }
        (Kind::List { element, .. }, Value::Array(given)) => {
            let mut list = Vec::with_capacity(given.len());
            for value in given {
                list.extend(coerce(element, value)?);
            }
            Value::Array(list)
        }
        (Kind::String { .. }, value @ Value::String(_)) | (Kind::Boolean, value @ Value::Bool(_)) => value,
        (Kind::Blob(_), Value::String(text)) => {
            if !is_base64(&text) {
                return Err(ApiError::serialization("Unable to decode the base64 value of a blob."));
            }
            Value::String(text)
        }
        (Kind::Integer(_), Value::Number(number)) => whole(&number, i64::from(i32::MIN), i64::from(i32::MAX))
            .ok_or_else(|| unexpected(&Value::Number(number), "an Integer"))?,
        (Kind::Long(_), Value::Number(number)) => {
            whole(&number, i64::MIN, i64::MAX).ok_or_else(|| unexpected(&Value::Number(number), "a Long"))?
        }
        (Kind::Double { .. } | Kind::Timestamp, value @ Value::Number(_)) => value,
        (Kind::Timestamp, Value::String(text)) => seconds(&text)
            .ok_or_else(|| ApiError::serialization("STRING_VALUE can not be converted to milliseconds since epoch"))?,
        (kind, value) => {
            let wanted = match kind {
                Kind::Structure(_) => "Expected a structure",
                Kind::Map { .. } => "Expected map or null",
                Kind::List { .. } => "Expected list or null",
                Kind::String { .. } => "a String",
                Kind::Integer(_) => "an Integer",
                Kind::Long(_) => "a Long",
                Kind::Double { .. } => "a Double",
                Kind::Boolean => "a Boolean",
                Kind::Timestamp => "a Timestamp",
                Kind::Blob(_) => "a Blob",
            };
            return Err(unexpected(&value, wanted));
        }
    };
    Ok(Some(value))
}

/// The texts of the service's JSON reader: `STRING_VALUE can not be converted to an Integer`.
fn unexpected(found: &Value, wanted: &'static str) -> ApiError {
    if wanted.starts_with("Expected") {
        return ApiError::serialization(wanted);
    }
    let token = match found {
        Value::Object(_) => return ApiError::serialization("Start of structure or map found where not expected."),
        Value::Array(_) => return ApiError::serialization("Start of list found where not expected"),
        Value::String(_) => "STRING_VALUE",
        Value::Number(_) => "NUMBER_VALUE",
        Value::Bool(true) => "TRUE_VALUE",
        Value::Bool(false) => "FALSE_VALUE",
        Value::Null => "NULL_VALUE",
    };
    ApiError::serialization(format!("{token} can not be converted to {wanted}"))
}

/// A number without its fraction, as the service truncates it, if it is in range.
fn whole(number: &Number, min: i64, max: i64) -> Option<Value> {
    let truncated = match number.as_i64() {
        Some(whole) => whole,
        None => {
            let float = number.as_f64()?.trunc();
            // Beyond 2^63 the cast saturates; the comparison refuses what it changed.
            let cast = float as i64;
            if cast as f64 != float {
                return None;
            }
            cast
        }
    };
    (min..=max).contains(&truncated).then(|| truncated.into())
}

/// Standard base64 with its padding, judged without decoding: the decoder runs once, later.
fn is_base64(text: &str) -> bool {
    let bytes = text.as_bytes();
    let data = bytes.strip_suffix(b"==").or_else(|| bytes.strip_suffix(b"=")).unwrap_or(bytes);
    bytes.len().is_multiple_of(4) && data.iter().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'+' | b'/'))
}

fn from_query(shape: &Shape, name: &str, query: &str) -> Result<Option<Value>, ApiError> {
    let mut values = query_pairs(query).filter(|(key, _)| key == name).map(|(_, value)| value);
    if let Kind::List { element, .. } = &shape.kind {
        let list = values.map(|value| from_text(element, &value)).collect::<Result<Vec<_>, _>>()?;
        return Ok((!list.is_empty()).then_some(Value::Array(list)));
    }
    values.next().map(|value| from_text(shape, &value)).transpose()
}

/// A label, header or query item as the shape's type.
fn from_text(shape: &Shape, text: &str) -> Result<Value, ApiError> {
    let refuse = |wanted| ApiError::serialization(format!("STRING_VALUE can not be converted to {wanted}"));
    match &shape.kind {
        Kind::Integer(_) => text.parse::<i32>().map(Value::from).map_err(|_| refuse("an Integer")),
        Kind::Long(_) => text.parse::<i64>().map(Value::from).map_err(|_| refuse("a Long")),
        Kind::Boolean => text.parse::<bool>().map(Value::from).map_err(|_| refuse("a Boolean")),
        Kind::Timestamp => seconds(text).ok_or_else(|| refuse("milliseconds since epoch")),
        _ => Ok(Value::String(text.to_owned())),
    }
}

/// Seconds since the epoch of a number or of `2026-01-02T03:04:05[.678]Z`, the form that clients put into queries.
fn seconds(text: &str) -> Option<Value> {
    if let Ok(number) = text.parse::<f64>() {
        return Number::from_f64(number).map(Value::Number);
    }
    let (date, time) = text.strip_suffix('Z')?.split_once('T')?;
    let mut date = date.splitn(3, '-').map(str::parse::<i64>);
    let (year, month, day) = (date.next()?.ok()?, date.next()?.ok()?, date.next()?.ok()?);
    let mut time = time.splitn(3, ':');
    let (hour, minute) = (time.next()?.parse::<i64>().ok()?, time.next()?.parse::<i64>().ok()?);
    let second: f64 = time.next()?.parse().ok()?;
    let valid = (1..=9999).contains(&year) && (1..=12).contains(&month) && (1..=31).contains(&day);
    if !valid || !(0..24).contains(&hour) || !(0..60).contains(&minute) || !(0.0..61.0).contains(&second) {
        return None;
    }
    // Days since the epoch of a proleptic Gregorian date; years begin in March so that a leap day comes last.
    let (y, m) = if month > 2 { (year, month - 3) } else { (year - 1, month + 9) };
    let days = 365 * y + y / 4 - y / 100 + y / 400 + (153 * m + 2) / 5 + day - 1 - 719_468;
    Number::from_f64((days * 86_400 + hour * 3_600 + minute * 60) as f64 + second).map(Value::Number)
}

#[cfg(test)]
mod tests;
