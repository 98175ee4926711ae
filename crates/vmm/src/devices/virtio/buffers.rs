//! The bytes of a chain as one stream, however the driver cut them into segments (2.7.4: a device must not care).

use vm_memory::{Address, Bytes, GuestMemory, Permissions};

use super::queue::Segment;
use crate::memory::Memory;

/// Number of bytes.
pub fn total(segments: &[Segment]) -> u64 {
    segments.iter().map(|segment| u64::from(segment.len)).sum()
}

/// Takes the first `count` bytes off. `None`, and nothing usable is left, if there are fewer or an address overflows.
pub fn take_front(segments: &mut Vec<Segment>, count: u64) -> Option<Vec<Segment>> {
    let mut front = Vec::new();
    let mut missing = count;
    let mut whole = 0;
    for segment in segments.iter_mut() {
        if missing < u64::from(segment.len) {
            // Fits, as it is less than a u32.
            let part = missing as u32;
            if part > 0 {
                front.push(Segment { address: segment.address, len: part });
                segment.address = segment.address.checked_add(missing)?;
                segment.len -= part;
            }
            missing = 0;
            break;
        }
        front.push(*segment);
        missing -= u64::from(segment.len);
        whole += 1;
    }
    segments.drain(..whole);
    (missing == 0).then_some(front)
}

/// Takes the last `count` bytes off, as [`take_front`] the first.
pub fn take_back(segments: &mut Vec<Segment>, count: u64) -> Option<Vec<Segment>> {
    let keep = total(segments).checked_sub(count)?;
    let front = take_front(segments, keep)?;
    Some(std::mem::replace(segments, front))
}

/// Reads as many bytes as `data` is long. `None` if there are fewer or they do not lie in memory.
pub fn read(memory: &Memory, segments: &[Segment], mut data: &mut [u8]) -> Option<()> {
    for segment in segments {
        let (now, later) = data.split_at_mut(data.len().min(segment.len as usize));
        memory.read_slice(now, segment.address).ok()?;
        data = later;
    }
    data.is_empty().then_some(())
}

/// Writes all of `data`. `None` if there is less space or it does not lie in memory; a part may be written then.
pub fn write(memory: &Memory, segments: &[Segment], mut data: &[u8]) -> Option<()> {
    for segment in segments {
        let (now, later) = data.split_at(data.len().min(segment.len as usize));
        memory.write_slice(now, segment.address).ok()?;
        data = later;
    }
    data.is_empty().then_some(())
}

/// Appends where the bytes lie in this process, for system calls that read or write them. `None` if some do not lie in
/// memory. The pointers are good as long as `memory` is mapped; the guest may write there at any time.
pub fn host(memory: &Memory, segments: &[Segment], into: &mut Vec<libc::iovec>) -> Option<()> {
    for segment in segments.iter().filter(|segment| segment.len > 0) {
        for slice in memory.get_slices(segment.address, segment.len as usize, Permissions::ReadWrite).ok()? {
            let slice = slice.ok()?;
            into.push(libc::iovec { iov_base: slice.ptr_guard_mut().as_ptr().cast(), iov_len: slice.len() });
        }
    }
    Some(())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use vm_memory::GuestAddress;

    use super::*;

    fn cut(lengths: &[u32]) -> Vec<Segment> {
        let mut at = 0x100;
        lengths
            .iter()
            .map(|len| {
                let segment = Segment { address: GuestAddress(at), len: *len };
                at += u64::from(*len) + 3;
                segment
            })
            .collect()
    }

    fn bytes(memory: &Memory, segments: &[Segment]) -> Vec<u8> {
        let mut data = vec![0; total(segments) as usize];
        read(memory, segments, &mut data).unwrap();
        data
    }

    proptest! {
        #[test]
        fn however_it_is_cut_it_is_the_same_stream(lengths in prop::collection::vec(0u32..40, 0..6), at in 0u64..260) {
            let memory = Memory::from_ranges(&[(GuestAddress(0), 0x1000)]).unwrap();
            let segments = cut(&lengths);
            let data: Vec<u8> = (0..total(&segments)).map(|byte| byte as u8).collect();
            write(&memory, &segments, &data).unwrap();
            prop_assert_eq!(&bytes(&memory, &segments), &data);

            let mut rest = segments.clone();
            match take_front(&mut rest, at) {
                Some(front) => {
                    prop_assert_eq!(&bytes(&memory, &front), &data[..at as usize]);
                    prop_assert_eq!(&bytes(&memory, &rest), &data[at as usize..]);
                }
                None => prop_assert!(at > data.len() as u64),
            }
            let mut rest = segments;
            match take_back(&mut rest, at) {
                Some(back) => {
                    let split = data.len() - at as usize;
                    prop_assert_eq!(&bytes(&memory, &back), &data[split..]);
                    prop_assert_eq!(&bytes(&memory, &rest), &data[..split]);
                }
                None => prop_assert!(at > data.len() as u64),
            }
        }
    }

    #[test]
    fn what_lies_outside_of_memory_is_refused() {
        let memory = Memory::from_ranges(&[(GuestAddress(0), 0x1000), (GuestAddress(0x1000), 0x1000)]).unwrap();
        let over = [Segment { address: GuestAddress(0x1ff8), len: 16 }];
        assert_eq!(read(&memory, &over, &mut [0; 16]), None);
        assert_eq!(write(&memory, &over, &[0; 16]), None);
        assert_eq!(host(&memory, &over, &mut Vec::new()), None);
        assert_eq!(host(&memory, &[Segment { address: GuestAddress(u64::MAX), len: 16 }], &mut Vec::new()), None);
        // Two regions side by side: one segment may reach from one into the other.
        let mut pieces = Vec::new();
        host(&memory, &[Segment { address: GuestAddress(0xff8), len: 16 }], &mut pieces).unwrap();
        assert_eq!(pieces.iter().map(|piece| piece.iov_len).sum::<usize>(), 16);
    }
}
