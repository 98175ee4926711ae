//! Machines through the jail: booted, spoken with, saved, cloned and killed, all by the host's handle.

use std::collections::HashSet;
use std::fs::File;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use vmm::config::{BootProtocol, DriveConfig, Exit, MachineConfig, NetConfig};
use vmm::host::{After, Attached, CallError, Extras, Jail, Kernel, Launcher, MachineError, MicroVm, Options, Program};
use vmm::snapshot::Template;

use crate::init;

/// How long a test waits for anything; guests are slow in the lab.
const DEADLINE: Duration = Duration::from_secs(120);

/// A launcher, and the kernel to boot. `None` with the reason on stderr.
fn rig(change: impl FnOnce(&mut Options)) -> Option<(Launcher, PathBuf)> {
    let Some(kernel) = std::env::var_os("FIRELET_GUEST_KERNEL") else {
        eprintln!("SKIPPED: FIRELET_GUEST_KERNEL does not name a guest kernel");
        return None;
    };
    if File::options().read(true).write(true).open("/dev/kvm").is_err() {
        eprintln!("SKIPPED: /dev/kvm cannot be opened here");
        return None;
    }
    if !rustix::process::geteuid().is_root() {
        eprintln!("SKIPPED: not root");
        return None;
    }
    let mut program = PathBuf::from(env!("CARGO_BIN_EXE_vmm-process"));
    if !program.exists() {
        // In the lab, files lie side by side.
        program = std::env::current_exe().unwrap().with_file_name("vmm-process");
    }
    let first = (1 << 30) + std::process::id() % 65_536 * 1024;
    let mut options = Options::new(Jail::with_users(first..first + 1024));
    options.program = Program { path: program, args: vec!["microvm".into()] };
    options.jail.audit = std::env::var_os("VMM_TEST_AUDIT").is_some();
    change(&mut options);
    Some((Launcher::new(options).unwrap(), kernel.into()))
}

fn config() -> MachineConfig {
    MachineConfig {
        vcpus: 1,
        memory_mib: 64,
        huge_pages: false,
        cmdline: "quiet reboot=k".into(),
        vsock_cid: 3,
        drives: Vec::new(),
        net: None,
        balloon: false,
        serial: false,
    }
}

async fn soon<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(DEADLINE, future).await.expect("in time")
}

async fn boot(launcher: &Launcher, kernel: &PathBuf) -> MicroVm {
    let shell = soon(launcher.shell(1, Extras::default())).await.unwrap();
    let kernel = Kernel {
        image: File::open(kernel).unwrap(),
        protocol: BootProtocol::default(),
        initramfs: Some(init::initramfs()),
    };
    soon(shell.boot(&config(), kernel, Attached::default())).await.unwrap()
}

async fn clone(launcher: &Launcher, template: &Arc<Template>) -> MicroVm {
    let shell = soon(launcher.shell(1, Extras::default())).await.unwrap();
    soon(shell.restore(template, Attached::default(), After::Running)).await.unwrap()
}

