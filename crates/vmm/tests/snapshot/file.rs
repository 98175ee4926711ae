//! Snapshot files: what is written is read back, and every damage has its own error.

use std::fs;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use proptest::prelude::*;
use tempfile::TempDir;
use vmm::snapshot::{
    Header, HeaderError, Host, Key, LoadFailure, PAGE_BYTES, Template, WorkingSet, inspect, load, save,
};

use crate::support::{all, chain, host, template};

/// Bytes of a piece and of its frame, as the format has them.
const PIECE: usize = 256 * 1024;
const FRAME: usize = 40;

struct Scene {
    directory: TempDir,
    key: Key,
}

impl Scene {
    fn new() -> Self {
        Self { directory: tempfile::tempdir().unwrap(), key: Key::from_bytes([8; 32]) }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    fn save(&self, name: &str, template: &Template) -> (PathBuf, Vec<u8>) {
        let path = self.path(name);
        let bytes = save(&path, template, &self.key, &host()).unwrap();
        let content = fs::read(&path).unwrap();
        assert_eq!(bytes, content.len() as u64);
        (path, content)
    }

    /// What loading says to these bytes. They stand in memory, because some tests do this thousands of times.
    fn refusal(&self, bytes: &[u8]) -> LoadFailure {
        let file = fs::File::from(vmm::snapshot::memory(bytes.len() as u64, false).unwrap());
        file.write_all_at(bytes, 0).unwrap();
        let path = PathBuf::from(format!("/proc/self/fd/{}", file.as_raw_fd()));
        load(&path, &self.key, &host()).unwrap_err().failure
    }
}

/// Some memory with long and short runs, over more than one piece.
fn sample() -> Template {
    let filled = (0..40).chain((50..200).step_by(3)).chain(300..420).chain([511]);
    let working_set = WorkingSet::from_ranges([320 * PAGE_BYTES..330 * PAGE_BYTES, 0..1], 1 << 30);
    template(512, filled, 7, &[0xab; 5000]).with_working_set(working_set)
}

fn assert_same(left: &Template, right: &Template) {
    assert_eq!(left.identity(), right.identity());
    assert_eq!(left.state(), right.state());
    assert_eq!(left.working_set(), right.working_set());
    assert_eq!(left.base(), right.base());
    assert_eq!(left.data_bytes(), right.data_bytes());
    assert!(all(left) == all(right));
}

/// Where the head ends: the rest is one index piece and the pages.
fn head_bytes(file: &[u8], template: &Template) -> usize {
    let index = template.state().len() + 512 / 8 + 512 / 16 / 8;
    let data = template.data_bytes() as usize;
    file.len() - index - FRAME - data - data.div_ceil(PIECE) * FRAME
}

#[test]
fn what_was_saved_is_loaded() {
    let scene = Scene::new();
    let original = sample();
    let (path, bytes) = scene.save("one", &original);
    let loaded = load(&path, &scene.key, &host()).unwrap();
    assert_same(&loaded, &original);
    // Looking at all pages again finds the same content.
    let unsealed = vmm::snapshot::memory(loaded.memory_bytes(), false).unwrap();
    fs::File::from(unsealed.try_clone().unwrap()).write_all_at(&all(&loaded), 0).unwrap();
    let again = Template::from_paused(unsealed, loaded.memory_bytes(), loaded.state().to_vec()).unwrap();
    assert_eq!(again.identity(), original.identity());

    let header = inspect(&path).unwrap();
    assert_eq!(header.identity, original.identity());
    assert_eq!((header.memory_bytes, header.data_pages), (512 * PAGE_BYTES, original.data_bytes() / PAGE_BYTES));
    assert_eq!(header.host, host());
    assert_eq!(Header::parse(&bytes).unwrap(), header);
    let names: Vec<_> = fs::read_dir(scene.directory.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(names, ["one"]);
}

#[test]
fn nothing_of_the_tenant_is_readable() {
    let scene = Scene::new();
    let (_, bytes) = scene.save("one", &sample());
    assert!(!bytes.windows(16).any(|window| window == [7; 16] || window == [0xab; 16]));
    // The same template, saved again: another salt, so nothing is equal beyond the head.
    let (_, again) = scene.save("two", &sample());
    let head = head_bytes(&bytes, &sample());
    assert!(bytes[head + 24..].chunks(64).zip(again[head + 24..].chunks(64)).all(|(left, right)| left != right));
}

#[test]
fn a_file_is_replaced_as_a_whole() {
    let scene = Scene::new();
    scene.save("one", &template(16, [1], 1, b"old"));
    let (path, _) = scene.save("one", &sample());
    assert_same(&load(&path, &scene.key, &host()).unwrap(), &sample());
    assert!(save(&scene.path("no/such/directory"), &sample(), &scene.key, &host()).is_err());
    assert!(save(Path::new("/"), &sample(), &scene.key, &host()).is_err());
}

#[test]
fn an_empty_memory_and_an_empty_state_are_fine() {
    let scene = Scene::new();
    let empty = template(1, [], 0, b"");
    let (path, bytes) = scene.save("empty", &empty);
    assert!(bytes.len() < 500, "{}", bytes.len());
    assert_same(&load(&path, &scene.key, &host()).unwrap(), &empty);
}

#[test]
fn a_flattened_template_names_its_base() {
    let scene = Scene::new();
    let base = sample();
    let diff = vmm::snapshot::memory(512 * PAGE_BYTES, false).unwrap();
    let flat = Template::flatten(&base, &diff, b"state".to_vec()).unwrap();
    let (path, _) = scene.save("flat", &flat);
    assert_eq!(inspect(&path).unwrap().base, Some(base.identity()));
    assert_same(&load(&path, &scene.key, &host()).unwrap(), &flat);
}

#[test]
fn another_key_or_host_is_refused() {
    let scene = Scene::new();
    let (path, _) = scene.save("one", &sample());
    let error = load(&path, &Key::from_bytes([9; 32]), &host()).unwrap_err();
    assert!(matches!(error.failure, LoadFailure::Key));
    let elsewhere = Host { model: 1000, ..host() };
    let error = load(&path, &scene.key, &elsewhere).unwrap_err();
    let model = host().model;
    assert_eq!(
        chain(&error),
        format!(
            "cannot load the snapshot {}: it does not fit this host: it was taken where the processor model was {model}, \
             here it is 1000; take the snapshot again on this host",
            path.display()
        )
    );
}

#[test]
fn a_file_of_another_length_is_refused_at_every_length() {
    let scene = Scene::new();
    let (_, bytes) = scene.save("one", &template(64, [1, 5], 1, b"state"));
    for length in 0..bytes.len() {
        let refusal = scene.refusal(&bytes[..length]);
        let expected = bytes.len() as u64;
        match refusal {
            LoadFailure::Header(HeaderError::NoSnapshot) if length < 16 => {}
            LoadFailure::Header(HeaderError::Truncated) => {}
            LoadFailure::Truncated { expected: told, found } => assert_eq!((told, found), (expected, length as u64)),
            other => panic!("{length}: {other:?}"),
        }
    }
    let long = [&bytes[..], &[0]].concat();
    assert!(matches!(scene.refusal(&long), LoadFailure::TooLong { .. }));
    assert!(matches!(scene.refusal(b"#!/bin/sh\necho not a snapshot\n"), LoadFailure::Header(HeaderError::NoSnapshot)));
    let missing = load(&scene.path("missing"), &scene.key, &host()).unwrap_err();
    assert!(matches!(missing.failure, LoadFailure::Read(_)));
}

#[test]
fn moved_and_foreign_pieces_are_told_apart() {
    let scene = Scene::new();
    let sample = template(512, 0..300, 7, &[0xab; 5000]);
    let (_, bytes) = scene.save("one", &sample);
    let (_, other) = scene.save("two", &sample);
    let head = head_bytes(&bytes, &sample);
    let data = head + sample.state().len() + 512 / 8 + 512 / 16 / 8 + FRAME;
    let piece = |nth: usize| data + nth * (PIECE + FRAME)..data + (nth + 1) * (PIECE + FRAME);

    let mut swapped = bytes.clone();
    swapped[piece(0)].copy_from_slice(&bytes[piece(1)]);
    swapped[piece(1)].copy_from_slice(&bytes[piece(0)]);
    assert!(matches!(scene.refusal(&swapped), LoadFailure::Moved { piece: 1 | 2 }));
    let mut doubled = bytes.clone();
    doubled[piece(1)].copy_from_slice(&bytes[piece(0)]);
    assert!(matches!(scene.refusal(&doubled), LoadFailure::Moved { piece: 2 }));
    // Even with the label put right, it is not the piece that belongs there.
    let start = piece(1).start;
    doubled[start..start + 24].copy_from_slice(&bytes[start..start + 24]);
    assert!(matches!(scene.refusal(&doubled), LoadFailure::Damaged { piece: 2 }));

    let mut spliced = bytes.clone();
    spliced[piece(0)].copy_from_slice(&other[piece(0)]);
    assert!(matches!(scene.refusal(&spliced), LoadFailure::Foreign { piece: 1 }));
    spliced[data..data + 24].copy_from_slice(&bytes[data..data + 24]);
    assert!(matches!(scene.refusal(&spliced), LoadFailure::Damaged { piece: 1 }));
    let headless = [&bytes[..head], &other[head..]].concat();
    assert!(matches!(scene.refusal(&headless), LoadFailure::Foreign { piece: 0 }));
    let mut damaged = bytes.clone();
    damaged[data + 24 + 1000] ^= 1;
    assert!(matches!(scene.refusal(&damaged), LoadFailure::Damaged { piece: 1 }));
}

/// Somebody without the key can make the checksum right, but not the tag.
#[test]
fn a_forged_header_is_refused() {
    let scene = Scene::new();
    let (_, mut bytes) = scene.save("one", &sample());
    let body = u32::from_le_bytes(bytes[12..16].try_into().unwrap()) as usize;
    let vendor = bytes.windows(host().vendor.len()).position(|window| window == host().vendor.as_bytes()).unwrap();
    bytes[vendor] ^= 1;
    assert!(matches!(scene.refusal(&bytes), LoadFailure::Header(HeaderError::Damaged)));
    let checksum = blake3::hash(&bytes[..16 + body]);
    bytes[16 + body..48 + body].copy_from_slice(checksum.as_bytes());
    assert!(matches!(scene.refusal(&bytes), LoadFailure::Key));
}

#[test]
fn every_flipped_bit_of_a_small_file_is_noticed() {
    let scene = Scene::new();
    let (_, bytes) = scene.save("small", &template(16, [], 1, b"state of a machine"));
    let mut damaged = bytes.clone();
    for bit in 0..bytes.len() * 8 {
        damaged[bit / 8] ^= 1 << (bit % 8);
        scene.refusal(&damaged);
        damaged[bit / 8] = bytes[bit / 8];
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn any_template_is_read_back(pages in 1_u64..1200, filled in prop::collection::btree_set(0_u64..1200, 0..400),
                                 state in prop::collection::vec(any::<u8>(), 0..3000),
                                 touched in prop::collection::vec((0_u64..5 << 20, 0_u64..400_000), 0..10)) {
        let scene = Scene::new();
        let touched = touched.into_iter().map(|(start, length)| start..start + length);
        let original = template(pages, filled.into_iter().filter(|page| *page < pages), 3, &state)
            .with_working_set(WorkingSet::from_ranges(touched, pages * PAGE_BYTES));
        let (path, _) = scene.save("any", &original);
        assert_same(&load(&path, &scene.key, &host()).unwrap(), &original);
    }

    #[test]
    fn changed_bytes_are_noticed(at in any::<prop::sample::Index>(), change in 1_u8.., more in prop::option::of((any::<prop::sample::Index>(), 1_u8..))) {
        let scene = Scene::new();
        let (_, mut bytes) = scene.save("one", &template(64, 3..40, 1, b"state"));
        let original = bytes.clone();
        bytes[at.index(original.len())] ^= change;
        if let Some((at, change)) = more {
            bytes[at.index(original.len())] ^= change;
        }
        if bytes != original {
            scene.refusal(&bytes);
        }
    }
}
