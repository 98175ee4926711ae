//! What an archive would become on a disk, decided and checked before anything is written.

use std::collections::BTreeMap;
use std::io::{Read, Seek};

use zip::read::ZipFileEntry;
use zip::{CompressionMethod, System};

use crate::archive::Archive;
use crate::links::leaves_tree;

/// Longest path, as in an archive, in bytes. The kernel takes 4,096 with the mount point in front.
const MAX_PATH: usize = 1_024;

/// Longest path component, in bytes: what Linux file systems take.
const MAX_COMPONENT: usize = 255;

/// Longest target of a symbolic link, in bytes.
const MAX_LINK_TARGET: usize = 1_024;

/// How large an archive may become.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ZipLimits {
    /// The sum of all file sizes has to stay below this many bytes.
    pub unzipped_bytes: u64,
    /// Files, links and directories, also directories that the archive only implies.
    pub entries: usize,
}

impl ZipLimits {
    /// Lambda's limit on a function with its layers, 250 MiB; the bound on entries is ours.
    pub const LAMBDA: Self = Self { unzipped_bytes: 262_144_000, entries: 100_000 };
}

/// Why an archive cannot become a function image. All but [`ZipError::Io`] are the fault of who made the archive.
#[derive(Debug, thiserror::Error)]
pub enum ZipError {
    /// It is no zip archive, or a damaged one.
    #[error("not a readable zip archive ({reason}); pack it again")]
    Malformed {
        /// What the parser saw.
        reason: String,
    },
    /// It holds no file at all.
    #[error("the zip archive holds no file; put the function's code into it")]
    Empty,
    /// Unpacked, it is too large.
    #[error("the unpacked files have to stay below {limit} bytes together; leave out what the function does not need")]
    TooLarge {
        /// The limit, in bytes.
        limit: u64,
    },
    /// It holds too many files and directories.
    #[error("the zip archive holds more than {limit} files and directories; leave out what the function does not need")]
    TooManyEntries {
        /// The limit.
        limit: usize,
    },
    /// Its list of entries is larger than any honest one.
    #[error("the zip archive's list of entries is too large; leave out what the function does not need")]
    DirectoryTooLarge,
    /// A name that does not stand for a place below the root.
    #[error("entry {name:?} of the zip archive {problem}; rename it")]
    Name {
        /// The name, made printable.
        name: String,
        /// What is wrong with it.
        problem: NameProblem,
    },
    /// Two entries for one path, or a file where another entry needs a directory.
    #[error("the zip archive has more than one entry for {name:?}; keep one")]
    Duplicate {
        /// The path.
        name: String,
    },
    /// Two entries with the very same name.
    #[error("the zip archive has two entries of the same name; keep one")]
    DuplicateNames,
    /// Entries that share bytes of the archive.
    #[error("entries of the zip archive overlap; pack it again")]
    Overlap,
    /// An encrypted entry.
    #[error("entry {name:?} of the zip archive is encrypted; pack it without a password")]
    Encrypted {
        /// The entry.
        name: String,
    },
    /// A compression method other than stored and deflate.
    #[error("entry {name:?} of the zip archive is compressed with {method}; use deflate")]
    Method {
        /// The entry.
        name: String,
        /// The method's name or number.
        method: String,
    },
    /// A device, pipe or socket.
    #[error("entry {name:?} of the zip archive is neither a file, a directory nor a symbolic link; leave it out")]
    Special {
        /// The entry.
        name: String,
    },
    /// A symbolic link that leads out of the tree, or whose target is no path.
    #[error("symbolic link {name:?} of the zip archive leads to {target:?}, outside the archive; make it relative")]
    LinkOutside {
        /// The link.
        name: String,
        /// Its target, made printable and shortened.
        target: String,
    },
    /// An entry whose content is longer or shorter than declared.
    #[error("entry {name:?} of the zip archive is not as large as it claims; pack it again")]
    SizeDiffers {
        /// The entry.
        name: String,
    },
    /// The archive could not be read.
    #[error("could not read the zip archive")]
    Io(#[source] std::io::Error),
}

/// What is wrong with an entry's name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum NameProblem {
    /// Starts with `/`.
    #[error("has an absolute path")]
    Absolute,
    /// Has `..` as a component.
    #[error("climbs out of the archive")]
    Climbs,
    /// Holds a NUL byte.
    #[error("holds a NUL byte")]
    Nul,
    /// Holds a backslash, as Windows tools write between directories.
    #[error("holds a backslash; directories are separated by '/'")]
    Backslash,
    /// Not UTF-8.
    #[error("is not UTF-8")]
    NotUtf8,
    /// No component at all.
    #[error("is empty")]
    Empty,
    /// Longer than 1,024 bytes, or a component longer than 255.
    #[error("is too long")]
    TooLong,
}

