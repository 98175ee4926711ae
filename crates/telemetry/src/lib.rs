//! Log storage and queries, log line formats, metering.
