//! A tree with further files in it: the original stays as it is, its files are linked into the new one.

use std::collections::{BTreeMap, BTreeSet};
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use crate::digest::Digest;
use crate::layers::{link_or_copy, mtime, overlay};
use crate::plan::EPOCH;
use crate::staging::{Staging, StagingError, seal};

/// Name of a tree with what `kind` adds to it.
pub(crate) fn extended_name(tree: &str, kind: &str) -> String {
    Digest::of(format!("extended\n{tree}\n{kind}").as_bytes()).to_string()
}

/// Puts `tree` with `files` (relative paths) into `dest_parent/name`. The files may be hostile: one that would replace
/// something, or that is not to lie in a directory of the tree or in a new one right below such, is left out. Directories
/// keep their times, so that what is remembered of the tree stays valid.
pub(crate) fn extend(
    tree: &Path,
    dest_parent: &Path,
    name: &str,
    files: &BTreeMap<String, Vec<u8>>,
) -> Result<PathBuf, StagingError> {
    let destination = dest_parent.join(name);
    let items = overlay(&[tree.to_owned()])?;
    let is_dir = |path: &str| path.is_empty() || items.get(path).is_some_and(|item| item.metadata.is_dir());
    let mut added = BTreeSet::new();
    let fits = |path: &str, added: &mut BTreeSet<String>| {
        let plain = path.split('/').all(|part| !matches!(part, "" | "." | "..")) && !path.contains('\0');
        if !plain || items.contains_key(path) {
            return false;
        }
        let (dir, _) = path.rsplit_once('/').unwrap_or(("", path));
        let (above, _) = dir.rsplit_once('/').unwrap_or(("", dir));
        if is_dir(dir) {
            return true;
        }
        let new = !items.contains_key(dir) && is_dir(above);
        if new {
            added.insert(dir.to_owned());
        }
        new
    };
    let files: Vec<_> = files.iter().filter(|(path, _)| fits(path, &mut added)).collect();

    let staging = Staging::begin(dest_parent)?;
    for (path, item) in &items {
        match &item.link {
            _ if item.metadata.is_dir() => staging.make_dir(path)?,
            Some(target) => staging.make_link(path, target)?,
            None => link_or_copy(&item.source, &staging, path)?,
        }
    }
    // A file where a directory is to be, among those that are added, makes its creation fail; the tree is then not made.
    for path in &added {
        staging.make_dir(path)?;
    }
    for (path, content) in files {
        let mut file = staging.make_file(path)?;
        let written = staging.path(path);
        file.write_all(content).map_err(StagingError::at("write", &written))?;
        seal(&file, 0o644, EPOCH).map_err(StagingError::at("set permissions of", &written))?;
    }
    for path in &added {
        staging.finish_dir(path, 0o755, EPOCH)?;
    }
    for (path, item) in items.iter().rev().filter(|(_, item)| item.metadata.is_dir()) {
        staging.finish_dir(path, item.metadata.permissions().mode() & 0o777, mtime(&item.metadata))?;
    }
    staging.publish(&destination)?;
    Ok(destination)
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::{MetadataExt, symlink};

    use super::*;

    fn files(list: &[&str]) -> BTreeMap<String, Vec<u8>> {
        list.iter().map(|path| ((*path).to_owned(), b"new".to_vec())).collect()
    }

    #[test]
    fn files_are_added_and_the_rest_is_as_it_was() {
        let dir = tempfile::tempdir().unwrap();
        let tree = dir.path().join("tree");
        fs::create_dir_all(tree.join("package")).unwrap();
        fs::write(tree.join("package/a.py"), "a").unwrap();
        symlink("package", tree.join("link")).unwrap();
        let set = fs::File::open(tree.join("package")).unwrap();
        seal(&set, 0o711, 1_000_000_000).unwrap();

        let added = files(&["__pycache__/b.pyc", "package/__pycache__/a.pyc"]);
        let made = extend(&tree, dir.path(), "made", &added).unwrap();
        assert_eq!(fs::read(made.join("package/__pycache__/a.pyc")).unwrap(), b"new");
        assert_eq!(fs::read(made.join("__pycache__/b.pyc")).unwrap(), b"new");
        assert_eq!(fs::read(made.join("package/a.py")).unwrap(), b"a");
        assert_eq!(fs::read_link(made.join("link")).unwrap(), Path::new("package"));
        let package = fs::metadata(made.join("package")).unwrap();
        assert_eq!((package.mode() & 0o777, package.mtime()), (0o711, 1_000_000_000));
        assert!(!tree.join("__pycache__").exists(), "the original is left alone");
    }

    #[test]
    fn hostile_paths_are_left_out() {
        let dir = tempfile::tempdir().unwrap();
        let (tree, outside) = (dir.path().join("tree"), dir.path().join("outside"));
        fs::create_dir_all(&tree).unwrap();
        fs::create_dir(&outside).unwrap();
        fs::write(tree.join("a.py"), "a").unwrap();
        symlink(&outside, tree.join("link")).unwrap();
        let hostile = files(&[
            "../x",
            "/x",
            "a.py",
            "link/x",
            "link/__pycache__/x",
            "none/__pycache__/x",
            "a.py/x",
            "",
            "./x",
            "d//x",
            "d/./x",
        ]);
        let made = extend(&tree, dir.path(), "made", &hostile).unwrap();
        let mut names: Vec<_> = fs::read_dir(&made).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        names.sort();
        assert_eq!(names, ["a.py", "link"]);
        assert_eq!(fs::read(made.join("a.py")).unwrap(), b"a");
        assert_eq!(fs::read_dir(&outside).unwrap().count(), 0);
        assert!(!dir.path().join("x").exists());
    }
}
