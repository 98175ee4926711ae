//! What the configuration and AWS's own variables say of other services: their endpoints, credentials, region, account.

use std::collections::BTreeMap;

use anyhow::Context;
use aws_client::{Client, Credentials, Endpoints, Options, Service};
use serde::{Deserialize, Serialize};

use crate::config::Config;

/// Endpoints of services by name (`s3 = "http://127.0.0.1:5000"`, or `"aws"` for AWS itself).
pub type EndpointSettings = BTreeMap<Service, String>;

/// The credentials with which Firelet calls other services. They are not shown with the settings.
#[derive(Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct AwsSettings {
    /// Default: AWS_ACCESS_KEY_ID of the environment.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub access_key_id: Option<String>,
    /// Default: AWS_SECRET_ACCESS_KEY of the environment.
    #[serde(skip_serializing)]
    pub secret_access_key: Option<String>,
    /// Of temporary credentials. Default: AWS_SESSION_TOKEN of the environment.
    #[serde(skip_serializing)]
    pub session_token: Option<String>,
}

impl std::fmt::Debug for AwsSettings {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("AwsSettings").field("access_key_id", &self.access_key_id).finish_non_exhaustive()
    }
}

impl AwsSettings {
    /// The credentials that are set, else those of the environment.
    ///
    /// # Errors
    /// One half of them is missing.
    fn credentials(&self, look: impl Fn(&str) -> Option<String>) -> anyhow::Result<Option<Credentials>> {
        let (id, secret, token) = match &self.access_key_id {
            Some(id) => (Some(id.clone()), self.secret_access_key.clone(), self.session_token.clone()),
            None => (look("AWS_ACCESS_KEY_ID"), look("AWS_SECRET_ACCESS_KEY"), look("AWS_SESSION_TOKEN")),
        };
        match (id, secret) {
            (Some(access_key_id), Some(secret_access_key)) => {
                Ok(Some(Credentials { access_key_id, secret_access_key, session_token: token }))
            }
            (None, None) if self.secret_access_key.is_none() => Ok(None),
            _ => {
                anyhow::bail!("access_key_id and secret_access_key below [aws] (or in the environment) belong together")
            }
        }
    }
}

/// A variable of the environment; an empty one is none.
pub fn variable(name: &str) -> Option<String> {
    std::env::var(name).ok().filter(|value| !value.is_empty())
}

/// The region and the account that AWS's variables name.
pub fn realm(look: impl Fn(&str) -> Option<String>) -> (Option<String>, Option<String>) {
    (look("AWS_REGION").or_else(|| look("AWS_DEFAULT_REGION")), look("AWS_ACCOUNT_ID"))
}

/// The client for the services that have an endpoint; `None` where none has.
pub fn client(config: &Config) -> anyhow::Result<Option<Client>> {
    let endpoints = Endpoints::resolve(&config.endpoints, variable, &config.region)?;
    if endpoints.iter().next().is_none() {
        return Ok(None);
    }
    let credentials = config.aws.credentials(variable)?;
    let client = Client::new(Options::new(&config.region, credentials), endpoints);
    client.map(Some).context("the services below [endpoints] cannot be called")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings(text: &str) -> AwsSettings {
        toml::from_str(text).unwrap()
    }

    fn environment(name: &str) -> Option<String> {
        let variables = [("AWS_ACCESS_KEY_ID", "env"), ("AWS_SECRET_ACCESS_KEY", "s"), ("AWS_SESSION_TOKEN", "t")];
        variables.iter().find(|(variable, _)| *variable == name).map(|(_, value)| (*value).to_owned())
    }

    #[test]
    fn credentials_come_whole_from_one_place() {
        let file = settings("access_key_id = 'file'\nsecret_access_key = 'x'");
        let found = file.credentials(environment).unwrap().unwrap();
        assert_eq!((found.access_key_id.as_str(), found.session_token), ("file", None));
        let found = AwsSettings::default().credentials(environment).unwrap().unwrap();
        assert_eq!((found.access_key_id.as_str(), found.session_token.as_deref()), ("env", Some("t")));
        assert_eq!(AwsSettings::default().credentials(|_| None).unwrap(), None);
        assert!(settings("access_key_id = 'file'").credentials(environment).is_err());
        assert!(settings("secret_access_key = 'x'").credentials(|_| None).is_err());
    }

    #[test]
    fn secrets_are_neither_written_nor_printed() {
        let file = settings("access_key_id = 'file'\nsecret_access_key = 'hush'\nsession_token = 'hush'");
        assert!(!toml::to_string(&file).unwrap().contains("hush"));
        assert!(!format!("{file:?}").contains("hush"));
    }

    #[test]
    fn the_region_of_the_environment_is_that_of_the_sdks() {
        let look = |name: &str| (name == "AWS_DEFAULT_REGION").then(|| "eu-west-1".to_owned());
        assert_eq!(realm(look), (Some("eu-west-1".to_owned()), None));
    }
}
