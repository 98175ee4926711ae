//! The filter patterns of the CloudWatch Logs API.
//!
//! Two kinds are understood: terms (`ERROR "bad request" -DEBUG ?WARN %4\d\d%`), matched as case-sensitive parts of the
//! message, and JSON selectors (`{ $.level = "ERROR" && $.ms > 100 }`). As in CloudWatch, `?` terms mean
//! "any of these" and are ignored beside other terms. The space-delimited kind (`[ip, user, ...]`) is refused.

mod json;

use fancy_regex::Regex;

/// Characters of a pattern at most, the limit of the API.
pub const MAX_PATTERN_CHARS: usize = 1024;
/// Compiled size of a regular expression at most, in bytes: repetitions multiply.
const MAX_REGEX_BYTES: usize = 1024 * 1024;

/// A parsed pattern.
#[derive(Debug, Clone)]
pub struct Pattern(Kind);

#[derive(Debug, Clone)]
enum Kind {
    All,
    Terms(Terms),
    Json(json::Expr),
}

#[derive(Debug, Clone, Default)]
struct Terms {
    required: Vec<Term>,
    excluded: Vec<Term>,
    optional: Vec<Term>,
}

#[derive(Debug, Clone)]
enum Term {
    Text(String),
    Regex(Regex),
}

/// A pattern that cannot be used. The position counts characters from 1.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PatternError {
    /// More than [`MAX_PATTERN_CHARS`].
    #[error("the filter pattern is longer than 1024 characters")]
    TooLong,
    /// `[w1, w2, ...]`
    #[error("space-delimited filter patterns ([a, b, ...]) are not supported: use terms or a JSON selector")]
    SpaceDelimited,
    /// A quote or a `%` without its end.
    #[error("the {what} at character {at} does not end")]
    Unterminated {
        /// What began there.
        what: &'static str,
        /// Where.
        at: usize,
    },
    /// An expression outside CloudWatch's subset of regular expressions.
    #[error("the regular expression at character {at} is not supported: {why}")]
    Regex {
        /// Where it begins.
        at: usize,
        /// What is wrong with it.
        why: String,
    },
    /// Something else should stand here.
    #[error("expected {expected} at character {at}")]
    Expected {
        /// What should stand here.
        expected: &'static str,
        /// Where.
        at: usize,
    },
    /// Parentheses nested too deeply.
    #[error("parentheses are nested too deeply at character {at}")]
    TooDeep {
        /// Where.
        at: usize,
    },
}

impl Pattern {
    /// Reads a pattern; an empty one matches everything.
    pub fn parse(text: &str) -> Result<Self, PatternError> {
        if text.chars().count() > MAX_PATTERN_CHARS {
            return Err(PatternError::TooLong);
        }
        let trimmed = text.trim();
        if trimmed.is_empty() {
            return Ok(Self(Kind::All));
        }
        if trimmed.starts_with('[') {
            return Err(PatternError::SpaceDelimited);
        }
        let mut cursor = Cursor { chars: text.chars().collect(), at: 0 };
        cursor.skip_spaces();
        if trimmed.starts_with('{') { json::parse(cursor).map(Kind::Json) } else { terms(cursor).map(Kind::Terms) }
            .map(Self)
    }

    /// Whether a message matches.
    #[must_use]
    pub fn matches(&self, message: &str) -> bool {
        match &self.0 {
            Kind::All => true,
            Kind::Terms(terms) => terms.matches(message),
            Kind::Json(expr) => expr.matches(message),
        }
    }

    /// Whether it matches every message.
    #[must_use]
    pub fn is_all(&self) -> bool {
        matches!(self.0, Kind::All)
    }
}

impl Terms {
    fn matches(&self, message: &str) -> bool {
        let found = |term: &Term| term.matches(message);
        if self.required.is_empty() && self.excluded.is_empty() {
            return self.optional.iter().any(found);
        }
        self.required.iter().all(found) && !self.excluded.iter().any(found)
    }
}

impl Term {
    fn matches(&self, message: &str) -> bool {
        match self {
            Self::Text(text) => message.contains(text.as_str()),
            Self::Regex(regex) => regex_matches(regex, message),
        }
    }
}