/// The tree that an archive stands for.
#[derive(Debug, Default)]
pub(crate) struct Plan {
    /// By relative path, so that parents come before what they hold.
    pub(crate) nodes: BTreeMap<String, Node>,
    /// Sum of the declared sizes of files, in bytes.
    pub(crate) bytes: u64,
}

/// One file, link or directory to be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Node {
    pub(crate) kind: Kind,
    /// Permission bits, `0o777` at most: set-user-id and the like never survive.
    pub(crate) mode: u32,
    /// Modification time, in seconds since 1970, as the archive's directory has it (in steps of two seconds).
    pub(crate) mtime: u64,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Kind {
    Dir { implied: bool },
    File { index: usize },
    Link { target: String },
}

/// 1980-01-01, the first date that zip knows: what a directory has that the archive only implies.
pub(crate) const EPOCH: u64 = 315_532_800;

impl Node {
    fn implied_dir() -> Self {
        Self { kind: Kind::Dir { implied: true }, mode: 0o755, mtime: EPOCH }
    }
}

impl Plan {
    /// Reads the archive's directory and its links, and checks everything that can be checked without inflating files.
    pub(crate) fn read<R: Read + Seek>(archive: &mut Archive<R>, limits: ZipLimits) -> Result<Self, ZipError> {
        let count = archive.directory().len();
        if count > limits.entries {
            return Err(ZipError::TooManyEntries { limit: limits.entries });
        }
        if archive.directory().has_duplicate_names() {
            return Err(ZipError::DuplicateNames);
        }
        let mut plan = Self::default();
        let mut links = BTreeMap::new();
        for index in 0..count {
            let entry = archive
                .directory()
                .by_index_data(index)
                .map_err(|error| ZipError::Malformed { reason: error.to_string() })?;
            let Some(path) = clean_name(entry.name_raw())? else { continue };
            let (form, node) = describe(&entry, index, &path)?;
            let size = entry.size();
            if form != Form::Dir {
                plan.bytes = plan.bytes.saturating_add(size);
            }
            if plan.bytes >= limits.unzipped_bytes {
                return Err(ZipError::TooLarge { limit: limits.unzipped_bytes });
            }
            let node = if form == Form::Link {
                let target = read_target(archive, index, &path)?;
                links.insert(path.clone(), target.clone());
                Node { kind: Kind::Link { target }, ..node }
            } else {
                node
            };
            plan.insert(path, node, limits)?;
        }
        if archive.has_overlaps()? {
            return Err(ZipError::Overlap);
        }
        if let Some((name, target)) = links.iter().find(|(link, target)| leaves_tree(link, target, &links)) {
            return Err(ZipError::LinkOutside { name: name.clone(), target: target.clone() });
        }
        if !plan.nodes.values().any(|node| !matches!(node.kind, Kind::Dir { .. })) {
            return Err(ZipError::Empty);
        }
        Ok(plan)
    }

