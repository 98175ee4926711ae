//! The last 4 KiB of an invocation's log, as `X-Amz-Log-Result` carries them (base64 is the caller's).

/// Bytes of log that an invoke with `LogType=Tail` gets back.
pub const TAIL_BYTES: usize = 4096;

/// Keeps the last [`TAIL_BYTES`] of what is pushed, in bounded memory.
#[derive(Debug, Clone, Default)]
pub struct Tail {
    text: String,
}

impl Tail {
    /// An empty tail.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds an event's message as it is; lines bring their own newline.
    pub fn push(&mut self, message: &str) {
        self.text.push_str(cut(message));
        // Cutting at twice the size moves each byte once at most.
        if self.text.len() > 2 * TAIL_BYTES {
            let start = self.text.len() - cut(&self.text).len();
            self.text.drain(..start);
        }
    }

    /// The tail: at most [`TAIL_BYTES`], never starting within a character.
    #[must_use]
    pub fn as_str(&self) -> &str {
        cut(&self.text)
    }

    /// Forgets everything, for the next invocation.
    pub fn clear(&mut self) {
        self.text.clear();
    }
}

/// The last 4 KiB of some lines.
pub fn tail_4k<'a>(lines: impl IntoIterator<Item = &'a str>) -> String {
    let mut tail = Tail::new();
    lines.into_iter().for_each(|line| tail.push(line));
    tail.as_str().to_owned()
}

fn cut(text: &str) -> &str {
    let start = text.len().saturating_sub(TAIL_BYTES);
    let start = (start..).find(|&start| text.is_char_boundary(start)).unwrap_or(text.len());
    &text[start..]
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn keeps_all_of_a_short_log() {
        assert_eq!(tail_4k(["START\n", "hello\n", ""]), "START\nhello\n");
        let mut tail = Tail::new();
        tail.push("x");
        tail.clear();
        assert_eq!(tail.as_str(), "");
    }

    #[test]
    fn never_cuts_a_character() {
        let text = "é".repeat(3000) + "x";
        let tail = tail_4k([text.as_str()]);
        assert_eq!(tail.len(), TAIL_BYTES - 1);
        assert!(text.ends_with(&tail));
    }

    proptest! {
        #[test]
        fn is_the_end_of_everything(lines in prop::collection::vec(("[aé☃\n]{0,3}", 0..400usize), 0..30)) {
            let lines: Vec<_> = lines.into_iter().map(|(text, times)| text.repeat(times)).collect();
            let all = lines.concat();
            let tail = tail_4k(lines.iter().map(String::as_str));
            prop_assert!(all.ends_with(&tail));
            prop_assert!(tail.len() <= TAIL_BYTES);
            prop_assert!(tail.len() == all.len() || tail.len() > TAIL_BYTES - 4);
        }
    }
}
