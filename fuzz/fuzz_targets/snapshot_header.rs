//! The head of a snapshot file: no panic, and no size that the rest of the loader could not trust. The input is tried as it
//! is and as the body of a head whose checksum is right, because hardly any input would get past that.
#![no_main]

use libfuzzer_sys::fuzz_target;
use vmm::snapshot::{FORMAT_VERSION, Header, MAX_MEMORY_BYTES, MAX_STATE_BYTES, PAGE_BYTES};

fuzz_target!(|input: &[u8]| {
    check(input);
    let mut head = b"FIRESNAP".to_vec();
    head.extend_from_slice(&FORMAT_VERSION.to_le_bytes());
    head.extend_from_slice(&(input.len() as u32).to_le_bytes());
    head.extend_from_slice(input);
    let checksum = *blake3::hash(&head).as_bytes();
    head.extend_from_slice(&checksum);
    head.extend_from_slice(&[0; 16]);
    check(&head);
});

fn check(bytes: &[u8]) {
    if let Ok(header) = Header::parse(bytes) {
        assert!(header.memory_bytes > 0 && header.memory_bytes <= MAX_MEMORY_BYTES);
        assert_eq!(header.memory_bytes % PAGE_BYTES, 0);
        assert!(header.data_pages <= header.memory_bytes / PAGE_BYTES);
        assert!(header.state_bytes <= MAX_STATE_BYTES);
    }
}
