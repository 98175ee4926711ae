//! A process that waits to become a machine, and how it becomes one.

use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::link::{CallError, Link};
use super::microvm::{MachineReport, MicroVm, Origin, scratch};
use crate::config::{BootProtocol, Exit, MAX_DRIVES, MachineConfig};
use crate::snapshot::{self, Template};
use crate::wire::{self, Answer, Boot, Call, Restore, ShellTimes};

/// How long the making of a shell took.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ShellReport {
    /// What the process measured, in microseconds.
    pub inside: ShellTimes,
    /// From the decision until the host knew that it is ready.
    pub total: Duration,
}

/// What a machine boots.
#[derive(Debug)]
pub struct Kernel {
    /// A vmlinux.
    pub image: File,
    /// How it is entered.
    pub protocol: BootProtocol,
    /// The first file system, if the drives do not hold it.
    pub initramfs: Option<File>,
}

/// What belongs to one machine beside its memory.
#[derive(Debug, Default)]
pub struct Attached {
    /// The files behind its drives, in order. A drive that the guest may only read is opened for reading only.
    pub drives: Vec<File>,
    /// Its tap device, if it has a network.
    pub tap: Option<OwnedFd>,
    /// Where the output of its serial port goes, if it has one.
    pub serial: Option<OwnedFd>,
}

/// Whether a restored machine runs at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum After {
    /// It waits for [`MicroVm::resume`].
    Paused,
    /// It runs.
    Running,
}

