//! One version with its real environments: carries out what the core decides.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Instant;

use tokio::sync::oneshot;
use tokio::task::AbortHandle;
use worker::{Environment, EnvironmentSpec, InitType, InvokeRequest, Notice, Reply, StartError};

use crate::ProvisionedStatus;
use crate::core::{
    self, Action, EnvironmentId, Event, Function, Initialized, Purpose, RequestId, Size, Throttle, Told,
    VersionFigures, VersionId,
};
use crate::manager::Shared;

/// A function version and its environments.
pub(crate) struct Version {
    spec: Arc<EnvironmentSpec>,
    id: VersionId,
    state: Mutex<State>,
}

struct State {
    core: core::Version,
    environments: HashMap<EnvironmentId, Environment>,
    /// The request that the step under way is about.
    arriving: Option<(RequestId, Request)>,
    waiting: HashMap<RequestId, Request>,
    /// Initializations that wait for a place; they are all the same.
    initializations: VecDeque<oneshot::Sender<EnvironmentId>>,
    /// Why an environment that has just ended did so, for the request that had been waiting for it.
    last_error: Option<StartError>,
    next_request: u64,
    /// The wake-up that is on its way.
    alarm: Option<AbortHandle>,
    /// Kept from one step to the next, so that the warm path does not allocate.
    actions: Vec<Action>,
    /// For other versions, or for this one, when the lock is free.
    tells: Vec<(VersionId, Told)>,
}

struct Request {
    request: InvokeRequest,
    reply: Reply,
    refusal: Refusal,
}

/// Where a throttled request finds out why, before its reply is dropped.
#[derive(Default)]
pub(crate) struct Refusal(Arc<OnceLock<Throttle>>);

impl Refusal {
    /// Why there is no reply, if it is a limit.
    pub(crate) fn get(&self) -> Option<Throttle> {
        self.0.get().copied()
    }
}

/// A place on the host for something that is not an environment of the pool; dropping it gives it back.
pub(crate) struct Place {
    version: Arc<Version>,
    shared: Arc<Shared>,
    given: oneshot::Receiver<EnvironmentId>,
    id: Option<EnvironmentId>,
}

impl Drop for Place {
    fn drop(&mut self) {
        // It may have been given and not been looked at.
        self.given.close();
        if let Some(id) = self.id.or_else(|| self.given.try_recv().ok()) {
            self.version.step(&self.shared, Event::Gone(id));
        }
    }
}

/// What an event has to say to versions, once no lock is held.
pub(crate) type Tells = Vec<(VersionId, Told)>;

impl Version {
    pub(crate) fn new(shared: &Shared, spec: Arc<EnvironmentSpec>, function: &Arc<Function>) -> Arc<Self> {
        let (size, slots) = (Size::of_memory(spec.memory_mb), shared.worker.concurrency(&spec));
        let core = core::Version::new(&shared.core, function, size, slots, Instant::now());
        let id = core.id();
        let state = State {
            core,
            environments: HashMap::new(),
            arriving: None,
            waiting: HashMap::new(),
            initializations: VecDeque::new(),
            last_error: None,
            next_request: 0,
            alarm: None,
            actions: Vec::new(),
            tells: Vec::new(),
        };
        Arc::new(Self { spec, id, state: Mutex::new(state) })
    }

    pub(crate) fn id(&self) -> VersionId {
        self.id
    }

    pub(crate) fn spec(&self) -> &EnvironmentSpec {
        &self.spec
    }

    /// Finds an environment for a request; the answer goes to `reply`, which is dropped where a limit is in the way.
    pub(crate) fn request(self: &Arc<Self>, shared: &Arc<Shared>, request: InvokeRequest, reply: Reply) -> Refusal {
        let mut state = self.lock();
        let id = RequestId(state.next_request);
        state.next_request += 1;
        let refusal = Refusal::default();
        let told = Refusal(Arc::clone(&refusal.0));
        state.arriving = Some((id, Request { request, reply, refusal: told }));
        self.step_locked(shared, &mut state, Event::Request(id));
        if let Some((id, request)) = state.arriving.take() {
            state.waiting.insert(id, request);
        }
        let tells = std::mem::take(&mut state.tells);
        drop(state);
        shared.deliver(tells);
        refusal
    }

    /// Feeds an event to the core, carries out what it decides, and tells others.
    pub(crate) fn step(self: &Arc<Self>, shared: &Arc<Shared>, event: Event) {
        let tells = self.step_alone(shared, event);
        shared.deliver(tells);
    }

    /// As [`Version::step`]; others are told by the caller.
    pub(crate) fn step_alone(self: &Arc<Self>, shared: &Arc<Shared>, event: Event) -> Tells {
        let mut state = self.lock();
        self.step_locked(shared, &mut state, event);
        std::mem::take(&mut state.tells)
    }

    /// Waits for a place in which the version can be initialized; none where there will be none.
    pub(crate) async fn place(self: &Arc<Self>, shared: &Arc<Shared>) -> Option<Place> {
        let (give, given) = oneshot::channel();
        let mut place = Place { version: Arc::clone(self), shared: Arc::clone(shared), given, id: None };
        let tells = {
            let mut state = self.lock();
            state.initializations.push_back(give);
            self.step_locked(shared, &mut state, Event::Initialize);
            std::mem::take(&mut state.tells)
        };
        shared.deliver(tells);
        place.id = (&mut place.given).await.ok();
        place.id.is_some().then_some(place)
    }

