//! The header of a qcow2 file: enough to know that it is one, how large its disk is, and that it points nowhere else.
//!
//! A pure function over the file's first bytes and its length; it allocates nothing that the input sizes. Two uses: a
//! file from outside must satisfy [`parse`]; a layer of ours, whose backing file we wrote, is read with [`layer`].

use super::Refused;

/// The first four bytes.
pub(crate) const MAGIC: [u8; 4] = *b"QFI\xfb";

const INCOMPATIBLE_DIRTY: u64 = 1 << 0;
const INCOMPATIBLE_CORRUPT: u64 = 1 << 1;
const INCOMPATIBLE_DATA_FILE: u64 = 1 << 2;
const INCOMPATIBLE_COMPRESSION: u64 = 1 << 3;
const INCOMPATIBLE_EXTENDED_L2: u64 = 1 << 4;

const EXTENSION_END: u32 = 0;
const EXTENSION_ENCRYPTION: u32 = 0x0537_be77;
const EXTENSION_BITMAPS: u32 = 0x2385_2875;
const EXTENSION_DATA_FILE: u32 = 0x4441_5441;

/// QEMU's own bounds.
const MAX_L1_BYTES: u64 = 32 << 20;
const MAX_REFCOUNT_TABLE_BYTES: u64 = 8 << 20;
const MAX_SNAPSHOTS: u64 = 65_536;
const MAX_BACKING_NAME: u64 = 1023;
const SNAPSHOT_HEADER: u64 = 40;

/// What a header says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Header {
    /// The disk's size.
    pub(crate) size: u64,
    /// Where the backing file's name is, and its length.
    backing: Option<(u64, u64)>,
    /// Where the L1 table is, and its entries.
    l1: (u64, u64),
}

fn refuse<T>(reason: impl Into<String>) -> Result<T, Refused> {
    Err(Refused(reason.into()))
}

fn bytes<const N: usize>(head: &[u8], at: usize) -> Result<[u8; N], Refused> {
    match at
        .checked_add(N)
        .and_then(|end| head.get(at..end))
        .and_then(|slice| slice.try_into().ok())
    {
        Some(array) => Ok(array),
        None => refuse("the qcow2 header is cut off"),
    }
}

fn u32_at(head: &[u8], at: usize) -> Result<u32, Refused> {
    bytes(head, at).map(u32::from_be_bytes)
}

fn u64_at(head: &[u8], at: usize) -> Result<u64, Refused> {
    bytes(head, at).map(u64::from_be_bytes)
}

/// A header of a file from outside, or why the file is refused.
pub(crate) fn parse(head: &[u8], length: u64, max: u64) -> Result<Header, Refused> {
    let header = read(head, length)?;
    if header.backing.is_some() {
        return refuse(
            "the qcow2 has a backing file, which is refused: flatten it with qemu-img convert",
        );
    }
    if header.size > max {
        return refuse(format!(
            "the qcow2 claims a disk of {} bytes; at most {max} are allowed",
            header.size
        ));
    }
    Ok(header)
}

/// A layer of a pool: its size and the name of its backing file.
pub(crate) fn layer(head: &[u8], length: u64) -> Result<(u64, Option<String>), Refused> {
    let header = read(head, length)?;
    let Some((at, len)) = header.backing else {
        return Ok((header.size, None));
    };
    let name = usize::try_from(at)
        .ok()
        .zip(usize::try_from(at.saturating_add(len)).ok())
        .and_then(|(from, to)| head.get(from..to))
        .and_then(|name| std::str::from_utf8(name).ok());
    match name {
        Some(name) => Ok((header.size, Some(name.to_owned()))),
        None => refuse("the backing file's name cannot be read"),
    }
}

/// Where a layer's L1 table is, and its length in bytes: all zeroes as long as nothing was ever written to the layer.
pub(crate) fn l1_table(head: &[u8], length: u64) -> Result<(u64, u64), Refused> {
    read(head, length).map(|header| (header.l1.0, header.l1.1 * 8))
}

