//! PID 1 of a microVM.
//!
//! Without arguments it is process 1 of a machine. `--local DIR ROOT GROUP` serves Unix sockets below DIR instead, with ROOT
//! as the tenant's root and GROUP as the directory of the control group: for tests of the agent on a host.

#![no_main]

use std::ffi::{CStr, OsStr, c_char, c_int};
use std::os::unix::ffi::OsStrExt;

use guest::agent::{AgentError, Setup, Sockets, boot, run};

/// Called by the C library and not by Rust's own start, which aborts where there is neither a console nor a /dev/null: as in
/// a machine that has just begun.
// SAFETY: the name is the one that the C library calls, with this signature, and nothing else in this program has it.
#[unsafe(no_mangle)]
extern "C" fn main(count: c_int, arguments: *const *const c_char) -> c_int {
    let arguments: Vec<&OsStr> = (0..usize::try_from(count).unwrap_or(0))
        .map(|at| {
            // SAFETY: the C library gives `count` strings that live as long as the process.
            OsStr::from_bytes(unsafe { CStr::from_ptr(*arguments.add(at)) }.to_bytes())
        })
        .collect();
    let setup: Result<Setup, AgentError> = match arguments.as_slice() {
        [_, flag, dir, root, group] if *flag == "--local" => {
            Ok(Setup { root: root.into(), group: group.into(), sockets: Sockets::Unix(dir.into()), machine: false })
        }
        _ => boot::machine(),
    };
    let Err(error) = setup.and_then(run);
    let reason = std::error::Error::source(&error).map(ToString::to_string).unwrap_or_default();
    eprintln!("the guest agent ends: {error}: {reason}");
    1
}
