//! The probe's virtual machine: one processor in 64-bit mode with a few pages, run on a thread of its own.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread;
use std::time::{Duration, Instant};

use kvm_bindings::{CpuId, KVM_MAX_CPUID_ENTRIES, kvm_segment, kvm_userspace_memory_region, kvm_xcrs};
use kvm_ioctls::{Kvm, VcpuExit, VcpuFd, VmFd};
use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend};
use vmm_sys_util::signal::{Killable, SIGRTMIN, register_signal_handler};

use super::code::{self, EXTENDED, ExtendedState, INSTRUCTIONS, PORT_LOOP, PORT_WRONG, STEP, TURNS};
use super::{Stop, Unusable};
use crate::memory::Memory;

const MEMORY_SIZE: usize = 0x2_0000;
/// Page tables: one of each level; the last maps 2 MiB one to one.
const TABLES: [u64; 3] = [0x1000, 0x2000, 0x3000];
const IDT: u64 = 0x4000;
const GDT: u64 = 0x5000;
const DATA: u64 = 0x6000;
const STATE: u64 = 0x7000;
const STACK: u64 = 0xc000;
const CODE: u64 = 0x1_0000;
/// Selectors of the descriptors in the GDT.
const CODE_SELECTOR: u16 = 8;
const DATA_SELECTOR: u16 = 16;
/// How often a machine that does not end is told to.
const NUDGE: Duration = Duration::from_millis(10);
/// How many times, before its thread is left alone.
const NUDGES: u32 = 50;

/// What a run came to.
#[derive(Debug)]
pub struct Run {
    /// Time of the loop.
    pub elapsed: Duration,
    /// The processor's vendor.
    pub vendor: String,
    /// How the guest saved extended state.
    pub extended_state: ExtendedState,
}

/// Runs the code with so many turns of its loop. Where it neither ends nor stops within `limit`, the thread is told to give up.
pub fn run(kvm: Kvm, turns: u64, limit: Duration) -> Result<Run, Unusable> {
    let machine = Machine::new(kvm, turns)?;
    let memory = machine.memory.clone();
    let stop = Arc::new(AtomicBool::new(false));
    let (report, reported) = mpsc::channel();
    let signal = SIGRTMIN() + 1;
    register_signal_handler(signal, nothing).map_err(|error| setup("install a signal handler", error))?;
    let thread = thread::Builder::new()
        .name("kvm-probe".to_owned())
        .spawn({
            let stop = Arc::clone(&stop);
            move || {
                // Nobody listens any more if it took too long.
                let _ = report.send(machine.run(&stop));
            }
        })
        .map_err(|source| Unusable::Setup { doing: "start a thread", source })?;
    if let Ok(result) = reported.recv_timeout(limit) {
        return result;
    }
    stop.store(true, Ordering::SeqCst);
    for _ in 0..NUDGES {
        // It may have ended meanwhile.
        let _ = thread.kill(signal);
        match reported.recv_timeout(NUDGE) {
            Ok(_) | Err(RecvTimeoutError::Disconnected) => break,
            Err(RecvTimeoutError::Timeout) => {}
        }
    }
    Err(Unusable::Hangs { at: instruction(&memory) })
}

/// The signal's whole purpose is to end the system call.
extern "C" fn nothing(_: libc::c_int, _: *mut libc::siginfo_t, _: *mut libc::c_void) {}

struct Machine {
    vcpu: VcpuFd,
    // Closed after the vCPU; the memory must outlive both.
    _vm: VmFd,
    memory: Memory,
    vendor: String,
    extended_state: ExtendedState,
}

