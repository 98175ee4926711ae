//! The landlock ruleset of a sandbox: a second lock behind the mounts, where the kernel has landlock.

use std::os::fd::OwnedFd;
use std::path::Path;

use landlock::{
    ABI, Access, AccessFs, BitFlags, CompatLevel, Compatible, PathBeneath, PathFd, Ruleset, RulesetAttr,
    RulesetCreatedAttr,
};

/// Why there is no ruleset although the kernel has landlock.
#[derive(Debug, thiserror::Error)]
pub(crate) enum RulesetError {
    #[error("could not make the landlock ruleset")]
    Ruleset(#[from] landlock::RulesetError),
    #[error("could not open a path for the landlock ruleset")]
    Path(#[from] landlock::PathFdError),
}

/// Everything may be read and executed, devices used, `/tmp` written. To be called inside the finished root.
/// `None` if the kernel has no landlock.
///
/// `binds` are named although they are below `/`: the program that a fork of an interpreter runs is a file of the same
/// directories, but of a mount that is not in this root, and `/proc/self/exe` leads there.
pub(crate) fn ruleset<'a>(binds: impl Iterator<Item = &'a Path>) -> Result<Option<OwnedFd>, RulesetError> {
    // The newest interface is asked for, and the crate leaves out what this kernel does not know.
    let all = AccessFs::from_all(ABI::V5);
    let read = AccessFs::from_read(ABI::V5);
    let device = read | AccessFs::WriteFile | AccessFs::Truncate | AccessFs::IoctlDev;
    let rules: [(&str, BitFlags<AccessFs>); 3] = [("/", read), ("/dev", device), ("/tmp", all)];
    let mut ruleset = Ruleset::default().set_compatibility(CompatLevel::BestEffort).handle_access(all)?.create()?;
    for (path, access) in rules {
        ruleset = ruleset.add_rule(PathBeneath::new(PathFd::new(path)?, access))?;
    }
    for directory in binds.filter(|path| path.is_dir()) {
        ruleset = ruleset.add_rule(PathBeneath::new(PathFd::new(directory)?, read))?;
    }
    Ok(ruleset.into())
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;

    use super::*;
    use crate::sys;

    #[test]
    fn nothing_but_tmp_and_devices_can_be_written() {
        let outside = tempfile::tempdir_in("/var/tmp").unwrap();
        let inside = tempfile::tempdir_in("/tmp").unwrap();
        let Some(ruleset) = ruleset([outside.path()].into_iter()).unwrap() else {
            eprintln!("SKIPPED: this kernel has no landlock");
            return;
        };
        // Restricts one thread alone.
        let restricted = std::thread::scope(|scope| {
            let attempt = || {
                sys::prctl(libc::PR_SET_NO_NEW_PRIVS, 1)?;
                sys::landlock_restrict_self(ruleset.as_fd())?;
                std::fs::write(inside.path().join("file"), "x")?;
                std::fs::rename(inside.path().join("file"), inside.path().join("other"))?;
                std::fs::write("/dev/null", "x")?;
                std::fs::read("/etc/passwd")?;
                std::io::Result::Ok(std::fs::write(outside.path().join("file"), "x"))
            };
            scope.spawn(attempt).join().unwrap()
        });
        let refused = restricted.unwrap().unwrap_err();
        assert_eq!(refused.kind(), std::io::ErrorKind::PermissionDenied);
    }
}
