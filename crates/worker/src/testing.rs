//! A host for tests: everything is real but the sandboxes, which are tasks of the test process.
//!
//! A [`Host`] has a real log store, code cache and catalog in a directory of its own, and a [`Memory`] backend. What the
//! processes in its sandboxes do is the test's: a script, which speaks to the real Runtime API over TCP and writes to
//! real pipes.

mod backend;
mod http;
mod process;
mod snapshot;

use std::collections::BTreeMap;
use std::future::Future;
use std::io::Write;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use image::{CodeCache, Digest};
use runtimes::Catalog;
use telemetry::logs::{Events, Streams};
use telemetry::{LogOptions, LogStore};
use tempfile::TempDir;
use zip::write::SimpleFileOptions;

pub use backend::Memory;
pub use process::{Given, Place, Process, Script, Scripted};
pub use sandbox::Exit;
pub use snapshot::Saved;

use crate::spec::{CodeRef, EnvironmentSpec, InvokeRequest, LogSettings, VersionKey};
use crate::{LogFormat, Options, Parts, Worker};

/// How long a condition may take to come true before a test gives up.
pub const PATIENCE: Duration = Duration::from_secs(20);

/// A host and what it is made of.
pub struct Host {
    /// The worker under test.
    pub worker: Worker,
    /// Its sandboxes.
    pub backend: Arc<Memory>,
    /// Its log store.
    pub logs: LogStore,
    options: Options,
    dir: TempDir,
}

