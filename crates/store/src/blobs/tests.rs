//! File blobs: the contract, and what only files can get wrong.

use std::fs;
use std::sync::Arc;

use super::*;
use crate::contract::blobs::{agrees_with_a_map, read, suite};
use crate::contract::run;
use crate::{FileBlobs, MemoryBlobs};

#[test]
fn files_keep_the_contract() {
    let dir = tempfile::tempdir().unwrap();
    run(suite(Arc::new(FileBlobs::open(dir.path().join("new/blobs")).unwrap())));
}

#[test]
fn files_agree_with_a_map() {
    let dir = tempfile::tempdir().unwrap();
    agrees_with_a_map(24, || FileBlobs::open(tempfile::tempdir_in(dir.path()).unwrap().keep()).unwrap());
}

#[test]
fn files_survive_a_reopen_and_leftovers_do_not() {
    let dir = tempfile::tempdir().unwrap();
    run(async {
        let digest = FileBlobs::open(dir.path()).unwrap().put_bytes(b"hello".to_vec()).await.unwrap();
        fs::write(dir.path().join("tmp/half"), "hel").unwrap();
        fs::create_dir(dir.path().join("zz")).unwrap();
        fs::write(dir.path().join("zz/strange"), "").unwrap();
        let blobs = FileBlobs::open(dir.path()).unwrap();
        assert!(!dir.path().join("tmp/half").exists());
        assert_eq!(blobs.list().await.unwrap(), [digest]);
        assert_eq!(read(&blobs, &digest).await, b"hello");
        assert_eq!(fs::read(blobs.path(&digest).unwrap()).unwrap(), b"hello");
        assert_eq!(MemoryBlobs::new().path(&digest), None);
    });
}

#[test]
fn damage_is_found_and_repaired_by_storing_again() {
    let dir = tempfile::tempdir().unwrap();
    run(async {
        let blobs = FileBlobs::open(dir.path()).unwrap();
        let digest = blobs.put_bytes(b"hello".to_vec()).await.unwrap();
        fs::write(blobs.path(&digest).unwrap(), "hullo").unwrap();
        let error = blobs.verify(&digest).await.unwrap_err();
        assert!(matches!(error, BlobError::Corrupt { found, .. } if found == Digest::of(b"hullo")), "{error}");
        blobs.put_bytes(b"hello".to_vec()).await.unwrap();
        blobs.verify(&digest).await.unwrap();
    });
}

#[test]
fn digests_read_and_print() {
    let hex = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
    let digest = Digest::of(b"abc");
    assert_eq!(digest.to_string(), hex);
    assert_eq!(hex.parse::<Digest>().unwrap(), digest);
    assert_eq!(serde_json::to_string(&digest).unwrap(), format!("\"{hex}\""));
    assert_eq!(serde_json::from_str::<Digest>(&format!("\"{hex}\"")).unwrap(), digest);
    assert_eq!(Digest::from_bytes(*digest.as_bytes()), digest);
    for bad in ["", &hex[1..], &hex.to_uppercase(), &format!("{hex}0"), &hex.replace('b', "/"), &"é".repeat(32)] {
        assert_eq!(bad.parse::<Digest>(), Err(ParseDigestError), "{bad}");
    }
}
