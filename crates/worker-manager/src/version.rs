//! One version's pool with its real environments: carries out what the pure core decides.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use worker::{Environment, EnvironmentSpec, InitType, InvokeRequest, Notice, Reply, StartError};

use crate::concurrency::{Gate, Ticket};
use crate::manager::Shared;
use crate::pool::{Action, EnvironmentId, Event, Initialized, Pool, Purpose, RequestId, Rules};
use crate::{ProvisionedStatus, ThrottleReason};

/// A function version and its environments.
pub(crate) struct Version {
    spec: Arc<EnvironmentSpec>,
    /// The function's, over all its versions.
    gate: Arc<Gate>,
    state: Mutex<State>,
}

struct State {
    pool: Pool,
    environments: HashMap<EnvironmentId, Slot>,
    waiting: HashMap<RequestId, (InvokeRequest, Reply, Ticket)>,
    /// Why an environment that has just ended did so, for the request that had been waiting for it.
    last_error: Option<StartError>,
    next_request: u64,
    /// The earliest wake-up that is on its way.
    wake_at: Option<Instant>,
    /// Kept from one step to the next, so that the warm path does not allocate.
    actions: Vec<Action>,
}

struct Slot {
    /// None while the host makes room for it.
    environment: Option<Environment>,
    /// Of the invocation that it serves.
    serving: Option<Ticket>,
}

impl Version {
    pub(crate) fn new(spec: Arc<EnvironmentSpec>, rules: Rules, gate: Arc<Gate>) -> Arc<Self> {
        let state = State {
            pool: Pool::new(rules),
            environments: HashMap::new(),
            waiting: HashMap::new(),
            last_error: None,
            next_request: 0,
            wake_at: None,
            actions: Vec::new(),
        };
        Arc::new(Self { spec, gate, state: Mutex::new(state) })
    }

    /// Lets an invocation in, if concurrency is left.
    pub(crate) fn enter(&self) -> Result<Ticket, ThrottleReason> {
        self.gate.enter()
    }

    /// Finds an environment for a request that was let in; the answer goes to `reply`.
    pub(crate) fn request(
        self: &Arc<Self>,
        shared: &Arc<Shared>,
        request: InvokeRequest,
        reply: Reply,
        ticket: Ticket,
    ) {
        let mut state = self.lock();
        let id = RequestId(state.next_request);
        state.next_request += 1;
        state.waiting.insert(id, (request, reply, ticket));
        self.step_locked(shared, &mut state, Event::Request(id));
    }

    /// Feeds an event to the pool and carries out what it decides.
    pub(crate) fn step(self: &Arc<Self>, shared: &Arc<Shared>, event: Event) {
        let mut state = self.lock();
        self.step_locked(shared, &mut state, event);
    }

    pub(crate) fn provisioned(&self) -> ProvisionedStatus {
        self.lock().pool.provisioned()
    }

    pub(crate) fn oldest_idle(&self) -> Option<Instant> {
        self.lock().pool.oldest_idle()
    }

    /// Ends the on-demand environment that has been idle longest. False where none is idle any more.
    pub(crate) fn give_up_one(self: &Arc<Self>, shared: &Arc<Shared>) -> bool {
        let mut state = self.lock();
        let some = state.pool.oldest_idle().is_some();
        if some {
            self.step_locked(shared, &mut state, Event::GiveUpOne);
        }
        some
    }

    /// Ends every environment, busy ones included, and serves nothing more.
    pub(crate) fn end(self: &Arc<Self>, shared: &Arc<Shared>) {
        let mut state = self.lock();
        state.last_error = None;
        self.step_locked(shared, &mut state, Event::End);
    }

