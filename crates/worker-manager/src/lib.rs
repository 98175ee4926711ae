//! The decision, per invocation: warm, cold, wait or throttle; pools, keep-alive, provisioned concurrency.
