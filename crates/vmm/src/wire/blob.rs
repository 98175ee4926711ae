//! What is too long for a packet: saved states and lists of ranges, in memory files that the host makes.
//!
//! The other side holds the same file and may write it, cut it off or grow it at any time: it is read once, by position,
//! to a bounded length, and never mapped.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;

/// Longest state of a machine without its memory, in bytes.
pub(crate) const MAX_STATE: u64 = 16 << 20;
/// Most ranges in a list: what 64 GiB of memory can have in granules of 64 KiB, every other one.
pub(crate) const MAX_RANGES: u64 = 1 << 19;

const RANGE_BYTES: usize = 16;

/// Puts a state into an empty file.
pub(crate) fn write_state(file: &File, state: &[u8]) -> io::Result<()> {
    if state.len() as u64 > MAX_STATE {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "the state of the machine is too long"));
    }
    file.write_all_at(state, 0)
}

/// Reads a state of `length` bytes.
pub(crate) fn read_state(file: &File, length: u64) -> io::Result<Vec<u8>> {
    if length > MAX_STATE {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "the state of the machine is too long"));
    }
    read(file, length as usize)
}

/// Puts ranges into an empty file.
pub(crate) fn write_ranges(file: &File, ranges: &[Range<u64>]) -> io::Result<()> {
    if ranges.len() as u64 > MAX_RANGES {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "the memory of the machine has too many ranges"));
    }
    let mut bytes = Vec::with_capacity(ranges.len() * RANGE_BYTES);
    for range in ranges {
        bytes.extend_from_slice(&range.start.to_le_bytes());
        bytes.extend_from_slice(&range.end.to_le_bytes());
    }
    file.write_all_at(&bytes, 0)
}

/// Reads `count` ranges. Whether they make sense is the caller's to find out.
pub(crate) fn read_ranges(file: &File, count: u64) -> io::Result<Vec<Range<u64>>> {
    if count > MAX_RANGES {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "a list of ranges is too long"));
    }
    let bytes = read(file, count as usize * RANGE_BYTES)?;
    let number = |bytes: &[u8]| bytes.iter().rev().fold(0, |number, byte| number << 8 | u64::from(*byte));
    Ok(bytes.chunks_exact(RANGE_BYTES).map(|pair| number(&pair[..8])..number(&pair[8..])).collect())
}

fn read(file: &File, length: usize) -> io::Result<Vec<u8>> {
    let mut bytes = vec![0; length];
    file.read_exact_at(&mut bytes, 0)?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_and_states_come_back() {
        let file = tempfile::tempfile().unwrap();
        let ranges = vec![0..65_536, 1 << 40..u64::MAX];
        write_ranges(&file, &ranges).unwrap();
        assert_eq!(read_ranges(&file, 2).unwrap(), ranges);
        write_state(&file, b"state").unwrap();
        assert_eq!(read_state(&file, 5).unwrap(), b"state");
    }

    #[test]
    fn what_is_cut_off_or_too_long_is_an_error() {
        let file = tempfile::tempfile().unwrap();
        write_state(&file, b"state").unwrap();
        assert_eq!(read_state(&file, 6).unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
        assert_eq!(read_state(&file, MAX_STATE + 1).unwrap_err().kind(), io::ErrorKind::InvalidData);
        assert_eq!(read_ranges(&file, 1).unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
        assert_eq!(read_ranges(&file, u64::MAX).unwrap_err().kind(), io::ErrorKind::InvalidData);
    }
}
