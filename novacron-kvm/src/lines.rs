//! Cutting a byte stream into lines, when the sender is not to be trusted.
//!
//! QMP and the guest agent both speak "one JSON object per line". The bytes of the agent come from inside the guest, so
//! a sender may leave out the newline for ever or send rubbish. The decoder holds at most `limit` bytes: a longer line is
//! dropped up to its end and reported once as [`TooLong`], and the line after it is read as if nothing had happened.

use bytes::{Buf, Bytes, BytesMut};

/// A line that was longer than the decoder's limit; it was thrown away.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a line longer than {limit} bytes")]
pub(crate) struct TooLong {
    /// The limit that was passed.
    pub(crate) limit: usize,
}

/// Splits pushed bytes at newlines, in bounded memory.
#[derive(Debug)]
pub(crate) struct LineDecoder {
    buffer: BytesMut,
    /// How far into `buffer` it is known that there is no newline.
    scanned: usize,
    limit: usize,
    /// Inside a line that was already reported as too long.
    discarding: bool,
}

impl LineDecoder {
    /// A decoder for lines of at most `limit` bytes.
    pub(crate) fn new(limit: usize) -> Self {
        Self {
            buffer: BytesMut::new(),
            scanned: 0,
            limit,
            discarding: false,
        }
    }

    /// Takes in what was read.
    pub(crate) fn push(&mut self, bytes: &[u8]) {
        self.buffer.extend_from_slice(bytes);
    }

    /// The next whole line, without its line ending; `None` until more bytes are pushed. Empty lines are skipped.
    pub(crate) fn next_line(&mut self) -> Option<Result<Bytes, TooLong>> {
        loop {
            let newline = self.buffer[self.scanned..]
                .iter()
                .position(|&byte| byte == b'\n');
            let Some(offset) = newline else {
                self.scanned = self.buffer.len();
                if self.buffer.len() > self.limit {
                    self.buffer.clear();
                    self.scanned = 0;
                    if !std::mem::replace(&mut self.discarding, true) {
                        return Some(Err(TooLong { limit: self.limit }));
                    }
                } else if self.discarding {
                    self.buffer.clear();
                    self.scanned = 0;
                }
                return None;
            };
            let mut line = self.buffer.split_to(self.scanned + offset).freeze();
            self.buffer.advance(1);
            self.scanned = 0;
            if std::mem::take(&mut self.discarding) {
                continue;
            }
            if line.len() > self.limit {
                return Some(Err(TooLong { limit: self.limit }));
            }
            if line.ends_with(b"\r") {
                line.truncate(line.len() - 1);
            }
            if !line.is_empty() {
                return Some(Ok(line));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn all(decoder: &mut LineDecoder) -> Vec<Result<Bytes, TooLong>> {
        std::iter::from_fn(|| decoder.next_line()).collect()
    }

    #[test]
    fn a_line_that_is_too_long_costs_only_itself() {
        let mut decoder = LineDecoder::new(4);
        decoder.push(b"123456789");
        assert_eq!(all(&mut decoder), [Err(TooLong { limit: 4 })]);
        decoder.push(b"more of it\r\nok\r\n");
        assert_eq!(all(&mut decoder), [Ok(Bytes::from_static(b"ok"))]);
    }

    proptest! {
        /// However the bytes are cut, the lines are the same, and memory stays bounded.
        #[test]
        fn chunking_changes_nothing(
            bytes in proptest::collection::vec(prop_oneof![Just(b'\n'), Just(b'\r'), any::<u8>()], 0..400),
            cuts in proptest::collection::vec(1usize..40, 1..40),
        ) {
            let mut whole = LineDecoder::new(16);
            let mut expected = Vec::new();
            for byte in &bytes {
                whole.push(std::slice::from_ref(byte));
                expected.extend(all(&mut whole));
            }
            let mut cut = LineDecoder::new(16);
            let mut seen = Vec::new();
            let mut rest = bytes.as_slice();
            for size in cuts.iter().cycle() {
                if rest.is_empty() { break; }
                let (head, tail) = rest.split_at((*size).min(rest.len()));
                cut.push(head);
                seen.extend(all(&mut cut));
                prop_assert!(cut.buffer.len() <= 16);
                rest = tail;
            }
            prop_assert_eq!(seen, expected);
        }
    }
}
