//! Archives for tests, written byte by byte so that every field can lie.

use std::io::Cursor;

/// A stored (or wrongly labelled) entry.
#[derive(Clone)]
pub(crate) struct Raw {
    pub(crate) name: Vec<u8>,
    pub(crate) data: Vec<u8>,
    /// Upper half of the external attributes: file type and permissions.
    pub(crate) mode: u32,
    /// Host system of the entry: 3 is Unix.
    pub(crate) system: u8,
    pub(crate) method: u16,
    pub(crate) flags: u16,
    /// What the directory says instead of the real unpacked size.
    pub(crate) claimed: Option<u32>,
}

impl Raw {
    pub(crate) fn file(name: &str, data: &[u8]) -> Self {
        let name = name.as_bytes().to_vec();
        Self { name, data: data.to_vec(), mode: 0o100_644, system: 3, method: 0, flags: 0, claimed: None }
    }

    pub(crate) fn dir(name: &str) -> Self {
        Self { mode: 0o040_755, ..Self::file(name, b"") }
    }

    pub(crate) fn link(name: &str, target: &str) -> Self {
        Self { mode: 0o120_777, ..Self::file(name, target.as_bytes()) }
    }

    pub(crate) fn mode(self, mode: u32) -> Self {
        Self { mode, ..self }
    }
}

/// An archive of these entries, dated 2024-02-29 12:34:56.
pub(crate) fn raw_zip(entries: &[Raw]) -> Vec<u8> {
    let mut archive = Vec::new();
    let mut directory = Vec::new();
    for entry in entries {
        let offset = archive.len() as u32;
        let mut common = Vec::new();
        common.extend(20u16.to_le_bytes());
        common.extend(entry.flags.to_le_bytes());
        common.extend(entry.method.to_le_bytes());
        common.extend((12u16 << 11 | 34 << 5 | 28).to_le_bytes());
        common.extend((44u16 << 9 | 2 << 5 | 29).to_le_bytes());
        common.extend(crc32(&entry.data).to_le_bytes());
        common.extend((entry.data.len() as u32).to_le_bytes());
        common.extend(entry.claimed.unwrap_or(entry.data.len() as u32).to_le_bytes());
        common.extend((entry.name.len() as u16).to_le_bytes());
        common.extend(0u16.to_le_bytes());
        archive.extend(b"PK\x03\x04");
        archive.extend(&common);
        archive.extend(&entry.name);
        archive.extend(&entry.data);
        directory.extend(b"PK\x01\x02");
        directory.extend([20, entry.system]);
        directory.extend(&common);
        directory.extend([0; 6]);
        directory.extend((entry.mode << 16).to_le_bytes());
        directory.extend(offset.to_le_bytes());
        directory.extend(&entry.name);
    }
    let start = archive.len() as u32;
    archive.extend(&directory);
    archive.extend(b"PK\x05\x06\0\0\0\0");
    archive.extend((entries.len() as u16).to_le_bytes());
    archive.extend((entries.len() as u16).to_le_bytes());
    archive.extend((directory.len() as u32).to_le_bytes());
    archive.extend(start.to_le_bytes());
    archive.extend([0; 2]);
    archive
}

/// A deflated archive of files with these names, contents and permissions.
pub(crate) fn deflated_zip<'a>(files: impl IntoIterator<Item = (&'a str, &'a [u8], u32)>) -> Vec<u8> {
    let mut writer = zip::ZipWriter::new(Cursor::new(Vec::new()));
    for (name, data, mode) in files {
        let options = zip::write::SimpleFileOptions::default()
            .compression_method(zip::CompressionMethod::Deflated)
            .unix_permissions(mode);
        writer.start_file(name, options).unwrap();
        std::io::Write::write_all(&mut writer, data).unwrap();
    }
    writer.finish().unwrap().into_inner()
}

fn crc32(data: &[u8]) -> u32 {
    !data.iter().fold(!0, |crc, &byte| {
        (0..8).fold(crc ^ u32::from(byte), |crc, _| if crc & 1 == 1 { crc >> 1 ^ 0xedb8_8320 } else { crc >> 1 })
    })
}
