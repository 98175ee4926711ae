//! The shared libraries of the system that the programs of a directory need: what the loader would look for.

use std::collections::{BTreeSet, HashSet};
use std::fs::{self, File};
use std::io::Read;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use elf::ElfStream;
use elf::abi::DT_NEEDED;
use elf::endian::AnyEndian;

/// Where the loader looks by itself, on Debian and elsewhere.
const DIRECTORIES: &[&str] =
    &["/usr/lib/x86_64-linux-gnu", "/usr/lib/aarch64-linux-gnu", "/usr/lib64", "/usr/lib", "/lib64", "/lib"];

/// A library may be a link to a link, but not more often than the kernel follows.
const MAX_LINKS: usize = 40;

/// Collects what is needed, file by file.
#[derive(Debug, Default)]
pub(super) struct Libraries {
    /// Names of libraries that are to be looked for in the system.
    needed: BTreeSet<String>,
    /// Names of files that the programs bring themselves.
    own: HashSet<String>,
}

impl Libraries {
    /// Takes note of a file; if it is a program or a library, of what it needs.
    pub(super) fn add(&mut self, path: &Path) {
        let Some(name) = path.file_name().map(|name| name.to_string_lossy().into_owned()) else { return };
        let library = name.contains(".so");
        let executable =
            || fs::symlink_metadata(path).is_ok_and(|found| found.is_file() && found.permissions().mode() & 0o111 != 0);
        if library || executable() {
            self.needed.extend(needed_by(path));
        }
        if library {
            self.own.insert(name);
        }
    }

    /// The paths of all libraries of the system that are needed, directly or by another one, and of the links to them.
    pub(super) fn resolve(self) -> BTreeSet<PathBuf> {
        let mut paths = BTreeSet::new();
        let mut seen = self.own;
        let mut pending: Vec<String> = self.needed.into_iter().collect();
        while let Some(name) = pending.pop() {
            if !seen.insert(name.clone()) {
                continue;
            }
            let found = DIRECTORIES.iter().map(|dir| Path::new(dir).join(&name)).find(|path| path.exists());
            // What is nowhere is nothing that the program could use on this host either.
            let Some(path) = found else { continue };
            pending.extend(needed_by(&path));
            paths.extend(with_links(path));
        }
        paths
    }
}

/// The path, and each that it leads to as a link.
fn with_links(path: PathBuf) -> Vec<PathBuf> {
    let mut chain = vec![path];
    while let Some(last) = chain.last()
        && let Ok(target) = fs::read_link(last)
        && chain.len() <= MAX_LINKS
    {
        let next = last.parent().unwrap_or(Path::new("/")).join(target);
        chain.push(next);
    }
    chain
}

/// The `DT_NEEDED` names of an ELF file (`elf(5)`); none for any other file, or one that is broken.
fn needed_by(path: &Path) -> Vec<String> {
    let mut magic = [0; 4];
    let Ok(mut file) = File::open(path) else { return vec![] };
    if file.read_exact(&mut magic).is_err() || &magic != b"\x7fELF" {
        return vec![];
    }
    let read = || -> Result<Vec<String>, elf::ParseError> {
        let mut stream = ElfStream::<AnyEndian, _>::open_stream(file)?;
        let Some(dynamic) = stream.dynamic()? else { return Ok(vec![]) };
        let offsets: Vec<u64> =
            dynamic.iter().filter(|entry| entry.d_tag == DT_NEEDED).map(|entry| entry.d_val()).collect();
        let Some((_, strings)) = stream.dynamic_symbol_table()? else { return Ok(vec![]) };
        offsets.into_iter().map(|offset| Ok(strings.get(offset as usize)?.to_owned())).collect()
    };
    match read() {
        Ok(names) => names,
        Err(error) => {
            tracing::debug!(path = %path.display(), %error, "not taken for a program: it has no readable list of libraries");
            vec![]
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_libraries_of_this_program_are_found_with_their_links() {
        let program = std::env::current_exe().unwrap();
        assert!(needed_by(&program).contains(&"libc.so.6".to_owned()), "{:?}", needed_by(&program));
        let mut libraries = Libraries::default();
        libraries.add(&program);
        let paths = libraries.resolve();
        let libc: Vec<_> = paths.iter().filter(|path| path.ends_with("libc.so.6")).collect();
        assert_eq!(libc.len(), 1, "{paths:?}");
        assert!(paths.iter().all(|path| path.symlink_metadata().is_ok()));
    }

    #[test]
    fn what_is_brought_along_is_not_looked_for() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("libc.so.6"), "not an ELF file").unwrap();
        let mut libraries = Libraries::default();
        libraries.add(&std::env::current_exe().unwrap());
        libraries.add(&dir.path().join("libc.so.6"));
        assert!(!libraries.resolve().iter().any(|path| path.ends_with("libc.so.6")));
    }

    #[test]
    fn broken_files_need_nothing() {
        let dir = tempfile::tempdir().unwrap();
        for content in [
            &b""[..],
            b"\x7fELF",
            b"\x7fELF\x02\x01\x01aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa",
        ] {
            let path = dir.path().join("lib.so");
            fs::write(&path, content).unwrap();
            assert_eq!(needed_by(&path), Vec::<String>::new());
        }
        assert_eq!(needed_by(dir.path()), Vec::<String>::new());
    }
}
