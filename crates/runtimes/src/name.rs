//! Lambda's names for runtimes (`python3.12`, `nodejs22.x`, `java21`, `provided.al2023`) taken apart into language and
//! version. Which names are deprecated or blocked is the control plane's business.

use std::fmt;
use std::str::FromStr;

/// The language family of a runtime.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Language {
    /// CPython 3.
    Python,
    /// Node.js.
    Nodejs,
    /// A Java virtual machine.
    Java,
    /// CRuby.
    Ruby,
    /// An operating system only: the function brings its own `bootstrap`.
    Provided,
}

impl Language {
    /// The families that need an interpreter of the host, in the order in which they are listed.
    pub const INTERPRETED: [Language; 4] = [Language::Python, Language::Nodejs, Language::Java, Language::Ruby];

    /// The prefix of the runtime names, as in `INIT_START Runtime Version: python:3.12.v1`.
    pub fn as_str(self) -> &'static str {
        match self {
            Language::Python => "python",
            Language::Nodejs => "nodejs",
            Language::Java => "java",
            Language::Ruby => "ruby",
            Language::Provided => "provided",
        }
    }

    /// Whether releases that differ in the second number are different runtimes (Python 3.11 and 3.12), or only those
    /// that differ in the first (Node.js 20 and 22).
    fn minor_matters(self) -> bool {
        matches!(self, Language::Python | Language::Ruby)
    }
}

impl fmt::Display for Language {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// An interpreter's version; parts that are not known are zero.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, serde::Serialize, serde::Deserialize)]
pub struct Version {
    /// First number.
    pub major: u16,
    /// Second number.
    pub minor: u16,
    /// Third number.
    pub patch: u16,
}

impl Version {
    /// Reads the first dotted number in `text`: `Python 3.12.1`, `v20.1.0`, `3.13.0rc1`, `openjdk 17.0.15+6`.
    pub fn find_in(text: &str) -> Option<Version> {
        let start = text.find(|c: char| c.is_ascii_digit())?;
        let mut numbers = text[start..].split('.').map(|part| {
            let digits = part.bytes().take_while(u8::is_ascii_digit).count();
            part[..digits].parse::<u16>().ok()
        });
        let major = numbers.next().flatten()?;
        let minor = numbers.next().flatten().unwrap_or(0);
        let patch = numbers.next().flatten().unwrap_or(0);
        Some(Version { major, minor, patch })
    }

    /// The part that a Lambda runtime name fixes: major and minor for Python and Ruby, major alone for Node.js and Java.
    pub fn series(self, language: Language) -> (u16, u16) {
        (self.major, if language.minor_matters() { self.minor } else { 0 })
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}.{}", self.major, self.minor, self.patch)
    }
}

/// A Lambda runtime name, taken apart.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RuntimeName {
    /// The family.
    pub language: Language,
    /// What is wanted: `(3, 12)`, `(22, 0)`; `None` for `provided.*`.
    pub series: Option<(u16, u16)>,
    /// The name as the user wrote it.
    pub text: String,
}

/// Why a text is not a runtime name that can be served.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum RuntimeNameError {
    /// Not one of Lambda's families.
    #[error("unknown runtime {0:?}: use python3.x, nodejs20.x, java21, ruby3.x or provided.al2023")]
    Unknown(String),
    /// One of Lambda's, but nothing here can run it.
    #[error("runtime {0:?} is not supported: package the function with its own bootstrap and use provided.al2023")]
    Unsupported(String),
}

