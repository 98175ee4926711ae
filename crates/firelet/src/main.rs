//! The `firelet` binary.
fn main() {}
