//! What all functions together hold, kept as a running count: no request has to go through every function for it.

use std::collections::HashMap;

use store::Digest;

use crate::record::Function;

/// Counts over every version of every function.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Usage {
    /// Unzipped bytes of the code of all versions.
    code: u64,
    /// How often each blob is referred to; never 0.
    blobs: HashMap<Digest, u64>,
}

impl Usage {
    /// Of these functions.
    pub fn of<'a>(functions: impl IntoIterator<Item = &'a Function>) -> Self {
        let mut usage = Self::default();
        for function in functions {
            usage.replace(None, Some(function));
        }
        usage
    }

    /// One function was replaced by another, created or deleted.
    pub fn replace(&mut self, old: Option<&Function>, new: Option<&Function>) {
        if let Some(new) = new {
            self.code = self.code.saturating_add(code(new));
            for digest in new.digests() {
                *self.blobs.entry(digest).or_default() += 1;
            }
        }
        if let Some(old) = old {
            self.code = self.code.saturating_sub(code(old));
            for digest in old.digests() {
                if let Some(count) = self.blobs.get_mut(&digest) {
                    *count -= 1;
                    if *count == 0 {
                        self.blobs.remove(&digest);
                    }
                }
            }
        }
    }

    /// Unzipped bytes of the code of all versions.
    pub fn code(&self) -> u64 {
        self.code
    }

    /// Whether a function refers to this blob.
    pub fn refers_to(&self, digest: &Digest) -> bool {
        self.blobs.contains_key(digest)
    }
}

fn code(function: &Function) -> u64 {
    function.records().map(|version| version.code.unzipped_size).fold(0, u64::saturating_add)
}
