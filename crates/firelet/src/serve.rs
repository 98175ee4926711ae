//! `firelet serve`: builds everything, serves until told to stop, takes everything down.

use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use anyhow::Context;
use aws_client::logs::{Event, Writer};
use aws_client::{Client, Service};
use control_plane::objects::{NoObjects, Objects};
use control_plane::record::Timestamp;
use control_plane::roles::Roles;
use control_plane::sessions::{NewSession, Sessions};
use control_plane::{ControlPlane, Limits, Settings};
use frontend::{Deps, Frontend, S3Objects};
use runtimes::Catalog;
use sandbox::Backend;
use sandbox::host::Loss;
use sandbox::microvm::MicroVms;
use sandbox::namespace::{Namespace, PrestartMode};
use sandbox::net::{NetOptions, NetworkMode};
use sandbox::stock::Bounds;
use store::{Blobs, FileBlobs, SqliteMetadata};
use telemetry::metrics::Metrics;
use telemetry::{LogOptions, LogStore};
use tokio::signal::unix::{SignalKind, signal};
use worker::{Credentials, IssueCredentials, Worker};
use worker_manager::WorkerManager;

use crate::aws;
use crate::cli::{Auth, KeepAlive, LogFormat, Network, Prestart, ServeOptions};
use crate::config::Config;
use crate::isolation::{self, Chosen};
use crate::secrets::Secrets;

/// Bytes of log events that may wait for the Logs endpoint.
const MOST_WAITING_LOGS: usize = 32 << 20;

/// How long requests in flight may go on after the signal to stop.
const DRAIN: Duration = Duration::from_secs(10);

/// How long the credentials of an environment are good. They are never renewed, so no environment in constant use may
/// outlive them.
const FUNCTION_SESSION: Duration = Duration::from_secs(7 * 24 * 60 * 60);

/// The command.
pub async fn command(options: Box<ServeOptions>) -> anyhow::Result<ExitCode> {
    let config = Config::load(&options)?;
    if options.dump_config {
        print!("{}", toml::to_string(&config).context("the settings cannot be written as TOML")?);
        return Ok(ExitCode::SUCCESS);
    }
    log_to_stderr(config.log_format);
    let stop = stop_signal()?;
    let server = Server::build(&config).await?;
    server.announce(&config);
    server.run(stop).await?;
    Ok(ExitCode::SUCCESS)
}

/// A server that is ready to run.
pub struct Server {
    frontend: Frontend,
    workers: WorkerManager,
    logs: LogStore,
    log_writer: Option<Writer>,
    upstream: Option<Client>,
    isolation: String,
    losses: Vec<Loss>,
    runtimes: Vec<String>,
    url: String,
    /// How many access keys there are, where they are asked for.
    keys: Option<usize>,
}

impl Server {
    /// Opens the data directory and builds every room.
    pub async fn build(config: &Config) -> anyhow::Result<Self> {
        raise_file_limit();
        let data = &config.data_dir;
        std::fs::create_dir_all(data)
            .with_context(|| format!("could not make the data directory {}", data.display()))?;
        let secrets = Secrets::open(data)?;
        let sessions = Arc::new(Sessions::new(&secrets.session_key()?));
        let keys = (config.auth == Auth::Sigv4).then(|| secrets.ring()).transpose()?;
        let (chosen, isolation) = isolation::choose(config)?;
        // First, since it refuses a second server on this directory.
        let metadata = Arc::new(SqliteMetadata::open(data.join("metadata.db"))?);
        let blobs = Arc::new(FileBlobs::open(data.join("blobs"))?);
        let retention_days = (config.log_retention_days > 0).then_some(config.log_retention_days);
        let upstream = aws::client(config)?;
        let log_writer = upstream.as_ref().filter(|client| client.endpoints().get(Service::Logs).is_some());
        let log_writer = log_writer.map(|client| Writer::start(client.clone(), MOST_WAITING_LOGS));
        let mirror = log_writer.clone().map(mirror);
        let logs = LogOptions { retention_days, mirror, ..LogOptions::default() };
        let logs = LogStore::open(data.join("logs.db"), logs)?;
        let catalog = Catalog::discover(&config.runtimes());
        let mut runtimes: Vec<String> =
            catalog.list().iter().filter(|r| r.unavailable.is_none()).map(|r| r.serves.clone()).collect();
        runtimes.dedup();
        let objects: Arc<dyn Objects> = match &upstream {
            Some(client) => Arc::new(S3Objects::new(client.clone(), data)),
            None => Arc::new(NoObjects),
        };
        let settings = Settings {
            account_id: config.account_id.clone(),
            region: config.region.clone(),
            limits: Limits { concurrent_executions: config.account_concurrency, ..Limits::default() },
            objects,
        };
        let control_plane = ControlPlane::open(metadata, Arc::clone(&blobs) as Arc<dyn Blobs>, settings).await?;
        let credentials = credentials(control_plane.roles().clone(), Arc::clone(&sessions));
        let metrics = Arc::new(Metrics::new());
        let (worker, losses) = worker(config, chosen, catalog, logs.clone(), Arc::clone(&metrics), credentials)?;
        let workers = WorkerManager::new(
            worker,
            worker_manager::Options {
                idle_timeout: config.idle_timeout(),
                keep_alive: match config.keep_alive {
                    KeepAlive::Fixed => worker_manager::Policy::Fixed,
                    KeepAlive::Histogram => worker_manager::Policy::Histogram,
                },
                account_concurrency: config.account_concurrency,
                max_environments: config.max_environments,
                max_memory_mb: (config.max_memory_mib > 0).then_some(config.max_memory_mib),
                ..worker_manager::Options::default()
            },
        );
        let deps = Deps {
            control_plane,
            workers: workers.clone(),
            logs: logs.clone(),
            metrics,
            package_path: Arc::new(move |code| blobs.path(&code.digest)),
            keys: keys.clone(),
            sessions,
            upstream: upstream.clone(),
            log_writer: log_writer.clone(),
        };
        let listen = config.listen;
        let options = frontend::Options { listen, metrics: config.metrics_listen, drain: DRAIN };
        let frontend = match Frontend::bind(options, deps).await {
            Ok(frontend) => frontend,
            Err(error) => {
                workers.shutdown(Duration::ZERO).await;
                let hint = "is another server there? choose another address with --listen";
                return Err(error).with_context(|| format!("could not listen on {listen}: {hint}"));
            }
        };
        let url = format!("http://{}", frontend.local_addr().context("the listening socket has no address")?);
        let keys = keys.map(|keys| keys.len());
        Ok(Self { frontend, workers, logs, log_writer, upstream, isolation, losses, runtimes, url, keys })
    }

