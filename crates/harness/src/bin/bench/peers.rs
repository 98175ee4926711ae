//! The same interpreter with the imports of Firelet's bootstrap, started bare and by other sandboxes.

use std::ffi::OsString;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use harness::{Firelet, Function, zip_files};
use rustix::mount::{MountPropagationFlags, UnmountFlags, mount_change, unmount};
use rustix::thread::{UnshareFlags, unshare_unsafe};
use serde_json::json;
use tempfile::TempDir;

/// The interpreter that Firelet runs a function with.
pub struct Interpreter {
    /// `3.12.1`.
    pub version: String,
    /// The program on the host.
    program: PathBuf,
    /// The folder that holds it and its library.
    prefix: PathBuf,
    /// What our bootstrap has imported when it asks for the first invocation, less what the interpreter imports by itself.
    imports: Vec<String>,
}

impl Interpreter {
    /// Asks a function which interpreter it runs on and what was imported before its own module, and finds the same
    /// interpreter on the host.
    pub async fn find(firelet: &Firelet, runtime: &str) -> Result<Interpreter> {
        let code = b"import sys\nloaded = sorted(sys.modules)\ndef handler(event, context):\n    \
            return {'version': '.'.join(map(str, sys.version_info[:3])), 'loaded': loaded}\n";
        let mut client = firelet.client().await?;
        let code = zip_files(&[("probe.py", 0o644, code)])?;
        client.create_function(&Function::new("probe", runtime, "probe.handler", code)).await?;
        let found = client.invoke("probe", "{}").await?.json()?;
        let version = found["version"].as_str().with_context(|| format!("the probe answered {found}"))?.to_owned();
        let program = host_interpreter(&version)?;
        let prefix = program.ancestors().nth(2).context("an interpreter outside of any prefix")?.to_owned();
        let bare = output(&program, "import sys; print('\\n'.join(sys.modules))")?;
        let loaded = found["loaded"].as_array().context("the probe told no modules")?;
        let imports = loaded
            .iter()
            .filter_map(|name| name.as_str())
            .filter(|name| !bare.lines().any(|line| line == *name))
            // Only what can be imported outside of the sandbox: not our bootstrap, not the function.
            .filter(|name| output(&program, &format!("import {name}")).is_ok())
            .map(str::to_owned)
            .collect();
        Ok(Interpreter { version, program, prefix, imports })
    }

    /// Imports what the bootstrap needs and ends at once, without tidying up.
    fn script(&self) -> String {
        format!("import os, {}\nos._exit(0)", self.imports.join(", ")).replace("os, \n", "os\n")
    }
}

/// A Python of exactly this version: on the path, in the usual places, or under pyenv.
fn host_interpreter(version: &str) -> Result<PathBuf> {
    let minor = version.rsplit_once('.').map_or(version, |(minor, _)| minor);
    let name = format!("python{minor}");
    let home = std::env::var_os("HOME").map(PathBuf::from).unwrap_or_default();
    let pyenv = std::env::var_os("PYENV_ROOT").map_or_else(|| home.join(".pyenv"), PathBuf::from);
    let mut candidates = vec![pyenv.join("versions").join(version).join("bin").join(&name)];
    candidates.extend(["/usr/local/bin", "/usr/bin"].map(|folder| Path::new(folder).join(&name)));
    candidates
        .into_iter()
        .find(|path| {
            output(path, "import platform; print(platform.python_version())").is_ok_and(|found| found.trim() == version)
        })
        .with_context(|| format!("Firelet runs Python {version}, but the benchmark does not find it on the host"))
}

fn output(program: &Path, script: &str) -> Result<String> {
    let output = Command::new(program).arg("-c").arg(script).stdin(Stdio::null()).output()?;
    ensure!(output.status.success(), "{}: {}", program.display(), String::from_utf8_lossy(&output.stderr));
    Ok(String::from_utf8(output.stdout)?)
}

/// A way to start the interpreter.
pub struct Peer {
    /// What the table calls it.
    pub name: String,
    /// Set where it cannot be measured: why, and what to install.
    pub absent: Option<String>,
    command: Vec<OsString>,
    /// Whether it must not see the second version of control groups beside the first, which crun refuses.
    hides_unified: bool,
    /// Files that the command needs while it is measured.
    _files: Option<TempDir>,
}

impl Peer {
    /// The bare interpreter first, then every sandbox that this benchmark knows.
    pub fn all(interpreter: &Interpreter) -> Result<Vec<Peer>> {
        let script = interpreter.script();
        let program = interpreter.program.to_string_lossy().into_owned();
        let python = [program, "-c".into(), script];
        let bare = python.iter().map(OsString::from).collect();
        let named = format!("bare interpreter with our bootstrap's imports ({})", interpreter.imports.len());
        let mut peers = vec![Peer { name: named, absent: None, command: bare, hides_unified: false, _files: None }];
        peers.push(bubblewrap(interpreter, &python));
        peers.push(crun(interpreter, &python)?);
        for peer in &mut peers {
            if peer.absent.is_none() {
                peer.absent = peer.start().err().map(|error| format!("does not run here: {error:#}"));
            }
        }
        Ok(peers)
    }

