//! Can KVM on this host run a Linux guest? That `/dev/kvm` can be opened does not say so: some hosts interpret guest code
//! instruction by instruction, slowly and only as far as they know it.
//!
//! The probe makes a small virtual machine and has it run what a kernel needs: some dozens of instructions in 64-bit mode,
//! an exception through an interrupt table, control and model-specific registers, the saving of extended state; then a
//! loop, against the same loop on the host itself. A machine that neither ends nor stops is given up after
//! [`TIME_LIMIT`].

mod code;
mod vm;

use std::ffi::CStr;
use std::io;
use std::time::{Duration, Instant};

use kvm_ioctls::{Cap, Kvm};

/// How long the guest's code may take in all; where it can be used it takes less than a hundredth of that.
pub const TIME_LIMIT: Duration = Duration::from_secs(3);
/// How many times slower than the host the loop may run.
pub const SLOWEST: f64 = 20.0;
/// How often the loop is run at most before the guest counts as slow.
const TRIES: u32 = 5;
/// The version of KVM's interface, the same since 2007.
const API_VERSION: i32 = 12;

/// What the machine monitor cannot do without, with the names of KVM's documentation.
const NEEDED: [(Cap, &str); 11] = [
    (Cap::UserMemory, "KVM_CAP_USER_MEMORY"),
    (Cap::Irqchip, "KVM_CAP_IRQCHIP"),
    (Cap::Irqfd, "KVM_CAP_IRQFD"),
    (Cap::Ioeventfd, "KVM_CAP_IOEVENTFD"),
    (Cap::ImmediateExit, "KVM_CAP_IMMEDIATE_EXIT"),
    (Cap::ExtCpuid, "KVM_CAP_EXT_CPUID"),
    (Cap::MpState, "KVM_CAP_MP_STATE"),
    (Cap::VcpuEvents, "KVM_CAP_VCPU_EVENTS"),
    (Cap::Xsave, "KVM_CAP_XSAVE"),
    (Cap::Xcrs, "KVM_CAP_XCRS"),
    (Cap::AdjustClock, "KVM_CAP_ADJUST_CLOCK"),
];

/// KVM can be used.
#[derive(Debug, Clone, PartialEq)]
pub struct Usable {
    /// The processor's vendor as CPUID has it, such as `GenuineIntel`.
    pub vendor: String,
    /// Version of KVM's interface.
    pub api_version: i32,
    /// How the guest saves extended state: `xsaves`, `xsave` or `fxsave`.
    pub extended_state: &'static str,
    /// Time of one turn of the loop in the guest, in nanoseconds.
    pub loop_ns_per_iteration: f64,
    /// Time of one turn on the host itself.
    pub host_ns_per_iteration: f64,
}

/// KVM cannot be used, and why.
#[derive(Debug, thiserror::Error)]
pub enum Unusable {
    /// There is no such device.
    #[error(
        "there is no {0}: load kvm-intel or kvm-amd, switch on virtualization in the firmware, or on a virtual machine \
         ask for nested virtualization"
    )]
    Missing(String),
    /// This user may not open it.
    #[error("no permission to open {0}: join the group kvm (usermod -aG kvm USER) and log in again, or run as root")]
    Permission(String),
    /// It cannot be opened for another reason.
    #[error("cannot open {path}")]
    Open {
        /// The device.
        path: String,
        /// Why.
        source: io::Error,
    },
    /// It is something else, or of another time.
    #[error("the version of KVM's interface is {0} and not 12: this is not Linux's KVM")]
    Version(i32),
    /// It cannot do something.
    #[error("this host's KVM lacks {0}: use a newer kernel, or one that is not cut down")]
    Lacks(&'static str),
    /// No virtual machine can be made.
    #[error(
        "cannot {doing} although KVM is there; is another hypervisor in use, or a limit of memory or descriptors reached?"
    )]
    Setup {
        /// What was tried.
        doing: &'static str,
        /// Why not.
        source: io::Error,
    },
    /// Guest code stops at something that every processor can do.
    #[error(
        "creates virtual machines, but their code stops at {at} ({how}): this host interprets guest code and cannot run a \
         Linux kernel; use a host with hardware virtualization"
    )]
    Stops {
        /// The instruction.
        at: &'static str,
        /// What was seen.
        how: Stop,
    },
    /// Guest code runs, but does not end.
    #[error("guest code did not get beyond {at} within {} s: this host interprets guest code, or is overloaded", TIME_LIMIT.as_secs())]
    Hangs {
        /// The instruction.
        at: &'static str,
    },
    /// Guest code is interpreted.
    #[error(
        "guest code runs {times:.0} times slower than the host's own ({guest_ns:.1} ns against {host_ns:.1} ns for a turn of \
         a loop): this host interprets it; use a host with hardware virtualization"
    )]
    TooSlow {
        /// By how much.
        times: f64,
        /// Nanoseconds for a turn in the guest.
        guest_ns: f64,
        /// And on the host.
        host_ns: f64,
    },
}

