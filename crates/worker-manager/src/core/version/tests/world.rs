//! Many versions on few workers under whatever events, against what must always hold.
//!
//! The world stands for the driver and for everything that it drives: environments that come up, answer, break and end
//! whenever they like, and words between versions that are late. What it checks is counted here and not asked of the
//! core: nobody oversubscribes, no request is lost or served twice, and nothing is left in the end.

use std::collections::HashSet;

use proptest::prelude::*;
use proptest::sample::Index;

use super::*;
use crate::core::concurrency::Concurrency;

const VERSIONS: usize = 5;
const LIMIT: u32 = 12;
const SCALING: u32 = 8;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    Starting,
    /// With so many invocations that are not answered, and so many that are.
    Up(u32, u32),
    /// Initializes for a snapshot.
    Making,
    Leaving,
}

struct World {
    shared: Shared,
    limits: Vec<WorkerLimits>,
    /// The fourth and the fifth are versions of one function.
    functions: Vec<Arc<Function>>,
    versions: Vec<Version>,
    slots: u32,
    begin: Instant,
    now: Instant,
    /// By version; in which phase, on which worker, for which requests.
    environments: BTreeMap<(usize, EnvironmentId), (Phase, usize, Vec<RequestId>)>,
    /// Those that may not be given up.
    provisioned: HashSet<(usize, EnvironmentId)>,
    tells: VecDeque<(usize, Told)>,
    next_request: u64,
    waiting: HashSet<(usize, RequestId)>,
    started: Vec<u32>,
    /// No more environments of a version than this.
    most: [Option<u32>; VERSIONS],
    retired: [bool; VERSIONS],
    /// When versions are to be woken; they are at no other time.
    alarms: [Option<Instant>; VERSIONS],
    /// Versions that have been told to end.
    ended: bool,
}

fn size(version: usize) -> Size {
    Size::of_memory([128, 256, 512, 128, 1_024][version])
}

fn function(version: usize) -> usize {
    version.min(3)
}

impl World {
    fn new(keep_alive: KeepAlive, overlap: u32, slots: u32) -> Self {
        let limits = vec![
            WorkerLimits { memory_mb: 1_200, overlap, ..WorkerLimits::of_environments(4) },
            WorkerLimits { memory_mb: 600, overlap, ..WorkerLimits::of_environments(3) },
        ];
        let begin = Instant::now();
        let rules = Rules {
            account_concurrency: LIMIT,
            scaling_environments: SCALING,
            requests_per_unit: 20,
            room_patience: Duration::from_millis(300),
            keep_alive,
            ..Rules::default()
        };
        let shared = Shared::new(rules, &limits, begin);
        let functions: Vec<Arc<Function>> = (0..=function(VERSIONS - 1)).map(|_| shared.function()).collect();
        let versions = (0..VERSIONS)
            .map(|version| Version::new(&shared, &functions[function(version)], size(version), slots, begin))
            .collect();
        let started = vec![0; functions.len()];
        Self {
            shared,
            limits,
            functions,
            versions,
            slots,
            begin,
            now: begin,
            environments: BTreeMap::new(),
            provisioned: HashSet::new(),
            tells: VecDeque::new(),
            next_request: 0,
            waiting: HashSet::new(),
            started,
            most: [None; VERSIONS],
            retired: [false; VERSIONS],
            alarms: [None; VERSIONS],
            ended: false,
        }
    }

