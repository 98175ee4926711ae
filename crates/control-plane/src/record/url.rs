//! The URL of a function or alias: its address, who may call it, and what browsers are told.

use serde::{Deserialize, Serialize};

use super::Timestamp;

/// A function URL.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct UrlConfig {
    /// The first label of its host: 32 letters and digits, never used for another URL.
    pub id: String,
    pub auth: UrlAuth,
    pub cors: Option<Cors>,
    pub mode: InvokeMode,
    pub created: Timestamp,
    pub modified: Timestamp,
}

/// Who may call a URL.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum UrlAuth {
    /// Everyone whom the resource policy allows.
    None,
    /// Callers with a signature.
    AwsIam,
}

impl UrlAuth {
    /// As the API spells it.
    pub fn name(self) -> &'static str {
        match self {
            Self::None => "NONE",
            Self::AwsIam => "AWS_IAM",
        }
    }
}

/// How a URL answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum InvokeMode {
    /// When the whole response is there.
    Buffered,
    /// As the response comes.
    ResponseStream,
}

impl InvokeMode {
    /// As the API spells it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Buffered => "BUFFERED",
            Self::ResponseStream => "RESPONSE_STREAM",
        }
    }
}

/// What browsers are told of a URL's cross-origin use. What was not given is not shown.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cors {
    pub allow_credentials: Option<bool>,
    pub allow_headers: Option<Vec<String>>,
    pub allow_methods: Option<Vec<String>>,
    pub allow_origins: Option<Vec<String>>,
    pub expose_headers: Option<Vec<String>>,
    /// Seconds for which a browser may keep the answer to a preflight request.
    pub max_age: Option<i32>,
}
