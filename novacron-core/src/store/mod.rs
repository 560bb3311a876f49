//! The Store: where everything that must not be lost is kept.
//!
//! ```text
//!   Commit { txn, preconditions, ops } ──► commit ──► Revision          (all or nothing, durable when it returns)
//!   Record { key, version, value }     ◄── get, list (at one revision)
//!   WatchEvent                         ◄── watch (after a revision)
//! ```
//! A key is `<kind>/<path>`, a value is JSON text in a versioned envelope (`records` owns both). A store need know
//! neither; what it gives back is **equal as JSON** to what it was given, not byte by byte, and it may refuse what is no
//! JSON. [`MemoryStore`] is the reference, [`SqliteStore`] the default on disk, `PostgresStore` and
//! `EtcdStore` (features `postgres`, `etcd`) are shared by many processes; each passes the suite in `conformance::store`,
//! and a third party's runs the same.
//!
//! What every caller may rely on: commits are totally ordered by [`Revision`], which may have gaps; `get` and `list` see every commit that
//! returned before they were called; a watch delivers every commit after its start, whole, in order per key, at least
//! once. Nothing may rely on order across keys but through preconditions. A commit whose outcome is not known fails
//! with [`ErrorKind::OutcomeUnknown`], and [`Store::outcome`] tells later.
//!
//! **Leases are not Claims.** A lease has a time to live and serves leadership and liveness; a claim (a record like
//! any other, see [`crate::model::Claim`]) never expires.

pub(crate) mod check;
mod crc;
mod dump;
#[cfg(feature = "etcd")]
mod etcd;
mod key;
mod lease;
mod memory;
pub(crate) mod paging;
#[cfg(feature = "postgres")]
mod postgres;
#[cfg(feature = "sqlite")]
mod sqlite;
pub(crate) mod value;
mod watch;

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use futures::stream::BoxStream;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

pub(crate) use dump::finished;
pub use dump::{Difference, DumpSummary, check_dump, diff, dump, load};
#[cfg(feature = "etcd")]
pub use etcd::{EtcdOptions, EtcdStore, EtcdTls, EtcdUser};
pub use key::Key;
pub use memory::MemoryStore;
#[cfg(feature = "postgres")]
pub use postgres::{PostgresOptions, PostgresStore, PostgresTls};
#[cfg(feature = "sqlite")]
pub use sqlite::{SqliteOptions, SqliteStats, SqliteStore};

pub use crate::model::Revision;

use crate::error::{Error, ErrorKind, Result};

/// The largest value of a record, bytes (etcd's limits hold for every store).
pub const MAX_VALUE_BYTES: usize = 256 * 1024;
/// The most operations, and the most preconditions, in one commit.
pub const MAX_OPS: usize = 100;
/// The most bytes of keys and values in one commit.
pub const MAX_COMMIT_BYTES: usize = 1024 * 1024;
/// The largest value of a heartbeat, bytes.
pub const MAX_BEAT_BYTES: usize = 16 * 1024;
/// How long the outcome of a commit is kept at least, whatever is compacted.
pub const OUTCOMES_KEPT: Duration = Duration::from_secs(3600);

/// A stored record.
#[derive(Clone, PartialEq, Eq)]
pub struct Record {
    /// Its key.
    pub key: Key,
    /// The revision that wrote this value.
    pub version: Revision,
    /// The value: JSON text, equal as JSON to what was written; numbers by their value, members in whatever order.
    pub value: Bytes,
}

impl fmt::Debug for Record {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{}@{} ({} bytes)",
            self.key,
            self.version,
            self.value.len()
        )
    }
}

/// Names one commit for ever; made by the caller, so that it can ask for its outcome.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct TxnId(pub Uuid);

/// What must be true for a commit to be applied.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Precondition {
    /// No record has this key.
    Absent(Key),
    /// The record exists, at whatever version.
    Present(Key),
    /// The record exists and was last written by this revision.
    At(Key, Revision),
    /// The lease is held under this token and has not expired.
    Lease {
        /// The lease's name.
        name: String,
        /// The token its holder was given.
        token: u64,
    },
}

/// One change of a commit.
#[derive(Clone, PartialEq, Eq)]
pub enum Op {
    /// Create or overwrite.
    Put(Key, Bytes),
    /// Remove; a key that is absent is no error.
    Delete(Key),
}

impl Op {
    /// The key it touches.
    pub fn key(&self) -> &Key {
        match self {
            Self::Put(key, _) | Self::Delete(key) => key,
        }
    }
}

impl fmt::Debug for Op {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Put(key, value) => write!(f, "put {key} ({} bytes)", value.len()),
            Self::Delete(key) => write!(f, "delete {key}"),
        }
    }
}

