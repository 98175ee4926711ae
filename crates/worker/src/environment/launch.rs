//! From a specification to a sandbox in which the runtime can be started.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;

use runtimes::{Language, Resolved, Waits};
use sandbox::{
    Bind, CreateError, Prestart, Prestarts, Process, ProcessSpec, Restored, RootFs, Sandbox, SandboxSpec, Service,
};
use telemetry::lines::InitType;
use tokio::sync::mpsc;

use super::api::{Api, Served};
use super::compile;
use crate::host::{CodeInPlace, ColdStart, Inner, StartError, chain};
use crate::lifecycle::Failure;
use crate::snapshots::FunctionSnapshot;
use crate::spec::EnvironmentSpec;
use crate::variables::{self, Access, Particulars};

/// Where the Runtime API listens inside a sandbox that has its own network.
const RUNTIME_API: SocketAddrV4 = SocketAddrV4::new(Ipv4Addr::LOCALHOST, 9001);

/// Memory that buys one full processor, in MB.
const MEMORY_OF_ONE_CPU_MB: u64 = 1_769;

/// Most processors of a function.
const MAX_PROCESSORS: u64 = 6;

/// What a first initialization gets at least, in thousandths of a processor: Lambda lends small functions the same.
const INIT_CPU_MILLIS: u32 = 2_000;

/// The variable that tells managed runtimes where to write log frames.
const LOG_FD_VARIABLE: &str = "_LAMBDA_TELEMETRY_LOG_FD";

/// The variable that names a wrapper around the runtime's command.
const WRAPPER_VARIABLE: &str = "AWS_LAMBDA_EXEC_WRAPPER";

/// Everything an environment has before its first process.
pub(super) struct Launched {
    pub(super) sandbox: Box<dyn Sandbox>,
    pub(super) api: Api,
    pub(super) api_events: mpsc::UnboundedReceiver<runtime_api::Event>,
    pub(super) resolved: Arc<Resolved>,
    /// How to start the runtime, or why that cannot be.
    pub(super) runtime: Result<ProcessSpec, Failure>,
    /// The external extensions by name, in the order of their start.
    pub(super) extensions: Vec<(String, ProcessSpec)>,
    /// Code and layers, kept from eviction.
    pub(super) _code: CodeInPlace,
    pub(super) timing: ColdStart,
    /// What goes on in it, where it comes out of a snapshot.
    pub(super) revived: Option<Revived>,
    /// Whether it is to be kept in a snapshot, or comes out of one.
    pub(super) uses_endpoint: bool,
    /// What its processes ask for credentials with, where they have the endpoint from this launch.
    pub(super) token: Option<String>,
}

/// What a sandbox brings along out of a snapshot.
pub(super) struct Revived {
    /// When the restore began.
    pub(super) began: Instant,
    /// Whether the runtime waits in `restore/next`.
    pub(super) hooks: bool,
    /// The extensions by name, and without one the runtime.
    pub(super) processes: Vec<(Option<String>, Process)>,
}

