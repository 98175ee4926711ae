//! Whatever the order of calls: a `Remote` behaves as a local `RuntimeApi` does.

use proptest::prelude::*;
use runtime_api::{Extensions, RuntimeApi};

use super::*;

/// One thing that the owner or somebody in the sandbox does.
#[derive(Debug, Clone, Copy)]
enum Op {
    Invoke,
    Abandon,
    /// The last one, or the one before it.
    AbandonOne(usize),
    Reset,
    Expect(usize),
    Shutdown,
    /// The runtime asks for work in one of its places, and says what it got.
    Next(usize),
    /// It answers what it got last in that place, well or not.
    Answer(usize, bool),
    InitError,
    /// An extension registers, asks for its next event, or fails.
    Register(usize),
    EventNext(usize),
    Fail(usize),
}

fn ops() -> impl Strategy<Value = Vec<Op>> {
    let op = prop_oneof![
        6 => Just(Op::Invoke),
        1 => Just(Op::Abandon),
        2 => (0..2usize).prop_map(Op::AbandonOne),
        1 => Just(Op::Reset),
        1 => (0..12usize).prop_map(Op::Expect),
        1 => Just(Op::Shutdown),
        8 => (0..2usize).prop_map(Op::Next),
        6 => (0..2usize, any::<bool>()).prop_map(|(place, good)| Op::Answer(place, good)),
        1 => Just(Op::InitError),
        3 => (0..2usize).prop_map(Op::Register),
        4 => (0..2usize).prop_map(Op::EventNext),
        1 => (0..2usize).prop_map(Op::Fail),
    ];
    proptest::collection::vec(op, 1..40)
}

/// The two owners under one name.
enum Api {
    Local(RuntimeApi),
    Remote(Remote),
}

impl Api {
    fn invoke(&self, invocation: Invocation) -> Result<oneshot::Receiver<Outcome>, InvokeRefused> {
        match self {
            Self::Local(api) => api.invoke(invocation),
            Self::Remote(api) => api.invoke(invocation),
        }
    }

    fn extensions(&self) -> Extensions {
        match self {
            Self::Local(api) => api.extensions(),
            Self::Remote(api) => api.extensions(),
        }
    }
}

/// One environment: its owner, and those who talk HTTP.
struct World {
    api: Api,
    events: mpsc::UnboundedReceiver<Event>,
    address: SocketAddr,
    outcomes: Vec<(usize, oneshot::Receiver<Outcome>)>,
    invocations: usize,
    next: [Option<AskingForWork>; 2],
    got: [String; 2],
    ids: [String; 2],
    asking: [Option<AskingForEvent>; 2],
}

impl World {
    fn new(api: Api, events: mpsc::UnboundedReceiver<Event>, address: SocketAddr) -> Self {
        let (asking, ids, next, got) = Default::default();
        Self { api, events, address, outcomes: Vec::new(), invocations: 0, next, got, ids, asking }
    }

    /// Does one thing and tells all that can be seen of it, after everything has come to rest.
    async fn step(&mut self, op: Op) -> String {
        let said = self.act(op).await;
        self.rest().await;
        let mut events = Vec::new();
        while let Ok(event) = self.events.try_recv() {
            events.push(event);
        }
        let mut outcomes = Vec::new();
        self.outcomes.retain_mut(|(number, receiver)| {
            let outcome = receiver.try_recv();
            let waits = matches!(outcome, Err(oneshot::error::TryRecvError::Empty));
            outcomes.push((*number, outcome));
            waits
        });
        for (next, got) in self.next.iter_mut().zip(&mut self.got) {
            if let Some(next) = next.take_if(|next| next.is_finished())
                && let Some((_, _, id, _)) = next.await.unwrap()
            {
                *got = id;
            }
        }
        for asking in &mut self.asking {
            asking.take_if(|asking| asking.is_finished());
        }
        let waiting = (self.next.each_ref().map(Option::is_some), self.asking.each_ref().map(Option::is_some));
        format!("{said} {events:?} {outcomes:?} {waiting:?} {:?} {:?}", self.got, self.api.extensions())
    }

