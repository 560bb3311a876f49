//! The default store: one SQLite file on a local disk.
//!
//! ```text
//!   commit, leases, outcome ──► queue ──► writer thread ── one transaction, one sync per group ──► file (WAL)
//!   get, list               ──► pool of read connections on blocking threads ◄─────────────────────┘
//!   watch                   ──► recent commits in memory, else the file
//!   beats                   ──► memory, saved along with commits
//! ```
//! | file | holds |
//! |---|---|
//! | `open`, `lock`, `schema`, `views.sql` | from a path to a database that is locked, whole, ours and of this version |
//! | `writer`, `request`, `apply` | group commit; requests and answers; their SQL |
//! | `pool`, `reads`, `rows`, `sum` | read connections; their SQL; rows as checked records |
//! | `beats`, `failure`, `options` | heartbeats; SQLite's codes as errors; options and counters |
//!
//! One process at a time (`<path>.lock` says which); while it runs, `sqlite3 -readonly <path>` shows the data, with
//! views for people (`kinds`, `vms`, `operations`, `events`, …). Reads are linearizable: a commit returns after its
//! transaction is in the WAL, and a read transaction begins with all that is there. The file must be on a local disk:
//! WAL shares memory between its users.

mod apply;
mod beats;
mod failure;
mod lock;
mod open;
mod options;
mod pool;
mod reads;
mod request;
mod rows;
mod schema;
mod sum;
mod writer;

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{self, Sender};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use tokio::sync::Semaphore;

use self::beats::Beats;
use self::failure::sql;
use self::open::Opened;
use self::options::Counters;
pub use self::options::{SqliteOptions, SqliteStats};
use self::pool::Pool;
use self::request::{Reply, Request};
use self::writer::{Writer, gone};
use super::watch::{self, Backlog, Log};
use super::{
    Commit, Key, Lease, LeaseAnswer, ListOptions, Page, Record, Revision, Store, TxnId, TxnOutcome,
    WatchStream, check,
};
use crate::error::{Error, ErrorKind, Result};
use crate::time::Clock;

/// The most writes that wait or are under way; more wait for a place.
const IN_FLIGHT: usize = 8192;

