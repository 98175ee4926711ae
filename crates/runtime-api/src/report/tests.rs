//! Filters and parsers of error reports.
