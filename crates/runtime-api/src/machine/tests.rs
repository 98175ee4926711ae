//! The machine, call by call: every transition of the diagram, and the refusals with AWS's words.

use super::*;
use crate::{ExtensionEvent, ExtensionPhase, Extensions};

pub(super) fn call(number: u64) -> CallId {
    CallId(number)
}

pub(super) fn invocation(id: &str) -> Arc<Invocation> {
    Arc::new(Invocation { request_id: id.to_owned(), ..Invocation::default() })
}

pub(super) fn next(number: u64) -> Input {
    Input::Next { call: call(number) }
}

fn lost(number: u64) -> Input {
    Input::CallLost { call: call(number) }
}

fn response(number: u64, id: &str) -> Input {
    Input::ResponseBegins { call: call(number), request_id: id.to_owned() }
}

fn error(number: u64, id: &str) -> Input {
    Input::ErrorBegins { call: call(number), request_id: id.to_owned() }
}

fn done() -> Outcome {
    Outcome::Response { body: Bytes::from_static(b"1"), content_type: None, streaming: false }
}

fn ends(number: u64) -> Input {
    Input::AnswerEnds { call: call(number), outcome: done() }
}

fn answered(id: &str, outcome: Outcome) -> Action {
    Action::Complete { request_id: id.to_owned(), outcome }
}

fn abandon(id: &str) -> Input {
    Input::Abandon { request_id: id.to_owned() }
}

fn dropped(id: &str) -> Action {
    Action::DropOutcome { request_id: id.to_owned() }
}

fn init_error() -> Input {
    Input::InitError { error_type: "Runtime.Unknown".to_owned(), body: Bytes::new() }
}

fn restore_error() -> Input {
    Input::RestoreError { error_type: "Runtime.Unknown".to_owned(), body: Bytes::new() }
}

fn deliver(number: u64, id: &str) -> Action {
    Action::Deliver { call: call(number), invocation: invocation(id) }
}

/// Steps that must all be accepted; returns the actions of the last one.
fn drive(machine: &mut Machine, inputs: impl IntoIterator<Item = Input>) -> Vec<Action> {
    let mut last = Vec::new();
    for input in inputs {
        let shown = format!("{input:?}");
        last = machine.step(input).unwrap_or_else(|refusal| panic!("{shown} was refused: {refusal}"));
    }
    last
}

/// A machine after these steps.
fn after(inputs: impl IntoIterator<Item = Input>) -> Machine {
    let mut machine = Machine::new(true);
    drive(&mut machine, inputs);
    machine
}

/// One machine in each of the runtime's states, with the state's name. The invocation is called `a`.
fn every_state() -> Vec<(&'static str, Machine)> {
    let invoke = || Input::Invoke(invocation("a"));
    vec![
        ("Started", after([])),
        ("InitError", after([init_error()])),
        ("Ready", after([next(1)])),
        ("Running", after([next(1), invoke()])),
        ("InvocationResponse", after([next(1), invoke(), response(2, "a")])),
        ("InvocationErrorResponse", after([next(1), invoke(), error(2, "a")])),
        ("RuntimeResponseSentState", after([next(1), invoke(), response(2, "a"), ends(2)])),
        ("RestoreReady", after([Input::RestoreNext { call: call(1) }])),
        ("Restoring", after([Input::RestoreNext { call: call(1) }, Input::Restore])),
        ("RuntimeRestoreErrorState", after([Input::RestoreNext { call: call(1) }, Input::Restore, restore_error()])),
    ]
}

/// Checks that all states but these refuse an input, and that they do so with AWS's sentence and without changing.
fn taken_only_in(input: impl Fn() -> Input, to: &str, states: &[&str]) {
    for (name, mut machine) in every_state() {
        let before = format!("{machine:?}");
        match machine.step(input()) {
            Ok(_) => assert!(states.contains(&name), "{name} took {:?}", input()),
            Err(refusal) => {
                assert!(!states.contains(&name), "{name} refused {:?}", input());
                let text = format!(
                    "State transition from {name} to {to} failed for runtime. Error: State transition is not allowed"
                );
                assert_eq!(
                    (refusal.to_string(), refusal.status(), refusal.error_type()),
                    (text, 403, "InvalidStateTransition")
                );
                assert_eq!(format!("{machine:?}"), before, "a refusal changed the machine");
            }
        }
    }
}

