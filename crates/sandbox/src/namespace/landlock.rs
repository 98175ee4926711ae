//! The landlock ruleset of a sandbox: a second lock behind the mounts, where the kernel has landlock.

use std::os::fd::OwnedFd;

use landlock::{
    ABI, Access, AccessFs, BitFlags, CompatLevel, Compatible, PathBeneath, PathFd, Ruleset, RulesetAttr,
    RulesetCreatedAttr,
};

/// Why there is no ruleset although the kernel has landlock.
#[derive(Debug, thiserror::Error)]
pub(super) enum RulesetError {
    #[error("could not make the landlock ruleset")]
    Ruleset(#[from] landlock::RulesetError),
    #[error("could not open a path for the landlock ruleset")]
    Path(#[from] landlock::PathFdError),
}

/// Everything may be read and executed, devices used, `/tmp` written. To be called inside the finished root.
/// `None` if the kernel has no landlock.
pub(super) fn ruleset() -> Result<Option<OwnedFd>, RulesetError> {
    // The newest interface is asked for, and the crate leaves out what this kernel does not know.
    let all = AccessFs::from_all(ABI::V5);
    let read = AccessFs::from_read(ABI::V5);
    let device = read | AccessFs::WriteFile | AccessFs::Truncate | AccessFs::IoctlDev;
    let rules: [(&str, BitFlags<AccessFs>); 3] = [("/", read), ("/dev", device), ("/tmp", all)];
    let mut ruleset = Ruleset::default().set_compatibility(CompatLevel::BestEffort).handle_access(all)?.create()?;
    for (path, access) in rules {
        ruleset = ruleset.add_rule(PathBeneath::new(PathFd::new(path)?, access))?;
    }
    Ok(ruleset.into())
}