impl Machine {
    fn new(kvm: Kvm, turns: u64) -> Result<Self, Unusable> {
        let vm = kvm.create_vm().map_err(|error| setup("create a virtual machine", error))?;
        let memory = Memory::from_ranges(&[(GuestAddress(0), MEMORY_SIZE)])
            .map_err(|error| Unusable::Setup { doing: "map memory", source: io::Error::other(error) })?;
        let address = memory
            .get_host_address(GuestAddress(0))
            .map_err(|error| Unusable::Setup { doing: "map memory", source: io::Error::other(error) })?;
        let region = kvm_userspace_memory_region {
            slot: 0,
            flags: 0,
            guest_phys_addr: 0,
            memory_size: MEMORY_SIZE as u64,
            userspace_addr: address as u64,
        };
        // SAFETY: the region is `memory`, which the machine keeps until the virtual machine is closed.
        unsafe { vm.set_user_memory_region(region) }.map_err(|error| setup("give a virtual machine memory", error))?;
        let vcpu = vm.create_vcpu(0).map_err(|error| setup("create a virtual processor", error))?;
        let cpuid = kvm.get_supported_cpuid(KVM_MAX_CPUID_ENTRIES).map_err(|error| setup("read CPUID", error))?;
        vcpu.set_cpuid2(&cpuid).map_err(|error| setup("set CPUID", error))?;
        let extended_state = extended_state(&cpuid);
        fill(&memory, turns, extended_state)
            .map_err(|error| Unusable::Setup { doing: "write guest memory", source: io::Error::other(error) })?;
        set_registers(&vcpu, extended_state).map_err(|error| setup("set a virtual processor's registers", error))?;
        Ok(Self { vcpu, _vm: vm, memory, vendor: vendor(&cpuid), extended_state })
    }

    fn run(mut self, stop: &AtomicBool) -> Result<Run, Unusable> {
        let mut begun = None;
        loop {
            if stop.load(Ordering::SeqCst) {
                return Err(Unusable::Hangs { at: instruction(&self.memory) });
            }
            let how = match self.vcpu.run() {
                Ok(VcpuExit::IoOut(PORT_LOOP, _)) => match begun {
                    None => {
                        begun = Some(Instant::now());
                        continue;
                    }
                    Some(begun) => {
                        let elapsed = begun.elapsed();
                        return Ok(Run { elapsed, vendor: self.vendor, extended_state: self.extended_state });
                    }
                },
                Ok(VcpuExit::IoOut(PORT_WRONG, _)) => Stop::WrongResult,
                Ok(VcpuExit::Intr) => continue,
                Ok(VcpuExit::InternalError) => Stop::InternalError,
                Ok(VcpuExit::Shutdown) => Stop::Shutdown,
                Ok(VcpuExit::FailEntry(reason, _)) => Stop::EntryRefused(reason),
                Ok(_) => Stop::Unexpected,
                Err(error) if [libc::EINTR, libc::EAGAIN].contains(&error.errno()) => continue,
                Err(error) => Stop::Failed(error.errno()),
            };
            return Err(Unusable::Stops { at: instruction(&self.memory), how });
        }
    }
}

fn setup(doing: &'static str, error: kvm_ioctls::Error) -> Unusable {
    Unusable::Setup { doing, source: io::Error::from(error) }
}

/// The instruction that the guest was about to run.
fn instruction(memory: &Memory) -> &'static str {
    let step: u32 = memory.read_obj(GuestAddress(DATA + STEP)).unwrap_or(0);
    INSTRUCTIONS.get(step as usize).copied().unwrap_or(INSTRUCTIONS[0])
}