/// How guest code stops.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stop {
    /// KVM gives up with an internal error: it met an instruction that it cannot interpret.
    InternalError,
    /// The virtual processor shut down: an exception where there must be none.
    Shutdown,
    /// The processor refuses to enter the guest, with the hardware's reason.
    EntryRefused(u64),
    /// The instruction ran and did something else than it should.
    WrongResult,
    /// The system call failed with this number.
    Failed(i32),
    /// An exit that this code does not cause.
    Unexpected,
}

impl std::fmt::Display for Stop {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Stop::InternalError => write!(f, "KVM reports an internal error"),
            Stop::Shutdown => write!(f, "the virtual processor shuts down"),
            Stop::EntryRefused(reason) => write!(f, "the processor refuses to enter the guest, reason {reason:#x}"),
            Stop::WrongResult => write!(f, "its result is wrong"),
            Stop::Failed(errno) => write!(f, "running fails: {}", io::Error::from_raw_os_error(*errno)),
            Stop::Unexpected => write!(f, "KVM reports an event that the code does not cause"),
        }
    }
}

/// Probes `/dev/kvm`. Takes some milliseconds where it can be used, at most little more than [`TIME_LIMIT`].
pub fn probe() -> Result<Usable, Unusable> {
    probe_at(c"/dev/kvm")
}

/// Probes the KVM device at `path`.
pub fn probe_at(path: &CStr) -> Result<Usable, Unusable> {
    let name = || path.to_string_lossy().into_owned();
    let kvm = Kvm::new_with_path(path).map_err(|error| {
        let source = io::Error::from(error);
        match source.kind() {
            io::ErrorKind::NotFound => Unusable::Missing(name()),
            io::ErrorKind::PermissionDenied => Unusable::Permission(name()),
            _ if source.raw_os_error() == Some(libc::ENODEV) || source.raw_os_error() == Some(libc::ENXIO) => {
                Unusable::Missing(name())
            }
            _ => Unusable::Open { path: name(), source },
        }
    })?;
    let api_version = kvm.get_api_version();
    if api_version != API_VERSION {
        return Err(Unusable::Version(api_version));
    }
    if let Some((_, name)) = NEEDED.iter().find(|(capability, _)| !kvm.check_extension(*capability)) {
        return Err(Unusable::Lacks(name));
    }
    let begun = Instant::now();
    let run = vm::run(kvm, code::ITERATIONS, TIME_LIMIT)?;
    let host_ns = code::native_ns(code::ITERATIONS);
    let again = || {
        // Slower than the first time is no news, even if it does not end.
        let rest = TIME_LIMIT.checked_sub(begun.elapsed())?;
        vm::run(Kvm::new_with_path(path).ok()?, code::ITERATIONS, rest).ok().map(|run| ns_per_turn(run.elapsed))
    };
    let guest_ns = judge(ns_per_turn(run.elapsed), host_ns, again)?;
    Ok(Usable {
        vendor: run.vendor,
        api_version,
        extended_state: run.extended_state.name(),
        loop_ns_per_iteration: guest_ns,
        host_ns_per_iteration: host_ns,
    })
}

fn ns_per_turn(elapsed: Duration) -> f64 {
    elapsed.as_secs_f64() * 1e9 / code::ITERATIONS as f64
}

/// The guest's time for a turn if it is good enough. Whatever else runs on this host may have held a guest up, so one that
/// seems slow is measured `again` and the best counts, until that gives nothing.
fn judge(mut guest_ns: f64, host_ns: f64, again: impl Fn() -> Option<f64>) -> Result<f64, Unusable> {
    for _ in 1..TRIES {
        if guest_ns <= SLOWEST * host_ns {
            break;
        }
        let Some(next) = again() else { break };
        guest_ns = guest_ns.min(next);
    }
    let times = guest_ns / host_ns;
    if times > SLOWEST { Err(Unusable::TooSlow { times, guest_ns, host_ns }) } else { Ok(guest_ns) }
}

#[cfg(test)]
mod tests;
