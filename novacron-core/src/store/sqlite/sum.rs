//! The checksum of a record. SQLite checks its pages' structure only: a bit that flips inside a value would else go
//! unnoticed.

const TABLE: [u32; 256] = {
    let mut table = [0; 256];
    let mut i = 0;
    while i < 256 {
        #[expect(
            clippy::cast_possible_truncation,
            reason = "below 256; no `try_from` in const"
        )]
        let mut crc = i as u32;
        let mut bit = 0;
        while bit < 8 {
            crc = if crc & 1 == 1 {
                0xedb8_8320 ^ (crc >> 1)
            } else {
                crc >> 1
            };
            bit += 1;
        }
        table[i] = crc;
        i += 1;
    }
    table
};

fn crc(crc: u32, bytes: &[u8]) -> u32 {
    bytes.iter().fold(crc, |crc, byte| {
        TABLE[usize::from(crc.to_le_bytes()[0] ^ byte)] ^ (crc >> 8)
    })
}

/// CRC-32 (IEEE) of the key, the version as eight big-endian bytes, and the value if there is one.
pub(super) fn sum(key: &str, version: u64, value: Option<&[u8]>) -> u32 {
    let crc = crc(crc(!0, key.as_bytes()), &version.to_be_bytes());
    !self::crc(crc, value.unwrap_or_default())
}

#[cfg(test)]
mod tests {
    #[test]
    fn it_is_the_common_crc_32() {
        assert_eq!(!super::crc(!0, b"123456789"), 0xcbf4_3926);
    }
}
