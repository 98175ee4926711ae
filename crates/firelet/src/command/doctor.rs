//! `firelet doctor`: what this machine has, what is lost and how to get it.

use std::process::ExitCode;

use runtimes::Catalog;
use sandbox::cgroup::Version;
use sandbox::host::HostFacts;
use sandbox::microvm::probe;
use serde::Serialize;

use super::runtimes::places;
use crate::cli::DoctorOptions;
use crate::isolation;

/// One line of the findings.
#[derive(Debug, Serialize)]
struct Finding {
    subject: &'static str,
    ok: bool,
    text: String,
}

/// The findings, and what is lost by them.
#[derive(Debug, Serialize)]
struct Report {
    can_run_functions: bool,
    findings: Vec<Finding>,
    losses: Vec<Lost>,
}

#[derive(Debug, Serialize)]
struct Lost {
    what: String,
    remedy: String,
}

/// Below this, unpacked code and logs soon have no room, in bytes.
const LITTLE_DISK: u64 = 2 << 30;

pub fn run(options: &DoctorOptions) -> anyhow::Result<ExitCode> {
    let places = places(&options.places);
    let facts = HostFacts::probe(&places.data_dir);
    let catalog = Catalog::discover(&places);
    let report = Report {
        can_run_functions: facts.can_isolate(),
        findings: findings(&facts, &catalog),
        losses: facts.losses().into_iter().map(|loss| Lost { what: loss.what, remedy: loss.remedy }).collect(),
    };
    if options.json {
        println!("{}", serde_json::to_string_pretty(&report)?);
    } else {
        print(&report);
    }
    Ok(if report.can_run_functions { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn print(report: &Report) {
    for finding in &report.findings {
        println!("{}  {:12}  {}", if finding.ok { "ok" } else { "--" }, finding.subject, finding.text);
    }
    if report.losses.is_empty() {
        println!("\nNothing is lost on this machine.");
    }
    for loss in &report.losses {
        println!("\nlost: {}\n  to get it: {}", loss.what, loss.remedy);
    }
    if !report.can_run_functions {
        println!("\nFunctions cannot run here until that is mended.");
    }
}

fn findings(facts: &HostFacts, catalog: &Catalog) -> Vec<Finding> {
    let finding = |subject, ok, text: String| Finding { subject, ok, text };
    let yes = |found: bool, yes: &str, no: &str| if found { yes.to_owned() } else { no.to_owned() };
    let gib = |bytes: u64| format!("{:.1} GiB", bytes as f64 / f64::from(1 << 30));
    let cgroups = &facts.cgroups;
    let namespaces = match (facts.forbidden_namespaces.as_slice(), &facts.user_namespaces) {
        ([], _) => "all that sandboxes need".to_owned(),
        (forbidden, None) => format!("within user namespaces only ({} otherwise forbidden)", forbidden.join(", ")),
        (forbidden, Some(why)) => format!("{} forbidden, and no user namespaces: {why}", forbidden.join(", ")),
    };
    let (kvm_usable, kvm) = match probe::probe() {
        Ok(usable) => (true, format!("microVMs can run here: {}", isolation::describe(&usable))),
        Err(error) => (false, format!("no microVMs, functions run in namespaces: {}", isolation::reason(&error))),
    };
    let nat = match &facts.network.nft {
        Some(nft) => format!("address translation through {}", nft.display()),
        None => "no nft program, so no address translation".to_owned(),
    };
    let landlock = facts.landlock_abi.map_or("no Landlock".to_owned(), |abi| format!("Landlock version {abi}"));
    let seccomp = yes(facts.seccomp, "system call filter", "no system call filter");
    let disks = facts.disk.loop_devices && facts.disk.mkfs_ext4.is_some();
    let mut usable: Vec<&str> =
        catalog.list().iter().filter(|r| r.unavailable.is_none()).map(|r| r.serves.as_str()).collect();
    usable.dedup();
    vec![
        finding("kernel", true, format!("Linux {} on {}", facts.kernel, facts.machine)),
        finding("machine", true, format!("{} processors, {} of memory", facts.processors, gib(facts.memory_bytes))),
        finding(
            "user",
            facts.administrator,
            match (facts.root, facts.administrator) {
                (_, true) => "root".to_owned(),
                (true, false) => "root without CAP_SYS_ADMIN".to_owned(),
                (false, false) => "not root".to_owned(),
            },
        ),
        finding(
            "cgroups",
            cgroups.writable,
            format!(
                "{}, {}, with {}",
                match cgroups.version {
                    Version::V1 => "version 1",
                    Version::V2 => "version 2",
                    Version::None => "none",
                },
                yes(cgroups.writable, "writable", "not writable"),
                if cgroups.controllers.is_empty() {
                    "no controllers".to_owned()
                } else {
                    cgroups.controllers.join(", ")
                },
            ),
        ),
        finding("namespaces", facts.can_isolate(), namespaces),
        finding("confinement", facts.seccomp && facts.landlock_abi.is_some(), format!("{seccomp}, {landlock}")),
        finding("network", facts.network.nft.is_some(), nat),
        finding(
            "cold starts",
            facts.administrator,
            match (facts.administrator, sandbox::namespace::can_fork_interpreters()) {
                (true, true) => {
                    "from sandboxes that are prepared, with Python forked and other runtimes started".to_owned()
                }
                (true, false) => "from sandboxes that are prepared, with their runtime started".to_owned(),
                (false, _) => "from the beginning each: sandboxes are prepared as root only".to_owned(),
            },
        ),
        finding("/tmp", disks, yes(disks, "disks of their own size", "tmpfs, counted against the function's memory")),
        finding("KVM", kvm_usable, kvm),
        finding(
            "disk",
            facts.disk.free_bytes.is_none_or(|free| free >= LITTLE_DISK),
            facts.disk.free_bytes.map_or("free space unknown".to_owned(), |free| format!("{} free", gib(free))),
        ),
        finding("open files", facts.limits.open_files >= 4_096, format!("at most {}", facts.limits.open_files)),
        finding(
            "runtimes",
            !usable.is_empty(),
            if usable.is_empty() { "none but provided.*".to_owned() } else { usable.join(", ") },
        ),
    ]
}