/// Makes the sandbox of an environment.
pub(super) async fn launch(
    host: &Arc<Inner>,
    spec: &Arc<EnvironmentSpec>,
    sandbox_id: String,
    log_stream: &str,
    initialization_type: InitType,
) -> Result<Launched, StartError> {
    let began = Instant::now();
    let resolved = host.resolve(&spec.runtime).await?;
    let to_be_kept = initialization_type == InitType::SnapStart;
    let mut code = host.code_in_place(spec, Some(resolved.as_ref()).filter(|_| !to_be_kept)).await?;
    compile::soon(host, spec, &resolved, std::mem::take(&mut code.uncompiled));
    let code_done = Instant::now();
    let sandbox_spec = SandboxSpec {
        id: sandbox_id,
        mounts: mounts(&code),
        tmp_bytes: u64::from(spec.tmp_mb) << 20,
        prestart: prestart(host, &resolved, spec.memory_mb, &spec.environment).filter(|_| !code.libraries),
        keep: to_be_kept,
        ..common(host, &resolved, spec.memory_mb).await?
    };
    let mut sandbox = host.backend.create(sandbox_spec).await.map_err(not_made)?;
    let token = to_be_kept.then(random_token);
    let options = options(host, spec, token.clone());
    let Served { api, events, address } = Api::serve(sandbox.take_service(), options)?;
    let address = address.unwrap_or_else(|| RUNTIME_API.to_string());
    let credentials = (host.credentials)(spec);
    let access = match &token {
        Some(token) => {
            api.set_credentials(Some(credentials.into()));
            Access::Endpoint(token)
        }
        None => Access::Keys(&credentials),
    };
    let concurrency = host.concurrency(spec);
    let own = Particulars { runtime_api: &address, log_stream, initialization_type, concurrency, access };
    let env = variables::for_runtime(spec, &resolved, own);
    let extension_env = variables::for_extension(&env);
    let extensions = code.extensions.iter().map(|name| {
        let process = ProcessSpec {
            argv: vec![format!("/opt/extensions/{name}")],
            env: extension_env.clone(),
            cwd: PathBuf::from("/"),
            log_fd_env: None,
        };
        (name.clone(), process)
    });
    let extensions = extensions.collect();
    let timing = ColdStart { code_us: micros(code_done - began), sandbox_us: micros(code_done.elapsed()), init_us: 0 };
    Ok(Launched {
        runtime: runtime_process(spec, &resolved, &code, env),
        extensions,
        sandbox,
        api,
        api_events: events,
        resolved,
        _code: code,
        timing,
        revived: None,
        uses_endpoint: to_be_kept,
        token,
    })
}

/// What the Runtime API of an environment knows of its function. `token`: of one that is to be kept, or comes out of a snapshot.
fn options(host: &Inner, spec: &EnvironmentSpec, token: Option<String>) -> runtime_api::Options {
    let concurrency = host.concurrency(spec);
    runtime_api::Options {
        max_concurrency: concurrency as usize,
        max_connections: runtime_api::Options::default().max_connections + concurrency as usize,
        snapshot: token.is_some(),
        credentials_token: token,
        function_name: spec.function_name.clone(),
        function_version: spec.version.clone(),
        handler: spec.handler.clone(),
        account_id: spec.account_id.clone(),
        ..runtime_api::Options::default()
    }
}

/// Makes a sandbox that goes on from a snapshot of the version.
pub(super) async fn restore(
    host: &Arc<Inner>,
    spec: &Arc<EnvironmentSpec>,
    sandbox_id: String,
    from: &FunctionSnapshot,
) -> Result<Launched, StartError> {
    let began = Instant::now();
    let resolved = host.resolve(&spec.runtime).await?;
    // What is mounted in the snapshot, not what may have been compiled of it since.
    let code = host.code_in_place(spec, None).await?;
    let code_done = Instant::now();
    let sandbox_spec = SandboxSpec {
        id: sandbox_id,
        mounts: mounts(&code),
        tmp_bytes: u64::from(spec.tmp_mb) << 20,
        // A machine has all of its processes; elsewhere one that waits goes on from the snapshot, whatever the function's variables.
        prestart: prestart(host, &resolved, spec.memory_mb, &BTreeMap::new()).filter(|_| !host.backend.takes_images()),
        ..common(host, &resolved, spec.memory_mb).await?
    };
    let Restored { mut sandbox, mut processes } = from.snapshot.restore(sandbox_spec).await.map_err(not_made)?;
    let (api, api_events) = match sandbox.take_service() {
        Some(service @ Service::Host(_)) => {
            let options = options(host, spec, from.about.token().map(str::to_owned));
            let Served { api, mut events, .. } = Api::serve(Some(service), options)?;
            asked_again(host, &mut events, &mut processes).await?;
            (api, events)
        }
        service => Api::attach(service)?,
    };
    let role = |process: Process| Some((from.about.role(process.id)?.map(str::to_owned), process));
    let processes = processes.into_iter().filter_map(role).collect();
    let timing = ColdStart { code_us: micros(code_done - began), sandbox_us: micros(code_done.elapsed()), init_us: 0 };
    let message = "an environment out of a snapshot starts no processes".to_owned();
    Ok(Launched {
        runtime: Err(Failure { error_type: "Sandbox.Failure".to_owned(), posted: None, message }),
        extensions: vec![],
        sandbox,
        api,
        api_events,
        resolved,
        _code: code,
        timing,
        revived: Some(Revived { began, hooks: from.about.hooks, processes }),
        uses_endpoint: true,
        token: None,
    })
}

