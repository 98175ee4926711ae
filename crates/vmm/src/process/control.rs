//! What the host wants: taken from its socket between two turns of the event loop, answered in order.
//!
//! ```text
//! Shell --- Boot, Restore ---> Machine --- it ends ---> Exit
//!   `--------- either fails: answered, and nothing is left but to wait for the host to close the socket
//! ```

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use super::step::{Step, StepError, chain};
use super::{micros, report, seccomp};
use crate::config::Exit;
use crate::event_loop::{EventLoop, EventOps, EventSet, Events, MutEventSubscriber};
use crate::machine::{BootFiles, DeviceFiles, Machine, MachineState, RestoreFiles, Shell, ShellTimings};
use crate::snapshot::{self, WorkingSet};
use crate::wire::{self, Answer, Boot, Call, MachineTimes, Received, Report, Request, Restore};

/// A call that was understood and could not be done; the host is told, and the machine is as it was.
#[derive(Debug, thiserror::Error)]
enum CallError {
    #[error("there is no machine to do that with")]
    NoMachine,
    #[error("there is a machine already")]
    NoShell,
    #[error("the descriptors beside the request are not those that belong to it")]
    Descriptors,
    #[error("the machine runs; pause it first")]
    Running,
    #[error(transparent)]
    Boot(#[from] crate::machine::BootError),
    #[error(transparent)]
    Restore(#[from] crate::machine::RestoreError),
    #[error(transparent)]
    Save(#[from] crate::machine::SaveError),
    #[error("cannot use the state of a machine")]
    State(#[from] crate::machine::DecodeError),
    #[error(transparent)]
    Device(#[from] crate::machine::DeviceError),
    #[error("cannot read or write a memory file")]
    File(#[from] io::Error),
}

/// What this process is.
enum Stage {
    Shell(Shell),
    Machine(Box<Machine>),
    /// What came of the shell failed.
    Nothing,
}

/// Wakes the server when a descriptor is ready: the host's socket, or the machine's end.
struct Doorbell {
    fd: RawFd,
    rung: Arc<AtomicBool>,
}

impl MutEventSubscriber for Doorbell {
    fn process(&mut self, _: Events, _: &mut EventOps) {
        self.rung.store(true, Ordering::Relaxed);
    }

    fn init(&mut self, ops: &mut EventOps) {
        // Fails only without memory; then nobody hears the host, whose patience ends this process.
        let _ = ops.add(Events::new_raw(self.fd, EventSet::IN));
    }
}

/// Serves the host.
pub(super) struct Server {
    socket: Arc<OwnedFd>,
    events: EventLoop,
    /// There may be something in the socket.
    called: Arc<AtomicBool>,
    /// The machine may have ended.
    ended: Arc<AtomicBool>,
    stage: Stage,
    pagemap: File,
}

impl Server {
    /// Makes the virtual machine, and the event loop.
    pub fn new(socket: &Arc<OwnedFd>, kvm: OwnedFd, vcpus: u8, pagemap: File) -> Result<Server, StepError> {
        let shell = Shell::new(kvm, vcpus, seccomp::confine_vcpu_thread).map_err(io::Error::other);
        let shell = shell.step("make a virtual machine")?;
        let mut events = EventLoop::new().step("make an event loop")?;
        let called = Arc::new(AtomicBool::new(false));
        events.add(Box::new(Doorbell { fd: socket.as_raw_fd(), rung: Arc::clone(&called) }));
        let (socket, ended) = (Arc::clone(socket), Arc::new(AtomicBool::new(false)));
        Ok(Server { socket, events, called, ended, stage: Stage::Shell(shell), pagemap })
    }

    /// How long the making of the shell took.
    pub fn timings(&self) -> ShellTimings {
        match &self.stage {
            Stage::Shell(shell) => *shell.timings(),
            Stage::Machine(_) | Stage::Nothing => ShellTimings::default(),
        }
    }

    /// Serves until the machine ends; `None` if the host has gone or wants the end.
    pub fn serve(&mut self) -> Result<Option<Exit>, StepError> {
        loop {
            self.events.turn(None).step("wait for something to do")?;
            if self.ended.load(Ordering::Relaxed)
                && let Stage::Machine(machine) = &mut self.stage
                && let Some(exit) = machine.exit()
            {
                return Ok(Some(exit));
            }
            while self.called.load(Ordering::Relaxed) {
                match wire::receive(&self.socket, false, wire::MAX_FDS) {
                    Ok(Received::Packet(packet, fds)) => {
                        let request: Request =
                            wire::decode(&packet).map_err(io::Error::other).step("understand the host")?;
                        if matches!(request.call, Call::Stop) {
                            return Ok(None);
                        }
                        self.answer(request, fds)?;
                    }
                    Ok(Received::Closed) => return Ok(None),
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                        self.called.store(false, Ordering::Relaxed);
                    }
                    Err(error) => return Err(error).step("hear from the host"),
                }
            }
        }
    }

    fn answer(&mut self, Request { id, call }: Request, fds: Vec<OwnedFd>) -> Result<(), StepError> {
        let answered = call.is_answered();
        let result = self.handle(call, Descriptors(fds.into_iter()));
        if answered {
            let result = result.map_err(|error| chain(&error));
            report(&self.socket, &Report::Answer { id, result }).step("answer the host")?;
        }
        Ok(())
    }

    fn handle(&mut self, call: Call, mut fds: Descriptors) -> Result<Answer, CallError> {
        match call {
            Call::Boot(boot) => return self.boot(boot, fds),
            Call::Restore(restore) => return self.restore(restore, fds),
            Call::Start(_) | Call::Stop => return Err(CallError::NoShell),
            _ => {}
        }
        let Stage::Machine(machine) = &mut self.stage else { return Err(CallError::NoMachine) };
        match call {
            Call::Connect { port } => machine.connect(port, UnixStream::from(fds.next()?)),
            Call::Listen { port } => {
                let socket = Arc::clone(&self.socket);
                machine.listen(port, move |stream| incoming(&socket, port, &stream));
            }
            Call::Pause => machine.pause(),
            Call::Resume => machine.resume(),
            Call::Save => {
                let file = File::from(fds.next()?);
                let state = machine.save()?.encode()?;
                wire::write_state(&file, &state)?;
                return Ok(Answer::Written(state.len() as u64));
            }
            Call::DumpPrivate => {
                if machine.is_running() {
                    return Err(CallError::Running);
                }
                let file = fds.next()?;
                let bytes = snapshot::dump_private(machine.memory(), self.pagemap.as_fd(), file.as_fd())?;
                return Ok(Answer::Written(bytes));
            }
            Call::WorkingSet => {
                let file = File::from(fds.next()?);
                let windows = snapshot::windows(machine.memory());
                let set = WorkingSet::from_pagemap(self.pagemap.as_fd(), &windows)?;
                wire::write_ranges(&file, set.ranges())?;
                return Ok(Answer::Written(set.ranges().len() as u64));
            }
            Call::Exchange { drive } => {
                let index = usize::try_from(drive).unwrap_or(usize::MAX);
                machine.exchange_drive(index, fds.next()?.into())?;
            }
            Call::Boot(_) | Call::Restore(_) | Call::Start(_) | Call::Stop => return Err(CallError::NoShell),
        }
        fds.end()?;
        Ok(Answer::Done)
    }

    fn boot(&mut self, boot: Boot, mut fds: Descriptors) -> Result<Answer, CallError> {
        let Stage::Shell(shell) = std::mem::replace(&mut self.stage, Stage::Nothing) else {
            return Err(CallError::NoShell);
        };
        let Boot { config, protocol, has_initramfs, has_serial } = boot;
        let (memory, kernel) = (fds.next()?, fds.next()?.into());
        let initramfs = if has_initramfs { Some(fds.next()?.into()) } else { None };
        let devices = fds.devices(config.drives.len(), config.net.is_some(), has_serial)?;
        let files = BootFiles { kernel, protocol, initramfs, memory, devices };
        let machine = shell.boot(&config, files, &mut self.events)?;
        Ok(Answer::Machine(self.adopt(machine, 0, 0)))
    }

    fn restore(&mut self, restore: Restore, mut fds: Descriptors) -> Result<Answer, CallError> {
        let Stage::Shell(shell) = std::mem::replace(&mut self.stage, Stage::Nothing) else {
            return Err(CallError::NoShell);
        };
        let reading = Instant::now();
        let (state, ranges) = (File::from(fds.next()?), File::from(fds.next()?));
        let memory = fds.next()?;
        let devices = fds.devices(restore.drives.into(), restore.has_tap, restore.has_serial)?;
        let working_set = wire::read_ranges(&ranges, restore.ranges)?;
        let state = MachineState::decode(&wire::read_state(&state, restore.state)?)?;
        let reading = micros(reading);
        let files = RestoreFiles { memory, devices, working_set };
        let mut machine = shell.restore(state, files, &mut self.events)?;
        let running = Instant::now();
        if restore.resume {
            machine.resume();
        }
        let run = micros(running);
        Ok(Answer::Machine(self.adopt(machine, reading, run)))
    }

    fn adopt(&mut self, machine: Machine, state: u32, run: u32) -> MachineTimes {
        self.events.add(Box::new(Doorbell { fd: machine.exit_fd().as_raw_fd(), rung: Arc::clone(&self.ended) }));
        let timings = *machine.timings();
        self.stage = Stage::Machine(Box::new(machine));
        MachineTimes {
            state,
            memory: timings.memory,
            devices: timings.devices,
            load: timings.load,
            vcpus: timings.vcpus,
            attach: timings.attach,
            populate: timings.populate,
            run,
        }
    }
}

/// Passes a connection of the guest up. Without room for that it is closed, and the guest sees a reset.
fn incoming(socket: &OwnedFd, port: u32, stream: &UnixStream) {
    if let Ok(packet) = wire::encode(&Report::Incoming { port }) {
        let _ = wire::send(socket, &packet, &[stream.as_fd()], false);
    }
}

/// The descriptors beside a request, taken one after the other.
struct Descriptors(std::vec::IntoIter<OwnedFd>);

impl Descriptors {
    fn next(&mut self) -> Result<OwnedFd, CallError> {
        self.0.next().ok_or(CallError::Descriptors)
    }

    /// What belongs to devices comes last.
    fn devices(mut self, drives: usize, tap: bool, serial: bool) -> Result<DeviceFiles, CallError> {
        let drives = (0..drives).map(|_| Ok(self.next()?.into())).collect::<Result<_, CallError>>()?;
        let tap = if tap { Some(self.next()?) } else { None };
        let serial = if serial { Some(self.next()?) } else { None };
        self.end()?;
        Ok(DeviceFiles { drives, tap, serial })
    }

    fn end(mut self) -> Result<(), CallError> {
        if self.0.next().is_some() { Err(CallError::Descriptors) } else { Ok(()) }
    }
}
