//! The server's settings: defaults, file, flags, in this order.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, bail};
use serde::{Deserialize, Serialize};

use crate::aws::{self, AwsSettings, EndpointSettings};
use crate::cli::{Auth, Isolation, KeepAlive, LogFormat, Network, Prestart, ServeOptions};

/// Everything that `firelet serve` can be told. Unknown keys in a file are refused.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// Address and port to serve on; port 0 takes any free one. Default: 127.0.0.1:9000.
    pub listen: SocketAddr,
    /// Another address and port, which answers `GET /metrics` to everybody and nothing else. Default: none.
    pub metrics_listen: Option<SocketAddr>,
    /// Who may use the API. Default: none.
    pub auth: Auth,
    /// Listen beyond this machine although `auth` is none. Default: false.
    pub allow_unauthenticated: bool,
    /// Where functions, code and logs are kept. Default: /var/lib/firelet as root, else ~/.local/share/firelet.
    pub data_dir: PathBuf,
    /// Where execution environments run. Default: auto.
    pub isolation: Isolation,
    /// Whether runtimes are started before a function needs them, with namespaces. Default: zygote.
    pub prestart: Prestart,
    /// How many such sandboxes are kept.
    pub prepared: Prepared,
    /// What network functions have. Default: nat as root, else host.
    pub network: Network,
    /// How the server's own log is written. Default: text.
    pub log_format: LogFormat,
    /// Twelve digits: the account in every ARN. Default: AWS_ACCOUNT_ID of the environment, else 000000000000.
    pub account_id: String,
    /// The region in every ARN. Default: AWS_REGION or AWS_DEFAULT_REGION of the environment, else us-east-1.
    pub region: String,
    /// Refuse a runtime whose exact version is not installed. Default: false.
    pub strict_runtimes: bool,
    /// Further directories with language runtimes. Default: none.
    pub runtime_dirs: Vec<PathBuf>,
    /// How long an idle environment is kept, in seconds. Default: 600.
    pub idle_timeout_secs: u64,
    /// Whether it is always kept so long, or by how its version's environments were used before. Default: fixed.
    pub keep_alive: KeepAlive,
    /// How long after an invocation an environment is frozen, in milliseconds. Default: 10.
    pub freeze_delay_ms: u64,
    /// Invocations in flight over all functions. Default: 1,000.
    pub account_concurrency: u32,
    /// Environments that this host may hold. Default: 1,000.
    pub max_environments: u32,
    /// Memory that may be promised to all environments together, in MiB; 0 is no limit, since few use all that they may.
    /// Default: 0.
    pub max_memory_mib: u64,
    /// Disk space for unpacked code that is not in use, in MiB. Default: 10,240.
    pub code_cache_mib: u64,
    /// Days that log events are kept where a group says nothing else; 0 keeps them for ever. Default: 0.
    pub log_retention_days: u32,
    /// Address translation for functions.
    pub nat: Nat,
    /// What microVMs are made of.
    pub microvm: MicroVm,
    /// Services that are kept elsewhere: `s3`, `sqs`, `sns`, `kinesis`, `dynamodb_streams`, `logs`, `iam`, `sts`, `ecr`. A URL,
    /// `"aws"` for AWS itself, or `""` for none. Default: AWS's variables, such as AWS_ENDPOINT_URL_S3.
    pub endpoints: EndpointSettings,
    /// With what these are called.
    pub aws: AwsSettings,
}

/// Settings of `isolation = "microvm"`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct MicroVm {
    /// The guest's kernel, a vmlinux. `scripts/guest-kernel` makes one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub kernel: Option<PathBuf>,
    /// The guest's agent, a static program. `scripts/guest` makes it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub agent: Option<PathBuf>,
}

/// Sandboxes that are kept prepared: as many of each runtime as cold starts ask for, within these bounds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Prepared {
    /// Most of all runtimes together; 0 is as good as `prestart = "off"`. Default: 16.
    pub count: u32,
    /// Most memory that they may use together, in MiB. Default: 1,024.
    pub memory_mib: u64,
    /// After how many seconds without a cold start fewer are kept. Default: 600.
    pub patience_secs: u64,
}

impl Default for Prepared {
    fn default() -> Self {
        Self { count: 16, memory_mib: 1_024, patience_secs: 600 }
    }
}

/// Settings of `network = "nat"`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Nat {
    /// Private subnet, such as 10.200.0.0/16. Default: the first that clashes with nothing on this host.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub subnet: Option<String>,
    /// TCP ports of this host that functions may reach at the gateway's address. Default: none.
    pub host_ports: Vec<u16>,
}

