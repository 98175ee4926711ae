//! The machine against a simple model, over random interleavings of what runtimes, extensions and the platform do.
//!
//! The model is one flat record of an honest protocol: who waits, where the invocation is, who still owes an answer. It
//! predicts for every input whether it is allowed and what comes of it. On top of that the run keeps books: no invocation
//! is answered twice, none is lost, none is given to a call that does not wait.

use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;
use proptest::test_runner::RngSeed;

use super::*;
use crate::ExtensionEvent;

/// One thing that happens. Numbers choose among the calls and ids that exist at that moment.
#[derive(Debug, Clone, Copy)]
enum Op {
    Next,
    /// The head of an answer: to the invocation in hand, or to one that was or will be.
    Begin {
        error: bool,
        stale: bool,
    },
    /// The end of the answer that began last, or of another call.
    End {
        wrong: bool,
    },
    /// A connection breaks: that of a waiting call, or of the call that got the invocation.
    Lose(usize),
    InitError,
    Invoke,
    Abandon,
    Reset,
    Register(usize),
    EventNext(usize),
}

fn ops() -> impl Strategy<Value = Vec<Op>> {
    let op = prop_oneof![
        6 => Just(Op::Next),
        5 => any::<(bool, bool)>().prop_map(|(error, stale)| Op::Begin { error, stale }),
        5 => (0..4).prop_map(|wrong| Op::End { wrong: wrong == 0 }),
        2 => (0..4usize).prop_map(Op::Lose),
        1 => Just(Op::InitError),
        6 => Just(Op::Invoke),
        1 => Just(Op::Abandon),
        1 => Just(Op::Reset),
        3 => (0..2usize).prop_map(Op::Register),
        4 => (0..2usize).prop_map(Op::EventNext),
    ];
    proptest::collection::vec(op, 1..80)
}

/// Where the runtime is, for the model.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum At {
    Started,
    Failed,
    Waiting,
    Has(u64),
    Answering(u64, CallId),
    /// It has answered this invocation; none if the platform took it away.
    Done(Option<u64>),
}

/// What an extension owes, for the model. All of these subscribe to INVOKE.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Ext {
    Unknown,
    Registered,
    Waiting(Option<CallId>),
    Has(CallId),
}

#[derive(Debug)]
struct Model {
    at: At,
    queue: Vec<CallId>,
    kept: Option<u64>,
    /// The only call that holds the invocation, if there is only one.
    holder: Option<CallId>,
    init: bool,
    idle: bool,
    extensions: [Ext; 2],
    /// Events that wait for an extension that lost its connection.
    owed: [bool; 2],
    announced: usize,
}

/// What a step is expected to do, in the model's words.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
enum Effect {
    Gives(CallId, u64),
    Tells(CallId, u64),
    Answered,
    Dropped,
    HangsUp(CallId),
    InitDone,
    Idle,
    Registered,
    InitError,
}

impl Model {
    fn new(announced: usize) -> Self {
        Self {
            at: At::Started,
            queue: Vec::new(),
            kept: None,
            holder: None,
            init: true,
            idle: false,
            extensions: [Ext::Unknown; 2],
            owed: [false; 2],
            announced,
        }
    }

    fn busy(&self) -> bool {
        self.kept.is_some() || matches!(self.at, At::Has(_) | At::Answering(..))
    }

    fn current(&self) -> Option<u64> {
        match self.at {
            At::Has(id) | At::Answering(id, _) | At::Done(Some(id)) => Some(id),
            At::Started | At::Failed | At::Waiting | At::Done(None) => None,
        }
    }

    /// Everybody back: the phase ends. Somebody waits: the invocation goes out.
    fn settle(&mut self, effects: &mut Vec<Effect>) {
        let back = (0..self.announced).all(|n| matches!(self.extensions[n], Ext::Waiting(_)) && !self.owed[n]);
        if !self.idle && self.at == At::Waiting && back {
            effects.push(if self.init { Effect::InitDone } else { Effect::Idle });
            self.init = false;
            self.idle = true;
        }
        if self.idle && self.at == At::Waiting && !self.queue.is_empty() {
            let Some(id) = self.kept.take() else { return };
            let call = self.queue.remove(0);
            effects.push(Effect::Gives(call, id));
            self.at = At::Has(id);
            self.holder = Some(call);
            self.idle = false;
            for n in 0..self.announced {
                match self.extensions[n] {
                    Ext::Waiting(Some(call)) => {
                        effects.push(Effect::Tells(call, id));
                        self.extensions[n] = Ext::Has(call);
                    }
                    _ => self.owed[n] = true,
                }
            }
        }
    }
}

