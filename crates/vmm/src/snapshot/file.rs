//! Snapshot files: what follows the head ([`header`](super::header)), written by [`save`] and read by [`load`].
//!
//! ```text
//!   head
//!   pieces of the index    state, set of pages that the file holds, set of granules of the working set
//!   pieces of the memory   the pages of the working set, then all others, each part by rising address
//! ```
//!
//! A piece is up to [`PIECE_BYTES`] of its section, encrypted. Before it stands a readable label with which file it belongs to
//! and which piece it is, after it its tag. Label and checksum of the head are authenticated with it, its number is the nonce.
//! The label is what tells a piece that was moved, or taken from another file, from one that is damaged.
//!
//! Pages of zeros are left out. How long the file is follows from the head alone, so that a shortened file is noticed before
//! anything is read from it or allocated for it.

mod load;
mod save;

use std::ops::Range;

pub use load::{LoadError, LoadFailure, inspect, load};
pub(super) use save::sync_directory;
pub use save::{SaveError, SaveFailure, save};

use super::cipher::TAG_BYTES;
use super::header::Header;
use super::pages::{PAGE_BYTES, PageSet};
use super::working_set::WorkingSet;

/// Plaintext bytes of a piece. Smaller pieces cost more calls and labels, larger ones leave the second-level cache.
const PIECE_BYTES: u64 = 256 * 1024;
const LABEL_BYTES: usize = 24;
/// What a piece takes in the file beyond its plaintext.
const FRAME_BYTES: u64 = (LABEL_BYTES + TAG_BYTES) as u64;
/// The number under which the head's tag is made; no file has so many pieces.
const HEAD_NUMBER: u64 = u64::MAX;

/// Where everything stands in a file.
struct Layout {
    head: u64,
    index_bytes: u64,
    data_bytes: u64,
}

/// One piece.
struct Piece {
    number: u64,
    /// Where its label begins in the file.
    offset: u64,
    /// What of its section it holds.
    part: Range<u64>,
}

impl Layout {
    /// `head` is the length of the file's head. The header has been checked, so nothing here overflows.
    fn new(header: &Header, head: u64) -> Self {
        Self { head, index_bytes: header.index_bytes(), data_bytes: header.data_bytes() }
    }

    fn index_pieces(&self) -> u64 {
        self.index_bytes.div_ceil(PIECE_BYTES)
    }

    fn data_pieces(&self) -> u64 {
        self.data_bytes.div_ceil(PIECE_BYTES)
    }

    fn file_bytes(&self) -> u64 {
        self.data_start() + self.data_bytes + self.data_pieces() * FRAME_BYTES
    }

    fn data_start(&self) -> u64 {
        self.head + self.index_bytes + self.index_pieces() * FRAME_BYTES
    }

    fn index_piece(&self, nth: u64) -> Piece {
        let start = nth * PIECE_BYTES;
        let part = start..self.index_bytes.min(start + PIECE_BYTES);
        Piece { number: nth, offset: self.head + start + nth * FRAME_BYTES, part }
    }

    fn data_piece(&self, nth: u64) -> Piece {
        let start = nth * PIECE_BYTES;
        let part = start..self.data_bytes.min(start + PIECE_BYTES);
        Piece { number: self.index_pieces() + nth, offset: self.data_start() + start + nth * FRAME_BYTES, part }
    }
}

impl Piece {
    fn label(&self, salt: &[u8; 32]) -> [u8; LABEL_BYTES] {
        let mut label = [0; LABEL_BYTES];
        label[..16].copy_from_slice(&salt[..16]);
        label[16..].copy_from_slice(&self.number.to_le_bytes());
        label
    }

    fn plain_bytes(&self) -> usize {
        (self.part.end - self.part.start) as usize
    }
}

/// In which order the pages of a memory stand in the file.
struct Order {
    /// Ranges of pages, each with the place of its first page among the file's pages.
    runs: Vec<(u64, Range<u64>)>,
}

impl Order {
    fn new(pages: &PageSet, working_set: &WorkingSet, memory_pages: u64) -> Self {
        let mut early = PageSet::new(memory_pages);
        for range in working_set.ranges() {
            early.insert(range.start / PAGE_BYTES..range.end / PAGE_BYTES);
        }
        let mut place = 0;
        let mut runs = Vec::new();
        for part in [pages.intersection(&early), pages.difference(&early)] {
            for run in part.runs() {
                let pages = run.end - run.start;
                runs.push((place, run));
                place += pages;
            }
        }
        Self { runs }
    }

    /// The bytes of memory that a piece of the data section holds, in the order of the piece.
    fn memory_of(&self, part: &Range<u64>) -> impl Iterator<Item = Range<u64>> + '_ {
        let mut place = part.start / PAGE_BYTES;
        let end = part.end / PAGE_BYTES;
        let mut index = self.runs.partition_point(|(first, _)| *first <= place).saturating_sub(1);
        std::iter::from_fn(move || {
            if place >= end {
                return None;
            }
            let (first, run) = self.runs.get(index)?;
            let start = run.start + (place - first);
            let pages = (run.end - start).min(end - place);
            index += 1;
            place += pages;
            Some(start * PAGE_BYTES..(start + pages) * PAGE_BYTES)
        })
    }
}
