//! Several invocations at once: what each call does, and that no interleaving loses one, answers one twice, or hands out
//! more than are allowed.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use proptest::prelude::*;
use uuid::Uuid;

use super::super::Machine;
use super::super::step::Input;
use super::super::tests::{call, invocation, next};
use super::*;
use crate::{Event, ShutdownReason};

fn invoke(id: &str) -> Input {
    Input::Invoke(invocation(id))
}

fn begins(number: u64, id: &str) -> Input {
    Input::ResponseBegins { call: call(number), request_id: id.to_owned() }
}

fn ends(number: u64) -> Input {
    Input::AnswerEnds { call: call(number), outcome: Outcome::Truncated }
}

fn abandon(id: &str) -> Input {
    Input::Abandon { request_id: id.to_owned() }
}

fn deliver(number: u64, id: &str) -> Action {
    Action::Deliver { call: call(number), invocation: invocation(id) }
}

fn answered(id: &str) -> Action {
    Action::Complete { request_id: id.to_owned(), outcome: Outcome::Truncated }
}

fn dropped(id: &str) -> Action {
    Action::DropOutcome { request_id: id.to_owned() }
}

/// A machine for three invocations at once, after these steps.
fn after(inputs: impl IntoIterator<Item = Input>) -> Machine {
    let mut machine = Machine::with_concurrency(false, 3);
    for input in inputs {
        let shown = format!("{input:?}");
        machine.step(input).unwrap_or_else(|refusal| panic!("{shown} was refused: {refusal}"));
    }
    machine
}

#[test]
fn each_waiting_call_gets_an_invocation_of_its_own() {
    let mut machine = after([invoke("a"), invoke("b")]);
    assert_eq!(machine.step(next(1)), Ok(vec![Action::Emit(Event::InitDone), deliver(1, "a")]));
    assert_eq!(machine.step(next(2)), Ok(vec![deliver(2, "b")]));
    assert_eq!(machine.step(next(3)), Ok(vec![]));
    assert_eq!(machine.step(invoke("c")), Ok(vec![deliver(3, "c")]));
    assert!(machine.is_busy());
    assert_eq!(machine.step(invoke("d")), Err(Refusal::Busy));
}

#[test]
fn answers_come_in_any_order_and_free_a_place_each() {
    let mut machine = after([next(1), next(2), invoke("a"), invoke("b"), begins(3, "b"), begins(4, "a")]);
    assert_eq!(machine.step(ends(3)), Ok(vec![answered("b")]));
    assert_eq!(machine.step(ends(4)), Ok(vec![answered("a")]));
    // What is answered is unknown from then on.
    assert_eq!(machine.step(begins(5, "a")), Err(Refusal::RequestId));
    assert_eq!(machine.step(ends(4)), Err(Refusal::RequestId));
    assert_eq!(machine.step(invoke("c")), Ok(vec![]));
    assert_eq!(machine.step(next(6)), Ok(vec![deliver(6, "c")]), "no idle event comes between");
}

#[test]
fn an_invocation_is_answered_by_one_call() {
    let mut machine = after([next(1), invoke("a"), begins(2, "a")]);
    let from = "InvocationResponse";
    assert_eq!(machine.step(begins(3, "a")), Err(Refusal::RuntimeState { from, to: from }));
    let broken_off = machine.step(Input::CallLost { call: call(2) });
    assert_eq!(broken_off, Ok(vec![answered("a")]));
}

#[test]
fn what_did_not_get_through_goes_to_the_next_call() {
    let mut machine = after([next(1), next(2), invoke("a")]);
    assert_eq!(machine.step(Input::CallLost { call: call(1) }), Ok(vec![deliver(2, "a")]));
    assert_eq!(machine.step(Input::CallLost { call: call(2) }), Ok(vec![]));
    // It is the oldest.
    machine.step(invoke("b")).unwrap();
    assert_eq!(machine.step(next(3)), Ok(vec![deliver(3, "a")]));
}