impl FromStr for RuntimeName {
    type Err = RuntimeNameError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let unknown = || RuntimeNameError::Unknown(text.to_owned());
        let unsupported = || RuntimeNameError::Unsupported(text.to_owned());
        if text.starts_with("dotnet") || text == "go1.x" || text == "python2.7" || text.ends_with("-edge") {
            return Err(unsupported());
        }
        let named = |language, series| Ok(RuntimeName { language, series, text: text.to_owned() });
        if let Some(rest) = text.strip_prefix("provided") {
            return match rest {
                "" | ".al2" | ".al2023" => named(Language::Provided, None),
                _ => Err(unknown()),
            };
        }
        for language in Language::INTERPRETED {
            let Some(rest) = text.strip_prefix(language.as_str()) else { continue };
            let numbers = match language {
                // `java8.al2` and `java17.al2023` name the operating system after the version.
                Language::Java => rest.split_once(".al2").map_or(rest, |(number, _)| number),
                Language::Nodejs => rest.strip_suffix(".x").ok_or_else(unsupported)?,
                Language::Python | Language::Ruby | Language::Provided => rest,
            };
            let (major, minor) = match numbers.split_once('.') {
                Some((major, minor)) if language.minor_matters() => (major, minor),
                None if !language.minor_matters() => (numbers, "0"),
                _ => return Err(unknown()),
            };
            let number = |digits: &str| digits.parse::<u16>().map_err(|_| unknown());
            return named(language, Some((number(major)?, number(minor)?)));
        }
        Err(unknown())
    }
}

impl RuntimeName {
    /// The name of the series without the user's suffixes, for messages and for `AWS_EXECUTION_ENV`.
    pub fn for_series(language: Language, (major, minor): (u16, u16)) -> String {
        match language {
            Language::Python | Language::Ruby => format!("{language}{major}.{minor}"),
            Language::Nodejs => format!("{language}{major}.x"),
            Language::Java => format!("{language}{major}"),
            Language::Provided => "provided.al2023".to_owned(),
        }
    }

    /// The name and version in `INIT_START Runtime Version: …` lines: `python:3.12.v1`.
    pub fn version_line(&self) -> String {
        let rest = self.text.strip_prefix(self.language.as_str()).unwrap_or_default();
        let rest = rest.trim_start_matches('.').trim_end_matches(".x");
        if rest.is_empty() { format!("{}.v1", self.language) } else { format!("{}:{rest}.v1", self.language) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_taken_apart() {
        let cases = [
            ("python3.12", Language::Python, Some((3, 12))),
            ("nodejs22.x", Language::Nodejs, Some((22, 0))),
            ("java21", Language::Java, Some((21, 0))),
            ("java8.al2", Language::Java, Some((8, 0))),
            ("java17.al2023", Language::Java, Some((17, 0))),
            ("ruby4.0", Language::Ruby, Some((4, 0))),
            ("provided", Language::Provided, None),
            ("provided.al2023", Language::Provided, None),
        ];
        for (text, language, series) in cases {
            let name: RuntimeName = text.parse().unwrap();
            assert_eq!((name.language, name.series), (language, series), "{text}");
        }
        for text in ["", "cobol", "python", "python3", "pythonx.y", "java", "java1.8", "provided.al3", "nodejs22.1"] {
            assert!(text.parse::<RuntimeName>().is_err(), "{text}");
        }
        assert_eq!("dotnet8".parse::<RuntimeName>(), Err(RuntimeNameError::Unsupported("dotnet8".into())));
        assert_eq!("python2.7".parse::<RuntimeName>(), Err(RuntimeNameError::Unsupported("python2.7".into())));
    }

    #[test]
    fn version_lines_are_lambdas() {
        let line = |text: &str| text.parse::<RuntimeName>().unwrap().version_line();
        assert_eq!(line("python3.12"), "python:3.12.v1");
        assert_eq!(line("nodejs22.x"), "nodejs:22.v1");
        assert_eq!(line("java21"), "java:21.v1");
        assert_eq!(line("provided.al2023"), "provided:al2023.v1");
    }

    #[test]
    fn versions_are_found_in_what_interpreters_print() {
        let version = |text: &str| Version::find_in(text).map(|v| v.to_string());
        assert_eq!(version("Python 3.12.1").as_deref(), Some("3.12.1"));
        assert_eq!(version("v20.19.2\n").as_deref(), Some("20.19.2"));
        assert_eq!(version("3.13.0rc1").as_deref(), Some("3.13.0"));
        assert_eq!(version("17.0.15+6-Debian").as_deref(), Some("17.0.15"));
        assert_eq!(version("25").as_deref(), Some("25.0.0"));
        assert_eq!(version("ruby 3.1.2p20 (2022-04-12)").as_deref(), Some("3.1.2"));
        assert_eq!(version("miniconda"), None);
    }
}
