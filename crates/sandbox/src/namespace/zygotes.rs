//! The interpreters that sandboxes are forked from, as the server sees them: one for each program that waits, started when it is first
//! wanted and replaced after some time.
//!
//! ```text
//! started -> proven: a sandbox was made from it -> old: a successor is started -> replaced, once that is proven
//!    `-- failed: none for this program for a while            it ends with the last of its sandboxes --'
//! ```
//!
//! What is forked from one interpreter has its address layout and hash seed in common. So none serves for long.

use std::fs::File;
use std::io::{self, Read, Seek, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::process::Child;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant};

use rustix::fs::{MemfdFlags, OFlags, SealFlags, fcntl_add_seals, fcntl_setfl, memfd_create};
use rustix::pipe::{PipeFlags, pipe_with};
use supervisor::channel;
use supervisor::wire::{Build, Spawn, ToInit};

use super::helper::{Helper, Role};
use super::link::Link;
use crate::{ProcessSpec, RootFs};

/// The code that an interpreter runs to make sandboxes out of itself; empty where this build has none.
pub(super) static LIBRARY: &[u8] = include_bytes!(env!("SUPERVISOR_LIBRARY"));

/// How long none is started for a program with which it failed, at first; then twice as long each time.
const SHORTEST_REST: Duration = Duration::from_secs(30);
/// How long none is started at most.
const LONGEST_REST: Duration = Duration::from_secs(600);
/// Room in the interpreter's own `/tmp`, in bytes.
const TMP_BYTES: u64 = 1 << 20;
/// Most of its complaint that is told, in bytes.
const MAX_COMPLAINT: u64 = 2048;

/// When an interpreter that sandboxes are forked from is replaced by another one. What was forked from it lives on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Turnover {
    /// After so many sandboxes. A few more may follow while the next one starts.
    pub forks: u32,
    /// After this time, when the next sandbox is made.
    pub life: Duration,
}

impl Default for Turnover {
    fn default() -> Self {
        Turnover { forks: 256, life: Duration::from_secs(600) }
    }
}

/// What an interpreter runs, and where.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Model {
    pub root: RootFs,
    pub process: ProcessSpec,
}

/// An interpreter. Ends when nobody has it any more, and all that was forked from it with it.
#[derive(Debug)]
pub(super) struct Zygote {
    link: Arc<Link>,
    child: Mutex<Option<Child>>,
    complaint: Mutex<File>,
    /// Whether a sandbox was made from it.
    proven: AtomicBool,
}

/// All of one backend.
#[derive(Debug)]
pub(super) struct Zygotes {
    helper: Helper,
    /// The library as a file that nobody can change; `None`: there are no zygotes here.
    library: Option<Arc<OwnedFd>>,
    turnover: Turnover,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    serving: Vec<Serving>,
    failed: Vec<Failed>,
    started: Vec<Weak<Zygote>>,
    shut_down: bool,
}

/// A program of which no interpreter could be forked, until one can.
#[derive(Debug)]
struct Failed {
    model: Model,
    until: Instant,
    rest: Duration,
}

#[derive(Debug)]
struct Serving {
    model: Model,
    zygote: Arc<Zygote>,
    since: Instant,
    forks: u32,
    has_successor: bool,
}

/// Whether this build has the code for zygotes.
pub(super) fn is_built() -> bool {
    !LIBRARY.is_empty()
}

impl Zygotes {
    /// Starts none yet. Without the library there will be none.
    pub fn new(helper: Helper, library: Option<Arc<OwnedFd>>, turnover: Turnover) -> Zygotes {
        Zygotes { helper, library, turnover, state: Mutex::default() }
    }

    /// The one for a model, started if there is none. `None` if there cannot be one now.
    pub fn get(&self, model: &Model) -> Option<Arc<Zygote>> {
        let library = self.library.as_ref()?;
        let now = Instant::now();
        let mut state = self.state();
        if state.shut_down || state.failed.iter().any(|failed| failed.model == *model && failed.until > now) {
            return None;
        }
        state.serving.retain(|serving| !serving.zygote.link.is_gone());
        if let Some(serving) = state.serving.iter_mut().find(|serving| serving.model == *model) {
            serving.forks += 1;
            return Some(Arc::clone(&serving.zygote));
        }
        match self.start(library, model) {
            Ok(zygote) => {
                state.serve(model, &zygote, now);
                Some(zygote)
            }
            Err(error) => {
                tracing::warn!(%error, "cannot start an interpreter to fork from; trying again later");
                state.rest(model, now);
                None
            }
        }
    }