    fn step(&mut self, version: usize, event: Event) -> Result<(), TestCaseError> {
        let mut actions = Vec::new();
        self.versions[version].step(&self.shared, event, self.now, &mut actions);
        for action in actions {
            match action {
                Action::Dispatch(request, id) => {
                    prop_assert!(self.waiting.remove(&(version, request)), "{request:?} was answered before");
                    let slots = self.slots;
                    match self.environments.get_mut(&(version, id)) {
                        Some((Phase::Up(busy, settling), _, requests)) => {
                            *busy += 1;
                            requests.push(request);
                            prop_assert!(*busy + *settling <= slots, "{id:?} had no slot");
                        }
                        other => prop_assert!(false, "{id:?} cannot serve: {other:?}"),
                    }
                }
                Action::Start(id, purpose, worker) => {
                    let serves = |phase| phase != Phase::Leaving && phase != Phase::Making;
                    let there = self.count(version, serves);
                    prop_assert!(
                        purpose == Purpose::Snapshot || self.most[version].is_none_or(|most| there < most),
                        "one more than {there} is started"
                    );
                    let phase = if purpose == Purpose::Snapshot { Phase::Making } else { Phase::Starting };
                    let environment = (phase, worker.0, Vec::new());
                    prop_assert!(self.environments.insert((version, id), environment).is_none());
                    prop_assert!(!self.ended);
                    self.started[function(version)] +=
                        u32::from(matches!(purpose, Purpose::OnDemand | Purpose::Prewarm));
                    if purpose == Purpose::Provisioned {
                        self.provisioned.insert((version, id));
                    }
                }
                Action::Retire(id) => match self.environments.get_mut(&(version, id)) {
                    Some((phase @ (Phase::Starting | Phase::Up(0, 0)), _, _)) => *phase = Phase::Leaving,
                    Some((phase @ (Phase::Up(_, _) | Phase::Making), _, _)) if self.ended => *phase = Phase::Leaving,
                    other => prop_assert!(false, "{id:?} was retired: {other:?}"),
                },
                Action::Decline => prop_assert!(false, "a worker is large enough"),
                Action::Throttle(request, throttle) => {
                    prop_assert!(self.waiting.remove(&(version, request)), "{request:?} was answered before");
                    prop_assert!(throttle.retry_after > Duration::ZERO, "{throttle:?}");
                    if throttle.reason == ThrottleReason::MostEnvironments {
                        let now = self.versions[version].figures();
                        let there = now.wanted + now.starting + now.busy + now.settling + now.idle;
                        prop_assert!(self.most[version].is_some_and(|most| there >= most), "{there} are not enough");
                    }
                }
                Action::Fail(request) => {
                    prop_assert!(self.waiting.remove(&(version, request)), "{request:?} was answered before");
                }
                Action::Tell(to, told) => {
                    let to = self.versions.iter().position(|version| version.id() == to);
                    self.tells.push_back((to.expect("a version"), told));
                }
                Action::WakeAt(at) => {
                    prop_assert!(self.alarms[version].is_none_or(|alarm| at < alarm), "later than asked before");
                    self.alarms[version] = Some(at);
                }
            }
        }
        self.check()
    }

    /// What holds at every moment.
    fn check(&self) -> Result<(), TestCaseError> {
        for (worker, limits) in self.limits.iter().enumerate() {
            let here = || self.environments.iter().filter(|(_, (_, on, _))| *on == worker);
            let leaving = here().filter(|(_, (phase, _, _))| *phase == Phase::Leaving).count() as u32;
            let overlap = leaving.min(limits.overlap);
            prop_assert!(here().count() as u32 <= limits.environments + overlap, "worker {worker} holds too many");
            let memory = |leaving: bool| -> u64 {
                let of = here().filter(|(_, (phase, _, _))| (*phase == Phase::Leaving) == leaving);
                of.map(|((version, _), _)| u64::from(size(*version).memory_mb)).sum()
            };
            let counted = memory(false) + if limits.overlap == 0 { memory(true) } else { 0 };
            prop_assert!(counted <= limits.memory_mb, "worker {worker} promises {counted} MiB");
        }
        for (version, most) in self.most.iter().enumerate() {
            let idle = self.count(version, |phase| phase == Phase::Up(0, 0));
            prop_assert!(most.is_none_or(|most| idle <= most), "{idle} are idle where {most:?} may be there");
        }
        let alive = self.environments.len() as u32;
        prop_assert!(self.shared.figures().fleet.environments >= alive);
        let served = |(phase, _, _): &(Phase, usize, Vec<RequestId>)| match phase {
            Phase::Up(busy, _) => *busy,
            Phase::Starting | Phase::Making | Phase::Leaving => 0,
        };
        let served: u32 = self.environments.values().map(served).sum();
        prop_assert_eq!(self.shared.in_flight(), served + self.waiting.len() as u32);
        prop_assert!(self.shared.in_flight() <= LIMIT);
        let elapsed = self.now.duration_since(self.begin).as_secs_f64();
        let allowed = f64::from(SCALING) * (1.0 + elapsed / 10.0);
        for started in &self.started {
            prop_assert!(f64::from(*started) <= allowed + 1e-6, "{started} were started where {allowed} may be");
        }
        Ok(())
    }

