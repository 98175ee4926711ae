//! The card on real tap interfaces, each in a network namespace of its test's own.

use std::os::fd::FromRawFd;
use std::time::{Duration, Instant};

use proptest::prelude::*;

use super::*;
use crate::devices::virtio::testing::{self, Driver, Part, get, put};

/// For local experiments (IEEE 802): nothing else on the interface sends such packets.
const ETHERTYPE: u16 = 0x88b5;
const MEMORY: usize = 0x8_0000;
const HOST: [u8; 6] = [2, 0, 0, 0, 0, 1];
const GUEST: [u8; 6] = [2, 0, 0, 0, 0, 2];
const ALL: i32 = libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR;

struct Machine {
    net: Net,
    /// Receive, transmit.
    drivers: [Driver; 2],
    interrupt: Interrupt,
    /// The host's end: all packets of our type on the interface.
    socket: OwnedFd,
}

/// Runs `test` on a thread in a new network namespace, if this process may make one.
fn in_namespace(test: impl FnOnce() + Send + 'static) {
    let thread = std::thread::spawn(move || {
        // SAFETY: concerns this thread only, which ends with the test.
        if unsafe { libc::unshare(libc::CLONE_NEWNET) } != 0 {
            eprintln!("SKIPPED: no right to make a network namespace");
            return;
        }
        // A kernel with IPv6 would talk on the interface by itself; one without has no such file.
        let _ = std::fs::write("/proc/sys/net/ipv6/conf/default/disable_ipv6", "1");
        match open_tap("probe", ALL) {
            Ok(_) => test(),
            Err(error) => eprintln!("SKIPPED: no tap interfaces: {error}"),
        }
    });
    if let Err(panic) = thread.join() {
        std::panic::resume_unwind(panic);
    }
}

/// A tap interface of the given name, as its owner opens it.
fn open_tap(name: &str, flags: i32) -> io::Result<OwnedFd> {
    const TUNSETIFF: libc::c_ulong = 0x4004_54ca;
    let fd = OwnedFd::from(std::fs::File::options().read(true).write(true).open("/dev/net/tun")?);
    rustix::io::ioctl_fionbio(&fd, true)?;
    // SAFETY: all zeros are a valid `ifreq`.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(name.bytes()) {
        *to = from as libc::c_char;
    }
    request.ifr_ifru.ifru_flags = flags as libc::c_short;
    // SAFETY: the kernel reads and writes an `ifreq`.
    let result = unsafe { libc::ioctl(fd.as_raw_fd(), TUNSETIFF, &raw mut request) };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(fd)
}

/// A socket for packets of our type on the interface `tap`, which is up then.
fn socket(index: i32) -> OwnedFd {
    let protocol = i32::from(ETHERTYPE.to_be());
    // SAFETY: a system call without pointers; the descriptor is nobody else's.
    let fd = unsafe {
        let fd = libc::socket(libc::AF_PACKET, libc::SOCK_RAW | libc::SOCK_NONBLOCK | libc::SOCK_CLOEXEC, protocol);
        assert!(fd >= 0);
        OwnedFd::from_raw_fd(fd)
    };
    // A socket bound to an interface that is down would begin with an error.
    up(fd.as_raw_fd(), "tap");
    // SAFETY: all zeros are a valid address.
    let mut address: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
    address.sll_family = libc::AF_PACKET as u16;
    address.sll_protocol = ETHERTYPE.to_be();
    address.sll_ifindex = index;
    // SAFETY: the address is as long as we say.
    let bound = unsafe { libc::bind(fd.as_raw_fd(), (&raw const address).cast(), size_of_val(&address) as u32) };
    assert_eq!(bound, 0, "{}", io::Error::last_os_error());
    fd
}

fn up(socket: i32, name: &str) {
    // SAFETY: all zeros are a valid `ifreq`.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(name.bytes()) {
        *to = from as libc::c_char;
    }
    request.ifr_ifru.ifru_flags = libc::IFF_UP as i16;
    // SAFETY: the kernel reads an `ifreq`.
    let result = unsafe { libc::ioctl(socket, libc::SIOCSIFFLAGS, &raw const request) };
    assert_eq!(result, 0, "{}", io::Error::last_os_error());
}

fn machine(features: u64) -> Machine {
    let tap = open_tap("tap", ALL).unwrap();
    // SAFETY: the name is a C string.
    let index = unsafe { libc::if_nametoindex(c"tap".as_ptr()) };
    let socket = socket(index as i32);
    let mut net = Net::new(tap, GUEST).unwrap();
    let memory = testing::memory(MEMORY);
    let drivers = [Driver::new(&memory, 0, 16), Driver::new(&memory, 0x4000, 16)];
    let features = net.features() & features;
    let (interrupt, _) = testing::activate_with(&mut net, &[&drivers[0], &drivers[1]], features);
    Machine { net, drivers, interrupt, socket }
}

