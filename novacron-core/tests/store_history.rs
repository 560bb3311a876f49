//! The check of histories finds what it is for: it passes what a good store shows, and fails on stores that are broken
//! in one way each.
#![allow(missing_docs, clippy::unwrap_used, reason = "tests")]

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use novacron_core::conformance::ManualClock;
use novacron_core::conformance::store::{Checked, History, Load, Violation};
use novacron_core::store::{
    Commit, Key, Lease, LeaseAnswer, ListOptions, MemoryStore, Op, Page, Precondition, Record,
    Revision, Store, TxnId, TxnOutcome, WatchStream,
};
use novacron_core::{Error, ErrorKind, Result};

#[derive(Clone, Copy, Debug)]
enum Fault {
    None,
    /// A read shows what was there before the latest commits.
    StaleRead,
    /// A commit is acknowledged and forgotten.
    LostCommit,
    /// Two commits are applied in one order and acknowledged in the other.
    Reordered,
    /// A list has one half from before a commit, and the other half from after it.
    TornList,
    /// A commit is refused though its precondition holds.
    FalseConflict,
    /// A commit goes through though its precondition does not hold.
    LostUpdate,
    /// A commit that failed with "nothing happened" was applied.
    FalseFailure,
    /// A commit was applied, and its outcome is told as not committed.
    FalseOutcome,
    /// A commit whose answer was lost is applied again when it is sent again.
    AppliedTwice,
    /// The revision is that of some time ago.
    StaleRevision,
}

/// A memory store with a fault in every seventh call or so.
#[derive(Debug)]
struct Broken {
    inner: MemoryStore,
    fault: Fault,
    count: AtomicU64,
    kept: Mutex<Option<Commit>>,
    old: Mutex<MemoryStore>,
    unknown: Mutex<Vec<TxnId>>,
}

impl Broken {
    fn new(fault: Fault) -> Self {
        let inner = MemoryStore::new(Arc::new(ManualClock::default()));
        Self {
            old: Mutex::new(inner.fork()),
            inner,
            fault,
            count: AtomicU64::new(0),
            kept: Mutex::default(),
            unknown: Mutex::default(),
        }
    }

    fn now_and_then(&self) -> bool {
        self.count.fetch_add(1, Ordering::Relaxed) % 7 == 6
    }

    fn old(&self) -> MemoryStore {
        self.old.lock().unwrap().clone()
    }
}

#[async_trait]
impl Store for Broken {
    fn exclusive(&self) -> bool {
        self.inner.exclusive()
    }

    async fn revision(&self) -> Result<Revision> {
        match self.fault {
            Fault::StaleRevision if self.now_and_then() => self.old().revision().await,
            _ => self.inner.revision().await,
        }
    }

    async fn get(&self, key: &Key) -> Result<Option<Record>> {
        match self.fault {
            Fault::StaleRead if self.now_and_then() => self.old().get(key).await,
            _ => self.inner.get(key).await,
        }
    }

    async fn list(&self, prefix: &str, options: ListOptions) -> Result<Page> {
        let mut page = self.inner.list(prefix, options.clone()).await?;
        if matches!(self.fault, Fault::TornList) {
            let old = self.old().list(prefix, options).await?;
            let half = page.records.len() / 2;
            page.records.truncate(half);
            page.records.extend(old.records.into_iter().skip(half));
        }
        Ok(page)
    }

    async fn commit(&self, mut commit: Commit) -> Result<Revision> {
        let fault = self.now_and_then();
        if self.count.load(Ordering::Relaxed).is_multiple_of(3) {
            *self.old.lock().unwrap() = self.inner.fork();
        }
        match self.fault {
            Fault::LostCommit if fault => {
                // Another one has the revision that it takes with it.
                let filler = Commit {
                    txn: commit.txn,
                    preconditions: commit.preconditions,
                    ops: vec![Op::Delete(Key::new("none").unwrap())],
                };
                self.inner.commit(filler).await
            }
            Fault::Reordered => {
                let kept = self.kept.lock().unwrap().take();
                match kept {
                    // The later one was given its revision before.
                    None if commit.preconditions.is_empty() => {
                        let revision = self.inner.commit(commit.clone()).await?;
                        commit.txn = TxnId(uuid::Uuid::from_u128(commit.txn.0.as_u128() ^ 1));
                        *self.kept.lock().unwrap() = Some(commit);
                        Ok(revision)
                    }
                    None => self.inner.commit(commit).await,
                    Some(earlier) => {
                        let revision = self.inner.commit(commit).await?;
                        self.inner.commit(earlier).await?;
                        Ok(revision)
                    }
                }
            }
            Fault::FalseConflict if fault && !commit.preconditions.is_empty() => {
                let error = Error::new(ErrorKind::Conflict, "store.commit", "no");
                Err(error.with("precondition", 0))
            }
            Fault::LostUpdate => {
                commit
                    .preconditions
                    .retain(|it| !matches!(it, Precondition::At(..)));
                self.inner.commit(commit).await
            }
            Fault::FalseFailure if fault => {
                self.inner.commit(commit).await?;
                Err(Error::new(
                    ErrorKind::Unavailable,
                    "store.commit",
                    "nothing happened",
                ))
            }
            Fault::FalseOutcome if fault => {
                self.unknown.lock().unwrap().push(commit.txn);
                self.inner.commit(commit).await?;
                Err(Error::new(
                    ErrorKind::OutcomeUnknown,
                    "store.commit",
                    "lost",
                ))
            }
            Fault::AppliedTwice if fault => {
                let first = self.inner.commit(commit.clone()).await?;
                self.unknown.lock().unwrap().push(commit.txn);
                commit.txn = TxnId(uuid::Uuid::from_u128(commit.txn.0.as_u128() ^ 1));
                commit.preconditions.clear();
                self.inner.commit(commit).await?;
                Ok(first)
            }
            _ => self.inner.commit(commit).await,
        }
    }

