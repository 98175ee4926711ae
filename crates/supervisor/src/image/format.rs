//! The part of an image that is memory: a head, the table of what was mapped, and the pages.
//!
//! ```text
//!   Head | regions | extents | kernel mappings | zeros to the end of the page | pages of the extents, in order
//! ```
//!
//! Written by a process and read by a process that becomes it, both of the same build and on the same kernel; nobody else looks
//! at it. The reader is as powerless as the writer was, so its checks are there to fail with a reason, and protect nobody.

use std::mem::offset_of;

/// Pages of all processors that this works on.
pub(super) const PAGE: u64 = 4096;
/// Where the addresses of programs end.
pub(super) const TOP: u64 = 0x7fff_ffff_f000;
/// Says that this is an image, and of which form.
const MAGIC: u64 = u64::from_le_bytes(*b"FIREIMG1");

/// What a process is beside its memory.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Head {
    magic: u64,
    /// Stack pointer and instruction pointer at which it goes on.
    pub stack: u64,
    pub instruction: u64,
    /// Base of its thread's own data.
    pub thread: u64,
    pub regions: u64,
    pub extents: u64,
    pub kernels: u64,
    pub layout: Layout,
}

/// What the kernel remembers of the parts of a program: `struct prctl_mm_map` (linux/prctl.h) up to its pointer.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Layout {
    pub start_code: u64,
    pub end_code: u64,
    pub start_data: u64,
    pub end_data: u64,
    pub start_brk: u64,
    pub brk: u64,
    pub start_stack: u64,
    pub arg_start: u64,
    pub arg_end: u64,
    pub env_start: u64,
    pub env_end: u64,
}

/// A mapping to be made.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Region {
    pub start: u64,
    pub end: u64,
    pub protection: u64,
    /// 1 for the stack, which is given all the room that it may take.
    pub grows: u64,
}

/// Pages of a region that are in the image; the others are zeros.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Extent {
    pub start: u64,
    pub end: u64,
    /// Where they begin, from the head on.
    pub offset: u64,
}

/// Where the kernel's own code or data for programs was.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Kernels {
    pub start: u64,
    pub end: u64,
    pub name: [u8; 16],
}

impl Kernels {
    pub fn new(start: u64, end: u64, shown: &[u8]) -> Kernels {
        let mut name = [0; 16];
        for (to, from) in name.iter_mut().zip(shown) {
            *to = *from;
        }
        Kernels { start, end, name }
    }
}

/// Plain numbers without padding: any bytes are one, and its bytes are all there is to it.
pub(super) trait Plain: Copy + Default {}
impl Plain for Head {}
impl Plain for Region {}
impl Plain for Extent {}
impl Plain for Kernels {}

/// The bytes of plain things.
pub(super) fn bytes_of<T: Plain>(things: &[T]) -> &[u8] {
    // SAFETY: `Plain` has no padding, so every byte is initialized; the length is that of the slice.
    unsafe { std::slice::from_raw_parts(things.as_ptr().cast(), size_of_val(things)) }
}

impl Head {
    pub fn new(stack: u64, instruction: u64, thread: u64, layout: Layout) -> Head {
        Head { magic: MAGIC, stack, instruction, thread, layout, ..Head::default() }
    }

    /// Bytes of head and table, in whole pages.
    pub fn table_bytes(&self) -> Option<u64> {
        let parts = [
            (self.regions, size_of::<Region>()),
            (self.extents, size_of::<Extent>()),
            (self.kernels, size_of::<Kernels>()),
        ];
        let bytes = parts
            .iter()
            .try_fold(size_of::<Head>() as u64, |sum, (count, size)| sum.checked_add(count.checked_mul(*size as u64)?));
        bytes?.checked_next_multiple_of(PAGE)
    }
}

/// An image's table, taken apart.
pub(super) struct Table {
    pub head: Head,
    pub regions: Vec<Region>,
    pub extents: Vec<Extent>,
    pub kernels: Vec<Kernels>,
}

/// Why bytes are no table of an image.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(super) enum Damage {
    #[error("the image is too short")]
    Short,
    #[error("this is no image of a process")]
    Magic,
    #[error("the image has a mapping where none can be")]
    Address,
}

impl Table {
    /// How long the table is that begins so.
    pub fn length(bytes: &[u8]) -> Result<u64, Damage> {
        let head: Head = take(&mut { bytes }, 1)?[0];
        if head.magic != MAGIC {
            return Err(Damage::Magic);
        }
        head.table_bytes().ok_or(Damage::Short)
    }

    /// Takes a whole table apart.
    pub fn parse(mut bytes: &[u8]) -> Result<Table, Damage> {
        if Table::length(bytes)? > bytes.len() as u64 {
            return Err(Damage::Short);
        }
        let head: Head = take(&mut bytes, 1)?[0];
        let regions = take::<Region>(&mut bytes, head.regions)?;
        let extents = take::<Extent>(&mut bytes, head.extents)?;
        let kernels = take::<Kernels>(&mut bytes, head.kernels)?;
        in_order(regions.iter().map(|region| (region.start, region.end)))?;
        in_order(extents.iter().map(|extent| (extent.start, extent.end)))?;
        in_order(kernels.iter().map(|kernels| (kernels.start, kernels.end)))?;
        let is_within = |extent: &Extent| {
            let region = regions.partition_point(|region| region.start <= extent.start).checked_sub(1);
            region.is_some_and(|region| extent.end <= regions[region].end) && extent.offset.is_multiple_of(PAGE)
        };
        if !extents.iter().all(is_within) {
            return Err(Damage::Address);
        }
        Ok(Table { head, regions, extents, kernels })
    }
}

