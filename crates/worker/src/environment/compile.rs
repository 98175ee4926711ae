//! Compiling a function's modules ahead, so that no cold start does: Python's own, which `/var/task` being read-only could
//! never keep.
//!
//! The modules are hostile, so they are compiled in a sandbox of the function's runtime, and what comes out of it is
//! believed only as far as it is for that function. Nothing waits for it and nothing fails with it: environments get the
//! tree with the compiled modules once there is one.

use std::collections::{BTreeMap, HashSet};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use image::Lease;
use runtimes::Resolved;
use sandbox::{Bind, Prestarts, ProcessSpec, Sandbox, SandboxSpec};
use tokio::io::AsyncReadExt;
use tokio::net::unix::pipe::Receiver;

use super::launch;
use crate::host::{Inner, StartError, chain};
use crate::spec::EnvironmentSpec;

/// Trees with less source than this are left as they are: a cold start compiles that in milliseconds.
const WORTH_BYTES: u64 = 64 << 10;

/// What is not compiled in this time is not compiled.
const PATIENCE: Duration = Duration::from_secs(60);

/// Most that compiled modules may take, in bytes.
const MAX_BYTES: u64 = 256 << 20;

/// `/tmp` of the compiler, in bytes.
const TMP_BYTES: u64 = 16 << 20;

/// Names remembered, before all of them are forgotten.
const MAX_TRIED: usize = 16_384;

/// What is being compiled, and what was.
#[derive(Default)]
pub(crate) struct Compiling {
    /// One at a time: whoever starts an environment needs the processors more.
    turn: tokio::sync::Mutex<()>,
    /// Trees by path and kind.
    tried: Mutex<HashSet<(PathBuf, String)>>,
}

impl Compiling {
    /// Whether this is the first time.
    fn begin(&self, tree: &Lease, kind: &str) -> bool {
        let mut tried = self.tried.lock().unwrap_or_else(PoisonError::into_inner);
        if tried.len() >= MAX_TRIED {
            tried.clear();
        }
        tried.insert((tree.path().to_owned(), kind.to_owned()))
    }
}

/// A tree that may hold modules, and where it is mounted.
pub(crate) struct Uncompiled {
    pub(crate) tree: Lease,
    pub(crate) target: &'static str,
}

/// Tells what one interpreter compiles from what another one does; none for runtimes that nothing is compiled for.
pub(crate) fn kind(resolved: &Resolved) -> Option<String> {
    resolved.compiler.is_some().then(|| format!("compiled by {}", resolved.serves))
}

/// Compiles trees in the background, those for which that was not tried before.
pub(crate) fn soon(host: &Arc<Inner>, spec: &Arc<EnvironmentSpec>, resolved: &Arc<Resolved>, trees: Vec<Uncompiled>) {
    let Some(kind) = kind(resolved) else { return };
    let trees: Vec<_> = trees.into_iter().filter(|of| host.compiling.begin(&of.tree, &kind)).collect();
    if trees.is_empty() {
        return;
    }
    let (host, spec, resolved) = (Arc::clone(host), Arc::clone(spec), Arc::clone(resolved));
    tokio::spawn(async move {
        for Uncompiled { tree, target } in trees {
            let _turn = host.compiling.turn.lock().await;
            let compiled = compile(&host, &spec, &resolved, &tree, target, &kind);
            let function = &spec.function_name;
            match tokio::time::timeout(PATIENCE, compiled).await {
                Ok(Ok(0)) => {}
                Ok(Ok(modules)) => tracing::debug!(function, target, modules, "modules compiled ahead"),
                Ok(Err(error)) => tracing::debug!(function, target, %error, "modules not compiled ahead"),
                Err(_) => tracing::debug!(function, target, "compiling modules ahead takes too long"),
            }
        }
    });
}

