//! Environments from launch to teardown, with scripted processes in sandboxes of memory.

mod concurrent;
mod ends;
mod extensions;
mod invocations;
mod snapshots;

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{mpsc, oneshot};
use tokio::time::timeout;

use crate::testing::{Host, PATIENCE, Process, eventually, without_times};
use crate::{Environment, EnvironmentSpec, InitType, InvokeReply, InvokeRequest, Notice, Options, StartError};

/// An environment and what it tells.
struct Observed {
    environment: Option<Environment>,
    notices: mpsc::UnboundedReceiver<Notice>,
}

impl Observed {
    fn start(host: &Host, spec: EnvironmentSpec) -> Self {
        Self::start_as(host, spec, InitType::OnDemand)
    }

    fn start_as(host: &Host, spec: EnvironmentSpec, initialization_type: InitType) -> Self {
        let (tell, notices) = mpsc::unbounded_channel();
        let observer = move |notice| tell.send(notice).unwrap_or_default();
        Self { environment: Some(host.worker.start(Arc::new(spec), initialization_type, observer)), notices }
    }

    /// Starts an environment and waits until it is initialized.
    async fn ready(host: &Host, spec: EnvironmentSpec) -> Self {
        let mut observed = Self::start(host, spec);
        assert_eq!(observed.notice().await, Notice::Ready { initialized: true });
        observed
    }

    fn environment(&self) -> &Environment {
        self.environment.as_ref().unwrap()
    }

    async fn notice(&mut self) -> Notice {
        timeout(PATIENCE, self.notices.recv()).await.expect("a notice in time").expect("the environment's task lives")
    }

    /// Hands an invocation in and waits for its answer only.
    async fn ask(&mut self, request: InvokeRequest) -> Result<InvokeReply, StartError> {
        let (reply, answer) = oneshot::channel();
        self.environment().invoke(request, reply);
        timeout(PATIENCE, answer).await.expect("an answer in time").expect("an answer")
    }

    /// An invocation from beginning to end, with the notices in the order that the manager relies on.
    async fn invoke(&mut self, request: InvokeRequest) -> InvokeReply {
        let answer = self.ask(request).await.unwrap();
        assert_eq!(self.notices.try_recv(), Ok(Notice::Settling), "told before the answer");
        assert_eq!(self.notice().await, Notice::Idle);
        answer
    }

    /// Retires it and waits until nothing of it is left.
    async fn retire(mut self, host: &Host) {
        self.environment().retire();
        assert_eq!(self.notice().await, Notice::Gone { error: None });
        nothing_left(host).await;
    }
}

async fn nothing_left(host: &Host) {
    eventually("nothing is left", || host.worker.environments().is_empty() && host.backend.live() == 0).await;
}

fn quick() -> Options {
    Options { freeze_delay: Duration::from_millis(1), init_timeout: Duration::from_millis(150), ..Options::default() }
}

/// Initializations may take as long as they like on a slow machine.
fn patient() -> Options {
    Options { init_timeout: PATIENCE, ..quick() }
}

fn text(reply: &InvokeReply) -> &str {
    std::str::from_utf8(&reply.payload).unwrap()
}

fn untimed(lines: &[String]) -> Vec<String> {
    lines.iter().map(|line| without_times(line)).collect()
}

const INIT_START: &str =
    "INIT_START Runtime Version: provided:al2023.v1\tRuntime Version ARN: arn:aws:lambda:us-east-1::runtime:0af1\n";

fn start_line(id: &str) -> String {
    format!("START RequestId: {id} Version: $LATEST\n")
}

fn end_line(id: &str) -> String {
    format!("END RequestId: {id}\n")
}

/// REPORT with one process's memory, its times replaced.
fn report_line(id: &str, rest: &str) -> String {
    format!(
        "REPORT RequestId: {id}\tDuration: N.NN ms\tBilled Duration: N ms\tMemory Size: 128 MB\tMax Memory Used: 8 MB\t\
         {rest}\n"
    )
}
