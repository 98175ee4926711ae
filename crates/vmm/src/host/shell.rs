//! A process that waits to become a machine.

use std::io;
use std::os::fd::OwnedFd;
use std::time::Duration;

use super::link::Link;
use crate::config::Exit;
use crate::wire::ShellTimes;

/// How long the making of a shell took.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ShellReport {
    /// What the process measured, in microseconds.
    pub inside: ShellTimes,
    /// From the decision until the host knew that it is ready.
    pub total: Duration,
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
}