    async fn act(&mut self, op: Op) -> String {
        match op {
            Op::Invoke => {
                self.invocations += 1;
                let invoked = self.api.invoke(invocation(&self.invocations.to_string()));
                let refused = format!("{:?}", invoked.as_ref().map(drop));
                if let Ok(receiver) = invoked {
                    self.outcomes.push((self.invocations, receiver));
                }
                refused
            }
            Op::Abandon => match &self.api {
                Api::Local(api) => format!("{:?}", api.abandon()),
                Api::Remote(api) => format!("{:?}", api.abandon()),
            },
            Op::AbandonOne(back) => {
                let id = self.invocations.saturating_sub(back).to_string();
                match &self.api {
                    Api::Local(api) => api.abandon_one(&id),
                    Api::Remote(api) => api.abandon_one(&id),
                }
                String::new()
            }
            Op::Reset => {
                match &self.api {
                    Api::Local(api) => api.reset(),
                    Api::Remote(api) => api.reset(),
                }
                while self.events.try_recv().is_ok() {}
                String::new()
            }
            Op::Expect(count) => {
                let names = (0..count).map(|n| format!("e{n}"));
                match &self.api {
                    Api::Local(api) => format!("{:?}", api.expect_extensions(names)),
                    Api::Remote(api) => format!("{:?}", api.expect_extensions(names)),
                }
            }
            Op::Shutdown => match &self.api {
                Api::Local(api) => format!("{:?}", api.shutdown_extensions(ShutdownReason::Failure, 1)),
                Api::Remote(api) => format!("{:?}", api.shutdown_extensions(ShutdownReason::Failure, 1)),
            },
            Op::Next(place) => {
                if self.next[place].is_none() {
                    self.next[place] = Some(Client::connect(self.address).await.next());
                }
                String::new()
            }
            Op::Answer(place, good) => {
                let kind = if good { "response" } else { "error" };
                let path = format!("/2018-06-01/runtime/invocation/{}/{kind}", self.got[place]);
                Client::connect(self.address).await.post(&path, "{}").await.to_string()
            }
            Op::InitError => {
                let path = "/2018-06-01/runtime/init/error";
                Client::connect(self.address).await.post(path, "{}").await.to_string()
            }
            Op::Register(n) => {
                let mut client = Client::connect(self.address).await;
                let (status, id) = client.register(&format!("e{n}"), "[\"INVOKE\"]").await;
                if status == 200 {
                    self.ids[n] = id;
                }
                status.to_string()
            }
            Op::EventNext(n) => {
                if self.asking[n].is_none() && !self.ids[n].is_empty() {
                    let client = Client::connect(self.address).await;
                    self.asking[n] = Some(client.event_next(self.ids[n].clone()));
                }
                String::new()
            }
            Op::Fail(n) => {
                let headers = [
                    ("Lambda-Extension-Identifier", self.ids[n].as_str()),
                    ("Lambda-Extension-Function-Error-Type", "E"),
                ];
                let path = "/2020-01-01/extension/exit/error";
                let mut client = Client::connect(self.address).await;
                client
                    .try_send("POST", path, &headers, "{}")
                    .await
                    .map(|answer| answer.0)
                    .unwrap_or_default()
                    .to_string()
            }
        }
    }

    /// Waits until nobody has anything to do. All run on this thread, and the kernel hands bytes between local sockets over
    /// as they are written: whoever can go on does so within one of these turns, each of which asks the kernel for news.
    async fn rest(&self) {
        if let Api::Remote(api) = &self.api {
            soon("to settle", api.settled()).await.unwrap();
        }
        for _ in 0..200 {
            tokio::task::yield_now().await;
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, rng_seed: proptest::test_runner::RngSeed::Fixed(3), ..ProptestConfig::default() })]

    #[test]
    fn remote_and_local_are_alike(ops in ops(), max_concurrency in 1..3usize) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
            let address = listener.local_addr().unwrap();
            let options = Options { max_concurrency, ..Options::default() };
            let (api, events) = RuntimeApi::serve(listener, options.clone());
            let mut local = World::new(Api::Local(api), events, address);
            let pair = Pair::open(options);
            let mut remote = World::new(Api::Remote(pair.remote), pair.events, pair.address);
            for (at, op) in ops.iter().enumerate() {
                let (expected, got) = (local.step(*op).await, remote.step(*op).await);
                assert_eq!(got, expected, "step {at} of {ops:?}");
            }
        });
    }
}
