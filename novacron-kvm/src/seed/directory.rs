//! The root folder, twice: with 8.3 names and Rock Ridge attributes (Unix), and with Joliet names (Windows).

use super::iso::{SECTOR, both_endian_16, both_endian_32, utf16};

/// A file in the root folder.
pub(super) struct Entry<'a> {
    pub(super) name: &'a str,
    pub(super) sector: u32,
    pub(super) size: u32,
}

const IS_FOLDER: u8 = 2;
const FOLDER_MODE: u32 = 0o040_555;
const FILE_MODE: u32 = 0o100_444;

/// The folder with 8.3 names; Rock Ridge carries the real ones.
pub(super) fn primary(root: u32, entries: &[Entry<'_>]) -> Vec<u8> {
    let mut attributes = b"SP\x07\x01\xbe\xef\x00".to_vec();
    attributes.extend(posix_attributes(FOLDER_MODE));
    // "Extension reference": the names below are Rock Ridge.
    attributes.extend(b"ER\x12\x01\x0a\x00\x00\x01RRIP_1991A");
    let mut bytes = record(&[0], root, SECTOR as u32, IS_FOLDER, &attributes);
    bytes.extend(record(
        &[1],
        root,
        SECTOR as u32,
        IS_FOLDER,
        &posix_attributes(FOLDER_MODE),
    ));

    let mut named: Vec<_> = entries
        .iter()
        .map(|entry| (short_name(entry.name), entry))
        .collect();
    named.sort_by(|a, b| a.0.cmp(&b.0));
    for (short, entry) in named {
        let mut attributes = vec![b'N', b'M', 5 + entry.name.len() as u8, 1, 0];
        attributes.extend(entry.name.as_bytes());
        attributes.extend(posix_attributes(FILE_MODE));
        bytes.extend(record(
            short.as_bytes(),
            entry.sector,
            entry.size,
            0,
            &attributes,
        ));
    }
    bytes
}

/// The folder with Joliet names.
pub(super) fn joliet(root: u32, entries: &[Entry<'_>]) -> Vec<u8> {
    let mut bytes = record(&[0], root, SECTOR as u32, IS_FOLDER, &[]);
    bytes.extend(record(&[1], root, SECTOR as u32, IS_FOLDER, &[]));
    let mut named: Vec<_> = entries
        .iter()
        .map(|entry| (utf16(entry.name), entry))
        .collect();
    named.sort_by(|a, b| a.0.cmp(&b.0));
    for (name, entry) in named {
        bytes.extend(record(&name, entry.sector, entry.size, 0, &[]));
    }
    bytes
}

/// The record of the root folder that stands in a volume descriptor.
pub(super) fn root_record(root: u32) -> Vec<u8> {
    record(&[0], root, SECTOR as u32, IS_FOLDER, &[])
}

/// `meta-data` → `META_DAT.;1`.
fn short_name(name: &str) -> String {
    let clean = name.chars().map(|c| {
        if c.is_ascii_alphanumeric() {
            c.to_ascii_uppercase()
        } else {
            '_'
        }
    });
    format!("{}.;1", clean.take(8).collect::<String>())
}

fn posix_attributes(mode: u32) -> Vec<u8> {
    let mut bytes = b"PX\x24\x01".to_vec();
    // Mode, links, owner, group.
    for number in [mode, 1, 0, 0] {
        bytes.extend(both_endian_32(number));
    }
    bytes
}

fn record(name: &[u8], sector: u32, size: u32, flags: u8, attributes: &[u8]) -> Vec<u8> {
    let mut bytes = vec![0, 0];
    bytes.extend(both_endian_32(sector));
    bytes.extend(both_endian_32(size));
    bytes.extend([0; 7]);
    bytes.extend([flags, 0, 0]);
    bytes.extend(both_endian_16(1));
    bytes.push(name.len() as u8);
    bytes.extend(name);
    if bytes.len() % 2 == 1 {
        bytes.push(0);
    }
    bytes.extend(attributes);
    if bytes.len() % 2 == 1 {
        bytes.push(0);
    }
    bytes[0] = bytes.len() as u8;
    bytes
}
