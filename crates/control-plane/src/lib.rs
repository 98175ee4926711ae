//! Functions, versions, roles and concurrency settings: their rules and states.
