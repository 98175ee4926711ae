//! The canonical request: one text for all spellings of the same request.

use std::borrow::Cow;
use std::fmt::Write;

use super::Head;

/// The canonical request. `signed` are header names in lower case, sorted; of the query, `X-Amz-Signature` is left out.
pub(super) fn request(head: &Head<'_>, service: &str, signed: &[&str], payload_hash: &str) -> String {
    let mut text = String::with_capacity(512);
    text.push_str(head.method);
    text.push('\n');
    // S3 keys are taken as they are; everybody else normalizes the path and encodes what is encoded once more.
    match service {
        "s3" => text.push_str(if head.path.is_empty() { "/" } else { head.path }),
        _ => path(head.path, &mut text),
    }
    text.push('\n');
    query(head.query.unwrap_or_default(), &mut text);
    text.push('\n');
    for name in signed {
        text.push_str(name);
        text.push(':');
        header(head, name, &mut text);
        text.push('\n');
    }
    text.push('\n');
    for (index, name) in signed.iter().enumerate() {
        text.push_str(if index == 0 { "" } else { ";" });
        text.push_str(name);
    }
    text.push('\n');
    text.push_str(payload_hash);
    text
}

/// The path without empty segments, `.` and `..`, each segment percent-encoded.
fn path(path: &str, out: &mut String) {
    let mut segments: Vec<&str> = Vec::new();
    for segment in path.split('/') {
        match segment {
            "" | "." => {}
            ".." => drop(segments.pop()),
            segment => segments.push(segment),
        }
    }
    for segment in &segments {
        out.push('/');
        encode(segment.as_bytes(), out);
    }
    if segments.is_empty() || path.ends_with('/') {
        out.push('/');
    }
}

/// The pairs of a query, decoded and encoded anew, sorted by name and value.
fn query(query: &str, out: &mut String) {
    let mut pairs: Vec<(String, String)> = query
        .split('&')
        .filter(|pair| !pair.is_empty())
        .map(|pair| pair.split_once('=').unwrap_or((pair, "")))
        .map(|(name, value)| (recoded(name), recoded(value)))
        .filter(|(name, _)| name != "X-Amz-Signature")
        .collect();
    pairs.sort_unstable();
    for (index, (name, value)) in pairs.iter().enumerate() {
        out.push_str(if index == 0 { "" } else { "&" });
        out.push_str(name);
        out.push('=');
        out.push_str(value);
    }
}

fn recoded(text: &str) -> String {
    let mut out = String::with_capacity(text.len() + 8);
    encode(&decoded(text), &mut out);
    out
}

/// Percent-decoded, with `+` for a space; what is no escape stays.
pub(super) fn decoded(text: &str) -> Cow<'_, [u8]> {
    if !text.bytes().any(|byte| matches!(byte, b'%' | b'+')) {
        return Cow::Borrowed(text.as_bytes());
    }
    let bytes = text.as_bytes();
    let mut out = Vec::with_capacity(bytes.len());
    let mut index = 0;
    let digit = |at: usize| bytes.get(at).and_then(|byte| char::from(*byte).to_digit(16));
    while let Some(byte) = bytes.get(index) {
        match (byte, digit(index + 1), digit(index + 2)) {
            (b'%', Some(high), Some(low)) => {
                out.push((high << 4 | low) as u8);
                index += 3;
                continue;
            }
            (b'+', ..) => out.push(b' '),
            (byte, ..) => out.push(*byte),
        }
        index += 1;
    }
    Cow::Owned(out)
}

fn encode(bytes: &[u8], out: &mut String) {
    for byte in bytes {
        match byte {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => out.push(char::from(*byte)),
            _ => {
                // Writing to a string cannot fail.
                let _ = write!(out, "%{byte:02X}");
            }
        }
    }
}

/// All values of a header, with single spaces, joined by commas.
fn header(head: &Head<'_>, name: &str, out: &mut String) {
    let values = head.headers.iter().filter(|(own, _)| own.eq_ignore_ascii_case(name)).map(|(_, value)| value);
    for (index, value) in values.enumerate() {
        out.push_str(if index == 0 { "" } else { "," });
        for (index, word) in value.split_ascii_whitespace().enumerate() {
            out.push_str(if index == 0 { "" } else { " " });
            out.push_str(word);
        }
    }
}
