//! What a runtime reports of its errors: the filter on error types, X-Ray's cause, the combined content type, and the
//! error that a streamed response carries in its trailers.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use serde::{Deserialize, Serialize};

use crate::refusal::error_body;

/// X-Ray's largest document, in bytes.
const MAX_CAUSE: usize = 64 * 1024;
/// What a message or working directory is cut to in the last resort, in bytes: with both at this length a cause fits.
const MAX_CAUSE_TEXT: usize = (MAX_CAUSE - 4096) / 2;

/// Lets through `Runtime.X` and `Function.X` where X is a capital and at least one more letter; anything else becomes
/// `Function.Unknown` or `Runtime.Unknown`.
pub(crate) fn filter_error_type(given: &str) -> String {
    let name = given.strip_prefix("Runtime.").or_else(|| given.strip_prefix("Function."));
    let letters = name.map(str::as_bytes).unwrap_or_default();
    let valid =
        letters.len() >= 2 && letters[0].is_ascii_uppercase() && letters.iter().all(|byte| byte.is_ascii_alphabetic());
    if valid {
        given.to_owned()
    } else if given.starts_with("Function.") {
        "Function.Unknown".to_owned()
    } else {
        "Runtime.Unknown".to_owned()
    }
}

/// X-Ray's error cause, with the fields that are kept.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(default)]
struct Cause {
    exceptions: Option<Vec<Exception>>,
    working_directory: String,
    paths: Option<Vec<String>>,
    #[serde(skip_serializing_if = "String::is_empty")]
    message: String,
}

#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(default)]
struct Exception {
    #[serde(skip_serializing_if = "String::is_empty")]
    message: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    r#type: String,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    stack: Vec<Frame>,
}

#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(default)]
struct Frame {
    #[serde(skip_serializing_if = "String::is_empty")]
    path: String,
    #[serde(skip_serializing_if = "is_zero")]
    line: i64,
    #[serde(skip_serializing_if = "String::is_empty")]
    label: String,
}

fn is_zero(number: &i64) -> bool {
    *number == 0
}

/// The cause reduced to its known fields and to 64 KiB, or nothing where it is not a cause.
///
/// One that is too large loses the last fifths of its exceptions and paths, one fifth after the other, then all of them
/// and the ends of its texts.
pub(crate) fn xray_cause(json: &[u8]) -> Option<Bytes> {
    let cause: Cause = serde_json::from_slice(json).ok()?;
    let exceptions = cause.exceptions.as_ref().map_or(0, Vec::len);
    let paths = cause.paths.as_ref().map_or(0, Vec::len);
    if exceptions == 0 && paths == 0 && cause.working_directory.is_empty() && cause.message.is_empty() {
        return None;
    }
    let mut cut = cause;
    for fifths in [5, 4, 3, 2, 1] {
        if let Some(list) = &mut cut.exceptions {
            list.truncate(exceptions * fifths / 5);
        }
        if let Some(list) = &mut cut.paths {
            list.truncate(paths * fifths / 5);
        }
        let json = serde_json::to_vec(&cut).ok()?;
        if json.len() <= MAX_CAUSE {
            return Some(json.into());
        }
    }
    cut.exceptions = None;
    cut.paths = None;
    // Escapes can make a text of control characters six times as long; half the length each time ends that.
    let mut length = MAX_CAUSE_TEXT;
    loop {
        crop(&mut cut.message, length);
        crop(&mut cut.working_directory, length);
        let json = serde_json::to_vec(&cut).ok()?;
        if json.len() <= MAX_CAUSE {
            return Some(json.into());
        }
        length /= 2;
    }
}

/// Cuts a text to at most `length` bytes, the last three of them dots.
fn crop(text: &mut String, length: usize) {
    if text.len() > length {
        let end = (0..=length.saturating_sub(3)).rev().find(|at| text.is_char_boundary(*at)).unwrap_or(0);
        text.truncate(end);
        text.push_str("...");
    }
}

/// The body of content type `application/vnd.aws.lambda.error.cause+json`, taken apart: what the caller sees, and the cause.
pub(crate) fn split_error_and_cause(body: &[u8]) -> (Bytes, Option<Bytes>) {
    #[derive(Default, Deserialize)]
    #[serde(rename_all = "camelCase", default)]
    struct Combined {
        error_message: String,
        error_type: String,
        stack_trace: Vec<String>,
        error_cause: Option<Box<serde_json::value::RawValue>>,
    }
    #[derive(Serialize)]
    #[serde(rename_all = "camelCase")]
    struct Error {
        error_message: String,
        error_type: String,
        #[serde(skip_serializing_if = "Vec::is_empty")]
        stack_trace: Vec<String>,
    }
    let Ok(combined) = serde_json::from_slice::<Combined>(body) else {
        return (Bytes::from_static(b"\"Invalid error body\""), None);
    };
    let error = Error {
        error_message: combined.error_message,
        error_type: combined.error_type,
        stack_trace: combined.stack_trace,
    };
    let error = serde_json::to_vec(&error).expect("strings always become JSON");
    let cause = combined.error_cause.and_then(|cause| xray_cause(cause.get().as_bytes()));
    (error.into(), cause)
}

/// Names of the two trailers that a streamed response ends with when the function failed midway.
pub(crate) const ERROR_TYPE: &str = "lambda-runtime-function-error-type";
pub(crate) const ERROR_BODY: &str = "lambda-runtime-function-error-body";

/// The error of these two trailers: the filtered type, and the error object from its base64.
pub(crate) fn trailer_error(error_type: &str, body: Option<&str>) -> (String, Bytes) {
    let filtered = filter_error_type(error_type);
    let object = body.and_then(|body| STANDARD.decode(body.trim()).ok()).filter(|body| !body.is_empty());
    let object = object.unwrap_or_else(|| error_body("", error_type));
    (filtered, object.into())
}

/// The same error where it stands as text at the end of the body.
///
/// AWS's Rust runtime announces the two trailers in its `Trailer` header but then writes them as the last bytes of the body:
/// `Lambda-Runtime-Function-Error-Type: T\r\nLambda-Runtime-Function-Error-Body: B\r\n`. This is looked for only where the
/// header announced them, and only at the very end, so that no ordinary response can be mistaken for a failure.
pub(crate) fn text_trailers(body: &[u8]) -> Option<(String, Bytes)> {
    const TYPE_LINE: &[u8] = b"Lambda-Runtime-Function-Error-Type: ";
    const BODY_LINE: &[u8] = b"\r\nLambda-Runtime-Function-Error-Body: ";
    let rest = body.strip_suffix(b"\r\n")?;
    let at = rfind(rest, BODY_LINE)?;
    let object = std::str::from_utf8(&rest[at + BODY_LINE.len()..]).ok()?;
    let start = rfind(&rest[..at], TYPE_LINE)?;
    let error_type = std::str::from_utf8(&rest[start + TYPE_LINE.len()..at]).ok()?;
    let clean = |text: &str| !text.bytes().any(|byte| byte.is_ascii_control());
    (clean(object) && clean(error_type)).then(|| trailer_error(error_type, Some(object)))
}

fn rfind(haystack: &[u8], needle: &[u8]) -> Option<usize> {
    haystack.windows(needle.len()).rposition(|window| window == needle)
}

#[cfg(test)]
mod tests;
