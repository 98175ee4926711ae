//! What every [`Blobs`] must do.

use std::collections::BTreeMap;
use std::io::{self, Cursor, Read, SeekFrom};
use std::sync::Arc;

use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};

use super::run;
use crate::{BlobError, Blobs, Digest, MemoryBlobs};

/// The whole contract, on a fresh store.
pub async fn suite(blobs: Arc<dyn Blobs>) {
    assert_eq!(blobs.list().await.unwrap(), []);
    let empty = Digest::of(b"");
    assert!(!blobs.exists(&empty).await.unwrap());
    assert!(!blobs.delete(&empty).await.unwrap());
    assert!(matches!(blobs.open(&empty).await.err(), Some(BlobError::NotFound { digest }) if digest == empty));
    assert!(matches!(blobs.verify(&empty).await, Err(BlobError::NotFound { .. })));

    assert_eq!(blobs.put_bytes(Vec::new()).await.unwrap(), empty);
    let big: Vec<u8> = (0..1_000_000u32).flat_map(u32::to_le_bytes).collect();
    let digest = blobs.put(Box::new(Trickle(Cursor::new(big.clone()), false))).await.unwrap();
    assert_eq!(digest, Digest::of(&big));
    assert_eq!(read(&*blobs, &digest).await, big);
    assert_eq!(blobs.put_bytes(big.clone()).await.unwrap(), digest, "a second put changes nothing");
    blobs.verify(&digest).await.unwrap();
    let mut wanted = vec![empty, digest];
    wanted.sort();
    assert_eq!(blobs.list().await.unwrap(), wanted);

    let mut open = blobs.open(&digest).await.unwrap();
    open.seek(SeekFrom::Start(4)).unwrap();
    assert!(blobs.delete(&digest).await.unwrap());
    assert!(!blobs.exists(&digest).await.unwrap());
    let mut word = [0; 4];
    open.read_exact(&mut word).unwrap();
    assert_eq!(word, 1u32.to_le_bytes(), "an open blob outlives its name");

    assert!(matches!(blobs.put(Box::new(Broken(false))).await, Err(BlobError::Source(_))));
    assert_eq!(blobs.list().await.unwrap(), [empty], "a failed put leaves nothing");

    let same: Vec<_> = (0..16)
        .map(|_| {
            let blobs = blobs.clone();
            tokio::spawn(async move { blobs.put_bytes(b"same".to_vec()).await.unwrap() })
        })
        .collect();
    for task in same {
        assert_eq!(task.await.unwrap(), Digest::of(b"same"));
    }
    assert_eq!(read(&*blobs, &Digest::of(b"same")).await, b"same");
}

/// Reads a blob to its end.
pub async fn read(blobs: &dyn Blobs, digest: &Digest) -> Vec<u8> {
    let mut bytes = Vec::new();
    blobs.open(digest).await.unwrap().read_to_end(&mut bytes).unwrap();
    bytes
}

/// Random puts and deletes against a map.
pub fn agrees_with_a_map<B: Blobs>(cases: u32, fresh: impl Fn() -> B) {
    let step = (prop::collection::vec(any::<u8>(), 0..3), prop::bool::weighted(0.7));
    let config = Config { failure_persistence: None, ..Config::with_cases(cases) };
    let check = |steps: Vec<(Vec<u8>, bool)>| {
        let blobs = fresh();
        let mut model = BTreeMap::new();
        run(async {
            for (bytes, put) in steps {
                let digest = Digest::of(&bytes);
                if put {
                    prop_assert_eq!(blobs.put_bytes(bytes.clone()).await.unwrap(), digest);
                    model.insert(digest, bytes);
                } else {
                    prop_assert_eq!(blobs.delete(&digest).await.unwrap(), model.remove(&digest).is_some());
                }
            }
            prop_assert_eq!(blobs.list().await.unwrap(), model.keys().copied().collect::<Vec<_>>());
            for (digest, bytes) in &model {
                prop_assert_eq!(&read(&blobs, digest).await, bytes);
                blobs.verify(digest).await.unwrap();
            }
            Ok(())
        })
    };
    TestRunner::new(config).run(&prop::collection::vec(step, 0..12), check).unwrap();
}

/// Yields odd amounts, and is interrupted every other time.
struct Trickle(Cursor<Vec<u8>>, bool);

impl Read for Trickle {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        self.1 = !self.1;
        if self.1 {
            return Err(io::ErrorKind::Interrupted.into());
        }
        let most = buf.len().min(70_001);
        self.0.read(&mut buf[..most])
    }
}

/// Yields something, then fails.
struct Broken(bool);

impl Read for Broken {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        if std::mem::replace(&mut self.0, true) {
            return Err(io::Error::other("the connection broke"));
        }
        buf[0] = b'x';
        Ok(1)
    }
}

#[test]
fn memory_keeps_the_contract() {
    run(suite(Arc::new(MemoryBlobs::new())));
}

#[test]
fn memory_agrees_with_a_map() {
    agrees_with_a_map(64, MemoryBlobs::new);
}