    /// Adds a node and the directories above it.
    fn insert(&mut self, path: String, node: Node, limits: ZipLimits) -> Result<(), ZipError> {
        for (end, _) in path.match_indices('/') {
            let parent = &path[..end];
            match self.nodes.get(parent) {
                Some(Node { kind: Kind::Dir { .. }, .. }) => {}
                Some(_) => return Err(ZipError::Duplicate { name: parent.to_owned() }),
                None => {
                    self.nodes.insert(parent.to_owned(), Node::implied_dir());
                }
            }
        }
        match (self.nodes.get(&path).map(|present| &present.kind), &node.kind) {
            // A directory may be named after its content, and twice by different spellings ("a/", "./a/").
            (None | Some(Kind::Dir { .. }), Kind::Dir { .. }) | (None, _) => {}
            _ => return Err(ZipError::Duplicate { name: path }),
        }
        self.nodes.insert(path, node);
        if self.nodes.len() > limits.entries {
            return Err(ZipError::TooManyEntries { limit: limits.entries });
        }
        Ok(())
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Form {
    Dir,
    File,
    Link,
}

/// Type, permissions and time of an entry. A link's target is filled in by the caller.
fn describe(entry: &ZipFileEntry<'_>, index: usize, path: &str) -> Result<(Form, Node), ZipError> {
    let name = || path.to_owned();
    if entry.encrypted() {
        return Err(ZipError::Encrypted { name: name() });
    }
    // Archives of other systems have no permissions: their upper attribute bits mean nothing.
    let unix = matches!(entry.system(), System::Unix | System::OsDarwin);
    let attributes = if unix { entry.external_attributes() >> 16 } else { 0 };
    let form = match (attributes & 0o170_000, entry.name_raw().ends_with(b"/")) {
        (0 | 0o040_000, true) => Form::Dir,
        (0 | 0o100_000, false) => Form::File,
        (0o120_000, false) => Form::Link,
        _ => return Err(ZipError::Special { name: name() }),
    };
    let default = if form == Form::Dir { 0o755 } else { 0o644 };
    let mode = if attributes & 0o777 == 0 { default } else { attributes & 0o777 };
    if form != Form::Dir && !matches!(entry.compression(), CompressionMethod::Stored | CompressionMethod::Deflated) {
        return Err(ZipError::Method { name: name(), method: format!("{:?}", entry.compression()).to_lowercase() });
    }
    let kind = match form {
        Form::Dir => Kind::Dir { implied: false },
        Form::File => Kind::File { index },
        Form::Link => Kind::Link { target: String::new() },
    };
    let mtime = entry.last_modified().map_or(EPOCH, unix_seconds);
    Ok((form, Node { kind, mode, mtime }))
}

/// The relative path of an entry: components joined by single slashes, `.` left out. `None` is the root itself.
fn clean_name(raw: &[u8]) -> Result<Option<String>, ZipError> {
    let refuse = |problem| {
        let name = String::from_utf8_lossy(raw).chars().take(200).collect();
        Err(ZipError::Name { name, problem })
    };
    let Ok(name) = std::str::from_utf8(raw) else { return refuse(NameProblem::NotUtf8) };
    if name.contains('\0') {
        return refuse(NameProblem::Nul);
    }
    if name.contains('\\') {
        return refuse(NameProblem::Backslash);
    }
    if name.starts_with('/') {
        return refuse(NameProblem::Absolute);
    }
    let mut path = String::with_capacity(name.len());
    for component in name.split('/').filter(|component| !matches!(*component, "" | ".")) {
        if component == ".." {
            return refuse(NameProblem::Climbs);
        }
        if component.len() > MAX_COMPONENT {
            return refuse(NameProblem::TooLong);
        }
        if !path.is_empty() {
            path.push('/');
        }
        path.push_str(component);
    }
    match path.len() {
        0 if name.ends_with('/') => Ok(None),
        0 => refuse(NameProblem::Empty),
        1..=MAX_PATH => Ok(Some(path)),
        _ => refuse(NameProblem::TooLong),
    }
}

fn read_target<R: Read + Seek>(archive: &mut Archive<R>, index: usize, path: &str) -> Result<String, ZipError> {
    let content = archive.read_small(index, MAX_LINK_TARGET)?;
    let shown = String::from_utf8_lossy(content.as_deref().unwrap_or(b"...")).into_owned();
    let target = content.and_then(|bytes| String::from_utf8(bytes).ok());
    target
        .filter(|target| !target.is_empty() && !target.contains('\0'))
        .ok_or_else(|| ZipError::LinkOutside { name: path.to_owned(), target: shown })
}

/// Seconds since 1970 of a zip date, read as UTC.
fn unix_seconds(date: zip::DateTime) -> u64 {
    // Days from civil: years begin in March, so that leap days end them.
    let (month, day) = (u64::from(date.month()), u64::from(date.day()));
    let year = u64::from(date.year()) - u64::from(month <= 2);
    let day_of_year = (153 * ((month + 9) % 12) + 2) / 5 + day - 1;
    let days = year * 365 + year / 4 - year / 100 + year / 400 + day_of_year - 719_468;
    days * 86_400 + u64::from(date.hour()) * 3_600 + u64::from(date.minute()) * 60 + u64::from(date.second())
}

#[cfg(test)]
mod tests;