fn frame(to: [u8; 6], from: [u8; 6], payload: &[u8]) -> Vec<u8> {
    [&to[..], &from, &ETHERTYPE.to_be_bytes(), payload].concat()
}

/// Calls `attempt` until it succeeds.
fn eventually<T>(mut attempt: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + Duration::from_secs(20);
    loop {
        if let Some(result) = attempt() {
            return result;
        }
        assert!(Instant::now() < deadline, "it never happened");
        std::thread::yield_now();
    }
}

impl Machine {
    fn send_from_host(&self, frame: &[u8]) {
        rustix::net::send(&self.socket, frame, rustix::net::SendFlags::empty()).unwrap();
    }

    fn receive_on_host(&self) -> Vec<u8> {
        eventually(|| {
            let mut frame = vec![0; 70_000];
            let (_, len) = rustix::net::recv(&self.socket, &mut frame[..], rustix::net::RecvFlags::empty()).ok()?;
            frame.truncate(len);
            Some(frame)
        })
    }

    /// The next packet of our type that the driver finds in its buffers, which are as `parts` says.
    fn receive_in_guest(&mut self, buffers: &[Vec<Part>]) -> (u16, Vec<u8>) {
        for parts in buffers {
            self.drivers[0].submit(parts);
        }
        self.net.notified(RECEIVE);
        let mut seen = Vec::new();
        eventually(|| {
            self.net.ready(0, EventSet::IN);
            assert!(!self.interrupt.is_broken());
            while let Some((head, len)) = self.drivers[0].used() {
                seen.push((head, len));
            }
            (!seen.is_empty()).then_some(())
        });
        let mut packet = Vec::new();
        for (parts, (_, len)) in buffers.iter().zip(&seen) {
            let mut rest = *len;
            for (address, size, _) in parts {
                let now = rest.min(*size);
                packet.extend(get(&self.drivers[0].memory, *address, now as usize));
                rest -= now;
            }
        }
        (seen.len() as u16, packet)
    }
}

#[test]
fn packets_go_out() {
    in_namespace(|| {
        let mut machine = machine(u64::MAX);
        let frame = frame(HOST, GUEST, b"from the guest, in pieces");
        put(&machine.drivers[1].memory, 0x8000, &[0; 12]);
        put(&machine.drivers[1].memory, 0x9000, &frame);
        let (first, second) = (20, frame.len() as u32 - 20);
        machine.drivers[1].submit(&[
            (0x8000, 12, false),
            (0x9000, first, false),
            (0x9000 + u64::from(first), second, false),
        ]);
        assert_eq!(machine.net.notified(1), Progress::Done);
        assert_eq!(machine.drivers[1].used(), Some((0, 0)));
        assert_eq!(machine.receive_on_host(), frame);
        assert_eq!(machine.interrupt.status(), 1);
    });
}

#[test]
fn packets_come_in() {
    in_namespace(|| {
        let mut machine = machine(!F_EVENT_IDX);
        let sent = frame(GUEST, HOST, b"from the host");
        machine.send_from_host(&sent);
        let (count, packet) = machine.receive_in_guest(&[vec![(0x8000, 6, true), (0x8100, 0x800, true)]]);
        assert_eq!(count, 1);
        assert_eq!(packet[NUM_BUFFERS..HEADER_BYTES], [1, 0]);
        assert_eq!(packet[HEADER_BYTES..], sent);
    });
}

#[test]
fn a_packet_is_spread_over_buffers_only_if_the_driver_merges_them() {
    in_namespace(|| {
        let buffers: Vec<Vec<Part>> = (0..8).map(|number| vec![(0x8000 + number * 0x400, 256, true)]).collect();
        let mut merging = machine(u64::MAX);
        let sent = frame(GUEST, HOST, &[0x5a; 900]);
        merging.send_from_host(&sent);
        let (count, packet) = merging.receive_in_guest(&buffers);
        assert_eq!(count, 4);
        assert_eq!(packet[NUM_BUFFERS..HEADER_BYTES], [4, 0]);
        assert_eq!(packet[HEADER_BYTES..], sent);
        drop(merging);

        let mut plain = machine(!F_MRG_RXBUF);
        plain.send_from_host(&sent);
        plain.drivers[0].submit(&buffers[0]);
        eventually(|| {
            plain.net.ready(0, EventSet::IN);
            plain.interrupt.is_broken().then_some(())
        });
        assert_eq!(plain.drivers[0].used(), None);
    });
}