fn read(head: &[u8], length: u64) -> Result<Header, Refused> {
    if !head.starts_with(&MAGIC) {
        return refuse("the file is not a qcow2");
    }
    let version = u32_at(head, 4)?;
    match version {
        2 | 3 => {}
        1 => return refuse("the file is a qcow of version 1; only raw and qcow2 are taken"),
        _ => return refuse(format!("qcow2 version {version} is not known")),
    }
    let backing_offset = u64_at(head, 8)?;
    let backing_size = u64::from(u32_at(head, 16)?);
    let cluster_bits = u32_at(head, 20)?;
    let size = u64_at(head, 24)?;
    let crypt = u32_at(head, 32)?;
    let l1_size = u64::from(u32_at(head, 36)?);
    let l1_offset = u64_at(head, 40)?;
    let refcount_offset = u64_at(head, 48)?;
    let refcount_clusters = u64::from(u32_at(head, 56)?);
    let snapshots = u64::from(u32_at(head, 60)?);
    let snapshots_offset = u64_at(head, 64)?;
    if !(9..=21).contains(&cluster_bits) {
        return refuse(format!(
            "a cluster size of 2^{cluster_bits} bytes is out of range"
        ));
    }
    let cluster = 1u64 << cluster_bits;
    let features = Features::read(head, version, cluster)?;

    if crypt != 0 {
        return refuse("the qcow2 is encrypted");
    }
    if size == 0 {
        return refuse("the qcow2 claims a disk of no size");
    }
    let inside = |what: &str, offset: u64, bytes: u64| {
        if offset < cluster || !offset.is_multiple_of(cluster) {
            return refuse(format!("the {what} table is not at a cluster of its own"));
        }
        match offset.checked_add(bytes) {
            Some(end) if end <= length => Ok(()),
            _ => refuse(format!(
                "the {what} table lies outside of the file: the file is cut off or its header lies"
            )),
        }
    };

    let entry_bytes = if features.extended_l2 { 16 } else { 8 };
    let per_l1_entry = cluster * (cluster / entry_bytes);
    if l1_size < size.div_ceil(per_l1_entry) {
        return refuse(format!(
            "the qcow2 claims a disk of {size} bytes, but its L1 table has room for less"
        ));
    }
    if l1_size * 8 > MAX_L1_BYTES {
        return refuse("the L1 table is larger than any QEMU makes it");
    }
    inside("L1", l1_offset, l1_size * 8)?;

    let refcount_bytes = refcount_clusters * cluster;
    if refcount_bytes == 0 || refcount_bytes > MAX_REFCOUNT_TABLE_BYTES {
        return refuse("the refcount table's size is out of range");
    }
    inside("refcount", refcount_offset, refcount_bytes)?;

    if snapshots > MAX_SNAPSHOTS {
        return refuse("there are more internal snapshots than any QEMU makes");
    }
    if snapshots > 0 {
        inside("snapshot", snapshots_offset, snapshots * SNAPSHOT_HEADER)?;
    }
    features.extensions(head, cluster, length)?;

    let backing = match (backing_offset, backing_size) {
        (0, 0) => None,
        (at, len)
            if at >= features.header_length as u64
                && len > 0
                && len <= MAX_BACKING_NAME
                && at
                    .checked_add(len)
                    .is_some_and(|end| end <= cluster.min(length)) =>
        {
            Some((at, len))
        }
        _ => return refuse("the qcow2 has a backing file whose name lies outside of the header"),
    };
    Ok(Header {
        size,
        backing,
        l1: (l1_offset, l1_size),
    })
}

struct Features {
    extended_l2: bool,
    header_length: usize,
}

impl Features {
    fn read(head: &[u8], version: u32, cluster: u64) -> Result<Self, Refused> {
        if version == 2 {
            return Ok(Self {
                extended_l2: false,
                header_length: 72,
            });
        }
        let incompatible = u64_at(head, 72)?;
        let refcount_order = u32_at(head, 96)?;
        let header_length = u32_at(head, 100)?;
        if incompatible & INCOMPATIBLE_DATA_FILE != 0 {
            return refuse("the qcow2 keeps its data in an external file, which is refused");
        }
        if incompatible & INCOMPATIBLE_CORRUPT != 0 {
            return refuse("the qcow2 is marked as corrupt: repair it with qemu-img check -r all");
        }
        if incompatible & INCOMPATIBLE_DIRTY != 0 {
            return refuse(
                "the qcow2 was not closed properly: repair it with qemu-img check -r leaks",
            );
        }
        let unknown = incompatible & !(INCOMPATIBLE_COMPRESSION | INCOMPATIBLE_EXTENDED_L2);
        if unknown != 0 {
            return refuse(format!(
                "the qcow2 needs features that are not known: {unknown:#x}"
            ));
        }
        if refcount_order > 6 {
            return refuse("the width of the refcounts is out of range");
        }
        if header_length < 104 || u64::from(header_length) > cluster || header_length % 8 != 0 {
            return refuse("the header's own length is out of range");
        }
        let compression = if header_length > 104 {
            bytes::<1>(head, 104)?[0]
        } else {
            0
        };
        let said = incompatible & INCOMPATIBLE_COMPRESSION != 0;
        if compression > 1 || said != (compression != 0) {
            return refuse("the kind of compression is not known");
        }
        let extended_l2 = incompatible & INCOMPATIBLE_EXTENDED_L2 != 0;
        if extended_l2 && cluster < 1 << 14 {
            return refuse("subclusters need clusters of at least 16 KiB");
        }
        Ok(Self {
            extended_l2,
            header_length: header_length as usize,
        })
    }

    /// Every header extension, to the end mark or the end of the first cluster.
    fn extensions(&self, head: &[u8], cluster: u64, length: u64) -> Result<(), Refused> {
        let end = usize::try_from(cluster.min(length)).unwrap_or(usize::MAX);
        let mut at = self.header_length;
        while at.saturating_add(8) <= end {
            let kind = u32_at(head, at)?;
            let len = u32_at(head, at + 4)? as usize;
            let data = at + 8;
            match kind {
                EXTENSION_END => return Ok(()),
                EXTENSION_DATA_FILE => {
                    return refuse("the qcow2 names an external data file, which is refused");
                }
                EXTENSION_ENCRYPTION => return refuse("the qcow2 is encrypted"),
                EXTENSION_BITMAPS => {
                    let bytes = u64_at(head, data + 8)?;
                    let offset = u64_at(head, data + 16)?;
                    if offset.checked_add(bytes).is_none_or(|to| to > length) {
                        return refuse("the table of bitmaps lies outside of the file");
                    }
                }
                _ => {}
            }
            let padded = len
                .checked_next_multiple_of(8)
                .and_then(|n| data.checked_add(n));
            match padded {
                Some(next) if next <= end => at = next,
                _ => return refuse("a header extension runs out of the header"),
            }
        }
        Ok(())
    }
}

#[cfg(test)]
#[path = "qcow2_tests.rs"]
mod tests;