    /// How many environments of a version are in such a phase.
    fn count(&self, version: usize, is: impl Fn(Phase) -> bool) -> u32 {
        let those = self.environments.iter().filter(|((of, _), (phase, _, _))| *of == version && is(*phase));
        those.count() as u32
    }

    fn request(&mut self, version: usize) -> Result<(), TestCaseError> {
        let request = RequestId(self.next_request);
        self.next_request += 1;
        self.waiting.insert((version, request));
        self.step(version, Event::Request(request))
    }

    /// Whether an environment may not be given up: it was made so, or has become so.
    fn is_provisioned(&self, (version, id): &(usize, EnvironmentId)) -> bool {
        self.provisioned.contains(&(*version, *id)) || self.versions[*version].is_provisioned(*id)
    }

    /// One that is in such a phase.
    fn pick(&self, at: Index, is: impl Fn(Phase) -> bool) -> Option<(usize, EnvironmentId)> {
        let those: Vec<_> =
            self.environments.iter().filter(|(_, (phase, _, _))| is(*phase)).map(|(key, _)| *key).collect();
        (!those.is_empty()).then(|| those[at.index(those.len())])
    }

    fn ready(&mut self, (version, id): (usize, EnvironmentId), initialized: Initialized) -> Result<(), TestCaseError> {
        if let Some((phase, _, _)) = self.environments.get_mut(&(version, id)) {
            *phase = Phase::Up(0, 0);
        }
        self.step(version, Event::Ready(id, initialized))
    }

    fn settle(&mut self, (version, id): (usize, EnvironmentId)) -> Result<(), TestCaseError> {
        if let Some((Phase::Up(busy, settling), _, _)) = self.environments.get_mut(&(version, id)) {
            (*busy, *settling) = (*busy - 1, *settling + 1);
        }
        self.step(version, Event::Settling(id))
    }

    fn idle(&mut self, (version, id): (usize, EnvironmentId)) -> Result<(), TestCaseError> {
        if let Some((Phase::Up(busy, settling), _, _)) = self.environments.get_mut(&(version, id)) {
            // One that never said that it settles, or one that did.
            if *settling > 0 { *settling -= 1 } else { *busy -= 1 }
        }
        self.step(version, Event::Idle(id))
    }

    fn gone(&mut self, (version, id): (usize, EnvironmentId)) -> Result<(), TestCaseError> {
        self.environments.remove(&(version, id));
        self.step(version, Event::Gone(id))
    }

    /// The words come in whatever order.
    fn tell(&mut self, at: usize) -> Result<(), TestCaseError> {
        match self.tells.remove(at) {
            Some((version, told)) => self.step(version, Event::Told(told)),
            None => Ok(()),
        }
    }

    fn happen(&mut self, happening: Happening) -> Result<(), TestCaseError> {
        match happening {
            Happening::Request(version) => self.request(version),
            Happening::Ready(at, initialized) => match self.pick(at, |phase| phase == Phase::Starting) {
                Some(environment) => self.ready(environment, initialized),
                None => Ok(()),
            },
            Happening::Settle(at) => match self.pick(at, |phase| matches!(phase, Phase::Up(1.., _))) {
                Some(environment) => self.settle(environment),
                None => Ok(()),
            },
            Happening::Idle(at) => {
                match self.pick(at, |phase| matches!(phase, Phase::Up(1.., _) | Phase::Up(_, 1..))) {
                    Some(environment) => self.idle(environment),
                    None => Ok(()),
                }
            }
            Happening::Break(at) => match self.pick(at, |_| true) {
                Some(environment) => self.gone(environment),
                None => Ok(()),
            },
            Happening::End(at) => match self.pick(at, |phase| matches!(phase, Phase::Leaving | Phase::Making)) {
                Some(environment) => self.gone(environment),
                None => Ok(()),
            },
            Happening::Told(at) => self.tell(at.index(self.tells.len().max(1))),
            Happening::Pass(time) => self.pass(time),
            Happening::Initialize(version) => self.step(version, Event::Initialize),
            Happening::Provision(version, count) => self.step(version, Event::SetProvisioned(count)),
            Happening::Most(version, most) => {
                // What is retired goes anyway, and takes no settings.
                if !self.retired[version] {
                    self.most[version] = most;
                }
                self.step(version, Event::SetMost(most))
            }
            Happening::Concurrency(version, concurrency) => {
                self.functions[function(version)].set_concurrency(concurrency);
                Ok(())
            }
            Happening::Retire(version) => {
                self.retired[version] = true;
                self.step(version, Event::Retire)
            }
        }
    }