/// The default store, in one SQLite file. Clones share it.
///
/// Dropping the last clone is safe: guests and records are untouched, and its thread finishes what is queued and gives
/// the lock back *a moment later*. A program that opens the same file again keeps a clone, and closes it when the cluster
/// has been shut down ([`Cluster::shutdown`](crate::Cluster::shutdown) ends the control loop, and leaves the store open):
///
/// ```
/// # use std::time::Duration;
/// use novacron_core::store::SqliteStore;
/// use novacron_core::{Cluster, Deadline, Result};
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<()> {
/// # let folder = tempfile::tempdir().expect("a temporary folder");
/// # let path = folder.path().join("novacron.db");
/// let store = SqliteStore::open(&path).await?;
/// let cluster = Cluster::builder("prod").store(store.clone()).build().await?;
///
/// cluster.shutdown(Deadline::after(Duration::from_secs(30))).await?;
/// store.close().await?;
/// let again = SqliteStore::open(&path).await?;
/// # again.close().await
/// # }
/// ```
#[derive(Clone)]
pub struct SqliteStore(Arc<Inner>);

struct Inner {
    path: PathBuf,
    requests: Mutex<Option<Sender<Request>>>,
    in_flight: Arc<Semaphore>,
    pool: Arc<Pool>,
    shared: Arc<Shared>,
}

/// What the store and its writer share.
#[derive(Debug)]
struct Shared {
    clock: Arc<dyn Clock>,
    log: Arc<Log>,
    beats: Mutex<Beats>,
    stats: Counters,
}

impl Shared {
    fn beats(&self) -> MutexGuard<'_, Beats> {
        self.beats.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl SqliteStore {
    /// Opens the database at `path` with the default options, or makes it.
    ///
    /// # Errors
    /// [`ErrorKind::FailedPrecondition`] when another process has it open (the context `pid` says which),
    /// [`ErrorKind::Corrupt`] when it is damaged, of another program, or newer than this build (it is not touched; for
    /// records that do not fit their checksums, the message names them and what to type),
    /// [`ErrorKind::NotFound`] without its folder, [`ErrorKind::PermissionDenied`] or [`ErrorKind::Exhausted`] when
    /// nothing can be written there.
    pub async fn open(path: impl AsRef<Path>) -> Result<Self> {
        Self::open_with(path, SqliteOptions::default()).await
    }

    /// Opens the database at `path`, or makes it.
    ///
    /// # Errors
    /// As [`SqliteStore::open`].
    pub async fn open_with(path: impl AsRef<Path>, options: SqliteOptions) -> Result<Self> {
        let path = path.as_ref().to_owned();
        let task = tokio::task::spawn_blocking(move || Self::open_blocking(&path, &options));
        task.await.unwrap_or_else(|e| {
            Err(Error::new(
                ErrorKind::Unavailable,
                "store.open",
                "the runtime ended meanwhile",
            )
            .caused_by(e))
        })
    }

    fn open_blocking(path: &Path, options: &SqliteOptions) -> Result<Self> {
        let Opened {
            connection,
            lock,
            path,
        } = open::open(path, options)?;
        let (revision, _) = rows::revisions(&connection).map_err(sql("store.open"))?;
        let beats = reads::beats(&connection).map_err(sql("store.open"))?;
        let beats = beats
            .into_iter()
            .map(|(key, value)| Ok((Key::new(key)?, value.into())))
            .collect::<Result<_>>()?;

        let log = Arc::new(Log::new(revision, options.watch_bytes));
        let clock = Arc::clone(&options.clock);
        let beats = Mutex::new(Beats::loaded(beats));
        let shared = Arc::new(Shared {
            clock,
            log,
            beats,
            stats: Counters::default(),
        });
        let (requests, queue) = mpsc::channel();
        let writer = Writer::new(connection, queue, Arc::clone(&shared), revision, lock);
        let thread = std::thread::Builder::new().name("novacron-store".to_owned());
        thread.spawn(|| writer.run()).map_err(|e| {
            Error::new(
                ErrorKind::Exhausted,
                "store.open",
                "no thread for the store's writer",
            )
            .caused_by(e)
        })?;
        let pool = Arc::new(Pool::new(path.clone(), options.readers));
        let in_flight = Arc::new(Semaphore::new(IN_FLIGHT));
        Ok(Self(Arc::new(Inner {
            path,
            requests: Mutex::new(Some(requests)),
            in_flight,
            pool,
            shared,
        })))
    }

    /// Where the database is, without links.
    pub fn path(&self) -> &Path {
        &self.0.path
    }

    /// What the group commit has done so far.
    pub fn stats(&self) -> SqliteStats {
        self.0.shared.stats.read()
    }

    /// Writes what is queued, ends every watch, folds the WAL into the file and gives the lock back. Later calls on any
    /// clone fail with [`ErrorKind::Unavailable`]; a second `close` does nothing.
    ///
    /// # Errors
    /// When the last write fails. The store is closed all the same, and nothing acknowledged is lost.
    pub async fn close(&self) -> Result<()> {
        let taken = self.requests().take();
        let Some(requests) = taken else { return Ok(()) };
        self.0.pool.close().await;
        let (reply, answer) = Reply::new("store.close", None);
        if requests.send(Request::Close(reply)).is_err() {
            return Err(gone("store.close"));
        }
        answer.await.unwrap_or_else(|_| Err(gone("store.close")))
    }

    fn requests(&self) -> MutexGuard<'_, Option<Sender<Request>>> {
        self.0
            .requests
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    /// Queues a request and waits for its answer.
    async fn ask<T>(
        &self,
        operation: &'static str,
        request: impl FnOnce(Reply<T>) -> Request,
    ) -> Result<T> {
        let place = Arc::clone(&self.0.in_flight)
            .acquire_owned()
            .await
            .map_err(|_| gone(operation))?;
        let (reply, answer) = Reply::new(operation, Some(place));
        let sent = self
            .requests()
            .as_ref()
            .is_some_and(|requests| requests.send(request(reply)).is_ok());
        if !sent {
            return Err(gone(operation));
        }
        answer.await.unwrap_or_else(|_| {
            Err(Error::new(
                ErrorKind::OutcomeUnknown,
                operation,
                "the store's writer died before it answered",
            ))
        })
    }
}

impl fmt::Debug for SqliteStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SqliteStore")
            .field("path", &self.0.path)
            .finish_non_exhaustive()
    }
}

#[async_trait]
impl Store for SqliteStore {
    fn exclusive(&self) -> bool {
        true
    }

    /// No query: a commit is published before its caller is answered. Should the writer be gone, reads go on.
    async fn revision(&self) -> Result<Revision> {
        Ok(self.0.shared.log.tip())
    }

    async fn get(&self, key: &Key) -> Result<Option<Record>> {
        let key = key.clone();
        self.0
            .pool
            .read("store.get", move |connection| reads::get(connection, &key))
            .await
    }

