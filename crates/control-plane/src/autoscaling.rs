//! Application Auto Scaling of provisioned concurrency.

pub mod record;
pub mod schedule;
