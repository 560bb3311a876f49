//! The commit that every store and every tool makes: one record of 1 kB is replaced, if it is there.
//!
//! Clients commit one after another, each for itself, for the time of a round; the keys are a thousand, in an order that
//! looks like chance.

use std::sync::Arc;
use std::time::{Duration, Instant};

use futures::future::try_join_all;
use novacron_core::store::{Commit, Key, Op, Precondition, Store, TxnId};
use novacron_core::{IdSource, SeededIds};
use uuid::Uuid;

use crate::Result;
use crate::figure::{Samples, millis};

/// How many records there are.
pub(crate) const KEYS: usize = 1000;

/// The value of each.
pub(crate) fn value() -> String {
    format!(r#"{{"v":1,"body":{{"filler":"{}"}}}}"#, "x".repeat(970))
}

/// The key of the `n`-th commit of a client.
pub(crate) fn key(client: usize, n: usize) -> String {
    format!("vm/{}", (client * 389 + n * 617) % KEYS)
}

/// What clients reached in a round.
pub(crate) struct Round {
    /// Commits in a second.
    pub(crate) rate: f64,
    /// The time below which 99 of 100 commits were, in milliseconds.
    pub(crate) p99: f64,
}

/// Lets clients, each of which is given its number, commit for a while.
pub(crate) async fn drive<C>(
    clients: usize,
    time: Duration,
    client: impl Fn(usize) -> C,
) -> Result<Round>
where
    C: Client,
{
    let begin = Instant::now();
    let end = begin + time;
    let running = (0..clients).map(|number| {
        let mut client = client(number);
        async move {
            let running = tokio::spawn(async move {
                let mut took = Vec::new();
                for n in 0.. {
                    let start = Instant::now();
                    if start >= end {
                        break;
                    }
                    client.commit(&key(number, n)).await?;
                    took.push(millis(start.elapsed()));
                }
                Ok(took)
            });
            let took: Result<Vec<f64>> = running.await?;
            took
        }
    });
    let took: Vec<Vec<f64>> = try_join_all(running).await?;
    let elapsed = begin.elapsed().as_secs_f64();
    let took = Samples::new(took.concat());
    Ok(Round {
        rate: took.count() as f64 / elapsed,
        p99: took.percentile(99),
    })
}

/// Who commits.
pub(crate) trait Client: Send + 'static {
    fn commit(&mut self, key: &str) -> impl Future<Output = Result<()>> + Send;
}

/// A client of a store.
pub(crate) struct OfStore {
    store: Arc<dyn Store>,
    ids: SeededIds,
    value: bytes::Bytes,
}

impl OfStore {
    pub(crate) fn new(store: &Arc<dyn Store>) -> Self {
        Self {
            store: Arc::clone(store),
            ids: SeededIds::from_os(),
            value: value().into(),
        }
    }
}

impl Client for OfStore {
    async fn commit(&mut self, key: &str) -> Result<()> {
        let key = Key::new(key)?;
        let mut commit = Commit::new(TxnId(Uuid::from_u128(self.ids.bits())));
        commit.require(Precondition::Present(key.clone()));
        commit.push(Op::Put(key, self.value.clone()));
        self.store.commit(commit).await?;
        Ok(())
    }
}

/// Writes records, a hundred in a commit.
pub(crate) async fn fill(store: &dyn Store, count: usize, value: &str) -> Result<()> {
    let ids = SeededIds::from_os();
    for first in (0..count).step_by(100) {
        let mut commit = Commit::new(TxnId(Uuid::from_u128(ids.bits())));
        for n in first..count.min(first + 100) {
            // Each has its own copy, as records have.
            let value = value.to_owned().into();
            commit.push(Op::Put(Key::new(format!("vm/{n}"))?, value));
        }
        store.commit(commit).await?;
    }
    Ok(())
}
