//! Tells trees apart without reading the files of the host that are in them.

use sha2::Digest as _;

use super::tree::{Content, Kind, Tree};
use crate::digest::Digest;

/// Changes when the writer makes another image of the same tree.
const WRITER: &[u8] = b"erofs writer 1";

impl Tree {
    /// A digest of all names, attributes and links, of the content that the caller gave, and of size and time of the
    /// files of the host. Trees with the same one give the same image, unless a file of the host was changed with its
    /// size and time kept.
    pub fn fingerprint(&self) -> Digest {
        let mut hash = sha2::Sha256::new_with_prefix(WRITER);
        let mut pending = vec![Self::ROOT];
        let mut order = vec![None; self.len()];
        let mut next = 0u64;
        while let Some(id) = pending.pop() {
            if let Some(first) = order[id] {
                // Another name of a file that was seen under its first.
                hash.update([b's']);
                hash.update(u64::to_le_bytes(first));
                continue;
            }
            order[id] = Some(next);
            next += 1;
            let node = self.node(id);
            let attributes = node.attributes;
            hash.update(attributes.mode.to_le_bytes());
            hash.update(attributes.uid.to_le_bytes());
            hash.update(attributes.gid.to_le_bytes());
            hash.update(attributes.mtime.to_le_bytes());
            let mut part = |kind: u8, bytes: &[u8]| {
                hash.update([kind]);
                hash.update((bytes.len() as u64).to_le_bytes());
                hash.update(bytes);
            };
            match &node.kind {
                Kind::File(Content::Bytes(bytes)) => part(b'b', bytes),
                Kind::File(Content::Host { bytes, nanos, .. }) => {
                    part(b'h', &[bytes.to_le_bytes(), nanos.to_le_bytes()].concat());
                }
                Kind::Link(target) => part(b'l', target),
                Kind::Dir(names) => {
                    part(b'd', &(names.len() as u64).to_le_bytes());
                    for (name, child) in names {
                        part(b'n', name);
                        pending.push(*child);
                    }
                }
            }
        }
        Digest::from_bytes(hash.finalize().into())
    }
}