#[test]
fn next_is_refused_after_failures_and_while_an_answer_is_under_way() {
    let states = ["Started", "Ready", "Running", "RuntimeResponseSentState", "Restoring"];
    taken_only_in(|| next(9), "Ready", &states);
}

#[test]
fn init_error_counts_only_before_the_first_next_and_after_a_restore() {
    let states = ["Started", "Restoring"];
    taken_only_in(init_error, "InitError", &states);
}

#[test]
fn restore_error_counts_only_while_restoring() {
    let states = ["Restoring"];
    taken_only_in(restore_error, "RuntimeRestoreErrorState", &states);
}

#[test]
fn restore_next_counts_only_before_the_first_next() {
    let states = ["Started"];
    taken_only_in(|| Input::RestoreNext { call: call(9) }, "RestoreReady", &states);
}

#[test]
fn an_answer_needs_the_id_of_the_running_invocation() {
    for (name, mut machine) in every_state() {
        assert_eq!(machine.step(response(9, "b")), Err(Refusal::RequestId), "{name}");
        let expected = match name {
            "Running" => Ok(Vec::new()),
            "InvocationResponse" | "InvocationErrorResponse" | "RuntimeResponseSentState" => {
                Err(Refusal::RuntimeState { from: name, to: "InvocationResponse" })
            }
            _ => Err(Refusal::RequestId),
        };
        assert_eq!(machine.step(response(9, "a")), expected, "{name}");
    }
    let mut machine = after([next(1), Input::Invoke(invocation("a")), response(2, "a")]);
    let refusal = Refusal::RuntimeState { from: "InvocationResponse", to: "InvocationErrorResponse" };
    assert_eq!(machine.step(error(3, "a")), Err(refusal));
    assert_eq!(machine.step(ends(3)), Err(Refusal::RequestId), "only the call that began may end");
    assert_eq!(machine.step(ends(2)), Ok(vec![answered("a", done())]));
}

#[test]
fn an_invocation_goes_to_a_waiting_next_at_once_or_to_the_following_one() {
    let mut machine = after([next(1)]);
    assert_eq!(machine.step(Input::Invoke(invocation("a"))), Ok(vec![deliver(1, "a")]));
    drive(&mut machine, [response(2, "a"), ends(2)]);
    // Between the answer and the following next.
    assert_eq!(machine.step(Input::Invoke(invocation("b"))), Ok(vec![]));
    assert_eq!(machine.step(next(3)), Ok(vec![Action::Emit(Event::Idle), deliver(3, "b")]));
    // Before the first next.
    let mut machine = after([Input::Invoke(invocation("c"))]);
    assert_eq!(machine.step(next(1)), Ok(vec![Action::Emit(Event::InitDone), deliver(1, "c")]));
}

#[test]
fn one_invocation_at_a_time() {
    for inputs in [
        vec![Input::Invoke(invocation("a"))],
        vec![next(1), Input::Invoke(invocation("a"))],
        vec![next(1), Input::Invoke(invocation("a")), response(2, "a")],
    ] {
        let mut machine = after(inputs);
        assert!(machine.is_busy());
        assert_eq!(machine.step(Input::Invoke(invocation("b"))), Err(Refusal::Busy));
    }
}

#[test]
fn a_next_while_running_gets_the_same_invocation_again() {
    let mut machine = after([next(1), Input::Invoke(invocation("a"))]);
    assert_eq!(machine.step(next(2)), Ok(vec![deliver(2, "a")]));
    // Two have it now, so the loss of one of them is no reason to give it to a third that waits.
    let mut machine = after([next(1), next(2), Input::Invoke(invocation("a")), next(3)]);
    assert_eq!(machine.step(lost(1)), Ok(vec![]));
    assert_eq!(machine.step(response(4, "a")), Ok(vec![]));
}

