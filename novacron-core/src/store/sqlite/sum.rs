//! The checksum of a record. SQLite checks its pages' structure only: a bit that flips inside a value would else go
//! unnoticed.

use crate::store::crc::{START, crc};

/// CRC-32 (IEEE) of the key, the version as eight big-endian bytes, and the value if there is one.
pub(super) fn sum(key: &str, version: u64, value: Option<&[u8]>) -> u32 {
    let keyed = crc(crc(START, key.as_bytes()), &version.to_be_bytes());
    !crc(keyed, value.unwrap_or_default())
}
