//! Metadata and blobs: traits, SQLite and file backends, one contract suite.