    pub(crate) fn provisioned(&self) -> ProvisionedStatus {
        self.lock().core.provisioned()
    }

    pub(crate) fn figures(&self) -> VersionFigures {
        self.lock().core.figures()
    }

    /// Ends every environment, busy ones included, and serves nothing more.
    pub(crate) fn end(self: &Arc<Self>, shared: &Arc<Shared>) {
        {
            let mut state = self.lock();
            state.last_error = None;
            state.initializations.clear();
        }
        self.step(shared, Event::End);
    }

    /// Whether nothing is lost if this version is forgotten.
    pub(crate) fn is_forgettable(&self, now: Instant) -> bool {
        self.lock().core.is_forgettable(now)
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn step_locked(self: &Arc<Self>, shared: &Arc<Shared>, state: &mut State, event: Event) {
        let mut actions = std::mem::take(&mut state.actions);
        let fell_short = state.core.falls_short();
        state.core.step(&shared.core, event, Instant::now(), &mut actions);
        if !fell_short && state.core.falls_short() {
            shared.fell_short.notify_one();
        }
        for action in actions.drain(..) {
            self.act(shared, state, action);
        }
        state.actions = actions;
    }

    fn act(self: &Arc<Self>, shared: &Arc<Shared>, state: &mut State, action: Action) {
        match action {
            Action::Dispatch(id, environment) => {
                let Some(Request { request, reply, .. }) = state.take(id) else { return };
                // Where the environment has just ended, the reply is dropped, which the caller sees.
                if let Some(environment) = state.environments.get(&environment) {
                    environment.invoke(request, reply);
                }
            }
            Action::Start(id, purpose, _) => {
                let initialization_type = match purpose {
                    Purpose::OnDemand | Purpose::Prewarm => InitType::OnDemand,
                    Purpose::Provisioned => InitType::Provisioned,
                    Purpose::Snapshot => return self.give(shared, state, id),
                };
                // The environment's task keeps version and manager alive until it has told of its end.
                let (version, manager) = (Arc::clone(self), Arc::clone(shared));
                let observer = move |notice| version.observe(&manager, id, notice);
                let environment = shared.worker.start(Arc::clone(&self.spec), initialization_type, observer);
                state.environments.insert(id, environment);
            }
            Action::Decline => drop(state.initializations.pop_back()),
            // It goes from the table when it says that it has ended.
            Action::Retire(id) => {
                if let Some(environment) = state.environments.get(&id) {
                    environment.retire();
                }
            }
            Action::Throttle(id, throttle) => {
                if let Some(request) = state.take(id) {
                    let _ = request.refusal.0.set(throttle);
                }
            }
            Action::Fail(id) => {
                let error = state.last_error.clone();
                let error = error.unwrap_or_else(|| StartError::Broken("the environment ended early".to_owned()));
                if let Some(request) = state.take(id) {
                    let _ = request.reply.send(Err(error));
                }
            }
            Action::Tell(version, told) => state.tells.push((version, told)),
            Action::WakeAt(at) => {
                let (version, shared) = (Arc::downgrade(self), Arc::downgrade(shared));
                let alarm = tokio::spawn(async move {
                    tokio::time::sleep_until(at.into()).await;
                    if let (Some(version), Some(shared)) = (version.upgrade(), shared.upgrade()) {
                        version.step(&shared, Event::Tick);
                    }
                });
                if let Some(later) = state.alarm.replace(alarm.abort_handle()) {
                    later.abort();
                }
            }
        }
    }

    /// Gives the place of an environment to who waits for one.
    fn give(self: &Arc<Self>, shared: &Arc<Shared>, state: &mut State, id: EnvironmentId) {
        let taker = state.initializations.pop_front();
        if taker.is_none_or(|taker| taker.send(id).is_err()) {
            // Who waited has gone. The core hears of it when this step is over.
            let (version, shared) = (Arc::clone(self), Arc::clone(shared));
            tokio::spawn(async move { version.step(&shared, Event::Gone(id)) });
        }
    }

    /// What an environment tells of itself.
    fn observe(self: &Arc<Self>, shared: &Arc<Shared>, id: EnvironmentId, notice: Notice) {
        let mut state = self.lock();
        let event = match notice {
            Notice::Ready { initialized: true } => Event::Ready(id, Initialized::Yes),
            Notice::Ready { initialized: false } => Event::Ready(id, Initialized::Failed),
            Notice::Settling => Event::Settling(id),
            Notice::Idle => Event::Idle(id),
            Notice::Gone { error } => {
                state.environments.remove(&id);
                let refused = matches!(error, Some(StartError::NoRoom(_)));
                state.last_error = error;
                if refused { Event::Refused(id) } else { Event::Gone(id) }
            }
        };
        self.step_locked(shared, &mut state, event);
        let tells = std::mem::take(&mut state.tells);
        drop(state);
        shared.deliver(tells);
    }
}

impl State {
    fn take(&mut self, id: RequestId) -> Option<Request> {
        match self.arriving.take() {
            Some((arriving, request)) if arriving == id => Some(request),
            other => {
                self.arriving = other;
                self.waiting.remove(&id)
            }
        }
    }
}

impl Drop for Version {
    fn drop(&mut self) {
        let state = self.state.get_mut().unwrap_or_else(PoisonError::into_inner);
        if let Some(alarm) = &state.alarm {
            alarm.abort();
        }
    }
}
