//! A thousand watchers of one store with 100,000 records: from a commit's return until the last of them has it, and the
//! memory of the process. Reported without a goal.
//!
//! Each store is a process of its own. Every watcher watches everything, so every commit goes to each. On the stores that
//! processes share, commits are also made through a second handle, as by another process.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use futures::StreamExt as _;
use novacron_core::SystemClock;
use novacron_core::store::{MemoryStore, Revision, SqliteStore, Store, WatchEvent, WatchStream};
use tokio::sync::mpsc;

use crate::Result;
use crate::commits::{Client as _, OfStore, fill};
use crate::figure::{Samples, millis, remark, reported};
use crate::site::{folder, load, resident};
use crate::stores::{DURABLE, postgres_store};
use crate::support::etcd::Etcd;
use crate::support::postgres::Server;

/// The names under which this program runs itself, one for each store.
pub(crate) const STORES: [&str; 4] = [
    "watch-memory",
    "watch-sqlite",
    "watch-postgres",
    "watch-etcd",
];

const RECORDS: usize = 100_000;
const WATCHERS: usize = 1000;
const COMMITS: usize = 300;
const PATIENCE: Duration = Duration::from_secs(30);

pub(crate) async fn run(name: &str) -> Result<()> {
    match name {
        "watch-memory" => {
            let store = Arc::new(MemoryStore::new(Arc::new(SystemClock)));
            measure(name, store, None).await
        }
        "watch-sqlite" => {
            let folder = folder()?;
            let store = SqliteStore::open(folder.path().join("novacron.db")).await?;
            measure(name, Arc::new(store.clone()), None).await?;
            Ok(store.close().await?)
        }
        "watch-postgres" => {
            let server = Server::start(true, &DURABLE);
            let store = postgres_store(&server, "novacron").await?;
            let other = postgres_store(&server, "novacron").await?;
            measure(name, Arc::new(store.clone()), Some(Arc::new(other.clone()))).await?;
            other.close().await?;
            Ok(store.close().await?)
        }
        _ => {
            let etcd = Etcd::start();
            let (store, other) = (etcd.connect().await, etcd.connect().await);
            measure(name, Arc::new(store), Some(Arc::new(other))).await
        }
    }
}

async fn measure(name: &str, store: Arc<dyn Store>, other: Option<Arc<dyn Store>>) -> Result<()> {
    let empty = resident()?;
    let value = format!(r#"{{"v":1,"body":{{"filler":"{}"}}}}"#, "x".repeat(270));
    let start = Instant::now();
    fill(&*store, RECORDS, &value).await?;
    let tip = store.revision().await?;
    store.compact(tip).await?;
    let filled = start.elapsed().as_secs_f64();
    remark(&format!(
        "{RECORDS} records of 300 bytes in {filled:.1} s; load {}",
        load()?
    ));
    let before = resident()?;
    let mut crowd = Crowd::gather(&*store, tip).await?;
    // The first commits grow what grows once.
    crowd.rounds(&store, 20).await?;
    tell(name, "", crowd.rounds(&store, COMMITS).await?);
    if let Some(other) = other {
        tell(name, "-of-another", crowd.rounds(&other, COMMITS).await?);
    }
    reported(&format!("{name}-resident-records"), before - empty, "MiB");
    reported(
        &format!("{name}-resident-watchers"),
        resident()? - before,
        "MiB",
    );
    reported(&format!("{name}-resident"), resident()?, "MiB");
    Ok(())
}

fn tell(name: &str, whose: &str, took: Vec<f64>) {
    let took = Samples::new(took);
    for percent in [50, 99] {
        reported(
            &format!("{name}{whose}-p{percent}"),
            took.percentile(percent),
            "ms",
        );
    }
}

/// Those who watch.
struct Crowd {
    seen: Arc<Seen>,
    /// When the last of them had a commit.
    last: mpsc::UnboundedReceiver<Instant>,
}

/// How many have the present commit. There is one at a time.
struct Seen {
    by: AtomicUsize,
    tell: mpsc::UnboundedSender<Instant>,
}

impl Crowd {
    async fn gather(store: &dyn Store, after: Revision) -> Result<Self> {
        let (tell, last) = mpsc::unbounded_channel();
        let seen = Arc::new(Seen {
            by: AtomicUsize::new(0),
            tell,
        });
        for _ in 0..WATCHERS {
            let watch = store.watch(vec![String::new()], after).await?;
            tokio::spawn(look(watch, Arc::clone(&seen)));
        }
        Ok(Self { seen, last })
    }

    /// Commits one after another, each when everybody has the one before. How long the last of the watchers waited
    /// after a commit's return, in milliseconds; nothing if all of them had it before.
    async fn rounds(&mut self, store: &Arc<dyn Store>, count: usize) -> Result<Vec<f64>> {
        let mut client = OfStore::new(store);
        let mut took = Vec::new();
        for n in 0..count {
            self.seen.by.store(0, Ordering::SeqCst);
            client.commit(&format!("vm/{}", n * 331 % RECORDS)).await?;
            let returned = Instant::now();
            let last = tokio::time::timeout(PATIENCE, self.last.recv()).await?;
            let last = last.ok_or("the watchers are gone")?;
            took.push(millis(last.saturating_duration_since(returned)));
        }
        Ok(took)
    }
}

async fn look(mut watch: WatchStream, seen: Arc<Seen>) {
    while let Some(Ok(event)) = watch.next().await {
        let commit = matches!(event, WatchEvent::Commit { .. });
        if commit && seen.by.fetch_add(1, Ordering::SeqCst) + 1 == WATCHERS {
            let _ = seen.tell.send(Instant::now());
        }
    }
}
