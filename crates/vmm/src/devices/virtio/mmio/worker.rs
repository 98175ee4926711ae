//! The device thread's side of the transport: activates, resets and serves the device.

use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::{Arc, MutexGuard};

use event_manager::{EventOps, EventSet, Events, MutEventSubscriber};
use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent};

use super::{Phase, Shared, lock};
use crate::devices::virtio::{Progress, VirtioDevice, Watched};

/// Subscription for the transport's own eventfd.
const KICK: u32 = u32::MAX;
/// Subscription for the device's own descriptors, which have an epoll instance to themselves: the device closes them when
/// it likes, and a closed descriptor can be forgotten there without an error.
const DEVICE: u32 = u32::MAX - 1;
/// Most descriptors of the device that are looked at in one go; the others' turn comes with the next.
const EVENTS: usize = 32;

/// Serves one device in an event loop.
pub struct Worker {
    shared: Arc<Shared>,
    epoll: Epoll,
    watched: Vec<Watched>,
}

impl Worker {
    pub(super) fn new(shared: Arc<Shared>) -> io::Result<Worker> {
        Ok(Worker { shared, epoll: Epoll::new()?, watched: Vec::new() })
    }

    /// The device, if its driver is ready and keeps to the rules.
    fn active<'a>(shared: &'a Shared) -> Option<MutexGuard<'a, dyn VirtioDevice + 'static>> {
        let device = lock(&shared.device);
        let active = matches!(*lock(&shared.phase), Phase::Active) && !shared.interrupt.is_broken();
        active.then_some(device)
    }

    fn kicked(&mut self) {
        let _ = self.shared.kick.read();
        settle(&self.shared);
        for queue in 0..self.shared.notifiers.len() {
            self.notified(queue);
        }
        self.watch();
    }

    fn notified(&mut self, queue: usize) {
        let Some(notifier) = self.shared.notifiers.get(queue) else { return };
        let _ = notifier.read();
        let Some(mut device) = Self::active(&self.shared) else { return };
        if device.notified(queue) == Progress::More {
            // Not now: the loop has others to look after first.
            let _ = notifier.write(1);
        }
        drop(device);
        // What the driver made available may let the device go on with descriptors of its own, or end them.
        self.watch();
    }

    fn device_ready(&mut self) {
        let mut events = [EpollEvent::default(); EVENTS];
        let count = self.epoll.wait(0, &mut events).unwrap_or(0);
        let mut changed = false;
        for event in &events[..count] {
            match Self::active(&self.shared) {
                Some(mut device) => changed |= device.ready(event.data() as u32, event.event_set()),
                None => changed = true,
            }
        }
        if changed {
            self.watch();
        }
    }

    /// Brings the epoll instance in line with what the device wants watched now: nothing, unless it is active.
    fn watch(&mut self) {
        let wanted = Self::active(&self.shared).map_or_else(Vec::new, |device| device.watched());
        if wanted == self.watched {
            return;
        }
        for old in &self.watched {
            if !wanted.iter().any(|new| new.fd == old.fd) {
                // If it is closed the kernel has forgotten it already.
                let _ = self.epoll.ctl(ControlOperation::Delete, old.fd, EpollEvent::default());
            }
        }
        for new in &wanted {
            if self.watched.contains(new) {
                continue;
            }
            if let Err(error) = self.add(new.fd, EpollEvent::new(interest(new), u64::from(new.token))) {
                tracing::error!(%error, "cannot watch a device's descriptor, giving the device up");
                self.shared.interrupt.needs_reset();
            }
        }
        self.watched = wanted;
    }

    fn add(&self, fd: RawFd, event: EpollEvent) -> io::Result<()> {
        match self.epoll.ctl(ControlOperation::Add, fd, event) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                self.epoll.ctl(ControlOperation::Modify, fd, event)
            }
            result => result,
        }
    }
}

fn interest(watched: &Watched) -> EventSet {
    let mut set = EventSet::empty();
    set.set(EventSet::IN, watched.read);
    set.set(EventSet::OUT, watched.write);
    set
}

/// Does what the phase asks for: resets, activates. On the device thread only.
pub(super) fn settle(shared: &Shared) {
    let mut device = lock(&shared.device);
    // The lock of the phase is not held while the device works, so that a vCPU can always change the phase.
    loop {
        let mut phase = lock(&shared.phase);
        match std::mem::replace(&mut *phase, Phase::Idle) {
            Phase::Stopping(next) => {
                *phase = next.map_or(Phase::Idle, Phase::Activating);
                drop(phase);
                device.reset();
            }
            Phase::Activating(activation) => {
                *phase = Phase::Active;
                drop(phase);
                if let Err(error) = device.activate(activation) {
                    tracing::warn!(
                        kind = device.kind(),
                        error = &error as &dyn std::error::Error,
                        "cannot activate a device"
                    );
                    // Stays in the phase `Active`, so that a reset of the driver reaches the device.
                    shared.interrupt.needs_reset();
                }
            }
            settled @ (Phase::Idle | Phase::Active) => {
                *phase = settled;
                return;
            }
        }
    }
}

impl MutEventSubscriber for Worker {
    fn init(&mut self, ops: &mut EventOps<'_>) {
        let mut events = vec![
            Events::with_data(&self.shared.kick, KICK, EventSet::IN),
            Events::with_data_raw(self.epoll.as_raw_fd(), DEVICE, EventSet::IN),
        ];
        for (queue, notifier) in (0u32..).zip(&self.shared.notifiers) {
            events.push(Events::with_data(notifier, queue, EventSet::IN));
        }
        for event in events {
            if let Err(error) = ops.add(event) {
                tracing::error!(?error, "cannot watch a device, giving it up");
                self.shared.interrupt.needs_reset();
            }
        }
    }

    fn process(&mut self, events: Events, _ops: &mut EventOps<'_>) {
        match events.data() {
            KICK => self.kicked(),
            DEVICE => self.device_ready(),
            queue => self.notified(queue as usize),
        }
    }
}
