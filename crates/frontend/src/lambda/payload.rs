//! The event of an invocation: is it JSON, and if not, what does Lambda say about it?
//!
//! The service parses with Jackson and passes its words on. The common mistakes are told in the same words; rare ones
//! name the character that was not expected.

use serde::de::IgnoredAny;

/// How much of the payload a message repeats, in characters.
const SHOWN: usize = 500;

/// Checks that the payload is one JSON value, without building it. The error is the text after
/// `Could not parse request body into json: Could not parse payload into json: `.
pub(crate) fn check(payload: &[u8]) -> Result<(), String> {
    let text = match std::str::from_utf8(payload) {
        Ok(text) => text,
        Err(error) => {
            let at = error.valid_up_to();
            return Err(located(&format!("Invalid UTF-8 start byte 0x{:02x}", payload[at]), payload, at + 1));
        }
    };
    match serde_json::from_str::<IgnoredAny>(text) {
        Ok(_) => Ok(()),
        Err(error) => Err(describe(text, &error)),
    }
}

fn describe(text: &str, error: &serde_json::Error) -> String {
    let payload = text.as_bytes();
    if error.is_eof() {
        return located("Unexpected end-of-input", payload, payload.len());
    }
    // Lines and columns count from 1, columns in bytes; column 0 is the line break before the line.
    let line_start = text.split_inclusive('\n').take(error.line().saturating_sub(1)).map(str::len).sum::<usize>();
    let mut at = (line_start + error.column()).saturating_sub(1).min(payload.len().saturating_sub(1));
    while !text.is_char_boundary(at) {
        at -= 1;
    }
    let is_word = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_' || byte == b'$';
    let start = payload[..at].iter().rposition(|byte| !is_word(*byte)).map_or(0, |before| before + 1);
    if payload[start].is_ascii_alphabetic() && !inside_string(&payload[..start]) {
        let end = payload[start..].iter().position(|byte| !is_word(*byte)).map_or(payload.len(), |len| start + len);
        let word = &text[start..end];
        let message = format!(
            "Unrecognized token '{word}': was expecting (JSON String, Number, Array, Object or token 'null', 'true' or 'false')"
        );
        return located(&message, payload, end + 1);
    }
    let character = text[at..].chars().next().unwrap_or(' ');
    let shown = match u32::from(character) {
        code @ (0..0x20 | 0x7f..0xa0) => format!("((CTRL-CHAR, code {code}))"),
        code => format!("('{character}' (code {code}))"),
    };
    let message = match error.to_string() {
        said if said.starts_with("trailing characters") => {
            format!("Unexpected character {shown}: Expected space separating root-level values")
        }
        said if said.starts_with("expected value") => format!(
            "Unexpected character {shown}: expected a valid value (JSON String, Number, Array, Object or token 'null', 'true' or 'false')"
        ),
        said => {
            let reason = said.split(" at line ").next().unwrap_or_default();
            format!("Unexpected character {shown}: {reason}")
        }
    };
    located(&message, payload, at + 1)
}

/// Whether a string is open at the end of these bytes.
fn inside_string(before: &[u8]) -> bool {
    let mut open = false;
    let mut bytes = before.iter();
    while let Some(byte) = bytes.next() {
        match byte {
            b'"' => open = !open,
            b'\\' if open => {
                bytes.next();
            }
            _ => {}
        }
    }
    open
}

/// Appends where it happened. `read` is how many bytes had been read: Jackson names the column after the last of them.
fn located(message: &str, payload: &[u8], read: usize) -> String {
    let read = read.min(payload.len());
    let line = payload[..read].iter().filter(|byte| **byte == b'\n').count() + 1;
    let column = read - payload[..read].iter().rposition(|byte| *byte == b'\n').map_or(0, |at| at + 1) + 1;
    let text = String::from_utf8_lossy(payload);
    let mut source: String = text.chars().take(SHOWN).collect();
    if source.len() < text.len() {
        source.push_str("\"[truncated ");
        source.push_str(&(text.chars().count() - SHOWN).to_string());
        source.push_str(" bytes]");
    } else {
        source.push('"');
    }
    format!("{message}\n at [Source: (byte[])\"{source}; line: {line}, column: {column}]")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn said(payload: &[u8]) -> String {
        let error = check(payload).unwrap_err();
        error.replace("\n at [Source: (byte[])", " @ ")
    }

    #[test]
    fn json_of_any_kind_passes() {
        for payload in ["{}", "null", "1", "\"x\"", " [1, {\"a\": \"\\u00e9\"}]\n", &"[".repeat(5_000).add_closing()] {
            check(payload.as_bytes()).unwrap();
        }
    }

    trait AddClosing {
        fn add_closing(&self) -> String;
    }
    impl AddClosing for String {
        fn add_closing(&self) -> String {
            format!("{self}{}", "]".repeat(self.len()))
        }
    }

    #[test]
    fn mistakes_are_told_as_recorded() {
        assert_eq!(
            said(b"test data"),
            "Unrecognized token 'test': was expecting (JSON String, Number, Array, Object or token 'null', 'true' or 'false') \
             @ \"test data\"; line: 1, column: 6]"
        );
        assert_eq!(
            said(b"0D"),
            "Unexpected character ('D' (code 68)): Expected space separating root-level values @ \"0D\"; line: 1, column: 3]"
        );
        assert_eq!(
            said(b"<x>"),
            "Unexpected character ('<' (code 60)): expected a valid value (JSON String, Number, Array, Object or token \
             'null', 'true' or 'false') @ \"<x>\"; line: 1, column: 2]"
        );
        assert_eq!(said(b"{\xe9"), "Invalid UTF-8 start byte 0xe9 @ \"{\u{fffd}\"; line: 1, column: 3]");
        assert_eq!(said(b"{\"a\":"), "Unexpected end-of-input @ \"{\"a\":\"; line: 1, column: 6]");
        assert!(said(b"{\n  \"a\": nope}").starts_with("Unrecognized token 'nope'"));
        assert!(said(b"{\n  \"a\": nope}").ends_with("line: 2, column: 13]"), "{}", said(b"{\n  \"a\": nope}"));
    }

    #[test]
    fn long_payloads_are_cut() {
        let error = check("é".repeat(700).as_bytes()).unwrap_err();
        assert!(error.contains("\"[truncated 200 bytes]; line: 1"), "{error}");
    }

    #[test]
    fn nothing_panics() {
        for payload in
            [&b""[..], b"\n", b"\"", b"{\"a\" 1}", b"[1 2]", b"{a}", b"\"\\x\"", b"tru", b"-", b"1e", "ü".as_bytes()]
        {
            let error = check(payload).unwrap_err();
            assert!(error.contains("line: "), "{payload:?}: {error}");
        }
    }

    use proptest::prelude::*;

    proptest! {
        #[test]
        fn the_verdict_is_that_of_a_full_parser(
            payload in prop_oneof![
                "[\\[\\]{}\",:0-9a-z\\\\ \n.+-]{0,24}".prop_map(String::into_bytes),
                proptest::collection::vec(any::<u8>(), 0..24),
                "\\PC{0,24}".prop_map(String::into_bytes),
            ],
        ) {
            let parsed = serde_json::from_slice::<serde_json::Value>(&payload);
            let verdict = check(&payload);
            // A number beyond all floats is JSON, yet not one that the full parser can hold.
            let held = parsed.is_ok() || parsed.is_err_and(|error| error.to_string().contains("out of range"));
            prop_assert_eq!(verdict.is_ok(), held, "{:?}", verdict);
        }
    }
}
