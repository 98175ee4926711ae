//! Parsers on texts, and one look at the machine that the tests run on.

use proptest::prelude::*;

use super::probe::{free_bytes, has_capability, kernel_version, memory_bytes};
use super::*;

/// A host where nothing is missing.
fn good() -> HostFacts {
    let mut facts = HostFacts::probe(Path::new("/"));
    facts.administrator = true;
    facts.forbidden_namespaces = Vec::new();
    facts.cgroups = CgroupFacts {
        version: Version::V2,
        controllers: ["cpu", "memory", "pids"].map(str::to_owned).to_vec(),
        writable: true,
    };
    facts.landlock_abi = Some(4);
    facts.seccomp = true;
    facts.network.nft = Some("/usr/sbin/nft".into());
    facts.disk.loop_devices = true;
    facts.disk.mkfs_ext4 = Some("/sbin/mkfs.ext4".into());
    facts
}

#[test]
fn texts_of_the_kernel() {
    assert_eq!(kernel_version("6.1.0-18-amd64"), (6, 1));
    assert_eq!(kernel_version("5.15-rc1"), (5, 15));
    assert_eq!(kernel_version(""), (0, 0));
    assert_eq!(memory_bytes("MemTotal:       24 kB\nMemFree: 1 kB\n"), Some(24 * 1024));
    assert_eq!(memory_bytes("MemFree: 1 kB\n"), None);
    assert!(has_capability("Name:\tx\nCapEff:\t0000000000200000\n", 21));
    assert!(!has_capability("CapEff:\t0000000000200000\nCapBnd:\tffffffffffffffff\n", 20));
    assert!(!has_capability("CapBnd:\tffffffffffffffff\n", 20));
}

proptest! {
    #[test]
    fn any_text_is_survived(text in "(MemTotal:|CapEff:)?\\PC*") {
        kernel_version(&text);
        memory_bytes(&text);
        has_capability(&text, 63);
    }
}

#[test]
fn this_machine() {
    let facts = HostFacts::probe(Path::new("/no/such/directory"));
    assert!(facts.kernel_version.0 >= 4, "{facts:?}");
    assert!(facts.processors > 0 && facts.memory_bytes > 64 << 20);
    assert!(facts.disk.free_bytes.is_some());
    assert_eq!(facts.root, rustix::process::geteuid().is_root());
    if facts.administrator {
        assert_eq!(facts.forbidden_namespaces, Vec::<&str>::new());
    }
}

#[test]
fn free_space_is_that_of_the_nearest_directory_there_is() {
    // Others write to a disk meanwhile; nobody to /proc, where there is no room.
    let nearest = free_bytes(Path::new("/proc/no/such/directory"));
    assert_eq!(nearest, free_bytes(Path::new("/proc")));
    assert_ne!(nearest, free_bytes(Path::new("/")));
}

#[test]
fn losses_say_what_and_how_to_get_it() {
    assert_eq!(good().losses(), []);
    let one = |change: &dyn Fn(&mut HostFacts)| {
        let mut facts = good();
        change(&mut facts);
        let losses = facts.losses();
        assert_eq!(losses.len(), 1, "{losses:?}");
        losses[0].to_string()
    };
    assert_eq!(
        one(&|facts| facts.network.nft = None),
        "no NAT for sandboxes: the nft program is absent; install the package nftables"
    );
    assert!(one(&|facts| facts.cgroups.writable = false).contains("Delegate=yes"));
    assert!(one(&|facts| facts.cgroups.controllers = vec!["memory".into()]).starts_with("no limits for: cpu, pids; "));
    assert!(one(&|facts| facts.landlock_abi = None).starts_with("no Landlock"));
    assert!(one(&|facts| facts.disk.mkfs_ext4 = None).contains("e2fsprogs"));
    assert!(one(&|facts| facts.seccomp = false).contains("CONFIG_SECCOMP_FILTER"));

    let mut none = good();
    none.administrator = false;
    none.root = false;
    none.user_namespaces = Some("Operation not permitted".into());
    assert!(!none.can_isolate());
    let losses = none.losses();
    assert!(losses[0].to_string().contains("(Operation not permitted)"), "{losses:?}");
    assert_eq!(losses[1].remedy, "run as root");
}