/// Tables, code and data.
fn fill(memory: &Memory, turns: u64, extended_state: ExtendedState) -> Result<(), vm_memory::GuestMemoryError> {
    // Present and writable; the last one for 2 MiB.
    memory.write_obj(TABLES[1] | 0b11, GuestAddress(TABLES[0]))?;
    memory.write_obj(TABLES[2] | 0b11, GuestAddress(TABLES[1]))?;
    memory.write_obj(0b1000_0011u64, GuestAddress(TABLES[2]))?;
    // Nothing, code for 64 bits, data.
    memory.write_obj([0u64, 0x00af_9b00_0000_ffff, 0x00cf_9300_0000_ffff], GuestAddress(GDT))?;
    let (code, int3) = code::guest();
    memory.write_slice(code, GuestAddress(CODE))?;
    // An interrupt gate for vector 3; a gate is 16 bytes.
    let handler = CODE + int3;
    let low = (handler & 0xffff) | u64::from(CODE_SELECTOR) << 16 | 0x8e00 << 32 | (handler >> 16 & 0xffff) << 48;
    memory.write_obj([low, handler >> 32], GuestAddress(IDT + 3 * 16))?;
    memory.write_obj(turns, GuestAddress(DATA + TURNS))?;
    memory.write_obj(extended_state as u32, GuestAddress(DATA + EXTENDED))
}

/// 64-bit mode from the first instruction on.
fn set_registers(vcpu: &VcpuFd, extended_state: ExtendedState) -> Result<(), kvm_ioctls::Error> {
    let mut special = vcpu.get_sregs()?;
    let flat = kvm_segment { base: 0, limit: 0xf_ffff, present: 1, s: 1, g: 1, ..Default::default() };
    special.cs = kvm_segment { selector: CODE_SELECTOR, type_: 0xb, l: 1, ..flat };
    let data = kvm_segment { selector: DATA_SELECTOR, type_: 3, db: 1, ..flat };
    (special.ds, special.es, special.fs, special.gs, special.ss) = (data, data, data, data, data);
    (special.gdt.base, special.gdt.limit) = (GDT, 23);
    (special.idt.base, special.idt.limit) = (IDT, 4 * 16 - 1);
    special.cr3 = TABLES[0];
    // Protection, coprocessor monitored and present, errors of it as exceptions, write protection, paging.
    special.cr0 = 1 | 1 << 1 | 1 << 4 | 1 << 5 | 1 << 16 | 1 << 31;
    // Physical address extension, fxsave and SIMD exceptions, xsave.
    special.cr4 = 1 << 5 | 1 << 9 | 1 << 10 | if extended_state == ExtendedState::Fxsave { 0 } else { 1 << 18 };
    // Long mode, enabled and active.
    special.efer = 1 << 8 | 1 << 10;
    vcpu.set_sregs(&special)?;
    if extended_state != ExtendedState::Fxsave {
        // x87 and SSE, which the guest sets itself as well. Where SVM is emulated in software the processor may do that without
        // telling KVM, which then goes on with the value that it knows.
        let mut registers = kvm_xcrs { nr_xcrs: 1, ..Default::default() };
        registers.xcrs[0].value = 0b11;
        vcpu.set_xcrs(&registers)?;
    }
    let mut registers = vcpu.get_regs()?;
    (registers.rip, registers.rsp, registers.rflags) = (CODE, STACK, 2);
    (registers.rdi, registers.rsi) = (DATA, STATE);
    vcpu.set_regs(&registers)
}

/// The best way that guests may use.
fn extended_state(cpuid: &CpuId) -> ExtendedState {
    let leaf = |function, index| cpuid.as_slice().iter().find(|leaf| (leaf.function, leaf.index) == (function, index));
    if leaf(1, 0).is_none_or(|leaf| leaf.ecx & 1 << 26 == 0) {
        ExtendedState::Fxsave
    } else if leaf(0xd, 1).is_some_and(|leaf| leaf.eax & 1 << 3 != 0) {
        ExtendedState::Xsaves
    } else {
        ExtendedState::Xsave
    }
}

fn vendor(cpuid: &CpuId) -> String {
    let Some(leaf) = cpuid.as_slice().iter().find(|leaf| leaf.function == 0) else { return "unknown".to_owned() };
    let bytes: Vec<u8> = [leaf.ebx, leaf.edx, leaf.ecx].iter().flat_map(|part| part.to_le_bytes()).collect();
    String::from_utf8_lossy(&bytes).into_owned()
}
