//! The tree that an image is made of, in memory: names and attributes, and where the content of each file is.

use std::collections::{BTreeMap, HashMap};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use crate::plan::EPOCH;

/// The longest name of a file, in bytes.
const MAX_NAME: usize = 255;

/// The longest path and the longest target of a symbolic link, in bytes: what Linux takes in one system call.
const MAX_PATH: usize = 4095;

/// What an inode says besides its content.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Attributes {
    /// Permission bits, `0o7777` at most; others are dropped.
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Last change, in seconds since 1970.
    pub mtime: u64,
}

impl From<u32> for Attributes {
    /// These permission bits, owned by root, with a fixed time.
    fn from(mode: u32) -> Self {
        Self { mode, uid: 0, gid: 0, mtime: EPOCH }
    }
}

/// Why something cannot be put at a path.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{} cannot be in an image: {problem}", .path.display())]
pub struct PathError {
    /// The path in the image.
    pub path: PathBuf,
    /// What is wrong with it.
    pub problem: PathProblem,
}

/// What is wrong with a path, a name or the target of a link.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum PathProblem {
    /// It names nothing, or the root where something else is meant.
    #[error("it names no file")]
    Empty,
    /// A component is `.` or `..`.
    #[error("its components must not be . or ..")]
    Dots,
    /// It holds a NUL byte.
    #[error("it holds a NUL byte")]
    Nul,
    /// A name has more than 255 bytes, or a path or a link's target more than 4,095.
    #[error("it is too long")]
    TooLong,
    /// A parent of it is a file or a symbolic link.
    #[error("a parent of it is no directory")]
    NotADirectory,
    /// There is no such file.
    #[error("it does not exist")]
    Absent,
}

/// Number of a node of a tree.
pub(super) type NodeId = usize;

/// The names in one directory, in the order of the format.
pub(super) type Names = BTreeMap<Box<[u8]>, NodeId>;

#[derive(Debug)]
pub(super) struct Node {
    pub(super) attributes: Attributes,
    pub(super) kind: Kind,
}

#[derive(Debug)]
pub(super) enum Kind {
    Dir(Names),
    File(Content),
    Link(Box<[u8]>),
}

/// Where the bytes of a file are.
#[derive(Debug)]
pub(super) enum Content {
    Bytes(Box<[u8]>),
    /// `nanos` completes the time of the last change.
    Host {
        path: Box<Path>,
        bytes: u64,
        nanos: i64,
    },
}

impl Content {
    pub(super) fn bytes(&self) -> u64 {
        match self {
            Self::Bytes(content) => content.len() as u64,
            Self::Host { bytes, .. } => *bytes,
        }
    }
}

/// Directories, files and symbolic links, to be written as an image.
///
/// What is put at a path takes the place of what was there; only a directory put over a directory leaves what is in it
/// and changes its attributes. Missing parents are made (mode 0755). Two names may lead to one file
/// ([`Tree::hard_link`]).
#[derive(Debug)]
pub struct Tree {
    /// The root is the first. What was replaced stays here, without a name that leads to it, and is not written.
    nodes: Vec<Node>,
    /// Files of the host that have several names, by device and inode.
    pub(super) shared: HashMap<(u64, u64), NodeId>,
}

impl Default for Tree {
    fn default() -> Self {
        Self::new()
    }
}

impl Tree {
    pub(super) const ROOT: NodeId = 0;

    /// An empty root directory.
    pub fn new() -> Self {
        let root = Node { attributes: 0o755.into(), kind: Kind::Dir(BTreeMap::new()) };
        Self { nodes: vec![root], shared: HashMap::new() }
    }

    /// A directory.
    pub fn dir(&mut self, path: impl AsRef<Path>, attributes: impl Into<Attributes>) -> Result<(), PathError> {
        self.put(path.as_ref(), attributes.into(), Kind::Dir(BTreeMap::new())).map(drop)
    }

    /// A regular file with this content.
    pub fn file(
        &mut self,
        path: impl AsRef<Path>,
        content: impl Into<Vec<u8>>,
        attributes: impl Into<Attributes>,
    ) -> Result<(), PathError> {
        let content = Content::Bytes(content.into().into_boxed_slice());
        self.put(path.as_ref(), attributes.into(), Kind::File(content)).map(drop)
    }

    /// A symbolic link.
    pub fn symlink(
        &mut self,
        path: impl AsRef<Path>,
        target: impl AsRef<Path>,
        attributes: impl Into<Attributes>,
    ) -> Result<(), PathError> {
        let (path, target) = (path.as_ref(), target.as_ref().as_os_str().as_bytes());
        let problem = match target {
            [] => Some(PathProblem::Empty),
            _ if target.contains(&0) => Some(PathProblem::Nul),
            _ if target.len() > MAX_PATH => Some(PathProblem::TooLong),
            _ => None,
        };
        match problem {
            Some(problem) => Err(PathError { path: path.to_owned(), problem }),
            None => self.put(path, attributes.into(), Kind::Link(target.into())).map(drop),
        }
    }

