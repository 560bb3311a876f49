//! A process's connection to the store that outlives it: it dies at a chosen commit.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use futures::StreamExt;
use novacron_core::store::{
    Commit, Key, Lease, LeaseAnswer, ListOptions, MemoryStore, Op, Page, Record, Revision, Store,
    TxnId, TxnOutcome, WatchStream,
};
use novacron_core::{Error, ErrorKind, Result};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use tokio::sync::Notify;

/// When a process dies, told by one of its commits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Moment {
    /// Before it is applied.
    Before,
    /// After, and nobody learns of it.
    After,
    /// A second after it was acknowledged: in the middle of what it brought about.
    Amid,
}

/// What does not get through between a process and the store.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Cut {
    Nothing,
    /// Nothing gets through.
    Everything,
    /// It can read, and its commits and requests for leases wait.
    Writes,
    /// Its commits and requests for leases arrive, and their answers do not.
    Answers,
    /// It is told of no change; everything else gets through.
    Changes,
}

/// A commit, for people, without what only tells of it.
fn words(commit: &Commit) -> String {
    let mut words = String::new();
    for op in &commit.ops {
        let (key, value) = match op {
            Op::Put(key, value) => (key, String::from_utf8_lossy(value)),
            Op::Delete(key) => (key, "deleted".into()),
        };
        if !["audit/", "event/", "idempotency/"]
            .iter()
            .any(|p| key.as_str().starts_with(p))
        {
            words += &format!("\n    {key}: {value}");
        }
    }
    words
}

/// How long a caller whose answer is lost waits for it.
const PATIENCE: Duration = Duration::from_secs(5);

/// The disk: what is left when a process dies.
#[derive(Debug)]
pub(crate) struct Disk {
    store: Mutex<MemoryStore>,
    /// With durability taken out: the disk falls back to this when the process dies.
    synced: Mutex<Option<MemoryStore>>,
    /// Commits between two syncs; each one is synced if none.
    sync_every: Option<u64>,
    /// How long a commit's way to the disk may take, and its answer's way back; none if they take no time.
    slow: Mutex<Option<(StdRng, Duration)>>,
    /// The audit records that were ever written: one for each change that was made.
    audits: AtomicU64,
}

impl Disk {
    pub(crate) fn new(store: MemoryStore, sync_every: Option<u64>) -> Arc<Self> {
        Arc::new(Self {
            store: Mutex::new(store),
            synced: Mutex::default(),
            sync_every,
            slow: Mutex::default(),
            audits: AtomicU64::default(),
        })
    }

    /// From now on commits take their time, up to `longest` each way, from this seed; none takes any.
    pub(crate) fn slow_down(&self, seed: u64, longest: Option<Duration>) {
        let slow = longest.map(|longest| (StdRng::seed_from_u64(seed), longest));
        *self.slow.lock().unwrap() = slow;
    }

    async fn way(&self) {
        let time = {
            let mut slow = self.slow.lock().unwrap();
            slow.as_mut()
                .map(|(rng, longest)| rng.random_range(Duration::ZERO..=*longest))
        };
        if let Some(time) = time {
            crate::site::pass(time).await;
        }
    }

    /// A new process's connection.
    pub(crate) fn connect(self: &Arc<Self>) -> CrashStore {
        if let Some(synced) = self.synced.lock().unwrap().take() {
            *self.store.lock().unwrap() = synced;
        }
        let store = self.store.lock().unwrap().clone();
        CrashStore {
            store,
            disk: Arc::clone(self),
            dies_at: Arc::default(),
            commits: Arc::default(),
            dead: Arc::default(),
            doomed: Arc::default(),
            cut: Arc::new(Mutex::new(Cut::Nothing)),
            mended: Arc::default(),
        }
    }

    pub(crate) fn audits(&self) -> u64 {
        self.audits.load(Ordering::SeqCst)
    }

    /// The key of every record.
    pub(crate) async fn keys(&self) -> BTreeSet<String> {
        let store = self.store.lock().unwrap().clone();
        let all = ListOptions {
            limit: usize::MAX,
            ..ListOptions::default()
        };
        let page = store.list("", all).await.unwrap();
        let keys = page.records.iter().map(|r| r.key.as_str().to_owned());
        keys.collect()
    }
}

#[derive(Clone, Debug)]
pub(crate) struct CrashStore {
    store: MemoryStore,
    disk: Arc<Disk>,
    dies_at: Arc<Mutex<Option<(u64, Moment)>>>,
    commits: Arc<AtomicU64>,
    dead: Arc<AtomicBool>,
    doomed: Arc<Notify>,
    /// What the process is cut off from: such calls wait, and go on in the order in which they came.
    cut: Arc<Mutex<Cut>>,
    mended: Arc<Notify>,
}

impl CrashStore {
    /// Cuts the process off from the store, or lets it through again.
    pub(crate) fn cut(&self, cut: Cut) {
        *self.cut.lock().unwrap() = cut;
        self.mended.notify_waiters();
    }

