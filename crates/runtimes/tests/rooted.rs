//! Each language of this machine serves an invocation in the root file system that the catalog plans for it.
//!
//! `bwrap` (Debian package bubblewrap) puts the root together, so that the plan is tested without our own sandbox.

#![expect(clippy::unwrap_used, reason = "a test's helpers fail the test")]

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use runtimes::{Catalog, Options, Resolved};

/// Reads one request: its path and body.
fn request(reader: &mut BufReader<TcpStream>) -> Option<(String, Vec<u8>)> {
    let mut line = String::new();
    reader.read_line(&mut line).ok().filter(|read| *read > 0)?;
    let path = line.split(' ').nth(1)?.to_owned();
    let mut length = 0;
    loop {
        let mut header = String::new();
        reader.read_line(&mut header).ok()?;
        if header.trim().is_empty() {
            break;
        }
        if let Some(value) = header.to_ascii_lowercase().strip_prefix("content-length:") {
            length = value.trim().parse().ok()?;
        }
    }
    let mut body = vec![0; length];
    reader.read_exact(&mut body).ok()?;
    Some((path, body))
}

/// A Runtime API with one invocation; sends what the runtime posts.
fn runtime_api() -> (String, mpsc::Receiver<(String, String)>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let (sender, receiver) = mpsc::channel();
    thread::spawn(move || {
        let mut served = false;
        for stream in listener.incoming().map_while(Result::ok) {
            let mut reader = BufReader::new(stream);
            while let Some((path, body)) = request(&mut reader) {
                let answer = if path.ends_with("/next") {
                    if std::mem::replace(&mut served, true) {
                        thread::park();
                    }
                    "HTTP/1.1 200 OK\r\nLambda-Runtime-Aws-Request-Id: id-1\r\nLambda-Runtime-Deadline-Ms: 99999999999999\r\n\
                     Content-Type: application/json\r\nContent-Length: 7\r\n\r\n{\"n\":5}"
                } else {
                    let _ = sender.send((path, String::from_utf8_lossy(&body).into_owned()));
                    "HTTP/1.1 202 Accepted\r\nContent-Length: 0\r\n\r\n"
                };
                reader.get_mut().write_all(answer.as_bytes()).unwrap();
            }
        }
    });
    (address, receiver)
}

/// The command that runs `resolved`'s process in its root, with `task` at `/var/task`.
fn rooted(resolved: &Resolved, task: &Path, scratch: &Path) -> Command {
    let mut bwrap = Command::new("bwrap");
    bwrap.args(["--tmpfs", "/", "--clearenv", "--die-with-parent"]);
    for dir in &resolved.root.dirs {
        bwrap.arg("--dir").arg(dir);
    }
    for (host, inside) in &resolved.root.binds {
        bwrap.arg("--ro-bind").arg(host).arg(inside);
    }
    for (index, (path, content)) in resolved.root.files.iter().enumerate() {
        let file = scratch.join(index.to_string());
        fs::write(&file, content).unwrap();
        bwrap.arg("--ro-bind").arg(&file).arg(path);
    }
    for (path, target) in &resolved.root.symlinks {
        bwrap.arg("--symlink").arg(target).arg(path);
    }
    bwrap.args(["--proc", "/proc", "--dev", "/dev", "--tmpfs", "/tmp", "--chdir", "/var/task"]);
    bwrap.arg("--ro-bind").arg(task).arg("/var/task");
    for (name, value) in &resolved.env {
        bwrap.arg("--setenv").arg(name).arg(value);
    }
    bwrap
}

struct KilledOnDrop(Child);

