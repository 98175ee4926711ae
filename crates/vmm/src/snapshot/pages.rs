//! Sets of a machine's memory pages, one bit for each: small, without order or overlap to get wrong when read back.

use std::ops::Range;

/// Bytes of a page, the unit in which memory is kept: 4 KiB whatever the host's own page size is.
pub const PAGE_BYTES: u64 = 4096;

/// A set of the pages of a memory, or of larger granules of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct PageSet {
    words: Vec<u64>,
    pages: u64,
}

impl PageSet {
    /// The empty set over `pages` pages.
    pub(super) fn new(pages: u64) -> Self {
        Self { words: vec![0; pages.div_ceil(64) as usize], pages }
    }

    /// Bytes of the set over `pages` pages when written out.
    pub(super) fn encoded_bytes(pages: u64) -> u64 {
        pages.div_ceil(8)
    }

    /// Reads a set over `pages` pages; `None` when the length is wrong or a bit beyond the last page is set.
    pub(super) fn decode(bytes: &[u8], pages: u64) -> Option<Self> {
        if bytes.len() as u64 != Self::encoded_bytes(pages) {
            return None;
        }
        let mut set = Self::new(pages);
        for (word, eight) in set.words.iter_mut().zip(bytes.chunks(8)) {
            let mut little = [0; 8];
            little[..eight.len()].copy_from_slice(eight);
            *word = u64::from_le_bytes(little);
        }
        let beyond = pages % 64;
        let stray = if beyond == 0 { 0 } else { set.words.last().copied().unwrap_or(0) >> beyond };
        (stray == 0).then_some(set)
    }

    /// Appends the set's bytes, the lowest page in the lowest bit of the first byte.
    pub(super) fn encode(&self, out: &mut Vec<u8>) {
        let start = out.len();
        out.extend(self.words.iter().flat_map(|word| word.to_le_bytes()));
        out.truncate(start + Self::encoded_bytes(self.pages) as usize);
    }

    /// Adds the pages of a range; those beyond the last page are passed over.
    pub(super) fn insert(&mut self, range: Range<u64>) {
        for page in range.start..range.end.min(self.pages) {
            self.words[(page / 64) as usize] |= 1 << (page % 64);
        }
    }

    /// Sets the 64 pages of a word at once.
    pub(super) fn set_word(&mut self, index: usize, word: u64) {
        self.words[index] = word;
    }

    /// How many pages are in the set.
    pub(super) fn len(&self) -> u64 {
        self.words.iter().map(|word| u64::from(word.count_ones())).sum()
    }

    /// The pages of this set that are also in the other.
    pub(super) fn intersection(&self, other: &Self) -> Self {
        self.zip(other, |mine, theirs| mine & theirs)
    }

    /// The pages of this set that are not in the other.
    pub(super) fn difference(&self, other: &Self) -> Self {
        self.zip(other, |mine, theirs| mine & !theirs)
    }

    fn zip(&self, other: &Self, combine: impl Fn(u64, u64) -> u64) -> Self {
        let words = self.words.iter().zip(&other.words).map(|(mine, theirs)| combine(*mine, *theirs)).collect();
        Self { words, pages: self.pages }
    }

    /// The set as ranges of neighbouring pages, in order.
    pub(super) fn runs(&self) -> impl Iterator<Item = Range<u64>> + '_ {
        let mut at = 0;
        std::iter::from_fn(move || {
            let start = self.next(at, false)?;
            let end = self.next(start, true).unwrap_or(self.pages);
            at = end;
            Some(start..end)
        })
    }

    /// The first page from `from` on that is in the set, or (`absent`) that is not.
    fn next(&self, from: u64, absent: bool) -> Option<u64> {
        let flip = if absent { u64::MAX } else { 0 };
        let mut index = (from / 64) as usize;
        let mut word = (self.words.get(index)? ^ flip) & (u64::MAX << (from % 64));
        while word == 0 {
            index += 1;
            word = self.words.get(index)? ^ flip;
        }
        let page = index as u64 * 64 + u64::from(word.trailing_zeros());
        (page < self.pages).then_some(page)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    fn set_of(pages: u64, members: &BTreeSet<u64>) -> PageSet {
        let mut set = PageSet::new(pages);
        members.iter().for_each(|page| set.insert(*page..page + 1));
        set
    }

    proptest! {
        #[test]
        fn a_page_set_is_a_set(pages in 1u64..400, a in prop::collection::btree_set(0u64..400, 0..300),
                               b in prop::collection::btree_set(0u64..400, 0..300)) {
            let a: BTreeSet<u64> = a.into_iter().filter(|page| *page < pages).collect();
            let b: BTreeSet<u64> = b.into_iter().filter(|page| *page < pages).collect();
            let (left, right) = (set_of(pages, &a), set_of(pages, &b));
            prop_assert_eq!(left.len(), a.len() as u64);
            let flat = |set: &PageSet| set.runs().flatten().collect::<BTreeSet<u64>>();
            prop_assert_eq!(&flat(&left), &a);
            prop_assert_eq!(flat(&left.intersection(&right)), a.intersection(&b).copied().collect());
            prop_assert_eq!(flat(&left.difference(&right)), a.difference(&b).copied().collect());
            let runs: Vec<_> = left.runs().collect();
            prop_assert!(runs.windows(2).all(|pair| pair[0].end < pair[1].start));
            let mut bytes = vec![7];
            left.encode(&mut bytes);
            prop_assert_eq!(PageSet::decode(&bytes[1..], pages), Some(left));
        }
    }

    #[test]
    fn bits_beyond_the_last_page_and_wrong_lengths_are_refused() {
        assert_eq!(PageSet::decode(&[0b0001_0000], 4), None);
        assert!(PageSet::decode(&[0b0000_1000], 4).is_some());
        assert_eq!(PageSet::decode(&[0, 0], 8), None);
        assert_eq!(PageSet::decode(&[], 8), None);
        assert!(PageSet::decode(&[0xff; 8], 64).is_some());
    }
}
