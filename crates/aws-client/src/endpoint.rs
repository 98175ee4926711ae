//! Where services are: the configuration's word, then that of AWS's own variables, else nowhere.
//!
//! The bare `AWS_ENDPOINT_URL` is not read. It is what people point at Firelet itself, in the very shell from which they
//! may start it, and Firelet must not call itself.

use std::collections::BTreeMap;

use hyper::Uri;
use hyper::http::uri::{Authority, Scheme};

use crate::service::Service;

/// What a configuration says in place of a URL to mean AWS itself.
pub const AWS: &str = "aws";

/// The variable that, set to `true`, has all variables with endpoints ignored.
const IGNORE: &str = "AWS_IGNORE_CONFIGURED_ENDPOINT_URLS";

/// Where a service is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Endpoint {
    pub(crate) scheme: Scheme,
    pub(crate) authority: Authority,
    /// What precedes every path; does not end in a slash.
    pub(crate) prefix: String,
    /// AWS's own: buckets of S3 are part of the host's name there.
    pub(crate) aws: bool,
}

impl std::fmt::Display for Endpoint {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(formatter, "{}://{}{}", self.scheme, self.authority, self.prefix)
    }
}

/// A setting that is no endpoint.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{setting} must be a URL such as http://127.0.0.1:5000, or \"aws\" for AWS itself, not {value:?}")]
pub struct EndpointError {
    /// `endpoints.s3` or the name of a variable.
    pub setting: String,
    /// What it said.
    pub value: String,
}

impl Endpoint {
    /// Reads `http://HOST:PORT`, `https://HOST/PREFIX` or `aws`.
    fn parse(service: Service, value: &str, region: &str) -> Option<Self> {
        if value == AWS {
            let authority = service.aws_host(region).parse().ok()?;
            return Some(Self { scheme: Scheme::HTTPS, authority, prefix: String::new(), aws: true });
        }
        let parts = value.trim().parse::<Uri>().ok()?.into_parts();
        let scheme = parts.scheme.filter(|scheme| *scheme == Scheme::HTTP || *scheme == Scheme::HTTPS)?;
        let authority = parts.authority.filter(|authority| !authority.as_str().contains('@'))?;
        let path = parts.path_and_query?;
        if path.query().is_some() {
            return None;
        }
        Some(Self { scheme, authority, prefix: path.path().trim_end_matches('/').to_owned(), aws: false })
    }
}

/// The endpoints of the services that have one.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Endpoints(BTreeMap<Service, Endpoint>);

impl Endpoints {
    /// Looks at the configuration first, then at the environment. An empty value stands for none, so a configuration can
    /// take away what a variable gives.
    ///
    /// # Errors
    /// A value is no endpoint.
    pub fn resolve(
        configured: &BTreeMap<Service, String>,
        environment: impl Fn(&str) -> Option<String>,
        region: &str,
    ) -> Result<Self, EndpointError> {
        let ignore = environment(IGNORE).is_some_and(|value| value.eq_ignore_ascii_case("true"));
        let mut endpoints = BTreeMap::new();
        for service in Service::ALL {
            let (setting, value) = match configured.get(&service) {
                Some(value) => (format!("endpoints.{service}"), value.clone()),
                None if ignore => continue,
                None => (service.variable().to_owned(), environment(service.variable()).unwrap_or_default()),
            };
            if value.is_empty() {
                continue;
            }
            match Endpoint::parse(service, &value, region) {
                Some(endpoint) => drop(endpoints.insert(service, endpoint)),
                None => return Err(EndpointError { setting, value }),
            }
        }
        Ok(Self(endpoints))
    }

    /// Where a service is, if it is anywhere.
    #[must_use]
    pub fn get(&self, service: Service) -> Option<&Endpoint> {
        self.0.get(&service)
    }

    /// All that there are.
    pub fn iter(&self) -> impl Iterator<Item = (Service, &Endpoint)> {
        self.0.iter().map(|(service, endpoint)| (*service, endpoint))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn resolve(configured: &[(Service, &str)], environment: &[(&str, &str)]) -> Result<Vec<String>, EndpointError> {
        let configured = configured.iter().map(|(service, value)| (*service, (*value).to_owned())).collect();
        let look = |name: &str| {
            environment.iter().find(|(variable, _)| *variable == name).map(|(_, value)| (*value).to_owned())
        };
        let endpoints = Endpoints::resolve(&configured, look, "eu-west-1")?;
        Ok(endpoints.iter().map(|(service, endpoint)| format!("{service} {endpoint}")).collect())
    }

    #[test]
    fn the_configuration_comes_before_the_environment() {
        let variables = [("AWS_ENDPOINT_URL_S3", "http://env:1"), ("AWS_ENDPOINT_URL_CLOUDWATCH_LOGS", "https://l/p/")];
        assert_eq!(resolve(&[], &variables).unwrap(), ["s3 http://env:1", "logs https://l/p"]);
        assert_eq!(
            resolve(&[(Service::S3, "http://file:2")], &variables).unwrap(),
            ["s3 http://file:2", "logs https://l/p"]
        );
        assert_eq!(resolve(&[(Service::S3, "")], &variables).unwrap(), ["logs https://l/p"]);
        let ignoring = [variables[0], ("AWS_IGNORE_CONFIGURED_ENDPOINT_URLS", "TRUE")];
        assert_eq!(resolve(&[(Service::Sqs, "http://q")], &ignoring).unwrap(), ["sqs http://q"]);
    }

    #[test]
    fn the_variable_for_all_services_is_firelet_s_own_address() {
        assert_eq!(resolve(&[], &[("AWS_ENDPOINT_URL", "http://127.0.0.1:9000")]).unwrap(), [""; 0]);
    }

    #[test]
    fn aws_itself_has_to_be_named() {
        let all: Vec<_> = Service::ALL.iter().map(|service| (*service, AWS)).collect();
        assert_eq!(
            resolve(&all, &[]).unwrap(),
            [
                "s3 https://s3.eu-west-1.amazonaws.com",
                "sqs https://sqs.eu-west-1.amazonaws.com",
                "sns https://sns.eu-west-1.amazonaws.com",
                "kinesis https://kinesis.eu-west-1.amazonaws.com",
                "dynamodb_streams https://streams.dynamodb.eu-west-1.amazonaws.com",
                "logs https://logs.eu-west-1.amazonaws.com",
                "iam https://iam.amazonaws.com",
                "sts https://sts.eu-west-1.amazonaws.com",
                "ecr https://api.ecr.eu-west-1.amazonaws.com",
            ]
        );
    }

    #[test]
    fn what_is_no_endpoint_is_refused_by_the_name_of_its_setting() {
        for value in ["127.0.0.1:5000", "ftp://x", "http://user:pass@x", "http://x?y=1", "/path", "http://"] {
            let error = resolve(&[(Service::S3, value)], &[]).unwrap_err();
            assert_eq!(error.setting, "endpoints.s3", "{value}");
        }
        let error = resolve(&[], &[("AWS_ENDPOINT_URL_IAM", "nonsense")]).unwrap_err();
        assert_eq!(
            error.to_string(),
            "AWS_ENDPOINT_URL_IAM must be a URL such as http://127.0.0.1:5000, or \"aws\" for AWS itself, not \"nonsense\""
        );
    }
}
