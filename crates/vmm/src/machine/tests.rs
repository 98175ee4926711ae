use proptest::prelude::*;

use super::*;

fn config() -> MachineConfig {
    MachineConfig {
        vcpus: 1,
        memory_mib: 64,
        huge_pages: false,
        cmdline: "quiet".into(),
        vsock_cid: 3,
        drives: Vec::new(),
        net: None,
        balloon: false,
        serial: false,
    }
}

#[test]
fn the_command_line_has_what_the_machine_needs_and_no_more() {
    assert_eq!(command_line(&config()), "quiet panic=-1");
    assert_eq!(command_line(&MachineConfig { cmdline: "a -- b".into(), ..config() }), "a panic=-1 -- b");
    assert_eq!(command_line(&MachineConfig { cmdline: " panic=3 ".into(), ..config() }), "panic=3");
    assert_eq!(
        command_line(&MachineConfig { cmdline: String::new(), serial: true, ..config() }),
        "panic=-1 console=ttyS0"
    );
}

#[test]
fn impossible_machines_are_refused() {
    assert!(check::config(&config(), 1).is_ok());
    assert!(matches!(check::config(&config(), 2), Err(ConfigError::Shell { .. })));
    for vcpus in [0, 7, 255] {
        let refused = check::config(&MachineConfig { vcpus, ..config() }, usize::from(vcpus));
        assert!(matches!(refused, Err(ConfigError::Vcpus(_))));
    }
    for (memory_mib, huge_pages) in [(31, false), (u32::MAX, false), (33, true)] {
        let refused = check::config(&MachineConfig { memory_mib, huge_pages, ..config() }, 1);
        assert!(matches!(refused, Err(ConfigError::Memory(_))), "{memory_mib}");
    }
    assert!(matches!(check::config(&MachineConfig { vsock_cid: 2, ..config() }, 1), Err(ConfigError::ContextId(2))));
    assert!(matches!(check::state(&config(), 2, &[], 1), Err(ConfigError::State { what: "vcpus", .. })));
    assert!(matches!(check::state(&config(), 1, &[], 1), Err(ConfigError::State { what: "devices", .. })));
}

proptest! {
    #[test]
    fn no_bytes_break_the_decoder(mut bytes in proptest::collection::vec(any::<u8>(), 0..600), versioned in any::<bool>()) {
        if versioned && bytes.len() > 1 {
            bytes[..2].copy_from_slice(&[1, 0]);
        }
        prop_assert!(MachineState::decode(&bytes).is_err());
    }
}
