//! Real disks, as root.

use std::os::fd::AsRawFd;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;
use std::time::{Duration, Instant};

use super::*;

const MIB: u64 = 1 << 20;

/// Disks in a directory on a real disk, or `None` with the reason on stderr.
fn disks(pool_size: usize) -> Option<(TmpDisks, tempfile::TempDir)> {
    // The test program lies on one; /tmp may be memory.
    let program = std::env::current_exe().expect("program");
    let dir = tempfile::tempdir_in(program.parent().expect("directory")).expect("temp dir");
    let disks = TmpDisks::start(TmpDiskOptions { dir: dir.path().to_owned(), pool_size }).expect("start");
    if let Some(loss) = disks.loss() {
        eprintln!("SKIPPED: {}", loss.what);
        return None;
    }
    Some((disks, dir))
}

/// The root of a disk, reached through the descriptor.
fn root(disk: &TmpDisk) -> PathBuf {
    PathBuf::from(format!("/proc/self/fd/{}/.", disk.mount.as_ref().expect("mount").as_raw_fd()))
}

/// The name of the loop device behind a disk.
fn device(disk: &TmpDisk) -> String {
    let number = std::fs::metadata(root(disk)).expect("metadata").dev();
    format!("loop{}", libc::minor(number))
}

fn is_attached(device: &str) -> bool {
    Path::new(&format!("/sys/block/{device}/loop/backing_file")).exists()
}

fn wait_until(what: &str, condition: impl Fn() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(20);
    while !condition() {
        assert!(Instant::now() < deadline, "waited too long: {what}");
        std::thread::sleep(Duration::from_millis(1));
    }
}

#[tokio::test]
async fn the_size_is_enforced_and_nothing_is_left() {
    let Some((disks, dir)) = disks(1) else { return };
    let bytes = 24 * MIB;
    let disk = disks.acquire(bytes).await.expect("acquire");
    let root = root(&disk);
    assert_eq!(std::fs::metadata(&root).expect("metadata").permissions().mode() & 0o7777, 0o1777);
    assert_eq!(std::fs::read_dir(&root).expect("list").count(), 0);
    let space = rustix::fs::statvfs(&root).expect("statvfs");
    let available = space.f_bavail * space.f_frsize;
    assert!(available >= bytes && available < bytes + 8 * MIB, "{available}");

    let block = vec![7u8; MIB as usize];
    let mut file = std::fs::File::create(root.join("big")).expect("create");
    let error = (0..100).find_map(|_| io::Write::write_all(&mut file, &block).err()).expect("full");
    assert_eq!(error.kind(), io::ErrorKind::StorageFull);
    assert!(file.metadata().expect("metadata").len() >= bytes - MIB);
    drop(file);
    // Programs may be executed there, as on Lambda.
    std::fs::remove_file(root.join("big")).expect("remove");
    let program = root.join("true");
    std::fs::copy("/bin/true", &program).expect("copy");
    assert!(std::process::Command::new(&program).status().expect("run").success());

    let device = device(&disk);
    assert!(is_attached(&device));
    assert_eq!(std::fs::read_dir(dir.path()).expect("list").count(), 0);
    drop(disk);
    wait_until("the loop device to go", || !is_attached(&device));
}

#[tokio::test]
async fn usual_and_largest_sizes_have_room_for_what_was_asked() {
    let Some((disks, _dir)) = disks(0) else {
        return;
    };
    for bytes in [512 * MIB, 513 * MIB, 10_240 * MIB] {
        let disk = disks.acquire(bytes).await.expect("acquire");
        let space = rustix::fs::statvfs(root(&disk)).expect("statvfs");
        let available = space.f_bavail * space.f_frsize;
        assert!(available >= bytes && available <= bytes + bytes / 33, "{bytes}: {available}");
    }
}

#[tokio::test]
async fn the_pool_is_kept_full_and_goes_with_its_owner() {
    let Some((disks, _dir)) = disks(2) else {
        return;
    };
    let pool = Arc::clone(&disks.maker.as_ref().expect("maker").pool);
    wait_until("the pool to fill", || pool.ready() == 2);
    let begin = Instant::now();
    let first = disks.acquire(USUAL_BYTES).await.expect("acquire");
    let pooled = begin.elapsed();
    wait_until("the pool to fill again", || pool.ready() == 2);
    let begin = Instant::now();
    let second = disks.acquire(16 * MIB).await.expect("acquire");
    let cold = begin.elapsed();
    wait_until("the pool to fill with the other size", || pool.ready() == 2);
    let begin = Instant::now();
    let third = disks.acquire(USUAL_BYTES).await.expect("acquire");
    eprintln!("pooled {pooled:?}, first of its size {cold:?}, not pooled {:?}", begin.elapsed());
    let devices = [device(&first), device(&second), device(&third)];
    assert_eq!(devices.iter().collect::<std::collections::HashSet<_>>().len(), 3);
    drop(disks);
    wait_until("the pool to empty", || pool.ready() == 0);
    // Disks in use go on.
    std::fs::write(root(&first).join("x"), "y").expect("write");
    drop((first, second, third));
    wait_until("all loop devices to go", || !devices.iter().any(|device| is_attached(device)));
}