    fn pass(&mut self, time: Duration) -> Result<(), TestCaseError> {
        self.now += time;
        for version in 0..VERSIONS {
            if self.alarms[version].is_some_and(|alarm| alarm <= self.now) {
                self.alarms[version] = None;
                self.step(version, Event::Tick)?;
            }
        }
        Ok(())
    }

    /// When everything has been said and nothing is ending, nobody waits for a place that there is or could be.
    fn check_nobody_starves(&self) -> Result<(), TestCaseError> {
        if self.environments.values().any(|(phase, _, _)| *phase == Phase::Leaving) {
            return Ok(());
        }
        let wanting = (0..VERSIONS).filter(|version| self.versions[*version].figures().wanted > 0);
        for version in wanting {
            for (worker, limits) in self.limits.iter().enumerate() {
                let stays = self.environments.iter().filter(|(key, (phase, on, _))| {
                    *on == worker && (*phase != Phase::Up(0, 0) || self.is_provisioned(key))
                });
                let (count, memory) = stays.fold((0, 0), |(count, memory), ((version, _), _)| {
                    (count + 1, memory + u64::from(size(*version).memory_mb))
                });
                let fits =
                    count < limits.environments && memory + u64::from(size(version).memory_mb) <= limits.memory_mb;
                prop_assert!(!fits, "version {version} waits, though worker {worker} could take it");
            }
        }
        Ok(())
    }

    /// From now on all goes well: whoever waits is answered.
    fn settle_down(&mut self) -> Result<(), TestCaseError> {
        for _ in 0..500 {
            while !self.tells.is_empty() {
                self.tell(0)?;
            }
            self.check_nobody_starves()?;
            if self.waiting.is_empty() && !self.environments.values().any(|(phase, _, _)| *phase == Phase::Leaving) {
                return Ok(());
            }
            self.pass(Duration::from_millis(30))?;
            let now: Vec<_> = self.environments.iter().map(|(key, (phase, _, _))| (*key, *phase)).collect();
            for (environment, phase) in now {
                match phase {
                    Phase::Starting => self.ready(environment, Initialized::Yes)?,
                    Phase::Up(0, 0) => {}
                    Phase::Up(_, _) => self.idle(environment)?,
                    Phase::Leaving | Phase::Making => self.gone(environment)?,
                }
            }
        }
        prop_assert!(false, "still without an answer: {:?}", self.waiting);
        Ok(())
    }

    /// From now on nobody comes: what is idle goes when its time is over, and nothing else happens.
    fn fade(&mut self) -> Result<(), TestCaseError> {
        for _ in 0..500 {
            let Some(next) = self.alarms.iter().flatten().min().copied() else { break };
            self.pass(next.saturating_duration_since(self.now))?;
            self.settle_down()?;
            let starting: Vec<_> = self
                .environments
                .iter()
                .filter(|(_, (phase, _, _))| *phase == Phase::Starting)
                .map(|(key, _)| *key)
                .collect();
            starting.into_iter().try_for_each(|environment| self.ready(environment, Initialized::Yes))?;
        }
        for version in &self.versions {
            let figures = version.figures();
            prop_assert_eq!(figures.idle, figures.provisioned.available, "some idle ones are never let go");
        }
        Ok(())
    }