    async fn list(&self, prefix: &str, options: ListOptions) -> Result<Page> {
        let prefix = prefix.to_owned();
        self.0
            .pool
            .read("store.list", move |connection| {
                reads::list(connection, &prefix, &options)
            })
            .await
    }

    async fn commit(&self, commit: Commit) -> Result<Revision> {
        commit.check()?;
        self.ask("store.commit", |reply| Request::Commit(commit, reply))
            .await
    }

    async fn outcome(&self, txn: TxnId) -> Result<TxnOutcome> {
        self.ask("store.outcome", |reply| Request::Outcome(txn, reply))
            .await
    }

    async fn watch(&self, prefixes: Vec<String>, after: Revision) -> Result<WatchStream> {
        let log = &self.0.shared.log;
        if after > log.tip() {
            return Err(check::compacted(
                "store.watch",
                after,
                Revision::default(),
                log.tip(),
            ));
        }
        // The pool does not keep the store open: a stream that outlives it ends with an error.
        let backlog: Arc<dyn Backlog> = Arc::<Pool>::clone(&self.0.pool);
        Ok(watch::stream(
            Arc::clone(log),
            Some(backlog),
            prefixes,
            after,
        ))
    }

    async fn compact(&self, before: Revision) -> Result<()> {
        self.ask("store.compact", |reply| Request::Compact(before, reply))
            .await
    }

    async fn lease_acquire(&self, name: &str, holder: &str, ttl: Duration) -> Result<LeaseAnswer> {
        let (name, holder) = (name.to_owned(), holder.to_owned());
        self.ask("store.lease_acquire", |reply| Request::Acquire {
            name,
            holder,
            ttl,
            reply,
        })
        .await
    }

    async fn lease_renew(&self, lease: &Lease) -> Result<()> {
        let lease = lease.clone();
        self.ask("store.lease_renew", |reply| Request::Renew(lease, reply))
            .await
    }

    async fn lease_release(&self, lease: &Lease) -> Result<()> {
        let lease = lease.clone();
        self.ask("store.lease_release", |reply| {
            Request::Release(lease, reply)
        })
        .await
    }

    async fn put_beat(&self, key: &Key, value: Option<Bytes>) -> Result<()> {
        check::beat(key, value.as_deref())?;
        self.0.shared.beats().put(key, value);
        Ok(())
    }

    async fn beats(&self, prefix: &str) -> Result<Vec<(Key, Bytes)>> {
        Ok(self.0.shared.beats().under(prefix))
    }
}

#[cfg(test)]
mod tests {
    use futures::StreamExt as _;
    use uuid::Uuid;

    use super::*;
    use crate::store::{Op, WatchEvent};

    fn commit(n: u128) -> Commit {
        let mut commit = Commit::new(TxnId(Uuid::from_u128(n)));
        commit.push(Op::Put(Key::new(format!("vm/{n}")).unwrap(), "1".into()));
        commit
    }

    /// A fault of the writer is an error for everybody, at once and later; nobody waits for ever.
    #[tokio::test]
    async fn nobody_waits_for_a_writer_that_died() {
        let folder = tempfile::tempdir().unwrap();
        let store = SqliteStore::open(folder.path().join("novacron.db"))
            .await
            .unwrap();
        let revision = store.commit(commit(1)).await.unwrap();
        let mut watch = store.watch(vec![String::new()], revision).await.unwrap();
        assert_eq!(
            watch.next().await.unwrap().unwrap(),
            WatchEvent::Bookmark(revision)
        );

        store
            .requests()
            .as_ref()
            .unwrap()
            .send(Request::Panic)
            .unwrap();
        let at_once = store.commit(commit(2)).await.unwrap_err();
        assert!(
            matches!(
                at_once.kind(),
                ErrorKind::OutcomeUnknown | ErrorKind::Unavailable
            ),
            "{at_once}"
        );
        assert_eq!(
            watch.next().await.unwrap().unwrap_err().kind(),
            ErrorKind::Unavailable
        );
        assert!(watch.next().await.is_none());
        assert_eq!(
            store.commit(commit(3)).await.unwrap_err().kind(),
            ErrorKind::Unavailable
        );
        assert_eq!(
            store
                .outcome(TxnId(Uuid::from_u128(2)))
                .await
                .unwrap_err()
                .kind(),
            ErrorKind::Unavailable
        );
        assert!(
            store
                .get(&Key::new("vm/1").unwrap())
                .await
                .unwrap()
                .is_some(),
            "reads go on"
        );
        assert_eq!(
            store.close().await.unwrap_err().kind(),
            ErrorKind::Unavailable
        );
    }
}
