//! Messages survive the way; other bytes are refused.

use proptest::prelude::*;

use super::*;

#[test]
fn messages_come_back_as_they_were() {
    let config = MachineConfig {
        vcpus: 2,
        memory_mib: 128,
        huge_pages: false,
        cmdline: "console=ttyS0".into(),
        vsock_cid: 3,
        drives: Vec::new(),
        net: None,
        balloon: true,
        serial: false,
    };
    let call = Call::Boot(Boot { config, protocol: BootProtocol::Pvh, has_initramfs: true, has_serial: false });
    let request = Request { id: u64::MAX, call };
    assert_eq!(decode::<Request>(&encode(&request).unwrap()).unwrap(), request);
    let report = Report::Answer { id: 7, result: Err("no".into()) };
    assert_eq!(decode::<Report>(&encode(&report).unwrap()).unwrap(), report);
}

#[test]
fn what_follows_a_message_is_refused() {
    let mut packet = encode(&Report::Ready(ShellTimes::default())).unwrap();
    packet.push(0);
    assert!(decode::<Report>(&packet).is_err());
    packet.truncate(packet.len() - 2);
    assert!(decode::<Report>(&packet).is_err());
}

#[test]
fn a_message_too_long_for_a_packet_is_not_made() {
    let report = Report::Exit(Exit::Failed("x".repeat(MAX_PACKET)));
    assert!(matches!(encode(&report), Err(WireError::TooLong(_))));
}

#[test]
fn texts_are_cut_at_a_character_and_lose_their_control_characters() {
    assert_eq!(plain("a\x1b[2Jb\n"), "a [2Jb ");
    let long = "ä".repeat(MAX_TEXT);
    assert_eq!(plain(&long).len(), MAX_TEXT);
    assert_eq!(plain(&format!("x{long}")).len(), MAX_TEXT - 1);
}

proptest! {
    #[test]
    fn any_bytes_are_a_message_or_an_error(packet in prop::collection::vec(any::<u8>(), 0..512)) {
        if let Ok(request) = decode::<Request>(&packet) {
            prop_assert_eq!(decode::<Request>(&encode(&request).unwrap()).unwrap(), request);
        }
        if let Ok(report) = decode::<Report>(&packet) {
            prop_assert_eq!(decode::<Report>(&encode(&report).unwrap()).unwrap(), report);
        }
    }
}
