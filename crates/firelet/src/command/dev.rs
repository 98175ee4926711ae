//! `firelet dev`: a folder as a function, deployed again whenever something in it changes.

use std::io::{Cursor, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, bail};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use hyper::Method;
use notify::{RecursiveMode, Watcher};
use serde_json::{Map, Value, json};
use tokio::sync::mpsc;
use zip::write::SimpleFileOptions;

use super::logs::follow;
use crate::cli::{DevOptions, LogFormat};
use crate::client::{Client, encoded};
use crate::config::Config;
use crate::serve::{Server, log_to_stderr};

/// Changes come in bursts (an editor writes, renames, sets modes): one deployment for all.
const QUIET: Duration = Duration::from_millis(100);

/// The role of functions made here. Roles are not enforced.
const ROLE: &str = "arn:aws:iam::000000000000:role/firelet-dev";

/// Folders that are no part of a function.
const SKIPPED: [&str; 4] = [".git", "__pycache__", ".venv", ".firelet"];

pub async fn run(options: DevOptions) -> anyhow::Result<ExitCode> {
    let dir = options.dir.canonicalize().with_context(|| format!("{} is not there", options.dir.display()))?;
    if !dir.is_dir() {
        bail!("{} is not a folder", dir.display());
    }
    let function = Function::new(&dir, &options)?;
    let client = Client::new(&options.server.endpoint)?;
    if client.is_there().await {
        eprintln!("using the Firelet at {}", options.server.endpoint);
        develop(&client, &dir, &function, stop()).await?;
        return Ok(ExitCode::SUCCESS);
    }
    log_to_stderr(LogFormat::Text);
    let scratch = tempfile::Builder::new().prefix("firelet-").tempdir().context("could not make a directory")?;
    let data_dir = scratch.path().to_owned();
    // Added runtimes are kept with the usual data; functions of this session are not.
    let runtimes = Config::default().data_dir.join("runtimes");
    let runtime_dirs = if runtimes.is_dir() { vec![runtimes] } else { vec![] };
    let listen = options.server.endpoint.trim_start_matches("http://").trim_end_matches('/');
    let listen = listen.parse().unwrap_or_else(|_| Config::default().listen);
    let server = Server::build(&Config { listen, data_dir, runtime_dirs, ..Config::default() }).await?;
    let client = Client::new(server.url())?;
    eprintln!("no Firelet answers at {}, so this is one: {}", options.server.endpoint, server.url());
    let (stopped, stopping) = tokio::sync::oneshot::channel::<()>();
    let serving = tokio::spawn(server.run(async {
        let _ = stopping.await;
    }));
    let developed = develop(&client, &dir, &function, stop()).await;
    let _ = stopped.send(());
    serving.await.context("the server broke")??;
    developed?;
    Ok(ExitCode::SUCCESS)
}

async fn stop() {
    // Without a signal handler Ctrl-C ends the process, which is as well.
    if tokio::signal::ctrl_c().await.is_err() {
        std::future::pending::<()>().await;
    }
}

/// What the folder is deployed as.
#[derive(Debug, PartialEq, Eq)]
struct Function {
    name: String,
    runtime: String,
    handler: String,
    memory: u32,
    timeout: u32,
    env: Vec<(String, String)>,
}

impl Function {
    fn new(dir: &Path, options: &DevOptions) -> anyhow::Result<Self> {
        let guess = guess(dir);
        let missing = |what: &str| format!("no handler was found in {}; name it with --{what}", dir.display());
        let (runtime, handler) = match guess {
            Some((runtime, handler)) => {
                (options.runtime.clone().unwrap_or(runtime), options.handler.clone().unwrap_or(handler))
            }
            None => (
                options.runtime.clone().with_context(|| missing("runtime"))?,
                options.handler.clone().with_context(|| missing("handler"))?,
            ),
        };
        let env = options
            .env
            .iter()
            .map(|pair| pair.split_once('=').map(|(name, value)| (name.to_owned(), value.to_owned())))
            .collect::<Option<Vec<_>>>()
            .context("environment variables are given as --env NAME=VALUE")?;
        Ok(Self {
            name: options.name.clone().unwrap_or_else(|| function_name(dir)),
            runtime,
            handler,
            memory: options.memory,
            timeout: options.timeout,
            env,
        })
    }

