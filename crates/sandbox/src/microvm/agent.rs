//! The host's side of the control connection to the agent in a machine.
//!
//! The agent runs on a kernel that a tenant may have taken over: whatever it answers is checked, what is not understood
//! ends the connection, and with it the sandbox.

use std::collections::{BTreeSet, HashMap};
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use guest::control::{Event, FromAgent, Numbered, Reply, Request, Step};
use guest::frame;
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::{Notify, mpsc, oneshot};

use crate::{Exit, ProcessId};

/// The connection is gone, and the machine with it or soon.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the machine's agent is gone")]
pub(super) struct Gone;

/// Why the agent did not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub(super) enum AskError {
    /// It cannot be asked.
    #[error(transparent)]
    Gone(#[from] Gone),
    /// It tried and failed.
    #[error("the machine's agent could not: {what}")]
    Failed {
        /// At what kind of step.
        step: Step,
        /// Details.
        what: String,
        /// The system's reason.
        source: io::Error,
    },
    /// It answered something else.
    #[error("the machine's agent gave an answer to another question")]
    Confused,
}

impl From<AskError> for io::Error {
    fn from(error: AskError) -> Self {
        match error {
            AskError::Gone(gone) => io::Error::new(io::ErrorKind::NotConnected, gone),
            AskError::Failed { source, .. } => source,
            AskError::Confused => io::Error::new(io::ErrorKind::InvalidData, error),
        }
    }
}

/// A connection to an agent. Dropping it closes the connection.
#[derive(Debug)]
pub(super) struct Agent {
    requests: mpsc::UnboundedSender<Numbered<Request>>,
    shared: Arc<Mutex<Shared>>,
}

/// What the tasks of a connection share with its owner.
#[derive(Debug, Default)]
struct Shared {
    gone: bool,
    last_request: u64,
    last_process: u32,
    last_stream: u64,
    waiting: HashMap<u64, oneshot::Sender<Reply>>,
    running: HashMap<u32, Running>,
    /// Processes whose ends were told, and whose agent does not know yet that they were. A hostile agent adds no number that
    /// was not given away.
    heard: BTreeSet<u32>,
}

/// A process that has not ended, as far as is known.
#[derive(Debug)]
struct Running {
    streams: [u64; 3],
    told: oneshot::Sender<Exit>,
}

/// What a machine's agent knows by number, so that another connection to it, or to a clone of it, can go on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Past {
    /// Processes are numbered from the next one on.
    pub last_process: u32,
    /// As are streams.
    pub last_stream: u64,
    /// Processes that run, and the numbers of their streams, in the order of their numbers.
    pub running: Vec<(ProcessId, [u64; 3])>,
}

impl Past {
    /// Of a machine in which nothing of the tenant runs, and which has used no higher numbers than this.
    pub fn up_to(number: u32) -> Past {
        Past { last_process: number, last_stream: u64::from(number), running: Vec::new() }
    }
}

