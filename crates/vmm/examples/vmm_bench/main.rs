//! What the monitor costs on this machine: boots the guest's kernel with its agent, takes a snapshot, makes clones, and prints a
//! table. Asserts nothing.
//!
//! `scripts/bench-vmm` builds what it needs and runs it, where KVM cannot be used in the lab. There only ratios mean anything.
//!
//! ```text
//! vmm_bench          the table; FIRELET_GUEST_KERNEL and FIRELET_GUEST_AGENT name what is booted
//! vmm_bench --probe  whether KVM can be used here: the reason on standard error and status 1 if not
//! ```

mod figures;
mod guest;
mod restore;

use std::error::Error;
use std::sync::Arc;
use std::time::Instant;

use figures::{Footprint, Samples, head, line, mib, ms};
use guest::Rig;
use vmm::config::BootProtocol;
use vmm::host::{Extras, MicroVm};
use vmm::snapshot::{Host, Key, Template, save};

type Result<T> = std::result::Result<T, Box<dyn Error + Send + Sync>>;

/// Boots that are measured.
const BOOTS: usize = 4;
/// Shells that are made outside of the pool.
const SHELLS: usize = 12;

fn main() -> Result<()> {
    vmm::run_if_vmm();
    if std::env::args().any(|argument| argument == "--probe") {
        vmm::probe::probe()?;
        return Ok(());
    }
    tokio::runtime::Builder::new_multi_thread().enable_all().build()?.block_on(bench())
}

async fn bench() -> Result<()> {
    let rig = Rig::new()?;
    println!("{} MiB of guest memory, {} drives, balloon, entropy, vsock\n", guest::MEMORY_MIB, guest::DRIVES);
    let shell_ms = shells(&rig).await?;
    let (booted, boot_ms) = boots(&rig).await?;
    let template = Arc::new(snapshot(booted).await?);
    let with_set = Arc::new(template.with_working_set(restore::touched(&rig, &template).await?));
    let [without, with] = restore::one_by_one(&rig, [&template, &with_set]).await?;
    without.print("without a working set");
    let set = with_set.working_set();
    with.print(&format!("with the recorded working set, {} in {} ranges", mib(set.bytes()), set.ranges().len()));
    head("Restore's own work as a share of boot to init (the goal is at most 0.33)");
    for (name, steps) in [("without a working set", &without), ("with it", &with)] {
        line(name, &format!("{:.3}", steps.own() / boot_ms));
        line(
            &format!("{name}, in a shell made new"),
            &format!("{:.3}", (steps.own() + shell_ms) / (boot_ms + shell_ms)),
        );
    }
    restore::many(&rig, &template, "without a working set").await?;
    restore::many(&rig, &with_set, "with the working set").await
}

/// Processes that wait to become machines; the median time that one takes, in milliseconds.
async fn shells(rig: &Rig) -> Result<f64> {
    let mut total = Samples::default();
    let mut steps = <[Samples; 7]>::default();
    let mut kept = Vec::new();
    for _ in 0..SHELLS {
        let shell = rig.launcher.fresh(1, Extras::default()).await?;
        let report = shell.report();
        total.add(ms(report.total));
        let inside = report.inside;
        let each = [inside.process, inside.jail, inside.probe, inside.vm, inside.vcpus, inside.threads, inside.filter];
        for (samples, micros) in steps.iter_mut().zip(each) {
            samples.add(f64::from(micros) / 1000.0);
        }
        kept.push(shell);
    }
    head("A shell made new, ms (p50, p90)");
    let names =
        ["process", "jail", "asking KVM", "virtual machine, doors", "vCPU", "its thread", "system call filters"];
    for (name, samples) in names.iter().zip(&steps) {
        line(name, &samples.to_string());
    }
    line("in all, as the host sees it", &total.to_string());
    head("Memory of an idle shell");
    Footprint::of(kept[SHELLS - 1].pid())?.print();
    Ok(total.percentile(50))
}

/// A machine that has booted, and the median time from the call until its agent answered, in milliseconds.
async fn boots(rig: &Rig) -> Result<(MicroVm, f64)> {
    let (mut called, mut answered, mut by_pvh) = (Samples::default(), Samples::default(), Samples::default());
    let mut last = None;
    for _ in 0..BOOTS {
        // One machine at a time, so that none is in the way of the next.
        drop(last.take());
        let shell = rig.launcher.fresh(1, Extras::default()).await?;
        let begun = Instant::now();
        guest::greet(&rig.boot(shell, BootProtocol::Pvh).await?).await?;
        by_pvh.add(ms(begun.elapsed()));
        let shell = rig.launcher.fresh(1, Extras::default()).await?;
        let begun = Instant::now();
        let machine = rig.boot(shell, BootProtocol::Linux64).await?;
        called.add(ms(begun.elapsed()));
        guest::greet(&machine).await?;
        answered.add(ms(begun.elapsed()));
        last = Some(machine);
    }
    let machine = last.ok_or("nothing was booted")?;
    head("Boot, ms (p50, p90)");
    line("call until the guest runs", &called.to_string());
    line("call until its agent answers", &answered.to_string());
    line("the same, entered by PVH", &by_pvh.to_string());
    head("Memory of the monitor after a boot (private: the goal is at most 3 MiB)");
    Footprint::of(machine.pid())?.print();
    Ok((machine, answered.percentile(50)))
}

async fn snapshot(machine: MicroVm) -> Result<Template> {
    guest::quiesce(&machine).await?;
    let begun = Instant::now();
    let template = machine.snapshot().await?;
    let taken = ms(begun.elapsed());
    let directory = tempfile::tempdir_in("/var/tmp")?;
    let begun = Instant::now();
    let bytes = save(&directory.path().join("bench"), &template, &Key::generate()?, &Host::of_this_machine()?)?;
    head("Snapshot");
    line("taking it, ms", &format!("{taken:.2}"));
    line("writing it, ms", &format!("{:.2}", ms(begun.elapsed())));
    line("memory with content", &mib(template.data_bytes()));
    line("on disk", &mib(bytes));
    line("state of devices and vCPU", &format!("{} bytes", template.state().len()));
    Ok(template)
}
