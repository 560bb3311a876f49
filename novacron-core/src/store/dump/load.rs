//! From a dump into an empty store.

use futures::stream::{FuturesUnordered, TryStreamExt as _};
use tokio::io::{AsyncBufRead, AsyncSeek, AsyncSeekExt as _};
use uuid::Uuid;

use super::read::Reader;
use super::{DumpSummary, LOADING, Pages, Pair, loading};
use crate::error::{Error, ErrorKind, Result};
use crate::store::{
    Commit, ListOptions, MAX_COMMIT_BYTES, MAX_OPS, Op, Precondition, Revision, Store, TxnId,
    TxnOutcome, value,
};
use crate::time::IdSource;

const OPERATION: &str = "store.load";

/// Commits under way at a time: a server makes several durable at once.
const AT_ONCE: usize = 16;

/// Loads a dump into `store`, which must be empty or have been left by a load that was not finished, and checks that
/// the store then has exactly what the dump has. `ids` names the commits.
///
/// *What may be left behind* on failure or cancellation: a part of the records and the record `loading/state`, for which
/// a cluster refuses the store. A second call removes them and begins anew.
///
/// # Errors
/// [`ErrorKind::Corrupt`] for a file that is no dump, is cut off, damaged, or newer than this build: nothing was written.
/// [`ErrorKind::FailedPrecondition`] for a store that has records. Else what the store answers.
pub async fn load<R>(store: &dyn Store, from: &mut R, ids: &dyn IdSource) -> Result<DumpSummary>
where
    R: AsyncBufRead + AsyncSeek + Unpin + Send,
{
    let expected = check_dump(from).await?;
    let guard = begin(store, ids).await?;

    rewind(from).await?;
    let mut dump = Reader::open(from).await?;
    let mut under_way = FuturesUnordered::new();
    let (mut ops, mut bytes) = (Vec::new(), 0);
    while let Some((key, value)) = dump.next().await? {
        let size = key.as_str().len() + value.len();
        if ops.len() == MAX_OPS || bytes + size > MAX_COMMIT_BYTES {
            if under_way.len() == AT_ONCE {
                under_way.try_next().await?;
            }
            under_way.push(apply(store, ids, &guard, std::mem::take(&mut ops)));
            bytes = 0;
        }
        bytes += size;
        ops.push(Op::Put(key, value));
    }
    if !ops.is_empty() {
        under_way.push(apply(store, ids, &guard, ops));
    }
    while under_way.try_next().await?.is_some() {}
    if dump.summary() != expected {
        return Err(differs("the dump was changed while it was read"));
    }

    rewind(from).await?;
    compare(store, from).await?;
    apply(store, ids, &guard, vec![Op::Delete(loading())]).await?;
    Ok(expected)
}

/// Reads a dump to its end, as [`load`] does before it writes anything: format, order, count and checksum are right.
///
/// # Errors
/// [`ErrorKind::Corrupt`] for a file that is no dump, is cut off, damaged, or newer than this build,
/// [`ErrorKind::Unavailable`] when it cannot be read.
pub async fn check_dump<R>(from: &mut R) -> Result<DumpSummary>
where
    R: AsyncBufRead + AsyncSeek + Unpin + Send,
{
    rewind(from).await?;
    let mut dump = Reader::open(from).await?;
    while let Some((key, _)) = dump.next().await? {
        if key.as_str() == LOADING {
            return Err(differs(
                "the dump is of a store whose load was not finished",
            ));
        }
    }
    Ok(dump.summary())
}

async fn rewind<R: AsyncSeek + Unpin>(from: &mut R) -> Result<()> {
    let start = from.rewind().await;
    start.map(drop).map_err(|error| {
        Error::new(ErrorKind::Unavailable, OPERATION, "the dump cannot be read").caused_by(error)
    })
}

/// Marks the store as being loaded, empty but for the mark. Every later commit requires what this returns.
async fn begin(store: &dyn Store, ids: &dyn IdSource) -> Result<Precondition> {
    let mark = || vec![Op::Put(loading(), "{\"v\":1,\"body\":{}}".into())];
    if let Some(found) = store.get(&loading()).await? {
        // A new mark: what the load before this one may still have under way comes to nothing.
        let guard = Precondition::At(loading(), found.version);
        let version = apply(store, ids, &guard, mark()).await?;
        let guard = Precondition::At(loading(), version);
        loop {
            let options = ListOptions {
                limit: MAX_OPS,
                ..ListOptions::default()
            };
            let left = store.list("", options).await?.records.into_iter();
            let left = left.filter(|record| record.key.as_str() != LOADING);
            let ops: Vec<_> = left.map(|record| Op::Delete(record.key)).collect();
            if ops.is_empty() {
                return Ok(guard);
            }
            apply(store, ids, &guard, ops).await?;
        }
    }
    let options = ListOptions {
        limit: 1,
        ..ListOptions::default()
    };
    if let Some(found) = store.list("", options).await?.records.first() {
        let message = "the store is not empty: a dump is loaded into an empty one only";
        return Err(
            Error::new(ErrorKind::FailedPrecondition, OPERATION, message).with("key", &found.key),
        );
    }
    let version = apply(store, ids, &Precondition::Absent(loading()), mark()).await?;
    Ok(Precondition::At(loading(), version))
}

/// Commits under the mark, and finds out what became of a commit whose answer was lost.
async fn apply(
    store: &dyn Store,
    ids: &dyn IdSource,
    guard: &Precondition,
    ops: Vec<Op>,
) -> Result<Revision> {
    let txn = TxnId(Uuid::from_u128(ids.bits()));
    let commit = Commit {
        txn,
        preconditions: vec![guard.clone()],
        ops,
    };
    match store.commit(commit).await {
        Err(lost) if lost.kind() == ErrorKind::OutcomeUnknown => match store.outcome(txn).await? {
            TxnOutcome::Committed(revision) => Ok(revision),
            TxnOutcome::NotCommitted => {
                let message = "a commit was lost and did not happen: load again, which begins anew";
                Err(Error::new(ErrorKind::Unavailable, OPERATION, message).caused_by(lost))
            }
        },
        result => result,
    }
}

/// Compares the dump with the store, record by record.
async fn compare<R: AsyncBufRead + Unpin + Send>(store: &dyn Store, from: &mut R) -> Result<()> {
    let mut dump = Reader::open(from).await?;
    let mut pages = Pages::of(store).await?;
    loop {
        let mut found: Option<Pair> = pages.next().await?.map(|r| (r.key, r.value));
        if found
            .as_ref()
            .is_some_and(|(key, _)| key.as_str() == LOADING)
        {
            found = pages.next().await?.map(|r| (r.key, r.value));
        }
        let expected = dump.next().await?;
        let alike = match (&found, &expected) {
            (Some((key, value)), Some((other, wanted))) => {
                key == other && value::equal(value, wanted)
            }
            (found, expected) => found.is_none() && expected.is_none(),
        };
        if !alike {
            let key =
                |pair: Option<Pair>| pair.map_or("none".to_owned(), |(key, _)| key.to_string());
            let error =
                differs("the store does not have what the dump has: somebody else writes into it");
            return Err(error.with("dump", key(expected)).with("store", key(found)));
        }
        if found.is_none() {
            return Ok(());
        }
    }
}

fn differs(message: &'static str) -> Error {
    Error::new(ErrorKind::FailedPrecondition, OPERATION, message)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::Key;

    #[test]
    fn the_mark_is_a_key() {
        assert_eq!(loading(), Key::new(LOADING).unwrap());
    }
}
