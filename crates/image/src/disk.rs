//! Trees of functions as disks: an image appears at once or not at all, like the tree that it is made of.

use std::fs;
use std::path::{Path, PathBuf};

use crate::erofs::{self, GraftError, Tree, WriteError};
use crate::staging::{STAGING_PREFIX, StagingError};

/// Why a tree was not made an image. Nothing half-made is left in any case.
#[derive(Debug, thiserror::Error)]
pub enum ImageError {
    /// Something in the tree cannot be in an image.
    #[error(transparent)]
    Tree(#[from] GraftError),
    /// The image could not be written.
    #[error(transparent)]
    Write(#[from] WriteError),
    /// The image could not be put in its place.
    #[error(transparent)]
    Staging(#[from] StagingError),
}

/// Makes an image of the directory `tree` in `dest_parent` and returns its path. Everything in it is looked at again,
/// although it was checked when it was unpacked: names, and that there is nothing but files, directories and links.
pub(crate) fn image_of(tree: &Path, dest_parent: &Path, name: &str) -> Result<PathBuf, ImageError> {
    let mut image = Tree::new();
    image.graft(tree, Path::new("/"), |_| true)?;
    publish(&image, dest_parent, name)
}

/// Makes an image without any file.
pub(crate) fn empty_image(dest_parent: &Path, name: &str) -> Result<PathBuf, ImageError> {
    publish(&Tree::new(), dest_parent, name)
}

fn publish(tree: &Tree, dest_parent: &Path, name: &str) -> Result<PathBuf, ImageError> {
    fs::create_dir_all(dest_parent).map_err(StagingError::at("make", dest_parent))?;
    let staging = tempfile::Builder::new()
        .prefix(STAGING_PREFIX)
        .tempfile_in(dest_parent)
        .map_err(StagingError::at("write in", dest_parent))?;
    erofs::write(tree, staging.as_file())?;
    let destination = dest_parent.join(name);
    staging.persist(&destination).map_err(|error| StagingError::at("put in place", &destination)(error.error))?;
    Ok(destination)
}
