//! What is to be done when `KVM_RUN` returns.

use kvm_bindings::{KVM_SYSTEM_EVENT_RESET, KVM_SYSTEM_EVENT_SHUTDOWN};
use kvm_ioctls::{VcpuExit, VcpuFd};

use crate::arch;
use crate::bus::Bus;
use crate::config::Exit;

/// The devices of a machine.
pub struct Buses {
    /// Those in memory.
    pub mmio: Bus,
    /// Those at ports.
    pub ports: Bus,
}

/// How it goes on.
pub enum Step {
    /// Back into the guest.
    Again,
    /// Somebody wants the vCPU to stop; it stands between two instructions.
    Interrupted,
    /// The machine has ended.
    Ended(Exit),
}

/// Runs the guest until it needs something, and does that.
pub fn step(vcpu: &mut VcpuFd, buses: &Buses) -> Step {
    match vcpu.run() {
        Ok(VcpuExit::MmioRead(address, data)) => {
            if !buses.mmio.read(address, data) {
                data.fill(0xff);
            }
        }
        Ok(VcpuExit::MmioWrite(address, data)) => {
            buses.mmio.write(address, data);
        }
        Ok(VcpuExit::IoIn(port, data)) => {
            if !buses.ports.read(u64::from(port), data) {
                data.fill(0xff);
            }
        }
        Ok(VcpuExit::IoOut(port, data)) => {
            buses.ports.write(u64::from(port), data);
        }
        Ok(VcpuExit::Intr) => return Step::Interrupted,
        Ok(VcpuExit::Shutdown) => {
            return Step::Ended(Exit::Crashed("the guest's processor shut down (triple fault)".into()));
        }
        Ok(VcpuExit::SystemEvent(KVM_SYSTEM_EVENT_SHUTDOWN | KVM_SYSTEM_EVENT_RESET, _)) => {
            return Step::Ended(Exit::Reset);
        }
        Ok(VcpuExit::SystemEvent(kind, _)) => {
            return Step::Ended(Exit::Crashed(format!("the guest reports the system event {kind}")));
        }
        Ok(VcpuExit::InternalError) => {
            return Step::Ended(Exit::Crashed(format!(
                "kvm cannot emulate an instruction of the guest{}",
                place(vcpu)
            )));
        }
        Ok(VcpuExit::FailEntry(reason, cpu)) => {
            return Step::Ended(Exit::Failed(format!(
                "the processor refuses the guest: reason {reason:#x} on cpu {cpu}"
            )));
        }
        Ok(VcpuExit::MemoryFault { gpa, .. }) => {
            return Step::Ended(Exit::Failed(format!("the host has no memory for the guest's page at {gpa:#x}")));
        }
        Ok(other) => {
            return Step::Ended(Exit::Failed(format!("kvm returned with {other:?}, which has no meaning here")));
        }
        Err(error) => match error.errno() {
            libc::EINTR => return Step::Interrupted,
            // A vCPU that waits to be woken by another one was disturbed.
            libc::EAGAIN => {}
            libc::EFAULT => {
                let text =
                    format!("the guest reached for memory that it has not, or the host has none left{}", place(vcpu));
                return Step::Ended(Exit::Crashed(text));
            }
            _ => return Step::Ended(Exit::Failed(format!("kvm cannot run the guest{}: {error}", place(vcpu)))),
        },
    }
    Step::Again
}

/// Where the guest was, as far as that is known.
fn place(vcpu: &VcpuFd) -> String {
    arch::program_counter(vcpu).map_or_else(String::new, |address| format!(" at {address:#x}"))
}
