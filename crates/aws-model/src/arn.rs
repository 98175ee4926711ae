//! Function names in all their spellings, qualifiers, and the ARNs of functions.
//!
//! A caller may write `name`, `name:qualifier`, `123456789012:function:name[:qualifier]` or the whole ARN, in the path
//! or in a query. The pattern was checked before (see [`crate::decode()`]); here the parts are taken apart and judged
//! in the service's order: reachable region, then agreement of the two qualifiers.

mod layer;

use std::fmt;

use crate::error::ApiError;

pub use self::layer::LayerParts;

/// Where this installation stands: what its ARNs begin with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Realm {
    /// `us-east-1`
    pub region: String,
    /// Twelve digits.
    pub account: String,
}

impl Realm {
    /// `arn:aws:lambda:REGION:ACCOUNT:function:NAME`, with `:QUALIFIER` if there is one.
    pub fn function_arn(&self, name: &str, qualifier: Option<&str>) -> String {
        function_arn(&self.region, &self.account, name, qualifier)
    }

    /// Resolves a function name as given, with the query's `Qualifier` if there was one.
    ///
    /// # Errors
    /// ResourceNotFoundException for another region, InvalidParameterValueException when the two qualifiers differ.
    pub fn resolve(&self, given: &str, qualifier: Option<&str>) -> Result<FunctionRef, ApiError> {
        let parts = NameParts::parse(given);
        if let Some(region) = parts.region
            && region != self.region
        {
            return Err(ApiError::resource_not_found(format!(
                "Functions from '{region}' are not reachable in this region ('{}')",
                self.region
            )));
        }
        // An empty query qualifier is as good as none.
        let qualifier = match (parts.qualifier, qualifier.filter(|text| !text.is_empty())) {
            (Some(derived), Some(specified)) if derived != specified => {
                return Err(ApiError::invalid_parameter_value(
                    "The derived qualifier from the function name does not match the specified qualifier.",
                ));
            }
            (derived, specified) => derived.or(specified).map(Qualifier::parse),
        };
        Ok(FunctionRef {
            name: parts.name.to_owned(),
            account: parts.account.unwrap_or(&self.account).to_owned(),
            qualifier,
        })
    }

    /// The ARN of a reference, with its qualifier if it has one.
    pub fn arn_of(&self, function: &FunctionRef) -> String {
        let qualifier = function.qualifier.as_ref().map(Qualifier::to_string);
        function_arn(&self.region, &function.account, &function.name, qualifier.as_deref())
    }
}

fn function_arn(region: &str, account: &str, name: &str, qualifier: Option<&str>) -> String {
    match qualifier {
        Some(qualifier) => format!("arn:aws:lambda:{region}:{account}:function:{name}:{qualifier}"),
        None => format!("arn:aws:lambda:{region}:{account}:function:{name}"),
    }
}

/// A function as a request names it, in this region.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FunctionRef {
    pub name: String,
    /// The account of the name given, else the installation's.
    pub account: String,
    pub qualifier: Option<Qualifier>,
}

/// What stands behind a function name.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Qualifier {
    /// `$LATEST`
    Latest,
    /// `$LATEST.PUBLISHED`: of functions with capacity providers only.
    LatestPublished,
    /// A published version.
    Version(u64),
    /// Anything else. `$latest` is such a name, one that nothing can have.
    Alias(String),
}

impl Qualifier {
    /// Reads a qualifier. Digits that no version prints (a leading zero, more than 64 bits) are a name that nothing has.
    pub fn parse(text: &str) -> Self {
        match text {
            "$LATEST" => Self::Latest,
            "$LATEST.PUBLISHED" => Self::LatestPublished,
            _ => match text.parse::<u64>() {
                Ok(version) if version.to_string() == text => Self::Version(version),
                _ => Self::Alias(text.to_owned()),
            },
        }
    }
}

impl fmt::Display for Qualifier {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Latest => formatter.write_str("$LATEST"),
            Self::LatestPublished => formatter.write_str("$LATEST.PUBLISHED"),
            Self::Version(version) => write!(formatter, "{version}"),
            Self::Alias(name) => formatter.write_str(name),
        }
    }
}

/// A function name taken apart, as the model's pattern groups it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NameParts<'a> {
    pub region: Option<&'a str>,
    pub account: Option<&'a str>,
    pub name: &'a str,
    pub qualifier: Option<&'a str>,
}

