//! A process in a test's sandbox, as its script sees it.

use std::future::Future;
use std::io::{Error, ErrorKind};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use sandbox::Exit;
use tokio::io::AsyncWriteExt;
use tokio::net::unix::pipe::Sender;
use tokio::sync::watch;

use super::http::{Answer, Client};

/// What a script comes to: how its process ends. An I/O error, such as a lost connection, is `exit(1)`.
pub type Scripted = Pin<Box<dyn Future<Output = std::io::Result<Exit>> + Send>>;

/// What every process of a host does.
pub type Script = Arc<dyn Fn(Process) -> Scripted + Send + Sync>;

/// An invocation, as the runtime gets it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Given {
    /// `Lambda-Runtime-Aws-Request-Id`.
    pub request_id: String,
    /// The event.
    pub payload: String,
}

/// A process. While its sandbox is frozen none of its calls goes on.
pub struct Process {
    pub(super) name: String,
    pub(super) start: u32,
    pub(super) again: bool,
    pub(super) env: Vec<(String, String)>,
    pub(super) stdout: Sender,
    pub(super) stderr: Sender,
    pub(super) ignores_terminate: Arc<AtomicBool>,
    /// Where it asks for everything itself.
    pub(super) own: Place,
}

impl Process {
    /// `bootstrap`, or an extension's file name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// How many processes of this name were started in this sandbox before.
    pub fn start(&self) -> u32 {
        self.start
    }

    /// Whether this is a clone that does again what was done before its snapshot.
    pub fn is_clone(&self) -> bool {
        self.again
    }

    /// An environment variable.
    pub fn env(&self, name: &str) -> Option<&str> {
        self.env.iter().find(|(found, _)| found == name).map(|(_, value)| value.as_str())
    }

    /// From now on SIGTERM does nothing.
    pub fn ignore_terminate(&self) {
        self.ignores_terminate.store(true, Ordering::Relaxed);
    }

    /// Writes to standard output, waiting where the pipe is full.
    pub async fn print(&mut self, text: &str) -> std::io::Result<()> {
        self.own.thawed().await;
        self.stdout.write_all(text.as_bytes()).await
    }

    /// Writes to standard error.
    pub async fn print_error(&mut self, text: &str) -> std::io::Result<()> {
        self.own.thawed().await;
        self.stderr.write_all(text.as_bytes()).await
    }

    /// `GET /runtime/invocation/next`.
    pub async fn next(&mut self) -> std::io::Result<Given> {
        self.own.next().await
    }

    /// `POST /runtime/invocation/{id}/response`; returns the status.
    pub async fn respond(&mut self, request_id: &str, body: &str) -> std::io::Result<u16> {
        self.own.respond(request_id, body).await
    }

    /// `POST /runtime/invocation/{id}/error`.
    pub async fn fail(&mut self, request_id: &str, error_type: &str, body: &str) -> std::io::Result<u16> {
        let path = format!("/2018-06-01/runtime/invocation/{request_id}/error");
        Ok(self.own.call("POST", &path, &[("Lambda-Runtime-Function-Error-Type", error_type)], body).await?.status)
    }

    /// `POST /runtime/init/error`.
    pub async fn init_error(&mut self, error_type: &str, body: &str) -> std::io::Result<u16> {
        let headers = [("Lambda-Runtime-Function-Error-Type", error_type)];
        Ok(self.own.call("POST", "/2018-06-01/runtime/init/error", &headers, body).await?.status)
    }

    /// `GET /runtime/restore/next`; returns the status.
    pub async fn restore_next(&mut self) -> std::io::Result<u16> {
        Ok(self.own.call("GET", "/2018-06-01/runtime/restore/next", &[], "").await?.status)
    }

    /// `POST /runtime/restore/error`.
    pub async fn restore_error(&mut self, error_type: &str, body: &str) -> std::io::Result<u16> {
        let headers = [("Lambda-Runtime-Function-Error-Type", error_type)];
        Ok(self.own.call("POST", "/2018-06-01/runtime/restore/error", &headers, body).await?.status)
    }

