//! The bootstraps, carried in the program and laid out as directories that are bound at `/var/runtime`.
//!
//! A directory is named after the hash of its content, written beside its final place and renamed, so several Firelets
//! may share a data directory and an upgrade never changes what a running sandbox has mounted.

use std::ffi::OsString;
use std::fs;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use sha2::{Digest, Sha256};

use crate::discover::Installed;
use crate::name::Language;

/// Why a bootstrap could not be laid out.
#[derive(Debug, thiserror::Error)]
pub enum BootstrapError {
    /// A file or directory of it could not be written.
    #[error("cannot write the bootstrap to {path}: check that the data directory is writable")]
    Write {
        /// What was to be written.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
}

/// One file of a bootstrap: its path under `/var/runtime` and its content.
type File = (&'static str, &'static [u8]);

macro_rules! runtime_files {
    ($($path:literal from $source:literal),* $(,)?) => {
        &[$(($path, include_bytes!(concat!("../../../runtimes/", $source)))),*]
    };
}

const PYTHON: &[File] = runtime_files![
    "bootstrap.py" from "python/bootstrap.py",
    "firelet_api.py" from "python/firelet_api.py",
    "firelet_concurrent.py" from "python/firelet_concurrent.py",
    "firelet_image.py" from "python/firelet_image.py",
    "firelet_json.py" from "python/firelet_json.py",
    "firelet_prestart.py" from "python/firelet_prestart.py",
    "firelet_rehearsal.py" from "python/firelet_rehearsal.py",
    "firelet_runtime.py" from "python/firelet_runtime.py",
    "firelet_logging.py" from "python/firelet_logging.py",
    "firelet_snapstart.py" from "python/firelet_snapstart.py",
    "snapshot_restore_py.py" from "python/snapshot_restore_py.py",
];

const NODEJS: &[File] = runtime_files![
    "bootstrap" from "nodejs/bootstrap",
    "bootstrap.cjs" from "nodejs/bootstrap.cjs",
    "concurrent.cjs" from "nodejs/concurrent.cjs",
    "console.cjs" from "nodejs/console.cjs",
    "errors.cjs" from "nodejs/errors.cjs",
    "prestart.cjs" from "nodejs/prestart.cjs",
    "runtime-api.cjs" from "nodejs/runtime-api.cjs",
    "snapshot.cjs" from "nodejs/snapshot.cjs",
    "streaming.cjs" from "nodejs/streaming.cjs",
    "warm.js" from "nodejs/warm.js",
    "warm-module.mjs" from "nodejs/warm-module.mjs",
];

const RUBY: &[File] = runtime_files![
    "bootstrap.rb" from "ruby/bootstrap.rb",
    "lib/snapshot_restore.rb" from "ruby/lib/snapshot_restore.rb",
];

const JAVA: &[File] = runtime_files!["bootstrap" from "java/bootstrap"];

// The compiled classes, why there are none, and whether the native part is among them; the native part for Node.js.
include!(concat!(env!("OUT_DIR"), "/java_classes.rs"));

fn files(language: Language) -> impl Iterator<Item = &'static File> {
    let (files, compiled): (&[File], &[File]) = match language {
        Language::Python => (PYTHON, &[]),
        Language::Nodejs => (NODEJS, NODE_NATIVE),
        Language::Ruby => (RUBY, &[]),
        Language::Java => (JAVA, JAVA_CLASSES),
        Language::Provided => (&[], &[]),
    };
    files.iter().chain(compiled)
}

/// Why functions of this language cannot run although an interpreter is there; `None` if they can.
pub(crate) fn missing(language: Language) -> Option<String> {
    JAVA_MISSING.filter(|_| language == Language::Java).map(str::to_owned)
}

/// Whether a process of this language can be started before it is known for which function.
pub(crate) fn waits(language: Language) -> bool {
    match language {
        Language::Java => JAVA_WAITS,
        Language::Python | Language::Nodejs | Language::Ruby => true,
        Language::Provided => false,
    }
}

/// The directory of an interpreter's bootstrap under `data_dir`, written if it is not there yet.
///
/// # Errors
/// [`BootstrapError::Write`] if the data directory does not take it.
pub(crate) fn lay_out(data_dir: &Path, installed: &Installed) -> Result<PathBuf, BootstrapError> {
    let mut hash = Sha256::new();
    for (path, content) in files(installed.language) {
        hash.update(path.len().to_le_bytes());
        hash.update(path);
        hash.update(content.len().to_le_bytes());
        hash.update(content);
    }
    // Compiled Python is only good for the release that compiled it.
    hash.update(installed.version.to_string());
    let digest: String = hash.finalize().iter().take(8).map(|byte| format!("{byte:02x}")).collect();
    let parent = data_dir.join("bootstraps");
    let target = parent.join(format!("{}-{digest}", installed.name));
    if target.is_dir() {
        return Ok(target);
    }

    fs::create_dir_all(&parent).map_err(|source| BootstrapError::Write { path: parent.clone(), source })?;
    let staging = tempfile::Builder::new()
        .prefix(".new-")
        .tempdir_in(&parent)
        .map_err(|source| BootstrapError::Write { path: parent.clone(), source })?;
    for (path, content) in files(installed.language) {
        write_file(&staging.path().join(path), content)?;
    }
    if installed.language == Language::Python {
        compile_python(&installed.binary, staging.path());
    }
    let failed = |source| BootstrapError::Write { path: target.clone(), source };
    fs::set_permissions(staging.path(), fs::Permissions::from_mode(0o755)).map_err(failed)?;
    match fs::rename(staging.path(), &target) {
        // Another process was first; the names are content hashes, so its directory is the same.
        Err(_) if target.is_dir() => {}
        renamed => renamed.map_err(failed)?,
    }
    Ok(target)
}

