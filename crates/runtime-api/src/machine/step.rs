//! What goes into a step of the machine, and what comes out of it.

use std::sync::Arc;

use bytes::Bytes;
use uuid::Uuid;

use crate::extensions::{ExtensionEvent, ShutdownReason};
use crate::{Event, ExtensionPhase, Invocation, Outcome};

/// One HTTP call, from its request to its answer. Never used twice in the life of a machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct CallId(pub u64);

/// Something that happened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Input {
    /// Runtime: `GET /runtime/invocation/next`. Answered by a later [`Action::Deliver`].
    Next {
        /// The call that waits.
        call: CallId,
    },
    /// A call that waited, or was being handed something, lost its connection before the answer was taken from the machine's hands.
    CallLost {
        /// The call that is gone.
        call: CallId,
    },
    /// Runtime: the head of `POST /runtime/invocation/{id}/response` has arrived.
    ResponseBegins {
        /// The call whose body follows.
        call: CallId,
        /// The id in the path.
        request_id: String,
    },
    /// Runtime: the head of `POST /runtime/invocation/{id}/error` has arrived.
    ErrorBegins {
        /// The call whose body follows.
        call: CallId,
        /// The id in the path.
        request_id: String,
    },
    /// The body of one of these two has come to its end, good or bad.
    AnswerEnds {
        /// The call that began.
        call: CallId,
        /// What it amounts to.
        outcome: Outcome,
    },
    /// Runtime: `POST /runtime/init/error`.
    InitError {
        /// Filtered error type.
        error_type: String,
        /// The error object.
        body: Bytes,
    },
    /// Runtime: `GET /runtime/restore/next`. Answered by a later [`Action::Release`].
    RestoreNext {
        /// The call that waits.
        call: CallId,
    },
    /// Runtime: `POST /runtime/restore/error`.
    RestoreError {
        /// Filtered error type.
        error_type: String,
        /// The error object.
        body: Bytes,
    },
    /// Platform: here is an invocation.
    Invoke(Arc<Invocation>),
    /// Platform: this invocation is over, whatever the runtime still says. Nothing happens where there is none by this id.
    Abandon {
        /// Which one.
        request_id: String,
    },
    /// Platform: the snapshot has been restored.
    Restore,
    /// Platform: the processes are gone, new ones will be started.
    Reset,
    /// Platform: these external extensions are about to be started.
    ExpectExtensions(Vec<String>),
    /// Platform: tell the extensions to end.
    Shutdown {
        /// Why.
        reason: ShutdownReason,
        /// Until when, in milliseconds since the Unix epoch.
        deadline_ms: u64,
    },
    /// Extension: `POST /extension/register`.
    Register {
        /// `Lambda-Extension-Name`.
        name: String,
        /// The identifier it gets if it is accepted.
        id: Uuid,
        /// The events as it spelt them.
        events: Vec<String>,
    },
    /// Extension: `GET /extension/event/next`. Answered by a later [`Action::DeliverEvent`].
    EventNext {
        /// The call that waits.
        call: CallId,
        /// Who calls.
        id: Uuid,
    },
    /// Extension: `POST /extension/init/error` or `/extension/exit/error`.
    ExtensionFailed {
        /// Who calls.
        id: Uuid,
        /// `Lambda-Extension-Function-Error-Type`.
        error_type: String,
        /// The error object.
        body: Bytes,
        /// Which of the two.
        phase: ExtensionPhase,
    },
}

/// Something to be done because of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    /// Answer this `next` with this invocation.
    Deliver {
        /// The waiting call.
        call: CallId,
        /// What it gets.
        invocation: Arc<Invocation>,
    },
    /// Answer this `restore/next`.
    Release {
        /// The waiting call.
        call: CallId,
    },
    /// Answer this `event/next` with this event.
    DeliverEvent {
        /// The waiting call.
        call: CallId,
        /// What it gets.
        event: Arc<ExtensionEvent>,
    },
    /// End this waiting call without an answer.
    HangUp {
        /// The waiting call.
        call: CallId,
    },
    /// The invocation is answered.
    Complete {
        /// Which one.
        request_id: String,
        /// With what.
        outcome: Outcome,
    },
    /// The invocation will never be answered.
    DropOutcome {
        /// Which one.
        request_id: String,
    },
    /// Tell the owner.
    Emit(Event),
}