#[test]
fn parallel_next_calls_are_served_in_order() {
    let mut machine = after([next(1), next(2)]);
    assert_eq!(machine.step(Input::Invoke(invocation("a"))), Ok(vec![deliver(1, "a")]));
    drive(&mut machine, [response(3, "a"), ends(3), Input::Invoke(invocation("b"))]);
    assert_eq!(machine.step(next(4)), Ok(vec![Action::Emit(Event::Idle), deliver(2, "b")]));
}

#[test]
fn an_invocation_whose_waiter_died_is_kept_for_the_next_one() {
    let mut machine = after([next(1), lost(1)]);
    assert_eq!(machine.step(Input::Invoke(invocation("a"))), Ok(vec![]));
    assert_eq!(machine.step(next(2)), Ok(vec![deliver(2, "a")]));
    // It dies after it was handed over but before it took it: the one behind it gets it.
    let mut machine = after([next(1), next(2), Input::Invoke(invocation("a"))]);
    assert_eq!(machine.step(lost(1)), Ok(vec![deliver(2, "a")]));
    // Nobody is behind it: the following one.
    assert_eq!(machine.step(lost(2)), Ok(vec![]));
    assert_eq!(machine.step(next(3)), Ok(vec![deliver(3, "a")]));
}

#[test]
fn an_answer_that_breaks_off_is_truncated() {
    let mut machine = after([next(1), Input::Invoke(invocation("a")), response(2, "a")]);
    assert_eq!(machine.step(lost(2)), Ok(vec![answered("a", Outcome::Truncated)]));
    assert_eq!(machine.step(next(3)), Ok(vec![Action::Emit(Event::Idle)]));
}

#[test]
fn after_an_abandoned_invocation_the_late_answer_has_an_invalid_id() {
    let running = [next(1), Input::Invoke(invocation("a"))];
    let mut machine = after(running.clone());
    assert_eq!(machine.step(abandon("a")), Ok(vec![dropped("a")]));
    assert_eq!(machine.step(response(2, "a")), Err(Refusal::RequestId));
    let mut machine = after(running.into_iter().chain([response(2, "a")]));
    assert_eq!(machine.step(abandon("a")), Ok(vec![dropped("a")]));
    assert_eq!(machine.step(ends(2)), Err(Refusal::RequestId));
    assert_eq!(machine.step(next(3)), Ok(vec![Action::Emit(Event::Idle)]));
    // One that nobody has seen is simply gone.
    let mut machine = after([Input::Invoke(invocation("a"))]);
    assert_eq!(machine.step(abandon("a")), Ok(vec![dropped("a")]));
    assert_eq!(machine.step(next(1)), Ok(vec![Action::Emit(Event::InitDone)]));
    assert_eq!(machine.step(abandon("a")), Ok(vec![]));
}

#[test]
fn a_reset_hangs_up_and_keeps_what_no_runtime_has_seen() {
    let mut machine = after([next(1), next(2)]);
    let hang_up = |number| Action::HangUp { call: call(number) };
    assert_eq!(machine.step(Input::Reset), Ok(vec![hang_up(1), hang_up(2)]));
    assert_eq!(machine.step(next(3)), Ok(vec![Action::Emit(Event::InitDone)]));

    let mut machine = after([next(1), Input::Invoke(invocation("a"))]);
    assert_eq!(machine.step(Input::Reset), Ok(vec![dropped("a")]));

    let mut machine = after([Input::Invoke(invocation("a")), init_error()]);
    assert_eq!(machine.step(Input::Reset), Ok(vec![]));
    assert_eq!(machine.step(next(1)), Ok(vec![Action::Emit(Event::InitDone), deliver(1, "a")]));

    let mut machine = after([Input::RestoreNext { call: call(1) }]);
    assert_eq!(machine.step(Input::Reset), Ok(vec![hang_up(1)]));
}

