//! The head of a snapshot file under every kind of damage.

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;

fn header() -> Header {
    let host = Host {
        architecture: "x86_64".into(),
        vendor: "AuthenticAMD".into(),
        family: 25,
        model: 1,
        stepping: 1,
        cpuid: [3; 32],
        kvm: BTreeMap::from([("xsave bytes".into(), 2696)]),
    };
    let identity = postcard::from_bytes(&[7; 32]).unwrap();
    Header { host, memory_bytes: 128 << 20, data_pages: 100, state_bytes: 5000, identity, base: None, salt: [9; 32] }
}

fn head(header: &Header) -> Vec<u8> {
    let (mut bytes, _) = header.encode().unwrap();
    bytes.extend_from_slice(&[0; TAG_BYTES]);
    bytes
}

/// A head with any body and a right checksum.
fn around(body: &[u8]) -> Vec<u8> {
    let mut bytes = MAGIC.to_vec();
    bytes.extend_from_slice(&FORMAT_VERSION.to_le_bytes());
    bytes.extend_from_slice(&(body.len() as u32).to_le_bytes());
    bytes.extend_from_slice(body);
    let checksum = *blake3::hash(&bytes).as_bytes();
    bytes.extend_from_slice(&checksum);
    bytes.extend_from_slice(&[0; TAG_BYTES]);
    bytes
}

#[test]
fn a_header_is_read_back() {
    let mut bytes = head(&header());
    assert_eq!(Header::parse(&bytes), Ok(header()));
    bytes.extend_from_slice(&[1; 1000]);
    let head = Head::parse(&bytes).unwrap();
    assert_eq!(head.bytes as usize, bytes.len() - 1000);
    assert_eq!(head.header.index_bytes(), 5000 + (128 << 20) / 4096 / 8 + (128 << 20) / 65536 / 8);
}

#[test]
fn each_damage_has_its_error() {
    let good = head(&header());
    let with = |at: usize, value: u8| {
        let mut bytes = good.clone();
        bytes[at] = value;
        Header::parse(&bytes).unwrap_err()
    };
    assert_eq!(with(0, b'f'), HeaderError::NoSnapshot);
    assert_eq!(with(8, 2), HeaderError::Newer { found: 2 });
    assert_eq!(with(8, 0), HeaderError::Older { found: 0 });
    assert_eq!(with(15, 1), HeaderError::Damaged);
    assert_eq!(with(12, good[12] - 1), HeaderError::Damaged);
    assert_eq!(with(20, good[20] ^ 1), HeaderError::Damaged);
    for length in 0..good.len() {
        let expected = if length < PREFIX_BYTES { HeaderError::NoSnapshot } else { HeaderError::Truncated };
        assert_eq!(Header::parse(&good[..length]), Err(expected), "{length}");
    }
    assert_eq!(
        HeaderError::Newer { found: 2 }.to_string(),
        "the file has format 2, this program reads 1; update it, or take the snapshot again"
    );
}

#[test]
fn impossible_sizes_are_refused_although_the_checksum_is_right() {
    let impossible = |change: fn(&mut Header)| {
        let mut header = header();
        change(&mut header);
        match Header::parse(&head(&header)) {
            Err(HeaderError::Impossible(what)) => what,
            other => panic!("{other:?}"),
        }
    };
    assert_eq!(impossible(|header| header.memory_bytes = 0), "memory size");
    assert_eq!(impossible(|header| header.memory_bytes += 1), "memory size");
    assert_eq!(impossible(|header| header.memory_bytes = MAX_MEMORY_BYTES + 4096), "memory size");
    assert_eq!(impossible(|header| header.memory_bytes = u64::MAX), "memory size");
    assert_eq!(impossible(|header| header.data_pages = (128 << 20) / 4096 + 1), "number of pages");
    assert_eq!(impossible(|header| header.state_bytes = MAX_STATE_BYTES + 1), "state size");
    let mut long = postcard::to_stdvec(&header()).unwrap();
    long.push(0);
    assert_eq!(Header::parse(&around(&long)), Err(HeaderError::Impossible("encoding")));
    let mut huge = header();
    huge.host.vendor = "v".repeat(MAX_BODY_BYTES);
    assert!(huge.encode().is_err());
}

proptest! {
    #[test]
    fn no_flipped_bit_goes_unnoticed(bit in 0..head(&header()).len() * 8) {
        let good = head(&header());
        let mut bytes = good.clone();
        bytes[bit / 8] ^= 1 << (bit % 8);
        // The tag is not the checksum's business: it needs the key.
        if bit / 8 < good.len() - TAG_BYTES {
            prop_assert!(Header::parse(&bytes).is_err());
        }
    }

    #[test]
    fn no_bytes_panic(bytes in prop::collection::vec(any::<u8>(), 0..600)) {
        let _ = Header::parse(&bytes);
        if let Ok(header) = Header::parse(&around(&bytes)) {
            prop_assert!(header.data_bytes() <= header.memory_bytes);
        }
    }
}