#[test]
fn a_driver_without_buffers_stops_the_tap_and_not_the_loop() {
    in_namespace(|| {
        let mut machine = machine(u64::MAX);
        assert_eq!(machine.net.watched().len(), 1);
        let sent = frame(GUEST, HOST, &[1; 600]);
        machine.send_from_host(&sent);
        eventually(|| machine.net.ready(0, EventSet::IN).then_some(()));
        assert_eq!(machine.net.watched(), []);
        // Not enough yet, and left to the driver.
        machine.drivers[0].submit(&[(0x8000, 100, true)]);
        machine.net.notified(RECEIVE);
        assert_eq!(machine.drivers[0].used(), None);
        assert_eq!(machine.net.watched(), []);
        machine.drivers[0].submit(&[(0x9000, 0x800, true)]);
        machine.net.notified(RECEIVE);
        assert_eq!(machine.drivers[0].used(), Some((0, 100)));
        assert_eq!(machine.drivers[0].used(), Some((1, (600 + 14 + 12 - 100))));
        assert_eq!(machine.net.watched().len(), 1);
    });
}

#[test]
fn nonsense_is_not_sent() {
    in_namespace(|| {
        let mut machine = machine(u64::MAX);
        // Shorter than a header; longer than any packet; a header that the host refuses.
        put(&machine.drivers[1].memory, 0x8000, &[0xff; 64]);
        machine.drivers[1].submit(&[(0x8000, 11, false)]);
        machine.drivers[1].submit(&[(0x8000, 0x1_2000, false)]);
        machine.drivers[1].submit(&[(0x8000, 64, false)]);
        machine.drivers[1].submit(&[]);
        machine.drivers[1].submit(&[(0x8000, 64, true)]);
        // Then an honest one.
        let good = frame(HOST, GUEST, b"still here");
        put(&machine.drivers[1].memory, 0x9000, &[&[0; 12][..], &good].concat());
        machine.drivers[1].submit(&[(0x9000, 12 + good.len() as u32, false)]);
        machine.net.notified(1);
        assert!(!machine.interrupt.is_broken());
        assert_eq!(machine.receive_on_host(), good);

        machine.drivers[1].submit(&[(MEMORY as u64 - 8, 64, false)]);
        machine.net.notified(1);
        assert!(machine.interrupt.is_broken());
    });
}

#[test]
fn an_interface_that_is_gone_is_left_alone() {
    in_namespace(|| {
        let mut machine = machine(u64::MAX);
        assert!(machine.net.ready(0, EventSet::ERROR));
        assert_eq!(machine.net.watched(), []);
    });
}

#[test]
fn only_a_tap_that_does_not_block_is_taken() {
    in_namespace(|| {
        let tap = open_tap("blocking", ALL).unwrap();
        rustix::io::ioctl_fionbio(&tap, false).unwrap();
        let error = Net::new(tap, GUEST).err().unwrap();
        assert_eq!(error.to_string(), "the tap must be opened with O_NONBLOCK");
        let (socket, _) = std::os::unix::net::UnixStream::pair().unwrap();
        socket.set_nonblocking(true).unwrap();
        assert!(Net::new(socket.into(), GUEST).is_err());
    });
}

#[test]
fn it_keeps_its_address() {
    in_namespace(|| {
        let first = machine(u64::MAX);
        let saved = first.net.save();
        drop(first);
        let mut net = Net::new(open_tap("tap", ALL).unwrap(), HOST).unwrap();
        net.restore(&saved).unwrap();
        let mut mac = [0; 6];
        net.read_config(0, &mut mac);
        assert_eq!(mac, GUEST);
        assert!(net.restore(&[1]).is_err());
    });
}

#[test]
fn hostile_memory_is_survived() {
    in_namespace(|| {
        let mut runner = proptest::test_runner::TestRunner::new(ProptestConfig::with_cases(64));
        let input = (prop::collection::vec(any::<u8>(), 0..0x4000), any::<u16>(), 0usize..2);
        let result = runner.run(&input, |(contents, ring, queue)| {
            let mut machine = machine(u64::MAX);
            let base = machine.drivers[queue].state().descriptors;
            put(&machine.drivers[queue].memory, base, &contents);
            machine.drivers[queue].set_available(ring % 20);
            machine.send_from_host(&frame(GUEST, HOST, &[3; 900]));
            for _ in 0..3 {
                if !machine.interrupt.is_broken() {
                    machine.net.notified(queue);
                    machine.net.ready(0, EventSet::IN);
                }
            }
            Ok(())
        });
        result.unwrap();
    });
}
