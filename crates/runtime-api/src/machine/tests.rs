//! The machine, call by call.