/// The machine, the model, and the books.
struct Run {
    machine: Machine,
    model: Model,
    calls: u64,
    ids: u64,
    /// The invocation whose event an extension owes or holds.
    told: u64,
    fate: BTreeMap<u64, &'static str>,
    waiting: BTreeSet<CallId>,
}

impl Run {
    fn new(announced: usize) -> Self {
        let mut run = Self {
            machine: Machine::new(false),
            model: Model::new(announced),
            calls: 0,
            ids: 0,
            told: 0,
            fate: BTreeMap::new(),
            waiting: BTreeSet::new(),
        };
        run.announce();
        run
    }

    fn announce(&mut self) {
        let names = (0..self.model.announced).map(|n| format!("e{n}")).collect();
        self.machine.step(Input::ExpectExtensions(names)).unwrap();
    }

    fn call(&mut self) -> CallId {
        self.calls += 1;
        CallId(self.calls)
    }

    fn uuid(n: usize) -> Uuid {
        Uuid::from_u128(n as u128 + 1)
    }

    /// Steps the machine and compares with the model's word: the effects, or a refusal.
    fn step(&mut self, input: Input, expected: Option<Vec<Effect>>) {
        let shown = format!("{input:?} in {:?}", self.model);
        let before = format!("{:?}", self.machine);
        match (self.machine.step(input), expected) {
            (Ok(actions), Some(mut expected)) => {
                let mut effects: Vec<Effect> = actions.iter().map(|action| self.book(action)).collect();
                effects.sort();
                expected.sort();
                assert_eq!(effects, expected, "{shown}");
            }
            (Err(_), None) => assert_eq!(format!("{:?}", self.machine), before, "a refusal changed something: {shown}"),
            (Ok(actions), None) => panic!("allowed, with {actions:?}: {shown}"),
            (Err(refusal), Some(_)) => panic!("refused ({refusal}): {shown}"),
        }
        assert_eq!(self.machine.is_busy(), self.model.busy(), "after {shown}");
    }

    fn book(&mut self, action: &Action) -> Effect {
        match action {
            Action::Deliver { call, invocation } => {
                assert!(self.waiting.remove(call), "{call:?} does not wait");
                let id = invocation.request_id.parse().unwrap();
                assert!(matches!(self.fate[&id], "kept" | "given"), "{id} was {} before", self.fate[&id]);
                self.fate.insert(id, "given");
                Effect::Gives(*call, id)
            }
            Action::DeliverEvent { call, event } => {
                assert!(self.waiting.remove(call), "{call:?} does not wait");
                let ExtensionEvent::Invoke(invocation) = &**event else { panic!("nobody shut it down") };
                Effect::Tells(*call, invocation.request_id.parse().unwrap())
            }
            Action::HangUp { call } => {
                assert!(self.waiting.remove(call), "{call:?} does not wait");
                Effect::HangsUp(*call)
            }
            Action::Complete { .. } => Effect::Answered,
            Action::DropOutcome { .. } => Effect::Dropped,
            Action::Emit(Event::InitDone) => Effect::InitDone,
            Action::Emit(Event::Idle) => Effect::Idle,
            Action::Emit(Event::ExtensionsRegistered) => Effect::Registered,
            Action::Emit(Event::InitError { .. }) => Effect::InitError,
            Action::Emit(event) => panic!("{event:?} cannot happen here"),
            Action::Release { .. } => panic!("not a snapshot environment"),
        }
    }

    fn end(&mut self, id: u64, fate: &'static str) {
        let before = self.fate.insert(id, fate);
        assert!(matches!(before, Some("kept" | "given")), "{id} became {fate} after {before:?}");
    }