#[test]
fn one_is_abandoned_alone_and_its_place_is_lost_until_the_runtime_comes_back() {
    let mut machine = after([next(1), next(2), next(3), invoke("a"), invoke("b"), invoke("c")]);
    assert_eq!(machine.step(abandon("b")), Ok(vec![dropped("b")]));
    assert_eq!(machine.step(abandon("b")), Ok(vec![]));
    assert!(!machine.is_busy());
    assert_eq!(machine.step(begins(4, "a")), Ok(vec![]));
    // One that is being answered: the runtime is back from it.
    assert_eq!(machine.step(abandon("a")), Ok(vec![dropped("a")]));
    assert_eq!(machine.step(ends(4)), Err(Refusal::RequestId));
    machine.step(abandon("c")).unwrap();
    assert!(!machine.is_stuck());
    // Nobody has seen this one.
    machine.step(invoke("d")).unwrap();
    assert_eq!(machine.step(abandon("d")), Ok(vec![dropped("d")]));
    assert!(!machine.is_stuck());
    // The one that had been at `a` gets stuck as well.
    machine.step(next(5)).unwrap();
    machine.step(invoke("e")).unwrap();
    machine.step(abandon("e")).unwrap();
    assert!(machine.is_stuck());
    assert_eq!(machine.step(begins(6, "b")), Err(Refusal::RequestId));
    // Whoever was late asks for more.
    machine.step(next(7)).unwrap();
    assert!(!machine.is_stuck());
}

#[test]
fn a_reset_drops_what_the_runtime_had_and_keeps_the_rest() {
    let mut machine = after([next(1), next(2), invoke("a"), invoke("b"), invoke("c"), begins(3, "b")]);
    let mut actions = machine.step(Input::Reset).unwrap();
    actions.sort_by_key(|action| format!("{action:?}"));
    assert_eq!(actions, [dropped("a"), dropped("b")]);
    assert_eq!(machine.step(next(4)), Ok(vec![Action::Emit(Event::InitDone), deliver(4, "c")]));
}

#[test]
fn extensions_hear_of_the_end_alone() {
    let id = Uuid::from_u128(1);
    let register = |events: &[&str]| Input::Register {
        name: "outside".to_owned(),
        id,
        events: events.iter().map(|event| (*event).to_owned()).collect(),
    };
    let mut machine = after([Input::ExpectExtensions(vec!["outside".to_owned()])]);
    let refused = machine.step(register(&["SHUTDOWN", "INVOKE"]));
    assert_eq!(refused, Err(Refusal::EventType { event: "INVOKE".to_owned(), reason: "ErrorInvalidEventType" }));
    machine.step(register(&["SHUTDOWN"])).unwrap();
    machine.step(next(1)).unwrap();
    let ready = machine.step(Input::EventNext { call: call(2), id });
    assert_eq!(ready, Ok(vec![Action::Emit(Event::InitDone)]));
    assert_eq!(machine.step(invoke("a")), Ok(vec![deliver(1, "a")]));
    let told = machine.step(Input::Shutdown { reason: ShutdownReason::Spindown, deadline_ms: 0 }).unwrap();
    assert!(matches!(told[..], [Action::DeliverEvent { .. }]));
    assert_eq!(machine.step(invoke("b")), Err(Refusal::ShuttingDown));
}

#[test]
fn restores_and_init_errors_are_for_before() {
    let mut machine = after([next(1)]);
    let error = Input::InitError { error_type: String::new(), body: Bytes::new() };
    assert!(matches!(machine.step(error), Err(Refusal::RuntimeState { from: "Ready", .. })));
    assert_eq!(machine.step(Input::RestoreNext { call: call(2) }), Err(Refusal::NotFound));
}

#[derive(Debug, Clone)]
enum Op {
    Next,
    Invoke,
    Begin(usize),
    End(usize),
    Abandon(usize),
    LoseWaiting(usize),
    LoseGiven(usize),
    LoseAnswering(usize),
    Reset,
}

fn ops() -> impl Strategy<Value = Vec<Op>> {
    let op = prop_oneof![
        4 => Just(Op::Next),
        4 => Just(Op::Invoke),
        3 => (0..8usize).prop_map(Op::Begin),
        3 => (0..8usize).prop_map(Op::End),
        1 => (0..8usize).prop_map(Op::Abandon),
        1 => (0..8usize).prop_map(Op::LoseWaiting),
        1 => (0..8usize).prop_map(Op::LoseGiven),
        1 => (0..8usize).prop_map(Op::LoseAnswering),
        1 => Just(Op::Reset),
    ];
    proptest::collection::vec(op, 0..80)
}

/// The books: who waits, who has what, what became of each invocation.
#[derive(Default)]
struct Books {
    waiting: BTreeSet<CallId>,
    given: BTreeMap<String, CallId>,
    answering: BTreeMap<CallId, String>,
    kept: BTreeSet<String>,
    ended: BTreeSet<String>,
}

