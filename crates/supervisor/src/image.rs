//! A process as an image: what one was at some moment, left for others of the same sandbox' kind to go on from.
//!
//! ```text
//! publication's sandbox                                   a clone's sandbox
//! runtime -- fork -- leave: memory --> socket --> server --> image, sealed --> replace: memory <-- a waiting fork
//! ```
//!
//! Everything here runs as a tenant: no privilege, no capability, every filter in place. The server carries bytes that it does not
//! look at, and what is made of them is what the tenant could have made by itself. Memory alone is carried over; descriptors, files
//! and directories are the runtime's to close and open (`firelet_image.py`), and what cannot be carried it refuses.
//!
//! The interpreter calls this as the initialization of two extension modules, which both fail on purpose, as in
//! [`zygote`](crate::zygote): `firelet_leave` returns in the process that goes on, `firelet_replace` never does when all goes well.
//!
//! Works on x86-64.

#[cfg(target_arch = "x86_64")]
mod format;
#[cfg(target_arch = "x86_64")]
mod leave;
#[cfg(target_arch = "x86_64")]
mod machine;
#[cfg(target_arch = "x86_64")]
mod maps;
#[cfg(target_arch = "x86_64")]
mod replace;
#[cfg(target_arch = "x86_64")]
mod thread;

use std::ffi::c_void;
use std::os::fd::RawFd;

/// Whether processes can be kept as images on this processor.
pub const IS_SUPPORTED: bool = cfg!(target_arch = "x86_64");

/// The numbers by which the runtime hands over its descriptors: highest ones, which functions hardly have.
#[cfg(target_arch = "x86_64")]
const LIBRARY: RawFd = 1020;
#[cfg(target_arch = "x86_64")]
const IMAGE: RawFd = 1021;
const SOCKET: RawFd = 1022;

/// Bytes that end what is written to the server.
pub const TRAILER_BYTES: usize = 512;
const TRAILER_MAGIC: &[u8; 8] = b"FIRETAIL";

/// What ends an image on its way to the server: that it is whole, or why there is none.
///
/// ```text
///   magic (8) | 0 for whole, 1 for a reason | the reason, zeros
/// ```
///
/// # Errors
/// The reason, as it was told: by a process that may tell anything.
pub fn read_trailer(trailer: &[u8; TRAILER_BYTES]) -> Result<(), String> {
    let cut = || "it ended before its image was whole".to_owned();
    match trailer.strip_prefix(TRAILER_MAGIC).and_then(|rest| rest.split_first()) {
        Some((0, _)) => Ok(()),
        Some((1, reason)) => {
            let end = reason.iter().position(|byte| *byte == 0).unwrap_or(reason.len());
            let printable = |letter: char| if letter.is_control() { '?' } else { letter };
            Err(String::from_utf8_lossy(&reason[..end]).chars().map(printable).collect())
        }
        _ => Err(cut()),
    }
}

fn write_trailer(trailer: &mut [u8; TRAILER_BYTES], reason: Option<&str>) {
    trailer[..8].copy_from_slice(TRAILER_MAGIC);
    trailer[8] = u8::from(reason.is_some());
    for (to, from) in trailer[9..].iter_mut().zip(reason.unwrap_or_default().bytes()) {
        *to = from;
    }
}

/// Leaves an image of this process; see the module. Always null, which Python takes for a failure.
#[unsafe(no_mangle)]
pub extern "C" fn PyInit_firelet_leave() -> *mut c_void {
    match leave_image() {
        Ok(()) => std::ptr::null_mut(),
        Err(reason) => refuse(&reason),
    }
}

/// Becomes the process of an image; see the module. Always null, and only if that failed.
#[unsafe(no_mangle)]
pub extern "C" fn PyInit_firelet_replace() -> *mut c_void {
    tell(why_not_replaced().as_bytes());
    std::ptr::null_mut()
}

#[cfg(target_arch = "x86_64")]
fn leave_image() -> Result<(), String> {
    leave::leave(SOCKET).map_err(|error| error.to_string())
}

#[cfg(target_arch = "x86_64")]
fn why_not_replaced() -> String {
    match replace::replace(LIBRARY, IMAGE, SOCKET) {
        Ok(never) => match never {},
        Err(error) => error.to_string(),
    }
}

#[cfg(not(target_arch = "x86_64"))]
fn leave_image() -> Result<(), String> {
    Err(why_not_replaced())
}

#[cfg(not(target_arch = "x86_64"))]
fn why_not_replaced() -> String {
    "processes can be kept on x86-64 only".to_owned()
}

/// Says why there is no image, and ends: what has been taken from the process by then it does not get back.
fn refuse(reason: &str) -> ! {
    let mut trailer = [0; TRAILER_BYTES];
    write_trailer(&mut trailer, Some(reason));
    tell(&trailer);
    crate::sys::exit_now(0)
}

fn tell(bytes: &[u8]) {
    // SAFETY: bytes of their length; if nobody listens there is nobody to tell.
    unsafe { libc::send(SOCKET, bytes.as_ptr().cast(), bytes.len(), libc::MSG_NOSIGNAL) };
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_trailer_says_what_it_was_told() {
        let mut trailer = [0; TRAILER_BYTES];
        assert!(read_trailer(&trailer).unwrap_err().contains("before its image was whole"));
        write_trailer(&mut trailer, None);
        assert_eq!(read_trailer(&trailer), Ok(()));
        write_trailer(&mut trailer, Some(&"x".repeat(TRAILER_BYTES * 2)));
        assert_eq!(read_trailer(&trailer), Err("x".repeat(TRAILER_BYTES - 9)));
        let mut trailer = [0; TRAILER_BYTES];
        write_trailer(&mut trailer, Some("a\nb\u{1b}[31m"));
        assert_eq!(read_trailer(&trailer), Err("a?b?[31m".to_owned()));
    }
}
