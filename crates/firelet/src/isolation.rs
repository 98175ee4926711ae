//! Which backend runs the functions of this server, and why.

use std::path::PathBuf;

use anyhow::{Context, bail};
use sandbox::microvm::{self, probe};

use crate::cli::Isolation;
use crate::config::Config;

/// The choice.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Chosen {
    /// Namespaces.
    Namespace,
    /// Machines, with this kernel and this agent.
    MicroVm {
        /// A vmlinux.
        kernel: PathBuf,
        /// The program that is process 1 in them.
        agent: PathBuf,
    },
}

/// Looks at the host and decides. The text tells people what was chosen and, where they did not say it themselves, why.
pub fn choose(config: &Config) -> anyhow::Result<(Chosen, String)> {
    match config.isolation {
        Isolation::Namespace => Ok((Chosen::Namespace, "namespace".to_owned())),
        Isolation::Microvm => {
            let usable = probe::probe().context("microVMs cannot run on this host (use --isolation namespace)")?;
            let chosen = kit(config).map_err(anyhow::Error::msg)?;
            if !rustix::process::geteuid().is_root() {
                bail!("{}", microvm::StartError::NeedsRoot);
            }
            Ok((chosen, format!("microvm ({})", describe(&usable))))
        }
        Isolation::Auto => Ok(match auto(config) {
            Ok((chosen, why)) => (chosen, format!("microvm (auto: {why})")),
            Err(why) => (Chosen::Namespace, format!("namespace (auto: {why})")),
        }),
    }
}

/// Machines if everything is there for them, or what is missing.
fn auto(config: &Config) -> Result<(Chosen, String), String> {
    if !rustix::process::geteuid().is_root() {
        return Err("microVMs need root".to_owned());
    }
    let usable = probe::probe().map_err(|error| reason(&error))?;
    Ok((kit(config)?, describe(&usable)))
}

/// What the probe has found, in short.
pub fn describe(usable: &probe::Usable) -> String {
    let times = usable.loop_ns_per_iteration / usable.host_ns_per_iteration;
    format!("KVM on {}, code runs at {times:.1} times the host's time", usable.vendor)
}

/// Why there are no machines, with what is behind it.
pub fn reason(error: &probe::Unusable) -> String {
    let source = std::error::Error::source(error).map(|source| format!(": {source}"));
    format!("{error}{}", source.unwrap_or_default())
}

/// Kernel and agent, or which of them is missing.
fn kit(config: &Config) -> Result<Chosen, String> {
    let there = |path: &Option<PathBuf>, what: &str, flag: &str, script: &str| match path {
        Some(path) if path.is_file() => Ok(path.clone()),
        Some(path) => Err(format!("there is no guest {what} at {}: make it with `{script}`", path.display())),
        None => Err(format!("no guest {what} is given: make it with `{script}` and name it with {flag}")),
    };
    Ok(Chosen::MicroVm {
        kernel: there(&config.microvm.kernel, "kernel", "--guest-kernel", "scripts/guest-kernel")?,
        agent: there(&config.microvm.agent, "agent", "--guest-agent", "scripts/guest")?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::MicroVm;

    #[test]
    fn what_is_missing_is_named_with_the_way_to_get_it() {
        let dir = tempfile::tempdir().unwrap();
        let mut config = Config::default();
        let missing = kit(&config).unwrap_err();
        assert!(missing.contains("--guest-kernel") && missing.contains("scripts/guest-kernel"), "{missing}");

        let kernel = dir.path().join("vmlinux");
        config.microvm = MicroVm { kernel: Some(kernel.clone()), agent: None };
        assert!(kit(&config).unwrap_err().contains("vmlinux"));
        std::fs::write(&kernel, "").unwrap();
        assert!(kit(&config).unwrap_err().contains("--guest-agent"));
        config.microvm.agent = Some(kernel.clone());
        assert_eq!(kit(&config), Ok(Chosen::MicroVm { agent: kernel.clone(), kernel }));
    }

    #[test]
    fn whoever_asks_for_namespaces_gets_them_without_a_probe() {
        let config = Config { isolation: Isolation::Namespace, ..Config::default() };
        assert_eq!(choose(&config).unwrap(), (Chosen::Namespace, "namespace".to_owned()));
    }
}
