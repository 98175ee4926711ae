//! The host's side of the control connection to the agent in a machine.
//!
//! The agent runs on a kernel that a tenant may have taken over: whatever it answers is checked, what is not understood
//! ends the connection, and with it the sandbox.

use std::collections::HashMap;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use guest::control::{Event, FromAgent, Numbered, Reply, Request, Step};
use guest::frame;
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::{mpsc, oneshot};

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

#[derive(Debug, Default)]
struct Shared {
    gone: bool,
    last_request: u64,
    last_process: u32,
    last_stream: u64,
    waiting: HashMap<u64, oneshot::Sender<Reply>>,
    running: HashMap<u32, oneshot::Sender<Exit>>,
}

fn lock(shared: &Mutex<Shared>) -> MutexGuard<'_, Shared> {
    // Every holder leaves the state whole.
    shared.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Agent {
    /// Talks to the agent over `stream` from now on. Processes and streams are numbered from `first` on, which must be above
    /// what an earlier connection to the same agent, or to the one it was cloned from, has used.
    pub fn new(stream: UnixStream, first: u32) -> Agent {
        // Unbounded, but each caller waits for its answer, and there are few of them.
        let (requests, queue) = mpsc::unbounded_channel();
        let state = Shared { last_process: first, last_stream: u64::from(first), ..Shared::default() };
        let shared = Arc::new(Mutex::new(state));
        let (read, write) = stream.into_split();
        tokio::spawn(send(write, queue));
        tokio::spawn(receive(frame::Reader::new(read, 0), Arc::clone(&shared)));
        Agent { requests, shared }
    }

    /// Whether the connection is there.
    pub fn is_open(&self) -> bool {
        !lock(&self.shared).gone
    }

    /// A number for a process, and where its end will be told.
    pub fn announce(&self) -> Result<(ProcessId, oneshot::Receiver<Exit>), Gone> {
        let (told, exit) = oneshot::channel();
        let mut shared = lock(&self.shared);
        if shared.gone {
            return Err(Gone);
        }
        shared.last_process += 1;
        let number = shared.last_process;
        shared.running.insert(number, told);
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

/// Writes requests until the agent's owner is gone or the connection breaks.
async fn send(mut stream: OwnedWriteHalf, mut queue: mpsc::UnboundedReceiver<Numbered<Request>>) {
    while let Some(request) = queue.recv().await {
        if let Err(error) = frame::write(&mut stream, &request, &[]).await {
            tracing::debug!(%error, "a machine's agent takes no more requests");
            return;
        }
    }
}

/// Hands on what the agent says until the connection ends; then everybody who waits is told.
async fn receive(mut frames: frame::Reader<OwnedReadHalf>, shared: Arc<Mutex<Shared>>) {
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
                if let Some(told) = lock(&shared).running.remove(&process) {
                    let _ = told.send(exit);
                }
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
    for (_, told) in shared.running.drain() {
        let _ = told.send(Exit::Signal(libc::SIGKILL));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// An agent, and the machine's side of its connection.
    fn connected() -> (Agent, frame::Reader<OwnedReadHalf>, OwnedWriteHalf) {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let (read, write) = theirs.into_split();
        (Agent::new(ours, 10), frame::Reader::new(read, 0), write)
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
        let ((one, first), (two, second)) = (agent.announce().unwrap(), agent.announce().unwrap());
        assert_eq!((one, two), (ProcessId(11), ProcessId(12)));
        for (process, code, signal) in [(12, None, Some(15)), (77, Some(0), None), (11, Some(3), None)] {
            say(&mut answers, FromAgent::Event(Event::Exited { process, code, signal })).await;
        }
        assert_eq!((first.await.unwrap(), second.await.unwrap()), (Exit::Code(3), Exit::Signal(15)));
    }

    #[tokio::test]
    async fn a_lost_connection_ends_every_wait() {
        for garbage in [false, true] {
            let (agent, asked, mut answers) = connected();
            let (_, exit) = agent.announce().unwrap();
            let answer = agent.order(Request::Quiesce);
            if garbage {
                tokio::io::AsyncWriteExt::write_all(&mut answers, &[0xff; 64]).await.unwrap();
            } else {
                drop((asked, answers));
            }
            assert!(matches!(answer.await, Err(AskError::Gone(Gone))));
            assert_eq!(exit.await.unwrap(), Exit::Signal(libc::SIGKILL));
            assert!(!agent.is_open() && agent.announce().is_err());
            assert!(matches!(agent.order(Request::KillAll).await, Err(AskError::Gone(Gone))));
        }
    }
}