fn lock(shared: &Mutex<Shared>) -> MutexGuard<'_, Shared> {
    // Every holder leaves the state whole.
    shared.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Agent {
    /// Talks to the agent over `stream` from now on. `past` is what an earlier connection to the same agent, or to the one
    /// that it was cloned from, has used; tells the ends of the processes that run, in their order.
    pub fn new(stream: UnixStream, past: &Past) -> (Agent, Vec<oneshot::Receiver<Exit>>) {
        // Unbounded, but each caller waits for its answer, and there are few of them.
        let (requests, queue) = mpsc::unbounded_channel();
        let mut state = Shared { last_process: past.last_process, last_stream: past.last_stream, ..Shared::default() };
        let mut exits = Vec::with_capacity(past.running.len());
        for (process, streams) in &past.running {
            let (told, exit) = oneshot::channel();
            state.running.insert(process.0, Running { streams: *streams, told });
            exits.push(exit);
        }
        let shared = Arc::new(Mutex::new(state));
        let (read, write) = stream.into_split();
        let ends = Arc::new(Notify::new());
        tokio::spawn(send(write, queue, Arc::clone(&shared), Arc::clone(&ends)));
        tokio::spawn(receive(frame::Reader::new(read, 0), Arc::clone(&shared), ends));
        (Agent { requests, shared }, exits)
    }

    /// What the next connection has to know.
    pub fn past(&self) -> Past {
        let shared = lock(&self.shared);
        let mut running: Vec<_> =
            shared.running.iter().map(|(number, running)| (ProcessId(*number), running.streams)).collect();
        running.sort_unstable();
        Past { last_process: shared.last_process, last_stream: shared.last_stream, running }
    }

    /// Whether the connection is there.
    pub fn is_open(&self) -> bool {
        !lock(&self.shared).gone
    }

    /// A number for a process with these streams, and where its end will be told.
    pub fn announce(&self, streams: [u64; 3]) -> Result<(ProcessId, oneshot::Receiver<Exit>), Gone> {
        let (told, exit) = oneshot::channel();
        let mut shared = lock(&self.shared);
        if shared.gone {
            return Err(Gone);
        }
        shared.last_process += 1;
        let number = shared.last_process;
        shared.running.insert(number, Running { streams, told });
        Ok((ProcessId(number), exit))
    }

    /// Forgets a process that was announced and did not start.
    pub fn withdraw(&self, process: ProcessId) {
        lock(&self.shared).running.remove(&process.0);
    }

    /// A number for an output stream.
    pub fn new_stream(&self) -> u64 {
        let mut shared = lock(&self.shared);
        shared.last_stream += 1;
        shared.last_stream
    }

    /// Puts a request on its way at once; the answer can be awaited later, or never.
    pub fn ask(&self, request: Request) -> impl Future<Output = Result<Reply, AskError>> + Send + use<> {
        let (answered, answer) = oneshot::channel();
        let number = {
            let mut shared = lock(&self.shared);
            shared.last_request += 1;
            let number = shared.last_request;
            if !shared.gone {
                shared.waiting.insert(number, answered);
            }
            number
        };
        // If nobody sends any more, `answered` is dropped with the rest and the answer says so.
        let _ = self.requests.send(Numbered { number, message: request });
        async move {
            match answer.await {
                Ok(Reply::Failed { step, what, errno }) => {
                    let source = match errno {
                        0 => io::Error::other("the agent gave no reason"),
                        errno => io::Error::from_raw_os_error(errno),
                    };
                    Err(AskError::Failed { step, what, source })
                }
                Ok(reply) => Ok(reply),
                Err(_) => Err(Gone.into()),
            }
        }
    }

    /// As [`Agent::ask`], for what is answered with `Done`.
    pub fn order(&self, request: Request) -> impl Future<Output = Result<(), AskError>> + Send + use<> {
        let answer = self.ask(request);
        async move {
            match answer.await? {
                Reply::Done => Ok(()),
                _ => Err(AskError::Confused),
            }
        }
    }
}

impl Shared {
    /// A process has ended, which the agent tells until it knows that it was heard: on the next connection, or in a clone, it
    /// may tell it once more.
    fn ended(&mut self, process: u32, exit: Exit) {
        if let Some(running) = self.running.remove(&process) {
            let _ = running.told.send(exit);
        }
        if process <= self.last_process {
            self.heard.insert(process);
        }
    }

    /// Tells the agent which ends were heard, if any were.
    fn hearing(&mut self) -> Option<Numbered<Request>> {
        let processes: Vec<_> = std::mem::take(&mut self.heard).into_iter().collect();
        (!processes.is_empty()).then(|| {
            self.last_request += 1;
            Numbered { number: self.last_request, message: Request::Heard { processes } }
        })
    }
}

