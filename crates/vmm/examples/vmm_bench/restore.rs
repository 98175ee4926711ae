//! Clones: one after the other with every step timed, and many.

use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::task::JoinSet;
use vmm::host::{After, Extras, MicroVm};
use vmm::snapshot::{Template, WorkingSet};

use crate::figures::{Footprint, Samples, head, line, mib, ms};
use crate::guest::{self, Rig};
use crate::{Result, guest::attached};

/// Clones that are timed step by step; two more before them are not counted.
const RUNS: usize = 30;
const WARM_UP: usize = 2;
/// Clones that are made one after the other and live together.
const IN_A_ROW: usize = 30;
/// Clones that are made at the same time.
const AT_ONCE: usize = 10;

/// Names of the steps inside of the VMM process, in their order.
const STEPS: [&str; 7] = [
    "read the state",
    "map memory",
    "devices",
    "vCPU, interrupt controllers and clock, beside that",
    "connect devices with KVM",
    "populate the working set",
    "let the vCPU run",
];

/// What was measured of the clones of one template.
#[derive(Default)]
pub struct Steps {
    inside: [Samples; 7],
    taken: Samples,
    socket: Samples,
    own: Samples,
    response: Samples,
    all: Samples,
    private: Samples,
    copied: Samples,
}

/// Times clones step by step: one of each template, then the next of each, so that a host that is busier for a while slows all
/// of them. What the first clones do is not counted.
pub async fn one_by_one<const N: usize>(rig: &Rig, templates: [&Arc<Template>; N]) -> Result<[Steps; N]> {
    let mut measured = std::array::from_fn(|_| Steps::default());
    for run in 0..WARM_UP + RUNS {
        for (template, steps) in templates.iter().zip(&mut measured) {
            let mut unused = Steps::default();
            one(rig, template, if run < WARM_UP { &mut unused } else { steps }).await?;
        }
    }
    Ok(measured)
}

async fn one(rig: &Rig, template: &Arc<Template>, steps: &mut Steps) -> Result<()> {
    rig.pool_is_full().await;
    let attached = attached()?;
    let begun = Instant::now();
    let shell = rig.launcher.shell(1, Extras::default()).await?;
    let has_shell = begun.elapsed();
    let machine = shell.restore(template, attached, After::Running).await?;
    let runs = begun.elapsed();
    guest::greet(&machine).await?;
    let answered = begun.elapsed();
    let report = machine.report();
    let times = report.inside;
    let each = [times.state, times.memory, times.devices, times.vcpus, times.attach, times.populate, times.run];
    let each = each.map(|micros| f64::from(micros) / 1000.0);
    for (samples, millis) in steps.inside.iter_mut().zip(each) {
        samples.add(millis);
    }
    steps.taken.add(ms(has_shell));
    steps.socket.add(ms(report.total) - each.iter().sum::<f64>());
    steps.own.add(ms(report.total));
    steps.response.add(ms(answered.saturating_sub(runs)));
    steps.all.add(ms(answered));
    let footprint = Footprint::of(machine.pid())?;
    steps.private.add(footprint.private as f64);
    steps.copied.add(footprint.copied as f64);
    // Its end is not in the way of the next.
    machine.kill();
    machine.gone().await;
    Ok(())
}

/// What a clone has touched when it has answered for the first time.
pub async fn touched(rig: &Rig, template: &Arc<Template>) -> Result<WorkingSet> {
    let (machine, _) = clone(rig.clone(), Arc::clone(template)).await?;
    Ok(machine.working_set().await?)
}

impl Steps {
    /// The median of restore's own work in milliseconds: from the call until the guest's first instruction.
    pub fn own(&self) -> f64 {
        self.own.percentile(50)
    }

    pub fn print(&self, title: &str) {
        head(&format!("Restore {title}, ms (p50, p90)"));
        line("shell from the pool", &self.taken.to_string());
        line("message to the process and back", &self.socket.to_string());
        for (name, samples) in STEPS.iter().zip(&self.inside) {
            line(name, &samples.to_string());
        }
        line("restore's own work: call until the guest runs", &self.own.to_string());
        line("guest runs until its agent answers", &self.response.to_string());
        line("in all: decision until first response", &self.all.to_string());
        line("monitor's private memory then", &mib(self.private.percentile(50) as u64));
        line("guest's memory copied then", &mib(self.copied.percentile(50) as u64));
    }
}

/// Times many clones, and what memory they add.
pub async fn many(rig: &Rig, template: &Arc<Template>, title: &str) -> Result<()> {
    head(&format!("Clones {title}, from decision to first response"));
    rig.pool_is_full().await;
    let begun = Instant::now();
    let mut clones = Vec::new();
    for _ in 0..IN_A_ROW {
        clones.push(clone(rig.clone(), Arc::clone(template)).await?.0);
    }
    let per_second = |count: usize, took: Duration| format!("{:.1} /s", count as f64 / took.as_secs_f64());
    line(&format!("{IN_A_ROW} one after the other, with the pool's refilling"), &per_second(IN_A_ROW, begun.elapsed()));
    let mut added = Samples::default();
    let mut parts = Footprint::default();
    for machine in &clones {
        let footprint = Footprint::of(machine.pid())?;
        added.add((footprint.private + footprint.copied + footprint.tables) as f64);
        parts.private += footprint.private;
        parts.copied += footprint.copied;
        parts.tables += footprint.tables;
    }
    let mean = |bytes: u64| mib(bytes / IN_A_ROW as u64);
    line("memory that each adds to the template's", &mib(added.mean() as u64));
    line("  of that the guest's copied pages", &mean(parts.copied));
    line("  of that the monitor's private memory", &mean(parts.private));
    line("  of that page tables", &mean(parts.tables));
    for machine in clones {
        machine.kill();
        machine.gone().await;
    }
    rig.pool_is_full().await;
    let begun = Instant::now();
    let mut working = JoinSet::new();
    for _ in 0..AT_ONCE {
        working.spawn(clone(rig.clone(), Arc::clone(template)));
    }
    let mut each = Samples::default();
    let mut clones = Vec::new();
    while let Some(done) = working.join_next().await {
        let (machine, took) = done??;
        each.add(ms(took));
        clones.push(machine);
    }
    line(&format!("{AT_ONCE} at once"), &per_second(AT_ONCE, begun.elapsed()));
    line("  each of them, ms (p50, p90)", &each.to_string());
    for machine in clones {
        machine.kill();
        machine.gone().await;
    }
    Ok(())
}

async fn clone(rig: Rig, template: Arc<Template>) -> Result<(MicroVm, Duration)> {
    let begun = Instant::now();
    let shell = rig.launcher.shell(1, Extras::default()).await?;
    let machine = shell.restore(&template, attached()?, After::Running).await?;
    guest::greet(&machine).await?;
    Ok((machine, begun.elapsed()))
}
