//! What tests of this crate share.

use std::fs::File;
use std::path::{Path, PathBuf};

/// A control group of the unified hierarchy, removed at the end.
pub(crate) struct UnifiedGroup(PathBuf);

impl UnifiedGroup {
    /// Makes one, or says on stderr why it cannot.
    pub fn make(name: &str) -> Option<UnifiedGroup> {
        let name = format!("firelet-test-{name}-{}", std::process::id());
        let made = ["/sys/fs/cgroup/unified", "/sys/fs/cgroup"].into_iter().find_map(|mount| {
            let path = Path::new(mount);
            path.join("cgroup.procs").exists().then(|| path.join(&name))
        });
        let made = made.filter(|path| std::fs::create_dir(path).is_ok());
        if made.is_none() {
            eprintln!("SKIPPED: no unified hierarchy that can be written here");
        }
        made.map(UnifiedGroup)
    }

    pub fn dir(&self) -> File {
        File::open(&self.0).unwrap()
    }

    /// Process numbers, a line each.
    pub fn processes(&self) -> String {
        std::fs::read_to_string(self.0.join("cgroup.procs")).unwrap()
    }
}

impl Drop for UnifiedGroup {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir(&self.0);
    }
}
