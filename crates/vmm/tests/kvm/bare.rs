//! Guests of a few instructions, entered as a kernel would be: what they do to the machine, and what it bears.

use std::arch::global_asm;
use std::time::{Duration, Instant};

use vmm::config::Exit;

use crate::support::{Bench, PATIENCE, config, file, kvm, or_skip};
use crate::ticker::{code_between, elf};

const ADDRESS: u64 = 2 << 20;

global_asm!(
    ".pushsection .rodata.bare, \"a\"",
    ".global RESET_START, RESET_END, SLEEP_START, SLEEP_END, FAULT_START, FAULT_END, SPIN_START, SPIN_END",
    ".global NOWHERE_START, NOWHERE_END, COUNT_START, COUNT_END",
    "RESET_START:",
    "mov al, 0xfe",
    "out 0x64, al",
    "hlt",
    "RESET_END:",
    "SLEEP_START:",
    "mov dx, 0x600",
    "mov al, 0x34",
    "out dx, al",
    "hlt",
    "SLEEP_END:",
    // No interrupt descriptors: any exception is a triple fault.
    "FAULT_START:",
    "ud2",
    "FAULT_END:",
    "SPIN_START:",
    "cli",
    "2:",
    "jmp 2b",
    "SPIN_END:",
    // What nobody answers reads as ones, and writes there do no harm; then the reset.
    "NOWHERE_START:",
    "mov dx, 0x1234",
    "in eax, dx",
    "cmp eax, -1",
    "jne 3f",
    "out dx, eax",
    "mov rbx, 0x3ff00000",
    "mov eax, [rbx]",
    "cmp eax, -1",
    "jne 3f",
    "mov [rbx], rax",
    "mov al, 0xfe",
    "out 0x64, al",
    "3:",
    "ud2",
    "NOWHERE_END:",
    // Counts in memory, and says each 256th number on the console's port.
    "COUNT_START:",
    "cli",
    "mov rbx, 0x400000",
    "mov dx, 0x3f8",
    "4:",
    "inc qword ptr [rbx]",
    "mov rax, [rbx]",
    "test al, al",
    "jnz 4b",
    "mov al, 0x0a",
    "out dx, al",
    "jmp 4b",
    "COUNT_END:",
    ".popsection",
);

unsafe extern "C" {
    static RESET_START: u8;
    static RESET_END: u8;
    static SLEEP_START: u8;
    static SLEEP_END: u8;
    static FAULT_START: u8;
    static FAULT_END: u8;
    static SPIN_START: u8;
    static SPIN_END: u8;
    static NOWHERE_START: u8;
    static NOWHERE_END: u8;
    static COUNT_START: u8;
    static COUNT_END: u8;
}

fn boot(code: &[u8]) -> Bench {
    Bench::boot(file(&elf(ADDRESS, code)), None, &config(1, ""))
}

#[test]
fn the_keyboard_controller_resets() {
    drop(or_skip!(kvm()));
    assert_eq!(boot(code_between!(RESET_START, RESET_END)).exit(), Exit::Reset);
}

#[test]
fn the_sleep_register_switches_off() {
    drop(or_skip!(kvm()));
    assert_eq!(boot(code_between!(SLEEP_START, SLEEP_END)).exit(), Exit::Reset);
}

#[test]
fn a_triple_fault_is_a_crash() {
    drop(or_skip!(kvm()));
    let exit = boot(code_between!(FAULT_START, FAULT_END)).exit();
    assert_eq!(exit, Exit::Crashed("the guest's processor shut down (triple fault)".into()));
}

#[test]
fn what_nobody_answers_reads_as_ones() {
    drop(or_skip!(kvm()));
    assert_eq!(boot(code_between!(NOWHERE_START, NOWHERE_END)).exit(), Exit::Reset);
}

#[test]
fn a_guest_that_spins_with_interrupts_off_can_be_paused_and_ended() {
    drop(or_skip!(kvm()));
    let mut bench = boot(code_between!(SPIN_START, SPIN_END));
    for _ in 0..20 {
        bench.machine.pause();
        assert!(!bench.machine.is_running());
        bench.machine.resume();
    }
    let started = Instant::now();
    drop(bench);
    assert!(started.elapsed() < PATIENCE);
}

#[test]
fn a_paused_guest_stands_still_and_goes_on() {
    use vm_memory::{Bytes, GuestAddress};
    drop(or_skip!(kvm()));
    let mut bench = boot(code_between!(COUNT_START, COUNT_END));
    let count = |bench: &Bench| bench.machine.memory().read_obj::<u64>(GuestAddress(0x40_0000)).unwrap();
    let mut last = 0;
    for _ in 0..5 {
        let deadline = Instant::now() + PATIENCE;
        while count(&bench) <= last {
            assert!(Instant::now() < deadline, "the guest does not count");
            bench.events.turn(Some(Duration::from_millis(1))).unwrap();
        }
        bench.machine.pause();
        last = count(&bench);
        bench.events.turn(Some(Duration::from_millis(20))).unwrap();
        assert_eq!(count(&bench), last);
        bench.machine.resume();
    }
}