#[test]
fn a_snapshot_environment_waits_for_its_restore() {
    let mut machine = Machine::new(true);
    let restore_next = |number| Input::RestoreNext { call: call(number) };
    assert_eq!(machine.step(restore_next(1)), Ok(vec![Action::Emit(Event::RestoreReady)]));
    drive(&mut machine, [lost(1)]);
    assert!(machine.step(Input::Restore).is_err(), "nobody waits any more");
    assert_eq!(machine.step(restore_next(2)), Ok(vec![]));
    assert_eq!(machine.step(Input::Restore), Ok(vec![Action::Release { call: call(2) }]));
    assert_eq!(machine.step(next(3)), Ok(vec![Action::Emit(Event::InitDone)]));
    // A failed hook may be reported in either place.
    for report in [init_error(), restore_error()] {
        let mut machine = after([restore_next(1), Input::Restore]);
        let event = Event::RestoreError { error_type: "Runtime.Unknown".to_owned(), body: Bytes::new() };
        assert_eq!(machine.step(report), Ok(vec![Action::Emit(event)]));
    }
    let mut machine = Machine::new(false);
    assert_eq!(machine.step(restore_next(1)), Err(Refusal::NotFound));
    assert_eq!(machine.step(restore_error()), Err(Refusal::NotFound));
}

fn id(number: u128) -> Uuid {
    Uuid::from_u128(number)
}

fn register(name: &str, number: u128, events: &[&str]) -> Input {
    let events = events.iter().map(|event| (*event).to_owned()).collect();
    Input::Register { name: name.to_owned(), id: id(number), events }
}

fn event_next(number: u64, extension: u128) -> Input {
    Input::EventNext { call: call(number), id: id(extension) }
}

fn expect(names: &[&str]) -> Input {
    Input::ExpectExtensions(names.iter().map(|name| (*name).to_owned()).collect())
}

fn deliver_event(number: u64, event: ExtensionEvent) -> Action {
    Action::DeliverEvent { call: call(number), event: Arc::new(event) }
}

fn fails(extension: u128, phase: ExtensionPhase) -> Input {
    Input::ExtensionFailed { id: id(extension), error_type: "Extension.Oops".to_owned(), body: Bytes::new(), phase }
}

#[test]
fn init_and_invocation_are_over_when_the_extensions_have_asked_as_well() {
    let mut machine = Machine::new(false);
    drive(&mut machine, [expect(&["one", "two"]), register("one", 1, &["INVOKE", "SHUTDOWN"])]);
    let registered = machine.step(register("two", 2, &["SHUTDOWN"]));
    assert_eq!(registered, Ok(vec![Action::Emit(Event::ExtensionsRegistered)]));
    drive(&mut machine, [register("inside", 3, &["INVOKE"])]);
    assert_eq!(drive(&mut machine, [next(10), event_next(11, 1), event_next(12, 2)]), vec![]);
    assert_eq!(machine.step(event_next(13, 3)), Ok(vec![Action::Emit(Event::InitDone)]));

    let invoke = || ExtensionEvent::Invoke(invocation("a"));
    let actions = drive(&mut machine, [Input::Invoke(invocation("a"))]);
    assert_eq!(actions, vec![deliver(10, "a"), deliver_event(11, invoke()), deliver_event(13, invoke())]);
    assert_eq!(drive(&mut machine, [response(14, "a"), ends(14), next(15), event_next(16, 1)]), vec![]);
    // An invocation that comes now waits for the slowest extension.
    assert_eq!(drive(&mut machine, [Input::Invoke(invocation("b"))]), vec![]);
    let actions = drive(&mut machine, [event_next(17, 3)]);
    assert_eq!(actions[..2], [Action::Emit(Event::Idle), deliver(15, "b")]);
    assert_eq!(actions.len(), 4);
}

#[test]
fn the_moment_for_a_snapshot_comes_when_the_extensions_wait_as_well() {
    let mut machine = Machine::new(true);
    drive(&mut machine, [expect(&["outside"]), register("outside", 1, &["INVOKE"])]);
    assert_eq!(machine.step(Input::RestoreNext { call: call(10) }), Ok(vec![]));
    assert_eq!(machine.step(event_next(11, 1)), Ok(vec![Action::Emit(Event::RestoreReady)]));
    // Told once, whoever loses a connection and comes back.
    assert_eq!(drive(&mut machine, [lost(10), lost(11), event_next(12, 1)]), vec![]);
    assert_eq!(machine.step(Input::RestoreNext { call: call(13) }), Ok(vec![]));
    assert_eq!(machine.step(Input::Restore), Ok(vec![Action::Release { call: call(13) }]));
    assert_eq!(machine.step(next(14)), Ok(vec![Action::Emit(Event::InitDone)]));
    let actions = drive(&mut machine, [Input::Invoke(invocation("a"))]);
    assert_eq!(actions[0], deliver(14, "a"));
}

