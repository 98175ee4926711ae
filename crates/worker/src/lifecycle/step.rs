//! What goes into a step of an environment's machine, and what comes out of it.

use std::time::{Duration, Instant};

/// In which phase an initialization runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    /// Before any invocation, limited to [`INIT_TIMEOUT`](super::INIT_TIMEOUT) (or more where the environment is provisioned).
    Init,
    /// Again, inside an invocation, under the function's timeout.
    Invoke,
}

/// How something ended, for the REPORT lines.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Status {
    /// As it should.
    Success,
    /// The runtime crashed, could not start or broke a rule; the error type says which.
    Error(String),
    /// The deadline passed.
    Timeout,
}

/// An error made by the platform or posted by the runtime; becomes the payload that the caller reads.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure {
    /// `Runtime.ExitError`, `Sandbox.Timedout`, ...
    pub error_type: String,
    /// The payload as the runtime posted it, or none where the platform words it from `message`.
    pub posted: Option<Vec<u8>>,
    /// The platform's text, without the `RequestId: ... Error: ` in front.
    pub message: String,
}

/// What an environment has been through before its first invocation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Before {
    /// An initialization of this length.
    Init(Duration),
    /// A restore from a snapshot.
    Restore {
        /// All of it.
        took: Duration,
        /// From the release of the runtime on: its hooks, and what it does itself.
        billed: Duration,
    },
}

/// Why a restored environment is of no use.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RestoreFailure {
    /// A hook failed, or the runtime ended.
    Hook(Failure),
    /// The hooks took too long; they had this much time.
    Timeout(Duration),
}

impl std::fmt::Display for RestoreFailure {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Hook(failure) => write!(f, "{}: {}", failure.error_type, crate::failure::told(failure)),
            Self::Timeout(limit) => {
                write!(
                    f,
                    "Runtime.RestoreHookUserTimeout: the restore took longer than {:.2} seconds",
                    limit.as_secs_f64()
                )
            }
        }
    }
}

/// What a runtime answered to an invocation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Answer {
    /// Something for the caller: a response or a handled error. The owner keeps the bytes.
    Delivered,
    /// The answer broke a rule of the Runtime API (too large, cut off, unknown mode).
    Refused(Failure),
}

/// What happens to an environment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// The sandbox is there: start the first initialization.
    Begin,
    /// The sandbox goes on from a snapshot, which began then: release the runtime.
    Restore {
        /// When it was begun to be restored.
        began: Instant,
    },
    /// The runtime told that a hook failed after the restore.
    RestoreError(Failure),
    /// The runtime could not be started.
    SpawnFailed(Failure),
    /// All extensions have registered.
    ExtensionsRegistered,
    /// Runtime and extensions are waiting for the first invocation.
    InitDone,
    /// The runtime or an extension gave up during its initialization.
    InitError(Failure),
    /// An invocation. Legal in `Ready` and `Broken` only.
    Invoke {
        /// The function's timeout.
        timeout: Duration,
        /// Whether the reply waits for the end of the invocation's log.
        tail: bool,
    },
    /// Where there are several invocations at once: one has come. Legal wherever an invocation is.
    Serve,
    /// Likewise: all have ended.
    Free,
    /// The runtime answered the invocation.
    Answered(Answer),
    /// Runtime and extensions are waiting for the next invocation.
    Idle,
    /// The runtime process (or an extension) ended.
    Exited(Failure),
    /// The time set by [`Action::SetDeadline`] came.
    DeadlinePassed,
    /// The time set by [`Action::FreezeSoon`] came.
    FreezeDue,
    /// [`Action::Clear`] is done: no process is left in the sandbox.
    Cleared,
    /// The environment is to end.
    Shutdown,
}

/// What the owner is to do, in this order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    /// Start the extensions, or the runtime at once where there are none.
    StartProcesses {
        /// Whether this is the environment's first initialization, which INIT_START announces.
        announce: bool,
    },
    /// Start the runtime: the extensions have registered.
    StartRuntime,
    /// Wake me with [`Event::DeadlinePassed`] at this time, unless it is changed or cleared before.
    SetDeadline(Instant),
    /// No deadline is pending any more.
    ClearDeadline,
    /// Write INIT_REPORT, and with it how the extensions are. Whether there is a line for a success is for the log's
    /// format and level to say.
    ReportInit {
        /// Phase of the initialization.
        phase: Phase,
        /// How long it took.
        duration: Duration,
        /// How it ended.
        status: Status,
    },
    /// Write RESTORE_START, and let the runtime run its hooks.
    StartRestore,
    /// Write RESTORE_REPORT.
    ReportRestore {
        /// How long it took, the sandbox's own part included.
        duration: Duration,
        /// How it ended.
        status: Status,
    },
    /// Discard the environment, and tell why. The machine takes no further event.
    FailRestore(RestoreFailure),
    /// Write the START line; the invocation begins.
    LogStart,
    /// Let the processes go on.
    Thaw,
    /// Hand the invocation to the runtime.
    Deliver,
    /// Hand all invocations that have come, and that the runtime does not have, to it.
    Admit,
    /// Give the callers of all invocations this failure.
    FailAll(Failure),
    /// Take the invocation away from the runtime: an answer that comes now is late.
    Abandon,
    /// Give the caller what the runtime answered.
    ReplyAnswer,
    /// Give the caller this failure.
    ReplyFailure(Failure),
    /// Give the caller the message that the function timed out after so long.
    ReplyTimeout(Duration),
    /// Write END and REPORT.
    LogEnd {
        /// From START to the end.
        duration: Duration,
        /// What came before this invocation, if it was the first.
        before: Option<Before>,
        /// How it ended.
        status: Status,
    },
    /// Tell the manager that the first initialization is over. When it failed, an invocation will try again.
    NotifyReady {
        /// Whether it succeeded.
        initialized: bool,
    },
    /// Tell the manager that the invocation has its answer and that the environment will soon be free. Comes before the
    /// answer itself, so that a caller who asks again at once finds the environment and not a busy one.
    NotifySettling,
    /// Tell the manager that the next invocation may come.
    NotifyIdle,
    /// Wake me with [`Event::FreezeDue`] when nothing has come for a moment.
    FreezeSoon,
    /// Stop the processes where they are.
    Freeze,
    /// Kill all processes in the sandbox, then send [`Event::Cleared`].
    Clear {
        /// What the extensions are told.
        timed_out: bool,
    },
    /// End everything. The machine takes no further event.
    TearDown,
}
