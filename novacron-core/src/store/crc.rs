//! CRC-32 (IEEE), for what must be noticed when it was damaged by accident.

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

/// Where a checksum begins.
pub(super) const START: u32 = !0;

/// The checksum's state after more bytes; the complement of the last one is the checksum.
pub(super) fn crc(crc: u32, bytes: &[u8]) -> u32 {
    bytes.iter().fold(crc, |crc, byte| {
        TABLE[usize::from(crc.to_le_bytes()[0] ^ byte)] ^ (crc >> 8)
    })
}

#[cfg(test)]
mod tests {
    #[test]
    fn it_is_the_common_crc_32() {
        assert_eq!(!super::crc(super::START, b"123456789"), 0xcbf4_3926);
    }
}