/// A connection that the guest has accepted, and the random bytes that came with it. Tries until the guest listens.
async fn connected(machine: &MicroVm) -> (UnixStream, [u8; 16]) {
    soon(async {
        loop {
            let mut stream = machine.connect(init::PORT).await.unwrap();
            let mut random = [0; 16];
            if stream.read_exact(&mut random).await.is_ok() {
                return (stream, random);
            }
            assert!(tokio::time::timeout(Duration::ZERO, machine.exited()).await.is_err(), "the guest has ended");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    })
    .await
}

async fn echoes(stream: &mut UnixStream, text: &[u8]) {
    soon(stream.write_all(text)).await.unwrap();
    let mut back = vec![0; text.len()];
    soon(stream.read_exact(&mut back)).await.unwrap();
    assert_eq!(back, text);
}

#[tokio::test]
async fn a_guest_boots_in_the_jail_and_answers_until_it_is_killed() {
    let Some((launcher, kernel)) = rig(|_| {}) else { return };
    let machine = boot(&launcher, &kernel).await;
    let (mut one, _) = connected(&machine).await;
    echoes(&mut one, b"hello").await;
    soon(machine.pause()).await.unwrap();
    soon(machine.resume()).await.unwrap();
    echoes(&mut one, &[7; 4000]).await;
    for thread in std::fs::read_dir(format!("/proc/{}/task", machine.pid())).unwrap() {
        let status = std::fs::read_to_string(thread.unwrap().path().join("status")).unwrap();
        assert!(status.contains("Seccomp:\t2"), "{status}");
    }
    println!("{:?}", machine.report());
    machine.kill();
    assert_eq!(soon(machine.exited()).await, Exit::Killed);
    assert!(matches!(soon(one.read(&mut [0])).await, Ok(0) | Err(_)));
    soon(machine.gone()).await;
}

#[tokio::test]
async fn clones_of_a_snapshot_run_at_once_and_are_not_the_same() {
    let Some((launcher, kernel)) = rig(|options| options.pool = [(1, 4)].into()) else { return };
    let machine = boot(&launcher, &kernel).await;
    let (stream, first) = connected(&machine).await;
    drop(stream);
    let template = Arc::new(soon(machine.snapshot()).await.unwrap());
    let mut clones = Vec::new();
    let mut random = HashSet::from([first]);
    for _ in 0..4 {
        let clone = clone(&launcher, &template).await;
        let (mut stream, bytes) = connected(&clone).await;
        echoes(&mut stream, b"clone").await;
        assert!(random.insert(bytes), "two clones have the same random numbers");
        println!("{:?}", clone.report());
        clones.push((clone, stream));
    }
    for (clone, stream) in &mut clones {
        echoes(stream, b"still there").await;
        let set = soon(clone.working_set()).await.unwrap();
        assert!(!set.is_empty() && set.bytes() < 64 << 20, "{} bytes", set.bytes());
    }
    // A clone becomes a template itself, with what it is expected to need.
    let (last, mut stream) = clones.pop().unwrap();
    let set = soon(last.working_set()).await.unwrap();
    drop(stream.shutdown().await);
    drop(stream);
    let second = Arc::new(soon(last.snapshot()).await.unwrap().with_working_set(set));
    assert_eq!(second.base(), Some(template.identity()));
    let clone = clone(&launcher, &second).await;
    let (mut stream, bytes) = connected(&clone).await;
    assert!(random.insert(bytes));
    echoes(&mut stream, b"second generation").await;
    println!("{:?}", clone.report());
}

#[tokio::test]
async fn machines_end_in_their_own_way_and_harm_no_other() {
    let Some((launcher, kernel)) = rig(|_| {}) else { return };
    let machine = boot(&launcher, &kernel).await;
    drop(connected(&machine).await);
    let template = Arc::new(soon(machine.snapshot()).await.unwrap());
    let witness = clone(&launcher, &template).await;
    let (mut seen, _) = connected(&witness).await;
    for order in ["R", "P"] {
        let machine = clone(&launcher, &template).await;
        let (mut stream, _) = connected(&machine).await;
        soon(stream.write_all(order.as_bytes())).await.unwrap();
        let exit = soon(machine.exited()).await;
        assert!(matches!(exit, Exit::Reset | Exit::Crashed(_)), "{order}: {exit:?}");
        assert!(matches!(soon(stream.read(&mut [0])).await, Ok(0) | Err(_)));
    }
    // One that spins with interrupts off can be paused, saved and killed like any other.
    let spinning = clone(&launcher, &template).await;
    let (mut stream, _) = connected(&spinning).await;
    soon(stream.write_all(b"S")).await.unwrap();
    soon(spinning.pause()).await.unwrap();
    soon(spinning.resume()).await.unwrap();
    rustix::process::kill_process(
        rustix::process::Pid::from_raw(spinning.pid()).unwrap(),
        rustix::process::Signal::KILL,
    )
    .unwrap();
    assert_eq!(soon(spinning.exited()).await, Exit::Killed);
    assert!(matches!(soon(stream.read(&mut [0])).await, Ok(0) | Err(_)));
    echoes(&mut seen, b"unharmed").await;
}

/// What a process has written and has for itself alone, in KiB: of the guest's memory, and besides.
fn memory(pid: i32) -> (u64, u64) {
    let smaps = std::fs::read_to_string(format!("/proc/{pid}/smaps")).unwrap();
    let (mut guest, mut own, mut of_guest) = (0, 0, false);
    for line in smaps.lines() {
        if line.as_bytes()[0].is_ascii_lowercase() || line.as_bytes()[0].is_ascii_digit() {
            of_guest = line.contains("memfd:");
        } else if let Some(value) = line.strip_prefix("Private_Dirty:") {
            let value: u64 = value.trim().trim_end_matches(" kB").parse().unwrap();
            *(if of_guest { &mut guest } else { &mut own }) += value;
        }
    }
    (guest, own)
}

/// A tap interface, in a namespace of its own or not: nobody else uses it.
fn tap() -> Option<OwnedFd> {
    let tun = File::options().read(true).write(true).open("/dev/net/tun").ok()?;
    // SAFETY: all zeros are a valid `ifreq`.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    request.ifr_ifru.ifru_flags = (libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR) as i16;
    // SAFETY: the kernel reads and writes an `ifreq`.
    let made = unsafe { libc::ioctl(tun.as_raw_fd(), libc::TUNSETIFF, &raw mut request) };
    (made == 0).then(|| tun.into())
}

#[tokio::test]
async fn every_device_works_in_the_jail_before_and_after_a_restore() {
    let Some((launcher, kernel)) = rig(|_| {}) else { return };
    let tap_of_boot = tap();
    if tap_of_boot.is_none() {
        eprintln!("no tap interface can be made here; tried without a network card");
    }
    let dir = tempfile::tempdir().unwrap();
    let disk = |name: &str, writable: bool| {
        let path = dir.path().join(name);
        let file = File::options().write(true).create(true).truncate(false).open(&path).unwrap();
        file.set_len(1 << 20).unwrap();
        File::options().read(true).write(writable).open(path).unwrap()
    };
    let mut config = config();
    config.vcpus = 2;
    config.balloon = true;
    config.serial = true;
    config.drives = vec![DriveConfig { read_only: true }, DriveConfig { read_only: false }];
    config.net = tap_of_boot.is_some().then_some(NetConfig { mac: [2, 0, 0, 0, 0, 1] });
    let output = dir.path().join("serial");
    let attached = |tap| Attached {
        drives: vec![disk("root", false), disk("data", true)],
        tap,
        serial: Some(File::create(&output).unwrap().into()),
    };
    let boots = || Kernel {
        image: File::open(&kernel).unwrap(),
        protocol: BootProtocol::default(),
        initramfs: Some(init::initramfs()),
    };
    let mut careless = attached(None);
    careless.drives[0] = disk("root", true);
    let shell = soon(launcher.shell(2, Extras::default())).await.unwrap();
    let mut plain = config.clone();
    plain.net = None;
    let error = soon(shell.boot(&plain, boots(), careless)).await.unwrap_err();
    assert!(matches!(error, MachineError::Writable(0)), "{error}");

    let shell = soon(launcher.shell(2, Extras::default())).await.unwrap();
    let machine = soon(shell.boot(&config, boots(), attached(tap_of_boot))).await.unwrap();
    let (mut stream, _) = connected(&machine).await;
    soon(machine.exchange_drive(1, disk("other", true))).await.unwrap();
    assert!(soon(machine.exchange_drive(2, disk("other", true))).await.is_err());
    echoes(&mut stream, b"booted").await;
    drop(stream);
    let template = Arc::new(soon(machine.snapshot()).await.unwrap());

    let shell = soon(launcher.shell(2, Extras::default())).await.unwrap();
    let tap_of_clone = config.net.as_ref().and_then(|_| tap());
    let clone = soon(shell.restore(&template, attached(tap_of_clone), After::Paused)).await.unwrap();
    soon(clone.resume()).await.unwrap();
    let (mut stream, _) = connected(&clone).await;
    soon(clone.exchange_drive(0, disk("other", false))).await.unwrap();
    echoes(&mut stream, b"restored").await;
    let (guest, own) = memory(clone.pid());
    println!("of the clone's memory {guest} KiB are its own; its process takes {own} KiB besides");
    assert!(own < 3 * 1024, "{own} KiB");
    // A state that is for another number of vCPUs is refused, in words.
    let shell = soon(launcher.shell(1, Extras::default())).await.unwrap();
    let error = soon(shell.restore(&template, attached(None), After::Running)).await.unwrap_err();
    assert!(matches!(error, MachineError::Call(CallError::Refused(_))), "{error}");
}