    pub(crate) fn is_cut(&self) -> bool {
        *self.cut.lock().unwrap() != Cut::Nothing
    }

    /// How many commits there were.
    pub(crate) fn commits(&self) -> u64 {
        self.commits.load(Ordering::SeqCst)
    }

    /// The process dies with the `n`th commit from now on.
    pub(crate) fn dies_at(&self, n: u64, moment: Moment) {
        *self.dies_at.lock().unwrap() = Some((self.commits() + n, moment));
    }

    /// Returns when the process has died: its calls never return.
    pub(crate) async fn died(&self) {
        self.doomed.notified().await;
        if !self.dead.load(Ordering::SeqCst) {
            crate::site::pass(Duration::from_secs(1)).await;
            self.dead.store(true, Ordering::SeqCst);
        }
    }

    /// Waits while what `of` names is cut. A dead process's calls never return.
    async fn through(&self, of: &[Cut]) {
        loop {
            let mended = self.mended.notified();
            let cut = *self.cut.lock().unwrap();
            if cut != Cut::Everything && !of.contains(&cut) {
                break;
            }
            mended.await;
        }
        if self.dead.load(Ordering::SeqCst) {
            std::future::pending::<()>().await;
        }
    }

    /// A read gets through.
    async fn alive(&self) {
        self.through(&[]).await;
    }

    /// The answer of what changed something comes back; or it does not, and its caller's patience ends.
    async fn answered<T>(&self, answer: Result<T>, lost: ErrorKind) -> Result<T> {
        let back = self.through(&[Cut::Writes, Cut::Answers]);
        match tokio::time::timeout(PATIENCE, back).await {
            Ok(()) => answer,
            Err(_) if self.dead.load(Ordering::SeqCst) => std::future::pending().await,
            Err(_) => Err(Error::new(lost, "sim.store", "no answer")),
        }
    }

    async fn die(&self) -> ! {
        self.dead.store(true, Ordering::SeqCst);
        self.doomed.notify_one();
        std::future::pending().await
    }
}

#[async_trait]
impl Store for CrashStore {
    fn exclusive(&self) -> bool {
        self.store.exclusive()
    }

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
        self.disk.way().await;
        self.through(&[Cut::Writes]).await;
        let number = self.commits.fetch_add(1, Ordering::SeqCst) + 1;
        let dies = *self.dies_at.lock().unwrap();
        let dies = dies
            .filter(|(at, _)| *at == number)
            .map(|(_, moment)| moment);
        if dies == Some(Moment::Before) {
            self.die().await;
        }
        if self
            .disk
            .sync_every
            .is_some_and(|every| number % every == 1)
        {
            *self.disk.synced.lock().unwrap() = Some(self.store.fork());
        }
        let is_audit =
            |op: &&Op| matches!(op, Op::Put(key, _) if key.as_str().starts_with("audit/"));
        let audits = commit.ops.iter().filter(is_audit).count();
        let told = std::env::var_os("NOVACRON_SIM_COMMITS").map(|_| words(&commit));
        let answer = self.store.commit(commit).await;
        if let Some(told) = told {
            eprintln!("commit {answer:?}{told}");
        }
        if answer.is_ok() {
            let audits = u64::try_from(audits).unwrap();
            self.disk.audits.fetch_add(audits, Ordering::SeqCst);
        }
        match dies {
            Some(Moment::After) => self.die().await,
            Some(_) => self.doomed.notify_one(),
            None => {}
        }
        self.disk.way().await;
        self.answered(answer, ErrorKind::OutcomeUnknown).await
    }

    async fn outcome(&self, txn: TxnId) -> Result<TxnOutcome> {
        self.through(&[Cut::Writes, Cut::Answers]).await;
        self.store.outcome(txn).await
    }

    async fn watch(&self, prefixes: Vec<String>, after: Revision) -> Result<WatchStream> {
        self.alive().await;
        let changes = self.store.watch(prefixes, after).await?;
        let connection = self.clone();
        let told = changes.then(move |change| {
            let connection = connection.clone();
            async move {
                connection.through(&[Cut::Changes]).await;
                change
            }
        });
        Ok(told.boxed())
    }

    async fn compact(&self, before: Revision) -> Result<()> {
        self.alive().await;
        self.store.compact(before).await
    }

    async fn lease_acquire(&self, name: &str, holder: &str, ttl: Duration) -> Result<LeaseAnswer> {
        self.through(&[Cut::Writes]).await;
        let answer = self.store.lease_acquire(name, holder, ttl).await;
        self.answered(answer, ErrorKind::Unavailable).await
    }

    async fn lease_renew(&self, lease: &Lease) -> Result<()> {
        self.through(&[Cut::Writes]).await;
        let answer = self.store.lease_renew(lease).await;
        self.answered(answer, ErrorKind::Unavailable).await
    }

    async fn lease_release(&self, lease: &Lease) -> Result<()> {
        self.through(&[Cut::Writes]).await;
        let answer = self.store.lease_release(lease).await;
        self.answered(answer, ErrorKind::Unavailable).await
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