    fn configuration(&self) -> Map<String, Value> {
        let variables: Map<String, Value> = self.env.iter().map(|(name, value)| (name.clone(), json!(value))).collect();
        let Value::Object(configuration) = json!({
            "Runtime": self.runtime,
            "Handler": self.handler,
            "Role": ROLE,
            "MemorySize": self.memory,
            "Timeout": self.timeout,
            "Environment": { "Variables": variables },
        }) else {
            unreachable!("the literal above is an object")
        };
        configuration
    }
}

/// Runtime and handler by what lies in the folder.
fn guess(dir: &Path) -> Option<(String, String)> {
    let is_there = |name: &str| dir.join(name).is_file();
    if is_there("bootstrap") {
        return Some(("provided.al2023".to_owned(), "bootstrap".to_owned()));
    }
    const CUSTOMARY: [(&str, &str, &str); 10] = [
        ("lambda_function.py", "python3.13", "lambda_function.lambda_handler"),
        ("app.py", "python3.13", "app.handler"),
        ("index.py", "python3.13", "index.handler"),
        ("main.py", "python3.13", "main.handler"),
        ("index.mjs", "nodejs22.x", "index.handler"),
        ("index.js", "nodejs22.x", "index.handler"),
        ("index.cjs", "nodejs22.x", "index.handler"),
        ("app.mjs", "nodejs22.x", "app.handler"),
        ("app.js", "nodejs22.x", "app.handler"),
        ("lambda_function.rb", "ruby3.4", "lambda_function.lambda_handler"),
    ];
    let (_, runtime, handler) = CUSTOMARY.iter().find(|(file, ..)| is_there(file))?;
    Some(((*runtime).to_owned(), (*handler).to_owned()))
}

/// The folder's name, as far as a function may have it.
fn function_name(dir: &Path) -> String {
    let name = dir.file_name().unwrap_or_default().to_string_lossy();
    let name: String =
        name.chars().map(|c| if c.is_ascii_alphanumeric() || c == '_' { c } else { '-' }).take(64).collect();
    if name.trim_matches('-').is_empty() { "function".to_owned() } else { name }
}

/// Deploys, prints the log, deploys again on each change, until `stop`.
async fn develop(
    client: &Client,
    dir: &Path,
    function: &Function,
    stop: impl Future<Output = ()>,
) -> anyhow::Result<()> {
    let (changed, mut changes) = mpsc::unbounded_channel();
    let root = dir.to_owned();
    let mut watcher = notify::recommended_watcher(move |event: notify::Result<notify::Event>| {
        if event.is_ok_and(|event| concerns(&root, &event)) {
            let _ = changed.send(());
        }
    })
    .context("the folder cannot be watched")?;
    watcher.watch(dir, RecursiveMode::Recursive).with_context(|| format!("could not watch {}", dir.display()))?;
    deploy(client, dir, function).await?;
    eprintln!(
        "{} runs as {} ({}); invoke it with: firelet invoke {} '{{}}'",
        dir.display(),
        function.name,
        function.runtime,
        function.name
    );
    let group = format!("/aws/lambda/{}", function.name);
    let log = follow(client, &group, |event| {
        let mut out = std::io::stdout();
        out.write_all(event["message"].as_str().unwrap_or_default().as_bytes())?;
        out.flush()?;
        Ok(())
    });
    tokio::pin!(log, stop);
    loop {
        tokio::select! {
            () = &mut stop => return Ok(()),
            ended = &mut log => return ended.context("the server went away"),
            Some(()) = changes.recv() => {
                while let Ok(Some(())) = tokio::time::timeout(QUIET, changes.recv()).await {}
                match deploy(client, dir, function).await {
                    Ok(()) => eprintln!("reloaded {}", function.name),
                    Err(error) => eprintln!("firelet: not reloaded: {error:#}"),
                }
            }
        }
    }
}

/// Whether an event changes what is deployed.
fn concerns(root: &Path, event: &notify::Event) -> bool {
    !event.kind.is_access()
        && event.paths.iter().any(|path| {
            let inside = path.strip_prefix(root).unwrap_or(path);
            !inside.components().any(|part| SKIPPED.iter().any(|skipped| part.as_os_str() == *skipped))
        })
}

