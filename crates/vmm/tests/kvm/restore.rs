//! Machines that are saved and restored.

use std::os::fd::OwnedFd;

use vmm::machine::{MachineState, RestoreError};

use crate::support::{Bench, config, file, kernel, memory_file, or_skip};
use crate::ticker::{cmdline, initramfs, numbers};

/// A machine that ticks, paused and saved: its last line's numbers, its state and its memory.
fn template(vcpus: u8) -> Result<(Vec<u64>, Vec<u8>, OwnedFd), String> {
    let kernel = kernel()?;
    let memory = memory_file(128);
    // With the kernel's notices, one of which says that it was cloned.
    let config = config(vcpus, &cmdline('t').replace("loglevel=4", "loglevel=6"));
    let mut bench = Bench::boot_in(memory.try_clone().unwrap(), kernel, Some(file(&initramfs())), &config);
    let mut tick = Vec::new();
    for _ in 0..8 {
        tick = numbers(&bench.line("T "));
    }
    let state = bench.machine.save().unwrap().encode().unwrap();
    Ok((tick, state, memory))
}

#[test]
fn a_restored_guest_goes_on_where_it_was() {
    for vcpus in [1, 3] {
        let (tick, state, memory) = or_skip!(template(vcpus));
        let mut bench = Bench::restore(&state, &memory).unwrap();
        let mut last = tick;
        for _ in 0..20 {
            let next = numbers(&bench.line("T "));
            assert!(next[0] > last[0] && next[1] > last[1], "{last:x?} then {next:x?}");
            // Five milliseconds and what a slow machine adds; the time between save and restore is not among them.
            assert!(next[1] - last[1] < 5_000_000_000, "{last:x?} then {next:x?}");
            last = next;
        }
    }
}

#[test]
fn clones_have_random_numbers_of_their_own() {
    let (_, state, memory) = or_skip!(template(1));
    let mut clones: Vec<Bench> = (0..10).map(|_| Bench::restore(&state, &memory).unwrap()).collect();
    let mut seen = Vec::new();
    for clone in &mut clones {
        clone.says("crng reseeded due to virtual machine fork");
        // The line on its way may be older than the message.
        clone.line("T ");
        for _ in 0..3 {
            seen.push(numbers(&clone.line("T "))[2]);
        }
    }
    let count = seen.len();
    seen.sort_unstable();
    seen.dedup();
    assert_eq!(seen.len(), count);
}

#[test]
fn a_clone_can_be_saved_and_restored_again() {
    let (tick, state, memory) = or_skip!(template(2));
    // A clone's own pages are not in the file, so its state goes with its memory only in this process: what is checked here
    // is that saving changes nothing for a machine that goes on.
    let mut bench = Bench::restore(&state, &memory).unwrap();
    bench.line("T ");
    let again = bench.machine.save().unwrap().encode().unwrap();
    assert!(MachineState::decode(&again).is_ok());
    bench.machine.resume();
    let next = numbers(&bench.line("T "));
    assert!(next[0] > tick[0]);
}

#[test]
fn a_state_needs_the_memory_and_shell_that_fit_it() {
    let (_, state, _memory) = or_skip!(template(1));
    let short = memory_file(64);
    assert!(matches!(Bench::restore(&state, &short).map(drop), Err(RestoreError::Memory(_))));
}
