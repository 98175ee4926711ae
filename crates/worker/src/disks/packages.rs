//! dpkg's database, as far as it tells which files belong together: `/var/lib/dpkg/status` and the lists in `info/`.
//!
//! Formats: `deb-control(5)` for the fields and relations, `dpkg-query(1)` for what an installed package is.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fs;
use std::path::{Path, PathBuf};

/// Where dpkg keeps it.
pub(super) const DPKG: &str = "/var/lib/dpkg";

/// Packages that functions may count on besides the essential ones: what Lambda's own images have of it, the libraries
/// that compiled extensions are built against, certificates and time zones.
const WANTED: &[&str] = &[
    "base-files",
    "bash",
    "ca-certificates",
    "coreutils",
    "curl",
    "dash",
    "diffutils",
    "findutils",
    "gawk",
    "grep",
    "gzip",
    "hostname",
    "libbz2-1.0",
    "libc-bin",
    "libc6",
    "libcrypt1",
    "libcurl4",
    "libexpat1",
    "libffi8",
    "libgcc-s1",
    "libgomp1",
    "liblzma5",
    "libreadline8",
    "libsqlite3-0",
    "libssl3",
    "libssl3t64",
    "libstdc++6",
    "libuuid1",
    "libyaml-0-2",
    "libzstd1",
    "mawk",
    "media-types",
    "ncurses-base",
    "netbase",
    "openssl",
    "procps",
    "sed",
    "tar",
    "tzdata",
    "unzip",
    "zlib1g",
];

/// Packages that install, boot or administer a system: no function needs them, whoever depends on them.
const NEVER: &[&str] = &[
    "adduser",
    "apt",
    "base-passwd",
    "bsdutils",
    "debconf",
    "debianutils",
    "dpkg",
    "e2fsprogs",
    "init-system-helpers",
    "login",
    "logsave",
    "mount",
    "passwd",
    "sysvinit-utils",
    "udev",
    "util-linux",
    "util-linux-extra",
];

/// The installed packages of the machine's own architecture.
#[derive(Debug)]
pub(super) struct Packages {
    info: PathBuf,
    by_name: BTreeMap<String, Package>,
    /// Names that are not a package's own, and who provides them.
    provided: HashMap<String, String>,
}

#[derive(Debug, Default)]
struct Package {
    name: String,
    architecture: String,
    essential: bool,
    installed: bool,
    provides: Vec<String>,
    /// Each a choice of names, the preferred one first.
    depends: Vec<Vec<String>>,
}

impl Packages {
    /// Reads the database in `dir`; `None` where there is none, that is on a system without dpkg.
    pub(super) fn read(dir: &Path) -> Option<Self> {
        let status = String::from_utf8_lossy(&fs::read(dir.join("status")).ok()?).into_owned();
        let all: Vec<Package> = status.split("\n\n").map(Package::parse).filter(|package| package.installed).collect();
        let native = all.iter().find(|package| package.name == "dpkg").map(|package| package.architecture.clone())?;
        let mut by_name = BTreeMap::new();
        let mut provided = HashMap::new();
        for package in all {
            if package.architecture == native || package.architecture == "all" {
                for name in &package.provides {
                    provided.entry(name.clone()).or_insert_with(|| package.name.clone());
                }
                by_name.insert(package.name.clone(), package);
            }
        }
        Some(Self { info: dir.join("info"), by_name, provided })
    }

    /// The names of the packages of a small base system and of `owners`, with all that they depend on.
    pub(super) fn closure(&self, owners: impl IntoIterator<Item = String>) -> BTreeSet<String> {
        let essential = self.by_name.values().filter(|package| package.essential).map(|package| package.name.clone());
        let wanted = WANTED.iter().map(|name| (*name).to_owned());
        let mut pending: Vec<String> = essential.chain(wanted).chain(owners).collect();
        let mut chosen = BTreeSet::new();
        while let Some(name) = pending.pop() {
            let Some(package) = self.by_name.get(&name) else { continue };
            if NEVER.contains(&&*name) || !chosen.insert(name) {
                continue;
            }
            pending.extend(package.depends.iter().filter_map(|choice| self.first_of(choice)));
        }
        chosen
    }

    fn first_of(&self, choice: &[String]) -> Option<String> {
        let own = choice.iter().find(|name| self.by_name.contains_key(*name));
        own.or_else(|| choice.iter().find_map(|name| self.provided.get(name))).cloned()
    }

    /// What a package has put on the system, directories among it; some of it may be gone.
    pub(super) fn files(&self, name: &str) -> Vec<PathBuf> {
        self.list(name).lines().map(PathBuf::from).collect()
    }

