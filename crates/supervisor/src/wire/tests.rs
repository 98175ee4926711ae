//! Every message survives the way, and no other bytes are taken for one.

use proptest::collection::vec;
use proptest::option;
use proptest::prelude::*;

use super::*;
use crate::Exit;

fn path() -> impl Strategy<Value = PathBuf> {
    // Any bytes: paths of the host need not be UTF-8.
    vec(1u8..=255, 0..20).prop_map(|bytes| PathBuf::from(OsStr::from_bytes(&bytes)))
}

fn to_supervisor() -> impl Strategy<Value = ToSupervisor> {
    prop_oneof![
        any::<u64>().prop_map(|key| ToSupervisor::Create { key }),
        (any::<u64>(), vec(path(), 0..5)).prop_map(|(key, dirs)| ToSupervisor::Groups { key, dirs }),
        any::<u64>().prop_map(|key| ToSupervisor::Kill { key }),
        any::<u64>().prop_map(|key| ToSupervisor::Forget { key }),
    ]
}

fn build() -> impl Strategy<Value = Build> {
    let address = (any::<u32>(), any::<u16>())
        .prop_map(|(ip, port)| std::net::SocketAddrV4::new(std::net::Ipv4Addr::from_bits(ip), port));
    let flags = (any::<bool>(), any::<bool>(), any::<u64>(), option::of(vec(address, 0..3)));
    let root = (
        vec((path(), path()), 0..4),
        vec(path(), 0..4),
        vec((path(), vec(any::<u8>(), 0..50)), 0..4),
        vec((path(), path()), 0..4),
    );
    (".*", flags, root).prop_map(
        |(hostname, (has_netns, has_tmp, tmp_bytes, own_network), (binds, dirs, files, symlinks))| Build {
            hostname,
            has_netns,
            own_network,
            has_tmp,
            tmp_bytes,
            binds,
            dirs,
            files,
            symlinks,
        },
    )
}

fn to_init() -> impl Strategy<Value = ToInit> {
    let group = prop_oneof![Just(GroupEntry::None), Just(GroupEntry::V2), (1..u32::MAX).prop_map(GroupEntry::V1),];
    let settle = (option::of(any::<u32>()), option::of(any::<u32>()), group)
        .prop_map(|(uid, max_tasks, group)| ToInit::Settle(Settle { uid, max_tasks, group }));
    let spawn = (any::<u32>(), vec(".*", 0..4), vec((".*", ".*"), 0..4), path(), option::of(".*"), any::<bool>())
        .prop_map(|(process, argv, env, cwd, log_fd_env, waits)| {
            ToInit::Spawn(Box::new(Spawn { process, argv, env, cwd, log_fd_env, waits }))
        });
    prop_oneof![
        settle,
        build().prop_map(|build| ToInit::Build(Box::new(build))),
        spawn,
        (any::<u32>(), any::<i32>()).prop_map(|(process, signal)| ToInit::Signal { process, signal }),
        Just(ToInit::KillAll),
        any::<bool>().prop_map(|stop| ToInit::Stop { stop }),
    ]
}

fn from_init() -> impl Strategy<Value = FromInit> {
    let exit = prop_oneof![any::<i32>().prop_map(Exit::Code), any::<i32>().prop_map(Exit::Signal)];
    prop_oneof![
        (any::<u32>(), any::<u32>(), any::<u32>()).prop_map(|(prepare, mounts, build)| FromInit::Ready(Timings {
            prepare,
            mounts,
            build
        })),
        (".*", any::<i32>()).prop_map(|(step, errno)| FromInit::Failed { step, errno }),
        (any::<u32>(), exit).prop_map(|(process, exit)| FromInit::Exit { process, exit }),
        Just(FromInit::AllKilled),
    ]
}

/// Decodes to the same, and neither a shorter nor a longer message decodes at all.
macro_rules! survives {
    ($message:expr, $kind:ty) => {{
        let message = $message;
        let bytes = message.encode();
        prop_assert_eq!(<$kind>::decode(&bytes).ok(), Some(message));
        for end in 0..bytes.len() {
            prop_assert!(<$kind>::decode(&bytes[..end]).is_err());
        }
        prop_assert!(<$kind>::decode(&[&bytes[..], &[0]].concat()).is_err());
    }};
}

proptest! {
    #[test]
    fn orders_survive(message in to_supervisor()) {
        survives!(message, ToSupervisor);
    }

    #[test]
    fn requests_survive(message in to_init()) {
        survives!(message, ToInit);
    }

    #[test]
    fn reports_survive(message in from_init(), key: u64, errno: i32) {
        survives!(message, FromInit);
        survives!(FromSupervisor::Exited { key }, FromSupervisor);
        survives!(FromSupervisor::CloneFailed { key, errno }, FromSupervisor);
    }

    #[test]
    fn no_bytes_cause_a_panic(bytes in vec(any::<u8>(), 0..200)) {
        let _ = ToSupervisor::decode(&bytes);
        let _ = FromSupervisor::decode(&bytes);
        let _ = ToInit::decode(&bytes);
        let _ = FromInit::decode(&bytes);
    }
}