    fn apply(&mut self, op: Op) {
        match op {
            Op::Next => self.next(),
            Op::Begin { error, stale } => self.begin(error, stale),
            Op::End { wrong } => self.finish(wrong),
            Op::Lose(choice) => self.lose(choice),
            Op::InitError => {
                let started = self.model.at == At::Started;
                if started {
                    self.model.at = At::Failed;
                }
                let input = Input::InitError { error_type: String::new(), body: Bytes::new() };
                self.step(input, started.then(|| vec![Effect::InitError]));
            }
            Op::Invoke => self.invoke(),
            Op::Abandon => self.abandon(),
            Op::Reset => self.reset(),
            Op::Register(n) if n < self.model.announced => self.register(n),
            Op::EventNext(n) if n < self.model.announced => self.event_next(n),
            Op::Register(_) | Op::EventNext(_) => {}
        }
    }

    fn next(&mut self) {
        let call = self.call();
        let mut effects = Vec::new();
        let allowed = match self.model.at {
            At::Started | At::Waiting | At::Done(_) => {
                self.model.at = At::Waiting;
                self.model.queue.push(call);
                self.model.settle(&mut effects);
                true
            }
            At::Has(id) => {
                self.model.holder = None;
                effects.push(Effect::Gives(call, id));
                true
            }
            At::Failed | At::Answering(..) => false,
        };
        if allowed {
            self.waiting.insert(call);
        }
        self.note_told(&effects);
        self.step(Input::Next { call }, allowed.then_some(effects));
    }

    fn begin(&mut self, error: bool, stale: bool) {
        let call = self.call();
        let id = if stale { self.ids + 1 } else { self.model.current().unwrap_or(self.ids) };
        let allowed = self.model.at == At::Has(id);
        if allowed {
            self.model.at = At::Answering(id, call);
        }
        let request_id = id.to_string();
        let input =
            if error { Input::ErrorBegins { call, request_id } } else { Input::ResponseBegins { call, request_id } };
        self.step(input, allowed.then(Vec::new));
    }

    fn finish(&mut self, wrong: bool) {
        let (call, allowed) = match self.model.at {
            At::Answering(id, call) if !wrong => {
                self.model.at = At::Done(Some(id));
                self.end(id, "answered");
                (call, true)
            }
            _ => (CallId(u64::MAX), false),
        };
        let outcome = Outcome::Truncated;
        self.step(Input::AnswerEnds { call, outcome }, allowed.then(|| vec![Effect::Answered]));
    }

    fn lose(&mut self, choice: usize) {
        let mut effects = Vec::new();
        let call = match choice {
            0 if !self.model.queue.is_empty() => self.model.queue.remove(0),
            1 if self.model.holder.is_some() && matches!(self.model.at, At::Has(_)) => {
                let lost = self.model.holder.take().unwrap();
                if let (At::Has(id), false) = (self.model.at, self.model.queue.is_empty()) {
                    let call = self.model.queue.remove(0);
                    self.model.holder = Some(call);
                    effects.push(Effect::Gives(call, id));
                }
                lost
            }
            2 => match self.model.at {
                At::Answering(id, call) => {
                    self.model.at = At::Done(Some(id));
                    self.end(id, "answered");
                    effects.push(Effect::Answered);
                    call
                }
                _ => return,
            },
            3 => {
                let found = (0..self.model.announced).find_map(|n| match self.model.extensions[n] {
                    Ext::Waiting(Some(call)) => Some((n, call, false)),
                    Ext::Has(call) => Some((n, call, true)),
                    Ext::Unknown | Ext::Registered | Ext::Waiting(None) => None,
                });
                let Some((n, call, owed)) = found else { return };
                self.model.extensions[n] = Ext::Waiting(None);
                self.model.owed[n] = owed;
                call
            }
            _ => return,
        };
        self.waiting.remove(&call);
        self.step(Input::CallLost { call }, Some(effects));
    }

