//! The threads of the vCPUs: parked until the device thread lets them run, stopped by it at any time, whatever the guest
//! does.
//!
//! ```text
//!             run                      KVM_RUN ... exits to devices ...
//!   Parked ---------> Running --------------------------------------------> Parked
//!     |   ^                    park: immediate exit + signal, or the machine ended
//!     +---+ job: works on the vCPU's descriptor
//! ```
//!
//! To stop a vCPU, `immediate_exit` is set in the memory that it shares with KVM, then its thread gets a signal. Whether
//! the thread is in the guest (even with interrupts off), in KVM, or about to enter, the next thing that happens to it is
//! that `KVM_RUN` returns `EINTR`; a device access of the guest that was under way is finished by then.

mod exits;
mod immediate_exit;

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::{io, thread};

use kvm_ioctls::VcpuFd;
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};
use vmm_sys_util::signal::{Killable, SIGRTMIN, register_signal_handler, unblock_signal};

pub use self::exits::Buses;
use self::immediate_exit::ImmediateExit;
use crate::config::Exit;

/// Why the threads of vCPUs cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum ThreadError {
    /// The host refused something.
    #[error("cannot {doing}")]
    Host {
        /// What was tried.
        doing: &'static str,
        /// What the kernel said.
        source: io::Error,
    },
    /// A thread is gone.
    #[error("the thread of a vcpu has ended")]
    Gone,
}

/// How the machine ended, if it did. The first to say so is believed.
pub struct Outcome {
    ended: AtomicBool,
    exit: Mutex<Option<Exit>>,
    fd: EventFd,
}

impl Outcome {
    /// Of a machine that goes on.
    pub fn new() -> io::Result<Outcome> {
        let fd = EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC)?;
        Ok(Outcome { ended: AtomicBool::new(false), exit: Mutex::new(None), fd })
    }

    /// The machine has ended.
    pub fn set(&self, exit: Exit) {
        let mut slot = self.exit.lock().unwrap_or_else(PoisonError::into_inner);
        if !self.ended.swap(true, Ordering::SeqCst) {
            *slot = Some(exit);
            // The counter is 0 before this.
            let _ = self.fd.write(1);
        }
    }

    /// Takes how it ended.
    pub fn take(&self) -> Option<Exit> {
        self.exit.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    /// Readable from when it has ended.
    pub fn fd(&self) -> &EventFd {
        &self.fd
    }

    /// Whether it has ended.
    pub fn is_set(&self) -> bool {
        self.ended.load(Ordering::SeqCst)
    }
}

/// Something to do with a parked vCPU, on its thread.
type Job = Box<dyn FnOnce(&mut VcpuFd) + Send>;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Order {
    Park,
    Run,
    End,
}

/// What a thread and its master share.
struct Desk {
    slot: Mutex<Slot>,
    changed: Condvar,
    immediate_exit: ImmediateExit,
}

struct Slot {
    order: Order,
    jobs: Vec<Job>,
    /// Waiting for an order, with no job under way.
    parked: bool,
    gone: bool,
    buses: Option<Arc<Buses>>,
}

impl Desk {
    fn lock(&self) -> MutexGuard<'_, Slot> {
        self.slot.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wait<'a>(&self, slot: MutexGuard<'a, Slot>) -> MutexGuard<'a, Slot> {
        self.changed.wait(slot).unwrap_or_else(PoisonError::into_inner)
    }
}

/// The vCPUs of a machine, each with its thread. Dropping ends the threads and closes the vCPUs.
pub struct Vcpus {
    threads: Vec<Thread>,
    outcome: Arc<Outcome>,
}

struct Thread {
    desk: Arc<Desk>,
    handle: Option<JoinHandle<()>>,
}

impl Vcpus {
    /// Starts a parked thread for each vCPU, which calls `first` before anything else.
    pub fn start(fds: Vec<VcpuFd>, outcome: Arc<Outcome>, first: fn()) -> Result<Vcpus, ThreadError> {
        let host = |doing| move |source| ThreadError::Host { doing, source };
        register_signal_handler(SIGRTMIN(), ignore)
            .map_err(|error| host("handle a signal")(io::Error::from_raw_os_error(error.errno())))?;
        unblock_signal(SIGRTMIN()).map_err(|error| host("unblock a signal")(io::Error::other(format!("{error:?}"))))?;
        let mut vcpus = Vcpus { threads: Vec::new(), outcome };
        for (index, fd) in fds.into_iter().enumerate() {
            let immediate_exit = ImmediateExit::of(&fd).map_err(host("map a vcpu's shared page"))?;
            let slot = Slot { order: Order::Park, jobs: Vec::new(), parked: false, gone: false, buses: None };
            let desk = Arc::new(Desk { slot: Mutex::new(slot), changed: Condvar::new(), immediate_exit });
            let worker = Worker { desk: Arc::clone(&desk), outcome: Arc::clone(&vcpus.outcome), fd };
            let body = move || {
                first();
                worker.work();
            };
            let builder = thread::Builder::new().name(format!("vcpu{index}")).stack_size(256 * 1024);
            let handle = builder.spawn(body).map_err(host("start a vcpu's thread"))?;
            vcpus.threads.push(Thread { desk, handle: Some(handle) });
        }
        Ok(vcpus)
    }

    /// How many there are.
    pub fn count(&self) -> usize {
        self.threads.len()
    }

    /// How the machine ended, if it did.
    pub fn outcome(&self) -> &Arc<Outcome> {
        &self.outcome
    }

