//! How fast it is: figures on stderr, no judgement. In the lab only ratios mean something.

use std::time::Instant;

use vmm::machine::MachineState;

use crate::bare;
use crate::support::{Bench, kernel, kvm, memory_file, or_skip, shell};

#[test]
fn figures_of_a_bare_program() {
    drop(or_skip!(kvm()));
    for vcpus in [1, 6] {
        let (_, state, memory) = bare::counting(vcpus);
        for _ in 0..5 {
            let started = Instant::now();
            let shell = shell(vcpus);
            let made = started.elapsed();
            let shell_timings = *shell.timings();
            let started = Instant::now();
            let decoded = MachineState::decode(&state).unwrap();
            let clone = Bench::restore_into(shell, decoded, &memory).unwrap();
            let restored = started.elapsed();
            eprintln!(
                "{vcpus} vcpus: shell {made:?} {shell_timings:?}, restore {restored:?} {:?}",
                clone.machine.timings()
            );
        }
    }
}

#[test]
fn figures() {
    let kernel = or_skip!(kernel());
    let memory = memory_file(128);
    let started = Instant::now();
    let mut bench = Bench::linux_in(memory.try_clone().unwrap(), kernel, 1, 't');
    bench.line("I ");
    eprintln!("boot to init {:?}: {:?}", started.elapsed(), bench.machine.timings());
    bench.line("T ");
    let started = Instant::now();
    let state = bench.machine.save().unwrap();
    let saved = started.elapsed();
    let state = state.encode().unwrap();
    eprintln!("save {saved:?}, encode {:?}, {} bytes", started.elapsed() - saved, state.len());
    for _ in 0..8 {
        let shell = shell(1);
        let made = *shell.timings();
        let started = Instant::now();
        let state = MachineState::decode(&state).unwrap();
        let mut clone = Bench::restore_into(shell, state, &memory).unwrap();
        let restored = started.elapsed();
        clone.line("T");
        eprintln!("restore {restored:?}, first line {:?}: {:?}, {made:?}", started.elapsed(), clone.machine.timings());
    }
}