    /// Another name for the file or symbolic link at `existing`, which is not followed.
    pub fn hard_link(&mut self, existing: impl AsRef<Path>, path: impl AsRef<Path>) -> Result<(), PathError> {
        let (existing, path) = (existing.as_ref(), path.as_ref());
        let absent = || PathError { path: existing.to_owned(), problem: PathProblem::Absent };
        let node = self.find(existing).ok_or_else(absent)?;
        if matches!(self.node(node).kind, Kind::Dir(_)) {
            return Err(absent());
        }
        self.name(path, node)
    }

    /// Takes away what is at a path, with everything in it. Nothing there is no error.
    pub fn remove(&mut self, path: impl AsRef<Path>) {
        let path = path.as_ref();
        let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else { return };
        let Some(parent) = self.find(parent) else { return };
        if let Kind::Dir(names) = &mut self.nodes[parent].kind {
            names.remove(name.as_bytes());
        }
    }

    /// Whether there is something at this path; links are not followed.
    pub fn contains(&self, path: impl AsRef<Path>) -> bool {
        self.find(path.as_ref()).is_some()
    }

    /// The content of all files together, in bytes, as a bound on what an image of the tree takes.
    pub fn content_bytes(&self) -> u64 {
        let file = |node: &Node| if let Kind::File(content) = &node.kind { content.bytes() } else { 0 };
        self.nodes.iter().map(file).sum()
    }

    pub(super) fn node(&self, id: NodeId) -> &Node {
        &self.nodes[id]
    }

    /// How many nodes there may be; every id is below it.
    pub(super) fn len(&self) -> usize {
        self.nodes.len()
    }

    pub(super) fn find(&self, path: &Path) -> Option<NodeId> {
        let mut here = Self::ROOT;
        for name in components(path).ok()? {
            let Kind::Dir(names) = &self.nodes[here].kind else { return None };
            here = *names.get(name)?;
        }
        Some(here)
    }

    /// Puts a node at a path and says which it is.
    pub(super) fn put(&mut self, path: &Path, attributes: Attributes, kind: Kind) -> Result<NodeId, PathError> {
        let attributes = Attributes { mode: attributes.mode & 0o7777, ..attributes };
        if matches!(kind, Kind::Dir(_)) {
            let existing = self.find(path).filter(|id| matches!(self.nodes[*id].kind, Kind::Dir(_)));
            if let Some(existing) = existing {
                self.nodes[existing].attributes = attributes;
                return Ok(existing);
            }
        }
        let (parent, name) = self.make_parent(path)?;
        let id = self.nodes.len();
        self.nodes.push(Node { attributes, kind });
        self.enter(parent, name, id);
        Ok(id)
    }

    /// Lets a path lead to a node.
    pub(super) fn name(&mut self, path: &Path, node: NodeId) -> Result<(), PathError> {
        let (parent, name) = self.make_parent(path)?;
        self.enter(parent, name, node);
        Ok(())
    }

    fn enter(&mut self, parent: NodeId, name: &[u8], node: NodeId) {
        if let Kind::Dir(names) = &mut self.nodes[parent].kind {
            names.insert(name.into(), node);
        }
    }

    /// The directory that is to hold the last name of a path, made if need be, and that name.
    fn make_parent<'p>(&mut self, path: &'p Path) -> Result<(NodeId, &'p [u8]), PathError> {
        let problem = |problem| PathError { path: path.to_owned(), problem };
        let names = components(path).map_err(problem)?;
        let (last, parents) = names.split_last().ok_or_else(|| problem(PathProblem::Empty))?;
        let mut here = Self::ROOT;
        for name in parents {
            let next = self.nodes.len();
            let Kind::Dir(names) = &mut self.nodes[here].kind else { return Err(problem(PathProblem::NotADirectory)) };
            here = *names.entry((*name).into()).or_insert(next);
            if here == next {
                self.nodes.push(Node { attributes: 0o755.into(), kind: Kind::Dir(BTreeMap::new()) });
            }
        }
        match self.nodes[here].kind {
            Kind::Dir(_) => Ok((here, last)),
            Kind::File(_) | Kind::Link(_) => Err(problem(PathProblem::NotADirectory)),
        }
    }
}

/// The names on the way from the root; a leading `/` and doubled ones do not count.
fn components(path: &Path) -> Result<Vec<&[u8]>, PathProblem> {
    let bytes = path.as_os_str().as_bytes();
    if bytes.len() > MAX_PATH {
        return Err(PathProblem::TooLong);
    }
    if bytes.contains(&0) {
        return Err(PathProblem::Nul);
    }
    let names = bytes.split(|byte| *byte == b'/').filter(|name| !name.is_empty());
    names
        .map(|name| match name {
            b"." | b".." => Err(PathProblem::Dots),
            _ if name.len() > MAX_NAME => Err(PathProblem::TooLong),
            _ => Ok(name),
        })
        .collect()
}