    /// The package that a file belongs to, by any of the paths that lead to it.
    pub(super) fn owner(&self, paths: &[PathBuf]) -> Option<String> {
        // A line of the list; the first one is always the root.
        let lines: Vec<String> = paths.iter().map(|path| format!("\n{}\n", path.display())).collect();
        let owns = |name: &String| {
            let list = self.list(name);
            lines.iter().any(|line| list.contains(line))
        };
        self.by_name.keys().find(|name| owns(name)).cloned()
    }

    fn list(&self, name: &str) -> String {
        let architecture = self.by_name.get(name).map_or("", |package| &package.architecture);
        fs::read_to_string(self.info.join(format!("{name}.list")))
            .or_else(|_| fs::read_to_string(self.info.join(format!("{name}:{architecture}.list"))))
            .unwrap_or_default()
    }
}

impl Package {
    fn parse(paragraph: &str) -> Self {
        let mut package = Self::default();
        for line in paragraph.lines() {
            let Some((field, value)) = line.split_once(':') else { continue };
            let value = value.trim();
            match field {
                "Package" => package.name = value.to_owned(),
                "Architecture" => package.architecture = value.to_owned(),
                "Essential" => package.essential = value == "yes",
                "Status" => package.installed = value.ends_with(" installed"),
                "Provides" => package.provides = relations(value).into_iter().flatten().collect(),
                "Depends" | "Pre-Depends" => package.depends.extend(relations(value)),
                _ => {}
            }
        }
        package
    }
}

/// Reads `a (>= 1) | b:any, c` as the names in it.
fn relations(text: &str) -> Vec<Vec<String>> {
    let name = |relation: &str| {
        let relation = relation.trim();
        relation.split([' ', '(', ':', '[']).next().unwrap_or_default().to_owned()
    };
    text.split(',').map(|choice| choice.split('|').map(name).collect()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const STATUS: &str = "Package: dpkg\nStatus: install ok installed\nEssential: yes\nArchitecture: amd64\n\n\
        Package: bash\nEssential: yes\nStatus: install ok installed\nArchitecture: amd64\nPre-Depends: libtinfo6 (>= 6), dpkg\n\n\
        Package: libtinfo6\nStatus: install ok installed\nArchitecture: i386\nDepends: only-foreign\n\n\
        Package: libtinfo6\nStatus: install ok installed\nArchitecture: amd64\n\n\
        Package: only-foreign\nStatus: install ok installed\nArchitecture: amd64\n\n\
        Package: python3\nStatus: install ok installed\nArchitecture: amd64\nDescription: x\n Depends: nonsense\n\
        Depends: python3-stdlib:any | other, mime-support, absent\n\n\
        Package: python3-stdlib\nStatus: install ok installed\nArchitecture: amd64\nDepends: python3\n\n\
        Package: media-data\nStatus: install ok installed\nArchitecture: all\nProvides: mime-support (= 3.66)\n\n\
        Package: removed\nEssential: yes\nStatus: deinstall ok config-files\nArchitecture: amd64\n";

    fn database() -> (tempfile::TempDir, Packages) {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("status"), STATUS).unwrap();
        fs::create_dir(dir.path().join("info")).unwrap();
        fs::write(dir.path().join("info/python3:amd64.list"), "/.\n/usr\n/usr/bin/python3\n").unwrap();
        fs::write(dir.path().join("info/bash.list"), "/.\n/bin\n/bin/bash\n").unwrap();
        let packages = Packages::read(dir.path()).unwrap();
        (dir, packages)
    }

    #[test]
    fn dependencies_are_followed_and_what_administers_is_not() {
        let (_dir, packages) = database();
        let base: Vec<_> = packages.closure([]).into_iter().collect();
        assert_eq!(base, ["bash", "libtinfo6"]);
        let all: Vec<_> = packages.closure(["python3".to_owned()]).into_iter().collect();
        assert_eq!(all, ["bash", "libtinfo6", "media-data", "python3", "python3-stdlib"]);
    }

    #[test]
    fn files_lead_to_packages_and_back() {
        let (_dir, packages) = database();
        assert_eq!(packages.files("bash"), ["/.", "/bin", "/bin/bash"].map(PathBuf::from));
        assert_eq!(packages.owner(&["/x".into(), "/usr/bin/python3".into()]), Some("python3".to_owned()));
        assert_eq!(packages.owner(&["/usr/bin/ruby".into()]), None);
        assert!(packages.files("media-data").is_empty());
    }

    #[test]
    fn a_system_without_dpkg_has_no_database() {
        assert!(Packages::read(Path::new("/nonexistent")).is_none());
    }
}
