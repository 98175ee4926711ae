//! A stopped machine from which clones are made: sealed memory, opaque state, working set.
//!
//! # Which seal
//! `F_SEAL_FUTURE_WRITE` could be set while the machine that wrote the memory still has it mapped, but would leave that mapping
//! writable: a taken-over VMM process could change what all clones run. So templates have `F_SEAL_WRITE`, which the kernel
//! grants only when no writable shared mapping exists. The VMM process has therefore ended (been waited for) before
//! [`Template::from_paused`] is called. A process that has been waited for has no mappings any more.

use std::fmt;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use rustix::io::Errno;
use serde::{Deserialize, Serialize};
use thiserror::Error;

use super::header::{MAX_MEMORY_BYTES, MAX_STATE_BYTES};
use super::pages::{PAGE_BYTES, PageSet};
use super::{WorkingSet, memfd, parallel};

/// What tells one template's content from another's: a digest of memory and state.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Identity([u8; 32]);

impl Identity {
    /// The digest's bytes.
    pub fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }
}

impl fmt::Display for Identity {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(formatter, "{byte:02x}"))
    }
}

impl fmt::Debug for Identity {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, formatter)
    }
}

/// A stopped machine as a model for clones. Cheap to clone: memory and state are shared.
#[derive(Clone)]
pub struct Template {
    memory: Arc<File>,
    memory_bytes: u64,
    state: Arc<[u8]>,
    pages: Arc<PageSet>,
    working_set: WorkingSet,
    identity: Identity,
    base: Option<Identity>,
}

impl Template {
    /// Makes a template of a machine that was stopped: its memory as it is, without a copy, and its state. Only huge pages are
    /// copied into ordinary ones, since clones could not be sure to find free ones when they write.
    ///
    /// `memory` was made by [`memory`](super::memory) and is sealed here; nobody may have it mapped shared and writable any
    /// more, see the module's text.
    ///
    /// # Errors
    /// [`TemplateError::StillMapped`] when somebody has; nothing is changed then, and the caller may try again.
    pub fn from_paused(memory: OwnedFd, memory_bytes: u64, state: Vec<u8>) -> Result<Self, TemplateError> {
        let memory = File::from(memory);
        if !memfd::is_huge(&memory).map_err(TemplateError::Read)? {
            return Self::sealed(memory, memory_bytes, state, None);
        }
        seal(&memory)?;
        check_size(&memory, memory_bytes)?;
        let ordinary = File::from(memfd::memory(memory_bytes, false).map_err(TemplateError::Create)?);
        let segments = memory_bytes.div_ceil(memfd::SEGMENT_BYTES);
        parallel::for_each(segments as usize, Vec::new, |buffer, index| {
            let start = index as u64 * memfd::SEGMENT_BYTES;
            let end = memory_bytes.min(start + memfd::SEGMENT_BYTES);
            memfd::copy(&memory, &ordinary, start / PAGE_BYTES..end / PAGE_BYTES, buffer)
        })
        .map_err(TemplateError::Copy)?;
        Self::sealed(ordinary, memory_bytes, state, None)
    }

