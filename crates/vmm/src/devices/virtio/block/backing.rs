//! The file behind a disk.

use std::fs::File;
use std::io::{self, Seek, SeekFrom};
use std::os::fd::AsRawFd;

use rustix::fs::FallocateFlags;
use rustix::io::Errno;

use super::SECTOR;

/// Most pieces of memory in one system call (`UIO_MAXIOV`).
const PIECES: usize = 1024;

/// A file of fixed length.
pub(super) struct Backing {
    file: File,
    bytes: u64,
    read_only: bool,
}

/// Why a request failed, as the driver may know it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Failure {
    Io,
    Unsupported,
}

impl Backing {
    pub(super) fn new(mut file: File, read_only: bool) -> io::Result<Backing> {
        // A block device has no length in its metadata.
        let bytes = file.seek(SeekFrom::End(0))?;
        if !bytes.is_multiple_of(SECTOR) {
            let message = format!("a disk's length must be a multiple of {SECTOR} bytes, and {bytes} is not");
            return Err(io::Error::new(io::ErrorKind::InvalidInput, message));
        }
        Ok(Backing { file, bytes, read_only })
    }

    pub(super) fn bytes(&self) -> u64 {
        self.bytes
    }

    pub(super) fn read_only(&self) -> bool {
        self.read_only
    }

    /// Reads from byte `at` on until `pieces` are full. The caller has checked that all lies within the length, so that a
    /// file that ends earlier has been cut since, which is an error and no zeros.
    pub(super) fn read(&self, at: u64, pieces: Vec<libc::iovec>) -> Result<(), Failure> {
        self.transfer(at, pieces, |fd, pieces, count, at| {
            // SAFETY: the pieces lie in the guest's memory, which stays mapped while its device is active; the kernel
            // writes nothing else, and memory of the guest is never borrowed as a Rust slice.
            unsafe { libc::preadv(fd, pieces, count, at) }
        })
    }

    /// Writes `pieces` from byte `at` on.
    pub(super) fn write(&self, at: u64, pieces: Vec<libc::iovec>) -> Result<(), Failure> {
        if self.read_only {
            return Err(Failure::Io);
        }
        self.transfer(at, pieces, |fd, pieces, count, at| {
            // SAFETY: as for reading; the kernel only reads the pieces.
            unsafe { libc::pwritev(fd, pieces, count, at) }
        })
    }

    /// Makes what was written durable.
    pub(super) fn flush(&self) -> Result<(), Failure> {
        if self.read_only { Ok(()) } else { rustix::fs::fdatasync(&self.file).map_err(failure) }
    }

    /// Makes a range read as zeros; `unmap` gives its space back to the host.
    pub(super) fn zero(&self, at: u64, bytes: u64, unmap: bool) -> Result<(), Failure> {
        if self.read_only {
            return Err(Failure::Io);
        }
        if bytes == 0 {
            return Ok(());
        }
        let mode = if unmap { FallocateFlags::PUNCH_HOLE } else { FallocateFlags::ZERO_RANGE };
        rustix::fs::fallocate(&self.file, mode | FallocateFlags::KEEP_SIZE, at, bytes).map_err(failure)
    }

    /// Calls `call` until all pieces are done, whatever it does at once.
    fn transfer(
        &self,
        at: u64,
        mut pieces: Vec<libc::iovec>,
        call: impl Fn(i32, *const libc::iovec, i32, i64) -> isize,
    ) -> Result<(), Failure> {
        let mut at = i64::try_from(at).map_err(|_| Failure::Io)?;
        let mut rest = &mut pieces[..];
        while !rest.is_empty() {
            let count = rest.len().min(PIECES);
            let done = call(self.file.as_raw_fd(), rest.as_ptr(), count as i32, at);
            match done {
                ..0 => match io::Error::last_os_error() {
                    error if error.kind() == io::ErrorKind::Interrupted => {}
                    error => {
                        tracing::debug!(%error, "a disk request failed");
                        return Err(Failure::Io);
                    }
                },
                0 => return Err(Failure::Io),
                1.. => {
                    at += done as i64;
                    rest = advance(rest, done as usize);
                }
            }
        }
        Ok(())
    }
}

/// What is left of `pieces` after the first `done` bytes.
fn advance(pieces: &mut [libc::iovec], mut done: usize) -> &mut [libc::iovec] {
    let mut whole = 0;
    for piece in pieces.iter_mut() {
        if done < piece.iov_len {
            piece.iov_base = piece.iov_base.wrapping_byte_add(done);
            piece.iov_len -= done;
            break;
        }
        done -= piece.iov_len;
        whole += 1;
    }
    &mut pieces[whole..]
}

fn failure(error: Errno) -> Failure {
    match error {
        // The file system cannot do it at all, which the driver may know.
        Errno::OPNOTSUPP | Errno::NOSYS => Failure::Unsupported,
        error => {
            tracing::debug!(%error, "a disk request failed");
            Failure::Io
        }
    }
}