impl Host {
    /// A host on which every process does what `script` says; it learns from [`Process::name`] which one it is.
    pub fn new<F>(options: Options, script: impl Fn(Process) -> F + Send + Sync + 'static) -> Self
    where
        F: Future<Output = std::io::Result<Exit>> + Send + 'static,
    {
        Self::with(options, false, script)
    }

    /// The same with sandboxes that can be kept in snapshots.
    pub fn with_snapshots<F>(options: Options, script: impl Fn(Process) -> F + Send + Sync + 'static) -> Self
    where
        F: Future<Output = std::io::Result<Exit>> + Send + 'static,
    {
        Self::with(options, true, script)
    }

    fn with<F>(options: Options, snapshots: bool, script: impl Fn(Process) -> F + Send + Sync + 'static) -> Self
    where
        F: Future<Output = std::io::Result<Exit>> + Send + 'static,
    {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let script: Script = Arc::new(move |process| Box::pin(script(process)));
        let backend = Arc::new(Memory::new(script, snapshots));
        let logs = LogStore::open(dir.path().join("logs.db"), LogOptions::default()).expect("a log store");
        let worker = worker(&dir, &options, &backend, &logs);
        Self { worker, backend, logs, options, dir }
    }

    /// A worker as after a restart of the server: it knows only what is kept.
    pub fn restart(&mut self) {
        self.worker = worker(&self.dir, &self.options, &self.backend, &self.logs);
    }

    /// A function with a custom runtime, 128 MB and a timeout of ten seconds.
    pub fn spec(&self, name: &str) -> EnvironmentSpec {
        EnvironmentSpec {
            key: VersionKey(format!("{name}:1")),
            function_name: name.to_owned(),
            version: "$LATEST".to_owned(),
            function_arn: format!("arn:aws:lambda:us-east-1:000000000000:function:{name}"),
            account_id: "000000000000".to_owned(),
            region: "us-east-1".to_owned(),
            role: "arn:aws:iam::000000000000:role/r".to_owned(),
            runtime: "provided.al2023".to_owned(),
            runtime_version_arn: Some("arn:aws:lambda:us-east-1::runtime:0af1".to_owned()),
            handler: "handler".to_owned(),
            code: archive(self.dir.path(), &["bootstrap".to_owned()]),
            layers: vec![],
            environment: BTreeMap::new(),
            memory_mb: 128,
            timeout: Duration::from_secs(10),
            tmp_mb: 512,
            max_concurrency: 1,
            logging: LogSettings {
                group: format!("/aws/lambda/{name}"),
                custom_group: false,
                format: LogFormat::Text,
                application_level: None,
                system_level: None,
            },
            snap_start: None,
        }
    }

    /// The same with a layer that has these external extensions.
    pub fn spec_with_extensions(&self, name: &str, extensions: &[&str]) -> EnvironmentSpec {
        let files: Vec<String> = extensions.iter().map(|extension| format!("extensions/{extension}")).collect();
        EnvironmentSpec { layers: vec![archive(self.dir.path(), &files)], ..self.spec(name) }
    }

    /// The lines of a function's only log stream. Panics where there is not exactly one.
    pub async fn log(&self, name: &str) -> Vec<String> {
        let mut streams = self.streams(name).await;
        assert_eq!(streams.len(), 1, "log streams of {name}");
        streams.pop().unwrap_or_default()
    }

    /// The lines of a function, stream by stream.
    pub async fn streams(&self, name: &str) -> Vec<Vec<String>> {
        let group = format!("/aws/lambda/{name}");
        let (streams, _) = self.logs.describe_streams(&group, Streams::default()).await.unwrap_or_default();
        let mut all = Vec::new();
        for stream in streams {
            let request = Events { start_from_head: true, ..Events::default() };
            let page = self.logs.get_events(&group, &stream.name, request).await.expect("the stream is there");
            all.push(page.events.into_iter().map(|event| event.message).collect());
        }
        all
    }
}

fn worker(dir: &TempDir, options: &Options, backend: &Arc<Memory>, logs: &LogStore) -> Worker {
    let catalog_options = runtimes::Options { data_dir: dir.path().join("data"), ..runtimes::Options::default() };
    let parts = Parts {
        backend: Arc::clone(backend) as Arc<dyn sandbox::Backend>,
        catalog: Catalog::discover(&catalog_options),
        catalog_options,
        code: CodeCache::open(dir.path().join("code"), u64::MAX).expect("a code cache"),
        root_disks: crate::RootDisks::open(dir.path().join("disks")).expect("a directory of disks"),
        logs: logs.clone(),
        metrics: Arc::default(),
        credentials: Arc::new(|_| crate::Credentials::of_nobody()),
    };
    Worker::new(parts, options.clone())
}

/// An invocation with this id and payload.
pub fn request(id: &str, payload: &str) -> InvokeRequest {
    InvokeRequest {
        request_id: id.to_owned(),
        payload: payload.to_owned().into(),
        invoked_function_arn: "arn:aws:lambda:us-east-1:000000000000:function:f".to_owned(),
        trace_id: None,
        client_context: None,
        tail: false,
    }
}

/// Waits until `condition` holds; panics with `what` if it does not within [`PATIENCE`].
pub async fn eventually(what: &str, mut condition: impl FnMut() -> bool) {
    let until = Instant::now() + PATIENCE;
    while !condition() {
        assert!(Instant::now() < until, "never came true: {what}");
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

/// Replaces every number with two decimals by `N.NN`, and what is billed by `N`, so that a line can be compared.
pub fn without_times(line: &str) -> String {
    let mut words: Vec<String> = line.split(' ').map(str::to_owned).collect();
    for at in 0..words.len() {
        let is_time = words[at].split_once('.').is_some_and(|(whole, rest)| {
            rest.len() == 2 && whole.chars().chain(rest.chars()).all(|c| c.is_ascii_digit())
        });
        if is_time {
            words[at] = "N.NN".to_owned();
        } else if at > 1 && words[at - 2].ends_with("Billed") && words[at - 1] == "Duration:" {
            words[at] = "N".to_owned();
        }
    }
    words.join(" ")
}

/// A zip archive with these files in it.
fn archive(dir: &Path, files: &[String]) -> CodeRef {
    let mut writer = zip::ZipWriter::new(std::io::Cursor::new(Vec::new()));
    let options = SimpleFileOptions::default().unix_permissions(0o755);
    for file in files {
        writer.start_file(file, options).expect("a file name");
        writer.write_all(b"#!").expect("memory takes any write");
    }
    let bytes = writer.finish().expect("a complete archive").into_inner();
    let digest = Digest::of(&bytes).to_string();
    let path = dir.join(format!("{digest}.zip"));
    std::fs::write(&path, bytes).expect("the temporary directory is writable");
    CodeRef { digest, path }
}