impl Drop for KilledOnDrop {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Serves one invocation of `handler` on `runtime`, with the function's `files`, and returns what it responded.
fn serve(catalog: &Catalog, runtime: &str, handler: &str, files: &[(&str, &str)]) -> (String, String) {
    let resolved = catalog.resolve(runtime).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let task = dir.path().join("task");
    fs::create_dir(&task).unwrap();
    for (name, content) in files {
        fs::write(task.join(name), content).unwrap();
    }
    let (address, posts) = runtime_api();
    let mut command = rooted(&resolved, &task, dir.path());
    for (name, value) in [
        ("AWS_LAMBDA_RUNTIME_API", address.as_str()),
        ("_HANDLER", handler),
        ("LAMBDA_TASK_ROOT", "/var/task"),
        ("AWS_LAMBDA_FUNCTION_MEMORY_SIZE", "256"),
        ("AWS_EXECUTION_ENV", resolved.execution_env.as_deref().unwrap_or_default()),
    ] {
        command.args(["--setenv", name, value]);
    }
    command.args(&resolved.command).stdin(Stdio::null());
    let _child = KilledOnDrop(command.spawn().unwrap());
    posts
        .recv_timeout(Duration::from_secs(60))
        .unwrap_or_else(|_| panic!("{runtime}: {} did not answer", resolved.serves))
}

/// A catalog of this machine, or `None` with a note if `bwrap` cannot build roots here.
fn catalog(data: &Path) -> Option<Catalog> {
    let works =
        Command::new("bwrap").args(["--ro-bind", "/", "/", "--dev", "/dev", "--proc", "/proc", "true"]).output();
    if works.is_ok_and(|output| output.status.success()) {
        Some(Catalog::discover(&Options { data_dir: data.to_owned(), ..Options::default() }))
    } else {
        eprintln!("SKIPPED: bwrap is not installed or may not mount here");
        None
    }
}

/// The runtime names of one language's usable interpreters.
fn names(catalog: &Catalog, language: &str) -> Vec<String> {
    let mut names: Vec<String> = catalog
        .list()
        .iter()
        .filter(|installed| installed.language.as_str() == language && installed.unavailable.is_none())
        .map(|installed| installed.serves.clone())
        .collect();
    names.dedup();
    if names.is_empty() {
        eprintln!("SKIPPED: no {language} on this machine");
    }
    names
}

const OK: &str = "/2018-06-01/runtime/invocation/id-1/response";

#[test]
fn pythons_serve_in_their_roots() {
    let data = tempfile::tempdir().unwrap();
    let Some(catalog) = catalog(data.path()) else { return };
    let code = "import json, sys, os, ssl, socket\n\
                def handler(event, context):\n    \
                    cached = sys.modules['firelet_runtime'].__cached__ or ''\n    \
                    return [event['n'], os.path.exists('/home'), os.path.exists('/etc/shadow'), socket.gethostbyname('localhost'), cached.endswith('.pyc')]\n";
    for name in names(&catalog, "python") {
        let (path, body) = serve(&catalog, &name, "app.handler", &[("app.py", code)]);
        assert_eq!((path.as_str(), body.as_str()), (OK, "[5, false, false, \"127.0.0.1\", true]"), "{name}");
    }
}

#[test]
fn nodes_serve_in_their_roots() {
    let data = tempfile::tempdir().unwrap();
    let Some(catalog) = catalog(data.path()) else { return };
    let code = "exports.handler = async (event) => [event.n, require('fs').existsSync('/home'), process.cwd()];\n";
    for name in names(&catalog, "nodejs") {
        let (path, body) = serve(&catalog, &name, "app.handler", &[("app.js", code)]);
        assert_eq!((path.as_str(), body.as_str()), (OK, "[5,false,\"/var/task\"]"), "{name}");
    }
}

#[test]
fn rubies_serve_in_their_roots() {
    let data = tempfile::tempdir().unwrap();
    let Some(catalog) = catalog(data.path()) else { return };
    let code = "require 'openssl'\ndef handler(event:, context:)\n  [event['n'], Dir.exist?('/home')]\nend\n";
    for name in names(&catalog, "ruby") {
        let (path, body) = serve(&catalog, &name, "app.handler", &[("app.rb", code)]);
        assert_eq!((path.as_str(), body.as_str()), (OK, "[5,false]"), "{name}");
    }
}

#[test]
fn javas_start_in_their_roots() {
    let data = tempfile::tempdir().unwrap();
    let Some(catalog) = catalog(data.path()) else { return };
    for name in names(&catalog, "java") {
        // A class of the JDK, so that the test needs no compiler.
        let (path, body) = serve(&catalog, &name, "java.util.Locale::forLanguageTag", &[]);
        assert!(
            path.ends_with("/error") && body.contains("An error occurred during JSON parsing"),
            "{name}: {path} {body}"
        );
        let (path, body) = serve(&catalog, &name, "java.util.Objects::toString", &[]);
        assert_eq!((path.as_str(), body.as_str()), (OK, "\"{n=5}\""), "{name}");
        // Needs the JDK's configuration, which may lie outside of it.
        let (path, body) = serve(&catalog, &name, "java.util.UUID::randomUUID", &[]);
        assert_eq!(path, OK, "{name}: {body}");
    }
}
