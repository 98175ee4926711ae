//! Code packages that lie in S3: what the control plane asks of whoever can fetch them.

use std::fmt;

use aws_model::{ApiError, types};
use serde::{Deserialize, Serialize};
use store::{BlobRead, BoxFuture};

/// Where a code package lies.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ObjectRef {
    pub bucket: String,
    pub key: String,
    /// One version of the object; the current one without it.
    pub version: Option<String>,
}

impl ObjectRef {
    pub(crate) fn resolved(&self) -> types::ResolvedS3Object {
        types::ResolvedS3Object {
            s3_bucket: Some(self.bucket.clone()),
            s3_key: Some(self.key.clone()),
            s3_object_version: self.version.clone(),
        }
    }
}

/// An object that was fetched whole.
pub struct FetchedObject {
    /// Its bytes, from the beginning.
    pub content: Box<dyn BlobRead>,
    /// How many there are.
    pub size: u64,
    /// The version that was read, where the bucket keeps versions.
    pub version: Option<String>,
}

impl fmt::Debug for FetchedObject {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut shown = formatter.debug_struct("FetchedObject");
        shown.field("size", &self.size).field("version", &self.version).finish_non_exhaustive()
    }
}

/// An object on its way.
pub type Fetching<'a> = BoxFuture<'a, Result<FetchedObject, ObjectError>>;

/// Fetches code packages from S3. Called from request handlers of create, update and layer publication, at any time and
/// for the same object too, after the request's other parts were found to be right.
pub trait Objects: Send + Sync + fmt::Debug {
    /// Reads an object of at most `limit` bytes; of a larger one no more than that is read.
    fn fetch<'a>(&'a self, object: &'a ObjectRef, limit: u64) -> Fetching<'a>;
}

/// Why an object could not be fetched.
#[derive(Debug, thiserror::Error)]
pub enum ObjectError {
    /// This server was told of no S3.
    #[error(
        "this server has no S3 endpoint: set `s3` below `[endpoints]` in its configuration, or AWS_ENDPOINT_URL_S3 in \
         its environment"
    )]
    Unconfigured,
    /// S3 refused.
    #[error("S3 answered {code}: {message}")]
    Refused {
        /// S3's code, such as `NoSuchKey`.
        code: String,
        /// S3's words.
        message: String,
    },
    /// It is larger than the caller takes.
    #[error("the object is larger than {limit} bytes")]
    TooLarge {
        /// What the caller takes.
        limit: u64,
    },
    /// S3 gave no answer, or only half of one.
    #[error("the object could not be fetched: {0}")]
    Unreachable(String),
    /// The object could not be kept here.
    #[error("the object could not be written on this host")]
    Disk(#[source] std::io::Error),
}

impl ObjectError {
    /// What the API's caller reads.
    pub(crate) fn refusal(self, object: &ObjectRef) -> ApiError {
        tracing::debug!(error = %self, bucket = object.bucket, key = object.key, "a code package was not fetched");
        match self {
            Self::Refused { code, message } if code == "AccessDenied" => ApiError::access_denied(format!(
                "Your access has been denied by S3, please make sure your request credentials have permission to \
                 GetObject for {}/{}. S3 Error Code: {code}. S3 Error Message: {message}",
                object.bucket, object.key
            )),
            Self::Refused { code, message } => ApiError::invalid_parameter_value(format!(
                "Error occurred while GetObject. S3 Error Code: {code}. S3 Error Message: {message}"
            )),
            Self::TooLarge { limit } => {
                ApiError::invalid_parameter_value(format!("Unzipped size must be smaller than {limit} bytes"))
            }
            Self::Unconfigured => {
                ApiError::invalid_parameter_value(format!("Code cannot be taken from S3, because {self}."))
            }
            Self::Unreachable(_) => ApiError::service(format!("Error occurred while GetObject: {self}.")),
            Self::Disk(error) => {
                tracing::error!(%error, "a code package from S3 could not be written");
                ApiError::service("The code package could not be stored.")
            }
        }
    }
}

/// No S3 at all.
#[derive(Debug, Clone, Copy, Default)]
pub struct NoObjects;

impl Objects for NoObjects {
    fn fetch<'a>(&'a self, _: &'a ObjectRef, _: u64) -> Fetching<'a> {
        Box::pin(std::future::ready(Err(ObjectError::Unconfigured)))
    }
}
