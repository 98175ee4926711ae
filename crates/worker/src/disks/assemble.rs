//! From a root that is put together by bind mounts to the tree of an image that looks the same inside.

use std::fs;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use image::erofs::{GraftError, Tree};
use sandbox::{Bind, RootFs};

use super::libraries::Libraries;
use super::packages::{DPKG, Packages};
use super::system::{self, Choice};
use super::unneeded;

/// Mount points that a machine of its own has besides those that the root names.
const MOUNT_POINTS: &[&str] = &["/dev", "/opt", "/proc", "/run", "/sys", "/tmp", "/var/task"];

/// What is told of name servers.
const RESOLV_CONF: &str = "/etc/resolv.conf";

/// Builds the tree: binds, each hiding what was at its target, then directories, links and files.
pub(super) fn tree(root: &RootFs) -> Result<Tree, GraftError> {
    let mut tree = Tree::new();
    // The system comes last, because the others tell which of its libraries they need; what they hide is left out of it.
    let (system, other): (Vec<&Bind>, Vec<&Bind>) = root.binds.iter().partition(|bind| is_system(bind));
    let mut libraries = Libraries::default();
    for bind in &other {
        tree.remove(&bind.target);
        tree.graft(&bind.source, &bind.target, |found| {
            let wanted = !found.inside.strip_prefix(&bind.target).is_ok_and(unneeded::in_prefix);
            if wanted && !found.is_dir && !system.is_empty() {
                libraries.add(found.host);
            }
            wanted
        })?;
    }
    let hidden = |path: &Path| other.iter().any(|bind| path.starts_with(&bind.target));
    let wanted = |path: &Path| !hidden(path) && !unneeded::in_system(path) && is_for_everybody(path);
    if !system.is_empty() {
        match system::choose(Packages::read(Path::new(DPKG)).as_ref(), &root.programs, libraries) {
            Choice::Everything => {
                for bind in system {
                    tree.graft(&bind.source, &bind.target, |found| wanted(found.inside))?;
                }
            }
            Choice::Some(paths) => {
                for bind in system {
                    let inside = paths.iter().filter(|path| path.starts_with(&bind.source) && wanted(path));
                    graft_some(&mut tree, &bind.source, inside)?;
                }
            }
        }
    }
    for dir in root.dirs.iter().map(PathBuf::as_path).chain(MOUNT_POINTS.iter().map(Path::new)) {
        if !tree.contains(dir) {
            tree.dir(dir, if dir == Path::new("/tmp") { 0o1777 } else { 0o755 })?;
        }
    }
    for (path, target) in &root.symlinks {
        tree.symlink(path, target, 0o777)?;
    }
    // To be covered by what a sandbox is told of its network; a file is mounted over a file only.
    if !root.files.contains_key(Path::new(RESOLV_CONF)) {
        tree.file(RESOLV_CONF, "", 0o644)?;
    }
    for (path, content) in &root.files {
        tree.file(path, content.as_slice(), 0o644)?;
    }
    Ok(tree)
}

fn is_system(bind: &Bind) -> bool {
    bind.source == bind.target && system::is_system(&bind.source)
}

/// Whether a function could read what is at a path of the system. What it could not is nothing that a server without
/// privileges could copy either.
fn is_for_everybody(path: &Path) -> bool {
    fs::symlink_metadata(path).is_ok_and(|found| found.is_symlink() || found.permissions().mode() & 0o004 != 0)
}

/// Takes those of `paths`, all in `directory`, that are still there.
fn graft_some<'a>(
    tree: &mut Tree,
    directory: &Path,
    paths: impl IntoIterator<Item = &'a PathBuf>,
) -> Result<(), GraftError> {
    tree.graft_one(directory, directory)?;
    for path in paths {
        match tree.graft_one(path, path) {
            // An administrator, a diversion or a maintainer's script took it away.
            Err(GraftError::Io { source, .. }) if source.kind() == io::ErrorKind::NotFound => {}
            other => other?,
        }
    }
    Ok(())
}
