//! The Lambda Runtime API: a state machine without I/O, and its HTTP server.
