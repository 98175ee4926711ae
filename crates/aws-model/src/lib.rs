//! The Lambda service model: routes, shapes, constraints, error shapes and ARNs. No behaviour.
//!
//! `generated/` comes from the botocore model by `cargo xtask model`; what stands beside it interprets it: [`route()`]
//! finds the operation of a request, [`decode()`] turns the request into one of [`types`] or into the [`ApiError`]
//! that Lambda would answer, [`arn`] reads and writes function names.

pub mod arn;
mod blob;
mod decode;
mod error;
mod generated;
mod operation;
mod route;
mod shape;
pub mod sigv4;
mod validate;

pub use blob::Blob;
pub use decode::decode;
pub use error::{ApiError, ErrorType, MessageKey, Rendered};
pub use generated::operations::Operation;
pub use generated::types;
pub use route::{Labels, RouteError, Routed, percent_decode, query_pairs, route};
