//! A machine under test, with its event loop, its files and what it says on its serial console.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::thread;
use std::time::{Duration, Instant};

use vmm::config::{BootProtocol, Exit, MachineConfig};
use vmm::event_loop::{EventLoop, EventOps, EventSet, Events, MutEventSubscriber};
use vmm::machine::{BootFiles, DeviceFiles, Machine, MachineState, RestoreError, RestoreFiles, Shell};

use crate::ticker;

/// How long anything may take in the lab, on a host that has other work.
pub const PATIENCE: Duration = Duration::from_secs(180);

/// What this gives, or a word on stderr and the end of the test.
macro_rules! or_skip {
    ($result:expr) => {
        match $result {
            Ok(value) => value,
            Err(reason) => {
                eprintln!("SKIPPED: {reason}");
                return;
            }
        }
    };
}
pub(crate) use or_skip;

/// An open `/dev/kvm`, if machines can be made here.
pub fn kvm() -> Result<OwnedFd, String> {
    File::options()
        .read(true)
        .write(true)
        .open("/dev/kvm")
        .map(OwnedFd::from)
        .map_err(|error| format!("/dev/kvm: {error}"))
}

/// The guest's kernel, if Linux guests can be run here.
pub fn kernel() -> Result<File, String> {
    let path = std::env::var_os("FIRELET_GUEST_KERNEL").ok_or("FIRELET_GUEST_KERNEL does not name a vmlinux")?;
    vmm::probe::probe().map_err(|error| error.to_string())?;
    File::open(&path).map_err(|error| format!("{path:?}: {error}"))
}

/// A memory file.
pub fn memory_file(mib: u32) -> OwnedFd {
    let fd = rustix::fs::memfd_create("guest", rustix::fs::MemfdFlags::CLOEXEC).unwrap();
    rustix::fs::ftruncate(&fd, u64::from(mib) << 20).unwrap();
    fd
}

/// A file of these bytes.
pub fn file(bytes: &[u8]) -> File {
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(bytes).unwrap();
    file
}

pub fn config(vcpus: u8, cmdline: &str) -> MachineConfig {
    MachineConfig {
        vcpus,
        memory_mib: 128,
        huge_pages: false,
        cmdline: cmdline.into(),
        vsock_cid: 3,
        drives: Vec::new(),
        net: None,
        balloon: false,
        serial: true,
    }
}

pub fn shell(vcpus: u8) -> Shell {
    Shell::new(kvm().unwrap(), vcpus, || ()).unwrap()
}

/// Wakes the loop when the machine has ended.
struct Doorbell(OwnedFd);

impl MutEventSubscriber for Doorbell {
    fn process(&mut self, _: Events, _: &mut EventOps) {}

    fn init(&mut self, ops: &mut EventOps) {
        ops.add(Events::new(&self.0, EventSet::IN)).unwrap();
    }
}

/// What a machine says on its console, line by line.
pub struct Console(Receiver<String>);

impl Console {
    fn new() -> (OwnedFd, Console) {
        let (reader, writer) = std::io::pipe().unwrap();
        let (sender, receiver) = channel();
        thread::spawn(move || {
            let mut line = Vec::new();
            for byte in std::io::BufReader::new(reader).bytes() {
                match byte {
                    Ok(b'\n') => {
                        let text = String::from_utf8_lossy(&line).trim().to_owned();
                        if std::env::var_os("RUST_LOG").is_some() {
                            eprintln!("  | {text}");
                        }
                        if sender.send(text).is_err() {
                            return;
                        }
                        line.clear();
                    }
                    Ok(byte) => line.push(byte),
                    Err(_) => return,
                }
            }
        });
        (writer.into(), Console(receiver))
    }
}

/// A machine and everything around it.
pub struct Bench {
    // The machine goes before the loop that serves it.
    pub machine: Machine,
    pub events: EventLoop,
    pub console: Console,
    heard: Vec<String>,
}

impl Bench {
    /// Boots an ELF program or a kernel in the memory file.
    pub fn boot_in(memory: OwnedFd, kernel: File, initramfs: Option<File>, config: &MachineConfig) -> Bench {
        Bench::boot_by(BootProtocol::Linux64, memory, kernel, initramfs, config)
    }