    /// Where it listens.
    pub fn url(&self) -> &str {
        &self.url
    }

    /// Says what was chosen and how to point tools at it.
    fn announce(&self, config: &Config) {
        eprintln!("firelet {}", env!("CARGO_PKG_VERSION"));
        eprintln!("  isolation  {}", self.isolation);
        eprintln!("  network    {}", network_name(config.network));
        eprintln!("  data       {}", config.data_dir.display());
        eprintln!("  account    {}, region {}", config.account_id, config.region);
        let runtimes =
            if self.runtimes.is_empty() { "none but provided.*".to_owned() } else { self.runtimes.join(", ") };
        eprintln!("  runtimes   {runtimes} (`firelet runtimes` has more)");
        if let Some(client) = &self.upstream {
            let signed = if client.has_credentials() { "signed" } else { "not signed: no credentials" };
            for (service, endpoint) in client.endpoints().iter() {
                eprintln!("  {:<10} at {endpoint}, {signed}", service.name());
            }
        }
        for loss in &self.losses {
            eprintln!("  lost       {}; {}", loss.what, loss.remedy);
        }
        match self.keys {
            Some(0) => eprintln!(
                "  auth       sigv4, and there is no access key yet: `firelet keys create --data-dir {}`",
                config.data_dir.display()
            ),
            Some(count) => eprintln!("  auth       sigv4, {count} access key{}", if count == 1 { "" } else { "s" }),
            None if !config.listen.ip().is_loopback() => eprintln!(
                "  WARNING    {} can be reached from other machines, and no request is authenticated",
                config.listen
            ),
            None => eprintln!("  auth       none: whoever reaches the port may do everything"),
        }
        println!("listening on {}", self.url);
        eprintln!("\nPoint tools at it:");
        eprintln!("  export AWS_ENDPOINT_URL={} AWS_DEFAULT_REGION={}", self.url, config.region);
        let credentials = if self.keys.is_some() { ["KEY", "SECRET"] } else { ["any", "any"] };
        eprintln!("  export AWS_ACCESS_KEY_ID={} AWS_SECRET_ACCESS_KEY={}", credentials[0], credentials[1]);
    }

    /// Serves until `stop` resolves, then ends every environment.
    pub async fn run(self, stop: impl Future<Output = ()>) -> anyhow::Result<()> {
        self.frontend.run(stop).await;
        self.workers.shutdown(DRAIN).await;
        self.logs.flush().await;
        if let Some(writer) = &self.log_writer {
            writer.finish(DRAIN).await;
        }
        tracing::info!("stopped");
        Ok(())
    }
}

/// Gives a copy of every log event to the writer.
fn mirror(writer: Writer) -> telemetry::logs::Mirror {
    Arc::new(move |group, stream, events| {
        let events = events.iter();
        let events = events.map(|event| Event { timestamp_ms: event.timestamp_ms, message: event.message.clone() });
        writer.append(group, stream, events);
    })
}

