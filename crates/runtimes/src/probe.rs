//! The version of an interpreter, found as cheaply as can be: from files beside it, from what an earlier probe
//! remembered for the same file, and only then by running it with `--version`.

use std::collections::BTreeMap;
use std::fs;
use std::io::Read;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::name::{Language, Version};

/// Remembered versions, kept as JSON in the data directory; losing the file only costs the probes again.
pub(crate) struct Probes {
    file: Option<PathBuf>,
    known: BTreeMap<PathBuf, Known>,
    changed: bool,
}

/// A remembered version and the state of the file that it was read from.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
struct Known {
    modified_ns: i128,
    size: u64,
    version: Option<Version>,
}

impl Probes {
    /// Reads what earlier probes remembered in `data_dir`.
    pub(crate) fn load(data_dir: &Path) -> Probes {
        let file = data_dir.join("runtime-probes.json");
        let known = fs::read(&file).ok().and_then(|text| serde_json::from_slice(&text).ok()).unwrap_or_default();
        Probes { file: Some(file), known, changed: false }
    }

    /// Writes the memory back if it changed. Failure is harmless: the next start probes again.
    pub(crate) fn save(&self) {
        let Some(file) = self.file.as_ref().filter(|_| self.changed) else { return };
        let written = file.parent().map_or(Ok(()), fs::create_dir_all).and_then(|()| {
            let next = file.with_extension("json.new");
            fs::write(&next, serde_json::to_vec(&self.known)?)?;
            fs::rename(&next, file)
        });
        if let Err(error) = written {
            tracing::debug!(file = %file.display(), %error, "runtime probes not remembered");
        }
    }

    /// The version of the interpreter `binary`, which must be an executable program and not a script (version managers
    /// put scripts of the interpreter's name on the path). `None` if it is not one, or does not say.
    pub(crate) fn version(&mut self, language: Language, binary: &Path) -> Option<Version> {
        let status = fs::metadata(binary).ok().filter(|status| status.is_file() && status.mode() & 0o111 != 0)?;
        let modified_ns = i128::from(status.mtime()) * 1_000_000_000 + i128::from(status.mtime_nsec());
        if let Some(known) = self.known.get(binary)
            && known.modified_ns == modified_ns
            && known.size == status.size()
        {
            return known.version;
        }
        let version = if is_elf(binary) { beside(language, binary).or_else(|| ask(language, binary)) } else { None };
        self.known.insert(binary.to_owned(), Known { modified_ns, size: status.size(), version });
        self.changed = true;
        version
    }
}

/// Whether the file is a program rather than a script.
fn is_elf(binary: &Path) -> bool {
    let mut magic = [0u8; 4];
    fs::File::open(binary).and_then(|mut file| file.read_exact(&mut magic)).is_ok() && magic == *b"\x7fELF"
}

/// The version as files next to the interpreter tell it: a JDK's `release`, or a prefix that is named after its version.
fn beside(language: Language, binary: &Path) -> Option<Version> {
    let prefix = binary.parent()?.parent()?;
    if language == Language::Java {
        let release = fs::read_to_string(prefix.join("release")).ok()?;
        let line = release.lines().find_map(|line| line.strip_prefix("JAVA_VERSION="))?;
        return Version::find_in(line);
    }
    let name = prefix.file_name()?.to_str()?;
    let numbers = name.trim_start_matches("cpython-").trim_start_matches('v').split('-').next()?;
    let whole = numbers.split('.').count() == 3 && numbers.split('.').all(|part| part.parse::<u16>().is_ok());
    if whole { Version::find_in(numbers) } else { None }
}

/// The version as the interpreter itself prints it. These print before they start their machinery, in milliseconds.
fn ask(language: Language, binary: &Path) -> Option<Version> {
    let flag = if language == Language::Java { "-version" } else { "--version" };
    let output = Command::new(binary)
        .arg(flag)
        .env_clear()
        .stdin(Stdio::null())
        .output()
        .inspect_err(|error| tracing::debug!(binary = %binary.display(), %error, "interpreter does not start"))
        .ok()?;
    // Java and Python 2 print to the standard error.
    let text = if output.stdout.is_empty() { output.stderr } else { output.stdout };
    output.status.success().then(|| Version::find_in(&String::from_utf8_lossy(&text)))?
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    fn executable(path: &Path, content: &[u8]) {
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, content).unwrap();
        fs::set_permissions(path, fs::Permissions::from_mode(0o755)).unwrap();
    }

    #[test]
    fn versions_come_from_the_prefix_and_from_release_files_without_running_anything() {
        let dir = tempfile::tempdir().unwrap();
        let mut probes = Probes::load(dir.path());
        let python = dir.path().join("versions/3.12.1/bin/python3.12");
        executable(&python, b"\x7fELF not really");
        assert_eq!(probes.version(Language::Python, &python), Version::find_in("3.12.1"));

        let java = dir.path().join("jdk/bin/java");
        executable(&java, b"\x7fELF not really");
        fs::write(dir.path().join("jdk/release"), "IMPLEMENTOR=\"x\"\nJAVA_VERSION=\"17.0.15\"\n").unwrap();
        assert_eq!(probes.version(Language::Java, &java), Version::find_in("17.0.15"));
    }

    #[test]
    fn scripts_and_plain_files_are_no_interpreters() {
        let dir = tempfile::tempdir().unwrap();
        let mut probes = Probes::load(dir.path());
        let shim = dir.path().join("3.12.1/bin/python3");
        executable(&shim, b"#!/bin/sh\nexec pyenv\n");
        assert_eq!(probes.version(Language::Python, &shim), None);
        assert_eq!(probes.version(Language::Python, &dir.path().join("absent")), None);
    }

    #[test]
    fn probes_are_remembered_until_the_file_changes() {
        let dir = tempfile::tempdir().unwrap();
        let binary = dir.path().join("3.11.7/bin/python3.11");
        executable(&binary, b"\x7fELF");
        let mut probes = Probes::load(dir.path());
        assert!(probes.version(Language::Python, &binary).is_some());
        probes.save();

        let mut again = Probes::load(dir.path());
        assert_eq!(again.version(Language::Python, &binary), Version::find_in("3.11.7"));
        assert!(!again.changed, "the second start reads the memory");
        executable(&binary, b"#!/bin/sh now a script");
        assert_eq!(again.version(Language::Python, &binary), None);
        assert!(again.changed);
    }
}
