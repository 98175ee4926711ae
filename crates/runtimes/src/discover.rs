//! The search for interpreters on this host: the path, the usual system places, version managers, and the runtimes
//! that were added to the data directory.

use std::collections::BTreeSet;
use std::env;
use std::fs;
use std::path::{Path, PathBuf};

use crate::name::{Language, RuntimeName, Version};
use crate::probe::Probes;

/// Where an interpreter came from.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Origin {
    /// Installed on the machine, found on the path or in a system place.
    Machine,
    /// One of pyenv's (or, for other languages, another version manager's) versions.
    Pyenv,
    /// A directory that the configuration names, or that was added with `dir:`.
    Directory,
    /// Added from the npm registry; the package as asked for.
    Npm(String),
    /// Added from PyPI; the package as asked for.
    PyPi(String),
}

/// One interpreter that functions can run on.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct Installed {
    /// A name for people, unique among the interpreters of one language and place: `python3.12.1`.
    pub name: String,
    /// Its language.
    pub language: Language,
    /// Its version.
    pub version: Version,
    /// Where it came from.
    pub origin: Origin,
    /// The interpreter, free of symbolic links.
    pub binary: PathBuf,
    /// The directory above its `bin`.
    pub prefix: PathBuf,
    /// The Lambda runtime name that it serves exactly.
    pub serves: String,
    /// Why it cannot be used, where something is missing besides the interpreter.
    pub unavailable: Option<String>,
}

/// Where to look. Tests give their own trees; the real places come from [`Places::of_this_machine`].
#[derive(Debug, Default)]
pub(crate) struct Places {
    /// Directories with programs.
    pub(crate) bins: Vec<PathBuf>,
    /// Directories whose entries are prefixes (`<dir>/<entry>/bin/python3`), by origin.
    pub(crate) prefixes: Vec<(PathBuf, Origin)>,
}

impl Places {
    /// The places of this machine, from its environment variables and customs.
    pub(crate) fn of_this_machine() -> Places {
        let mut bins: Vec<PathBuf> = env::var_os("PATH").iter().flat_map(env::split_paths).collect();
        bins.extend(["/usr/local/bin", "/usr/bin"].map(PathBuf::from));
        if let Some(home) = env::var_os("JAVA_HOME") {
            bins.push(Path::new(&home).join("bin"));
        }
        let mut homes: Vec<PathBuf> = env::var_os("HOME").map(PathBuf::from).into_iter().collect();
        homes.push("/root".into());
        homes.dedup();

        let mut prefixes = Vec::new();
        let mut managed = |dir: PathBuf| prefixes.push((dir, Origin::Pyenv));
        for (variable, versions) in [
            ("PYENV_ROOT", "versions"),
            ("RBENV_ROOT", "versions"),
            ("NVM_DIR", "versions/node"),
            ("ASDF_DATA_DIR", "installs/python"),
            ("UV_PYTHON_INSTALL_DIR", ""),
        ] {
            if let Some(root) = env::var_os(variable) {
                managed(Path::new(&root).join(versions));
            }
        }
        for home in &homes {
            for versions in [
                ".pyenv/versions",
                ".rbenv/versions",
                ".rubies",
                ".nvm/versions/node",
                ".asdf/installs/python",
                ".asdf/installs/nodejs",
                ".asdf/installs/ruby",
                ".asdf/installs/java",
                ".sdkman/candidates/java",
                ".local/share/uv/python",
                ".local/share/mise/installs/python",
                ".local/share/mise/installs/node",
            ] {
                managed(home.join(versions));
            }
        }
        for dir in ["/usr/lib/jvm", "/opt"] {
            prefixes.push((dir.into(), Origin::Machine));
        }
        Places { bins, prefixes }
    }
}

