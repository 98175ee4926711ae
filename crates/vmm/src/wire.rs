//! What the host process and a VMM process say to each other, and how: postcard in packets of one Unix socket.
//!
//! ```text
//! host                                                VMM
//!   Start ------------------------------------------->   once, with /dev/kvm and control groups
//!   <---------------------------------------------- Ready
//!   Boot | Restore ---------------------------------->   once, with memory, kernel or state, drives
//!   <---------------------------------------------- Answer
//!   Pause, Save, Exchange, ... ---------------------->   any time after, answered in order
//!   Connect, Listen, Stop --------------------------->   not answered
//!   <---------------------------------------------- Incoming, Exit
//! ```
//!
//! Both ends take the other for hostile. A packet is bounded, read whole and exactly. The host takes no descriptor from a
//! VMM but the stream of a connection that it waits for: what is long travels in memory files that the host has made.

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::config::{BootProtocol, Exit, MachineConfig};

mod blob;
mod socket;

pub(crate) use blob::{read_ranges, read_state, write_ranges, write_state};
pub(crate) use socket::{Received, pair, receive, send};

/// Longest packet, in bytes.
pub(crate) const MAX_PACKET: usize = 16 * 1024;
/// Most descriptors beside a packet.
pub(crate) const MAX_FDS: usize = 24;
/// Longest text that a VMM may report, in bytes; more is cut off.
pub(crate) const MAX_TEXT: usize = 1024;

/// A request of the host, numbered so that answers find back.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Request {
    pub id: u64,
    pub call: Call,
}

/// What the host can ask for. The descriptors that belong to each stand in the order in which they travel.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Call {
    /// `/dev/kvm`, the network namespace if there is one, `groups` open `cgroup.procs` files.
    Start(Start),
    /// Memory, kernel, initial file system if there is one, drives, tap device, serial output.
    Boot(Boot),
    /// State, working set, memory, drives, tap device, serial output.
    Restore(Restore),
    /// A stream that is to become a connection to this port of the guest. Closed if that fails.
    Connect { port: u32 },
    /// The guest may connect to this port of the host.
    Listen { port: u32 },
    /// Stops the vCPUs.
    Pause,
    /// Lets them go on.
    Resume,
    /// A memory file, into which the state goes.
    Save,
    /// A memory file, into which the pages go that this machine does not share with its template.
    DumpPrivate,
    /// A memory file, into which the ranges of memory go that the machine has touched.
    WorkingSet,
    /// A file that takes the place of the one behind this drive.
    Exchange { drive: u32 },
    /// Ends the process.
    Stop,
}

impl Call {
    /// Whether the VMM answers it.
    pub fn is_answered(&self) -> bool {
        !matches!(self, Call::Connect { .. } | Call::Listen { .. } | Call::Stop)
    }
}

/// What makes a process a shell: jailed, with a virtual machine that has no memory yet.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Start {
    pub vcpus: u8,
    /// The user (and group) to become; `None` in a user namespace, which has only one.
    pub user: Option<u32>,
    pub has_netns: bool,
    pub groups: u8,
    /// Calls that the filter would refuse are only written to the kernel's log.
    pub audit: bool,
    /// When the host began, in nanoseconds of `CLOCK_MONOTONIC`.
    pub begun_ns: u64,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Boot {
    pub config: MachineConfig,
    pub protocol: BootProtocol,
    pub has_initramfs: bool,
    pub has_serial: bool,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Restore {
    /// Length of the state, in bytes.
    pub state: u64,
    /// Number of ranges in the working set.
    pub ranges: u64,
    pub drives: u8,
    pub has_tap: bool,
    pub has_serial: bool,
    /// Whether the machine runs at once.
    pub resume: bool,
}

/// What a VMM tells the host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Report {
    /// It is a shell now.
    Ready(ShellTimes),
    /// The answer to the request of this number.
    Answer { id: u64, result: Result<Answer, String> },
    /// The guest has opened a connection to a port that the host listens on; its stream comes with this.
    Incoming { port: u32 },
    /// The machine has ended; the process ends next.
    Exit(Exit),
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Answer {
    Done,
    /// The machine is there.
    Machine(MachineTimes),
    /// This many bytes of state are in the file, or this many ranges.
    Written(u64),
}

/// How long the making of a shell took inside its process, in microseconds.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct ShellTimes {
    /// From the host's decision until the process has read its first message.
    pub process: u32,
    /// Namespaces, root, user, rights.
    pub jail: u32,
    /// Asking KVM what it can do.
    pub probe: u32,
    /// Virtual machine, interrupt controllers, queues' eventfds.
    pub vm: u32,
    /// vCPUs.
    pub vcpus: u32,
    /// Their threads.
    pub threads: u32,
    /// System call filters.
    pub filter: u32,
}

/// How long a boot or a restore took inside the VMM process, in microseconds.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct MachineTimes {
    /// Reading the state; 0 for a boot.
    pub state: u32,
    /// Mapping memory; on a restore also telling KVM of it.
    pub memory: u32,
    /// Making devices, or restoring them.
    pub devices: u32,
    /// Copying kernel and initramfs; 0 on a restore.
    pub load: u32,
    /// Waiting for the vCPUs to have their state, and interrupt controllers and clock.
    pub vcpus: u32,
    /// Connecting devices with KVM and the event loop; on a boot also telling KVM of the memory.
    pub attach: u32,
    /// Mapping the working set in advance; 0 on a boot.
    pub populate: u32,
    /// Letting the vCPUs run; 0 on a boot, and on a restore that stays paused.
    pub run: u32,
}

/// A packet that is not what it should be.
#[derive(Debug, thiserror::Error)]
pub(crate) enum WireError {
    /// Not a message, or more than one.
    #[error("a packet is not a message")]
    Malformed,
    /// A message does not fit into a packet.
    #[error("a message of {0} bytes is too long for the socket")]
    TooLong(usize),
}

/// The packet of a message.
pub(crate) fn encode<T: Serialize>(message: &T) -> Result<Vec<u8>, WireError> {
    let bytes = postcard::to_stdvec(message).map_err(|_| WireError::Malformed)?;
    if bytes.len() > MAX_PACKET { Err(WireError::TooLong(bytes.len())) } else { Ok(bytes) }
}

/// The message of a packet, which must hold nothing else.
pub(crate) fn decode<T: DeserializeOwned>(packet: &[u8]) -> Result<T, WireError> {
    match postcard::take_from_bytes(packet) {
        Ok((message, [])) => Ok(message),
        _ => Err(WireError::Malformed),
    }
}

/// A text of the other side, fit for logs: cut to [`MAX_TEXT`] bytes, without control characters.
pub(crate) fn plain(text: &str) -> String {
    let mut end = text.len().min(MAX_TEXT);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    text[..end].chars().map(|c| if c.is_control() { ' ' } else { c }).collect()
}

#[cfg(test)]
mod tests;
