//! Code and layers of an environment, in place on this host, and what is found in them.

use std::path::Path;
use std::sync::Arc;

use image::{Digest, Lease};
use runtimes::Resolved;

use super::{Inner, StartError, chain};
use crate::environment::compile::{self, Uncompiled};
use crate::spec::{CodeRef, EnvironmentSpec};

/// The code of an environment, in place and kept there.
pub(crate) struct CodeInPlace {
    pub(crate) task: Lease,
    pub(crate) opt: Option<Lease>,
    /// File names in `/opt/extensions`, in the order of their start.
    pub(crate) extensions: Vec<String>,
    /// The program of a custom runtime, as a path inside; none where neither the function nor a layer has one.
    pub(crate) bootstrap: Option<&'static str>,
    /// Whether the dynamic linker may find libraries in it that it would otherwise find elsewhere, or not at all.
    pub(crate) libraries: bool,
    /// What may be compiled, for the next environments.
    pub(crate) uncompiled: Vec<Uncompiled>,
    /// The images of `task` and `opt`, for a backend that takes images.
    images: Option<(Lease, Option<Lease>)>,
}

impl CodeInPlace {
    /// What is mounted at `/var/task`, and what at `/opt` if there are layers: directories, or images where the backend
    /// takes those.
    pub(crate) fn sources(&self) -> (&Path, Option<&Path>) {
        let (task, opt) = match &self.images {
            Some((task, opt)) => (task, opt.as_ref()),
            None => (&self.task, self.opt.as_ref()),
        };
        (task.path(), opt.map(Lease::path))
    }
}

impl Inner {
    /// What a backend can mount of a tree: its directory, or an image of it.
    pub(crate) async fn mountable(&self, tree: &Lease) -> Result<Lease, StartError> {
        if !self.backend.takes_images() {
            return Ok(tree.clone());
        }
        let (cache, tree) = (self.code.clone(), tree.clone());
        let work = tokio::task::spawn_blocking(move || cache.image(&tree));
        let made = work.await.unwrap_or_else(|panic| std::panic::resume_unwind(panic.into_panic()));
        made.map_err(|error| StartError::Code(chain(&error)))
    }

    /// Unpacks on a thread that may wait for the disk; immediate when everything is there already.
    /// With its modules compiled, if there is somebody to compile them and it has.
    pub(crate) async fn code_in_place(
        &self,
        spec: &Arc<EnvironmentSpec>,
        resolved: Option<&Resolved>,
    ) -> Result<CodeInPlace, StartError> {
        let kind = resolved.and_then(compile::kind);
        let (cache, takes_images) = (self.code.clone(), self.backend.takes_images());
        let spec = Arc::clone(spec);
        let work = tokio::task::spawn_blocking(move || {
            let unpack = |code: &CodeRef| {
                let digest: Digest =
                    code.digest.parse().map_err(|error: image::ParseDigestError| StartError::Code(chain(&error)))?;
                cache.unpacked(&digest, &code.path).map_err(|error| StartError::Code(chain(&error)))
            };
            let task = unpack(&spec.code)?;
            let layers = spec.layers.iter().map(unpack).collect::<Result<Vec<_>, _>>()?;
            let opt = match layers.is_empty() {
                true => None,
                false => Some(cache.merged(&layers).map_err(|error| StartError::Code(chain(&error)))?),
            };
            let mut uncompiled = Vec::new();
            let mut compiled = |tree: Lease, target| match kind.as_ref().map(|kind| cache.find_extended(&tree, kind)) {
                None => tree,
                Some(Some(extended)) => extended,
                Some(None) => {
                    uncompiled.push(Uncompiled { tree: tree.clone(), target });
                    tree
                }
            };
            let task = compiled(task, "/var/task");
            let opt = opt.map(|opt| compiled(opt, "/opt"));
            let extensions = opt.as_ref().map(|opt| extensions_in(opt.path())).unwrap_or_default();
            let libraries = has_libraries(task.path(), opt.as_ref().map(Lease::path));
            let bootstrap = bootstrap_in(task.path(), opt.as_ref().map(Lease::path));
            let image = |tree: &Lease| cache.image(tree).map_err(|error| StartError::Code(chain(&error)));
            let images = match takes_images {
                true => Some((image(&task)?, opt.as_ref().map(image).transpose()?)),
                false => None,
            };
            Ok(CodeInPlace { task, opt, extensions, bootstrap, libraries, uncompiled, images })
        });
        work.await.unwrap_or_else(|panic| Err(StartError::Code(format!("unpacking failed: {panic}"))))
    }
}

