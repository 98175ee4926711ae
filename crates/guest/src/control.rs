//! What the host asks of the agent, and what the agent tells.
//!
//! One connection at a time. Requests carry a number; each gets one [`Reply`] with the same number, in any order.
//! [`Event`]s come unasked, on each connection again until the host says that it [heard](Request::Heard) them. After a restore the old connection is reset and the host makes a new one; processes,
//! mounts and the Runtime API stay as they were.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;

use serde::{Deserialize, Serialize};

/// The port of the control connection.
pub const CONTROL: u32 = 1;
/// The port of output streams. The host writes the stream's number (8 bytes, LE) and then reads until the end.
pub const STREAMS: u32 = 2;
/// The port of the Runtime API's owner; see [`crate::runtime`].
pub const RUNTIME: u32 = 3;
/// Of these messages; an agent of another version is refused by the host.
pub const VERSION: u32 = 3;

/// From the host.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Numbered<T> {
    /// Chosen by the host, unique on this connection.
    pub number: u64,
    /// What is asked, or answered.
    #[serde(flatten)]
    pub message: T,
}

/// What the host can ask.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "ask", rename_all = "snake_case")]
pub enum Request {
    /// The first one. Answered with [`Reply::Welcome`].
    Hello,
    /// This microVM is a clone. The agent feeds the kernel's random generator and makes it reseed, sets the clock and the
    /// host name, and only then answers; nothing of the tenant runs before (see [`Request::Quiesce`]).
    Cloned {
        /// 64 bytes from the host's generator, in hex.
        entropy: String,
        /// Nanoseconds since the Unix epoch.
        now_ns: u64,
    },
    /// Mounts a disk. The agent waits until the device has the size that is given (a drive may have been exchanged
    /// during a restore).
    Mount(Mount),
    /// Sets up the network device: address, route, name servers.
    Network(Network),
    /// Limits of all tenant processes together.
    Limits {
        /// Memory in bytes.
        memory_bytes: u64,
        /// Processes and threads.
        max_tasks: u32,
    },
    /// Starts a process as the unprivileged user in the tenant's root. Answered with [`Reply::Spawned`].
    Spawn(Spawn),
    /// Starts an interpreter that waits for its environment (see [`Spawn::prestarted`]). Answered with `Done` once it waits.
    Prestart(Spawn),
    /// Signals a process; one that has ended is not an error.
    Signal {
        /// Its number.
        process: u32,
        /// `SIGTERM` or `SIGKILL`.
        signal: i32,
    },
    /// The host knows that these processes have ended: their [`Event::Exited`] are not told again.
    Heard {
        /// Their numbers; any that are not known do no harm.
        processes: Vec<u32>,
    },
    /// Kills all tenant processes; answered when they are gone.
    KillAll,
    /// Answered with [`Reply::Usage`].
    Usage,
    /// Starts a new measurement of the memory peak.
    ResetPeak,
    /// Stops all tenant processes, writes out and drops caches that a snapshot need not hold, gives free pages back.
    /// Answered when it is the moment for the snapshot.
    Quiesce,
    /// The tenant's processes go on: after a snapshot in the original, after `Cloned` in a clone.
    Wake,
    /// Ends the machine in order.
    PowerOff,
}

/// A disk to mount, inside the tenant's root.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mount {
    /// Number of the drive, in the order of the machine's configuration: 0 is `/dev/vda`.
    pub drive: u8,
    /// Absolute path in the tenant's root; `/` makes it the root itself.
    pub target: String,
    /// `erofs` or `ext4`.
    pub kind: FileSystem,
    /// Size of the drive in bytes, a multiple of 512.
    pub bytes: u64,
}

/// File systems that the agent mounts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FileSystem {
    /// Read-only.
    Erofs,
    /// Writable, nosuid, nodev.
    Ext4,
}

/// The network device's settings.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Network {
    /// Address of `eth0`.
    pub address: Ipv4Addr,
    /// Length of its prefix.
    pub prefix: u8,
    /// Default route.
    pub gateway: Ipv4Addr,
    /// Content of the tenant's `/etc/resolv.conf`, where the root has a place for it.
    pub resolv_conf: String,
}

/// A process to start.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Spawn {
    /// Chosen by the host; names the process from now on.
    pub process: u32,
    /// Program (absolute path in the tenant's root) and arguments.
    pub argv: Vec<String>,
    /// The whole environment, in order.
    pub env: Vec<(String, String)>,
    /// Working directory.
    pub cwd: String,
    /// Variable that tells the number of an extra pipe's write end.
    pub log_fd_env: Option<String>,
    /// Numbers under which standard output, standard error and the extra pipe (0 where there is none) are read from
    /// [`STREAMS`]. Output that nobody reads yet is kept in the pipe.
    pub streams: [u64; 3],
    /// Take the process that was started with [`Request::Prestart`] and waits, if it was started with the same `argv`: it is
    /// given `env` and `cwd` and goes on. The agent answers `Spawned { prestarted: false }` and starts a new one where there
    /// is none, and kills one that does not fit.
    pub prestarted: bool,
}

/// What the agent answers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "answer", rename_all = "snake_case")]
pub enum Reply {
    /// It is done.
    Done,
    /// To `Hello`.
    Welcome {
        /// [`VERSION`].
        version: u32,
        /// `uname -r`.
        kernel: String,
        /// Microseconds since the kernel started.
        uptime_us: u64,
        /// What the agent is good for, by name: further facts for people.
        facts: BTreeMap<String, String>,
    },
    /// The process runs.
    Spawned {
        /// Whether it is the one that waited.
        prestarted: bool,
    },
    /// To `Usage`.
    Usage {
        /// Highest memory use since the last `ResetPeak`, in bytes.
        memory_peak_bytes: u64,
        /// Memory in use, in bytes.
        memory_bytes: u64,
        /// CPU time of all tenant processes, in microseconds.
        cpu_us: u64,
        /// How often the kernel killed for memory.
        oom_kills: u64,
    },
    /// It could not be done.
    Failed {
        /// At what.
        step: Step,
        /// Details: a path, a device.
        what: String,
        /// Of the system call; 0 where it was none.
        errno: i32,
    },
}

/// Where a request failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Step {
    /// The program could not be executed.
    Exec,
    /// The working directory is not there.
    Cwd,
    /// Anything else.
    Other,
}

/// What the agent tells unasked.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub enum Event {
    /// A process has ended; sent after all that it wrote has been handed to its streams' connections.
    Exited {
        /// Its number.
        process: u32,
        /// `exit(code)`, where it ended so.
        code: Option<i32>,
        /// The signal that ended it, otherwise.
        signal: Option<i32>,
    },
}

/// Anything that the agent sends.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum FromAgent {
    /// An answer.
    Reply {
        /// Of the request.
        number: u64,
        /// The answer.
        #[serde(flatten)]
        reply: Reply,
    },
    /// An event.
    Event(Event),
}
