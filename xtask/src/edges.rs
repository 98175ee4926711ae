//! The allowed edges between the workspace's own crates, and the check that `cargo metadata` shows no other.
//!
//! The same table stands in ARCHITECTURE.md for people; `check` fails when the two differ, so neither can drift.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};
use serde::Deserialize;

/// Every crate of the workspace and the crates of ours that it may depend on.
const ALLOWED: &[(&str, &[&str])] = &[
    ("aws-client", &["aws-model"]),
    ("aws-model", &[]),
    ("control-plane", &["aws-model", "image", "store"]),
    (
        "firelet",
        &[
            "aws-client",
            "aws-model",
            "control-plane",
            "frontend",
            "image",
            "runtime-api",
            "runtimes",
            "sandbox",
            "simulator",
            "store",
            "telemetry",
            "worker",
            "worker-manager",
        ],
    ),
    ("frontend", &["aws-client", "aws-model", "control-plane", "telemetry", "worker", "worker-manager"]),
    ("guest", &["runtime-api"]),
    ("harness", &[]),
    ("image", &[]),
    ("runtime-api", &[]),
    ("runtimes", &[]),
    ("sandbox", &["guest", "supervisor", "vmm"]),
    ("simulator", &["worker-manager"]),
    ("store", &[]),
    ("supervisor", &[]),
    ("telemetry", &[]),
    ("vmm", &[]),
    ("worker", &["guest", "image", "runtime-api", "runtimes", "sandbox", "telemetry"]),
    ("worker-manager", &["worker"]),
    ("xtask", &[]),
];

/// The crate that any other may use, in its tests only.
const TEST_ONLY: &str = "harness";

/// Edges for tests only, with why they are needed there.
const ALLOWED_IN_TESTS: &[(&str, &str)] = &[
    // The tests of the microVM backend need a root file system as an image, and only `image` writes EROFS.
    ("sandbox", "image"),
];

/// The parts of `cargo metadata --format-version 1 --no-deps` that the check reads.
#[derive(Deserialize)]
struct Metadata {
    packages: Vec<Package>,
}

#[derive(Deserialize)]
struct Package {
    name: String,
    dependencies: Vec<Dependency>,
}

#[derive(Deserialize)]
struct Dependency {
    name: String,
    /// `None` for a normal dependency, else `dev` or `build`.
    kind: Option<String>,
    /// Set for path dependencies, which are exactly our own crates.
    path: Option<String>,
}

/// Checks the workspace at `root`; the error lists every edge that the table does not allow.
pub fn check(root: &Path) -> Result<()> {
    let output = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()))
        .args(["metadata", "--format-version", "1", "--no-deps", "--offline"])
        .current_dir(root)
        .output()
        .context("cannot run cargo metadata")?;
    ensure!(output.status.success(), "cargo metadata failed: {}", String::from_utf8_lossy(&output.stderr));
    let metadata: Metadata = serde_json::from_slice(&output.stdout).context("cannot read cargo metadata's answer")?;
    let mut problems = violations(&metadata);

    let path = root.join("ARCHITECTURE.md");
    let text = std::fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
    problems.extend(table_differences(&text));
    if !problems.is_empty() {
        bail!(
            "the crate graph breaks ARCHITECTURE.md:\n  {}\nremove the edge, or change the table in xtask/src/edges.rs and in ARCHITECTURE.md with a reason",
            problems.join("\n  ")
        );
    }
    Ok(())
}

/// Every edge and every crate that [`ALLOWED`] does not know, as sentences.
fn violations(metadata: &Metadata) -> Vec<String> {
    let allowed: BTreeMap<&str, &[&str]> = ALLOWED.iter().copied().collect();
    let mut found = Vec::new();
    for package in &metadata.packages {
        let Some(targets) = allowed.get(package.name.as_str()) else {
            found.push(format!("{} is not in the table", package.name));
            continue;
        };
        for dependency in package.dependencies.iter().filter(|dependency| dependency.path.is_some()) {
            let edge = (package.name.as_str(), dependency.name.as_str());
            let for_tests = dependency.kind.as_deref() == Some("dev")
                && (dependency.name == TEST_ONLY || ALLOWED_IN_TESTS.contains(&edge));
            if !for_tests && !targets.contains(&dependency.name.as_str()) {
                let kind = dependency.kind.as_deref().map(|kind| format!(" ({kind})")).unwrap_or_default();
                found.push(format!("{} -> {}{kind} is not allowed", package.name, dependency.name));
            }
        }
    }
    found
}