/// Waits until a runtime that goes on from a snapshot has asked `restore/next` once more, of an API that has not heard it the first time.
async fn asked_again(
    host: &Inner,
    events: &mut mpsc::UnboundedReceiver<runtime_api::Event>,
    processes: &mut [Process],
) -> Result<(), StartError> {
    let failed = |how: &str| StartError::Sandbox(format!("the runtime does not go on from its snapshot: {how}"));
    let runtime = processes.first_mut().ok_or_else(|| failed("it is not there"))?;
    let asked = async {
        tokio::select! {
            biased;
            event = events.recv() => match event {
                Some(runtime_api::Event::RestoreReady) => Ok(()),
                _ => Err(failed("it has something else in mind")),
            },
            _ = &mut runtime.exit => Err(failed("it has ended")),
        }
    };
    let late = |_| failed("it takes too long");
    tokio::time::timeout(host.options.restore_timeout, asked).await.map_err(late)?
}

/// See [`super::can_be_kept`].
pub(super) async fn can_be_kept(host: &Arc<Inner>, spec: &EnvironmentSpec) -> bool {
    if host.backend.keeps_everything() {
        return true;
    }
    let resolved = host.resolve(&spec.runtime).await;
    let prestart = resolved.ok().and_then(|resolved| prestart(host, &resolved, spec.memory_mb, &spec.environment));
    prestart.is_some_and(|prestart| prestart.clonable)
}

/// See [`super::root_name`].
pub(super) async fn root_name(host: &Arc<Inner>, resolved: &Resolved) -> Result<Option<String>, StartError> {
    let image = host.root_image(&root(resolved)).await?;
    Ok(image.and_then(|image| Some(image.file_name()?.to_string_lossy().into_owned())))
}

/// What the endpoint of credentials asks for.
fn random_token() -> String {
    format!("{}{}", uuid::Uuid::new_v4().simple(), uuid::Uuid::new_v4().simple())
}

/// Has the backend make ready what sandboxes of a runtime with so much memory have in common.
pub(super) async fn prepare(host: &Arc<Inner>, runtime: &str, memory_mb: u32) -> Result<(), StartError> {
    let resolved = host.resolve(runtime).await?;
    let spec = common(host, &resolved, memory_mb).await?;
    host.backend.prepare(&spec).await.map_err(not_made)
}

/// A sandbox of a runtime, without anything of a function.
pub(super) async fn common(host: &Arc<Inner>, resolved: &Resolved, memory_mb: u32) -> Result<SandboxSpec, StartError> {
    let root = root(resolved);
    Ok(SandboxSpec {
        id: String::new(),
        root_image: host.root_image(&root).await?,
        root,
        mounts: vec![],
        tmp_bytes: 0,
        memory_bytes: u64::from(memory_mb) << 20,
        cpu_millis: cpu_millis(memory_mb).max(INIT_CPU_MILLIS),
        processors: processors(memory_mb),
        max_tasks: host.options.max_tasks,
        listen: vec![RUNTIME_API],
        prestart: prestart(host, resolved, memory_mb, &BTreeMap::new()),
        keep: false,
    })
}

pub(super) fn not_made(error: CreateError) -> StartError {
    match error {
        CreateError::NoRoom(_) => StartError::NoRoom(chain(&error)),
        CreateError::Step { .. } | CreateError::SupervisorGone => StartError::Sandbox(chain(&error)),
    }
}