impl Default for Config {
    fn default() -> Self {
        let root = rustix::process::geteuid().is_root();
        Self {
            listen: SocketAddr::from(([127, 0, 0, 1], 9000)),
            metrics_listen: None,
            auth: Auth::None,
            allow_unauthenticated: false,
            data_dir: default_data_dir(),
            isolation: Isolation::Auto,
            prestart: Prestart::Zygote,
            prepared: Prepared::default(),
            network: if root { Network::Nat } else { Network::Host },
            log_format: LogFormat::Text,
            account_id: "000000000000".to_owned(),
            region: "us-east-1".to_owned(),
            strict_runtimes: false,
            runtime_dirs: vec![],
            idle_timeout_secs: 600,
            keep_alive: KeepAlive::Fixed,
            freeze_delay_ms: 10,
            account_concurrency: 1_000,
            max_environments: 1_000,
            max_memory_mib: 0,
            code_cache_mib: 10 * 1024,
            log_retention_days: 0,
            nat: Nat::default(),
            microvm: MicroVm::default(),
            endpoints: EndpointSettings::new(),
            aws: AwsSettings::default(),
        }
    }
}

/// `/var/lib/firelet` as root, else the user's own data directory.
pub fn default_data_dir() -> PathBuf {
    if rustix::process::geteuid().is_root() {
        return PathBuf::from("/var/lib/firelet");
    }
    let home = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    home("XDG_DATA_HOME")
        .or_else(|| home("HOME").map(|home| home.join(".local/share")))
        .unwrap_or_else(|| PathBuf::from("."))
        .join("firelet")
}

impl Config {
    /// The settings in force for a command line.
    pub fn load(options: &ServeOptions) -> anyhow::Result<Self> {
        let mut config = match &options.config {
            Some(path) => Self::read(path, aws::variable)?,
            None => Self::from_toml("", aws::variable)?,
        };
        config.apply(options);
        config.make_absolute()?;
        config.check()?;
        Ok(config)
    }

    fn read(path: &Path, look: impl Fn(&str) -> Option<String>) -> anyhow::Result<Self> {
        let text = std::fs::read_to_string(path).with_context(|| format!("could not read {}", path.display()))?;
        Self::from_toml(&text, look).with_context(|| format!("{} is not a valid configuration", path.display()))
    }

    /// What the text leaves open of region and account is as AWS's variables say.
    fn from_toml(text: &str, look: impl Fn(&str) -> Option<String>) -> anyhow::Result<Self> {
        let mut config: Self = toml::from_str(text)?;
        let said: toml::Table = toml::from_str(text)?;
        let (region, account_id) = aws::realm(look);
        if let Some(region) = region.filter(|_| !said.contains_key("region")) {
            config.region = region;
        }
        if let Some(account_id) = account_id.filter(|_| !said.contains_key("account_id")) {
            config.account_id = account_id;
        }
        Ok(config)
    }

    fn apply(&mut self, options: &ServeOptions) {
        fn set<T: Clone>(setting: &mut T, flag: Option<&T>) {
            if let Some(value) = flag {
                setting.clone_from(value);
            }
        }
        set(&mut self.listen, options.listen.as_ref());
        self.metrics_listen = options.metrics_listen.or(self.metrics_listen);
        set(&mut self.auth, options.auth.as_ref());
        self.allow_unauthenticated |= options.allow_unauthenticated;
        set(&mut self.data_dir, options.data_dir.as_ref());
        set(&mut self.isolation, options.isolation.as_ref());
        set(&mut self.prestart, options.prestart.as_ref());
        set(&mut self.network, options.network.as_ref());
        set(&mut self.log_format, options.log_format.as_ref());
        set(&mut self.account_id, options.account_id.as_ref());
        set(&mut self.region, options.region.as_ref());
        let given = |own: &mut Option<PathBuf>, flag: &Option<PathBuf>| *own = flag.clone().or(own.take());
        given(&mut self.microvm.kernel, &options.guest.guest_kernel);
        given(&mut self.microvm.agent, &options.guest.guest_agent);
        set(&mut self.idle_timeout_secs, options.idle_timeout_secs.as_ref());
        set(&mut self.keep_alive, options.keep_alive.as_ref());
        self.strict_runtimes |= options.strict_runtimes;
        self.runtime_dirs.extend(options.runtime_dir.iter().cloned());
    }

    /// Sandboxes are made by processes that work in directories of their own.
    fn make_absolute(&mut self) -> anyhow::Result<()> {
        for path in [&mut self.data_dir].into_iter().chain(&mut self.runtime_dirs) {
            *path = std::path::absolute(&*path).with_context(|| format!("no path: {}", path.display()))?;
        }
        Ok(())
    }

