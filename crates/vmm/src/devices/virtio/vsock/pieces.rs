//! A packet's place in guest memory: a header and what follows it, over as many pieces as the driver likes.

use vm_memory::{GuestMemory, Permissions, VolatileSlice};

use super::packet::HEADER_SIZE;
use crate::devices::virtio::queue::Segment;
use crate::memory::Memory;

/// Pieces of guest memory in order; checked to be such.
#[derive(Debug, Default)]
pub struct Pieces<'m> {
    slices: Vec<VolatileSlice<'m>>,
    len: usize,
}

impl<'m> Pieces<'m> {
    /// The first `limit` bytes of `segments`. Nothing if one of them is not in guest memory.
    pub fn new(memory: &'m Memory, segments: &[Segment], limit: usize, access: Permissions) -> Option<Self> {
        let mut pieces = Self::default();
        for segment in segments {
            let len = usize::try_from(segment.len).ok()?.min(limit - pieces.len);
            if len == 0 {
                continue;
            }
            for slice in memory.get_slices(segment.address, len, access).ok()? {
                pieces.push(slice.ok()?);
            }
        }
        Some(pieces)
    }

    /// Bytes in all.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Number of pieces.
    pub fn count(&self) -> usize {
        self.slices.len()
    }

    /// Splits the header off, if there is room for one.
    pub fn split_header(self) -> Option<(Self, Self)> {
        if self.len < HEADER_SIZE {
            return None;
        }
        let (mut header, mut rest) = (Self::default(), Self::default());
        for slice in self.slices {
            let missing = HEADER_SIZE - header.len;
            if slice.len() <= missing {
                header.push(slice);
            } else {
                let (first, second) = slice.split_at(missing).ok()?;
                header.push(first);
                rest.push(second);
            }
        }
        Some((header, rest))
    }

    /// Copies the bytes from `from` on, as many as fit. Returns how many.
    pub fn read(&self, from: usize, to: &mut [u8]) -> usize {
        let (mut skip, mut done) = (from, 0);
        for slice in &self.slices {
            let skipped = skip.min(slice.len());
            skip -= skipped;
            let Ok(slice) = slice.offset(skipped) else { break };
            done += slice.copy_to(&mut to[done..]);
        }
        done
    }

    /// Writes bytes to the beginning, as many as fit. Returns how many.
    pub fn write(&self, bytes: &[u8]) -> usize {
        let mut done = 0;
        for slice in &self.slices {
            let count = slice.len().min(bytes.len() - done);
            slice.copy_from(&bytes[done..done + count]);
            done += count;
        }
        done
    }

    /// Adds the pieces, up to `limit` bytes of them, to what a system call reads or writes.
    pub fn vectors(&self, limit: usize, vectors: &mut Vec<libc::iovec>) {
        let mut left = limit;
        for slice in &self.slices {
            let count = slice.len().min(left);
            if count == 0 {
                break;
            }
            vectors.push(libc::iovec { iov_base: slice.ptr_guard_mut().as_ptr().cast(), iov_len: count });
            left -= count;
        }
    }

    fn push(&mut self, slice: VolatileSlice<'m>) {
        if !slice.is_empty() {
            self.len += slice.len();
            self.slices.push(slice);
        }
    }
}

#[cfg(test)]
mod tests {
    use vm_memory::{Bytes, GuestAddress};

    use super::*;

    #[test]
    fn a_header_in_pieces_is_split_from_what_follows() {
        let memory = Memory::from_ranges(&[(GuestAddress(0), 0x2000)]).unwrap();
        memory.write_slice(&[7; 0x1000], GuestAddress(0)).unwrap();
        memory.write_slice(&[9; 0x1000], GuestAddress(0x1000)).unwrap();
        let segment = |address, len| Segment { address: GuestAddress(address), len };
        let segments = [segment(0, 40), segment(0x500, 0), segment(0xffe, 10), segment(0x1800, 5)];
        let pieces = Pieces::new(&memory, &segments, 50, Permissions::Read).unwrap();
        assert_eq!((pieces.len(), pieces.count()), (50, 2));
        let (header, rest) = pieces.split_header().unwrap();
        assert_eq!((header.len(), rest.len()), (44, 6));
        let mut bytes = [0; 44];
        assert_eq!(header.read(0, &mut bytes), 44);
        assert_eq!((bytes[41], bytes[42]), (7, 9));
        let mut bytes = [0; 9];
        assert_eq!(header.read(39, &mut bytes), 5);
        assert_eq!(bytes, [7, 7, 7, 9, 9, 0, 0, 0, 0]);
        assert_eq!(rest.write(&[1; 100]), 6);
        let mut vectors = Vec::new();
        header.vectors(43, &mut vectors);
        assert_eq!(vectors.iter().map(|vector| vector.iov_len).collect::<Vec<_>>(), [40, 3]);

        assert!(Pieces::new(&memory, &[segment(0x1fff, 2)], 50, Permissions::Read).is_none());
        assert!(Pieces::new(&memory, &[segment(u64::MAX, 2)], 50, Permissions::Read).is_none());
        assert!(Pieces::new(&memory, &segments, 43, Permissions::Read).unwrap().split_header().is_none());
    }
}
