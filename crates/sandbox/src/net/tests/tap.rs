//! Tap devices, with hand-made packets in place of a machine.

use super::*;

/// An Ethernet address of nobody.
const MAC: [u8; 6] = [2, 0, 0, 0, 0, 1];
/// `virtio_net_hdr`: nothing is asked of the device.
const PLAIN: [u8; 10] = [0; 10];

/// Writes a packet as the machine's card would.
fn send(slot: &TapSlot, to: [u8; 6], kind: u16, content: &[u8]) {
    let packet = [&PLAIN[..], &to, &MAC, &kind.to_be_bytes(), content].concat();
    assert_eq!(rustix::io::write(&slot.tap, &packet).expect("write"), packet.len());
}

/// The address that the host's end answers with for the gateway (ARP, RFC 826).
async fn gateway_mac(slot: &TapSlot) -> [u8; 6] {
    let request = [&[0, 1, 8, 0, 6, 4, 0, 1][..], &MAC, &slot.address.octets(), &[0; 6], &slot.gateway.octets()];
    send(slot, [0xff; 6], 0x0806, &request.concat());
    let answer = std::cell::Cell::new(None);
    wait_until("the gateway answers", || {
        let mut buffer = [0; 2048];
        while let Ok(length) = rustix::io::read(&slot.tap, &mut buffer) {
            let packet = &buffer[PLAIN.len()..length];
            if packet[12..14] == [8, 6] && packet[20..22] == [0, 2] {
                answer.set(packet[22..28].try_into().ok());
            }
        }
        answer.get().is_some()
    })
    .await;
    answer.get().expect("an answer")
}

/// An IPv4 packet with a datagram in it (RFC 791, RFC 768).
fn datagram(from: Ipv4Addr, to: SocketAddrV4, text: &[u8]) -> Vec<u8> {
    let length = 28 + text.len() as u16;
    let mut head = vec![0x45, 0];
    head.extend(length.to_be_bytes());
    head.extend([0, 0, 0, 0, 64, 17, 0, 0]);
    head.extend(from.octets());
    head.extend(to.ip().octets());
    let sum: u32 = head.chunks(2).map(|pair| u32::from(u16::from_be_bytes([pair[0], pair[1]]))).sum();
    let folded = !((sum & 0xffff) + (sum >> 16)) as u16;
    head[10..12].copy_from_slice(&folded.to_be_bytes());
    head.extend(4000u16.to_be_bytes());
    head.extend(to.port().to_be_bytes());
    head.extend((8 + text.len() as u16).to_be_bytes());
    head.extend([0, 0]);
    head.extend(text);
    head
}

#[test]
fn a_machine_gets_out_as_the_host_and_not_as_anybody_else() {
    on_own_host(|| async {
        let internet = connect_internet().await;
        let Some(networks) = start_nat(small_pool()) else { return };
        let slot = match networks.acquire_tap().await {
            Ok(slot) => slot.expect("a tap under NAT"),
            Err(NetError::Step { step, source }) if step.contains("/dev/net/tun") => {
                eprintln!("SKIPPED: cannot {step}: {source}");
                return;
            }
            Err(error) => panic!("{error:?}"),
        };
        let other = networks.acquire_tap().await.expect("acquire").expect("a tap");
        assert_ne!(slot.address, other.address);
        let gateway = gateway_mac(&slot).await;
        let to = SocketAddrV4::new(SERVER, internet.port);
        for (source, text) in [(other.address, "as another"), (OUTSIDE, "as the host"), (slot.address, "as itself")] {
            send(&slot, gateway, 0x0800, &datagram(source, to, text.as_bytes()));
        }
        let mut buffer = [0; 64];
        internet.datagrams.set_read_timeout(Some(PATIENCE)).expect("timeout");
        let (length, from) = internet.datagrams.recv_from(&mut buffer).expect("a datagram");
        assert_eq!((&buffer[..length], from.ip()), (&b"as itself"[..], OUTSIDE.into()));

        let name = link::host_name(slot.address);
        assert!(interfaces().contains(&name));
        drop(slot);
        wait_until("the device is gone", || !interfaces().contains(&name)).await;
        networks.shutdown().await;
    });
}

#[test]
fn machines_have_no_network_where_there_is_no_translation() {
    on_own_host(|| async {
        let networks = Networks::start(NetworkMode::Off, small_pool()).expect("start");
        assert!(networks.acquire_tap().await.expect("acquire").is_none());
    });
}