    async fn outcome(&self, txn: TxnId) -> Result<TxnOutcome> {
        if matches!(self.fault, Fault::FalseOutcome) && self.unknown.lock().unwrap().contains(&txn)
        {
            return Ok(TxnOutcome::NotCommitted);
        }
        self.inner.outcome(txn).await
    }

    async fn watch(&self, prefixes: Vec<String>, after: Revision) -> Result<WatchStream> {
        self.inner.watch(prefixes, after).await
    }

    async fn compact(&self, before: Revision) -> Result<()> {
        self.inner.compact(before).await
    }

    async fn lease_acquire(&self, name: &str, holder: &str, ttl: Duration) -> Result<LeaseAnswer> {
        self.inner.lease_acquire(name, holder, ttl).await
    }

    async fn lease_renew(&self, lease: &Lease) -> Result<()> {
        self.inner.lease_renew(lease).await
    }

    async fn lease_release(&self, lease: &Lease) -> Result<()> {
        self.inner.lease_release(lease).await
    }

    async fn put_beat(&self, key: &Key, value: Option<Bytes>) -> Result<()> {
        self.inner.put_beat(key, value).await
    }

    async fn beats(&self, prefix: &str) -> Result<Vec<(Key, Bytes)>> {
        self.inner.beats(prefix).await
    }
}

async fn verdict(fault: Fault, seed: u64) -> Result<Checked, Violation> {
    let store: Arc<dyn Store> = Arc::new(Broken::new(fault));
    let load = Load {
        clients: 4,
        calls: 60,
        seed,
    };
    let history: Arc<History> = load.run(&[Arc::clone(&store)]).await;
    history.settle(&*store).await.unwrap();
    history.check()
}

#[tokio::test]
async fn a_good_store_passes() {
    for seed in 0..200 {
        let checked = verdict(Fault::None, seed)
            .await
            .unwrap_or_else(|v| panic!("seed {seed}: {v}"));
        assert!(
            checked.commits > 20 && checked.conflicts > 0 && checked.reads > 40,
            "{checked:?}"
        );
    }
}

#[tokio::test]
async fn each_broken_store_is_found_out() {
    for fault in [
        Fault::StaleRead,
        Fault::LostCommit,
        Fault::Reordered,
        Fault::TornList,
        Fault::FalseConflict,
        Fault::LostUpdate,
        Fault::FalseFailure,
        Fault::FalseOutcome,
        Fault::AppliedTwice,
        Fault::StaleRevision,
    ] {
        let mut found = Vec::new();
        for seed in 0..20 {
            found.extend(verdict(fault, seed).await.err());
        }
        println!(
            "{fault:?}: {} of 20, as: {:.200}",
            found.len(),
            found.first().map_or_else(String::new, ToString::to_string)
        );
        assert!(
            found.len() >= 15,
            "{fault:?} was found in {} of 20 histories",
            found.len()
        );
    }
}

/// A history in which an answer is missing cannot be checked, and says so.
#[tokio::test]
async fn a_history_that_is_not_settled_is_refused() {
    let store = Broken::new(Fault::FalseOutcome);
    let history = History::new();
    for n in 0..7 {
        let mut commit = Commit::new(TxnId(uuid::Uuid::from_u128(n)));
        commit.push(Op::Put(Key::new("vm/a").unwrap(), n.to_string().into()));
        let _ = history.commit(&store, commit).await;
    }
    assert!(
        history
            .check()
            .unwrap_err()
            .to_string()
            .contains("settle first")
    );
}
