//! What the host wants: taken from its socket between two turns of the event loop, answered in order.

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use super::report;
use super::step::{Step, StepError};
use crate::config::Exit;
use crate::event_loop::{EventLoop, EventOps, EventSet, Events, MutEventSubscriber};
use crate::wire::{self, Call, Received, Report, Request};

/// The socket is ready, or its other end has gone.
struct Doorbell {
    socket: RawFd,
    rung: Arc<AtomicBool>,
}

impl MutEventSubscriber for Doorbell {
    fn process(&mut self, _: Events, _: &mut EventOps) {
        self.rung.store(true, Ordering::Relaxed);
    }

    fn init(&mut self, ops: &mut EventOps) {
        // Fails only without memory; then nobody hears the host, whose patience ends this process.
        let _ = ops.add(Events::new_raw(self.socket, EventSet::IN));
    }
}

/// Serves the host.
pub(super) struct Server<'a> {
    socket: &'a OwnedFd,
    events: EventLoop,
    rung: Arc<AtomicBool>,
    shell: engine::Shell,
    _pagemap: File,
}

impl<'a> Server<'a> {
    /// Makes the virtual machine, and the event loop.
    pub fn new(socket: &'a OwnedFd, kvm: OwnedFd, vcpus: u8, pagemap: File) -> Result<Server<'a>, StepError> {
        let shell = engine::Shell::new(kvm, vcpus).step("make a virtual machine")?;
        let mut events = EventLoop::new().step("make an event loop")?;
        let rung = Arc::new(AtomicBool::new(false));
        events.add(Box::new(Doorbell { socket: socket.as_raw_fd(), rung: Arc::clone(&rung) }));
        Ok(Server { socket, events, rung, shell, _pagemap: pagemap })
    }

    /// Serves until the machine ends; `None` if the host has gone or wants the end.
    pub fn serve(mut self) -> Result<Option<Exit>, StepError> {
        loop {
            self.events.turn(None).step("wait for something to do")?;
            while self.rung.load(Ordering::Relaxed) {
                match wire::receive(self.socket, false, wire::MAX_FDS) {
                    Ok(Received::Packet(packet, fds)) => {
                        if self.handle(&packet, fds)? {
                            return Ok(None);
                        }
                    }
                    Ok(Received::Closed) => return Ok(None),
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                        self.rung.store(false, Ordering::Relaxed)
                    }
                    Err(error) => return Err(error).step("hear from the host"),
                }
            }
        }
    }

    /// Does what a packet asks for; `true` if that is to end.
    fn handle(&mut self, packet: &[u8], fds: Vec<OwnedFd>) -> Result<bool, StepError> {
        let Request { id, call } = wire::decode(packet).map_err(io::Error::other).step("understand the host")?;
        if matches!(call, Call::Stop) {
            return Ok(true);
        }
        drop(fds);
        if call.is_answered() {
            let result = Err(format!("a shell of {} vCPUs cannot do that", self.shell.vcpus()));
            report(self.socket, &Report::Answer { id, result }).step("answer the host")?;
        }
        Ok(false)
    }
}

mod engine {
    //! Interim.
    use super::*;
    use std::os::fd::IntoRawFd;

    pub struct Shell {
        _vm: kvm_ioctls::VmFd,
        vcpus: Vec<kvm_ioctls::VcpuFd>,
    }

    impl Shell {
        pub fn new(kvm: OwnedFd, vcpus: u8) -> io::Result<Shell> {
            let os = |error: kvm_ioctls::Error| io::Error::from_raw_os_error(error.errno());
            // SAFETY: owned.
            let kvm = unsafe { <kvm_ioctls::Kvm as std::os::fd::FromRawFd>::from_raw_fd(kvm.into_raw_fd()) };
            let vm = kvm.create_vm().map_err(os)?;
            vm.create_irq_chip().map_err(os)?;
            let vcpus = (0..vcpus).map(|index| vm.create_vcpu(index.into()).map_err(os)).collect::<Result<_, _>>()?;
            Ok(Shell { _vm: vm, vcpus })
        }

        pub fn vcpus(&self) -> usize {
            self.vcpus.len()
        }
    }
}
