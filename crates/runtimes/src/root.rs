//! The root file system that a runtime's functions see: the host's `/usr` for libc and friends, a generated `/etc`, the
//! interpreter at `/var/lang` and the bootstrap at `/var/runtime`, where Lambda has them.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use crate::bootstrap::{self, BootstrapError};
use crate::discover::Installed;
use crate::name::Language;

/// What to put together for a root file system; everything in it is read-only inside.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct RootPlan {
    /// Bind mounts, parents first: path on the host, path inside.
    pub binds: Vec<(PathBuf, PathBuf)>,
    /// Symbolic links: path inside, target as written.
    pub symlinks: BTreeMap<PathBuf, PathBuf>,
    /// Small files: path inside, content.
    pub files: BTreeMap<PathBuf, Vec<u8>>,
    /// Empty directories and mount points.
    pub dirs: Vec<PathBuf>,
    /// Host path of the interpreter: what of the system's own directories a copy of the root must have.
    pub programs: Vec<PathBuf>,
}

impl RootPlan {
    /// The path inside of a host path under one of the binds; the deepest bind wins.
    pub fn inside(&self, host: &Path) -> Option<PathBuf> {
        self.binds.iter().rev().find_map(|(from, to)| host.strip_prefix(from).ok().map(|rest| to.join(rest)))
    }

    fn bind(&mut self, host: impl Into<PathBuf>, inside: impl Into<PathBuf>) {
        self.binds.push((host.into(), inside.into()));
    }

    fn bind_if_there(&mut self, path: &str) {
        if Path::new(path).exists() {
            self.bind(path, path);
        }
    }
}

/// Where Debian keeps the libraries that other systems, Lambda's among them, have in `/lib64`.
const MULTIARCH: &str = "usr/lib/x86_64-linux-gnu";

/// What `/lib64` is to be inside. Lambda's library path begins with it, and on Debian it holds the loader alone: the
/// loader would look in dozens of places before it finds the C library, at every start.
fn libraries(target: PathBuf) -> PathBuf {
    let has_loader = Path::new("/").join(MULTIARCH).join("ld-linux-x86-64.so.2").exists();
    if has_loader { PathBuf::from(MULTIARCH) } else { target }
}

/// The root without any interpreter, for functions that bring their own `bootstrap`.
pub(crate) fn base(data_dir: &Path) -> Result<RootPlan, BootstrapError> {
    let mut root = RootPlan::default();
    root.bind("/usr", "/usr");
    // What an administrator built by hand is no part of a runtime.
    if Path::new("/usr/local").is_dir() {
        root.bind(bootstrap::empty_dir(data_dir)?, "/usr/local");
    }
    for name in ["bin", "sbin", "lib", "lib32", "lib64"] {
        let path = Path::new("/").join(name);
        match fs::read_link(&path) {
            Ok(target) => {
                root.symlinks.insert(path, if name == "lib64" { libraries(target) } else { target });
            }
            // A host whose /usr is not merged has real directories there.
            Err(_) if path.is_dir() => root.bind(&path, &path),
            Err(_) => {}
        }
    }
    etc(&mut root);
    root.dirs = ["/var/task", "/var/runtime", "/opt", "/tmp", "/proc", "/dev"].map(PathBuf::from).to_vec();
    Ok(root)
}

/// The root for functions of an interpreter, and the interpreter's path inside.
pub(crate) fn with_interpreter(data_dir: &Path, installed: &Installed) -> Result<(RootPlan, PathBuf), BootstrapError> {
    let mut root = base(data_dir)?;
    root.programs.push(installed.binary.clone());
    let in_place = installed.prefix.starts_with("/usr") && !installed.prefix.starts_with("/usr/local");
    if in_place {
        root.dirs.push("/var/lang".into());
    } else {
        root.bind(&installed.prefix, "/var/lang");
        link_built_in_prefix(&mut root, installed);
    }
    if installed.language == Language::Java {
        // Debian keeps a JDK's configuration in /etc/java-NN-openjdk, and links to it: the directory, or each file.
        bind_link_target(&mut root, &installed.prefix.join("conf/security/java.security"));
        bind_link_target(&mut root, &installed.prefix.join("lib/security/cacerts"));
    }
    root.bind(bootstrap::lay_out(data_dir, installed)?, "/var/runtime");
    root.dirs.retain(|dir| dir != Path::new("/var/runtime"));
    let binary = if in_place {
        installed.binary.clone()
    } else {
        let rest = installed.binary.strip_prefix(&installed.prefix).unwrap_or(Path::new("bin"));
        Path::new("/var/lang").join(rest)
    };
    Ok((root, binary))
}

/// A shared interpreter (`libpython3.12.so`) finds its library by the absolute path that it was built for. Lambda's
/// LD_LIBRARY_PATH finds it too, but a function may replace that variable; the link keeps such functions working.
fn link_built_in_prefix(root: &mut RootPlan, installed: &Installed) {
    let shared = fs::read_dir(installed.prefix.join("lib")).into_iter().flatten().any(|entry| {
        entry.is_ok_and(|entry| {
            let name = entry.file_name();
            let name = name.to_string_lossy();
            name.contains(".so") && (name.starts_with("libpython") || name.starts_with("libruby"))
        })
    });
    if shared {
        root.symlinks.insert(installed.prefix.clone(), "/var/lang".into());
    }
}

