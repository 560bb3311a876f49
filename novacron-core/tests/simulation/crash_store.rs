//! A process's connection to the store that outlives it: it dies at a chosen commit.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use novacron_core::Result;
use novacron_core::store::{
    Commit, Key, Lease, LeaseAnswer, ListOptions, MemoryStore, Page, Record, Revision, Store,
    TxnId, TxnOutcome, WatchStream,
};
use tokio::sync::Notify;

/// The disk: what is left when a process dies.
#[derive(Debug)]
pub(crate) struct Disk {
    store: Mutex<MemoryStore>,
    /// With durability taken out: the disk falls back to this when the process dies.
    synced: Mutex<Option<MemoryStore>>,
    /// Commits between two syncs; each one is synced if none.
    sync_every: Option<u64>,
}

impl Disk {
    pub(crate) fn new(store: MemoryStore, sync_every: Option<u64>) -> Arc<Self> {
        Arc::new(Self {
            store: Mutex::new(store),
            synced: Mutex::default(),
            sync_every,
        })
    }

    /// A new process's connection, which dies with its `dies_at`th commit: before it is applied, or after.
    pub(crate) fn connect(self: &Arc<Self>, dies_at: Option<(u64, bool)>) -> CrashStore {
        if let Some(synced) = self.synced.lock().unwrap().take() {
            *self.store.lock().unwrap() = synced;
        }
        let store = self.store.lock().unwrap().clone();
        CrashStore {
            store,
            disk: Arc::clone(self),
            dies_at,
            commits: Arc::default(),
            dead: Arc::default(),
            died: Arc::default(),
        }
    }
}

#[derive(Clone, Debug)]
pub(crate) struct CrashStore {
    store: MemoryStore,
    disk: Arc<Disk>,
    dies_at: Option<(u64, bool)>,
    commits: Arc<Mutex<u64>>,
    dead: Arc<AtomicBool>,
    died: Arc<Notify>,
}

impl CrashStore {
    /// Returns when the process has died.
    pub(crate) async fn died(&self) {
        self.died.notified().await;
    }

    /// A dead process's calls never return.
    async fn alive(&self) {
        if self.dead.load(Ordering::SeqCst) {
            std::future::pending::<()>().await;
        }
    }

    async fn die(&self) -> ! {
        self.dead.store(true, Ordering::SeqCst);
        self.died.notify_one();
        std::future::pending().await
    }
}

#[async_trait]
impl Store for CrashStore {
    async fn revision(&self) -> Result<Revision> {
        self.alive().await;
        self.store.revision().await
    }

    async fn get(&self, key: &Key) -> Result<Option<Record>> {
        self.alive().await;
        self.store.get(key).await
    }

    async fn list(&self, prefix: &str, options: ListOptions) -> Result<Page> {
        self.alive().await;
        self.store.list(prefix, options).await
    }

    async fn commit(&self, commit: Commit) -> Result<Revision> {
        self.alive().await;
        let number = {
            let mut commits = self.commits.lock().unwrap();
            *commits += 1;
            *commits
        };
        let dies = self.dies_at.filter(|(at, _)| *at == number);
        if let Some((_, false)) = dies {
            self.die().await;
        }
        if self
            .disk
            .sync_every
            .is_some_and(|every| number % every == 1)
        {
            *self.disk.synced.lock().unwrap() = Some(self.store.fork());
        }
        let answer = self.store.commit(commit).await;
        if dies.is_some() {
            self.die().await;
        }
        answer
    }

    async fn outcome(&self, txn: TxnId) -> Result<TxnOutcome> {
        self.alive().await;
        self.store.outcome(txn).await
    }

    async fn watch(&self, prefixes: Vec<String>, after: Revision) -> Result<WatchStream> {
        self.alive().await;
        self.store.watch(prefixes, after).await
    }

    async fn compact(&self, before: Revision) -> Result<()> {
        self.alive().await;
        self.store.compact(before).await
    }

    async fn lease_acquire(&self, name: &str, holder: &str, ttl: Duration) -> Result<LeaseAnswer> {
        self.alive().await;
        self.store.lease_acquire(name, holder, ttl).await
    }

    async fn lease_renew(&self, lease: &Lease) -> Result<()> {
        self.alive().await;
        self.store.lease_renew(lease).await
    }

    async fn lease_release(&self, lease: &Lease) -> Result<()> {
        self.alive().await;
        self.store.lease_release(lease).await
    }

    async fn put_beat(&self, key: &Key, value: Option<Bytes>) -> Result<()> {
        self.alive().await;
        self.store.put_beat(key, value).await
    }

    async fn beats(&self, prefix: &str) -> Result<Vec<(Key, Bytes)>> {
        self.alive().await;
        self.store.beats(prefix).await
    }
}
