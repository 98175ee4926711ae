//! The decisions, pure: times and events come in, actions go out, and whoever drives it carries them out. The server
//! drives it with real environments, the simulator with imagined ones in virtual time.
//!
//! [`Version`] is one function version: its environments, who waits for them, what is started, kept and retired.
//! What versions have in common is reached through [`Shared`]: the account's concurrency, a [`Function`] for each
//! function (its concurrency and its rates), and the fleet of workers on which environments take places. Only cold
//! starts, ends and evictions take the fleet's lock; an invocation of a warm environment takes none but that of its
//! own version, which is the driver's.
//!
//! # How to drive it
//!
//! - [`Version::step`] with every event and the time that it happened at; times never run backwards.
//! - Every [`Action::Start`] is followed by [`Event::Ready`], [`Event::Gone`] or [`Event::Refused`] of that environment; every
//!   [`Action::Dispatch`] by [`Event::Settling`] (may be left out) and [`Event::Idle`], or by [`Event::Gone`]; and after
//!   [`Action::Retire`] by [`Event::Gone`], with which the place is free again.
//!   One that is started for a snapshot is never ready, and gone when that has been made.
//! - [`Action::Tell`] goes to another version (or to this one) as [`Event::Told`], after the step that asked for it.
//! - [`Action::WakeAt`] asks for an [`Event::Tick`] at that time. It takes the place of the one asked for before, which
//!   was later; ticks that nobody asked for do no harm.

mod concurrency;
mod estimate;
mod event;
mod fleet;
mod keep_alive;
mod placement;
mod rate;
mod shared;
mod version;

pub use concurrency::{Concurrency, Function, FunctionFigures, Throttles};
pub use event::{
    Action, EnvironmentId, Event, FunctionId, Initialized, Purpose, RequestId, Throttle, ThrottleReason, Told,
    VersionId, WorkerId,
};
pub use fleet::FleetFigures;
pub use keep_alive::{HistogramRules, KeepAlive};
pub use placement::{Size, WorkerLimits};
pub use shared::{Rules, Shared, SharedFigures};
pub use version::{ProvisionFailure, Provisioned, Version, VersionFigures};
