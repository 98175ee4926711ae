//! VMM processes from outside: their jail, their pool and their ends. No guest runs here: a shell needs only that
//! `/dev/kvm` makes virtual machines.

mod ends;
mod jail;
mod pool;
mod support;
