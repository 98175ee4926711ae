//! Layer names in both their spellings, and the ARNs of layers and of their versions.

use super::Realm;

/// A layer as a request names it, or a version of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LayerParts<'a> {
    /// Absent where a bare name was given.
    pub region: Option<&'a str>,
    /// Absent where a bare name was given.
    pub account: Option<&'a str>,
    pub name: &'a str,
    /// As given: the model allows more digits than any version has.
    pub version: Option<&'a str>,
}

impl<'a> LayerParts<'a> {
    /// Takes apart `NAME`, `arn:PARTITION:lambda:REGION:ACCOUNT:layer:NAME` or the same with `:VERSION`. `None` for
    /// anything else, such as AWS's own `awslayer` ARNs.
    pub fn parse(given: &'a str) -> Option<Self> {
        if !given.contains(':') {
            return Some(Self { region: None, account: None, name: given, version: None });
        }
        let mut parts = given.split(':');
        let [Some("arn"), Some(_partition), Some("lambda"), Some(region), Some(account), Some("layer"), Some(name)] =
            std::array::from_fn(|_| parts.next())
        else {
            return None;
        };
        let version = parts.next();
        let whole = parts.next().is_none();
        whole.then_some(Self { region: Some(region), account: Some(account), name, version })
    }
}

impl Realm {
    /// `arn:aws:lambda:REGION:ACCOUNT:layer:NAME`
    pub fn layer_arn(&self, name: &str) -> String {
        format!("arn:aws:lambda:{}:{}:layer:{name}", self.region, self.account)
    }

    /// `arn:aws:lambda:REGION:ACCOUNT:layer:NAME:VERSION`
    pub fn layer_version_arn(&self, name: &str, version: u64) -> String {
        format!("{}:{version}", self.layer_arn(name))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_arns_are_taken_apart() {
        let realm = Realm { region: "eu-west-1".to_owned(), account: "123456789012".to_owned() };
        let arn = realm.layer_version_arn("deps", 7);
        assert_eq!(arn, "arn:aws:lambda:eu-west-1:123456789012:layer:deps:7");
        let parts = LayerParts::parse(&arn).unwrap();
        assert_eq!((parts.region, parts.account), (Some("eu-west-1"), Some("123456789012")));
        assert_eq!((parts.name, parts.version), ("deps", Some("7")));
        assert_eq!(LayerParts::parse("deps").map(|parts| (parts.name, parts.region)), Some(("deps", None)));
        let arn = realm.layer_arn("deps");
        assert_eq!(LayerParts::parse(&arn).unwrap().version, None);
    }

    #[test]
    fn what_is_no_layer_is_none() {
        for text in
            ["arn:aws:lambda:::awslayer:x", "arn:aws:lambda:r:1:function:f", "a:b", "arn:aws:lambda:r:1:layer:n:1:2"]
        {
            assert_eq!(LayerParts::parse(text), None, "{text}");
        }
    }
}