/// Makes or updates the function.
async fn deploy(client: &Client, dir: &Path, function: &Function) -> anyhow::Result<()> {
    let code = STANDARD.encode(zip_folder(dir)?);
    let path = format!("/2015-03-31/functions/{}", encoded(&function.name));
    let known = client.send(Method::GET, &path, &[], "").await?;
    if known.head.status == hyper::StatusCode::NOT_FOUND {
        let mut input = function.configuration();
        input.insert("FunctionName".to_owned(), json!(function.name));
        input.insert("Code".to_owned(), json!({ "ZipFile": code }));
        send(client, Method::POST, "/2015-03-31/functions", &Value::Object(input)).await?;
        return settled(client, &path).await;
    }
    known.checked()?;
    send(client, Method::PUT, &format!("{path}/configuration"), &Value::Object(function.configuration())).await?;
    settled(client, &path).await?;
    send(client, Method::PUT, &format!("{path}/code"), &json!({ "ZipFile": code })).await?;
    settled(client, &path).await
}

async fn send(client: &Client, method: Method, path: &str, input: &Value) -> anyhow::Result<()> {
    client.send(method, path, &[("content-type", "application/json")], input.to_string()).await?.checked()?;
    Ok(())
}

/// Waits until the function is as it was told to be.
async fn settled(client: &Client, path: &str) -> anyhow::Result<()> {
    loop {
        let now = client.get(&format!("{path}/configuration")).await?;
        if now["State"] == "Failed" || now["LastUpdateStatus"] == "Failed" {
            let reason = now["StateReason"].as_str().or(now["LastUpdateStatusReason"].as_str());
            bail!("{}", reason.unwrap_or("the function failed"));
        }
        if now["State"] == "Active" && now["LastUpdateStatus"] != "InProgress" {
            return Ok(());
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// The folder as a deployment package, with its files' modes.
fn zip_folder(dir: &Path) -> anyhow::Result<Vec<u8>> {
    let mut archive = zip::ZipWriter::new(Cursor::new(Vec::new()));
    let mut pending: Vec<PathBuf> = vec![dir.to_owned()];
    while let Some(folder) = pending.pop() {
        let mut entries = std::fs::read_dir(&folder)
            .and_then(|entries| entries.collect::<Result<Vec<_>, _>>())
            .with_context(|| format!("could not list {}", folder.display()))?;
        entries.sort_by_key(std::fs::DirEntry::file_name);
        for entry in entries {
            let path = entry.path();
            if SKIPPED.iter().any(|skipped| entry.file_name() == *skipped) {
                continue;
            }
            let metadata = std::fs::metadata(&path).with_context(|| format!("could not examine {}", path.display()))?;
            if metadata.is_dir() {
                pending.push(path);
                continue;
            }
            let inside = path.strip_prefix(dir).unwrap_or(&path).to_string_lossy().into_owned();
            let mode = std::os::unix::fs::PermissionsExt::mode(&metadata.permissions());
            let content = std::fs::read(&path).with_context(|| format!("could not read {}", path.display()))?;
            // Readable by the function's user, which owns none of it.
            archive.start_file(inside, SimpleFileOptions::default().unix_permissions(mode | 0o444))?;
            archive.write_all(&content)?;
        }
    }
    Ok(archive.finish().context("could not finish the package")?.into_inner())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn runtime_and_handler_follow_from_the_files() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(guess(dir.path()), None);
        std::fs::write(dir.path().join("app.py"), "").unwrap();
        assert_eq!(guess(dir.path()), Some(("python3.13".to_owned(), "app.handler".to_owned())));
        std::fs::write(dir.path().join("bootstrap"), "").unwrap();
        assert_eq!(guess(dir.path()).unwrap().0, "provided.al2023");
    }

    #[test]
    fn a_function_takes_the_name_of_its_folder_as_far_as_it_may() {
        assert_eq!(function_name(Path::new("/x/My App.2")), "My-App-2");
        assert_eq!(function_name(Path::new("/")), "function");
        assert_eq!(function_name(Path::new("/x/.")), "x");
    }

    #[test]
    fn what_is_no_code_neither_travels_nor_reloads() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join(".git")).unwrap();
        std::fs::write(dir.path().join(".git/HEAD"), "x").unwrap();
        std::fs::write(dir.path().join("app.py"), "x").unwrap();
        let archive = zip::ZipArchive::new(Cursor::new(zip_folder(dir.path()).unwrap())).unwrap();
        let names: Vec<_> = archive.file_names().map(Result::unwrap).collect();
        assert_eq!(names, ["app.py"]);
        let at = |path: &str| notify::Event::new(notify::EventKind::Any).add_path(dir.path().join(path));
        assert!(concerns(dir.path(), &at("app.py")));
        assert!(!concerns(dir.path(), &at(".git/index")));
    }
}