/// Finds every interpreter in `places`, in the directories `dirs` that the configuration names, and among the runtimes
/// in `added`. The best one of each series comes first: named ones, then added ones, then the newest release.
pub(crate) fn find(places: &Places, dirs: &[PathBuf], added: &Path, probes: &mut Probes) -> Vec<Installed> {
    let mut search = Search { probes, seen: BTreeSet::new(), found: Vec::new() };
    for dir in dirs {
        search.prefix(dir, &Origin::Directory);
        search.prefixes(dir, &Origin::Directory);
    }
    // Dotted names are runtimes that are being added at this moment.
    let hidden = |entry: &Path| entry.file_name().is_some_and(|name| name.as_encoded_bytes().starts_with(b"."));
    for entry in sorted_entries(added).into_iter().filter(|entry| !hidden(entry)) {
        search.prefix(&entry, &crate::add::origin_of(&entry));
    }
    let named = search.found.len();
    for bin in &places.bins {
        search.bin(bin, &Origin::Machine);
    }
    for (dir, origin) in &places.prefixes {
        search.prefixes(dir, origin);
    }
    let mut found = search.found;
    // Stable: among the same language and series, what was named or added stays ahead of what was merely found.
    let rank = |index: usize| if index < named { 0 } else { 1 };
    let mut order: Vec<(usize, Installed)> = found.drain(..).enumerate().collect();
    order.sort_by(|(a, x), (b, y)| {
        let series = |i: &Installed| (i.language, i.version.series(i.language));
        series(x).cmp(&series(y)).then(rank(*a).cmp(&rank(*b))).then(y.version.cmp(&x.version)).then(a.cmp(b))
    });
    order.into_iter().map(|(_, installed)| installed).collect()
}

struct Search<'a> {
    probes: &'a mut Probes,
    seen: BTreeSet<PathBuf>,
    found: Vec<Installed>,
}

impl Search<'_> {
    fn prefixes(&mut self, dir: &Path, origin: &Origin) {
        for entry in sorted_entries(dir) {
            self.prefix(&entry, origin);
        }
    }

    fn prefix(&mut self, prefix: &Path, origin: &Origin) {
        self.bin(&prefix.join("bin"), origin);
    }

    /// Looks for the programs of every language in one directory of programs.
    fn bin(&mut self, bin: &Path, origin: &Origin) {
        // One listing is cheaper than a probe for each of the many names that a Python or Ruby can have.
        let Ok(entries) = fs::read_dir(bin) else { return };
        let mut names: Vec<String> = entries
            .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
            .filter(|name| language_of(name).is_some())
            .collect();
        names.sort();
        for name in names {
            if let Some(language) = language_of(&name) {
                self.candidate(language, &bin.join(name), origin);
            }
        }
    }

    fn candidate(&mut self, language: Language, path: &Path, origin: &Origin) {
        let Ok(binary) = fs::canonicalize(path) else { return };
        if !self.seen.insert(binary.clone()) {
            return;
        }
        let Some(version) = self.probes.version(language, &binary) else { return };
        if version < oldest(language) {
            return;
        }
        let Some(prefix) = binary.parent().and_then(Path::parent).map(Path::to_owned) else { return };
        self.found.push(Installed {
            name: format!("{language}{version}"),
            language,
            version,
            origin: origin.clone(),
            serves: RuntimeName::for_series(language, version.series(language)),
            unavailable: crate::bootstrap::missing(language),
            binary,
            prefix,
        });
    }
}

/// The language whose interpreter a program of this name may be: `python3`, `python3.12`, `node`, `java`, `ruby3.1`.
fn language_of(program: &str) -> Option<Language> {
    let version_only = |rest: &str| rest.bytes().all(|byte| byte.is_ascii_digit() || byte == b'.');
    match program {
        "node" | "nodejs" => Some(Language::Nodejs),
        "java" => Some(Language::Java),
        _ => {
            if let Some(rest) = program.strip_prefix("python3") {
                version_only(rest).then_some(Language::Python)
            } else {
                program.strip_prefix("ruby").filter(|rest| version_only(rest)).map(|_| Language::Ruby)
            }
        }
    }
}

/// The oldest release that the bootstrap of a language runs on.
fn oldest(language: Language) -> Version {
    let (major, minor) = match language {
        Language::Python => (3, 6),
        Language::Nodejs => (16, 0),
        Language::Java => (11, 0),
        Language::Ruby => (2, 7),
        Language::Provided => (0, 0),
    };
    Version { major, minor, patch: 0 }
}

fn sorted_entries(dir: &Path) -> Vec<PathBuf> {
    let mut entries: Vec<PathBuf> =
        fs::read_dir(dir).into_iter().flatten().filter_map(|entry| Some(entry.ok()?.path())).collect();
    entries.sort();
    entries
}

#[cfg(test)]
mod tests;