    /// Everything ends: nothing is left.
    fn end(&mut self) -> Result<(), TestCaseError> {
        self.ended = true;
        (0..VERSIONS).try_for_each(|version| self.step(version, Event::End))?;
        prop_assert!(self.waiting.is_empty());
        let all: Vec<_> = self.environments.keys().copied().collect();
        all.into_iter().try_for_each(|environment| self.gone(environment))?;
        while let Some((version, told)) = self.tells.pop_front() {
            self.step(version, Event::Told(told))?;
        }
        prop_assert!(self.versions.iter().all(Version::is_empty));
        let figures = self.shared.figures();
        prop_assert_eq!(figures.in_flight, 0);
        prop_assert_eq!((figures.fleet.environments, figures.fleet.memory_mb, figures.fleet.waiting), (0, 0, 0));
        let on_clean_books = format!("{:?}", self.shared.fleet);
        prop_assert!(on_clean_books.contains("functions: {}, turns: [], granted: {}, asked: {}"), "{on_clean_books}");
        Ok(())
    }
}

#[derive(Debug, Clone)]
enum Happening {
    Request(usize),
    Ready(Index, Initialized),
    Settle(Index),
    Idle(Index),
    /// An environment ends by itself, whatever it does.
    Break(Index),
    /// One that was told to ends, or one that was made for a snapshot.
    End(Index),
    Told(Index),
    Pass(Duration),
    /// For a snapshot.
    Initialize(usize),
    Provision(usize, u32),
    Most(usize, Option<u32>),
    Concurrency(usize, Concurrency),
    Retire(usize),
}

fn happening() -> impl Strategy<Value = Happening> {
    let version = || 0..VERSIONS;
    let at = || any::<Index>();
    let concurrency = prop_oneof![
        Just(Concurrency::default()),
        (0..3_u32).prop_map(|kept| Concurrency::Shared { kept }),
        (0..4_u32).prop_map(Concurrency::Reserved),
    ];
    let initialized = prop_oneof![4 => Just(Initialized::Yes), 1 => Just(Initialized::Failed)];
    let time = prop_oneof![
        6 => (0..40_u64).prop_map(Duration::from_millis),
        2 => (0..400_u64).prop_map(Duration::from_millis),
        1 => (0..1_200_u64).prop_map(Duration::from_secs),
    ];
    prop_oneof![
        24 => version().prop_map(Happening::Request),
        14 => (at(), initialized).prop_map(|(at, initialized)| Happening::Ready(at, initialized)),
        6 => at().prop_map(Happening::Settle),
        14 => at().prop_map(Happening::Idle),
        2 => at().prop_map(Happening::Break),
        8 => at().prop_map(Happening::End),
        12 => at().prop_map(Happening::Told),
        10 => time.prop_map(Happening::Pass),
        2 => version().prop_map(Happening::Initialize),
        2 => (version(), 0..3_u32).prop_map(|(version, count)| Happening::Provision(version, count)),
        2 => (version(), prop::option::of(0..4_u32)).prop_map(|(version, most)| Happening::Most(version, most)),
        2 => (version(), concurrency).prop_map(|(version, concurrency)| Happening::Concurrency(version, concurrency)),
        1 => version().prop_map(Happening::Retire),
    ]
}

fn keep_alive() -> impl Strategy<Value = KeepAlive> {
    let learning = HistogramRules { least: 2, ..HistogramRules::default() };
    prop_oneof![Just(KeepAlive::Fixed(Duration::from_secs(60))), Just(KeepAlive::Histogram(learning))]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    #[test]
    fn nothing_is_oversubscribed_lost_or_leaked(
        keep_alive in keep_alive(),
        overlap in 0..3_u32,
        slots in prop_oneof![3 => Just(1_u32), 1 => 2..4_u32],
        happenings in prop::collection::vec(happening(), 0..250),
    ) {
        let mut world = World::new(keep_alive, overlap, slots);
        for happening in happenings {
            world.happen(happening)?;
        }
        world.settle_down()?;
        world.fade()?;
        world.end()?;
    }
}
