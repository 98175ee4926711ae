//! Any bytes as an uploaded archive: judged without a panic, and when accepted, unpacked to one directory only.
#![no_main]

use std::fs;
use std::io::Cursor;

use image::{Digest, ZipLimits, inspect_zip_within, unpack_zip};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let limits = ZipLimits { unzipped_bytes: 1 << 20, entries: 1_000 };
    if inspect_zip_within(Cursor::new(bytes), limits).is_err() {
        return;
    }
    let dir = tempfile::tempdir().expect("a temporary directory");
    let outer = dir.path().join("outer");
    let zip = dir.path().join("code.zip");
    fs::write(&zip, bytes).expect("the archive fits on the disk");
    let digest = Digest::of(bytes);
    let tree = unpack_zip(&zip, &outer, &digest).expect("what was accepted can be unpacked");
    assert_eq!(tree, outer.join(digest.to_string()));
    assert_eq!(fs::read_dir(&outer).expect("the directory is there").count(), 1);
    assert_eq!(fs::read_dir(dir.path()).expect("the directory is there").count(), 2);
});