/// An empty directory under `data_dir`, to be bound over what functions shall not see.
///
/// # Errors
/// [`BootstrapError::Write`] if the data directory does not take it.
pub(crate) fn empty_dir(data_dir: &Path) -> Result<PathBuf, BootstrapError> {
    let path = data_dir.join("bootstraps").join("empty");
    fs::create_dir_all(&path).map_err(|source| BootstrapError::Write { path: path.clone(), source })?;
    Ok(path)
}

fn write_file(path: &Path, content: &[u8]) -> Result<(), BootstrapError> {
    let write = || {
        path.parent().map_or(Ok(()), fs::create_dir_all)?;
        fs::write(path, content)?;
        let mode = if content.starts_with(b"#!") { 0o755 } else { 0o644 };
        fs::set_permissions(path, fs::Permissions::from_mode(mode))
    };
    write().map_err(|source| BootstrapError::Write { path: path.to_owned(), source })
}

/// Compiles the modules once, so that no cold start does. `/var/runtime` is read-only inside, so the interpreter could
/// never keep its own compilation. Without it functions run all the same, some milliseconds later.
fn compile_python(python: &Path, dir: &Path) {
    let script = "import py_compile, sys\n\
                  for name in sys.argv[2:]:\n\
                  \u{20}   args = (sys.argv[1] + '/' + name, None, '/var/runtime/' + name, True)\n\
                  \u{20}   if sys.version_info < (3, 7):\n\
                  \u{20}       py_compile.compile(*args)\n\
                  \u{20}   else:\n\
                  \u{20}       mode = py_compile.PycInvalidationMode.UNCHECKED_HASH\n\
                  \u{20}       py_compile.compile(*args, invalidation_mode=mode)\n";
    let modules = PYTHON.iter().map(|(name, _)| name).filter(|name| **name != "bootstrap.py");
    let args: Vec<OsString> = ["-I", "-S", "-c", script].map(OsString::from).into_iter().chain([dir.into()]).collect();
    let output = Command::new(python).args(args).args(modules).env_clear().stdin(Stdio::null()).output();
    match output {
        Ok(output) if output.status.success() => {}
        Ok(output) => {
            let text = String::from_utf8_lossy(&output.stderr).into_owned();
            tracing::warn!(python = %python.display(), text, "bootstrap not compiled ahead: cold starts will be slower");
        }
        Err(error) => {
            tracing::warn!(python = %python.display(), %error, "bootstrap not compiled ahead: cold starts will be slower");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::discover::Origin;
    use crate::name::Version;

    fn node() -> Installed {
        Installed {
            name: "nodejs20.1.0".into(),
            language: Language::Nodejs,
            version: Version { major: 20, minor: 1, patch: 0 },
            origin: Origin::Machine,
            binary: "/nonexistent/bin/node".into(),
            prefix: "/nonexistent".into(),
            serves: "nodejs20.x".into(),
            unavailable: None,
        }
    }

    #[test]
    fn a_bootstrap_is_written_once_and_is_readable_by_the_function() {
        let data = tempfile::tempdir().unwrap();
        let first = lay_out(data.path(), &node()).unwrap();
        let written = fs::metadata(&first).unwrap();
        assert_eq!(written.permissions().mode() & 0o777, 0o755);
        assert_eq!(fs::metadata(first.join("bootstrap")).unwrap().permissions().mode() & 0o777, 0o755);
        assert_eq!(fs::metadata(first.join("bootstrap.cjs")).unwrap().permissions().mode() & 0o777, 0o644);

        // As on every machine that builds Firelet and has a C compiler, which its dependencies need.
        assert!(fs::read(first.join("reseed.node")).unwrap().starts_with(b"\x7fELF"));

        assert_eq!(lay_out(data.path(), &node()).unwrap(), first);
        assert_eq!(fs::metadata(&first).unwrap().modified().unwrap(), written.modified().unwrap());
        let entries = fs::read_dir(data.path().join("bootstraps")).unwrap().count();
        assert_eq!(entries, 1, "no staging directory is left behind");
    }

    #[test]
    fn an_unwritable_data_directory_is_named() {
        let error = lay_out(Path::new("/proc/nonexistent"), &node()).unwrap_err();
        assert!(error.to_string().contains("/proc/nonexistent"), "{error}");
    }
}