/// The extensions of an environment, given its merged layers. The tree is hostile, so no link in it is followed: that
/// would show names of the host.
fn extensions_in(opt: &Path) -> Vec<String> {
    let dir = opt.join("extensions");
    if !dir.symlink_metadata().is_ok_and(|found| found.is_dir()) {
        return vec![];
    }
    let Ok(entries) = std::fs::read_dir(dir) else { return vec![] };
    let mut names: Vec<String> = entries
        .flatten()
        .filter(|entry| entry.file_type().is_ok_and(|kind| !kind.is_dir()))
        .filter_map(|entry| entry.file_name().into_string().ok())
        .collect();
    names.sort();
    names
}

/// Whether there are shared libraries in the directories of `LD_LIBRARY_PATH`. A process that waited has been linked without
/// them, and its linker remembers which of the directories were not there.
fn has_libraries(task: &Path, opt: Option<&Path>) -> bool {
    let library = |name: &str| name == "glibc-hwcaps" || name.starts_with("lib") && name.contains(".so");
    let within = |dir: &Path| {
        let entries = std::fs::read_dir(dir).into_iter().flatten().flatten();
        entries.into_iter().any(|entry| entry.file_name().to_str().is_some_and(library))
    };
    let below = |tree: &Path| {
        // A link is not followed, and may lead to anything.
        let lib = tree.join("lib");
        lib.symlink_metadata().is_ok_and(|found| found.is_symlink() || found.is_dir() && within(&lib))
    };
    within(task) || below(task) || opt.is_some_and(below)
}

/// The program of a custom runtime: the function's own, or a layer's.
fn bootstrap_in(task: &Path, opt: Option<&Path>) -> Option<&'static str> {
    // Not followed: a link is the sandbox's to resolve, within its own root.
    let has = |host: &Path| host.join("bootstrap").symlink_metadata().is_ok_and(|found| !found.is_dir());
    let [in_task, in_opt] = Resolved::PROVIDED_BOOTSTRAPS;
    if has(task) { Some(in_task) } else { opt.is_some_and(has).then_some(in_opt) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn extensions_are_the_files_in_order_and_a_link_does_not_show_the_host() {
        let opt = tempfile::tempdir().unwrap();
        let elsewhere = tempfile::tempdir().unwrap();
        for name in ["b", "a"] {
            std::fs::write(elsewhere.path().join(name), "").unwrap();
        }
        std::fs::create_dir(elsewhere.path().join("lib")).unwrap();
        assert_eq!(extensions_in(opt.path()), Vec::<String>::new());
        std::os::unix::fs::symlink(elsewhere.path(), opt.path().join("extensions")).unwrap();
        assert_eq!(extensions_in(opt.path()), Vec::<String>::new());
        std::fs::remove_file(opt.path().join("extensions")).unwrap();
        std::fs::rename(elsewhere.path(), opt.path().join("extensions")).unwrap();
        assert_eq!(extensions_in(opt.path()), ["a", "b"]);
    }

    #[test]
    fn shared_libraries_are_seen_where_the_linker_looks_for_them() {
        let (task, opt) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let found = || has_libraries(task.path(), Some(opt.path()));
        for dir in [task.path().join("lib"), opt.path().join("python")] {
            std::fs::create_dir(dir).unwrap();
        }
        for name in ["lib/function.jar", "_fast.cpython-312-x86_64-linux-gnu.so", "library.py"] {
            std::fs::write(task.path().join(name), "").unwrap();
        }
        assert!(!found());
        std::fs::write(task.path().join("lib/libown.so.3"), "").unwrap();
        assert!(found());
        std::fs::remove_file(task.path().join("lib/libown.so.3")).unwrap();
        std::os::unix::fs::symlink("python", opt.path().join("lib")).unwrap();
        assert!(found());
    }

    #[test]
    fn a_bootstrap_of_the_function_comes_before_that_of_a_layer() {
        let (task, opt) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let found = || bootstrap_in(task.path(), Some(opt.path()));
        assert_eq!(found(), None);
        std::fs::write(opt.path().join("bootstrap"), "").unwrap();
        assert_eq!(found(), Some("/opt/bootstrap"));
        std::fs::write(task.path().join("bootstrap"), "").unwrap();
        assert_eq!(found(), Some("/var/task/bootstrap"));
    }
}