    /// The same by another protocol.
    pub fn boot_by(
        protocol: BootProtocol,
        memory: OwnedFd,
        kernel: File,
        initramfs: Option<File>,
        config: &MachineConfig,
    ) -> Bench {
        let (output, console) = Console::new();
        let serial = config.serial.then_some(output);
        let devices = DeviceFiles { serial, ..DeviceFiles::default() };
        let files = BootFiles { kernel, protocol, initramfs, memory, devices };
        let mut events = EventLoop::new().unwrap();
        let machine = shell(config.vcpus).boot(config, files, &mut events).unwrap();
        Bench::with(machine, events, console)
    }

    pub fn boot(kernel: File, initramfs: Option<File>, config: &MachineConfig) -> Bench {
        Bench::boot_in(memory_file(config.memory_mib), kernel, initramfs, config)
    }

    /// Boots the guest's kernel with our init, which does what `role` says.
    pub fn linux(kernel: File, vcpus: u8, role: char) -> Bench {
        Bench::linux_in(memory_file(128), kernel, vcpus, role)
    }

    pub fn linux_in(memory: OwnedFd, kernel: File, vcpus: u8, role: char) -> Bench {
        Bench::boot_in(memory, kernel, Some(file(&ticker::initramfs())), &config(vcpus, &ticker::cmdline(role)))
    }

    /// Restores from a state's bytes and the memory that belongs to it; the machine runs.
    pub fn restore(state: &[u8], memory: &OwnedFd) -> Result<Bench, RestoreError> {
        let state = MachineState::decode(state).unwrap();
        let shell = shell(state.config().vcpus);
        Bench::restore_into(shell, state, memory)
    }

    /// The same with a shell that was made before.
    pub fn restore_into(shell: Shell, state: MachineState, memory: &OwnedFd) -> Result<Bench, RestoreError> {
        let (output, console) = Console::new();
        let serial = state.config().serial.then_some(output);
        let devices = DeviceFiles { serial, ..DeviceFiles::default() };
        let files = RestoreFiles { memory: memory.try_clone().unwrap(), devices, working_set: Vec::new() };
        let mut events = EventLoop::new().unwrap();
        let mut machine = shell.restore(state, files, &mut events)?;
        machine.resume();
        Ok(Bench::with(machine, events, console))
    }

    fn with(machine: Machine, mut events: EventLoop, console: Console) -> Bench {
        let exit = machine.exit_fd().try_clone().unwrap();
        // SAFETY: the descriptor was just made and is given away.
        let exit = unsafe { std::os::fd::FromRawFd::from_raw_fd(std::os::fd::IntoRawFd::into_raw_fd(exit)) };
        events.add(Box::new(Doorbell(exit)));
        Bench { machine, events, console, heard: Vec::new() }
    }

    /// Turns the loop until the machine ends.
    pub fn exit(&mut self) -> Exit {
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Some(exit) = self.machine.exit() {
                return exit;
            }
            assert!(Instant::now() < deadline, "the machine does not end; it said {:#?}", self.heard);
            self.events.turn(Some(Duration::from_millis(100))).unwrap();
        }
    }

    /// The next line of the console that begins so, while the loop turns.
    pub fn line(&mut self, start: &str) -> String {
        self.find(|line| line.starts_with(start)).unwrap_or_else(|| panic!("no {start:?} in {:#?}", self.heard))
    }

    /// The next line that holds this.
    pub fn says(&mut self, text: &str) -> String {
        self.find(|line| line.contains(text)).unwrap_or_else(|| panic!("no {text:?} in {:#?}", self.heard))
    }

    fn find(&mut self, wanted: impl Fn(&str) -> bool) -> Option<String> {
        let deadline = Instant::now() + PATIENCE;
        while Instant::now() < deadline {
            self.events.turn(Some(Duration::ZERO)).unwrap();
            match self.console.0.recv_timeout(Duration::from_millis(5)) {
                Ok(line) if wanted(&line) => return Some(line),
                Ok(line) => self.heard.push(line),
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return None,
            }
        }
        None
    }
}
