//! Whole archives, honest and not.

use std::io::Cursor;

use super::*;
use crate::testing::{Raw, deflated_zip, raw_zip};

fn inspect(bytes: Vec<u8>) -> Result<ZipInfo, ZipError> {
    inspect_zip_within(Cursor::new(bytes), ZipLimits { unzipped_bytes: 1_000_000, entries: 1_000 })
}

#[test]
fn an_honest_archive_is_counted() {
    let zip = deflated_zip([("a/b", &[7; 5_000][..], 0o644), ("c", &b"x"[..], 0o755)]);
    assert_eq!(inspect(zip).unwrap(), ZipInfo { unzipped_size: 5_001, files: 2, directories: 1 });
}

#[test]
fn what_is_no_archive_is_malformed() {
    for bytes in [b"".to_vec(), b"hello".to_vec(), vec![0; 100_000]] {
        let result = inspect(bytes);
        assert!(matches!(result, Err(ZipError::Malformed { .. })), "{result:?}");
    }
    let mut cut = deflated_zip([("a", &[7; 5_000][..], 0o644)]);
    cut.drain(10..20);
    assert!(inspect(cut).is_err());
}

#[test]
fn an_archive_of_end_records_is_given_up() {
    let result = inspect(b"PK\x05\x06".repeat(16_000));
    assert!(matches!(result, Err(ZipError::Malformed { .. } | ZipError::DirectoryTooLarge)), "{result:?}");
}

#[test]
fn a_bomb_that_lies_about_its_size_is_found() {
    let zeros = vec![0; 3_000_000];
    let mut bomb = deflated_zip([("bomb", &zeros[..], 0o644)]);
    assert!(matches!(inspect(bomb.clone()), Err(ZipError::TooLarge { .. })));
    let real = 3_000_000u32.to_le_bytes();
    let at: Vec<usize> = bomb.windows(4).enumerate().filter(|(_, window)| *window == real).map(|(i, _)| i).collect();
    for at in at {
        bomb[at..at + 4].copy_from_slice(&10u32.to_le_bytes());
    }
    let result = inspect(bomb);
    assert!(matches!(result, Err(ZipError::SizeDiffers { .. } | ZipError::Malformed { .. })), "{result:?}");
}

#[test]
fn a_file_shorter_than_declared_is_found() {
    let result = inspect(raw_zip(&[Raw { claimed: Some(10), ..Raw::file("a", b"1234") }]));
    assert!(matches!(result, Err(ZipError::SizeDiffers { .. } | ZipError::Malformed { .. })), "{result:?}");
}

#[test]
fn a_damaged_file_is_found() {
    let mut zip = raw_zip(&[Raw::file("a", b"needle")]);
    let at = zip.windows(6).position(|window| window == b"needle").unwrap();
    zip[at] = b'N';
    let result = inspect(zip);
    assert!(matches!(result, Err(ZipError::Malformed { .. })), "{result:?}");
}

#[test]
fn entries_that_share_bytes_are_found() {
    let mut zip = raw_zip(&[Raw::file("aa", &[1; 40]), Raw::file("bb", &[1; 40])]);
    // Let the second directory record point at the first entry.
    let record = zip.windows(4).rposition(|window| window == b"PK\x01\x02").unwrap();
    zip[record + 42..record + 46].copy_from_slice(&0u32.to_le_bytes());
    let result = inspect(zip);
    assert!(matches!(result, Err(ZipError::Overlap)), "{result:?}");
}

#[test]
fn a_reader_that_fails_is_not_the_archives_fault() {
    struct Broken;
    impl Read for Broken {
        fn read(&mut self, _: &mut [u8]) -> io::Result<usize> {
            Err(io::Error::other("bad sector"))
        }
    }
    impl Seek for Broken {
        fn seek(&mut self, _: io::SeekFrom) -> io::Result<u64> {
            Ok(1_000)
        }
    }
    let result = inspect_zip(Broken);
    assert!(matches!(result, Err(ZipError::Io(_))), "{result:?}");
}

#[test]
fn the_directory_may_not_cost_more_than_an_honest_one() {
    // 500,000 tiny records in front of an end record that counts them all, as zip64.
    let record = {
        let zip = raw_zip(&[Raw::file("a", b"")]);
        let start = zip.windows(4).position(|window| window == b"PK\x01\x02").unwrap();
        zip[start..start + 47].to_vec()
    };
    let count = 500_000u64;
    let mut zip = record.repeat(count as usize);
    let length = zip.len() as u64;
    zip.extend(b"PK\x06\x06");
    zip.extend(44u64.to_le_bytes());
    zip.extend([45, 0, 45, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
    zip.extend(count.to_le_bytes());
    zip.extend(count.to_le_bytes());
    zip.extend(length.to_le_bytes());
    zip.extend(0u64.to_le_bytes());
    zip.extend(b"PK\x06\x07\0\0\0\0");
    zip.extend(length.to_le_bytes());
    zip.extend(1u32.to_le_bytes());
    zip.extend(b"PK\x05\x06\0\0\0\0");
    zip.extend([0xff; 12]);
    zip.extend([0; 2]);
    let result = inspect(zip);
    assert!(matches!(result, Err(ZipError::DirectoryTooLarge)), "{result:?}");
}