/// Binds the directory of what a link points to, if that is in `/etc`.
fn bind_link_target(root: &mut RootPlan, link: &Path) {
    let Ok(target) = fs::canonicalize(link) else { return };
    let Ok(rest) = target.strip_prefix("/etc") else { return };
    let Some(first) = rest.components().next() else { return };
    let dir = Path::new("/etc").join(first);
    // Certificates are bound already; /etc/ssl also holds private keys.
    if dir != Path::new("/etc/ssl") && !root.binds.iter().any(|(host, _)| *host == dir) {
        root.bind(&dir, &dir);
    }
}

fn etc(root: &mut RootPlan) {
    for path in
        ["/etc/ld.so.cache", "/etc/alternatives", "/etc/ssl/certs", "/etc/ssl/openssl.cnf", "/etc/pki/tls/certs"]
    {
        root.bind_if_there(path);
    }
    let mut file = |path: &str, content: &str| root.files.insert(path.into(), content.as_bytes().to_vec());
    file("/etc/hosts", "127.0.0.1 localhost sandbox.localdomain\n");
    file("/etc/nsswitch.conf", "passwd: files\ngroup: files\nhosts: files dns\n");
    file(
        "/etc/passwd",
        "root:x:0:0:root:/root:/sbin/nologin\nsbx_user1051:x:993:990::/home/sbx_user1051:/sbin/nologin\n\
         nobody:x:65534:65534:nobody:/nonexistent:/sbin/nologin\n",
    );
    file("/etc/group", "root:x:0:\nsbx_user1051:x:990:\nnogroup:x:65534:\n");
    file("/etc/protocols", "ip 0 IP\nicmp 1 ICMP\ntcp 6 TCP\nudp 17 UDP\nipv6 41 IPv6\n");
    file(
        "/etc/os-release",
        "NAME=\"Firelet\"\nID=firelet\nPRETTY_NAME=\"Firelet execution environment\"\nVERSION_ID=\"2023\"\n",
    );
    root.symlinks.insert("/etc/localtime".into(), "/usr/share/zoneinfo/UTC".into());
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::discover::Origin;
    use crate::name::Version;

    fn installed(prefix: &Path) -> Installed {
        Installed {
            name: "nodejs20.1.0".into(),
            language: Language::Nodejs,
            version: Version { major: 20, minor: 1, patch: 0 },
            origin: Origin::Directory,
            binary: prefix.join("bin/node"),
            prefix: prefix.to_owned(),
            serves: "nodejs20.x".into(),
            unavailable: None,
        }
    }

    #[test]
    fn an_interpreter_elsewhere_is_bound_at_var_lang() {
        let data = tempfile::tempdir().unwrap();
        let (root, binary) = with_interpreter(data.path(), &installed(Path::new("/somewhere/node20"))).unwrap();
        assert_eq!(binary, Path::new("/var/lang/bin/node"));
        assert_eq!(root.inside(Path::new("/somewhere/node20/lib/x")), Some("/var/lang/lib/x".into()));
    }

    #[test]
    fn the_systems_own_interpreter_is_used_in_place() {
        let data = tempfile::tempdir().unwrap();
        let (root, binary) = with_interpreter(data.path(), &installed(Path::new("/usr"))).unwrap();
        assert_eq!(binary, Path::new("/usr/bin/node"));
        assert!(root.dirs.contains(&"/var/lang".into()));
    }

    #[test]
    fn nothing_private_of_the_host_is_bound() {
        let data = tempfile::tempdir().unwrap();
        let (root, _) = with_interpreter(data.path(), &installed(Path::new("/somewhere/node20"))).unwrap();
        for (host, inside) in &root.binds {
            for private in ["/etc", "/home", "/root", "/var", "/etc/ssl", "/usr/local"] {
                assert_ne!(host, Path::new(private), "bound at {}", inside.display());
            }
        }
        let parents_first = root.binds.iter().enumerate().all(|(index, (_, inside))| {
            root.binds[index + 1..].iter().all(|(_, later)| !inside.starts_with(later) || inside == later)
        });
        assert!(parents_first, "{:?}", root.binds);
    }

    #[test]
    fn a_shared_interpreter_finds_its_library_by_its_built_in_path() {
        let dir = tempfile::tempdir().unwrap();
        let prefix = dir.path().join("3.12.1");
        fs::create_dir_all(prefix.join("lib")).unwrap();
        fs::write(prefix.join("lib/libpython3.12.so.1.0"), "").unwrap();
        let (root, _) = with_interpreter(dir.path(), &installed(&prefix)).unwrap();
        assert_eq!(root.symlinks.get(&prefix), Some(&PathBuf::from("/var/lang")));
    }
}
