//! Which files of the system's own directories go into an image.
//!
//! Where dpkg is, these are the files of
//! - the essential packages and a list of further ones (`packages.rs`), but none that install or administer a system,
//! - the packages that the root's programs belong to,
//! - all packages that those depend on,
//!
//! together with what installing them has made (compiled Python modules, the chosen alternatives), and the shared
//! libraries that interpreters outside the system are linked with. Elsewhere, or if a program belongs to no package, it is
//! everything. In both cases without documentation, translations, headers and static libraries (`unneeded.rs`), and
//! without what only root may read.

use std::collections::{BTreeSet, HashMap};
use std::fs;
use std::path::{Path, PathBuf};

use super::libraries::Libraries;
use super::packages::Packages;

/// Directories that belong to the system, in the root of the file system.
const SYSTEM: &[&str] = &["/usr", "/bin", "/sbin", "/lib", "/lib32", "/lib64", "/libx32"];

/// Whether a directory of the host is the system's.
pub(super) fn is_system(path: &Path) -> bool {
    SYSTEM.iter().any(|system| path == Path::new(system))
}

/// What to take.
#[derive(Debug)]
pub(super) enum Choice {
    /// These files, directories and links, sorted, by paths that lead through no link.
    Some(BTreeSet<PathBuf>),
    /// All there is.
    Everything,
}

/// Chooses for `programs` of the system and for the libraries that other interpreters need.
pub(super) fn choose(packages: Option<&Packages>, programs: &[PathBuf], libraries: Libraries) -> Choice {
    let Some(packages) = packages else { return Choice::Everything };
    let mut owners = Vec::new();
    for program in programs.iter().filter(|program| SYSTEM.iter().any(|system| program.starts_with(system))) {
        // Before Debian merged /usr, packages had their programs in /bin and said so.
        let short = program.strip_prefix("/usr").map(|rest| Path::new("/").join(rest));
        let paths: Vec<PathBuf> = std::iter::once(program.clone()).chain(short).collect();
        match packages.owner(&paths) {
            Some(owner) => owners.push(owner),
            None => return Choice::Everything,
        }
    }
    let mut real = RealParents::default();
    let mut chosen = BTreeSet::new();
    for package in packages.closure(owners) {
        chosen.extend(packages.files(&package).iter().filter_map(|file| real.path(file)));
    }
    chosen.extend(libraries.resolve().iter().filter_map(|path| real.path(path)));
    chosen.extend(compiled_python(&chosen));
    chosen.extend(alternatives(&chosen));
    Choice::Some(chosen)
}

/// Finds the directories that paths really lie in: `/bin` is a link today, and others may be.
#[derive(Default)]
struct RealParents(HashMap<PathBuf, Option<PathBuf>>);

impl RealParents {
    /// The same file by a path without links on the way; `None` if its directory is gone.
    fn path(&mut self, path: &Path) -> Option<PathBuf> {
        let (parent, name) = (path.parent()?, path.file_name()?);
        let real = self.0.entry(parent.to_owned()).or_insert_with(|| fs::canonicalize(parent).ok());
        Some(real.as_ref()?.join(name))
    }
}

/// The compiled modules beside chosen ones, made when the package was installed.
fn compiled_python(chosen: &BTreeSet<PathBuf>) -> Vec<PathBuf> {
    let modules = chosen.iter().filter(|path| path.extension().is_some_and(|end| end == "py"));
    let directories: BTreeSet<&Path> = modules.filter_map(|path| path.parent()).collect();
    let mut compiled = Vec::new();
    for directory in directories {
        let cache = directory.join("__pycache__");
        for entry in fs::read_dir(&cache).into_iter().flatten().flatten() {
            let name = entry.file_name();
            let name = name.to_string_lossy();
            let module = name.split_once('.').map_or(&*name, |(module, _)| module);
            if chosen.contains(&directory.join(format!("{module}.py"))) {
                compiled.push(entry.path());
            }
        }
        compiled.push(cache);
    }
    compiled
}

/// Programs that are chosen by way of `/etc/alternatives`: `awk` is `mawk`, but no package has a file `awk`.
fn alternatives(chosen: &BTreeSet<PathBuf>) -> Vec<PathBuf> {
    let entries = ["/usr/bin", "/usr/sbin"].into_iter().flat_map(fs::read_dir).flatten().flatten();
    let links = entries
        .map(|entry| entry.path())
        .filter(|path| fs::read_link(path).is_ok_and(|target| target.starts_with("/etc/alternatives")));
    links.filter(|path| fs::canonicalize(path).is_ok_and(|real| chosen.contains(&real))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::disks::packages::DPKG;

    #[test]
    fn a_program_of_no_package_takes_everything() {
        assert!(matches!(choose(None, &[], Libraries::default()), Choice::Everything));
        let Some(packages) = Packages::read(Path::new(DPKG)) else {
            eprintln!("SKIPPED: no dpkg on this machine");
            return;
        };
        let program = PathBuf::from("/usr/bin/of-no-package");
        assert!(matches!(choose(Some(&packages), &[program], Libraries::default()), Choice::Everything));
        let elsewhere = PathBuf::from("/somewhere/bin/python3");
        assert!(matches!(choose(Some(&packages), &[elsewhere], Libraries::default()), Choice::Some(_)));
    }

    #[test]
    fn the_base_has_a_shell_and_the_c_library_and_no_compiler() {
        let Some(packages) = Packages::read(Path::new(DPKG)) else {
            eprintln!("SKIPPED: no dpkg on this machine");
            return;
        };
        let Choice::Some(chosen) = choose(Some(&packages), &[], Libraries::default()) else { panic!("not everything") };
        let has = |path: &str| chosen.contains(&fs::canonicalize(path).unwrap());
        assert!(has("/bin/sh") && has("/bin/bash") && has("/bin/ls") && has("/usr/bin/awk"));
        assert!(chosen.iter().any(|path| path.ends_with("libc.so.6")));
        assert!(chosen.contains(Path::new("/usr/bin/awk")), "by way of the alternatives");
        for absent in ["/usr/bin/apt", "/usr/bin/dpkg", "/usr/bin/gcc", "/usr/bin/su"] {
            assert!(!chosen.contains(Path::new(absent)), "{absent}");
        }
    }
}