    /// Makes a template of a clone that was stopped: the base's memory, overlaid with the pages that the clone has changed.
    ///
    /// `diff` comes from the clone's VMM process and is as hostile as that: it is read once, into memory that it cannot reach.
    /// Where it has data it counts, zeros included; its holes, and what lies beyond its end, are the base's pages.
    pub fn flatten(base: &Self, diff: impl AsFd, state: Vec<u8>) -> Result<Self, TemplateError> {
        let diff = File::from(diff.as_fd().try_clone_to_owned().map_err(TemplateError::Read)?);
        let bytes = base.memory_bytes;
        let found = diff.metadata().map_err(TemplateError::Read)?.len();
        if found > bytes {
            return Err(TemplateError::Size { expected: bytes, found });
        }
        let mut changed = PageSet::new(bytes / PAGE_BYTES);
        for extent in memfd::extents(&diff, bytes) {
            let extent = extent.map_err(TemplateError::Read)?;
            changed.insert(extent.start / PAGE_BYTES..extent.end / PAGE_BYTES);
        }
        let memory = File::from(memfd::memory(bytes, false).map_err(TemplateError::Create)?);
        let source = base.map().map_err(TemplateError::Read)?;
        let kept = base.pages.difference(&changed);
        let mut pieces = Vec::new();
        for (is_base, run) in kept.runs().map(|run| (true, run)).chain(changed.runs().map(|run| (false, run))) {
            let step = memfd::SEGMENT_BYTES / PAGE_BYTES;
            let starts = (run.start..run.end).step_by(step as usize);
            pieces.extend(starts.map(|start| (is_base, start..run.end.min(start + step))));
        }
        parallel::for_each(pieces.len(), Vec::new, |buffer, index| {
            let (is_base, run) = &pieces[index];
            if *is_base {
                let part = run.start * PAGE_BYTES..run.end * PAGE_BYTES;
                memory.write_all_at(source.range(&part), part.start)
            } else {
                memfd::copy(&diff, &memory, run.clone(), buffer)
            }
        })
        .map_err(TemplateError::Copy)?;
        Self::sealed(memory, bytes, state, Some(base.identity))
    }

    fn sealed(memory: File, bytes: u64, state: Vec<u8>, base: Option<Identity>) -> Result<Self, TemplateError> {
        if bytes == 0 || !bytes.is_multiple_of(PAGE_BYTES) || bytes > MAX_MEMORY_BYTES {
            return Err(TemplateError::Impossible { bytes });
        }
        if state.len() as u64 > MAX_STATE_BYTES {
            return Err(TemplateError::State { bytes: state.len() as u64 });
        }
        seal(&memory)?;
        // Looked at after the seal: from here on nothing can change.
        check_size(&memory, bytes)?;
        let mapped = memfd::Sealed::map(&memory, bytes).map_err(TemplateError::Read)?;
        let content = memfd::scan(&memory, &mapped).map_err(TemplateError::Read)?;
        let mut digest = blake3::Hasher::new_derive_key("firelet snapshot identity 1");
        digest.update(content.digest.as_bytes());
        digest.update(&state);
        Ok(Self {
            memory: Arc::new(memory),
            memory_bytes: bytes,
            state: state.into(),
            pages: Arc::new(content.pages),
            working_set: WorkingSet::default(),
            identity: Identity(*digest.finalize().as_bytes()),
            base,
        })
    }

    /// Puts together what was read back from a file and has been authenticated; `memory` is sealed here.
    pub(super) fn from_file(memory: File, parts: Parts) -> Result<Self, io::Error> {
        memfd::seal(&memory)?;
        Ok(Self {
            memory: Arc::new(memory),
            memory_bytes: parts.memory_bytes,
            state: parts.state.into(),
            pages: Arc::new(parts.pages),
            working_set: parts.working_set,
            identity: parts.identity,
            base: parts.base,
        })
    }

    /// The same template with another working set; memory and state are shared with this one.
    #[must_use]
    pub fn with_working_set(&self, working_set: WorkingSet) -> Self {
        Self { working_set: working_set.within(self.memory_bytes), ..self.clone() }
    }