/// Gives environments a session of their function's role.
fn credentials(roles: Roles, sessions: Arc<Sessions>) -> IssueCredentials {
    Arc::new(move |spec| {
        let name = spec.role.rsplit('/').next().unwrap_or_default();
        let role = roles.get(name).ok().filter(|role| role.arn == spec.role);
        let new = NewSession {
            role: &spec.role,
            role_id: role.as_ref().map_or("", |role| &role.id),
            name: &spec.function_name,
            policy: None,
            duration: FUNCTION_SESSION,
        };
        match sessions.issue(&new, Timestamp::from(SystemTime::now())) {
            Ok(session) => Credentials {
                access_key_id: session.access_key_id,
                secret_access_key: session.secret_access_key,
                session_token: session.session_token,
                expires: SystemTime::now() + FUNCTION_SESSION,
            },
            Err(error) => {
                tracing::error!(function = spec.function_name, %error, "a function gets credentials of nobody");
                Credentials::of_nobody()
            }
        }
    })
}

/// The host of this process, and what it goes without on this machine.
pub fn worker(
    config: &Config,
    chosen: Chosen,
    catalog: Catalog,
    logs: LogStore,
    metrics: Arc<Metrics>,
    credentials: IssueCredentials,
) -> anyhow::Result<(Worker, Vec<Loss>)> {
    let data = &config.data_dir;
    let code = image::CodeCache::open(data.join("code"), config.code_cache_mib << 20)?;
    let root_disks = worker::RootDisks::open(data.join("disks"))?;
    let (backend, losses) = start_backend(config, chosen)?;
    let catalog_options = config.runtimes();
    let parts = worker::Parts { backend, catalog, catalog_options, code, root_disks, logs, metrics, credentials };
    let freeze_delay = Duration::from_millis(config.freeze_delay_ms);
    Ok((Worker::new(parts, worker::Options { freeze_delay, ..worker::Options::default() }), losses))
}

/// Starts the backend, and tells what it goes without on this host.
fn start_backend(config: &Config, chosen: Chosen) -> anyhow::Result<(Arc<dyn Backend>, Vec<Loss>)> {
    let subnet = config.nat.subnet.as_deref().map(str::parse).transpose();
    let net = NetOptions {
        subnet: subnet.context("nat.subnet is not a subnet")?,
        host_ports: config.nat.host_ports.clone(),
        ..NetOptions::default()
    };
    let network = match config.network {
        Network::Nat => NetworkMode::Nat,
        Network::Host => NetworkMode::Host,
        Network::Off => NetworkMode::Off,
    };
    match chosen {
        Chosen::Namespace => {
            let options = sandbox::namespace::Options::new(config.data_dir.join("tmp"));
            let prestart = match config.prestart {
                Prestart::Zygote => PrestartMode::Zygote,
                Prestart::Exec => PrestartMode::Exec,
                Prestart::Off => PrestartMode::Off,
            };
            let prepared = Bounds {
                count: config.prepared.count as usize,
                bytes: config.prepared.memory_mib.saturating_mul(1 << 20),
                patience: Duration::from_secs(config.prepared.patience_secs),
            };
            let options = sandbox::namespace::Options { network, net, prestart, prepared, ..options };
            let backend = Namespace::start(options)?;
            let losses = backend.losses().to_vec();
            Ok((Arc::new(backend), losses))
        }
        Chosen::MicroVm { kernel, agent } => {
            let options = sandbox::microvm::Options::new(&config.data_dir, kernel, agent);
            let backend = MicroVms::start(sandbox::microvm::Options { network, net, ..options })?;
            let losses = backend.losses();
            Ok((Arc::new(backend), losses))
        }
    }
}

fn network_name(network: Network) -> &'static str {
    match network {
        Network::Nat => "nat (outbound only)",
        Network::Host => "host (functions reach everything that listens on this host)",
        Network::Off => "off",
    }
}

/// Resolves at the first SIGINT or SIGTERM; a second one ends the process at once.
fn stop_signal() -> anyhow::Result<impl Future<Output = ()>> {
    let context = "could not listen for signals";
    let mut terminate = signal(SignalKind::terminate()).context(context)?;
    let mut interrupt = signal(SignalKind::interrupt()).context(context)?;
    Ok(async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
        tracing::info!("stopping; once more to stop at once");
        tokio::spawn(async move {
            tokio::select! {
                _ = terminate.recv() => {}
                _ = interrupt.recv() => {}
            }
            std::process::exit(130);
        });
    })
}

/// Each environment needs some descriptors here: sockets, pipes, control files.
fn raise_file_limit() {
    use rustix::process::{Resource, getrlimit, setrlimit};
    let mut limit = getrlimit(Resource::Nofile);
    limit.current = limit.maximum;
    if let Err(error) = setrlimit(Resource::Nofile, limit) {
        tracing::warn!(%error, "could not raise the limit of open files");
    }
}

/// The server's own log goes to standard error; `FIRELET_LOG` chooses what (`debug`, `worker=trace`).
pub fn log_to_stderr(format: LogFormat) {
    let filter = tracing_subscriber::EnvFilter::try_from_env("FIRELET_LOG")
        .unwrap_or_else(|_| tracing_subscriber::EnvFilter::new("info"));
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    match format {
        LogFormat::Text => builder.with_ansi(std::io::IsTerminal::is_terminal(&std::io::stderr())).init(),
        LogFormat::Json => builder.json().init(),
    }
}
