//! What the device waits for at the host's side, as one descriptor: its own epoll set. So the sockets need not be known to
//! the transport, and are watched for edges: one that the guest has no room for does not wake us again and again.

use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::time::Instant;

use rustix::event::Timespec;
use rustix::event::epoll::{self, CreateFlags, Event, EventData, EventFlags};
use rustix::time::{Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags};
use vmm_sys_util::eventfd::EventFd;

use super::muxer::Id;
use super::stream::Stream;

const WAKE: u64 = u64::MAX;
const TIMER: u64 = u64::MAX - 1;
/// Events taken with one call.
const BATCH: usize = 64;

/// The set, and the timer in it.
#[derive(Debug)]
pub struct Poll {
    set: OwnedFd,
    timer: OwnedFd,
    /// When the timer is set to expire.
    armed: Option<Instant>,
}

/// Something happened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Happened {
    /// Somebody has asked for something through the handle.
    Wake,
    /// The timer has expired.
    Timer,
    /// A connection's socket.
    Socket {
        /// Whose.
        id: Id,
        /// There is something to read, or an end.
        readable: bool,
        /// There is an end, at least behind what can be read.
        ended: bool,
        /// There is room.
        writable: bool,
        /// Both directions are shut, or the other end is gone.
        hung_up: bool,
    },
}

impl Poll {
    /// A set with a timer and `wake`.
    pub fn new(wake: &EventFd) -> io::Result<Self> {
        let set = epoll::create(CreateFlags::CLOEXEC)?;
        let flags = TimerfdFlags::CLOEXEC | TimerfdFlags::NONBLOCK;
        let timer = rustix::time::timerfd_create(TimerfdClockId::Monotonic, flags)?;
        epoll::add(&set, &timer, EventData::new_u64(TIMER), EventFlags::IN)?;
        // SAFETY: the descriptor lives as long as the borrow of `wake`.
        let wake = unsafe { std::os::fd::BorrowedFd::borrow_raw(wake.as_raw_fd()) };
        epoll::add(&set, wake, EventData::new_u64(WAKE), EventFlags::IN)?;
        Ok(Self { set, timer, armed: None })
    }

    /// Watches a connection's socket for bytes. Closing it ends that.
    pub fn add(&self, stream: &Stream, id: Id) -> io::Result<()> {
        Ok(epoll::add(&self.set, stream, EventData::new_u64(id.0), flags(false))?)
    }

    /// Watches it for room as well, or no longer.
    pub fn modify(&self, stream: &Stream, id: Id, room: bool) -> io::Result<()> {
        Ok(epoll::modify(&self.set, stream, EventData::new_u64(id.0), flags(room))?)
    }

    /// What has happened, some of it; never waits.
    pub fn take(&mut self) -> io::Result<Vec<Happened>> {
        let mut events = [MaybeUninit::<Event>::uninit(); BATCH];
        let (events, _) = epoll::wait(&self.set, &mut events, Some(&Timespec { tv_sec: 0, tv_nsec: 0 }))?;
        let mut happened = Vec::with_capacity(events.len());
        for event in events.iter() {
            let (data, flags) = (event.data, event.flags);
            happened.push(match data.u64() {
                WAKE => Happened::Wake,
                TIMER => {
                    // Emptied so that it does not wake us again; it may have been set anew, which is no matter.
                    let _ = rustix::io::read(&self.timer, &mut [0; 8]);
                    self.armed = None;
                    Happened::Timer
                }
                id => Happened::Socket {
                    id: Id(id),
                    readable: flags.intersects(EventFlags::IN | EventFlags::RDHUP | EventFlags::HUP | EventFlags::ERR),
                    ended: flags.intersects(EventFlags::RDHUP | EventFlags::HUP | EventFlags::ERR),
                    writable: flags.intersects(EventFlags::OUT | EventFlags::HUP | EventFlags::ERR),
                    hung_up: flags.intersects(EventFlags::HUP | EventFlags::ERR),
                },
            });
        }
        Ok(happened)
    }

    /// Has the timer expire at `deadline` or before: an earlier time that is no longer needed is left as it is.
    pub fn arm(&mut self, deadline: Option<Instant>, now: Instant) -> io::Result<()> {
        let Some(deadline) = deadline else { return Ok(()) };
        if self.armed.is_some_and(|armed| armed <= deadline) {
            return Ok(());
        }
        // Zero would switch it off.
        let left = deadline.saturating_duration_since(now).max(std::time::Duration::from_millis(1));
        let value = Timespec {
            tv_sec: i64::try_from(left.as_secs()).unwrap_or(i64::MAX),
            tv_nsec: i64::from(left.subsec_nanos()),
        };
        let spec = Itimerspec { it_interval: Timespec { tv_sec: 0, tv_nsec: 0 }, it_value: value };
        rustix::time::timerfd_settime(&self.timer, TimerfdTimerFlags::empty(), &spec)?;
        self.armed = Some(deadline);
        Ok(())
    }

    /// The descriptor to wait for.
    pub fn fd(&self) -> RawFd {
        self.set.as_raw_fd()
    }
}

fn flags(room: bool) -> EventFlags {
    let flags = EventFlags::IN | EventFlags::RDHUP | EventFlags::ET;
    if room { flags | EventFlags::OUT } else { flags }
}
