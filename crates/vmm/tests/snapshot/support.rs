//! Memories and hosts for the tests.

use std::collections::BTreeMap;
use std::error::Error;
use std::fs::File;
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt;

use vmm::snapshot::{Host, PAGE_BYTES, Template, memory};

/// Fills pages of a memory, each with bytes that depend on `seed` and on its number.
pub fn fill(memory: &File, pages: impl IntoIterator<Item = u64>, seed: u8) {
    for page in pages {
        memory.write_all_at(&content(page, seed), page * PAGE_BYTES).unwrap();
    }
}

/// What [`fill`] writes to a page.
pub fn content(page: u64, seed: u8) -> Vec<u8> {
    let mut content = vec![seed; PAGE_BYTES as usize];
    content[..8].copy_from_slice(&page.to_le_bytes());
    content[4095] = 1;
    content
}

/// A template of so many pages, of which some have content.
pub fn template(pages: u64, filled: impl IntoIterator<Item = u64>, seed: u8, state: &[u8]) -> Template {
    let file = File::from(memory(pages * PAGE_BYTES, false).unwrap());
    fill(&file, filled, seed);
    Template::from_paused(OwnedFd::from(file), pages * PAGE_BYTES, state.to_vec()).unwrap()
}

/// All of a template's memory.
pub fn all(template: &Template) -> Vec<u8> {
    let file = File::from(template.memory().try_clone_to_owned().unwrap());
    let mut bytes = vec![0; template.memory_bytes() as usize];
    file.read_exact_at(&mut bytes, 0).unwrap();
    bytes
}

/// This host, with made-up facts of KVM.
pub fn host() -> Host {
    Host::this([5; 32], BTreeMap::from([("xsave bytes".to_owned(), 2696)]))
}

/// An error with all its causes, as it is shown.
pub fn chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text = format!("{text}: {error}");
        cause = error.source();
    }
    text
}
