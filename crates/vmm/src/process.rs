//! The VMM process: jailed first, then a virtual machine without memory (a *shell*), then a machine.
//!
//! ```text
//! exec -> Start -> jail -> shell -> filter -> Ready -> Boot | Restore -> machine ... -> Exit
//!           `---- the host closes its socket or dies, at any time: the process ends, and KVM takes the machine apart
//! ```
//!
//! One thread does everything but run the guest: it turns the event loop of the devices, on which the host's socket is one
//! descriptor of many. It takes orders from the host alone and believes nothing that the guest has written.

use std::os::fd::OwnedFd;
use std::process::ExitCode;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;
use std::{env, io, panic};

use rustix::process::{Signal, set_parent_process_death_signal};

use crate::config::{Exit, MAX_VCPUS};
use crate::machine;
use crate::wire::{self, Call, Received, Report, Request, ShellTimes, Start};

mod control;
mod jail;
mod seccomp;
mod step;
mod sys;

use step::{Step, StepError, chain};
pub(crate) use sys::monotonic_ns;

/// Tells a program that it was started as a VMM, on descriptor 0 of which is the socket to the host.
pub(crate) const ROLE: &str = "FIRELET_VMM_ROLE";
pub(crate) const VMM: &str = "vmm";

/// Added to the score by which the kernel picks its victim when the host itself runs out of memory: guests first.
const OOM_SCORE: &str = "500";

/// Does the work of a VMM process and exits, if this process was started for that; returns otherwise. Every program that
/// makes a [`Launcher`](crate::host::Launcher) calls it first thing in `main`, before any thread is there.
pub fn run_if_vmm() {
    if env::var_os(ROLE).is_none_or(|role| role != VMM) {
        return;
    }
    // Not `std::process::exit`: what it would run at the end is not in the filter's list, and there is nothing to flush.
    // SAFETY: ends the process.
    unsafe { libc::_exit(i32::from(main() != ExitCode::SUCCESS)) }
}

fn main() -> ExitCode {
    let socket = Arc::new(sys::host_socket());
    let result = panic::catch_unwind(|| run(&socket));
    let exit = match result {
        Ok(Ok(None)) => return ExitCode::SUCCESS,
        Ok(Ok(Some(exit))) => exit,
        Ok(Err(error)) => Exit::Failed(chain(&error)),
        Err(_) => Exit::Failed(format!("the VMM panicked: {}", last_panic())),
    };
    // The host may be gone, which is why we are here then.
    let _ = report(&socket, &Report::Exit(exit));
    ExitCode::FAILURE
}

/// Runs until the machine ends, or the host goes (`None`).
fn run(socket: &Arc<OwnedFd>) -> Result<Option<Exit>, StepError> {
    remember_panics();
    sys::unblock_signals().step("unblock signals")?;
    sys::close_inherited().step("close inherited descriptors")?;
    sys::one_arena();
    set_parent_process_death_signal(Some(Signal::KILL)).step("tie its life to the host process")?;
    // A session of its own: an interrupt typed at the host's terminal is the host's to handle.
    let _ = rustix::process::setsid();
    rustix::thread::set_name(c"firelet-vmm").step("name itself")?;

    let Some((start, mut fds)) = first(socket)? else { return Ok(None) };
    let process = u32::try_from(monotonic_ns().saturating_sub(start.begun_ns) / 1000).unwrap_or(u32::MAX);
    let entered = Instant::now();
    let mut next = || fds.next().ok_or(rustix::io::Errno::BADF).step("find the descriptors of its start");
    let kvm = next()?;
    let netns = if start.has_netns { Some(next()?) } else { None };
    for _ in 0..start.groups {
        rustix::io::write(next()?, b"0").step("join its control group")?;
    }
    let pagemap = std::fs::File::open("/proc/self/pagemap").step("open its page table")?;
    std::fs::write("/proc/self/oom_score_adj", OOM_SCORE).step("offer itself to the out-of-memory killer")?;
    sys::silence(std::fs::File::open("/dev/null").step("open /dev/null")?).step("let go of standard error")?;
    jail::enter(netns, start.user)?;
    let jail = micros(entered);

    let filtering = Instant::now();
    seccomp::prepare(start.audit)?;
    let filter = micros(filtering);
    let server = control::Server::new(socket, kvm, start.vcpus, pagemap)?;
    // Never dropped: the kernel takes everything apart at the end of the process, and faster.
    let server = Box::leak(Box::new(server));
    let machine::ShellTimings { probe, vm, vcpus, threads } = server.timings();
    let filtering = Instant::now();
    seccomp::confine_device_thread()?;
    let filter = filter.saturating_add(micros(filtering));
    let times = ShellTimes { process, jail, probe, vm, vcpus, threads, filter };
    report(socket, &Report::Ready(times)).step("report to the host")?;
    server.serve()
}

/// The first message, which must be [`Call::Start`]. `None` if the host has gone.
fn first(socket: &OwnedFd) -> Result<Option<(Start, std::vec::IntoIter<OwnedFd>)>, StepError> {
    let Received::Packet(packet, fds) = wire::receive(socket, true, wire::MAX_FDS).step("hear from the host")? else {
        return Ok(None);
    };
    match wire::decode(&packet) {
        Ok(Request { call: Call::Start(start), .. }) if (1..=MAX_VCPUS).contains(&start.vcpus) => {
            Ok(Some((start, fds.into_iter())))
        }
        _ => Err(io::Error::from(rustix::io::Errno::BADMSG)).step("understand the host"),
    }
}

fn report(socket: &OwnedFd, report: &Report) -> io::Result<()> {
    let packet = wire::encode(&cut(report)).map_err(io::Error::other)?;
    wire::send(socket, &packet, &[], true)
}

/// A report with texts that fit into a packet.
fn cut(report: &Report) -> Report {
    match report {
        Report::Exit(Exit::Crashed(reason)) => Report::Exit(Exit::Crashed(wire::plain(reason))),
        Report::Exit(Exit::Failed(reason)) => Report::Exit(Exit::Failed(wire::plain(reason))),
        Report::Answer { id, result } => {
            Report::Answer { id: *id, result: result.clone().map_err(|reason| wire::plain(&reason)) }
        }
        Report::Ready(_) | Report::Incoming { .. } | Report::Exit(Exit::Reset | Exit::Killed) => report.clone(),
    }
}

fn micros(since: Instant) -> u32 {
    u32::try_from(since.elapsed().as_micros()).unwrap_or(u32::MAX)
}

/// There is no standard error in the jail: what a panic says is kept for the host.
static PANIC: Mutex<String> = Mutex::new(String::new());

fn remember_panics() {
    panic::set_hook(Box::new(|info| {
        *PANIC.lock().unwrap_or_else(PoisonError::into_inner) = info.to_string();
    }));
}

fn last_panic() -> String {
    PANIC.lock().unwrap_or_else(PoisonError::into_inner).clone()
}
