//! What clients saw of a store that they used at the same time, and whether one store can have shown them that.
//!
//! ```text
//!   Load ── clients ──► History (records each call: when it began and ended, what came of it) ──► store
//!                          │ settle: every unknown outcome is asked for
//!                          └ check:  is there one order of all calls that explains what each of them saw?
//! ```
//! The search for such an order is hard in general and easy here, since commits return revisions: their order is given,
//! and with it the state at each revision. What is left is to find for each read (and each refused commit) a revision
//! between those that its neighbours in time leave open. Taking the smallest that explains it, in the order in which the
//! calls began, leaves the most to the later ones, so the check is exact: a history passes if and only if it is
//! linearizable. Gaps between revisions are allowed.
//!
//! The store must be empty at first and have no other writers. Leases are no part of it.

mod check;
mod load;

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

pub use self::check::{Checked, Violation};
pub use self::load::Load;
use crate::error::{Error, ErrorKind, Result};
use crate::store::{Commit, Key, ListOptions, Page, Record, Revision, Store, TxnId, TxnOutcome};

/// The calls that were made of a store, as their callers saw them.
#[derive(Debug, Default)]
pub struct History {
    /// Counts beginnings and ends: a call that ended before another began has the smaller number.
    moment: AtomicU64,
    recorded: Mutex<Recorded>,
}

#[derive(Debug, Default)]
struct Recorded {
    /// Every commit that was sent.
    commits: BTreeMap<TxnId, Commit>,
    calls: Vec<Call>,
}

#[derive(Clone, Debug)]
struct Call {
    begin: u64,
    end: u64,
    saw: Saw,
}

#[derive(Clone, Debug)]
enum Saw {
    Committed(TxnId, Revision),
    /// Refused, by the precondition of this index.
    Conflict(TxnId, usize),
    /// It failed in a way that says that nothing happened.
    Failed(TxnId),
    Unknown(TxnId),
    Outcome(TxnId, TxnOutcome),
    Record(Key, Option<Record>),
    List(String, Vec<Record>, Revision),
    Revision(Revision),
}

impl History {
    /// One in which nothing has happened.
    pub fn new() -> Self {
        Self::default()
    }

    /// Commits, and records what came of it.
    ///
    /// # Errors
    /// Those of [`Store::commit`].
    pub async fn commit(&self, store: &dyn Store, commit: Commit) -> Result<Revision> {
        let txn = commit.txn;
        self.recorded().commits.insert(txn, commit.clone());
        let begin = self.tick();
        let result = store.commit(commit).await;
        self.saw(
            begin,
            match &result {
                Ok(revision) => Saw::Committed(txn, *revision),
                Err(error) => failed(txn, error),
            },
        );
        result
    }

    /// Asks for an outcome, and records it.
    ///
    /// # Errors
    /// Those of [`Store::outcome`].
    pub async fn outcome(&self, store: &dyn Store, txn: TxnId) -> Result<TxnOutcome> {
        let begin = self.tick();
        let outcome = store.outcome(txn).await?;
        self.saw(begin, Saw::Outcome(txn, outcome));
        Ok(outcome)
    }

    /// Reads a record, and records what was there.
    ///
    /// # Errors
    /// Those of [`Store::get`].
    pub async fn get(&self, store: &dyn Store, key: &Key) -> Result<Option<Record>> {
        let begin = self.tick();
        let record = store.get(key).await?;
        self.saw(begin, Saw::Record(key.clone(), record.clone()));
        Ok(record)
    }

    /// Lists everything under a prefix, and records it.
    ///
    /// # Errors
    /// Those of [`Store::list`].
    pub async fn list(&self, store: &dyn Store, prefix: &str) -> Result<Page> {
        let all = ListOptions {
            limit: usize::MAX,
            ..ListOptions::default()
        };
        let begin = self.tick();
        let page = store.list(prefix, all).await?;
        let saw = Saw::List(prefix.to_owned(), page.records.clone(), page.revision);
        self.saw(begin, saw);
        Ok(page)
    }

    /// Reads the revision, and records it.
    ///
    /// # Errors
    /// Those of [`Store::revision`].
    pub async fn revision(&self, store: &dyn Store) -> Result<Revision> {
        let begin = self.tick();
        let revision = store.revision().await?;
        self.saw(begin, Saw::Revision(revision));
        Ok(revision)
    }

    /// Asks what became of every commit that is not known to be applied, and reads everything once more. To be called
    /// when the store answers again.
    ///
    /// # Errors
    /// Those of [`Store::outcome`] and [`Store::list`].
    pub async fn settle(&self, store: &dyn Store) -> Result<()> {
        let open: Vec<TxnId> = {
            let recorded = self.recorded();
            let mut open = recorded.commits.clone();
            for call in &recorded.calls {
                if let Saw::Committed(txn, _) | Saw::Outcome(txn, _) = &call.saw {
                    open.remove(txn);
                }
            }
            open.into_keys().collect()
        };
        for txn in open {
            self.outcome(store, txn).await?;
        }
        self.list(store, "").await?;
        self.revision(store).await?;
        Ok(())
    }

    /// Whether one store can have shown all this.
    ///
    /// # Errors
    /// What cannot have been, in words.
    pub fn check(&self) -> Result<Checked, Violation> {
        check::check(&self.recorded())
    }

    fn recorded(&self) -> MutexGuard<'_, Recorded> {
        self.recorded.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn tick(&self) -> u64 {
        self.moment.fetch_add(1, Ordering::SeqCst)
    }

    fn saw(&self, begin: u64, saw: Saw) {
        let end = self.tick();
        self.recorded().calls.push(Call { begin, end, saw });
    }
}

fn failed(txn: TxnId, error: &Error) -> Saw {
    match error.kind() {
        ErrorKind::Conflict => {
            let index = super::subject::context(error, "precondition");
            let index = index.and_then(|index| index.parse().ok());
            Saw::Conflict(txn, index.unwrap_or(usize::MAX))
        }
        ErrorKind::OutcomeUnknown => Saw::Unknown(txn),
        _ => Saw::Failed(txn),
    }
}
