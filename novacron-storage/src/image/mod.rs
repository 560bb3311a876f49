//! Telling what a file from outside is, without QEMU: its format, and whether it is safe to hand to QEMU.
//!
//! QEMU's own probing is never used. What is refused here, and which known attack that closes:
//!
//! | attack | closed by |
//! |---|---|
//! | a guest writes a qcow2 header into its raw disk and reads host files through it on the next start (CVE-2008-2004) | the format is in the record and named at every open; a file is told apart once, at import, by [`detect`] |
//! | a backing file that names a host's file (CVE-2015-5163 and its like in image services) | [`qcow2::parse`] refuses every backing file |
//! | a qcow2 whose *external data file* names a host's file (CVE-2024-32498, OSSA-2024-001) | the feature bit and the header extension are refused |
//! | a VMDK descriptor that names extents anywhere (CVE-2022-47951) | VMDK and every other format are refused by name |
//! | header fields out of bounds (CVE-2014-0142 … 0148: cluster bits, L1, refcount and snapshot tables) | each table is bounded and lies within the file |
//! | a tiny file with an absurd virtual size (CVE-2015-5162 and its like: the inspecting process is exhausted) | the size is bounded by the pool's, and the L1 table must cover it; `qemu-img` has a deadline |
//! | the file is exchanged between check and use | what is checked, hashed and converted is one private copy in the pool |
//!
//! A file that was cut off in the middle is found by `qemu-img check` on the copy: QEMU itself would read zeroes.
//! A raw image says nothing about itself: only its checksum shows that it is whole.

pub(crate) mod qcow2;

use std::fmt;

use novacron_core::model::VolumeFormat;

/// This much of a file's beginning is looked at.
pub(crate) const HEAD: usize = 64 << 10;
/// This much of a file's end is looked at.
pub(crate) const TAIL: usize = 512;

/// Why a file is refused: one sentence for a person.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Refused(pub(crate) String);

impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// What a file from outside is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Detected {
    /// Its format.
    pub(crate) format: VolumeFormat,
    /// The disk's size.
    pub(crate) size: u64,
}

const OTHERS: [(usize, &[u8], &str); 18] = [
    (0, b"KDMV", "a VMDK"),
    (0, b"COWD", "a VMDK"),
    (0, b"# Disk DescriptorFile", "a VMDK descriptor"),
    (0x40, &[0x7f, 0x10, 0xda, 0xbe], "a VDI"),
    (0, b"QED\0", "a QED image"),
    (0, b"conectix", "a VHD"),
    (0, b"vhdxfile", "a VHDX"),
    (0, b"WithoutFreeSpace", "a Parallels image"),
    (0, b"WithouFreSpacExt", "a Parallels image"),
    (0, b"Bochs Virtual HD Image", "a Bochs image"),
    (0, b"OOOM", "a user-mode Linux COW image"),
    (0, &[0x1f, 0x8b], "compressed with gzip"),
    (0, b"BZh", "compressed with bzip2"),
    (0, &[0xfd, b'7', b'z', b'X', b'Z', 0], "compressed with xz"),
    (0, &[0x28, 0xb5, 0x2f, 0xfd], "compressed with zstd"),
    (0, b"PK\x03\x04", "a zip archive"),
    (0, b"7z\xbc\xaf\x27\x1c", "a 7z archive"),
    (257, b"ustar", "a tar archive"),
];

/// Tells what a file is from its first [`HEAD`] and last [`TAIL`] bytes and its length.
pub(crate) fn detect(head: &[u8], tail: &[u8], length: u64, max: u64) -> Result<Detected, Refused> {
    if length == 0 {
        return Err(Refused("the file is empty".into()));
    }
    if head.starts_with(&qcow2::MAGIC) {
        let header = qcow2::parse(head, length, max)?;
        return Ok(Detected {
            format: VolumeFormat::Qcow2,
            size: header.size,
        });
    }
    for (at, magic, name) in OTHERS {
        if head.get(at..).is_some_and(|rest| rest.starts_with(magic)) {
            return Err(Refused(format!(
                "the file is {name}; only raw and qcow2 are taken"
            )));
        }
    }
    for (magic, name) in [(&b"conectix"[..], "a VHD"), (&b"koly"[..], "a DMG")] {
        if tail.len() == TAIL && tail.starts_with(magic) {
            return Err(Refused(format!(
                "the file is {name}; only raw and qcow2 are taken"
            )));
        }
    }
    if !length.is_multiple_of(512) {
        return Err(Refused(format!(
            "the file is {length} bytes long: a raw image is a multiple of 512 bytes, so it is cut off or not an image"
        )));
    }
    if length > max {
        return Err(Refused(format!(
            "the image is {length} bytes large; at most {max} are allowed"
        )));
    }
    Ok(Detected {
        format: VolumeFormat::Raw,
        size: length,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn other_formats_are_refused_by_name() {
        for (at, magic, name) in OTHERS {
            let mut head = vec![0; 1024];
            head[at..at + magic.len()].copy_from_slice(magic);
            let refused = detect(&head, &[], 1024, 1 << 40).unwrap_err();
            assert!(refused.0.contains(name), "{refused}");
        }
        let mut tail = [0; TAIL];
        tail[..8].copy_from_slice(b"conectix");
        let refused = detect(&[0; 1024], &tail, 2048, 1 << 40).unwrap_err();
        assert!(refused.0.contains("a VHD"), "{refused}");
    }

    #[test]
    fn raw_is_a_multiple_of_a_sector_and_bounded() {
        assert!(detect(&[], &[], 0, 1 << 40).is_err());
        assert!(detect(&[0; 100], &[], 1000, 1 << 40).is_err());
        assert!(detect(&[0; 512], &[], 4096, 2048).is_err());
        let raw = detect(&[0; 512], &[], 4096, 4096).unwrap();
        assert_eq!((raw.format, raw.size), (VolumeFormat::Raw, 4096));
    }
}