    /// Tells all where devices are; before they run.
    pub fn connect(&self, buses: &Arc<Buses>) {
        for thread in &self.threads {
            thread.desk.lock().buses = Some(Arc::clone(buses));
        }
    }

    /// Does `job` with each vCPU, on all threads at once. They must be parked; they are told apart by their number. The
    /// results are waited for by [`Pending::wait`].
    pub fn start_job<T, F>(&self, job: F) -> Pending<'_, T>
    where
        T: Send + 'static,
        F: Fn(usize, &mut VcpuFd) -> T + Send + Sync + 'static,
    {
        let results: Arc<Mutex<Vec<Option<T>>>> = Arc::new(Mutex::new((0..self.count()).map(|_| None).collect()));
        let job = Arc::new(job);
        for (index, thread) in self.threads.iter().enumerate() {
            let (job, results) = (Arc::clone(&job), Arc::clone(&results));
            let body = move |fd: &mut VcpuFd| {
                let result = job(index, fd);
                results.lock().unwrap_or_else(PoisonError::into_inner)[index] = Some(result);
            };
            let mut slot = thread.desk.lock();
            slot.parked = false;
            slot.jobs.push(Box::new(body));
            thread.desk.changed.notify_all();
        }
        Pending { vcpus: self, results }
    }

    /// Lets all run.
    pub fn run(&self) {
        for thread in &self.threads {
            let mut slot = thread.desk.lock();
            slot.order = Order::Run;
            slot.parked = false;
            thread.desk.changed.notify_all();
        }
    }

    /// Stops all, and waits until they stand still.
    pub fn park(&self) {
        for thread in &self.threads {
            thread.order(Order::Park);
        }
        self.wait_parked();
    }

    fn wait_parked(&self) {
        for thread in &self.threads {
            let mut slot = thread.desk.lock();
            while !(slot.parked || slot.gone) {
                slot = thread.desk.wait(slot);
            }
        }
    }
}

/// Results of a job that is under way.
pub struct Pending<'a, T> {
    vcpus: &'a Vcpus,
    results: Arc<Mutex<Vec<Option<T>>>>,
}

impl<T> Pending<'_, T> {
    /// The results in the vCPUs' order.
    pub fn wait(self) -> Result<Vec<T>, ThreadError> {
        self.vcpus.wait_parked();
        let mut results = self.results.lock().unwrap_or_else(PoisonError::into_inner);
        results.drain(..).map(|result| result.ok_or(ThreadError::Gone)).collect()
    }
}

impl Thread {
    fn order(&self, order: Order) {
        let mut slot = self.desk.lock();
        slot.order = order;
        self.desk.immediate_exit.set(true);
        self.desk.changed.notify_all();
        // Under the lock, so that the thread is still there: it says that it is gone with the lock held.
        if !slot.parked
            && !slot.gone
            && let Some(handle) = &self.handle
            && let Err(error) = handle.kill(SIGRTMIN())
        {
            tracing::error!(%error, "cannot signal a vcpu's thread");
        }
    }
}

impl Drop for Vcpus {
    fn drop(&mut self) {
        for thread in &self.threads {
            thread.order(Order::End);
        }
        for thread in &mut self.threads {
            if thread.handle.take().is_some_and(|handle| handle.join().is_err()) {
                tracing::error!("the thread of a vcpu has panicked");
            }
        }
    }
}

extern "C" fn ignore(_: libc::c_int, _: *mut libc::siginfo_t, _: *mut libc::c_void) {}

/// The thread's side.
struct Worker {
    desk: Arc<Desk>,
    outcome: Arc<Outcome>,
    fd: VcpuFd,
}

impl Worker {
    fn work(mut self) {
        while let Some(buses) = self.await_run() {
            self.run(&buses);
        }
    }

    /// Parks and does jobs until the order to run comes. `None`: it is time to end.
    fn await_run(&mut self) -> Option<Arc<Buses>> {
        let mut slot = self.desk.lock();
        loop {
            if !slot.jobs.is_empty() {
                let jobs = std::mem::take(&mut slot.jobs);
                drop(slot);
                for job in jobs {
                    job(&mut self.fd);
                }
                slot = self.desk.lock();
                continue;
            }
            match (slot.order, &slot.buses) {
                (Order::End, _) => return None,
                (Order::Run, Some(buses)) if !self.outcome.is_set() => {
                    let buses = Arc::clone(buses);
                    slot.parked = false;
                    self.desk.immediate_exit.set(false);
                    return Some(buses);
                }
                (Order::Run | Order::Park, _) => {
                    slot.parked = true;
                    self.desk.changed.notify_all();
                    slot = self.desk.wait(slot);
                }
            }
        }
    }

    /// Runs the guest until another order comes or the machine has ended.
    fn run(&mut self, buses: &Buses) {
        loop {
            match exits::step(&mut self.fd, buses) {
                exits::Step::Again => {}
                exits::Step::Interrupted => {
                    if self.desk.lock().order != Order::Run {
                        return;
                    }
                    // The order was withdrawn before it was seen.
                    self.desk.immediate_exit.set(false);
                    if self.desk.lock().order != Order::Run {
                        return;
                    }
                }
                exits::Step::Ended(exit) => self.outcome.set(exit),
            }
            if self.outcome.is_set() {
                return;
            }
        }
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        if thread::panicking() {
            self.outcome.set(Exit::Failed("the thread of a vcpu has panicked".to_owned()));
        }
        self.desk.lock().gone = true;
        self.desk.changed.notify_all();
    }
}
