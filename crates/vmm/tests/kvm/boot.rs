//! Linux guests that boot.

use vmm::config::{BootProtocol, Exit};

use crate::support::{Bench, config, file, kernel, memory_file, or_skip};
use crate::ticker::{cmdline, initramfs, numbers};

const MIB: u64 = 1 << 20;

#[test]
fn init_runs_on_one_to_six_vcpus() {
    for vcpus in [1, 2, 3, 6] {
        let kernel = or_skip!(kernel());
        let mut bench = Bench::linux(kernel, vcpus, 'r');
        let [cpus, memory] = numbers(&bench.line("I "))[..] else { panic!("not two numbers") };
        assert_eq!(cpus, u64::from(vcpus));
        assert!((90 * MIB..128 * MIB).contains(&memory), "{memory}");
        assert_eq!(bench.exit(), Exit::Reset);
    }
}

#[test]
fn a_kernel_is_entered_by_pvh() {
    // With more memory than fits below 4 GiB, and with an initial file system: all that a start info can tell.
    let config = vmm::config::MachineConfig { memory_mib: 4 * 1024, ..config(2, &cmdline('r')) };
    let (kernel, memory) = (or_skip!(kernel()), memory_file(config.memory_mib));
    let mut bench = Bench::boot_by(BootProtocol::Pvh, memory, kernel, Some(file(&initramfs())), &config);
    let [cpus, memory] = numbers(&bench.line("I "))[..] else { panic!("not two numbers") };
    assert_eq!(cpus, 2);
    assert!((3900 * MIB..4 * 1024 * MIB).contains(&memory), "{memory}");
    assert_eq!(bench.exit(), Exit::Reset);
}

#[test]
fn memory_lies_above_four_gib_too() {
    let kernel = or_skip!(kernel());
    let config = vmm::config::MachineConfig { memory_mib: 5 * 1024, ..config(1, &cmdline('r')) };
    let mut bench = Bench::boot(kernel, Some(file(&initramfs())), &config);
    let memory = numbers(&bench.line("I "))[1];
    assert!((4900 * MIB..5 * 1024 * MIB).contains(&memory), "{memory}");
    assert_eq!(bench.exit(), Exit::Reset);
}

#[test]
fn a_guest_switches_off() {
    let kernel = or_skip!(kernel());
    assert_eq!(Bench::linux(kernel, 1, 'o').exit(), Exit::Reset);
}

#[test]
fn a_kernel_that_panics_ends_the_machine() {
    let kernel = or_skip!(kernel());
    let mut bench = Bench::linux(kernel, 1, 'p');
    bench.says("Kernel panic");
    assert_eq!(bench.exit(), Exit::Reset);
}

#[test]
fn busy_vcpus_can_be_paused_and_ended() {
    let kernel = or_skip!(kernel());
    let mut bench = Bench::linux(kernel, 2, 'b');
    bench.line("I ");
    for _ in 0..5 {
        bench.machine.pause();
        bench.machine.resume();
    }
}

#[test]
fn the_guest_knows_its_devices() {
    let kernel = or_skip!(kernel());
    let cmdline = cmdline('r').replace("loglevel=4", "loglevel=7");
    let mut bench = Bench::boot_in(memory_file(128), kernel, Some(file(&initramfs())), &config(2, &cmdline));
    bench.says("kvm-clock: Using msrs");
    // Not to the end: each byte of this console is two exits to this process, and the whole log takes the lab a minute.
    bench.says("Allowing 2 CPUs");
}
