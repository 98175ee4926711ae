//! Any packets of a guest, between any events at the host's side: the books of the connections stay within their bounds,
//! and no packet to the guest breaks a rule.

#![no_main]

use std::time::{Duration, Instant};

use libfuzzer_sys::fuzz_target;
use vmm::devices::virtio::vsock::muxer::{Effect, Id, Limits, Muxer, Next, Payload};
use vmm::devices::virtio::vsock::packet::{HEADER_SIZE, HOST_CID, Header, Op, STREAM};

const CID: u64 = 3;
const ANNOUNCED: u32 = 9;

fuzz_target!(|steps: Vec<(u8, u8, [u8; HEADER_SIZE])>| {
    let limits = Limits { connections: 5, from_guest: 3, buffer: 1000, buffers: 2, small_buffer: 100, refusals: 4, ..Limits::default() };
    let mut now = Instant::now();
    let mut muxer = Muxer::new(CID, limits);
    muxer.listen(ANNOUNCED);
    let mut ids: Vec<Id> = (0..2).filter_map(|port| muxer.open(port, now).ok()).collect();
    let first_port = muxer.next_port() - 2;
    for (kind, which, bytes) in steps.into_iter().take(512) {
        let id = ids[usize::from(which) % ids.len()];
        match kind % 10 {
            // Most packets should have a connection.
            0..=3 => {
                let raw = Header::from_bytes(&bytes);
                let port = [ANNOUNCED, first_port, first_port + 1][usize::from(which) % 3];
                let mut header = Header { src_cid: CID, dst_cid: HOST_CID, kind: STREAM, ..raw };
                header = if kind % 10 == 0 { raw } else { Header { src_port: raw.src_port % 3, dst_port: port, ..header } };
                header.op %= 9;
                if kind % 10 > 1 {
                    (header.len, header.fwd_cnt) = (header.len % 1100, header.fwd_cnt % 64);
                }
                if !muxer.is_full() && let Payload::Deliver(to) = muxer.receive(&header, 1000, now) {
                    assert!(header.len > 0 && header.len <= 1000);
                    muxer.delivered(to, header.len / (1 + u32::from(which) % 2));
                }
            }
            4 => muxer.readable(id),
            5 => muxer.hung_up(id, now),
            6 => muxer.host_deaf(id, now),
            7 => muxer.delivered(id, u32::from(which)),
            8 => {
                now += Duration::from_secs(u64::from(which) % 4);
                muxer.expire(now);
                muxer.hold(which & 4 != 0);
            }
            _ => match muxer.next_packet() {
                Some(Next::Control(header)) => {
                    assert!(Op::from_number(header.op).is_some() && header.len == 0);
                }
                Some(Next::Data(from, limit)) => match which % 3 {
                    0 => assert_eq!(muxer.sent(from, limit).map(|header| header.len), Some(limit)),
                    1 => muxer.host_ended(from, now),
                    _ => muxer.dry(from),
                },
                None => assert!(!muxer.has_next()),
            },
        }
        while let Some(effect) = muxer.effect() {
            if let Effect::Accept(id, port) = effect {
                assert_eq!(port, ANNOUNCED);
                ids.push(id);
            }
        }
        assert!(muxer.len() <= 5);
    }
    muxer.clear();
    assert!(muxer.is_empty());
});