/// An atomic commit: every precondition holds at its revision and every operation is applied, or nothing is.
/// A key stands in at most one operation.
#[derive(Clone, Debug)]
pub struct Commit {
    /// Its name. A second commit under the same name does nothing and returns the first one's revision.
    pub txn: TxnId,
    /// What must be true.
    pub preconditions: Vec<Precondition>,
    /// What changes.
    pub ops: Vec<Op>,
}

impl Commit {
    /// An empty commit.
    pub fn new(txn: TxnId) -> Self {
        Self {
            txn,
            preconditions: Vec::new(),
            ops: Vec::new(),
        }
    }

    /// Adds a precondition.
    pub fn require(&mut self, precondition: Precondition) -> &mut Self {
        self.preconditions.push(precondition);
        self
    }

    /// Adds an operation.
    pub fn push(&mut self, op: Op) -> &mut Self {
        self.ops.push(op);
        self
    }

    /// The bytes of its keys and values.
    pub fn bytes(&self) -> usize {
        let of = |op: &Op| {
            op.key().as_str().len()
                + if let Op::Put(_, value) = op {
                    value.len()
                } else {
                    0
                }
        };
        self.ops.iter().map(of).sum()
    }

    /// Checks the limits that hold on every store. Called by every implementation before anything else.
    ///
    /// # Errors
    /// [`ErrorKind::Invalid`] when the commit is empty, names a key twice or passes [`MAX_OPS`], [`MAX_VALUE_BYTES`]
    /// or [`MAX_COMMIT_BYTES`].
    pub fn check(&self) -> Result<()> {
        let fail = |message: String| Err(Error::new(ErrorKind::Invalid, "store.commit", message));
        if self.ops.is_empty() {
            return fail("a commit without operations".to_owned());
        }
        if self.ops.len() > MAX_OPS {
            return fail(format!(
                "{} operations in one commit; at most {MAX_OPS}",
                self.ops.len()
            ));
        }
        if self.preconditions.len() > MAX_OPS {
            return fail(format!(
                "{} preconditions in one commit; at most {MAX_OPS}",
                self.preconditions.len()
            ));
        }
        let mut keys = std::collections::BTreeSet::new();
        for op in &self.ops {
            if !keys.insert(op.key()) {
                return fail(format!("key {} stands in two operations", op.key()));
            }
            if let Op::Put(key, value) = op
                && value.len() > MAX_VALUE_BYTES
            {
                return fail(format!(
                    "record {key} has {} bytes; at most {MAX_VALUE_BYTES}",
                    value.len()
                ));
            }
        }
        let total = self.bytes();
        if total > MAX_COMMIT_BYTES {
            return fail(format!(
                "a commit of {total} bytes; at most {MAX_COMMIT_BYTES}"
            ));
        }
        Ok(())
    }
}

/// What became of a commit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TxnOutcome {
    /// It was applied at this revision.
    Committed(Revision),
    /// It was not applied and, from now on, never will be.
    NotCommitted,
}

/// Which records a list returns.
#[derive(Clone, Debug, Default)]
pub struct ListOptions {
    /// Continue after this key.
    pub after: Option<Key>,
    /// At most this many; `0` returns no record but the present revision.
    pub limit: usize,
    /// As of this revision; the present one if none is given. Older ones may answer
    /// [`ErrorKind::Compacted`].
    pub at: Option<Revision>,
}

/// One page of a list, in key order.
#[derive(Clone, Debug)]
pub struct Page {
    /// The records.
    pub records: Vec<Record>,
    /// The revision that all pages of one list share: pass it as [`ListOptions::at`], and watch after it.
    pub revision: Revision,
    /// Whether more follow after the last record.
    pub more: bool,
}

/// One change as a watch tells it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Change {
    /// The key.
    pub key: Key,
    /// The new value, or none after a delete.
    pub value: Option<Bytes>,
}

/// What a watch delivers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum WatchEvent {
    /// A commit: every change of it that lies under the watched prefixes.
    Commit {
        /// Its revision.
        revision: Revision,
        /// Its changes.
        changes: Arc<[Change]>,
    },
    /// Every commit up to this revision has been delivered: resume after it.
    Bookmark(Revision),
}

/// The events of a watch. After an error the stream ends; [`ErrorKind::Compacted`] means: list again.
pub type WatchStream = BoxStream<'static, Result<WatchEvent>>;

/// A held lease.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Lease {
    /// What is leased, as `leader` or `owner/<host uuid>`.
    pub name: String,
    /// Who holds it.
    pub holder: String,
    /// Grows with every change of holder: a precondition that fences the one before.
    pub token: u64,
    /// Time to live. The holder counts it from **before** it sent the last renewal, less a margin.
    pub ttl: Duration,
}

/// What asking for a lease came to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LeaseAnswer {
    /// It is held by the asker now.
    Granted(Lease),
    /// Somebody else holds it.
    HeldBy {
        /// Who.
        holder: String,
        /// When it expires by the store's clock, if it is not renewed: not later than that, and earlier where the store
        /// tells less exactly. Whoever waits for it asks again then.
        remaining: Duration,
    },
}