/// Why a shell did not become a machine. It is gone.
#[derive(Debug, thiserror::Error)]
pub enum MachineError {
    /// The configuration wants something else than what is there.
    #[error("{0}")]
    Unfit(&'static str),
    /// A drive that the guest may only read came as a file that can be written.
    #[error("drive {0} is read-only for the guest; open its file for reading only")]
    Writable(usize),
    /// There is no memory file for it.
    #[error("cannot make {bytes} bytes of memory for a machine")]
    Memory {
        /// What was wanted.
        bytes: u64,
        /// What the kernel said.
        source: io::Error,
    },
    /// The tap device cannot be used.
    #[error("cannot prepare the tap device")]
    Tap(#[source] io::Error),
    /// The VMM process did not do its part.
    #[error("cannot make the machine")]
    Call(#[from] CallError),
}

/// A jailed VMM process with a virtual machine, and no memory in it yet. Dropping it kills.
#[derive(Debug)]
pub struct Shell {
    link: Link,
    vcpus: u8,
    report: ShellReport,
}

impl Shell {
    pub(super) fn new(link: Link, vcpus: u8, report: ShellReport) -> Shell {
        Shell { link, vcpus, report }
    }

    /// Boots a machine, which runs when this returns.
    ///
    /// # Errors
    /// [`MachineError`]; the process is gone then.
    pub async fn boot(
        self,
        config: &MachineConfig,
        kernel: Kernel,
        attached: Attached,
    ) -> Result<MicroVm, MachineError> {
        let begun = Instant::now();
        self.check(config, &attached)?;
        let bytes = u64::from(config.memory_mib) << 20;
        let memory = |source| MachineError::Memory { bytes, source };
        let file = snapshot::memory(bytes, config.huge_pages).map_err(memory)?;
        let call = Boot {
            config: config.clone(),
            protocol: kernel.protocol,
            has_initramfs: kernel.initramfs.is_some(),
            has_serial: attached.serial.is_some(),
        };
        let mut fds = vec![file.try_clone().map_err(memory)?, kernel.image.into()];
        fds.extend(kernel.initramfs.map(OwnedFd::from));
        self.finish(Call::Boot(call), fds, attached, Origin::Memory(file), bytes, begun).await
    }

    /// Makes a clone of a template.
    ///
    /// # Errors
    /// [`MachineError`]; the process is gone then.
    pub async fn restore(
        self,
        template: &Arc<Template>,
        attached: Attached,
        after: After,
    ) -> Result<MicroVm, MachineError> {
        let begun = Instant::now();
        if attached.drives.len() > MAX_DRIVES {
            return Err(MachineError::Unfit("a machine cannot have so many drives"));
        }
        let bytes = template.memory_bytes();
        let failed = |source| MachineError::Memory { bytes, source };
        let (state, ranges) = (scratch().map_err(failed)?, scratch().map_err(failed)?);
        let working_set = template.working_set().ranges();
        wire::write_state(&state, template.state()).map_err(failed)?;
        wire::write_ranges(&ranges, working_set).map_err(failed)?;
        let call = Restore {
            state: template.state().len() as u64,
            ranges: working_set.len() as u64,
            drives: attached.drives.len() as u8,
            has_tap: attached.tap.is_some(),
            has_serial: attached.serial.is_some(),
            resume: after == After::Running,
        };
        let memory = template.memory().try_clone_to_owned().map_err(failed)?;
        let fds = vec![state.into(), ranges.into(), memory];
        let origin = Origin::Template(Arc::clone(template));
        self.finish(Call::Restore(call), fds, attached, origin, bytes, begun).await
    }

    /// Moves the process into further control groups, by their `cgroup.procs`.
    pub(super) fn join(&self, cgroup_procs: &[OwnedFd]) -> io::Result<()> {
        for procs in cgroup_procs {
            rustix::io::write(procs, self.link.pid().to_string().as_bytes())?;
        }
        Ok(())
    }

    /// Its process number.
    pub fn pid(&self) -> i32 {
        self.link.pid()
    }

    /// Its vCPUs.
    pub fn vcpus(&self) -> u8 {
        self.vcpus
    }

    /// How long its making took.
    pub fn report(&self) -> ShellReport {
        self.report
    }

    /// Waits for its end, which is not expected.
    pub async fn exited(&self) -> Exit {
        self.link.exited().await
    }

    pub(super) fn has_ended(&self) -> bool {
        self.link.has_ended()
    }

    /// Ends the process and returns at once.
    pub fn kill(self) {
        drop(self);
    }

    fn check(&self, config: &MachineConfig, attached: &Attached) -> Result<(), MachineError> {
        if config.vcpus != self.vcpus {
            return Err(MachineError::Unfit("the machine's number of vCPUs is not the shell's"));
        }
        if config.drives.len() != attached.drives.len() || config.drives.len() > MAX_DRIVES {
            return Err(MachineError::Unfit("the machine's number of drives is not that of its files"));
        }
        if config.net.is_some() != attached.tap.is_some() {
            return Err(MachineError::Unfit("a machine with a network needs a tap device, and only that"));
        }
        if config.serial != attached.serial.is_some() {
            return Err(MachineError::Unfit("a machine with a serial port needs somewhere to write to, and only that"));
        }
        for (index, (drive, file)) in config.drives.iter().zip(&attached.drives).enumerate() {
            let mode = rustix::fs::fcntl_getfl(file).unwrap_or(rustix::fs::OFlags::RDWR);
            if drive.read_only && mode & rustix::fs::OFlags::ACCMODE != rustix::fs::OFlags::RDONLY {
                return Err(MachineError::Writable(index));
            }
        }
        Ok(())
    }

    async fn finish(
        self,
        call: Call,
        mut fds: Vec<OwnedFd>,
        attached: Attached,
        origin: Origin,
        bytes: u64,
        begun: Instant,
    ) -> Result<MicroVm, MachineError> {
        fds.extend(attached.drives.into_iter().map(OwnedFd::from));
        if let Some(tap) = attached.tap {
            // The process may not: it could also undo that, for streams that the host reads.
            rustix::io::ioctl_fionbio(&tap, true).map_err(|error| MachineError::Tap(error.into()))?;
            fds.push(tap);
        }
        fds.extend(attached.serial);
        match self.link.call(call, fds).await? {
            Answer::Machine(inside) => {
                let report = MachineReport { shell: self.report, inside, total: begun.elapsed() };
                Ok(MicroVm::new(self.link, origin, bytes, report))
            }
            Answer::Done | Answer::Written(_) => Err(self.link.unfit().into()),
        }
    }
}
