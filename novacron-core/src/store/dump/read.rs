//! A dump's lines, checked: format, order, count, checksum.

use bytes::Bytes;
use serde::de::DeserializeOwned;
use tokio::io::{AsyncBufRead, AsyncBufReadExt as _, AsyncReadExt as _};

use super::{DumpSummary, Head, Line, Pair, Tail, VERSION};
use crate::error::{Error, ErrorKind, Result};
use crate::store::crc::{START, crc};
use crate::store::{Key, MAX_VALUE_BYTES, Revision};

/// The longest line: every byte of the largest value as an escape or a number, and the key.
const LONGEST: u64 = 6 * MAX_VALUE_BYTES as u64 + 1024;

/// Reads a dump from its first line.
pub(super) struct Reader<'a, R> {
    from: &'a mut R,
    revision: Revision,
    line: u64,
    crc: u32,
    records: u64,
    last: Option<Key>,
    buffer: Vec<u8>,
}

impl<'a, R: AsyncBufRead + Unpin + Send> Reader<'a, R> {
    /// Reads the first line.
    pub(super) async fn open(from: &'a mut R) -> Result<Self> {
        let mut reader = Self {
            from,
            revision: Revision::default(),
            line: 0,
            crc: START,
            records: 0,
            last: None,
            buffer: Vec::new(),
        };
        if !reader.fetch().await? {
            return Err(reader.broken("the file is empty"));
        }
        let any: serde_json::Value = reader.parse("this is no dump of NovaCron")?;
        match any["novacron-dump"].as_u64() {
            None => return Err(reader.broken("this is no dump of NovaCron")),
            Some(version) if version > u64::from(VERSION) => {
                let message = format!(
                    "the dump has version {version}, this build reads up to {VERSION}: upgrade it"
                );
                return Err(reader.broken(message));
            }
            Some(_) => {}
        }
        let head: Head = reader.parse("the first line is damaged")?;
        reader.revision = head.revision;
        reader.count();
        Ok(reader)
    }

    /// The next record; none after the last line, when all of it was found good.
    pub(super) async fn next(&mut self) -> Result<Option<Pair>> {
        if !self.fetch().await? {
            return Err(self.broken("the dump is cut off: its last line is missing"));
        }
        let Ok(line) = serde_json::from_slice::<Line>(&self.buffer) else {
            let tail = self.parse("the line is no record of a dump")?;
            self.end(&tail).await?;
            return Ok(None);
        };
        let key =
            Key::new(line.key).map_err(|error| self.broken("the key is none").caused_by(error))?;
        if self.last.as_ref().is_some_and(|last| *last == key) {
            return Err(self
                .broken("the key stands in the dump twice")
                .with("key", key));
        }
        if self.last.as_ref().is_some_and(|last| *last > key) {
            return Err(self.broken("the keys are not in order").with("key", key));
        }
        let value = match (line.value, line.bytes) {
            (Some(text), None) => Bytes::from(text),
            (None, Some(bytes)) => Bytes::from(bytes),
            _ => return Err(self.broken("a record has one value").with("key", key)),
        };
        if value.len() > MAX_VALUE_BYTES {
            return Err(self
                .broken("the value is larger than a record may be")
                .with("key", key));
        }
        self.count();
        self.records += 1;
        self.last = Some(key.clone());
        Ok(Some((key, value)))
    }

    /// What was read; whole once [`Reader::next`] has returned none.
    pub(super) fn summary(&self) -> DumpSummary {
        DumpSummary {
            revision: self.revision,
            records: self.records,
            crc32: !self.crc,
        }
    }

    async fn end(&mut self, tail: &Tail) -> Result<()> {
        if tail.crc32 != format!("{:08x}", !self.crc) {
            let message = "the dump does not fit its checksum: it was damaged or changed";
            return Err(self.broken(message));
        }
        if tail.records != self.records {
            let message = format!(
                "the dump has {} records and says {}",
                self.records, tail.records
            );
            return Err(self.broken(message));
        }
        if self.fetch().await? {
            return Err(self.broken("the dump goes on after its last line"));
        }
        Ok(())
    }

    /// Reads a line; false at the end of the file.
    async fn fetch(&mut self) -> Result<bool> {
        self.buffer.clear();
        let mut limited = (&mut *self.from).take(LONGEST);
        let read = limited
            .read_until(b'\n', &mut self.buffer)
            .await
            .map_err(|error| {
                Error::new(
                    ErrorKind::Unavailable,
                    "store.load",
                    "the dump cannot be read",
                )
                .caused_by(error)
            })?;
        self.line += 1;
        if read as u64 == LONGEST {
            return Err(self.broken("the line is longer than any record"));
        }
        if read > 0 && self.buffer.last() != Some(&b'\n') {
            return Err(self.broken("the dump is cut off in the middle of a line"));
        }
        Ok(read > 0)
    }

    fn count(&mut self) {
        self.crc = crc(self.crc, &self.buffer);
    }

    fn parse<T: DeserializeOwned>(&self, message: &'static str) -> Result<T> {
        serde_json::from_slice(&self.buffer).map_err(|error| self.broken(message).caused_by(error))
    }

    fn broken(&self, message: impl Into<std::borrow::Cow<'static, str>>) -> Error {
        Error::new(ErrorKind::Corrupt, "store.load", message).with("line", self.line)
    }
}
