//! The first file system of a machine: one program, in the archive that Linux unpacks at its start
//! (`Documentation/driver-api/early-userspace/buffer-format.rst`, the `newc` form).

use std::fs::File;
use std::io::{self, Write};

/// An archive with `init` as `/init`, in memory.
pub(super) fn with_init(init: &[u8]) -> io::Result<File> {
    let mut file = File::from(rustix::fs::memfd_create("initramfs", rustix::fs::MemfdFlags::CLOEXEC)?);
    file.write_all(&archive(init)?)?;
    Ok(file)
}

fn archive(init: &[u8]) -> io::Result<Vec<u8>> {
    let mut archive = Vec::with_capacity(init.len() + 512);
    entry(&mut archive, "init", 0o100_755, init)?;
    entry(&mut archive, "TRAILER!!!", 0, &[])?;
    Ok(archive)
}

fn entry(archive: &mut Vec<u8>, name: &str, mode: u32, content: &[u8]) -> io::Result<()> {
    let size = u32::try_from(content.len()).map_err(|_| io::Error::from(io::ErrorKind::FileTooLarge))?;
    let name_size = name.len() as u32 + 1;
    // inode, mode, uid, gid, links, mtime, size, device, device of the node (two numbers each), name's size, check sum
    let fields = [1, mode, 0, 0, 1, 0, size, 0, 0, 0, 0, name_size, 0];
    archive.extend_from_slice(b"070701");
    for field in fields {
        write!(archive, "{field:08x}")?;
    }
    archive.extend_from_slice(name.as_bytes());
    archive.push(0);
    pad(archive);
    archive.extend_from_slice(content);
    pad(archive);
    Ok(())
}

/// Names and contents begin at multiples of four.
fn pad(archive: &mut Vec<u8>) {
    archive.resize(archive.len().next_multiple_of(4), 0);
}

#[cfg(test)]
mod tests {
    use std::process::{Command, Stdio};

    use super::*;

    #[test]
    fn cpio_finds_the_program_in_it() {
        let dir = tempfile::tempdir().unwrap();
        let program = b"#!/bin/sh\nodd".to_vec();
        let unpack = |tool: &[&str]| {
            let mut command = Command::new(tool[0]);
            command
                .args(&tool[1..])
                .args(["-i", "-d"])
                .current_dir(dir.path())
                .stdin(Stdio::piped())
                .stderr(Stdio::null());
            command.spawn().ok()
        };
        let Some(mut child) = unpack(&["cpio"]).or_else(|| unpack(&["busybox", "cpio"])) else {
            eprintln!("SKIPPED: neither cpio nor busybox is installed");
            return;
        };
        child.stdin.take().unwrap().write_all(&archive(&program).unwrap()).unwrap();
        assert!(child.wait().unwrap().success());
        assert_eq!(std::fs::read(dir.path().join("init")).unwrap(), program);
        let mode = std::os::unix::fs::PermissionsExt::mode(&dir.path().join("init").metadata().unwrap().permissions());
        assert_eq!(mode & 0o777, 0o755);
    }
}
