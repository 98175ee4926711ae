//! The kernel's text formats that tell where control groups are and what they have used.
//!
//! Formats: `cgroups(7)` for `/proc/PID/cgroup`, `proc_pid_mountinfo(5)`, and "flat keyed" files of
//! `Documentation/admin-guide/cgroup-v2.rst`. No function here fails: a line that does not parse is skipped.

use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;
use std::path::PathBuf;

/// One line of `/proc/self/cgroup`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Membership {
    /// Controllers of a v1 hierarchy (`name=systemd` counts as one); empty = the unified hierarchy.
    pub controllers: Vec<String>,
    /// Path below the hierarchy's root as this process' cgroup namespace shows it.
    pub path: String,
}

/// Reads `/proc/self/cgroup`.
pub(super) fn memberships(text: &str) -> Vec<Membership> {
    let line = |line: &str| {
        let mut parts = line.splitn(3, ':');
        let _number: u32 = parts.next()?.parse().ok()?;
        let controllers = parts.next()?.split(',').filter(|name| !name.is_empty()).map(str::to_owned).collect();
        let path = parts.next().filter(|path| path.starts_with('/'))?.to_owned();
        Some(Membership { controllers, path })
    };
    text.lines().filter_map(line).collect()
}

/// A mounted control group hierarchy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Mount {
    /// Which part of the hierarchy is mounted: `/`, or a group's path in a container.
    pub root: String,
    /// Where.
    pub point: PathBuf,
    /// Whether it is the unified hierarchy.
    pub unified: bool,
    /// The options of the super block: names of v1 controllers among others.
    pub options: Vec<String>,
}

impl Mount {
    /// Controllers of the unified hierarchy at its root here.
    pub fn controllers(&self) -> impl Iterator<Item = String> {
        let text = std::fs::read_to_string(self.point.join("cgroup.controllers")).unwrap_or_default();
        text.split_whitespace().map(str::to_owned).collect::<Vec<_>>().into_iter()
    }
}

/// Reads the control group mounts of `/proc/self/mountinfo`.
pub(super) fn mounts(text: &str) -> Vec<Mount> {
    let line = |line: &str| {
        let (left, right) = line.split_once(" - ")?;
        let mut left = left.split(' ').skip(3);
        let root = unescape(left.next()?);
        let point = unescape(left.next()?);
        let mut right = right.split(' ');
        let unified = match right.next()? {
            "cgroup2" => true,
            "cgroup" => false,
            _other_file_system => return None,
        };
        let options = right.nth(1)?.split(',').map(str::to_owned).collect();
        Some(Mount {
            root: String::from_utf8_lossy(&root).into_owned(),
            point: PathBuf::from(OsString::from_vec(point)),
            unified,
            options,
        })
    };
    text.lines().filter_map(line).collect()
}

/// Undoes mountinfo's octal escapes (`\040` is a space).
fn unescape(text: &str) -> Vec<u8> {
    let bytes = text.as_bytes();
    let mut plain = Vec::with_capacity(bytes.len());
    let mut at = 0;
    while at < bytes.len() {
        let octal = bytes.get(at + 1..at + 4).filter(|_| bytes[at] == b'\\');
        let value =
            octal.and_then(|digits| std::str::from_utf8(digits).ok()).and_then(|d| u8::from_str_radix(d, 8).ok());
        match value {
            Some(byte) => {
                plain.push(byte);
                at += 4;
            }
            None => {
                plain.push(bytes[at]);
                at += 1;
            }
        }
    }
    plain
}

/// The number behind `key` in a flat keyed file.
pub(super) fn flat_key(text: &str, key: &str) -> Option<u64> {
    text.lines().find_map(|line| {
        let (name, value) = line.split_once(' ')?;
        (name == key).then(|| value.trim().parse().ok())?
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn memberships_of_all_kinds() {
        let all = memberships("9:name=systemd:/\n3:cpu,cpuacct:/a/b:c\n0::/user.slice\nnonsense\n1:x\n");
        assert_eq!(all.len(), 3);
        assert_eq!(all[1], Membership { controllers: vec!["cpu".into(), "cpuacct".into()], path: "/a/b:c".into() });
        assert_eq!(all[2], Membership { controllers: vec![], path: "/user.slice".into() });
    }

    #[test]
    fn mounts_of_both_kinds() {
        let text = "31 23 0:28 / /sys/fs/cgroup rw,relatime - tmpfs tmpfs rw,mode=755\n\
                    35 31 0:32 /docker/1 /sys/fs/cgroup/mem\\040ory rw shared:9 - cgroup cgroup rw,memory\n\
                    41 31 0:38 / /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw,nsdelegate\n";
        let all = mounts(text);
        assert_eq!(all.len(), 2);
        assert_eq!(all[0].root, "/docker/1");
        assert_eq!(all[0].point, PathBuf::from("/sys/fs/cgroup/mem ory"));
        assert!(all[0].options.contains(&"memory".to_owned()) && !all[0].unified);
        assert!(all[1].unified);
    }

    #[test]
    fn flat_keys() {
        let text = "low 0\noom 2\noom_kill 7\noom_group_kill x\n";
        assert_eq!(flat_key(text, "oom_kill"), Some(7));
        assert_eq!(flat_key(text, "oom"), Some(2));
        assert_eq!(flat_key(text, "oom_group_kill"), None);
        assert_eq!(flat_key(text, "high"), None);
    }

    proptest! {
        #[test]
        fn any_text_is_survived(text in "\\PC*(\n\\PC* - cgroup \\PC*)?") {
            memberships(&text);
            mounts(&text);
            flat_key(&text, "oom_kill");
        }

        #[test]
        fn a_membership_comes_back(names in prop::collection::vec("[a-z_=]{1,8}", 0..4), path in "/[ -~]{0,20}") {
            let text = format!("7:{}:{path}\n", names.join(","));
            prop_assert_eq!(memberships(&text), vec![Membership { controllers: names, path }]);
        }

        #[test]
        fn an_escaped_mount_point_comes_back(name in "[a-z \\\\\t]{1,12}") {
            let escaped: String = name.chars()
                .map(|c| if c.is_ascii_lowercase() { c.to_string() } else { format!("\\{:03o}", c as u32) }).collect();
            let all = mounts(&format!("1 2 0:3 / /{escaped} rw - cgroup2 none rw"));
            prop_assert_eq!(&all[0].point, &PathBuf::from(format!("/{name}")));
        }

        #[test]
        fn a_flat_key_comes_back(key in "[a-z_]{1,12}", value: u64) {
            prop_assert_eq!(flat_key(&format!("other_x 1\n{key} {value}\n"), &key), Some(value));
        }
    }
}