    /// Whether nothing is lost if this version is forgotten.
    pub(crate) fn is_empty(&self) -> bool {
        let state = self.lock();
        state.pool.is_empty() && state.environments.is_empty()
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn step_locked(self: &Arc<Self>, shared: &Arc<Shared>, state: &mut State, event: Event) {
        let mut actions = std::mem::take(&mut state.actions);
        state.pool.step(event, Instant::now(), &mut actions);
        for action in actions.drain(..) {
            self.act(shared, state, action);
        }
        state.actions = actions;
    }

    fn act(self: &Arc<Self>, shared: &Arc<Shared>, state: &mut State, action: Action) {
        match action {
            Action::Dispatch(request, id) => {
                let Some((request, reply, ticket)) = state.waiting.remove(&request) else { return };
                let Some(slot) = state.environments.get_mut(&id) else { return };
                if let Some(environment) = &slot.environment {
                    slot.serving = Some(ticket);
                    environment.invoke(request, reply);
                }
            }
            Action::Start(id, purpose) => {
                if shared.take_place() {
                    self.start(shared, state, id, purpose);
                } else {
                    state.environments.insert(id, Slot { environment: None, serving: None });
                    self.make_room(shared, id, purpose);
                }
            }
            Action::Retire(id) => match state.environments.get(&id).map(|slot| &slot.environment) {
                // The slot goes when the environment says that it has ended.
                Some(Some(environment)) => environment.retire(),
                // The host was still making room for it.
                Some(None) => {
                    state.environments.remove(&id);
                }
                None => {}
            },
            Action::Fail(request) => {
                let error = state.last_error.clone();
                let error = error.unwrap_or_else(|| StartError::Broken("the environment ended early".to_owned()));
                if let Some((_, reply, ticket)) = state.waiting.remove(&request) {
                    // Before its caller knows: who asks again at once must not find it still counted.
                    drop(ticket);
                    let _ = reply.send(Err(error));
                }
            }
            Action::WakeAt(at) => self.wake_at(shared, state, at),
        }
    }

    fn start(self: &Arc<Self>, shared: &Arc<Shared>, state: &mut State, id: EnvironmentId, purpose: Purpose) {
        let initialization_type = match purpose {
            Purpose::OnDemand => InitType::OnDemand,
            Purpose::Provisioned => InitType::Provisioned,
        };
        // The environment's task keeps version and manager alive until it has told of its end.
        let (version, manager) = (Arc::clone(self), Arc::clone(shared));
        let observer = move |notice| version.observe(&manager, id, notice);
        let environment = shared.worker.start(Arc::clone(&self.spec), initialization_type, observer);
        state.environments.insert(id, Slot { environment: Some(environment), serving: None });
    }

    /// The host is full: another environment has to go first. Not under this version's lock, since it may be of any
    /// version. Where none is idle, one that is about to be is waited for, once.
    fn make_room(self: &Arc<Self>, shared: &Arc<Shared>, id: EnvironmentId, purpose: Purpose) {
        let (version, shared) = (Arc::clone(self), Arc::clone(shared));
        tokio::spawn(async move {
            let mut given_up = shared.give_up_one();
            if !given_up {
                tokio::time::sleep(shared.options.patience).await;
                given_up = version.needs(id, purpose) && shared.give_up_one();
            }
            let mut state = version.lock();
            if !state.pool.has(id) {
                return;
            }
            // The place is given back when the environment that was given up has ended; it is taken over now, so that
            // for the length of a teardown the host holds one more than it should.
            if given_up {
                shared.take_place_of_leaver();
                version.start(&shared, &mut state, id, purpose);
            } else {
                state.environments.remove(&id);
                state.last_error = Some(StartError::NoRoom("every environment of this host is busy".to_owned()));
                version.step_locked(&shared, &mut state, Event::StartRefused(id));
            }
        });
    }

    /// Whether an environment that is not there yet is still of use.
    fn needs(&self, id: EnvironmentId, purpose: Purpose) -> bool {
        let state = self.lock();
        state.pool.has(id) && (purpose == Purpose::Provisioned || !state.waiting.is_empty())
    }

    fn wake_at(self: &Arc<Self>, shared: &Arc<Shared>, state: &mut State, at: Instant) {
        if state.wake_at.is_some_and(|coming| coming <= at) {
            return;
        }
        state.wake_at = Some(at);
        let (version, shared) = (Arc::clone(self), Arc::clone(shared));
        tokio::spawn(async move {
            tokio::time::sleep_until(at.into()).await;
            let mut state = version.lock();
            state.wake_at = None;
            version.step_locked(&shared, &mut state, Event::Tick);
        });
    }

    /// What an environment tells of itself.
    fn observe(self: &Arc<Self>, shared: &Arc<Shared>, id: EnvironmentId, notice: Notice) {
        let mut state = self.lock();
        let event = match notice {
            Notice::Ready { initialized: true } => Event::Ready(id, Initialized::Yes),
            Notice::Ready { initialized: false } => Event::Ready(id, Initialized::Failed),
            Notice::Settling => {
                // The answer is on its way: the caller's next invocation must not find this one still counted.
                state.served(id);
                Event::Settling(id)
            }
            Notice::Idle => {
                state.served(id);
                Event::Idle(id)
            }
            Notice::Gone { error } => {
                state.served(id);
                state.environments.remove(&id);
                state.last_error = error;
                shared.give_place_back();
                Event::Gone(id)
            }
        };
        self.step_locked(shared, &mut state, event);
    }
}

impl State {
    /// The invocation that this environment was serving, if any, is over.
    fn served(&mut self, id: EnvironmentId) {
        if let Some(slot) = self.environments.get_mut(&id) {
            slot.serving = None;
        }
    }
}
