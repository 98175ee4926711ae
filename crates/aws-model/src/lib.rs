//! The Lambda service model: routes, shapes, constraints and errors, generated from the botocore model; no behaviour.