/// Writes requests, and what was heard, until the agent's owner is gone or the connection breaks.
async fn send(
    mut stream: OwnedWriteHalf,
    mut queue: mpsc::UnboundedReceiver<Numbered<Request>>,
    shared: Arc<Mutex<Shared>>,
    ends: Arc<Notify>,
) {
    loop {
        let request = tokio::select! {
            request = queue.recv() => request,
            () = ends.notified() => match lock(&shared).hearing() {
                Some(request) => Some(request),
                None => continue,
            },
        };
        let Some(request) = request else { return };
        if let Err(error) = frame::write(&mut stream, &request, &[]).await {
            tracing::debug!(%error, "a machine's agent takes no more requests");
            return;
        }
    }
}

/// Hands on what the agent says until the connection ends; then everybody who waits is told.
async fn receive(mut frames: frame::Reader<OwnedReadHalf>, shared: Arc<Mutex<Shared>>, ends: Arc<Notify>) {
    loop {
        match frames.next::<FromAgent>().await {
            Ok((FromAgent::Reply { number, reply }, _)) => {
                // An answer that nobody waits for is of no use to anybody.
                if let Some(waiting) = lock(&shared).waiting.remove(&number) {
                    let _ = waiting.send(reply);
                }
            }
            Ok((FromAgent::Event(Event::Exited { process, code, signal }), _)) => {
                let exit = code.map_or(Exit::Signal(signal.unwrap_or(libc::SIGKILL)), Exit::Code);
                lock(&shared).ended(process, exit);
                ends.notify_one();
            }
            Err(error) => {
                tracing::debug!(%error, "the connection to a machine's agent has ended");
                break;
            }
        }
    }
    let mut shared = lock(&shared);
    shared.gone = true;
    shared.waiting.clear();
    for (_, running) in shared.running.drain() {
        let _ = running.told.send(Exit::Signal(libc::SIGKILL));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// An agent, and the machine's side of its connection.
    fn connected() -> (Agent, frame::Reader<OwnedReadHalf>, OwnedWriteHalf) {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let (read, write) = theirs.into_split();
        (Agent::new(ours, &Past::up_to(10)).0, frame::Reader::new(read, 0), write)
    }

    async fn say(to: &mut OwnedWriteHalf, message: FromAgent) {
        frame::write(to, &message, &[]).await.unwrap();
    }

    #[tokio::test]
    async fn answers_find_their_questions_in_any_order() {
        let (agent, mut asked, mut answers) = connected();
        let (first, second) = (agent.order(Request::KillAll), agent.ask(Request::Usage));
        let mut numbers = Vec::new();
        for expected in [Request::KillAll, Request::Usage] {
            let (request, _) = asked.next::<Numbered<Request>>().await.unwrap();
            assert_eq!(request.message, expected);
            numbers.push(request.number);
        }
        let used = Reply::Usage { memory_peak_bytes: 3, memory_bytes: 2, cpu_us: 1, oom_kills: 0 };
        say(&mut answers, FromAgent::Reply { number: 99, reply: Reply::Done }).await;
        say(&mut answers, FromAgent::Reply { number: numbers[1], reply: used.clone() }).await;
        assert_eq!(second.await.unwrap(), used);
        let failed = Reply::Failed { step: Step::Other, what: "cgroup.kill".to_owned(), errno: libc::EIO };
        say(&mut answers, FromAgent::Reply { number: numbers[0], reply: failed }).await;
        let error = first.await.unwrap_err();
        assert!(error.to_string().contains("cgroup.kill"), "{error}");
        assert_eq!(io::Error::from(error).raw_os_error(), Some(libc::EIO));
    }

    #[tokio::test]
    async fn exits_are_told_to_whoever_waits_for_them() {
        let (agent, _asked, mut answers) = connected();
        let ((one, first), (two, second)) = (agent.announce([0; 3]).unwrap(), agent.announce([0; 3]).unwrap());
        assert_eq!((one, two), (ProcessId(11), ProcessId(12)));
        for (process, code, signal) in [(12, None, Some(15)), (77, Some(0), None), (11, Some(3), None)] {
            say(&mut answers, FromAgent::Event(Event::Exited { process, code, signal })).await;
        }
        assert_eq!((first.await.unwrap(), second.await.unwrap()), (Exit::Code(3), Exit::Signal(15)));
    }

    #[tokio::test]
    async fn the_agent_hears_which_ends_were_heard_and_may_repeat_them() {
        let (agent, mut asked, mut answers) = connected();
        let ((one, first), (_, second)) = (agent.announce([0; 3]).unwrap(), agent.announce([0; 3]).unwrap());
        // Once each, whether it ended now, or before and is repeated; never one that cannot be.
        for process in [5, 77, one.0, u32::MAX] {
            say(&mut answers, FromAgent::Event(Event::Exited { process, code: Some(3), signal: None })).await;
        }
        assert_eq!(first.await.unwrap(), Exit::Code(3));
        let mut heard = Vec::new();
        while heard.len() < 2 {
            match asked.next::<Numbered<Request>>().await.unwrap().0.message {
                Request::Heard { processes } => heard.extend(processes),
                other => panic!("{other:?}"),
            }
        }
        assert_eq!(heard, [5, one.0]);
        // Another answer than the first changes nothing, and what else runs is as it was.
        for process in [one.0, 12] {
            say(&mut answers, FromAgent::Event(Event::Exited { process, code: Some(4), signal: None })).await;
        }
        assert_eq!(second.await.unwrap(), Exit::Code(4));
        assert!(agent.is_open() && agent.past().running.is_empty());
        // It keeps nobody from ending the connection.
        drop(agent);
        while asked.next::<Numbered<Request>>().await.is_ok() {}
    }

    #[tokio::test]
    async fn another_connection_goes_on_with_the_processes() {
        let (agent, _asked, mut answers) = connected();
        let streams: Vec<_> = (0..6).map(|_| agent.new_stream()).collect();
        let (_, first) = agent.announce([streams[0], streams[1], streams[2]]).unwrap();
        let (two, _) = agent.announce([streams[3], streams[4], 0]).unwrap();
        say(&mut answers, FromAgent::Event(Event::Exited { process: 11, code: Some(0), signal: None })).await;
        first.await.unwrap();
        let past = agent.past();
        let expected = Past { last_process: 12, last_stream: 16, running: vec![(two, [14, 15, 0])] };
        assert_eq!(past, expected);

        let (ours, theirs) = UnixStream::pair().unwrap();
        let (again, mut exits) = Agent::new(ours, &past);
        let (_read, mut write) = theirs.into_split();
        assert_eq!((again.new_stream(), again.announce([0; 3]).unwrap().0), (17, ProcessId(13)));
        say(&mut write, FromAgent::Event(Event::Exited { process: 12, code: None, signal: Some(9) })).await;
        assert_eq!(exits.remove(0).await.unwrap(), Exit::Signal(9));
    }

    #[tokio::test]
    async fn a_lost_connection_ends_every_wait() {
        for garbage in [false, true] {
            let (agent, asked, mut answers) = connected();
            let (_, exit) = agent.announce([0; 3]).unwrap();
            let answer = agent.order(Request::Quiesce);
            if garbage {
                tokio::io::AsyncWriteExt::write_all(&mut answers, &[0xff; 64]).await.unwrap();
            } else {
                drop((asked, answers));
            }
            assert!(matches!(answer.await, Err(AskError::Gone(Gone))));
            assert_eq!(exit.await.unwrap(), Exit::Signal(libc::SIGKILL));
            assert!(!agent.is_open() && agent.announce([0; 3]).is_err());
            assert!(matches!(agent.order(Request::KillAll).await, Err(AskError::Gone(Gone))));
        }
    }
}
