//! The vocabulary of the core: names, events, actions.

use std::time::{Duration, Instant};

/// A function, over all its versions.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct FunctionId(pub u64);

/// A function version, which has a pool of environments.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct VersionId(pub u64);

/// An environment of a version; another version may have one of the same number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct EnvironmentId(pub u64);

/// An invocation that asks for an environment. The driver chooses the number, unique within the version.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct RequestId(pub u64);

/// A host on which environments are: its index in the list that [`Shared`](super::Shared) was made with.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct WorkerId(pub usize);

/// What happens to a version.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Event {
    /// An invocation asks to be let in and for an environment.
    Request(RequestId),
    /// An environment has been through its first initialization.
    Ready(EnvironmentId, Initialized),
    /// A busy environment has answered a caller.
    Settling(EnvironmentId),
    /// A busy environment can take one invocation more.
    Idle(EnvironmentId),
    /// An environment has ended, by itself or because it was told to.
    Gone(EnvironmentId),
    /// An environment has ended before it was ready: the host has less room than the core was told of.
    Refused(EnvironmentId),
    /// Time has passed: an [`Action::WakeAt`] is due.
    Tick,
    /// The version is to be initialized for its snapshot, which takes a place like any environment: find one, however
    /// long that takes.
    Initialize,
    /// Keep so many environments initialized.
    SetProvisioned(u32),
    /// Have no more environments than this at once, where there is a number. Those beyond it go as they become idle.
    SetMost(Option<u32>),
    /// The version is no longer current: start nothing ahead of demand, keep nothing.
    Retire,
    /// The server goes down: every environment ends, busy ones too, and none is started any more.
    End,
    /// Another version's step, or this one's own, had this to say.
    Told(Told),
}

/// What the fleet has to say to a version, by way of [`Action::Tell`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Told {
    /// There is a place for this environment, which waited for one.
    Room(EnvironmentId),
    /// Somebody else needs the place of this environment, which was idle when it was chosen.
    Evict(EnvironmentId),
}

/// How a first initialization ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Initialized {
    /// The runtime waits for an invocation.
    Yes,
    /// It failed; an invocation will try again.
    Failed,
}

/// What is to be done, in this order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    /// Hand the request to the environment.
    Dispatch(RequestId, EnvironmentId),
    /// Make an environment on that worker, where a place is taken for it.
    Start(EnvironmentId, Purpose, WorkerId),
    /// There is no place for the initialization that was just asked for, and will be none: every worker is too small, or
    /// the server goes down.
    Decline,
    /// End an environment. It serves nobody, except after [`Event::End`].
    Retire(EnvironmentId),
    /// The request is over a limit.
    Throttle(RequestId, Throttle),
    /// There will be no environment for this request: the one started for it did not come to be, or the server goes
    /// down.
    Fail(RequestId),
    /// Send [`Event::Told`] to that version, after this step.
    Tell(VersionId, Told),
    /// Send [`Event::Tick`] at this time, or soon after.
    WakeAt(Instant),
}

/// What an environment is started for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Purpose {
    /// Waiting invocations.
    OnDemand,
    /// The provisioned-concurrency setting.
    Provisioned,
    /// An invocation that the version's history lets expect.
    Prewarm,
    /// The version's snapshot: it initializes, serves nobody and is gone.
    Snapshot,
}

impl Purpose {
    /// Whether it is for invocations that nothing else provides for: such environments are started at a limited rate,
    /// and may be given up.
    pub(crate) fn is_on_demand(self) -> bool {
        match self {
            Self::OnDemand | Self::Prewarm => true,
            Self::Provisioned | Self::Snapshot => false,
        }
    }
}

/// That an invocation is over a limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Throttle {
    /// Which limit.
    pub reason: ThrottleReason,
    /// When it is worth another try, at the earliest.
    pub retry_after: Duration,
}

/// Which limit throttled an invocation (the wire names are the frontend's business).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum ThrottleReason {
    /// The account's concurrency is used up, or what of it belongs to no other function.
    AccountConcurrency,
    /// The function's reserved concurrency is used up.
    FunctionConcurrency,
    /// More requests a second than the account's concurrency allows for.
    AccountRate,
    /// More requests a second than the function's reserved concurrency allows for.
    FunctionRate,
    /// The function would need more new environments than it may have started in this time.
    ScalingRate,
    /// The version has as many environments as its scaling configuration allows, and none has room.
    MostEnvironments,
    /// This host, or all hosts together, can hold no further environment.
    HostCapacity,
}

impl ThrottleReason {
    /// All of them.
    pub const ALL: [Self; 7] = [
        Self::AccountConcurrency,
        Self::FunctionConcurrency,
        Self::AccountRate,
        Self::FunctionRate,
        Self::ScalingRate,
        Self::MostEnvironments,
        Self::HostCapacity,
    ];
}
