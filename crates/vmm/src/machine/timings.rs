//! How long the steps take, for benchmarks; in microseconds.

use std::time::Instant;

/// The making of a [`Shell`](super::Shell).
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct ShellTimings {
    /// Asking KVM what it can do.
    pub probe: u32,
    /// Virtual machine, interrupt controllers, addresses for memory, queues' eventfds.
    pub vm: u32,
    /// vCPUs.
    pub vcpus: u32,
    /// Their threads.
    pub threads: u32,
}

/// A boot or a restore, until the vCPUs can run.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct MachineTimings {
    /// Mapping memory; on a restore also telling KVM of what lies above 4 GiB.
    pub memory: u32,
    /// Making devices, or restoring them.
    pub devices: u32,
    /// Copying kernel and initramfs; 0 on a restore.
    pub load: u32,
    /// Waiting for the vCPUs to have their state, and interrupt controllers and clock.
    pub vcpus: u32,
    /// Connecting devices with KVM and the event loop; on a boot also telling KVM of memory above 4 GiB.
    pub attach: u32,
    /// Mapping the working set in advance; 0 on a boot.
    pub populate: u32,
}

/// Laps.
pub(super) struct Stopwatch(Instant);

impl Stopwatch {
    pub fn start() -> Stopwatch {
        Stopwatch(Instant::now())
    }

    /// Microseconds since the last lap.
    pub fn lap(&mut self) -> u32 {
        let now = Instant::now();
        let elapsed = now.duration_since(self.0).as_micros();
        self.0 = now;
        u32::try_from(elapsed).unwrap_or(u32::MAX)
    }
}
