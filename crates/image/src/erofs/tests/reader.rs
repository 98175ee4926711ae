//! A reader that knows nothing of the writer: it starts at the superblock and checks what the kernel relies on.

use std::path::{Path, PathBuf};

use super::{Model, Seen, What};

struct Inode {
    nid: u64,
    mode: u32,
    uid: u32,
    gid: u32,
    mtime: u64,
    links: u32,
    content: Vec<u8>,
}

fn number<const N: usize>(image: &[u8], at: usize) -> u64 {
    let mut bytes = [0; 8];
    bytes[..N].copy_from_slice(&image[at..at + N]);
    u64::from_le_bytes(bytes)
}

fn root(image: &[u8]) -> u64 {
    assert_eq!(number::<4>(image, 1024), 0xE0F5_E1E2);
    assert_eq!(image[1024 + 12], 12, "blocks of 4 KiB");
    assert_eq!(number::<4>(image, 1024 + 0x50), 0, "no incompatible features");
    assert_eq!(number::<4>(image, 1024 + 0x24) * 4096, image.len() as u64);
    assert_eq!(number::<4>(image, 1024 + 0x28), 0, "metadata begins at block 0");
    number::<2>(image, 1024 + 14)
}

fn inode(image: &[u8], nid: u64) -> Inode {
    let at = nid as usize * 32;
    let format = number::<2>(image, at);
    assert_eq!(format & !0xf, 0);
    assert_eq!(number::<2>(image, at + 2), 0, "no extended attributes");
    let extended = format & 1 == 1;
    let mode = number::<2>(image, at + 4) as u32;
    let (bytes, uid, gid, mtime, links, header) = if extended {
        let field = |offset| number::<4>(image, at + offset);
        (number::<8>(image, at + 8), field(0x18), field(0x1c), number::<8>(image, at + 0x20), field(0x2c), 64)
    } else {
        let field = |offset| number::<2>(image, at + offset);
        let built = number::<8>(image, 1024 + 0x18);
        (number::<4>(image, at + 8), field(0x18), field(0x1a), built, field(6), 32)
    };
    let block = number::<4>(image, at + 0x10) as usize * 4096;
    let bytes = bytes as usize;
    let content = match format >> 1 {
        0 if bytes == 0 => vec![],
        0 => image[block..block + bytes].to_vec(),
        2 => {
            let whole = (bytes - 1) / 4096 * 4096;
            let (tail, begin) = (bytes - whole, at + header);
            assert_eq!(begin / 4096, (begin + tail - 1) / 4096, "what is inline stays in one block");
            [&image[block..block + whole], &image[begin..begin + tail]].concat()
        }
        other => panic!("layout {other}"),
    };
    Inode { nid, mode, uid: uid as u32, gid: gid as u32, mtime, links: links as u32, content }
}

/// Names and what they lead to, `.` and `..` among them.
fn entries(directory: &Inode) -> Vec<(Vec<u8>, u64, u8)> {
    let mut entries = Vec::new();
    for block in directory.content.chunks(4096) {
        let count = number::<2>(block, 8) as usize / 12;
        assert!(count > 0);
        let name_at = |index: usize| number::<2>(block, index * 12 + 8) as usize;
        for index in 0..count {
            let end = if index + 1 < count { name_at(index + 1) } else { block.len() };
            let name = &block[name_at(index)..end];
            let name = name.split(|byte| *byte == 0).next().unwrap().to_vec();
            entries.push((name, number::<8>(block, index * 12), block[index * 12 + 10]));
        }
    }
    assert!(entries.is_sorted_by(|one, two| one.0 < two.0), "names are in order");
    entries
}

/// Everything in an image.
pub(super) fn read(image: &[u8]) -> Model {
    let mut model = Model::new();
    let root = root(image);
    let mut pending = vec![(PathBuf::from("/"), root, root)];
    while let Some((path, nid, parent)) = pending.pop() {
        let inode = inode(image, nid);
        let what = match inode.mode & 0o170_000 {
            0o040_000 => {
                let mut directories = 0;
                for (name, to, kind) in entries(&inode) {
                    match &name[..] {
                        b"." => assert_eq!(to, nid),
                        b".." => assert_eq!(to, parent),
                        name => {
                            let child = self::inode(image, to);
                            let expected = match child.mode & 0o170_000 {
                                0o040_000 => 2,
                                0o100_000 => 1,
                                _ => 7,
                            };
                            assert_eq!(kind, expected);
                            directories += u32::from(kind == 2);
                            pending.push((path.join(std::str::from_utf8(name).unwrap()), to, nid));
                        }
                    }
                }
                assert_eq!(inode.links, 2 + directories);
                What::Dir
            }
            0o100_000 => What::File(inode.content),
            0o120_000 => What::Link(inode.content),
            other => panic!("type {other:o}"),
        };
        let seen = Seen { mode: inode.mode & 0o7777, uid: inode.uid, gid: inode.gid, mtime: inode.mtime, what };
        model.insert(path, seen);
    }
    model
}

/// How many names a file has.
pub(super) fn links(image: &[u8], path: &str) -> u32 {
    let mut here = inode(image, root(image));
    for name in Path::new(path).iter().skip(1) {
        let found = entries(&here).into_iter().find(|entry| entry.0 == name.as_encoded_bytes()).unwrap();
        here = inode(image, found.1);
        assert_eq!(here.nid, found.1);
    }
    here.links
}