/// Compares [`ALLOWED`] with the table between the `<!-- edges -->` marks of ARCHITECTURE.md.
fn table_differences(architecture: &str) -> Vec<String> {
    let Some((_, rest)) = architecture.split_once("<!-- edges -->") else {
        return vec!["ARCHITECTURE.md has no <!-- edges --> mark".into()];
    };
    let Some((table, _)) = rest.split_once("<!-- /edges -->") else {
        return vec!["ARCHITECTURE.md has no <!-- /edges --> mark".into()];
    };
    let written: BTreeMap<&str, BTreeSet<&str>> = table.lines().filter_map(table_row).collect();
    let coded: BTreeMap<&str, BTreeSet<&str>> =
        ALLOWED.iter().map(|(name, targets)| (*name, targets.iter().copied().collect())).collect();
    let names: BTreeSet<&str> = written.keys().chain(coded.keys()).copied().collect();
    names
        .into_iter()
        .filter(|name| written.get(name) != coded.get(name))
        .map(|name| format!("ARCHITECTURE.md and xtask/src/edges.rs differ on {name}"))
        .collect()
}

/// Reads ``| `crate` | `a`, `b` |``; headings and rules, which name no crate in backquotes, are no rows.
fn table_row(line: &str) -> Option<(&str, BTreeSet<&str>)> {
    let mut cells = line.trim().strip_prefix('|')?.split('|');
    let name = cells.next()?.split('`').nth(1)?;
    let targets = cells.next()?.split('`').skip(1).step_by(2).collect();
    Some((name, targets))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn metadata(from: &str, to: &str, kind: Option<&str>) -> Metadata {
        let dependency = Dependency { name: to.into(), kind: kind.map(Into::into), path: Some(format!("crates/{to}")) };
        Metadata { packages: vec![Package { name: from.into(), dependencies: vec![dependency] }] }
    }

    #[test]
    fn a_forbidden_edge_is_named() {
        assert_eq!(violations(&metadata("control-plane", "worker", None)), ["control-plane -> worker is not allowed"]);
        assert_eq!(
            violations(&metadata("runtime-api", "aws-model", Some("dev"))),
            ["runtime-api -> aws-model (dev) is not allowed"]
        );
    }

    #[test]
    fn an_allowed_edge_passes() {
        assert!(violations(&metadata("frontend", "worker-manager", None)).is_empty());
    }

    #[test]
    fn the_harness_is_for_tests_only() {
        assert!(violations(&metadata("frontend", "harness", Some("dev"))).is_empty());
        assert_eq!(violations(&metadata("firelet", "harness", None)), ["firelet -> harness is not allowed"]);
    }

    #[test]
    fn an_edge_for_tests_is_for_tests_only() {
        assert!(violations(&metadata("sandbox", "image", Some("dev"))).is_empty());
        assert_eq!(violations(&metadata("sandbox", "image", None)), ["sandbox -> image is not allowed"]);
    }

    #[test]
    fn a_crate_outside_the_table_is_named() {
        assert_eq!(violations(&metadata("types", "store", None)), ["types is not in the table"]);
    }

    #[test]
    fn dependencies_from_a_registry_are_not_ours_to_judge() {
        let mut metadata = metadata("store", "rusqlite", None);
        metadata.packages[0].dependencies[0].path = None;
        assert!(violations(&metadata).is_empty());
    }

    #[test]
    fn a_table_that_drifted_is_named() {
        let text = "<!-- edges -->\n| crate | may use |\n|---|---|\n| `worker-manager` | `store` |\n<!-- /edges -->";
        let found = table_differences(text);
        assert!(found.contains(&"ARCHITECTURE.md and xtask/src/edges.rs differ on worker-manager".to_string()));
        assert_eq!(found.len(), ALLOWED.len());
    }

    #[test]
    fn the_workspace_keeps_to_its_edges() {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("xtask lies in the workspace");
        check(root).unwrap();
    }
}