fn terms(mut cursor: Cursor) -> Result<Terms, PatternError> {
    let mut terms = Terms::default();
    cursor.skip_spaces();
    while let Some(first) = cursor.peek() {
        // A sign counts only before something: a lone "-" or "?" is a term.
        let signed = matches!(first, '-' | '?') && cursor.chars.get(cursor.at + 1).is_some_and(|c| !c.is_whitespace());
        if signed {
            cursor.at += 1;
        }
        let term = term(&mut cursor)?;
        match first {
            '-' if signed => terms.excluded.push(term),
            '?' if signed => terms.optional.push(term),
            _ => terms.required.push(term),
        }
        cursor.skip_spaces();
    }
    Ok(terms)
}

fn term(cursor: &mut Cursor) -> Result<Term, PatternError> {
    Ok(match cursor.peek() {
        Some('"') => Term::Text(cursor.quoted()?),
        Some('%') => Term::Regex(cursor.regex()?),
        _ => Term::Text(cursor.word(|c| !c.is_whitespace())),
    })
}

/// A search that gives up (its backtracking limit; the subset needs none) is no match.
fn regex_matches(regex: &Regex, text: &str) -> bool {
    regex.is_match(text).unwrap_or(false)
}

/// Reads a pattern character by character.
struct Cursor {
    chars: Vec<char>,
    at: usize,
}

impl Cursor {
    fn peek(&self) -> Option<char> {
        self.chars.get(self.at).copied()
    }

    /// The position for messages.
    fn position(&self) -> usize {
        self.at + 1
    }

    fn skip_spaces(&mut self) {
        while self.peek().is_some_and(char::is_whitespace) {
            self.at += 1;
        }
    }

    /// Steps over this text, if it stands here.
    fn eat(&mut self, text: &str) -> bool {
        let found = text.chars().enumerate().all(|(i, c)| self.chars.get(self.at + i) == Some(&c));
        if found {
            self.at += text.chars().count();
        }
        found
    }

    fn word(&mut self, belongs: impl Fn(char) -> bool) -> String {
        let start = self.at;
        while self.peek().is_some_and(&belongs) {
            self.at += 1;
        }
        self.chars[start..self.at].iter().collect()
    }

    /// A quoted text; `\"` and `\\` stand for the quote and the backslash.
    fn quoted(&mut self) -> Result<String, PatternError> {
        let at = self.position();
        self.at += 1;
        let mut text = String::new();
        while let Some(c) = self.peek() {
            self.at += 1;
            match (c, self.peek()) {
                ('"', _) => return Ok(text),
                ('\\', Some(escaped @ ('"' | '\\'))) => {
                    self.at += 1;
                    text.push(escaped);
                }
                _ => text.push(c),
            }
        }
        Err(PatternError::Unterminated { what: "quoted text", at })
    }

    /// An expression between percent signs.
    fn regex(&mut self) -> Result<Regex, PatternError> {
        let at = self.position();
        self.at += 1;
        let source = self.word(|c| c != '%');
        if !self.eat("%") {
            return Err(PatternError::Unterminated { what: "regular expression", at });
        }
        check_regex(&source).map_err(|why| PatternError::Regex { at, why })?;
        fancy_regex::RegexBuilder::new(&source)
            .delegate_size_limit(MAX_REGEX_BYTES)
            .build()
            .map_err(|error| PatternError::Regex { at, why: error.to_string() })
    }
}

/// CloudWatch's subset: no groups, so neither look-around nor back-references, and every match is linear.
fn check_regex(source: &str) -> Result<(), String> {
    if source.is_empty() {
        return Err("it is empty".to_owned());
    }
    let mut chars = source.chars();
    let mut repeated = false;
    while let Some(c) = chars.next() {
        match c {
            '\\' => match chars.next() {
                Some('d' | 'D' | 's' | 'S' | 'w' | 'W' | 'x') => {}
                Some(c) if c.is_ascii_punctuation() => {}
                Some(c) => return Err(format!("\\{c} is not supported")),
                None => return Err("it ends with a backslash".to_owned()),
            },
            // a{999}{999} would grow without bound.
            '{' if repeated => return Err("a repetition is repeated".to_owned()),
            _ if c.is_ascii_alphanumeric() || " :_#=@/;,-^$?[]{}|*+.".contains(c) => {}
            _ => return Err(format!("{c:?} is not supported")),
        }
        repeated = matches!(c, '}' | '*' | '+' | '?');
    }
    Ok(())
}

#[cfg(test)]
mod tests;