/// How many modules of a tree were compiled.
async fn compile(
    host: &Arc<Inner>,
    spec: &EnvironmentSpec,
    resolved: &Arc<Resolved>,
    tree: &Lease,
    target: &str,
    kind: &str,
) -> Result<usize, StartError> {
    let Some(compiler) = &resolved.compiler else { return Ok(0) };
    let dir = tree.path().to_owned();
    let worth = tokio::task::spawn_blocking(move || source_bytes(&dir) >= WORTH_BYTES).await;
    if !worth.unwrap_or(false) {
        return Ok(0);
    }
    let mut sandbox_spec = launch::common(host, resolved, spec.memory_mb).await?;
    if host.backend.prestarts() != Prestarts::Cloned {
        // A process that waits would be used up; where it is in what is cloned, it costs nothing.
        sandbox_spec.prestart = None;
    }
    let mount = host.mountable(tree).await?;
    let sandbox_spec = SandboxSpec {
        id: format!("compile-{}", uuid::Uuid::new_v4().simple()),
        mounts: vec![Bind { source: mount.path().to_owned(), target: PathBuf::from(target) }],
        tmp_bytes: TMP_BYTES,
        ..sandbox_spec
    };
    let sandbox = host.backend.create(sandbox_spec).await.map_err(launch::not_made)?;
    let argv = compiler.iter().cloned().chain([target.to_owned()]).collect();
    let output = output_of(&*sandbox, argv, resolved.env.clone()).await;
    sandbox.destroy().await;
    let files = records(&output?);
    let modules = files.len();
    if modules == 0 {
        return Ok(0);
    }
    let (cache, tree, kind) = (host.code.clone(), tree.clone(), kind.to_owned());
    let made = tokio::task::spawn_blocking(move || cache.extended(&tree, &kind, &files));
    match made.await {
        Ok(Ok(_)) => Ok(modules),
        Ok(Err(error)) => Err(StartError::Code(chain(&error))),
        Err(panic) => Err(StartError::Code(format!("keeping compiled modules failed: {panic}"))),
    }
}

/// What a process writes to its standard output until it ends, which need not be what it would have written.
async fn output_of(
    sandbox: &dyn Sandbox,
    argv: Vec<String>,
    env: Vec<(String, String)>,
) -> Result<Vec<u8>, StartError> {
    let broken = |error: &dyn std::error::Error| StartError::Sandbox(chain(error));
    let process = ProcessSpec { argv, env, cwd: PathBuf::from("/"), log_fd_env: None };
    let process = sandbox.spawn(process).await.map_err(|error| broken(&error))?;
    let mut output = Vec::new();
    let stdout = Receiver::from_owned_fd(process.stdout).map_err(|error| broken(&error))?;
    stdout.take(MAX_BYTES).read_to_end(&mut output).await.map_err(|error| broken(&error))?;
    Ok(output)
}

/// The whole records in the output of a compiler: a path's length, a content's length, the path, the content.
fn records(mut output: &[u8]) -> BTreeMap<String, Vec<u8>> {
    let mut files = BTreeMap::new();
    while let Some((lengths, rest)) = output.split_at_checked(8) {
        let length = |at: usize| lengths[at..at + 4].iter().fold(0, |length, byte| length << 8 | usize::from(*byte));
        let Some((path, rest)) = rest.split_at_checked(length(0)) else { break };
        let Some((content, rest)) = rest.split_at_checked(length(4)) else { break };
        if let Ok(path) = std::str::from_utf8(path)
            && path.ends_with(".pyc")
        {
            files.insert(path.to_owned(), content.to_vec());
        }
        output = rest;
    }
    files
}

/// How much source there is in a tree, in bytes; enough to decide. Links are not followed.
fn source_bytes(tree: &Path) -> u64 {
    let (mut bytes, mut pending) = (0, vec![tree.to_owned()]);
    while let Some(dir) = pending.pop().filter(|_| bytes < WORTH_BYTES) {
        for entry in std::fs::read_dir(dir).into_iter().flatten().flatten() {
            match entry.metadata() {
                Ok(found) if found.is_dir() => pending.push(entry.path()),
                Ok(found) if found.is_file() && entry.path().extension().is_some_and(|is| is == "py") => {
                    bytes += found.len();
                }
                _ => {}
            }
        }
    }
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(path: &str, content: &[u8]) -> Vec<u8> {
        let length = |bytes: usize| u32::try_from(bytes).unwrap().to_be_bytes();
        [&length(path.len()), &length(content.len()), path.as_bytes(), content].concat()
    }

    #[test]
    fn whole_records_are_read_and_what_is_cut_short_is_not() {
        let all = [record("__pycache__/a.pyc", b"one"), record("x.py", b"no"), record("b.pyc", b"")].concat();
        let read = records(&all);
        assert_eq!(read.keys().collect::<Vec<_>>(), ["__pycache__/a.pyc", "b.pyc"]);
        assert_eq!(read["__pycache__/a.pyc"], b"one");
        for end in 0..all.len() {
            assert!(records(&all[..end]).len() < 2);
        }
        assert!(records(&[255; 64]).is_empty());
    }

    #[test]
    fn only_source_counts_and_links_do_not() {
        let (tree, elsewhere) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        std::fs::write(elsewhere.path().join("far.py"), [b'#'; 100]).unwrap();
        std::os::unix::fs::symlink(elsewhere.path(), tree.path().join("link")).unwrap();
        std::fs::create_dir(tree.path().join("package")).unwrap();
        std::fs::write(tree.path().join("package/a.py"), [b'#'; 10]).unwrap();
        std::fs::write(tree.path().join("data.bin"), [0; 1000]).unwrap();
        assert_eq!(source_bytes(tree.path()), 10);
    }
}
