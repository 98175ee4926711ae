//! The readers that matter: the kernel, and the checker of erofs-utils.

use std::path::{Path, PathBuf};
use std::process::Command;

use super::{Model, assert_same, listed};

/// A mounted image.
pub(super) struct Mounted {
    dir: tempfile::TempDir,
}

impl Mounted {
    pub(super) fn path(&self) -> PathBuf {
        self.dir.path().to_owned()
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg(self.dir.path()).status();
    }
}

/// Mounts an image, or says why that cannot be.
pub(super) fn mount(image: &Path) -> Option<Mounted> {
    let dir = tempfile::tempdir().unwrap();
    let supported = std::fs::read_to_string("/proc/filesystems").is_ok_and(|text| text.contains("\terofs"));
    let root = std::fs::metadata("/proc/self").is_ok_and(|own| std::os::unix::fs::MetadataExt::uid(&own) == 0);
    if !supported || !root || !Path::new("/dev/loop-control").exists() {
        eprintln!("SKIPPED: mounting erofs takes root, loop devices and a kernel that has it");
        return None;
    }
    let output = Command::new("mount").args(["-t", "erofs", "-o", "loop,ro"]).arg(image).arg(dir.path()).output();
    let output = output.unwrap();
    assert!(output.status.success(), "mount: {}", String::from_utf8_lossy(&output.stderr));
    Some(Mounted { dir })
}

/// What the kernel and `fsck.erofs` find in an image must be what is expected.
pub(super) fn compare(image: &Path, expected: &Model) {
    if let Some(mounted) = mount(image) {
        assert_same(&listed(&mounted.path()), expected, "kernel");
    }
    match Command::new("fsck.erofs").arg(image).output() {
        Ok(output) => {
            let text = [output.stdout, output.stderr].concat();
            assert!(output.status.success(), "fsck.erofs: {}", String::from_utf8_lossy(&text));
        }
        Err(error) => eprintln!("SKIPPED: fsck.erofs: {error}"),
    }
}
