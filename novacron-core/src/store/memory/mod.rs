//! The reference store: in memory, deterministic, gone with the last clone.
//!
//! Everything is decided under one lock in ordered maps, no call ever waits, and time is the [`Clock`]'s: two runs with
//! the same calls give the same answers, which the simulation depends on. Clones share the data, so a simulated process
//! can be dropped and its successor open the same store. "Durable" here means: visible to every clone.

mod state;

use std::ops::Bound;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;

use self::state::State;
use super::watch::{self, Log};
use super::{
    Commit, Key, Lease, LeaseAnswer, ListOptions, Page, Record, Revision, Store, TxnId, TxnOutcome,
    WatchStream, check,
};
use crate::error::Result;
use crate::time::Clock;

/// The reference store, in memory. Clones share the data.
#[derive(Clone, Debug)]
pub struct MemoryStore {
    clock: Arc<dyn Clock>,
    exclusive: bool,
    state: Arc<Mutex<State>>,
    log: Arc<Log>,
}

impl MemoryStore {
    /// An empty store whose leases expire by `clock`, for one cluster's handle at a time, as a file has it: the next one
    /// takes the one before for ended.
    pub fn new(clock: Arc<dyn Clock>) -> Self {
        let log = Arc::new(Log::new(Revision::default(), usize::MAX));
        Self {
            clock,
            exclusive: true,
            state: Arc::default(),
            log,
        }
    }

    /// The same, for several handles at once, each of which acts as a process of the cluster.
    pub fn shared(clock: Arc<dyn Clock>) -> Self {
        Self {
            exclusive: false,
            ..Self::new(clock)
        }
    }

    /// A store of its own that begins with this one's data: what a disk held at this moment.
    #[must_use]
    pub fn fork(&self) -> Self {
        let state = self.state().clone();
        let log = Arc::new(Log::new(state.revision(), usize::MAX));
        Self {
            clock: Arc::clone(&self.clock),
            exclusive: self.exclusive,
            state: Arc::new(Mutex::new(state)),
            log,
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[async_trait]
impl Store for MemoryStore {
    fn exclusive(&self) -> bool {
        self.exclusive
    }

    async fn revision(&self) -> Result<Revision> {
        Ok(self.state().revision())
    }

    async fn get(&self, key: &Key) -> Result<Option<Record>> {
        Ok(self.state().get(key))
    }

    async fn list(&self, prefix: &str, options: ListOptions) -> Result<Page> {
        self.state().list(prefix, &options)
    }

    async fn commit(&self, commit: Commit) -> Result<Revision> {
        commit.check()?;
        // A store on a disk is not done at once either: what others ask for meanwhile may come first.
        tokio::task::yield_now().await;
        let mut state = self.state();
        let (revision, committed) = state.commit(&commit, self.clock.now())?;
        // Published under the lock: the log has the order of the revisions.
        self.log.publish(committed);
        Ok(revision)
    }

    async fn outcome(&self, txn: TxnId) -> Result<TxnOutcome> {
        Ok(self.state().outcome(txn, self.clock.now()))
    }

    async fn watch(&self, prefixes: Vec<String>, after: Revision) -> Result<WatchStream> {
        self.state().check_kept("store.watch", after)?;
        Ok(watch::stream(Arc::clone(&self.log), None, prefixes, after))
    }

    async fn compact(&self, before: Revision) -> Result<()> {
        let mut state = self.state();
        let floor = state.compact(before, self.clock.now());
        self.log.trim(floor);
        Ok(())
    }

    async fn lease_acquire(&self, name: &str, holder: &str, ttl: Duration) -> Result<LeaseAnswer> {
        let now = self.clock.now();
        Ok(self
            .state()
            .leases
            .entry(name.to_owned())
            .or_default()
            .acquire(name, holder, ttl, now))
    }

    async fn lease_renew(&self, lease: &Lease) -> Result<()> {
        let now = self.clock.now();
        self.state()
            .leases
            .entry(lease.name.clone())
            .or_default()
            .renew(lease, now)
    }

    async fn lease_release(&self, lease: &Lease) -> Result<()> {
        if let Some(row) = self.state().leases.get_mut(&lease.name) {
            row.release(lease);
        }
        Ok(())
    }

    async fn put_beat(&self, key: &Key, value: Option<Bytes>) -> Result<()> {
        check::beat(key, value.as_deref())?;
        let beats = &mut self.state().beats;
        match value {
            Some(value) => drop(beats.insert(key.clone(), value)),
            None => drop(beats.remove(key)),
        }
        Ok(())
    }

    async fn beats(&self, prefix: &str) -> Result<Vec<(Key, Bytes)>> {
        let state = self.state();
        let from = state
            .beats
            .range::<str, _>((Bound::Included(prefix), Bound::Unbounded));
        let under = from.take_while(|(key, _)| key.as_str().starts_with(prefix));
        Ok(under
            .map(|(key, value)| (key.clone(), value.clone()))
            .collect())
    }
}