fn in_order(ranges: impl Iterator<Item = (u64, u64)>) -> Result<(), Damage> {
    let mut last = PAGE;
    for (start, end) in ranges {
        let whole = start.is_multiple_of(PAGE) && end.is_multiple_of(PAGE);
        if !whole || start < last || end <= start || end > TOP {
            return Err(Damage::Address);
        }
        last = end;
    }
    Ok(())
}

fn take<T: Plain>(bytes: &mut &[u8], count: u64) -> Result<Vec<T>, Damage> {
    let length =
        usize::try_from(count).ok().and_then(|count| count.checked_mul(size_of::<T>())).ok_or(Damage::Short)?;
    let (taken, rest) = bytes.split_at_checked(length).ok_or(Damage::Short)?;
    *bytes = rest;
    let mut things = vec![T::default(); count as usize];
    // SAFETY: both are `length` bytes, `Plain` may be any bytes, and a new vector overlaps with nothing.
    unsafe { std::ptr::copy_nonoverlapping(taken.as_ptr(), things.as_mut_ptr().cast::<u8>(), length) };
    Ok(things)
}

// As the kernel has it: eleven numbers, then a pointer.
const _: () = assert!(offset_of!(Layout, env_end) == 80 && size_of::<Layout>() == 88);

#[cfg(test)]
mod tests {
    use super::*;

    fn image(regions: &[Region], extents: &[Extent]) -> Vec<u8> {
        let mut head = Head::new(1, 2, 3, Layout::default());
        (head.regions, head.extents, head.kernels) = (regions.len() as u64, extents.len() as u64, 1);
        let kernels = [Kernels::new(0x7000_0000, 0x7000_1000, b"[vdso]")];
        let mut bytes = [bytes_of(&[head]), bytes_of(regions), bytes_of(extents), bytes_of(&kernels)].concat();
        bytes.resize(head.table_bytes().unwrap() as usize, 0);
        bytes
    }

    const REGION: Region = Region { start: 0x1000, end: 0x4000, protection: 3, grows: 0 };
    const EXTENT: Extent = Extent { start: 0x2000, end: 0x3000, offset: 0x1000 };

    #[test]
    fn a_table_comes_back_as_it_was() {
        let bytes = image(&[REGION], &[EXTENT]);
        assert_eq!(Table::length(&bytes[..200]).unwrap(), bytes.len() as u64);
        let table = Table::parse(&bytes).unwrap();
        assert_eq!((table.regions, table.extents), (vec![REGION], vec![EXTENT]));
        assert_eq!(table.kernels[0], Kernels::new(0x7000_0000, 0x7000_1000, b"[vdso]"));
        assert_eq!((table.head.stack, table.head.instruction, table.head.thread), (1, 2, 3));
    }

    #[test]
    fn damage_is_refused() {
        let whole = image(&[REGION], &[EXTENT]);
        for length in [0, 7, size_of::<Head>() - 1, size_of::<Head>() + 8, whole.len() - 1] {
            assert_eq!(Table::parse(&whole[..length]).err(), Some(Damage::Short), "{length}");
        }
        let mut other = whole.clone();
        other[0] ^= 1;
        assert_eq!(Table::parse(&other).err(), Some(Damage::Magic));
        // A count that no image can have.
        let mut many = whole;
        many[offset_of!(Head, regions) + 7] = 0xff;
        assert_eq!(Table::parse(&many).err(), Some(Damage::Short));
        let bad = [
            (Region { end: 0x800, ..REGION }, EXTENT),
            (Region { start: 0x1001, ..REGION }, EXTENT),
            (Region { end: TOP + PAGE, ..REGION }, EXTENT),
            (REGION, Extent { end: 0x5000, ..EXTENT }),
            (REGION, Extent { offset: 5, ..EXTENT }),
            (Region { start: 0x3000, ..REGION }, EXTENT),
        ];
        for (region, extent) in bad {
            assert_eq!(
                Table::parse(&image(&[region], &[extent])).err(),
                Some(Damage::Address),
                "{region:?} {extent:?}"
            );
        }
        assert_eq!(Table::parse(&image(&[REGION, REGION], &[])).err(), Some(Damage::Address));
    }

    proptest::proptest! {
        #[test]
        fn no_bytes_cause_a_panic(mut bytes: Vec<u8>, counts: [u8; 3]) {
            let _ = Table::parse(&bytes);
            // A head that is one, with counts that may fit or not.
            let mut head = Head::new(0, 0, 0, Layout::default());
            [head.regions, head.extents, head.kernels] = counts.map(u64::from);
            let mut whole = bytes_of(&[head]).to_vec();
            bytes.resize(usize::from(counts[0]) * 64, 7);
            whole.append(&mut bytes);
            let _ = Table::parse(&whole);
        }
    }
}
