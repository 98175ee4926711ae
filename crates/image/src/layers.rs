//! Lays unpacked layers over each other, as Lambda extracts them one after another into `/opt`.

use std::collections::BTreeMap;
use std::fs::{self, File, Metadata};
use std::io;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use crate::digest::Digest;
use crate::links::leaves_tree;
use crate::staging::{Staging, StagingError, seal};

/// Why layers were not merged. Nothing half-made is left in any case.
#[derive(Debug, thiserror::Error)]
pub enum MergeError {
    /// There is nothing to merge.
    #[error("no layer was given")]
    NoLayers,
    /// A layer's directory does not carry its digest as its name.
    #[error("layer {} is not named by its digest; unpack it with unpack_zip", .0.display())]
    NotAddressed(PathBuf),
    /// The layers are harmless one by one, but the links of one lead out of the tree through those of another.
    #[error(
        "symbolic link {name:?} of the merged layers leads outside them; change the order of the layers or drop one"
    )]
    LinkOutside {
        /// The link.
        name: String,
    },
    /// A layer could not be read or the tree could not be written.
    #[error(transparent)]
    Staging(#[from] StagingError),
}

/// Puts `layers` (directories made by [`unpack_zip`](crate::unpack_zip)) over each other in `dest_parent`, the later
/// ones above the earlier ones, and returns the merged directory, named by the digest of the list.
///
/// Files are hard links into the layers where the file system allows it, so a merged tree costs little more than its
/// directories. Where a path is a directory in both, the contents are united and the later permissions hold; in all
/// other cases the later one replaces the earlier one. A single layer is its own merger.
pub fn merge_layers(layers: &[PathBuf], dest_parent: &Path) -> Result<PathBuf, MergeError> {
    match layers {
        [] => return Err(MergeError::NoLayers),
        [only] => return Ok(only.clone()),
        _ => {}
    }
    let destination = dest_parent.join(merged_name(layers)?);
    if destination.is_dir() {
        return Ok(destination);
    }
    let tree = overlay(layers)?;
    let links: BTreeMap<String, String> = tree
        .iter()
        .filter_map(|(path, item)| Some((path.clone(), item.link.as_ref()?.to_string_lossy().into_owned())))
        .collect();
    if let Some((name, _)) = links.iter().find(|(link, target)| leaves_tree(link, target, &links)) {
        return Err(MergeError::LinkOutside { name: name.clone() });
    }
    let staging = Staging::begin(dest_parent)?;
    for (path, item) in &tree {
        match &item.link {
            _ if item.metadata.is_dir() => staging.make_dir(path)?,
            Some(target) => staging.make_link(path, target)?,
            None => link_or_copy(&item.source, &staging, path)?,
        }
    }
    for (path, item) in tree.iter().rev().filter(|(_, item)| item.metadata.is_dir()) {
        staging.finish_dir(path, item.metadata.permissions().mode() & 0o777, mtime(&item.metadata))?;
    }
    staging.publish(&destination)?;
    Ok(destination)
}

/// Name of the merged directory: a digest of the layers' digests in order.
pub(crate) fn merged_name(layers: &[PathBuf]) -> Result<String, MergeError> {
    let mut list = String::from("layers");
    for layer in layers {
        let digest: Digest = layer
            .file_name()
            .and_then(|name| name.to_str()?.parse().ok())
            .ok_or_else(|| MergeError::NotAddressed(layer.clone()))?;
        list.push('\n');
        list.push_str(&digest.to_string());
    }
    Ok(Digest::of(list.as_bytes()).to_string())
}

/// Where one path of the merged tree comes from.
pub(crate) struct Item {
    pub(crate) source: PathBuf,
    pub(crate) metadata: Metadata,
    /// Target, if it is a symbolic link.
    pub(crate) link: Option<PathBuf>,
}

/// The merged tree, by relative path: parents come before what they hold.
pub(crate) fn overlay(layers: &[PathBuf]) -> Result<BTreeMap<String, Item>, StagingError> {
    let mut tree = BTreeMap::<String, Item>::new();
    for layer in layers {
        let mut pending = vec![(layer.clone(), String::new())];
        while let Some((directory, prefix)) = pending.pop() {
            let listing = fs::read_dir(&directory).map_err(StagingError::at("list", &directory))?;
            for entry in listing {
                let entry = entry.map_err(StagingError::at("list", &directory))?;
                let source = entry.path();
                let name = entry.file_name();
                let path = format!("{prefix}{}", name.to_string_lossy());
                let metadata = entry.metadata().map_err(StagingError::at("examine", &source))?;
                let link = match metadata.is_symlink() {
                    true => Some(fs::read_link(&source).map_err(StagingError::at("read link", &source))?),
                    false => None,
                };
                if metadata.is_dir() {
                    pending.push((source.clone(), format!("{path}/")));
                } else if tree.get(&path).is_some_and(|below| below.metadata.is_dir()) {
                    let inside = format!("{path}/");
                    tree.retain(|other, _| !other.starts_with(&inside));
                }
                tree.insert(path, Item { source, metadata, link });
            }
        }
    }
    Ok(tree)
}

/// Puts a file of another tree into this one.
pub(crate) fn link_or_copy(source: &Path, staging: &Staging, path: &str) -> Result<(), StagingError> {
    let target = staging.path(path);
    match fs::hard_link(source, &target) {
        Ok(()) => return Ok(()),
        Err(error) if matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded) => {
            return Err(StagingError::at("link", &target)(error));
        }
        // Another file system, too many links, or none allowed.
        Err(_) => {}
    }
    let mut from = File::open(source).map_err(StagingError::at("open", source))?;
    let metadata = from.metadata().map_err(StagingError::at("examine", source))?;
    let mut file = staging.make_file(path)?;
    io::copy(&mut from, &mut file).map_err(StagingError::at("write", &target))?;
    seal(&file, metadata.permissions().mode() & 0o777, mtime(&metadata))
        .map_err(StagingError::at("set permissions of", &target))
}

pub(crate) fn mtime(metadata: &Metadata) -> u64 {
    u64::try_from(metadata.mtime()).unwrap_or(0)
}

#[cfg(test)]
mod tests;
