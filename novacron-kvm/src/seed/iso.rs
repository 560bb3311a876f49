//! A minimal ISO 9660 writer: one flat folder, named twice.
//!
//! | sector | holds |
//! |---|---|
//! | 0–15 | nothing (the system area) |
//! | 16, 17, 18 | primary descriptor, Joliet descriptor, terminator |
//! | 19, 20 | primary path table, little and big endian |
//! | 21, 22 | Joliet path table, little and big endian |
//! | 23 | root folder with 8.3 names and Rock Ridge |
//! | 24 | root folder with Joliet names |
//! | 25… | the files, each from a new sector |
//!
//! Both folders point at the same file sectors. Dates are zero: the image depends on its content alone.

use super::directory::{self, Entry};

pub(super) const SECTOR: usize = 2048;

const PRIMARY_ROOT: u32 = 23;
const JOLIET_ROOT: u32 = 24;
const FIRST_FILE: u32 = 25;

/// The image of a CD with these files (a handful, with short names) in its root folder.
pub(super) fn image(label: &str, files: &[(&str, &[u8])]) -> Vec<u8> {
    let mut entries = Vec::new();
    let mut sector = FIRST_FILE;
    for (name, content) in files {
        entries.push(Entry {
            name,
            sector,
            size: content.len() as u32,
        });
        sector += content.len().div_ceil(SECTOR) as u32;
    }
    let mut image = vec![0; 16 * SECTOR];
    push_sector(&mut image, &descriptor(Names::Primary, label, sector));
    push_sector(&mut image, &descriptor(Names::Joliet, label, sector));
    push_sector(&mut image, b"\xffCD001\x01");
    for root in [PRIMARY_ROOT, JOLIET_ROOT] {
        push_sector(
            &mut image,
            &path_table(root.to_le_bytes(), 1u16.to_le_bytes()),
        );
        push_sector(
            &mut image,
            &path_table(root.to_be_bytes(), 1u16.to_be_bytes()),
        );
    }
    push_sector(&mut image, &directory::primary(PRIMARY_ROOT, &entries));
    push_sector(&mut image, &directory::joliet(JOLIET_ROOT, &entries));
    for (_, content) in files {
        push_sector(&mut image, content);
    }
    image
}

/// Which of the two volume descriptors.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Names {
    Primary,
    Joliet,
}

/// Appends bytes and fills the last sector with zeros.
fn push_sector(image: &mut Vec<u8>, bytes: &[u8]) {
    image.extend_from_slice(bytes);
    image.resize(image.len().next_multiple_of(SECTOR), 0);
}

/// A number in both byte orders, as ISO 9660 likes it.
pub(super) fn both_endian_32(number: u32) -> [u8; 8] {
    let mut bytes = [0; 8];
    bytes[..4].copy_from_slice(&number.to_le_bytes());
    bytes[4..].copy_from_slice(&number.to_be_bytes());
    bytes
}

/// A number in both byte orders.
pub(super) fn both_endian_16(number: u16) -> [u8; 4] {
    let mut bytes = [0; 4];
    bytes[..2].copy_from_slice(&number.to_le_bytes());
    bytes[2..].copy_from_slice(&number.to_be_bytes());
    bytes
}

/// A text in big-endian UTF-16, the encoding of Joliet.
pub(super) fn utf16(text: &str) -> Vec<u8> {
    text.encode_utf16().flat_map(u16::to_be_bytes).collect()
}

fn path_table(root: [u8; 4], parent: [u8; 2]) -> Vec<u8> {
    let mut record = vec![1, 0];
    record.extend_from_slice(&root);
    record.extend_from_slice(&parent);
    record.extend_from_slice(&[0, 0]);
    record
}

fn descriptor(names: Names, label: &str, sectors: u32) -> Vec<u8> {
    let (kind, root, path_table) = match names {
        Names::Primary => (1, PRIMARY_ROOT, 19u32),
        Names::Joliet => (2, JOLIET_ROOT, 21),
    };
    let mut bytes = vec![0; SECTOR];
    let mut put =
        |at: usize, content: &[u8]| bytes[at..at + content.len()].copy_from_slice(content);
    put(0, &[kind]);
    put(1, b"CD001\x01");
    // Text fields are filled with blanks: system id, label, then set, publisher, preparer, application and three files.
    for (at, length, text) in [(8, 32, ""), (40, 32, label), (190, 623, "")] {
        put(at, &padded(names, text, length));
    }
    if names == Names::Joliet {
        put(88, b"%/E");
    }
    put(80, &both_endian_32(sectors));
    put(120, &both_endian_16(1));
    put(124, &both_endian_16(1));
    put(128, &both_endian_16(SECTOR as u16));
    put(132, &both_endian_32(10));
    put(140, &path_table.to_le_bytes());
    put(148, &(path_table + 1).to_be_bytes());
    put(156, &directory::root_record(root));
    // Four dates that say "not given".
    for at in [813, 830, 847, 864] {
        put(at, b"0000000000000000\0");
    }
    put(881, &[1]);
    bytes
}

fn padded(names: Names, text: &str, length: usize) -> Vec<u8> {
    match names {
        Names::Primary => {
            let mut bytes = text.as_bytes().to_vec();
            bytes.resize(length, b' ');
            bytes
        }
        Names::Joliet => {
            let blanks = " ".repeat((length / 2).saturating_sub(text.chars().count()));
            let mut bytes = utf16(&format!("{text}{blanks}"));
            bytes.resize(length, 0);
            bytes
        }
    }
}
