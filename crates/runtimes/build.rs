//! Compiles the Java bootstrap, and the native part of Node.js's, so that hosts need only the runtimes and no compilers.
//!
//! Without a `javac` of release 11 or newer the build goes on, and the catalog says why Java is not available. Without a C
//! compiler or the JDK's headers Java is available, but no JVM can be started ahead of its function. Without a C compiler
//! Node.js is available, but its functions cannot be kept as snapshots.

use std::env;
use std::fmt::Write as _;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Strings that are put together with invokedynamic cost a JVM tens of milliseconds the first time.
const INLINE_STRINGS: &str = "-XDstringConcat=inline";

fn main() -> io::Result<()> {
    let sources = Path::new("../../runtimes/java");
    println!("cargo::rerun-if-changed={}", sources.display());
    println!("cargo::rerun-if-env-changed=JAVA_HOME");
    println!("cargo::rerun-if-env-changed=CC");
    let out = PathBuf::from(env::var_os("OUT_DIR").ok_or_else(|| io::Error::other("cargo sets OUT_DIR"))?);
    let laid_out = out.join("laid-out");
    if laid_out.is_dir() {
        fs::remove_dir_all(&laid_out)?;
    }
    fs::create_dir_all(&laid_out)?;

    let javac = find_javac().ok_or_else(|| "firelet was built on a machine without javac".to_owned());
    let compiled = javac.and_then(|javac| {
        // The interfaces of aws-lambda-java-core are not the runtime's: functions may bring their own.
        compile(&javac, &[&sources.join("firelet"), &sources.join("crac")], &laid_out.join("java"))?;
        compile(&javac, &[&sources.join("api")], &laid_out.join("java-api"))?;
        Ok(javac)
    });
    let missing = compiled.as_ref().err();
    let mut waits = false;
    match &compiled {
        Err(reason) => println!("cargo::warning=the Java runtime is left out: {reason}"),
        Ok(javac) => match build_library(javac, &sources.join("environment.c"), &laid_out.join("libenvironment.so")) {
            Ok(()) => waits = true,
            Err(reason) => println!("cargo::warning=no JVM can be started ahead of its function: {reason}"),
        },
    }
    let mut table = String::from("const JAVA_CLASSES: &[File] = &[\n");
    if missing.is_none() {
        for file in files_below(&laid_out, "class")?.into_iter().chain(files_below(&laid_out, "so")?) {
            let name = file.strip_prefix(&laid_out).map_err(io::Error::other)?;
            let _ = writeln!(
                table,
                "    ({:?}, include_bytes!({:?})),",
                name.display().to_string(),
                file.display().to_string()
            );
        }
    }
    table.push_str("];\n");
    let _ = writeln!(table, "const JAVA_MISSING: Option<&str> = {missing:?};");
    let _ = writeln!(table, "const JAVA_WAITS: bool = {waits};");
    table.push_str(&node_table(&out.join("reseed.node")));
    fs::write(out.join("java_classes.rs"), table)
}

/// Builds the native part of the Node.js bootstrap; the table is empty where that cannot be.
fn node_table(library: &Path) -> String {
    let source = Path::new("../../runtimes/nodejs/reseed.c");
    println!("cargo::rerun-if-changed={}", source.display());
    let files = match compile_c(&[], source, library) {
        Ok(()) => format!("(\"reseed.node\", include_bytes!({:?}))", library.display().to_string()),
        Err(reason) => {
            println!("cargo::warning=no SnapStart for Node.js: {reason}");
            String::new()
        }
    };
    format!("const NODE_NATIVE: &[File] = &[{files}];\n")
}

/// Builds the native part of what takes an environment over; the error says why not.
fn build_library(javac: &Path, source: &Path, library: &Path) -> Result<(), String> {
    let javac = fs::canonicalize(javac).map_err(|error| format!("{}: {error}", javac.display()))?;
    let home = javac.parent().and_then(Path::parent).unwrap_or(Path::new("/"));
    compile_c(&[home.join("include"), home.join("include/linux")], source, library)
}

/// Builds a shared library of one file; the error says why not.
fn compile_c(headers: &[PathBuf], source: &Path, library: &Path) -> Result<(), String> {
    let compiler = env::var_os("CC").unwrap_or_else(|| "cc".into());
    let output = Command::new(&compiler)
        .args(["-shared", "-fPIC", "-O2", "-Wall", "-Werror", "-o"])
        .arg(library)
        .args(headers.iter().flat_map(|dir| ["-I".into(), dir.clone().into_os_string()]))
        .arg(source)
        .output()
        .map_err(|error| format!("{} does not run: {error}", compiler.display()))?;
    if output.status.success() {
        return Ok(());
    }
    let _ = fs::remove_file(library);
    let text = String::from_utf8_lossy(&output.stderr).replace('\n', "; ");
    Err(format!("{} failed: {text}", compiler.display()))
}

/// Compiles everything below the directories of `sources` into `classes`; the error says why not.
fn compile(javac: &Path, sources: &[&Path], classes: &Path) -> Result<(), String> {
    let mut files = Vec::new();
    for dir in sources {
        files.extend(files_below(dir, "java").map_err(|error| error.to_string())?);
    }
    let output = Command::new(javac)
        .args(["--release", "11", "-encoding", "UTF-8", "-g:source,lines", INLINE_STRINGS, "-d"])
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