#[test]
fn the_shutdown_event_reaches_those_who_subscribed_once_they_ask() {
    let mut machine = Machine::new(false);
    drive(
        &mut machine,
        [
            expect(&["waits", "busy", "deaf"]),
            register("waits", 1, &["SHUTDOWN"]),
            register("busy", 2, &["INVOKE", "SHUTDOWN"]),
            register("deaf", 3, &["INVOKE"]),
            next(10),
            event_next(11, 1),
            event_next(12, 2),
            event_next(13, 3),
            Input::Invoke(invocation("a")),
        ],
    );
    let event = || ExtensionEvent::Shutdown { reason: ShutdownReason::Timeout, deadline_ms: 5 };
    let shutdown = Input::Shutdown { reason: ShutdownReason::Timeout, deadline_ms: 5 };
    assert_eq!(machine.step(shutdown), Ok(vec![deliver_event(11, event())]));
    assert_eq!(machine.step(event_next(14, 3)), Ok(vec![]));
    assert_eq!(machine.step(event_next(15, 2)), Ok(vec![deliver_event(15, event())]));
    assert_eq!(machine.step(Input::Invoke(invocation("b"))), Err(Refusal::Busy));
    drive(&mut machine, [abandon("a")]);
    assert_eq!(machine.step(Input::Invoke(invocation("b"))), Err(Refusal::ShuttingDown));
    let Extensions { external, internal } = machine.registry().snapshot();
    let states: Vec<_> = external.iter().map(|extension| (extension.name.as_str(), extension.state)).collect();
    assert_eq!(states, [("waits", "Running"), ("busy", "Running"), ("deaf", "Ready")]);
    assert_eq!(internal, []);
}

#[test]
fn an_event_that_was_not_taken_is_given_again() {
    let mut machine = Machine::new(false);
    drive(&mut machine, [register("inside", 1, &["INVOKE"]), next(10), event_next(11, 1)]);
    drive(&mut machine, [Input::Invoke(invocation("a")), lost(11)]);
    // Until it has been, the invocation is not over.
    assert_eq!(drive(&mut machine, [response(12, "a"), ends(12), next(13)]), vec![]);
    let again = deliver_event(14, ExtensionEvent::Invoke(invocation("a")));
    assert_eq!(machine.step(event_next(14, 1)), Ok(vec![again]));
    assert_eq!(machine.step(event_next(15, 1)), Ok(vec![Action::Emit(Event::Idle)]));
}

#[test]
fn at_shutdown_an_event_that_was_not_taken_is_not_given_any_more() {
    let mut machine = Machine::new(false);
    drive(&mut machine, [expect(&["outside"]), register("outside", 1, &["INVOKE", "SHUTDOWN"])]);
    drive(&mut machine, [next(10), event_next(11, 1), Input::Invoke(invocation("a")), lost(11)]);
    drive(&mut machine, [Input::Shutdown { reason: ShutdownReason::Failure, deadline_ms: 5 }]);
    let event = ExtensionEvent::Shutdown { reason: ShutdownReason::Failure, deadline_ms: 5 };
    assert_eq!(machine.step(event_next(12, 1)), Ok(vec![deliver_event(12, event)]));
    assert_eq!(machine.step(event_next(13, 1)), Ok(vec![]));
}