    /// The one for a model, if sandboxes have been made from it.
    pub fn proven(&self, model: &Model) -> Option<Arc<Zygote>> {
        let mut state = self.state();
        let fits = |serving: &&mut Serving| serving.zygote.proven.load(Relaxed) && serving.model == *model;
        let serving = state.serving.iter_mut().find(fits).filter(|serving| !serving.zygote.link.is_gone())?;
        serving.forks += 1;
        Some(Arc::clone(&serving.zygote))
    }

    /// No sandbox could be made from it: it serves no more. If it never did, there is none for its model for a while.
    pub fn failed(&self, model: &Model, zygote: &Arc<Zygote>) {
        let mut state = self.state();
        state.serving.retain(|serving| !Arc::ptr_eq(&serving.zygote, zygote));
        if !zygote.proven.load(Relaxed) {
            // It may hang, and would not hear that it is to end.
            zygote.kill();
            state.rest(model, Instant::now());
        }
    }

    /// A sandbox was made from it.
    pub fn worked(&self, model: &Model, zygote: &Zygote) {
        if !zygote.proven.swap(true, Relaxed) {
            self.state().failed.retain(|failed| failed.model != *model);
        }
    }

    /// A successor for the one of a model, if that has served enough. Once: whoever gets it replaces the old one when it works.
    pub fn successor(&self, model: &Model) -> Option<Arc<Zygote>> {
        let library = self.library.as_ref()?;
        let mut state = self.state();
        let serving = state.serving.iter_mut().find(|serving| serving.model == *model)?;
        let Turnover { forks, life } = self.turnover;
        if serving.has_successor || (serving.forks < forks && serving.since.elapsed() < life) {
            return None;
        }
        serving.has_successor = true;
        match self.start(library, model) {
            Ok(zygote) => {
                state.started.push(Arc::downgrade(&zygote));
                Some(zygote)
            }
            Err(error) => {
                tracing::warn!(%error, "cannot start another interpreter to fork from");
                None
            }
        }
    }

    /// From now on this is the one for its model; the old one ends with its sandboxes.
    pub fn replace(&self, model: &Model, zygote: &Arc<Zygote>) {
        let mut state = self.state();
        state.serving.retain(|serving| serving.model != *model);
        if !state.shut_down {
            state.serve(model, zygote, Instant::now());
        }
    }

    /// Gives up those of other models: nobody has wanted a sandbox of them for long.
    pub fn keep(&self, models: &[Model]) {
        let mut state = self.state();
        state.serving.retain(|serving| models.contains(&serving.model));
        state.failed.retain(|failed| models.contains(&failed.model));
    }

    /// Process numbers of those that run.
    pub fn pids(&self) -> Vec<u32> {
        let alive = self.state().started.iter().filter_map(Weak::upgrade).collect::<Vec<_>>();
        alive.iter().filter(|zygote| !zygote.link.is_gone()).filter_map(|zygote| zygote.pid()).collect()
    }

    /// Lets all end and starts no more. What comes back is to be waited for.
    pub fn shut_down(&self) -> Vec<Child> {
        let mut state = self.state();
        state.shut_down = true;
        state.serving.clear();
        let ended = std::mem::take(&mut state.started);
        ended.iter().filter_map(Weak::upgrade).filter_map(|zygote| zygote.end()).collect()
    }