    /// The sealed memory, to be mapped `MAP_PRIVATE`.
    pub fn memory(&self) -> BorrowedFd<'_> {
        self.memory.as_fd()
    }

    /// Size of the memory in bytes.
    pub fn memory_bytes(&self) -> u64 {
        self.memory_bytes
    }

    /// Bytes of memory that are not zero, in whole pages.
    pub fn data_bytes(&self) -> u64 {
        self.pages.len() * PAGE_BYTES
    }

    /// The machine's state, as it was given.
    pub fn state(&self) -> &[u8] {
        &self.state
    }

    /// What a clone touches until its first response; empty until it was recorded.
    pub fn working_set(&self) -> &WorkingSet {
        &self.working_set
    }

    /// A digest of memory and state; the working set is not part of it.
    pub fn identity(&self) -> Identity {
        self.identity
    }

    /// The template that this one was flattened from.
    pub fn base(&self) -> Option<Identity> {
        self.base
    }

    /// Ranges of at least `at_least` bytes that are all zeros. A clone can have anonymous memory there: a private mapping of
    /// a memfd's hole costs a page in the memfd and a copy of it for each first write.
    pub fn holes(&self, at_least: u64) -> Vec<std::ops::Range<u64>> {
        let mut holes = Vec::new();
        let mut at = 0;
        let end = self.memory_bytes / PAGE_BYTES;
        for run in self.pages.runs().chain(std::iter::once(end..end)) {
            if (run.start - at) * PAGE_BYTES >= at_least.max(PAGE_BYTES) {
                holes.push(at * PAGE_BYTES..run.start * PAGE_BYTES);
            }
            at = run.end;
        }
        holes
    }

    /// Maps the memory to be read here.
    pub(super) fn map(&self) -> io::Result<memfd::Sealed> {
        memfd::Sealed::map(&self.memory, self.memory_bytes)
    }

    pub(super) fn pages(&self) -> &PageSet {
        &self.pages
    }
}

/// The guest's memory and registers are secrets of a tenant: only sizes and names are shown.
impl fmt::Debug for Template {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("Template")
            .field("identity", &self.identity)
            .field("base", &self.base)
            .field("memory_bytes", &self.memory_bytes)
            .field("data_bytes", &self.data_bytes())
            .field("state_bytes", &self.state.len())
            .finish_non_exhaustive()
    }
}

/// What a file holds beside the memory.
pub(super) struct Parts {
    pub(super) memory_bytes: u64,
    pub(super) state: Vec<u8>,
    pub(super) pages: PageSet,
    pub(super) working_set: WorkingSet,
    pub(super) identity: Identity,
    pub(super) base: Option<Identity>,
}

fn seal(memory: &File) -> Result<(), TemplateError> {
    memfd::seal(memory).map_err(|errno| match errno {
        Errno::BUSY => TemplateError::StillMapped,
        other => TemplateError::Seal(other.into()),
    })
}

fn check_size(memory: &File, expected: u64) -> Result<(), TemplateError> {
    let found = memory.metadata().map_err(TemplateError::Read)?.len();
    if found == expected { Ok(()) } else { Err(TemplateError::Size { expected, found }) }
}

/// Why no template could be made.
#[derive(Debug, Error)]
pub enum TemplateError {
    /// The memory's size is no size that a machine can have.
    #[error(
        "a memory of {bytes} bytes cannot be kept; it must be whole pages of {PAGE_BYTES}, {MAX_MEMORY_BYTES} bytes at most"
    )]
    Impossible {
        /// The size that was given.
        bytes: u64,
    },
    /// A memory file is shorter or longer than the machine's memory.
    #[error("the memory file has {found} bytes where the machine has {expected}")]
    Size {
        /// The machine's memory.
        expected: u64,
        /// The file.
        found: u64,
    },
    /// The state is longer than any machine's.
    #[error("a machine state of {bytes} bytes is more than the {MAX_STATE_BYTES} that a snapshot takes")]
    State {
        /// Its length.
        bytes: u64,
    },
    /// A process can still write to the memory.
    #[error("the memory is still mapped writable; wait for the end of the process that ran the machine")]
    StillMapped,
    /// The memory could not be sealed for another reason.
    #[error("the memory cannot be sealed; it must be a memfd that allows it")]
    Seal(#[source] io::Error),
    /// No memfd for the new memory.
    #[error("cannot create a memory file")]
    Create(#[source] io::Error),
    /// A memory file could not be read.
    #[error("cannot read a machine's memory file")]
    Read(#[source] io::Error),
    /// The changed pages could not be copied over the base's.
    #[error("cannot copy a machine's memory; is the host short of it?")]
    Copy(#[source] io::Error),
}