#[test]
fn registrations_are_refused_with_the_words_of_aws() {
    let mut machine = Machine::new(false);
    drive(&mut machine, [expect(&["outside"]), register("inside", 1, &[])]);
    let mut refused = |input: Input, error_type: &str, text: &str| {
        let before = format!("{machine:?}");
        let refusal = machine.step(input).unwrap_err();
        assert_eq!((refusal.status(), refusal.error_type(), refusal.to_string().as_str()), (403, error_type, text));
        assert_eq!(format!("{machine:?}"), before);
    };
    refused(
        register("other", 2, &["SHUTDOWN"]),
        "Extension.InvalidEventType",
        "SHUTDOWN: ShutdownEventNotSupportedForInternalExtension",
    );
    refused(register("outside", 2, &["abc"]), "Extension.InvalidEventType", "abc: ErrorInvalidEventType");
    refused(
        register("inside", 2, &[]),
        "Extension.InvalidExtensionState",
        "Extension with this name already registered",
    );
    refused(
        event_next(9, 7),
        "Extension.UnknownExtensionIdentifier",
        "Unknown extension 00000000-0000-0000-0000-000000000007",
    );
    refused(
        fails(7, ExtensionPhase::Exit),
        "Extension.UnknownExtensionIdentifier",
        "Unknown Lambda-Extension-Identifier",
    );

    drive(&mut machine, [register("outside", 3, &[])]);
    let refusal = machine.step(register("outside", 4, &[])).unwrap_err();
    assert_eq!(
        refusal.to_string(),
        "State transition from Registered to Registered failed for extension outside. Error: State transition is not allowed"
    );

    drive(&mut machine, [event_next(10, 1), event_next(11, 3)]);
    let refusal = machine.step(event_next(12, 1)).unwrap_err();
    assert_eq!(
        refusal.to_string(),
        "State transition from Ready to Ready failed for extension 00000000-0000-0000-0000-000000000001. \
         Error: State transition is not allowed"
    );

    drive(&mut machine, [next(13)]);
    assert_eq!(machine.step(register("late", 5, &[])), Err(Refusal::RegistrationClosed));
    assert_eq!(machine.step(expect(&["late"])), Err(Refusal::RegistrationClosed));
}

#[test]
fn there_are_at_most_ten_extensions() {
    let mut machine = Machine::new(false);
    let names: Vec<String> = (0..11).map(|number| format!("e{number}")).collect();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    let refusal = machine.step(expect(&names)).unwrap_err();
    assert_eq!(
        (refusal.error_type(), refusal.to_string().as_str()),
        ("Extension.TooManyExtensions", "Extension limit (10) reached")
    );
    drive(&mut machine, [expect(&names[..9]), register("inside", 1, &[])]);
    assert_eq!(machine.step(register("more", 2, &[])), Err(Refusal::TooManyExtensions { limit: 10 }));
}

#[test]
fn an_extension_reports_its_end_once() {
    let event = |phase| Event::ExtensionError {
        name: "inside".to_owned(),
        error_type: "Extension.Oops".to_owned(),
        body: Bytes::new(),
        phase,
    };
    let mut machine = after([register("inside", 1, &[])]);
    let actions = drive(&mut machine, [fails(1, ExtensionPhase::Init)]);
    assert_eq!(actions, vec![Action::Emit(event(ExtensionPhase::Init))]);
    assert_eq!(machine.step(fails(1, ExtensionPhase::Init)), Ok(vec![]));
    assert!(machine.step(fails(1, ExtensionPhase::Exit)).is_err());
    assert!(machine.step(event_next(9, 1)).is_err());
    assert_eq!(machine.step(next(10)), Ok(vec![]), "an environment with a failed extension never gets ready");
    let shown = machine.registry().snapshot().internal[0].clone();
    assert_eq!((shown.state, shown.error_type.as_deref()), ("InitError", Some("Extension.Oops")));

    let mut machine = after([register("inside", 1, &[]), event_next(9, 1)]);
    assert!(machine.step(fails(1, ExtensionPhase::Init)).is_err());
    let actions = drive(&mut machine, [fails(1, ExtensionPhase::Exit)]);
    assert_eq!(actions, vec![Action::HangUp { call: call(9) }, Action::Emit(event(ExtensionPhase::Exit))]);
}

#[test]
fn a_reset_forgets_the_extensions() {
    let mut machine = Machine::new(false);
    drive(&mut machine, [expect(&["outside"]), register("outside", 1, &[]), event_next(9, 1), next(10)]);
    let hang_up = |number| Action::HangUp { call: call(number) };
    assert_eq!(machine.step(Input::Reset), Ok(vec![hang_up(10), hang_up(9)]));
    assert!(machine.step(event_next(11, 1)).is_err());
    drive(&mut machine, [register("outside", 2, &["INVOKE"])]);
    assert_eq!(machine.registry().snapshot().external, [], "it is an internal one unless it was announced again");
    assert_eq!(machine.registry().snapshot().internal.len(), 1);
}
