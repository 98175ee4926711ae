//! A virtual machine in the VMM process: made as far as can be before it is known whose it will be ([`Shell`]), then booted
//! or restored ([`Machine`]). No words with the host here; what is needed of it comes as open descriptors.
//!
//! ```text
//!   Shell::new --+-- boot -----> Machine, running  --- pause ---> paused --- save ---> MachineState
//!                +-- restore --> Machine, paused   <-- resume --
//! ```
//!
//! One thread, the device thread, owns all of it and turns the [`EventLoop`]; each vCPU has a thread of its own.

mod check;
mod devices;
mod doors;
mod errors;
mod state;
mod timings;

use std::fs::File;
use std::ops::Range;
use std::os::fd::{FromRawFd, IntoRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::{Arc, PoisonError};

use kvm_bindings::kvm_userspace_memory_region;
use kvm_ioctls::{Kvm, VmFd};
use vm_memory::{Address, GuestMemoryBackend, GuestMemoryRegion, MemoryRegionAddress};
use vmm_sys_util::eventfd::EventFd;

pub use self::check::ConfigError;
use self::devices::Devices;
pub use self::devices::{DeviceError, DeviceFiles};
pub use self::doors::DoorError;
use self::doors::Doors;
pub use self::errors::{BootError, RestoreError, SaveError, ShellError};
pub use self::state::{DecodeError, MachineState};
use self::timings::Stopwatch;
pub use self::timings::{MachineTimings, ShellTimings};
use crate::arch::{self, Host, KvmError};
use crate::config::{BootProtocol, Exit, MAX_VCPUS, MachineConfig};
use crate::event_loop::EventLoop;
use crate::memory::{LOW_END, Memory, Room};
use crate::snapshot::{Access, WorkingSet};
use crate::vcpu::{Outcome, Vcpus};

/// What a machine boots from.
pub struct BootFiles {
    /// An ELF kernel.
    pub kernel: File,
    /// How it is entered.
    pub protocol: BootProtocol,
    /// Its initial file system.
    pub initramfs: Option<File>,
    /// A memory file of the machine's size, all zero. It becomes the machine's memory.
    pub memory: OwnedFd,
    /// What its devices need.
    pub devices: DeviceFiles,
}

/// What a machine is restored from, beside its state.
pub struct RestoreFiles {
    /// The template's memory file. It is not written to.
    pub memory: OwnedFd,
    /// What its devices need.
    pub devices: DeviceFiles,
    /// Ranges of the memory file that the machine is expected to need at once.
    pub working_set: Vec<Range<u64>>,
}

/// A virtual machine with vCPUs whose threads wait, and nothing else.
pub struct Shell {
    // Dropped in this order: the threads before what they use.
    vcpus: Vcpus,
    vm: VmFd,
    room: Room,
    doors: Doors,
    host: Arc<Host>,
    timings: ShellTimings,
}

impl Shell {
    /// Makes one of the open `/dev/kvm`. Each vCPU's thread calls `on_vcpu_thread` before anything else.
    pub fn new(kvm: OwnedFd, vcpus: u8, on_vcpu_thread: fn()) -> Result<Shell, ShellError> {
        if !(1..=MAX_VCPUS).contains(&vcpus) {
            return Err(ShellError::Vcpus(vcpus));
        }
        let mut watch = Stopwatch::start();
        // SAFETY: the descriptor is ours and given away here.
        let kvm = unsafe { Kvm::from_raw_fd(kvm.into_raw_fd()) };
        let host = Host::probe(&kvm)?;
        let probe = watch.lap();
        let vm = arch::create_vm(&kvm)?;
        let room = Room::new()?;
        set_slot(&vm, LOW_SLOT, 0, LOW_END, room.address())?;
        let doors = Doors::new(&vm)?;
        let vm_time = watch.lap();
        let mut fds = Vec::new();
        for index in 0..vcpus {
            let vcpu = vm.create_vcpu(u64::from(index)).map_err(KvmError::to("create a vcpu"))?;
            arch::prepare_vcpu(&vcpu, index, vcpus, &host)?;
            fds.push(vcpu);
        }
        let vcpu_time = watch.lap();
        let outcome = Arc::new(Outcome::new().map_err(ShellError::EventFd)?);
        let vcpus = Vcpus::start(fds, outcome, on_vcpu_thread)?;
        let timings = ShellTimings { probe, vm: vm_time, vcpus: vcpu_time, threads: watch.lap() };
        Ok(Shell { vcpus, vm, room, doors, host: Arc::new(host), timings })
    }

    /// How long its making took.
    pub fn timings(&self) -> &ShellTimings {
        &self.timings
    }

    /// Boots a kernel. The machine comes up running; `events` is to be turned from now on.
    pub fn boot(
        mut self,
        config: &MachineConfig,
        files: BootFiles,
        events: &mut EventLoop,
    ) -> Result<Machine, BootError> {
        let mut watch = Stopwatch::start();
        check::config(config, self.vcpus.count())?;
        let memory = self.room.shared(&files.memory, check::memory_bytes(config), config.huge_pages)?;
        let memory_time = watch.lap();
        let doors = std::mem::take(&mut self.doors);
        let devices = Devices::new(config, files.devices, &memory, self.vcpus.outcome(), doors)?;
        let devices_time = watch.lap();
        let cmdline = command_line(config);
        let parts = arch::BootParts {
            kernel: &files.kernel,
            protocol: files.protocol,
            initramfs: files.initramfs.as_ref(),
            cmdline: &cmdline,
            vcpus: config.vcpus,
            slots: &devices.slots(),
            serial: config.serial,
        };
        let entry = arch::load(&memory, &parts)?;
        devices.generation().renew(&memory)?;
        let load_time = watch.lap();
        set_memory(&self.vm, &memory)?;
        devices.attach(&self.vm, events)?;
        let attach_time = watch.lap();
        let entered = self.vcpus.start_job(move |index, vcpu| match index {
            0 => arch::enter(vcpu, entry),
            _ => Ok(()),
        });
        entered.wait()?.into_iter().collect::<Result<Vec<()>, _>>()?;
        self.vcpus.connect(&devices.buses()?);
        let timings = MachineTimings {
            memory: memory_time,
            devices: devices_time,
            load: load_time,
            attach: attach_time,
            vcpus: watch.lap(),
            populate: 0,
        };
        let mut machine = self.into_machine(config.clone(), memory, devices, timings);
        machine.resume();
        Ok(machine)
    }

    /// Restores a saved machine. It comes up paused, with a generation id of its own; `events` is to be turned from when it
    /// is resumed.
    pub fn restore(
        mut self,
        state: MachineState,
        files: RestoreFiles,
        events: &mut EventLoop,
    ) -> Result<Machine, RestoreError> {
        let mut watch = Stopwatch::start();
        let MachineState { config, vm, vcpus, devices: device_states, serial } = state;
        check::state(&config, vcpus.len(), &device_states, self.vcpus.count())?;
        let memory = self.room.private(&files.memory, check::memory_bytes(&config))?;
        set_memory(&self.vm, &memory)?;
        let memory_time = watch.lap();
        // The vCPUs' threads and this one work at the same time.
        let host = Arc::clone(&self.host);
        let pending = self.vcpus.start_job(move |index, vcpu| vcpus[index].restore(vcpu, &host));
        let doors = std::mem::take(&mut self.doors);
        let built =
            Devices::restore(&config, files.devices, &memory, self.vcpus.outcome(), doors, &device_states, serial);
        let devices_time = watch.lap();
        let restored = pending.wait()?;
        for (index, result) in restored.into_iter().enumerate() {
            result.map_err(|source| RestoreError::Vcpu { index, source })?;
        }
        let devices = built?;
        // After the vCPUs: what is pending in a controller goes to their local ones now.
        vm.restore_chips(&self.vm)?;
        vm.restore_clock(&self.vm)?;
        let vcpus_time = watch.lap();
        devices.generation().renew(&memory)?;
        // Interrupts that devices have raised by now are delivered by this.
        devices.attach(&self.vm, events)?;
        devices.generation().announce();
        self.vcpus.connect(&devices.buses()?);
        let attach_time = watch.lap();
        let expected = WorkingSet::from_ranges(files.working_set, check::memory_bytes(&config));
        // That the kernel refuses changes only the speed.
        let _ = expected.populate(&memory, Access::Read);
        let timings = MachineTimings {
            memory: memory_time,
            devices: devices_time,
            load: 0,
            attach: attach_time,
            vcpus: vcpus_time,
            populate: watch.lap(),
        };
        Ok(self.into_machine(config, memory, devices, timings))
    }

    fn into_machine(self, config: MachineConfig, memory: Memory, devices: Devices, timings: MachineTimings) -> Machine {
        let Shell { vcpus, vm, room, host, .. } = self;
        Machine { vcpus, vm, devices, memory, _room: room, host, config, timings, running: false }
    }
}

/// A virtual machine that has booted or was restored. Dropping it ends it.
pub struct Machine {
    // Dropped in this order: threads, virtual machine, and only then what the guest's accesses reach.
    vcpus: Vcpus,
    vm: VmFd,
    devices: Devices,
    memory: Memory,
    _room: Room,
    host: Arc<Host>,
    config: MachineConfig,
    timings: MachineTimings,
    running: bool,
}

impl Machine {
    /// What it is made of.
    pub fn config(&self) -> &MachineConfig {
        &self.config
    }

    /// Its memory.
    pub fn memory(&self) -> &Memory {
        &self.memory
    }

    /// How long its boot or restore took.
    pub fn timings(&self) -> &MachineTimings {
        &self.timings
    }

    /// Stops the vCPUs; when this returns they stand still between two instructions. Whether the guest's clock goes on
    /// meanwhile is seen when it goes on: in this process it does, in a restored one it does not.
    pub fn pause(&mut self) {
        if !self.running {
            return;
        }
        self.vcpus.park();
        self.running = false;
        // So that a watchdog in the guest does not bark when it goes on. A guest without such a clock has none.
        let _ = self.vcpus.start_job(|_, vcpu| arch::stood_still(vcpu)).wait();
    }

    /// Lets the vCPUs run.
    pub fn resume(&mut self) {
        if !self.running {
            self.running = true;
            self.vcpus.run();
        }
    }

    /// Whether the vCPUs run.
    pub fn is_running(&self) -> bool {
        self.running
    }

    /// Takes the state of everything but memory. Pauses first; the machine stays paused.
    pub fn save(&mut self) -> Result<MachineState, SaveError> {
        self.pause();
        if self.vcpus.outcome().is_set() {
            return Err(SaveError::Ended);
        }
        let host = Arc::clone(&self.host);
        let saved = self.vcpus.start_job(move |_, vcpu| arch::VcpuState::save(vcpu, &host)).wait()?;
        let mut vcpus = saved.into_iter().collect::<Result<Vec<_>, _>>()?;
        let tsc = vcpus.first().map_or(0, arch::VcpuState::tsc);
        for vcpu in &mut vcpus {
            vcpu.set_tsc(tsc);
        }
        Ok(MachineState {
            config: self.config.clone(),
            vm: arch::VmState::save(&self.vm)?,
            vcpus,
            devices: self.devices.save(),
            serial: self.devices.save_serial(),
        })
    }

    /// Makes `stream` the host's end of a new connection to a port of the guest; closed if that fails.
    pub fn connect(&mut self, port: u32, stream: UnixStream) {
        self.devices.vsock().connect(port, stream);
    }

    /// Lets the guest connect to a port of the host; `listener` gets the host's end of each connection.
    pub fn listen(&mut self, port: u32, listener: impl FnMut(UnixStream) + Send + 'static) {
        self.devices.vsock().listen(port, listener);
    }

    /// Puts another file behind a drive; the guest is told of the new size.
    pub fn exchange_drive(&mut self, index: usize, file: File) -> Result<(), DeviceError> {
        let drive = self.devices.drives().get(index).ok_or(DeviceError::NoDrive(index))?;
        let mut drive = drive.lock().unwrap_or_else(PoisonError::into_inner);
        drive.exchange(file).map_err(|source| DeviceError::Host { what: "drive", source })
    }

    /// Readable from when the machine has ended.
    pub fn exit_fd(&self) -> &EventFd {
        self.vcpus.outcome().fd()
    }

    /// How the machine ended, once.
    pub fn exit(&mut self) -> Option<Exit> {
        self.vcpus.outcome().take()
    }
}

/// What the host wants to say to the kernel, and what the machine needs to. What follows a lone `--` is for the first program
/// and stays at the end.
fn command_line(config: &MachineConfig) -> String {
    let given: Vec<&str> = config.cmdline.split_ascii_whitespace().collect();
    let end = given.iter().position(|word| *word == "--").unwrap_or(given.len());
    let (for_kernel, for_init) = given.split_at(end);
    let mut words = for_kernel.to_vec();
    // A kernel that gives up ends the machine at once.
    if !for_kernel.iter().any(|word| word.starts_with("panic=")) {
        words.push("panic=-1");
    }
    if config.serial && !for_kernel.iter().any(|word| word.starts_with("console=")) {
        words.push("console=ttyS0");
    }
    words.extend(for_init);
    words.join(" ")
}

/// KVM's number for low memory; what lies above has the next.
const LOW_SLOT: u32 = 0;

/// Tells KVM of the memory that it does not know of yet: what lies outside of the room.
fn set_memory(vm: &VmFd, memory: &Memory) -> Result<(), KvmError> {
    for (slot, region) in (LOW_SLOT..).zip(memory.iter()).skip(1) {
        let Ok(address) = region.get_host_address(MemoryRegionAddress(0)) else { continue };
        set_slot(vm, slot, region.start_addr().raw_value(), region.len(), address as u64)?;
    }
    Ok(())
}

fn set_slot(vm: &VmFd, slot: u32, start: u64, bytes: u64, address: u64) -> Result<(), KvmError> {
    let region = kvm_userspace_memory_region {
        slot,
        flags: 0,
        guest_phys_addr: start,
        memory_size: bytes,
        userspace_addr: address,
    };
    // SAFETY: what is mapped at these addresses stays the guest's until after the virtual machine is closed: `Machine` drops
    // its memory and its room last, and whoever fails before there is one drops the shell, which has run no vCPU.
    unsafe { vm.set_user_memory_region(region) }.map_err(KvmError::to("set the guest's memory"))
}

#[cfg(test)]
mod tests;
