//! The whole state as a file, and from one store into another.
//!
//! ```text
//!   {"novacron-dump":1,"revision":812}          the first line: format, and the revision that it shows
//!   {"key":"vm/…","value":"{\"v\":1,…}"}        every record, in the order of the keys
//!   {"records":4711,"crc32":"89abcdef"}         the last line: how many, and the checksum of every byte before it
//! ```
//! [`dump`] writes what [`Store::list`] shows at one revision, so others may go on meanwhile. [`load`] reads the file
//! three times: it is checked whole before anything is written, loaded, and compared with what the store then has. It
//! begins by putting the record `loading/state` and ends by removing it, and every commit between requires it: a
//! cluster refuses a store that has it, and a load that was cut off is begun again by calling [`load`] again. [`diff`]
//! compares two stores. Values are compared as JSON, since a store may keep them in a form of its own.
//!
//! Records get the revisions of the store that they are loaded into. Leases, beats and outcomes stay behind: they are
//! about processes that run, and a cluster must be shut down before its state moves, or it would have two.

mod diff;
mod load;
mod read;

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncWrite, AsyncWriteExt as _};

pub use self::diff::{Difference, diff};
pub use self::load::{check_dump, load};

use super::crc::{START, crc};
use super::paging::{FIRST_PAGE, next_page};
use super::{Key, ListOptions, Record, Revision, Store};
use crate::error::{Error, ErrorKind, Result};

/// The newest format that this build reads, and the one that it writes.
const VERSION: u32 = 1;
/// Stands in a store whose load was not finished.
const LOADING: &str = "loading/state";

/// What a dump holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DumpSummary {
    /// The revision of the store that it shows.
    pub revision: Revision,
    /// How many records.
    pub records: u64,
    /// The checksum of its bytes before the last line.
    pub crc32: u32,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Head {
    #[serde(rename = "novacron-dump")]
    version: u32,
    revision: Revision,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Line {
    key: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    value: Option<String>,
    /// A value that is no text, which only a hand can have written.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    bytes: Option<Vec<u8>>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Tail {
    records: u64,
    crc32: String,
}

/// Writes every record of `store`, at one revision, to `to`.
///
/// # Errors
/// What the store answers; [`ErrorKind::Compacted`] when the revision was forgotten meanwhile: dump again.
/// [`ErrorKind::FailedPrecondition`] for a store whose load was not finished, [`ErrorKind::Unavailable`] when `to` fails.
pub async fn dump<W: AsyncWrite + Unpin + Send>(
    store: &dyn Store,
    to: &mut W,
) -> Result<DumpSummary> {
    finished(store).await?;
    let mut pages = Pages::of(store).await?;
    let mut writer = Writer {
        to,
        crc: START,
        records: 0,
    };
    let revision = pages.revision;
    let head = Head {
        version: VERSION,
        revision,
    };
    writer.line(&head).await?;
    while let Some(record) = pages.next().await? {
        let (value, bytes) = match std::str::from_utf8(&record.value) {
            Ok(text) => (Some(text.to_owned()), None),
            Err(_) => (None, Some(record.value.to_vec())),
        };
        let key = record.key.to_string();
        writer.line(&Line { key, value, bytes }).await?;
        writer.records += 1;
    }
    let (records, crc32) = (writer.records, !writer.crc);
    let tail = Tail {
        records,
        crc32: format!("{crc32:08x}"),
    };
    writer.line(&tail).await?;
    writer.to.flush().await.map_err(broken_pipe)?;
    Ok(DumpSummary {
        revision,
        records,
        crc32,
    })
}

/// Fails for a store whose load was not finished: what it has is a part of a state.
pub(crate) async fn finished(store: &dyn Store) -> Result<()> {
    if store.get(&loading()).await?.is_none() {
        return Ok(());
    }
    let message = "a load into this store was not finished: load again, which begins anew";
    Err(Error::new(ErrorKind::FailedPrecondition, "store.dump", message).with("key", LOADING))
}

fn loading() -> Key {
    Key::of_parts(&[&LOADING])
}

struct Writer<'a, W> {
    to: &'a mut W,
    crc: u32,
    records: u64,
}

impl<W: AsyncWrite + Unpin + Send> Writer<'_, W> {
    async fn line(&mut self, line: &impl Serialize) -> Result<()> {
        let mut text = serde_json::to_vec(line).map_err(|error| {
            Error::new(
                ErrorKind::Internal,
                "store.dump",
                "a line cannot be written as JSON",
            )
            .caused_by(error)
        })?;
        text.push(b'\n');
        self.crc = crc(self.crc, &text);
        self.to.write_all(&text).await.map_err(broken_pipe)
    }
}

fn broken_pipe(error: std::io::Error) -> Error {
    Error::new(
        ErrorKind::Unavailable,
        "store.dump",
        "the dump cannot be written",
    )
    .caused_by(error)
}

/// Every record of a store at one revision, in the order of the keys.
struct Pages<'a> {
    store: &'a dyn Store,
    revision: Revision,
    /// Of the next page.
    limit: usize,
    ready: std::vec::IntoIter<Record>,
    /// Where the next page begins, if there is one.
    after: Option<Key>,
}

impl<'a> Pages<'a> {
    async fn of(store: &'a dyn Store) -> Result<Self> {
        let options = ListOptions {
            limit: FIRST_PAGE,
            ..ListOptions::default()
        };
        let page = store.list("", options).await?;
        let last = page.records.last().map(|record| record.key.clone());
        Ok(Self {
            store,
            revision: page.revision,
            limit: FIRST_PAGE,
            after: last.filter(|_| page.more),
            ready: page.records.into_iter(),
        })
    }

    async fn next(&mut self) -> Result<Option<Record>> {
        if let Some(record) = self.ready.next() {
            return Ok(Some(record));
        }
        let Some(after) = self.after.take() else {
            return Ok(None);
        };
        let options = ListOptions {
            after: Some(after),
            limit: self.limit,
            at: Some(self.revision),
        };
        let page = self.store.list("", options).await?;
        let last = page.records.last().map(|record| record.key.clone());
        let bytes: usize = page.records.iter().map(|record| record.value.len()).sum();
        self.limit = next_page(page.records.len(), bytes);
        self.after = last.filter(|_| page.more);
        self.ready = page.records.into_iter();
        Ok(self.ready.next())
    }
}

/// A record without its version, which differs between stores.
type Pair = (Key, Bytes);