    /// Starts an interpreter. It is not waited for: what is ordered from it meanwhile, it finds when it is ready.
    fn start(&self, library: &OwnedFd, model: &Model) -> io::Result<Arc<Zygote>> {
        let (child, socket) = self.helper.start(Role::Zygote)?;
        let (complaint, output) = pipe_with(PipeFlags::CLOEXEC)?;
        fcntl_setfl(&complaint, OFlags::NONBLOCK)?;
        let fds = [output.as_fd(), output.as_fd(), library.as_fd()];
        channel::send(&socket, &ToInit::Build(Box::new(build(&model.root))).encode(), &[])?;
        channel::send(&socket, &ToInit::Spawn(Box::new(spawn(&model.process))).encode(), &fds)?;
        let pid = child.id();
        tracing::debug!(pid, "interpreter started to fork from");
        let (child, complaint) = (Mutex::new(Some(child)), Mutex::new(File::from(complaint)));
        Ok(Arc::new(Zygote { link: Link::new(socket)?, child, complaint, proven: AtomicBool::new(false) }))
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // Nothing is left half done in there.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn rest(&mut self, model: &Model, now: Instant) {
        let last = self.failed.iter().position(|failed| failed.model == *model).map(|at| self.failed.swap_remove(at));
        let rest = last.map_or(SHORTEST_REST, |last| (last.rest * 2).min(LONGEST_REST));
        self.failed.push(Failed { model: model.clone(), until: now + rest, rest });
    }

    fn serve(&mut self, model: &Model, zygote: &Arc<Zygote>, now: Instant) {
        self.started.retain(|zygote| zygote.strong_count() > 0);
        if !self.started.iter().any(|started| started.ptr_eq(&Arc::downgrade(zygote))) {
            self.started.push(Arc::downgrade(zygote));
        }
        let (model, zygote) = (model.clone(), Arc::clone(zygote));
        self.serving.push(Serving { model, zygote, since: now, forks: 1, has_successor: false });
    }
}

impl Zygote {
    /// To the loop that makes sandboxes.
    pub fn link(&self) -> &Arc<Link> {
        &self.link
    }

    /// The end of what it has written to its standard error.
    pub fn complaint(&self) -> String {
        let pipe = self.complaint.lock().unwrap_or_else(PoisonError::into_inner);
        let mut text = Vec::new();
        // Ends with an error where it has not written more yet.
        let _ = (&*pipe).take(MAX_COMPLAINT).read_to_end(&mut text);
        String::from_utf8_lossy(&text).trim_end().to_owned()
    }

    fn pid(&self) -> Option<u32> {
        self.child.lock().unwrap_or_else(PoisonError::into_inner).as_ref().map(Child::id)
    }

    fn kill(&self) {
        if let Some(child) = self.child.lock().unwrap_or_else(PoisonError::into_inner).as_mut() {
            // An error means that it has ended.
            let _ = child.kill();
        }
    }

    fn end(&self) -> Option<Child> {
        self.link.hang_up();
        self.child.lock().unwrap_or_else(PoisonError::into_inner).take()
    }
}

impl Drop for Zygote {
    fn drop(&mut self) {
        if let Some(mut child) = self.end() {
            // Waited for only so that it does not stay in the process list.
            std::thread::spawn(move || child.wait());
        }
    }
}

/// The root that the interpreter is started in: that of the sandboxes, but for the files that each has of its own.
fn build(root: &RootFs) -> Build {
    Build {
        tmp_bytes: TMP_BYTES,
        binds: root.binds.iter().map(|bind| (bind.source.clone(), bind.target.clone())).collect(),
        dirs: root.dirs.clone(),
        files: root.files.iter().map(|(path, content)| (path.clone(), content.clone())).collect(),
        symlinks: root.symlinks.iter().map(|(path, target)| (path.clone(), target.clone())).collect(),
        ..Build::default()
    }
}

/// The program as it will wait in the sandboxes: with the numbers of the descriptors that it will have there.
fn spawn(process: &ProcessSpec) -> Spawn {
    let ProcessSpec { argv, env, cwd, log_fd_env } = process.clone();
    Spawn { process: 0, argv, env, cwd, log_fd_env, waits: true }
}

/// The library as a file that nobody can change.
pub(super) fn sealed_library() -> io::Result<OwnedFd> {
    let mut file = File::from(memfd_create("firelet", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING)?);
    file.write_all(LIBRARY)?;
    file.rewind()?;
    fcntl_add_seals(&file, SealFlags::WRITE | SealFlags::SHRINK | SealFlags::GROW | SealFlags::SEAL)?;
    Ok(file.into())
}
