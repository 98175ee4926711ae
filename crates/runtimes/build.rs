//! Compiles the Java bootstrap, so that hosts need only a Java runtime and not a compiler.
//!
//! Without a `javac` of release 11 or newer the build goes on, and the catalog says why Java is not available.

use std::env;
use std::fmt::Write as _;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::Command;

fn main() -> io::Result<()> {
    let sources = Path::new("../../runtimes/java");
    println!("cargo::rerun-if-changed={}", sources.display());
    println!("cargo::rerun-if-env-changed=JAVA_HOME");
    let out = PathBuf::from(env::var_os("OUT_DIR").ok_or_else(|| io::Error::other("cargo sets OUT_DIR"))?);
    let classes = out.join("java");
    if classes.is_dir() {
        fs::remove_dir_all(&classes)?;
    }
    fs::create_dir_all(&classes)?;

    let missing = compile(sources, &classes).err();
    if let Some(reason) = &missing {
        println!("cargo::warning=the Java runtime is left out: {reason}");
    }
    let mut table = String::from("const JAVA_CLASSES: &[File] = &[\n");
    if missing.is_none() {
        for class in files_below(&classes, "class")? {
            let name = class.strip_prefix(&out).map_err(io::Error::other)?;
            let _ = writeln!(
                table,
                "    ({:?}, include_bytes!({:?})),",
                name.display().to_string(),
                class.display().to_string()
            );
        }
    }
    table.push_str("];\n");
    let _ = writeln!(table, "const JAVA_MISSING: Option<&str> = {missing:?};");
    fs::write(out.join("java_classes.rs"), table)
}

/// Compiles everything below `sources` into `classes`; the error says why not.
fn compile(sources: &Path, classes: &Path) -> Result<(), String> {
    let javac = find_javac().ok_or("firelet was built on a machine without javac")?;
    let files = files_below(sources, "java").map_err(|error| error.to_string())?;
    let output = Command::new(&javac)
        .args(["--release", "11", "-encoding", "UTF-8", "-g:source,lines", "-d"])
        .arg(classes)
        .args(&files)
        .output()
        .map_err(|error| format!("{} does not run: {error}", javac.display()))?;
    if output.status.success() {
        return Ok(());
    }
    let text = String::from_utf8_lossy(&output.stderr).replace('\n', "; ");
    Err(format!("{} failed when firelet was built: {text}", javac.display()))
}

fn find_javac() -> Option<PathBuf> {
    let mut places: Vec<PathBuf> = env::var_os("JAVA_HOME").iter().map(|home| Path::new(home).join("bin")).collect();
    places.extend(env::var_os("PATH").iter().flat_map(env::split_paths));
    let mut jvms: Vec<PathBuf> =
        fs::read_dir("/usr/lib/jvm").into_iter().flatten().filter_map(|entry| Some(entry.ok()?.path())).collect();
    jvms.sort();
    places.extend(jvms.into_iter().map(|jvm| jvm.join("bin")));
    places.into_iter().map(|place| place.join("javac")).find(|javac| javac.is_file())
}

fn files_below(dir: &Path, extension: &str) -> io::Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(dir)? {
        let path = entry?.path();
        if path.is_dir() {
            found.extend(files_below(&path, extension)?);
        } else if path.extension().is_some_and(|found| found == extension) {
            found.push(path);
        }
    }
    found.sort();
    Ok(found)
}