/// Versioned records with atomic, durable, conditional commits. See the module header for what callers rely on.
///
/// Every method may fail with [`ErrorKind::Unavailable`] (nothing happened, try later) and none blocks an async worker.
/// A dropped future leaves a commit's outcome unknown, and nothing else behind.
#[async_trait]
pub trait Store: fmt::Debug + Send + Sync + 'static {
    /// Whether this process is the only one that can reach the data while the store is open: whoever held a lease before
    /// it was opened is then known to be gone.
    fn exclusive(&self) -> bool;

    /// The present revision: what a list without [`ListOptions::at`] would be as of. Asked for with every read of a
    /// cluster, so it should cost next to nothing.
    ///
    /// *Holds on return:* linearizable: at least that of every commit that returned before the call.
    async fn revision(&self) -> Result<Revision>;

    /// The record at `key`, or none.
    ///
    /// *Holds on return:* linearizable: reflects every commit that returned before the call.
    async fn get(&self, key: &Key) -> Result<Option<Record>>;

    /// The records whose keys start with `prefix`, in key order, all as of one revision.
    ///
    /// *Holds on return:* without [`ListOptions::at`] the revision is at least that of every commit that returned
    /// before. *Errors:* [`ErrorKind::Compacted`] when `at` is older than what is kept, or newer than any commit (then
    /// it stems from another history, as from before a backup was restored).
    async fn list(&self, prefix: &str, options: ListOptions) -> Result<Page>;

    /// Applies a commit.
    ///
    /// *Holds on return:* it is durable (survives `kill -9` and loss of power) and visible to every read.
    /// *A second identical call* (same [`TxnId`]) changes nothing and returns the first one's revision.
    /// *Errors:* [`ErrorKind::Invalid`] when it passes a limit ([`Commit::check`]; as many preconditions as operations,
    /// [`MAX_OPS`], are allowed), or a value is no JSON and the store holds nothing else. [`ErrorKind::Conflict`] when a precondition fails, with the context `precondition` (its index) and
    /// `key` (the key, or the lease's name): nothing happened. [`ErrorKind::Cancelled`] when [`Store::outcome`] has
    /// already answered [`TxnOutcome::NotCommitted`]. [`ErrorKind::OutcomeUnknown`]: ask [`Store::outcome`].
    async fn commit(&self, commit: Commit) -> Result<Revision>;

    /// What became of a commit whose answer was lost.
    ///
    /// *Holds on return:* the answer is final: after [`TxnOutcome::NotCommitted`] that commit can never be applied.
    /// Outcomes are kept for at least [`OUTCOMES_KEPT`].
    async fn outcome(&self, txn: TxnId) -> Result<TxnOutcome>;

    /// The commits after `after` that touch a key under one of `prefixes`, as they happen, from then on for ever.
    /// A bookmark follows whenever everything there is has been delivered, so also at the start.
    ///
    /// *Errors:* [`ErrorKind::Compacted`] as for [`Store::list`]: `after` is older than what is kept, or newer than any
    /// commit. A reader that fell too far behind gets it inside the stream.
    async fn watch(&self, prefixes: Vec<String>, after: Revision) -> Result<WatchStream>;

    /// Forgets what only history needs: superseded values and outcomes before `before`. Later reads and watches from
    /// an older revision answer [`ErrorKind::Compacted`].
    async fn compact(&self, before: Revision) -> Result<()>;

    /// Takes or keeps the lease `name` for `ttl` if it is free, expired, or already `holder`'s.
    ///
    /// *A second identical call* by the holder renews it under the same token. Once it has expired or was released,
    /// every grant has a larger token, also one to the same holder.
    async fn lease_acquire(&self, name: &str, holder: &str, ttl: Duration) -> Result<LeaseAnswer>;

    /// Extends a lease by its time to live.
    ///
    /// *Errors:* [`ErrorKind::Conflict`] when it expired or changed hands: the holder must stop at once.
    async fn lease_renew(&self, lease: &Lease) -> Result<()>;

    /// Gives a lease back, so that the next holder need not wait. One that is not held any more is no error.
    async fn lease_release(&self, lease: &Lease) -> Result<()>;

    /// Overwrites a heartbeat, or removes it if there is no value: whoever takes a node out removes its beats. Beats
    /// bypass the history: no revision, no watch, durable only when convenient, so that after a crash an older one, or
    /// one that was removed, may be there.
    ///
    /// *Errors:* [`ErrorKind::Invalid`] for a value of more than [`MAX_BEAT_BYTES`].
    async fn put_beat(&self, key: &Key, value: Option<Bytes>) -> Result<()>;

    /// The beats whose keys start with `prefix`, in key order.
    async fn beats(&self, prefix: &str) -> Result<Vec<(Key, Bytes)>>;
}