/// The runtime's root, which is the same for all functions of it.
fn root(resolved: &Resolved) -> RootFs {
    let plan = resolved.root.clone();
    let binds = plan.binds.into_iter().map(|(source, target)| Bind { source, target }).collect();
    RootFs { binds, symlinks: plan.symlinks, files: plan.files, dirs: plan.dirs, programs: plan.programs }
}

/// The function's code and layers.
fn mounts(code: &CodeInPlace) -> Vec<Bind> {
    let (task, opt) = code.sources();
    let task = Bind { source: task.to_owned(), target: PathBuf::from("/var/task") };
    let opt = opt.map(|opt| Bind { source: opt.to_owned(), target: PathBuf::from("/opt") });
    std::iter::once(task).chain(opt).collect()
}

fn runtime_process(
    spec: &EnvironmentSpec,
    resolved: &Resolved,
    code: &CodeInPlace,
    env: Vec<(String, String)>,
) -> Result<ProcessSpec, Failure> {
    let mut argv = resolved.command.clone();
    if resolved.language == Language::Provided {
        let bootstrap = code.bootstrap.ok_or_else(|| Failure {
            error_type: "Runtime.InvalidEntrypoint".to_owned(),
            posted: None,
            message: format!("Couldn't find valid bootstrap(s): [{}]", Resolved::PROVIDED_BOOTSTRAPS.join(" ")),
        })?;
        argv = vec![bootstrap.to_owned()];
    }
    if let Some(wrapper) = spec.environment.get(WRAPPER_VARIABLE).filter(|_| resolved.wrapper_allowed) {
        argv.insert(0, wrapper.clone());
    }
    let log_fd_env = resolved.log_fd.then(|| LOG_FD_VARIABLE.to_owned());
    Ok(ProcessSpec { argv, env, cwd: PathBuf::from("/var/task"), log_fd_env })
}

/// The runtime's process as it can be started for any function of the runtime; none where this function would find it
/// started otherwise than its own variables ask for, and where the backend has no use for it.
fn prestart(host: &Inner, resolved: &Resolved, memory_mb: u32, own: &BTreeMap<String, String>) -> Option<Prestart> {
    let clonable = match (host.backend.prestarts(), resolved.waits) {
        (Prestarts::No, _) | (_, Waits::No) | (Prestarts::Cloned, Waits::Alone) => return None,
        (Prestarts::Alone, Waits::Alone) => false,
        (Prestarts::Alone | Prestarts::Cloned, Waits::Cloned) => true,
    };
    let env = variables::before_the_function(resolved, memory_mb);
    let wrapped = resolved.wrapper_allowed && own.contains_key(WRAPPER_VARIABLE);
    if wrapped || variables::matter_at_start(own, &env) {
        return None;
    }
    let log_fd_env = resolved.log_fd.then(|| LOG_FD_VARIABLE.to_owned());
    // A JVM keeps the directory that it was started in for its relative paths; the mount point is there before the code.
    let cwd = PathBuf::from(if resolved.language == Language::Java { "/var/task" } else { "/" });
    let process = ProcessSpec { argv: resolved.command.clone(), env, cwd, log_fd_env };
    Some(Prestart { process, clonable })
}

/// The processors that come with so much memory.
fn processors(memory_mb: u32) -> u32 {
    u64::from(memory_mb).div_ceil(MEMORY_OF_ONE_CPU_MB).clamp(1, MAX_PROCESSORS) as u32
}

/// The share of a processor, in thousandths, that comes with so much memory.
pub(super) fn cpu_millis(memory_mb: u32) -> u32 {
    u32::try_from(u64::from(memory_mb) * 1_000 / MEMORY_OF_ONE_CPU_MB).unwrap_or(u32::MAX).max(1)
}

pub(super) fn micros(duration: std::time::Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn processor_time_is_in_proportion_to_memory() {
        assert_eq!(cpu_millis(1_769), 1_000);
        assert_eq!(cpu_millis(128), 72);
        assert_eq!(cpu_millis(10_240), 5_788);
        assert_eq!([128, 1_769, 1_770, 3_008, 10_240].map(processors), [1, 1, 2, 2, 6]);
    }
}