    /// Starts it once and waits for its end; `None` for a peer that is absent.
    pub fn start(&self) -> Result<Option<Duration>> {
        if self.absent.is_some() {
            return Ok(None);
        }
        if !self.hides_unified {
            return self.run().map(Some);
        }
        // Mounts can be changed for one thread alone, and for what it starts.
        let result = std::thread::scope(|scope| scope.spawn(|| hide_unified().and_then(|()| self.run())).join());
        result.unwrap_or_else(|panic| std::panic::resume_unwind(panic)).map(Some)
    }

    fn run(&self) -> Result<Duration> {
        let mut command = Command::new(&self.command[0]);
        command.args(&self.command[1..]).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
        let started = Instant::now();
        let child = command.spawn().with_context(|| format!("cannot start {}", self.command[0].display()))?;
        let output = child.wait_with_output()?;
        let time = started.elapsed();
        ensure!(output.status.success(), "{}: {}", self.name, String::from_utf8_lossy(&output.stderr).trim());
        Ok(time)
    }
}

/// Where a machine with control groups of version 1 has those of version 2.
const UNIFIED: &str = "/sys/fs/cgroup/unified";

/// Gives the calling thread mounts of its own, without [`UNIFIED`].
fn hide_unified() -> Result<()> {
    // SAFETY: descriptors stay shared (no UnshareFlags::FILES), which is the danger that this function warns of.
    unsafe { unshare_unsafe(UnshareFlags::FS | UnshareFlags::NEWNS)? };
    mount_change("/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC)?;
    unmount(UNIFIED, UnmountFlags::DETACH).with_context(|| format!("cannot hide {UNIFIED}"))
}

fn on_path(program: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).any(|folder| folder.join(program).is_file())
}

/// Every namespace new, `/usr` and the interpreter bound read-only.
fn bubblewrap(interpreter: &Interpreter, python: &[String]) -> Peer {
    let absent = (!on_path("bwrap")).then(|| "apt-get install bubblewrap".to_owned());
    let prefix = interpreter.prefix.to_string_lossy();
    let mut command: Vec<OsString> =
        "bwrap --unshare-all --die-with-parent --ro-bind /usr /usr --symlink usr/bin /bin \
        --symlink usr/lib /lib --symlink usr/lib64 /lib64 --proc /proc --dev /dev --tmpfs /tmp"
            .split_whitespace()
            .map(OsString::from)
            .collect();
    if prefix != "/usr" {
        command.extend(["--ro-bind", &prefix, &prefix].map(OsString::from));
    }
    command.extend(python.iter().map(OsString::from));
    Peer { name: "bwrap (bubblewrap), all namespaces".into(), absent, command, hides_unified: false, _files: None }
}

/// An OCI bundle with the same mounts; no limits, so that it is not charged for control groups.
fn crun(interpreter: &Interpreter, python: &[String]) -> Result<Peer> {
    let absent = (!on_path("crun")).then(|| "apt-get install crun".to_owned());
    let bundle = tempfile::tempdir()?;
    let root = bundle.path().join("rootfs");
    for folder in ["usr", "proc", "dev", "tmp"] {
        std::fs::create_dir_all(root.join(folder))?;
    }
    for (name, target) in [("bin", "usr/bin"), ("lib", "usr/lib"), ("lib64", "usr/lib64")] {
        symlink(target, root.join(name))?;
    }
    let prefix = interpreter.prefix.to_string_lossy();
    let bind = |path: &str| json!({"destination": path, "type": "bind", "source": path, "options": ["rbind", "ro", "nosuid", "nodev"]});
    let mut mounts = vec![
        json!({"destination": "/proc", "type": "proc", "source": "proc"}),
        json!({"destination": "/dev", "type": "tmpfs", "source": "tmpfs", "options": ["nosuid", "mode=755"]}),
        json!({"destination": "/tmp", "type": "tmpfs", "source": "tmpfs", "options": ["nosuid", "nodev"]}),
        bind("/usr"),
    ];
    if prefix != "/usr" {
        std::fs::create_dir_all(root.join(interpreter.prefix.strip_prefix("/").unwrap_or(&interpreter.prefix)))?;
        mounts.push(bind(&prefix));
    }
    let namespaces = ["pid", "network", "ipc", "uts", "mount"].map(|kind| json!({"type": kind}));
    let config = json!({
        "ociVersion": "1.0.2",
        "process": {"terminal": false, "user": {"uid": 0, "gid": 0}, "cwd": "/", "env": ["PATH=/usr/bin"],
            "args": python, "noNewPrivileges": true},
        "root": {"path": "rootfs", "readonly": true},
        "hostname": "bench",
        "mounts": mounts,
        "linux": {"namespaces": namespaces},
    });
    std::fs::write(bundle.path().join("config.json"), config.to_string())?;
    let mut command: Vec<OsString> =
        ["crun", "--cgroup-manager=disabled", "run", "--bundle"].map(OsString::from).into();
    command.push(bundle.path().into());
    command.push(format!("firelet-bench-{}", std::process::id()).into());
    let hides_unified = Path::new(UNIFIED).exists();
    Ok(Peer { name: "crun, five namespaces, no limits".into(), absent, command, hides_unified, _files: Some(bundle) })
}
