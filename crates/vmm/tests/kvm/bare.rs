//! Guests of a few instructions, entered as a kernel would be: what they do to the machine, and what it bears.

use std::arch::global_asm;
use std::fs::File;
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt;
use std::time::{Duration, Instant};

use vm_memory::{Bytes, GuestAddress};
use vmm::config::Exit;
use vmm::machine::{ConfigError, MachineState, RestoreError, Shell, ShellError};

use crate::support::{Bench, PATIENCE, config, file, kvm, memory_file, or_skip, shell};
use crate::ticker::{code_between, elf};

const ADDRESS: u64 = 2 << 20;

global_asm!(
    ".pushsection .rodata.bare, \"a\"",
    ".global RESET_START, RESET_END, SLEEP_START, SLEEP_END, FAULT_START, FAULT_END, SPIN_START, SPIN_END",
    ".global NOWHERE_START, NOWHERE_END, BEYOND_START, BEYOND_END, COUNT_START, COUNT_END",
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
    // The last entry of the page tables that it was given: an address among the devices', where there is none.
    "mov eax, 0xd0800083",
    "mov ebx, 0xbff8",
    "mov [rbx], rax",
    "mov ebx, 0x3fe00000",
    "mov eax, [rbx]",
    "cmp eax, -1",
    "jne 3f",
    "mov [rbx], rax",
    "mov al, 0xfe",
    "out 0x64, al",
    "3:",
    "ud2",
    "NOWHERE_END:",
    "BEYOND_START:",
    "mov ebx, 0x3fe00000",
    "mov [rbx], rax",
    "hlt",
    "BEYOND_END:",
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
    static BEYOND_START: u8;
    static BEYOND_END: u8;
    static COUNT_START: u8;
    static COUNT_END: u8;
}

/// Where [`COUNT_START`] counts.
const COUNTER: u64 = 0x40_0000;

fn count(bench: &Bench) -> u64 {
    bench.machine.memory().read_obj(GuestAddress(COUNTER)).unwrap()
}

/// Turns the loop until the guest has counted on from here.
fn wait_for_count(bench: &mut Bench, from: u64) {
    let deadline = Instant::now() + PATIENCE;
    while count(bench) <= from {
        assert!(Instant::now() < deadline, "the guest does not count");
        bench.events.turn(Some(Duration::from_millis(1))).unwrap();
    }
}

/// A guest that has counted for a while, saved: where it came to, its state and its memory.
pub fn counting(vcpus: u8) -> (u64, Vec<u8>, OwnedFd) {
    let config = config(vcpus, "");
    let memory = memory_file(config.memory_mib);
    let code = code_between!(COUNT_START, COUNT_END);
    let mut bench = Bench::boot_in(memory.try_clone().unwrap(), file(&elf(ADDRESS, code)), None, &config);
    wait_for_count(&mut bench, 0);
    let state = bench.machine.save().unwrap().encode().unwrap();
    (count(&bench), state, memory)
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
fn reaching_for_memory_that_is_not_there_ends_the_machine() {
    // A KVM that interprets its guests lets them write to nowhere.
    or_skip!(vmm::probe::probe());
    let exit = boot(code_between!(BEYOND_START, BEYOND_END)).exit();
    assert!(matches!(&exit, Exit::Crashed(reason) if reason.contains("memory")), "{exit:?}");
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
    drop(or_skip!(kvm()));
    let mut bench = boot(code_between!(COUNT_START, COUNT_END));
    let mut last = 0;
    for _ in 0..5 {
        wait_for_count(&mut bench, last);
        bench.machine.pause();
        last = count(&bench);
        bench.events.turn(Some(Duration::from_millis(20))).unwrap();
        assert_eq!(count(&bench), last);
        bench.machine.resume();
    }
}

#[test]
fn ten_clones_go_on_from_one_state_each_on_its_own() {
    drop(or_skip!(kvm()));
    let (saved, state, memory) = counting(1);
    let mut clones: Vec<Bench> = (0..10).map(|_| Bench::restore(&state, &memory).unwrap()).collect();
    for clone in &mut clones {
        assert!(count(clone) >= saved);
        wait_for_count(clone, saved);
    }
    let mut in_file = [0; 8];
    File::from(memory).read_exact_at(&mut in_file, COUNTER).unwrap();
    assert_eq!(u64::from_le_bytes(in_file), saved, "a clone wrote to its template");
}

#[test]
fn a_state_survives_being_saved_again() {
    drop(or_skip!(kvm()));
    let (_, state, memory) = counting(2);
    let decoded = MachineState::decode(&state).unwrap();
    assert_eq!(decoded.config().vcpus, 2);
    assert_eq!(decoded.encode().unwrap(), state);
    let mut bench = Bench::restore(&state, &memory).unwrap();
    let again = bench.machine.save().unwrap().encode().unwrap();
    assert_eq!(MachineState::decode(&again).unwrap().config(), decoded.config());
}

#[test]
fn damaged_states_are_refused_or_harm_the_guest_alone() {
    drop(or_skip!(kvm()));
    let (_, state, memory) = counting(1);
    assert!(MachineState::decode(&state[..state.len() - 1]).is_err());
    assert!(MachineState::decode(&[&state[..], &[0]].concat()).is_err());
    assert!(MachineState::decode(&[]).is_err());
    let mut version = state.clone();
    version[0] ^= 0xff;
    assert!(MachineState::decode(&version).is_err());
    // One byte flipped, all over: a check of ours or KVM refuses it, or the guest runs with it.
    // Left out is the middle, the extended registers: there a flipped byte stops the lab's emulation of nested machines.
    let mut refused = 0;
    let places = (2..state.len()).step_by(state.len() / 80).filter(|at| !(2400..6700).contains(at));
    for at in places {
        let mut bytes = state.clone();
        bytes[at] ^= 0xff;
        let Ok(state) = MachineState::decode(&bytes) else {
            refused += 1;
            continue;
        };
        match Bench::restore_into(shell(1), state, &memory) {
            Ok(mut bench) => bench.machine.pause(),
            Err(_) => refused += 1,
        }
    }
    assert!(refused > 0);
}

#[test]
fn a_shell_takes_only_the_machine_that_it_was_made_for() {
    drop(or_skip!(kvm()));
    assert!(matches!(Shell::new(kvm().unwrap(), 0, || ()), Err(ShellError::Vcpus(0))));
    assert!(matches!(Shell::new(kvm().unwrap(), 7, || ()), Err(ShellError::Vcpus(7))));
    let (_, state, memory) = counting(1);
    let state = MachineState::decode(&state).unwrap();
    let refused = Bench::restore_into(shell(2), state, &memory).map(drop);
    assert!(matches!(refused, Err(RestoreError::Config(ConfigError::Shell { wanted: 1, made: 2 }))));
}