    /// What the endpoint of credentials answers to the token that is among the variables.
    pub async fn credentials(&mut self) -> std::io::Result<String> {
        let token = self.env("AWS_CONTAINER_AUTHORIZATION_TOKEN").unwrap_or_default().to_owned();
        let headers = [("Authorization", token.as_str())];
        Ok(self.own.call("GET", "/2021-04-23/credentials", &headers, "").await?.body)
    }

    /// `POST /extension/register` for events such as `"INVOKE","SHUTDOWN"`; returns the identifier.
    pub async fn register(&mut self, events: &str) -> std::io::Result<String> {
        let name = self.name.clone();
        let body = format!(r#"{{"events":[{events}]}}"#);
        let headers = [("Lambda-Extension-Name", name.as_str())];
        let answer = self.own.call("POST", "/2020-01-01/extension/register", &headers, &body).await?;
        answer.header("lambda-extension-identifier").map(str::to_owned).ok_or(ErrorKind::PermissionDenied.into())
    }

    /// `GET /extension/event/next`; returns the event's JSON.
    pub async fn event(&mut self, id: &str) -> std::io::Result<String> {
        let headers = [("Lambda-Extension-Identifier", id)];
        Ok(self.own.call("GET", "/2020-01-01/extension/event/next", &headers, "").await?.body)
    }

    /// `POST /extension/init/error`.
    pub async fn extension_init_error(&mut self, id: &str, error_type: &str) -> std::io::Result<u16> {
        let headers = [("Lambda-Extension-Identifier", id), ("Lambda-Extension-Function-Error-Type", error_type)];
        Ok(self.own.call("POST", "/2020-01-01/extension/init/error", &headers, "").await?.status)
    }

    /// Answers every invocation with its own payload, for ever.
    pub async fn echo(mut self) -> std::io::Result<Exit> {
        loop {
            let given = self.next().await?;
            self.respond(&given.request_id, &given.payload).await?;
        }
    }

    /// Hangs, for ever.
    pub async fn hang(self) -> std::io::Result<Exit> {
        // The pipes stay open meanwhile.
        let _self = self;
        std::future::pending().await
    }

    /// Another place at which this process asks for invocations.
    pub fn place(&self) -> Place {
        Place::new(self.own.host.clone(), self.own.frozen.clone())
    }
}

/// One of the places at which a process asks for invocations, each on its own.
pub struct Place {
    host: String,
    frozen: watch::Receiver<bool>,
    client: Option<Client>,
}

impl Place {
    /// At the Runtime API of that host and port.
    pub(super) fn new(host: String, frozen: watch::Receiver<bool>) -> Self {
        Self { host, frozen, client: None }
    }

    /// `GET /runtime/invocation/next`.
    pub async fn next(&mut self) -> std::io::Result<Given> {
        let answer = self.call("GET", "/2018-06-01/runtime/invocation/next", &[], "").await?;
        let request_id = answer.header("lambda-runtime-aws-request-id").unwrap_or_default().to_owned();
        Ok(Given { request_id, payload: answer.body })
    }

    /// `POST /runtime/invocation/{id}/response`; returns the status.
    pub async fn respond(&mut self, request_id: &str, body: &str) -> std::io::Result<u16> {
        let path = format!("/2018-06-01/runtime/invocation/{request_id}/response");
        Ok(self.call("POST", &path, &[], body).await?.status)
    }

    async fn call(
        &mut self,
        method: &str,
        path: &str,
        headers: &[(&str, &str)],
        body: &str,
    ) -> std::io::Result<Answer> {
        self.thawed().await;
        if self.client.is_none() {
            if self.host.is_empty() {
                return Err(ErrorKind::NotFound.into());
            }
            self.client = Some(Client::connect(&self.host).await?);
        }
        let client = self.client.as_mut().ok_or_else(|| Error::from(ErrorKind::NotConnected))?;
        let answer = client.call(method, path, headers, body).await;
        self.thawed().await;
        answer
    }

    async fn thawed(&mut self) {
        // An error means that the sandbox is gone, and with it this process.
        let _ = self.frozen.wait_for(|frozen| !frozen).await;
    }
}
