//! Figures about shells, for people: `cargo nextest run -p vmm --test process --run-ignored only --no-capture figures`.

use std::fs;
use std::time::{Duration, Instant};

use vmm::host::{Extras, Launcher};

use crate::support::{launcher, options, wait_for};

/// A value of `/proc/<pid>/smaps_rollup` in KiB.
fn memory(pid: i32, line: &str) -> u64 {
    let rollup = fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).unwrap();
    let found = rollup.lines().find_map(|text| text.strip_prefix(line)?.strip_prefix(':'));
    found.and_then(|text| text.trim().trim_end_matches(" kB").parse().ok()).unwrap_or(0)
}

fn median(mut values: Vec<u128>) -> u128 {
    values.sort_unstable();
    values[values.len() / 2]
}

#[tokio::test]
#[ignore = "prints figures and takes a while"]
async fn figures() {
    let Some(launcher) = launcher() else { return };
    let mut shells = Vec::new();
    let begun = Instant::now();
    for _ in 0..100 {
        shells.push(launcher.shell(1, Extras::default()).await.unwrap());
    }
    let per_second = 100.0 / begun.elapsed().as_secs_f64();
    let phase = |of: fn(&vmm::host::ShellTimes) -> u32| {
        median(shells.iter().map(|shell| u128::from(of(&shell.report().inside))).collect())
    };
    println!("process start to its first message   {:>6} us", phase(|times| times.process));
    println!("jail                                 {:>6} us", phase(|times| times.jail));
    println!("asking KVM                           {:>6} us", phase(|times| times.probe));
    println!("virtual machine                      {:>6} us", phase(|times| times.vm));
    println!("vCPU                                 {:>6} us", phase(|times| times.vcpus));
    println!("thread                               {:>6} us", phase(|times| times.threads));
    println!("filters                              {:>6} us", phase(|times| times.filter));
    let total = median(shells.iter().map(|shell| shell.report().total.as_micros()).collect());
    println!("in all, seen by the host             {total:>6} us");
    println!("one after the other                  {per_second:>6.0} shells/s");
    for line in ["Rss", "Pss", "Private_Dirty", "Private_Clean", "Shared_Clean"] {
        let value = median(shells.iter().map(|shell| memory(shell.pid(), line).into()).collect());
        println!("memory of a shell, {line:<17} {value:>6} KiB");
    }
    let begun = Instant::now();
    let pids: Vec<i32> = shells.iter().map(vmm::host::Shell::pid).collect();
    drop(shells);
    println!("killing 100 shells, for the caller   {:>6} us", begun.elapsed().as_micros());
    wait_for("all to be gone", || !pids.iter().any(|pid| fs::exists(format!("/proc/{pid}")).unwrap())).await;
    println!("until the last one was gone          {:>6} us", begun.elapsed().as_micros());

    let mut many = options().unwrap();
    many.pool = [(1, 100)].into();
    let begun = Instant::now();
    let filling = Launcher::new(many).unwrap();
    wait_for("the pool to fill", || filling.pool().ready == 100).await;
    println!("by the pool                          {:>6.0} shells/s", 100.0 / begun.elapsed().as_secs_f64());
    drop(filling);

    let mut options = options().unwrap();
    options.pool = [(1, 4)].into();
    let launcher = Launcher::new(options).unwrap();
    let mut takes = Vec::new();
    for _ in 0..20 {
        wait_for("the pool to fill", || launcher.pool().ready == 4).await;
        tokio::time::sleep(Duration::from_millis(5)).await;
        let begun = Instant::now();
        let shell = launcher.shell(1, Extras::default()).await.unwrap();
        takes.push(begun.elapsed().as_nanos());
        drop(shell);
    }
    println!("taking one out of the pool           {:>6} ns", median(takes));
}
