//! What no function needs of a system or of an interpreter: documentation, translations, headers, static libraries, test
//! suites, compilers, kernels, and what only serves to build the interpreter's extensions.

use std::path::Path;

/// Directories of the system, from the root.
const OF_SYSTEM: &[&str] = &[
    "usr/games",
    "usr/include",
    "usr/lib/debug",
    "usr/lib/firmware",
    "usr/lib/gcc",
    "usr/lib/modules",
    "usr/lib/systemd",
    "usr/lib/udev",
    "usr/lib/locale/locale-archive",
    "usr/libexec/gcc",
    "usr/local",
    "usr/share/applications",
    "usr/share/bash-completion",
    "usr/share/bug",
    "usr/share/doc",
    "usr/share/doc-base",
    "usr/share/gtk-doc",
    "usr/share/help",
    "usr/share/icons",
    "usr/share/info",
    "usr/share/lintian",
    "usr/share/locale",
    "usr/share/man",
    "usr/share/menu",
    "usr/share/pixmaps",
    "usr/share/vim",
    "usr/share/zsh",
    "usr/src",
];

/// Directories of an interpreter, from its prefix.
const OF_PREFIX: &[&str] = &[
    "demo",
    "include",
    "jmods",
    "lib/pkgconfig",
    "lib/src.zip",
    "man",
    "sample",
    "share/doc",
    "share/info",
    "share/locale",
    "share/man",
    "share/ri",
    "share/systemtap",
    "src.zip",
];

/// Directories of Python's library. `tkinter` needs a display.
const OF_PYTHON: &[&str] = &[
    "ctypes/test",
    "distutils/tests",
    "idlelib",
    "lib2to3/tests",
    "sqlite3/test",
    "test",
    "tkinter",
    "turtledemo",
    "unittest/test",
];

/// Whether an image of the system can do without the file or directory at this absolute path.
pub(super) fn in_system(path: &Path) -> bool {
    let relative = path.strip_prefix("/").unwrap_or(path);
    OF_SYSTEM.iter().any(|unneeded| relative.starts_with(unneeded))
        || relative.strip_prefix("usr").is_ok_and(in_python)
        || by_name(path)
}

/// Whether an interpreter can do without the file or directory at this path below its prefix.
pub(super) fn in_prefix(relative: &Path) -> bool {
    OF_PREFIX.iter().any(|unneeded| relative.starts_with(unneeded)) || in_python(relative) || by_name(relative)
}

/// Looks below `lib/python3.12`, and at what is compiled for options that nobody sets.
fn in_python(below_prefix: &Path) -> bool {
    let mut parts = below_prefix.iter();
    let library = parts.next().is_some_and(|lib| lib == "lib")
        && parts.next().is_some_and(|name| name.to_string_lossy().starts_with("python"));
    let inside = parts.as_path();
    library
        && (OF_PYTHON.iter().any(|unneeded| inside.starts_with(unneeded))
            || inside.to_string_lossy().starts_with("lib-dynload/_tkinter."))
}

fn by_name(path: &Path) -> bool {
    let Some(name) = path.file_name() else { return false };
    let name = name.to_string_lossy();
    let optimized = name.ends_with(".opt-1.pyc") || name.ends_with(".opt-2.pyc");
    // The only objects that programs of a function could look for are shared.
    let for_builds = [".a", ".la", ".o", ".h"].iter().any(|end| name.ends_with(end));
    optimized || for_builds
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn documentation_and_headers_go_and_programs_stay() {
        for gone in [
            "/usr/share/doc/bash/README",
            "/usr/include",
            "/usr/lib/x86_64-linux-gnu/libz.a",
            "/usr/lib/python3.11/test/test_os.py",
            "/usr/lib/python3/dist-packages/x/__pycache__/a.cpython-311.opt-1.pyc",
        ] {
            assert!(in_system(Path::new(gone)), "{gone}");
        }
        for kept in [
            "/usr/bin/test",
            "/usr/share/zoneinfo/UTC",
            "/usr/lib/python3.11/unittest/case.py",
            "/usr/lib/python3.11/__pycache__/os.cpython-311.pyc",
            "/usr/share/documents",
        ] {
            assert!(!in_system(Path::new(kept)), "{kept}");
        }
    }

    #[test]
    fn a_prefix_keeps_what_runs() {
        for gone in
            ["include/node/v8.h", "share/man", "lib/python3.12/test", "lib/python3.12/lib-dynload/_tkinter.x.so"]
        {
            assert!(in_prefix(Path::new(gone)), "{gone}");
        }
        for kept in ["bin/node", "lib/python3.12/site-packages/numpy/tests", "lib/python3.12/json/tool.py", "test"] {
            assert!(!in_prefix(Path::new(kept)), "{kept}");
        }
    }
}