    fn invoke(&mut self) {
        self.ids += 1;
        let id = self.ids;
        let allowed = !self.model.busy();
        let mut effects = Vec::new();
        if allowed {
            self.fate.insert(id, "kept");
            self.model.kept = Some(id);
            self.model.settle(&mut effects);
        }
        self.note_told(&effects);
        let invocation = Invocation { request_id: id.to_string(), ..Invocation::default() };
        self.step(Input::Invoke(Arc::new(invocation)), allowed.then_some(effects));
    }

    fn abandon(&mut self) {
        let mut effects = Vec::new();
        let mut request_id = "nobody's".to_owned();
        if let Some(id) = self.model.kept.take() {
            self.end(id, "dropped");
            request_id = id.to_string();
            effects.push(Effect::Dropped);
        } else if let At::Has(id) | At::Answering(id, _) = self.model.at {
            self.model.at = At::Done(None);
            self.end(id, "dropped");
            request_id = id.to_string();
            effects.push(Effect::Dropped);
        }
        self.step(Input::Abandon { request_id }, Some(effects));
    }

    fn reset(&mut self) {
        let mut effects: Vec<Effect> = self.model.queue.iter().map(|call| Effect::HangsUp(*call)).collect();
        for extension in self.model.extensions {
            if let Ext::Waiting(Some(call)) = extension {
                effects.push(Effect::HangsUp(call));
            }
        }
        if let At::Has(id) | At::Answering(id, _) = self.model.at {
            self.end(id, "dropped");
            effects.push(Effect::Dropped);
        }
        self.model = Model { kept: self.model.kept, ..Model::new(self.model.announced) };
        self.step(Input::Reset, Some(effects));
        self.announce();
    }

    fn register(&mut self, n: usize) {
        let allowed = self.model.extensions[n] == Ext::Unknown;
        let mut effects = Vec::new();
        if allowed {
            self.model.extensions[n] = Ext::Registered;
            if self.model.extensions[..self.model.announced].iter().all(|extension| *extension != Ext::Unknown) {
                effects.push(Effect::Registered);
            }
        }
        let input = Input::Register { name: format!("e{n}"), id: Self::uuid(n), events: vec!["INVOKE".to_owned()] };
        self.step(input, allowed.then_some(effects));
    }

    fn event_next(&mut self, n: usize) {
        let call = self.call();
        let mut effects = Vec::new();
        let allowed = !matches!(self.model.extensions[n], Ext::Unknown | Ext::Waiting(Some(_)));
        if allowed {
            self.waiting.insert(call);
            if std::mem::take(&mut self.model.owed[n]) {
                self.model.extensions[n] = Ext::Has(call);
                effects.push(Effect::Tells(call, self.told));
            } else {
                self.model.extensions[n] = Ext::Waiting(Some(call));
            }
            self.model.settle(&mut effects);
        }
        self.note_told(&effects);
        self.step(Input::EventNext { call, id: Self::uuid(n) }, allowed.then_some(effects));
    }

    /// Remembers which invocation the extensions are being told of.
    fn note_told(&mut self, effects: &[Effect]) {
        for effect in effects {
            if let Effect::Gives(_, id) = effect {
                self.told = *id;
            }
        }
    }

    /// A new runtime that behaves: it must get every invocation that is still owed, and answer it.
    fn drain(&mut self) {
        self.reset();
        for n in 0..self.model.announced {
            self.register(n);
            self.event_next(n);
        }
        self.next();
        if matches!(self.model.at, At::Has(_)) {
            self.begin(false, false);
            self.finish(false);
        }
        for (id, fate) in &self.fate {
            assert!(matches!(*fate, "answered" | "dropped"), "invocation {id} is {fate} at the end");
        }
    }
}

/// The same cases in every run, unless `PROPTEST_RNG_SEED` or `PROPTEST_CASES` ask for others.
fn config() -> ProptestConfig {
    let mut config = ProptestConfig { failure_persistence: None, ..ProptestConfig::default() };
    if matches!(config.rng_seed, RngSeed::Random) {
        config.rng_seed = RngSeed::Fixed(20_180_601);
    }
    config
}

proptest! {
    #![proptest_config(config())]

    #[test]
    fn the_machine_does_what_the_model_says(announced in 0..3usize, ops in ops()) {
        let mut run = Run::new(announced);
        for op in ops {
            run.apply(op);
        }
        run.drain();
    }
}