#[tokio::test]
async fn more_than_the_memory_limit_can_be_written() {
    use crate::cgroup::tests::run_in;
    use crate::cgroup::{Cgroups, Limits, Version};
    let Some((disks, _dir)) = disks(0) else {
        return;
    };
    let cgroups = Cgroups::detect("firelet-test-tmp").expect("detect");
    let limits = Limits { memory_bytes: 32 * MIB, cpu_millis: 1000, cpu_share: 1000, max_tasks: 10 };
    let group = cgroups.create("writer", &limits).expect("create");
    if cgroups.version() == Version::None || !cgroups.losses().is_empty() {
        eprintln!("SKIPPED: control groups are not complete here");
        return;
    }
    let disk = disks.acquire(128 * MIB).await.expect("acquire");
    let fd = disk.mount.as_ref().expect("mount").as_raw_fd();
    let file = format!("/proc/{}/fd/{fd}/./x", std::process::id());
    let mut child = run_in(&group, &format!("exec dd if=/dev/zero of={file} bs=1M count=96"));
    let begin = Instant::now();
    let status = child.wait().expect("wait");
    assert!(status.success(), "{status}, {:?}", group.usage());
    eprintln!("96 MiB took {:?}", begin.elapsed());
    assert_eq!(group.usage().oom_kills, 0);
    assert_eq!(std::fs::metadata(root(&disk).join("x")).expect("metadata").len(), 96 * MIB);
    group.remove();
}

#[tokio::test]
async fn writers_are_held_back_as_long_as_the_disk_lives() {
    let Some((disks, _dir)) = disks(0) else { return };
    let disk = disks.acquire(24 * MIB).await.expect("acquire");
    let device = device(&disk);
    let setting = |name: &str| std::fs::read_to_string(format!("/sys/block/{device}/bdi/{name}")).unwrap_or_default();
    if setting("strict_limit").is_empty() {
        eprintln!("SKIPPED: this kernel has no limit for what waits to be written to one disk");
        return;
    }
    assert_eq!(setting("strict_limit").trim(), "1");
    let most: u64 = setting("max_bytes").trim().parse().expect("a number");
    assert!(most > 0 && most <= 16 * MIB, "{most}");
    drop(disk);
    wait_until("the limit to be taken back", || setting("strict_limit").trim() != "1");
}

#[test]
fn where_disks_cannot_be_made_the_loss_is_told() {
    let error =
        TmpDiskError::Step { step: "open /dev/loop-control".into(), source: io::Error::other("no such device") };
    let loss = loss(&error);
    assert!(
        loss.what.contains(
            "counts against their memory (could not make a disk for /tmp: open /dev/loop-control: no such device)"
        ),
        "{}",
        loss.what
    );
}

#[test]
fn a_file_for_a_microvm_is_an_empty_disk() {
    let program = std::env::current_exe().expect("program");
    let dir = tempfile::tempdir_in(program.parent().expect("directory")).expect("temp dir");
    let images = TmpImages::new(dir.path().join("images")).expect("directory");
    let bytes = 64 * MIB;
    let (one, two) = match (images.make(bytes), images.make(bytes)) {
        (Ok(one), Ok(two)) => (one, two),
        (Err(error), _) | (_, Err(error)) => {
            eprintln!("SKIPPED: {error}");
            return;
        }
    };
    assert_eq!(std::fs::read_dir(dir.path().join("images")).expect("list").count(), 0);
    for file in [&one, &two] {
        let metadata = file.metadata().expect("metadata");
        assert!(metadata.len() >= bytes && metadata.blocks() * 512 < MIB, "{} blocks", metadata.blocks());
        // As `file(1)` would find it: the magic number, no journal, and no checksums of the metadata.
        let mut superblock = [0; 1024];
        std::os::unix::fs::FileExt::read_exact_at(file, &mut superblock, 1024).expect("read");
        assert_eq!(superblock[0x38..0x3A], [0x53, 0xEF]);
        assert_eq!((superblock[0x5C] & 4, superblock[0x65] & 4), (0, 0));
    }
    let mount = match mount::mounted(&two) {
        Ok(mount) => mount,
        Err(error) => {
            eprintln!("SKIPPED: {error}");
            return;
        }
    };
    let root = PathBuf::from(format!("/proc/self/fd/{}/.", mount.mount.as_raw_fd()));
    let metadata = std::fs::metadata(&root).expect("metadata");
    assert_eq!((metadata.permissions().mode() & 0o7777, metadata.nlink()), (0o1777, 2));
    assert_eq!(std::fs::read_dir(&root).expect("list").count(), 0);
    for number in 0..500 {
        std::fs::create_dir(root.join(format!("directory-{number}"))).expect("make a directory");
    }
    assert_eq!(std::fs::read_dir(&root).expect("list").count(), 500);
    std::fs::write(root.join("lost+found"), "a name like any other").expect("write");
}
