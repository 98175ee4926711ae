//! Signed HTTP and HTTPS calls that Firelet itself makes to AWS-compatible services: code from S3, side services that
//! others keep, logs that are also written elsewhere.
//!
//! Nothing is called that was not configured: a [`Service`] has an [`Endpoint`] because the configuration or the
//! environment names one ([`Endpoints::resolve`]), and otherwise does not exist. [`Client::send`] signs with SigV4,
//! retries with jitter, and bounds time and size of every answer; [`s3`] and [`logs`] are the two services that need
//! more than that. What the answers mean to functions is decided elsewhere.

mod client;
mod endpoint;
pub mod logs;
mod retry;
pub mod s3;
mod service;

pub use aws_model::sigv4::Credentials;
pub use client::{Answer, Call, Client, Identity, Options, SendError, StartError};
pub use endpoint::{AWS, Endpoint, EndpointError, Endpoints};
pub use service::Service;
