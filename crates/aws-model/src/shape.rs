//! How the generated tables describe a shape: its type, its constraints and where its members travel.

use std::sync::OnceLock;

use fancy_regex::Regex;

/// A shape of the model that requests can contain.
pub(crate) struct Shape {
    /// The value must not be repeated in error messages.
    pub sensitive: bool,
    pub kind: Kind,
}

impl Shape {
    /// The members of a structure, none for every other kind.
    pub fn members(&self) -> &'static [Member] {
        match self.kind {
            Kind::Structure(members) => members,
            _ => &[],
        }
    }
}

pub(crate) enum Kind {
    Structure(&'static [Member]),
    List {
        limits: Limits,
        element: &'static Shape,
    },
    Map {
        limits: Limits,
        key: &'static Shape,
        value: &'static Shape,
    },
    String {
        limits: Limits,
        pattern: Option<Pattern>,
        values: &'static [&'static str],
    },
    Integer(Limits),
    Long(Limits),
    Double {
        min: Option<f64>,
        max: Option<f64>,
    },
    Boolean,
    /// Seconds since the epoch in a body, ISO 8601 in a query.
    Timestamp,
    /// Base64 in a body. The limits are in bytes of the decoded value.
    Blob(Limits),
}

pub(crate) struct Member {
    pub name: &'static str,
    pub shape: &'static Shape,
    pub required: bool,
    pub location: Location,
}

/// Where a member of an input structure travels, with its name there.
pub(crate) enum Location {
    Uri(&'static str),
    Query(&'static str),
    Header(&'static str),
    /// A member of the JSON body.
    Body,
    /// The whole body.
    Payload,
}

/// Bounds of a length or of a whole number, both inclusive.
pub(crate) struct Limits {
    pub min: Option<i64>,
    pub max: Option<i64>,
}

impl Limits {
    pub const NONE: Self = Self { min: None, max: None };
}

/// A regular expression of the model, in Java's dialect, that must match the whole value. Compiled at its first use.
pub(crate) struct Pattern {
    pub source: &'static str,
    compiled: OnceLock<Regex>,
}

impl Pattern {
    pub const fn new(source: &'static str) -> Self {
        Self { source, compiled: OnceLock::new() }
    }

    pub fn matches(&self, value: &str) -> bool {
        let regex = self.compiled.get_or_init(|| {
            // Java's \d is ASCII only; here it would be any Unicode digit.
            let source = self.source.replace(r"\d", "[0-9]");
            Regex::new(&format!(r"\A(?:{source})\z")).expect("a test compiles every pattern of the model")
        });
        // The only run-time error is an exhausted backtracking budget: such a value is refused.
        regex.is_match(value).unwrap_or(false)
    }
}
