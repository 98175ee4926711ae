//! The system calls that each kind of thread may make; any other ends the process.