impl<'a> NameParts<'a> {
    /// Takes apart a name that matches the model's pattern; of any other text the last parts are taken as they are.
    pub fn parse(given: &'a str) -> Self {
        let mut rest = given;
        let mut parts = Self { region: None, account: None, name: given, qualifier: None };
        if !given.contains(':') {
            return parts;
        }
        if let Some(after) = rest.strip_prefix("arn:")
            && let Some((_, after)) = after.split_once(":lambda:")
        {
            rest = after;
        } else if let Some(after) = rest.strip_prefix("arn:lambda:") {
            rest = after;
        }
        if let Some((first, after)) = front(rest)
            && is_region(first)
        {
            parts.region = Some(first);
            rest = after;
        }
        if let Some((first, after)) = front(rest)
            && first.len() == 12
            && first.bytes().all(|byte| byte.is_ascii_digit())
        {
            parts.account = Some(first);
            rest = after;
        }
        if let Some(("function", after)) = front(rest) {
            rest = after;
        }
        match rest.split_once(':') {
            Some((name, qualifier)) => {
                parts.name = name;
                parts.qualifier = Some(qualifier);
            }
            None => parts.name = rest,
        }
        parts
    }
}

/// Splits an optional leading part off, unless what follows can only be a qualifier: `function:$LATEST` is a function
/// of that name.
fn front(text: &str) -> Option<(&str, &str)> {
    text.split_once(':').filter(|(_, after)| !after.starts_with('$'))
}

fn is_region(text: &str) -> bool {
    let mut parts = text.rsplitn(3, '-');
    let (Some(number), Some(place), Some(area)) = (parts.next(), parts.next(), parts.next()) else { return false };
    let area_known = match area.split_once('-') {
        Some((head, tail)) if tail == "gov" || tail.starts_with("iso") => head.len() == 2,
        Some(("eusc", tail)) => tail.len() == 2,
        Some(_) => false,
        None => area.len() == 2,
    };
    let lower = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_lowercase() || byte == b'-');
    area_known && lower(area) && lower(place) && number.len() == 1 && number.bytes().all(|byte| byte.is_ascii_digit())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parts(given: &str) -> (Option<&str>, Option<&str>, &str, Option<&str>) {
        let NameParts { region, account, name, qualifier } = NameParts::parse(given);
        (region, account, name, qualifier)
    }

    #[test]
    fn every_spelling_is_taken_apart() {
        let (region, account) = (Some("us-east-1"), Some("123456789012"));
        assert_eq!(parts("f"), (None, None, "f", None));
        assert_eq!(parts("f:1"), (None, None, "f", Some("1")));
        assert_eq!(parts("f:$LATEST"), (None, None, "f", Some("$LATEST")));
        assert_eq!(parts("123456789012:function:f"), (None, account, "f", None));
        assert_eq!(parts("123456789012:f:live"), (None, account, "f", Some("live")));
        assert_eq!(parts("function:f"), (None, None, "f", None));
        assert_eq!(parts("us-east-1:123456789012:function:f"), (region, account, "f", None));
        assert_eq!(parts("arn:aws:lambda:us-east-1:123456789012:function:f"), (region, account, "f", None));
        assert_eq!(parts("arn:aws-us-gov:lambda:us-gov-west-1:123456789012:function:f:7").0, Some("us-gov-west-1"));
        assert_eq!(parts("arn:aws:lambda:us-east-1:123456789012:function:f:7"), (region, account, "f", Some("7")));
    }

    #[test]
    fn a_function_may_be_called_function() {
        assert_eq!(parts("function"), (None, None, "function", None));
        assert_eq!(parts("function:$LATEST"), (None, None, "function", Some("$LATEST")));
        assert_eq!(parts("function:function:1"), (None, None, "function", Some("1")));
        assert_eq!(parts("123456789012"), (None, None, "123456789012", None));
    }

    #[test]
    fn region_comes_before_qualifier() {
        let realm = Realm { region: "eu-west-1".to_owned(), account: "123456789012".to_owned() };
        let error = realm.resolve("arn:aws:lambda:ap-southeast-1:123456789012:function:f:1", Some("2")).unwrap_err();
        assert_eq!(error.message, "Functions from 'ap-southeast-1' are not reachable in this region ('eu-west-1')");
        let error = realm.resolve("f:1", Some("2")).unwrap_err();
        assert_eq!(
            error.message,
            "The derived qualifier from the function name does not match the specified qualifier."
        );
        let function = realm.resolve("f:1", Some("1")).unwrap();
        assert_eq!(function.qualifier, Some(Qualifier::Version(1)));
        assert_eq!(realm.arn_of(&function), "arn:aws:lambda:eu-west-1:123456789012:function:f:1");
    }

    #[test]
    fn qualifiers_are_read_strictly() {
        assert_eq!(Qualifier::parse("$latest"), Qualifier::Alias("$latest".to_owned()));
        assert_eq!(Qualifier::parse("007"), Qualifier::Alias("007".to_owned()));
        assert_eq!(Qualifier::parse("12"), Qualifier::Version(12));
        for text in ["$LATEST", "$LATEST.PUBLISHED", "3", "live"] {
            assert_eq!(Qualifier::parse(text).to_string(), text);
        }
    }
}