impl Books {
    fn take(&mut self, actions: Vec<Action>) {
        for action in actions {
            match action {
                Action::Deliver { call, invocation } => {
                    assert!(self.waiting.remove(&call), "{call:?} does not wait");
                    assert!(self.kept.remove(&invocation.request_id), "{} is not to be had", invocation.request_id);
                    self.given.insert(invocation.request_id.clone(), call);
                }
                Action::Complete { request_id, .. } | Action::DropOutcome { request_id } => {
                    self.given.remove(&request_id);
                    self.kept.remove(&request_id);
                    self.answering.retain(|_, id| *id != request_id);
                    assert!(self.ended.insert(request_id.clone()), "{request_id} ended twice");
                }
                Action::HangUp { call } => assert!(self.waiting.remove(&call), "{call:?} does not wait"),
                Action::Emit(Event::InitDone) => {}
                other => panic!("{other:?} cannot happen here"),
            }
        }
    }

    fn open(&self) -> usize {
        self.kept.len() + self.given.len() + self.answering.len()
    }
}

fn pick<T: Clone>(mut from: impl ExactSizeIterator<Item = T>, at: usize) -> Option<T> {
    let length = from.len();
    if length == 0 { None } else { from.nth(at % length) }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn no_interleaving_loses_or_repeats_an_invocation(concurrency in 2..5usize, ops in ops()) {
        let mut machine = Machine::with_concurrency(false, concurrency);
        let mut books = Books::default();
        let mut number = 0;
        for op in ops {
            number += 1;
            let input = match op {
                Op::Next => {
                    books.waiting.insert(call(number));
                    next(number)
                }
                Op::Invoke => {
                    let id = number.to_string();
                    let full = books.open() >= concurrency;
                    prop_assert_eq!(machine.is_busy(), full);
                    let result = machine.step(invoke(&id));
                    prop_assert_eq!(result.is_err(), full);
                    if let Ok(actions) = result {
                        books.kept.insert(id);
                        books.take(actions);
                    }
                    continue;
                }
                Op::Begin(at) => {
                    let Some(id) = pick(books.given.keys().cloned(), at) else { continue };
                    books.given.remove(&id);
                    books.answering.insert(call(number), id.clone());
                    begins(number, &id)
                }
                Op::End(at) => {
                    let Some(CallId(number)) = pick(books.answering.keys().copied(), at) else { continue };
                    ends(number)
                }
                Op::Abandon(at) => {
                    let all: Vec<&String> = books.kept.iter().chain(books.given.keys()).chain(books.answering.values()).collect();
                    let Some(id) = pick(all.into_iter().cloned(), at) else { continue };
                    abandon(&id)
                }
                Op::LoseWaiting(at) => {
                    let Some(call) = pick(books.waiting.iter().copied(), at) else { continue };
                    books.waiting.remove(&call);
                    Input::CallLost { call }
                }
                Op::LoseGiven(at) => {
                    let Some(id) = pick(books.given.keys().cloned(), at) else { continue };
                    let Some(call) = books.given.remove(&id) else { continue };
                    books.kept.insert(id);
                    Input::CallLost { call }
                }
                Op::LoseAnswering(at) => {
                    let Some(call) = pick(books.answering.keys().copied(), at) else { continue };
                    Input::CallLost { call }
                }
                Op::Reset => Input::Reset,
            };
            let actions = machine.step(input).map_err(|refusal| TestCaseError::fail(refusal.to_string()))?;
            books.take(actions);
            // Nobody waits while there is something to be had.
            prop_assert!(books.kept.is_empty() || books.waiting.is_empty());
        }
        // A runtime that behaves from now on serves all that is left.
        let actions = machine.step(Input::Reset).unwrap();
        books.take(actions);
        for at in 0..=concurrency as u64 {
            books.waiting.insert(call(10_000 + at));
            let actions = machine.step(next(10_000 + at)).unwrap();
            books.take(actions);
        }
        for (at, id) in (20_000..).zip(books.given.keys().cloned().collect::<Vec<_>>()) {
            machine.step(begins(at, &id)).unwrap();
            let actions = machine.step(ends(at)).unwrap();
            books.take(actions);
        }
        prop_assert_eq!(books.open(), 0);
    }
}