    fn check(&self) -> anyhow::Result<()> {
        if self.account_id.len() != 12 || !self.account_id.bytes().all(|byte| byte.is_ascii_digit()) {
            bail!("the account id must have twelve digits, not {:?}", self.account_id);
        }
        let region_like =
            |part: &str| !part.is_empty() && part.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit());
        if self.region.split('-').count() < 3 || !self.region.split('-').all(region_like) {
            bail!("the region must look like us-east-1, not {:?}", self.region);
        }
        if !self.listen.ip().is_loopback() && self.auth == Auth::None && !self.allow_unauthenticated {
            bail!(
                "on {} other machines could run code here without authentication; use --auth sigv4 with a key of \
                 `firelet keys create`, or say --allow-unauthenticated as well",
                self.listen
            );
        }
        if self.prepared.patience_secs == 0 {
            bail!("prepared.patience_secs must be at least one second");
        }
        if self.idle_timeout_secs == 0 {
            bail!("the idle timeout must be at least one second");
        }
        Ok(())
    }

    /// How long an idle environment is kept.
    pub fn idle_timeout(&self) -> Duration {
        Duration::from_secs(self.idle_timeout_secs)
    }

    /// Where to look for runtimes.
    pub fn runtimes(&self) -> runtimes::Options {
        runtimes::Options {
            dirs: self.runtime_dirs.clone(),
            data_dir: self.data_dir.clone(),
            strict: self.strict_runtimes,
        }
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;
    use crate::cli::{Cli, Command};

    fn options(arguments: &[&str]) -> ServeOptions {
        let line = ["firelet", "serve"].iter().chain(arguments);
        match Cli::try_parse_from(line).unwrap().command {
            Command::Serve(options) => *options,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn flags_override_the_file_and_the_file_overrides_the_defaults() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("firelet.toml");
        std::fs::write(&file, "region = \"eu-west-1\"\naccount_id = \"123456789012\"\n[nat]\nhost_ports = [5432]\n")
            .unwrap();
        let config = Config::load(&options(&["--config", file.to_str().unwrap(), "--region", "eu-central-1"])).unwrap();
        assert_eq!(config.region, "eu-central-1");
        assert_eq!(config.account_id, "123456789012");
        assert_eq!(config.nat.host_ports, [5432]);
        assert_eq!(config.idle_timeout_secs, 600);
    }

    #[test]
    fn region_and_account_of_the_environment_stand_behind_the_file() {
        let look = |name: &str| match name {
            "AWS_DEFAULT_REGION" => Some("eu-west-1".to_owned()),
            "AWS_ACCOUNT_ID" => Some("111122223333".to_owned()),
            _ => None,
        };
        let config = Config::from_toml("", look).unwrap();
        assert_eq!((config.region.as_str(), config.account_id.as_str()), ("eu-west-1", "111122223333"));
        let config = Config::from_toml("region = 'us-west-2'", look).unwrap();
        assert_eq!((config.region.as_str(), config.account_id.as_str()), ("us-west-2", "111122223333"));
    }

    #[test]
    fn endpoints_have_the_names_of_services() {
        let config = Config::from_toml("[endpoints]\ns3 = 'http://127.0.0.1:1'\nlogs = 'aws'", |_| None).unwrap();
        assert_eq!(config.endpoints[&aws_client::Service::S3], "http://127.0.0.1:1");
        let error = Config::from_toml("[endpoints]\nsimple_storage = 'x'", |_| None).unwrap_err();
        assert!(format!("{error:#}").contains("simple_storage"), "{error:#}");
    }

    #[test]
    fn an_unknown_key_is_refused_by_name() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("firelet.toml");
        std::fs::write(&file, "regoin = \"eu-west-1\"\n").unwrap();
        let error = Config::load(&options(&["--config", file.to_str().unwrap()])).unwrap_err();
        assert!(format!("{error:#}").contains("regoin"), "{error:#}");
    }

    #[test]
    fn paths_do_not_depend_on_where_the_server_was_started() {
        let config = Config::load(&options(&["--data-dir", "data", "--runtime-dir", "runtimes"])).unwrap();
        let here = std::env::current_dir().unwrap();
        assert_eq!((config.data_dir, config.runtime_dirs), (here.join("data"), vec![here.join("runtimes")]));
    }

    #[test]
    fn what_is_dumped_can_be_read_back() {
        let config = Config::default();
        let text = toml::to_string(&config).unwrap();
        assert_eq!(toml::from_str::<Config>(&text).unwrap(), config);
    }

    #[test]
    fn flags_override_how_long_environments_are_kept_and_where_figures_are() {
        let config =
            Config::load(&options(&["--keep-alive", "histogram", "--metrics-listen", "127.0.0.1:9464"])).unwrap();
        assert_eq!((config.keep_alive, config.metrics_listen), (KeepAlive::Histogram, "127.0.0.1:9464".parse().ok()));
        let config = Config::load(&options(&[])).unwrap();
        assert_eq!((config.keep_alive, config.metrics_listen), (KeepAlive::Fixed, None));
    }

    #[test]
    fn a_network_needs_authentication_or_a_second_word() {
        let load = |arguments: &[&str]| Config::load(&options(arguments));
        for address in ["0.0.0.0:9000", "[::]:9000", "192.0.2.1:1", "[::ffff:127.0.0.1]:9000"] {
            let error = load(&["--listen", address]).unwrap_err().to_string();
            assert!(error.contains("--allow-unauthenticated") && error.contains("--auth sigv4"), "{error}");
            assert!(load(&["--listen", address, "--auth", "sigv4"]).is_ok());
            assert!(load(&["--listen", address, "--allow-unauthenticated"]).is_ok());
        }
        assert!(load(&["--listen", "127.8.9.1:9000"]).is_ok());
        assert!(load(&["--listen", "[::1]:9000"]).is_ok());
    }

    #[test]
    fn nonsense_is_refused() {
        for arguments in [["--account-id", "12"], ["--account-id", "12345678901x"], ["--region", "mars"]] {
            assert!(Config::load(&options(&arguments)).is_err(), "{arguments:?}");
        }
    }
}
