//! Clients that use a store at the same time, at random, from one seed.

use std::sync::Arc;

use rand::rngs::StdRng;
use rand::{Rng as _, SeedableRng as _};
use uuid::Uuid;

use super::History;
use crate::conformance::store::subject::{delete, json, key, put};
use crate::error::{ErrorKind, Result};
use crate::store::{Commit, Op, Precondition, Record, Store, TxnId};

/// Few enough that clients meet.
const KEYS: &[&str] = &["vm/a", "vm/b", "vm/c", "run/n/a", "run/n/b", "counter"];

/// What clients do.
#[derive(Clone, Copy, Debug)]
pub struct Load {
    /// How many there are; each uses one of the stores.
    pub clients: usize,
    /// How many calls each makes.
    pub calls: usize,
    /// What their choices follow from.
    pub seed: u64,
}

impl Load {
    /// Lets the clients work on `stores`, which are handles of one empty store, and returns what they saw. It is not
    /// settled yet.
    pub async fn run(self, stores: &[Arc<dyn Store>]) -> Arc<History> {
        let history = Arc::new(History::new());
        let clients = (0..self.clients).map(|number| {
            let (history, store) = (
                Arc::clone(&history),
                Arc::clone(&stores[number % stores.len()]),
            );
            let random =
                StdRng::seed_from_u64(self.seed.wrapping_mul(1000).wrapping_add(number as u64));
            tokio::spawn(async move {
                let mut client = Client {
                    history,
                    store,
                    random,
                    name: format!("{number}"),
                    count: 0,
                    seen: None,
                };
                for _ in 0..self.calls {
                    // What failed is in the history as what it is.
                    let _ = client.step().await;
                    tokio::task::yield_now().await;
                }
            })
        });
        for ended in futures::future::join_all(clients).await {
            if let Err(panic) = ended {
                std::panic::resume_unwind(panic.into_panic());
            }
        }
        history
    }
}

struct Client {
    history: Arc<History>,
    store: Arc<dyn Store>,
    random: StdRng,
    name: String,
    count: u32,
    /// What it read last, for the next condition.
    seen: Option<Record>,
}

impl Client {
    async fn step(&mut self) -> Result<()> {
        let store = &*self.store;
        match self.random.random_range(0..10) {
            0..3 => {
                let key = key(self.any());
                self.seen = self.history.get(&*self.store, &key).await?;
            }
            3 => {
                let prefix = ["", "vm/", "run/", "counter"][self.random.random_range(0..4)];
                self.history.list(&*self.store, prefix).await?;
            }
            4 => drop(self.history.revision(store).await?),
            _ => self.commit().await?,
        }
        Ok(())
    }

    async fn commit(&mut self) -> Result<()> {
        let commit = self.draft();
        let txn = commit.txn;
        let Err(error) = self.history.commit(&*self.store, commit.clone()).await else {
            return Ok(());
        };
        if error.kind() == ErrorKind::OutcomeUnknown {
            match self.random.random_range(0..3) {
                0 => drop(self.history.outcome(&*self.store, txn).await?),
                1 => drop(self.history.commit(&*self.store, commit).await?),
                // Left to be settled at the end.
                _ => {}
            }
        }
        Ok(())
    }

    /// A commit whose values nobody else writes.
    fn draft(&mut self) -> Commit {
        self.count += 1;
        let value = format!("{}-{}", self.name, self.count);
        let mut commit = Commit::new(TxnId(Uuid::from_u128(self.random.random())));
        let (first, second) = (self.any(), self.any());
        match self.random.random_range(0..6) {
            0 => drop(commit.push(put(first, &value))),
            1 => drop(commit.push(delete(first))),
            2 => drop(
                commit
                    .require(Precondition::Absent(key(first)))
                    .push(put(first, &value)),
            ),
            // Depends on one key and changes another: what a write skew would get wrong.
            3 => drop(
                commit
                    .require(Precondition::Present(key(first)))
                    .push(put(second, &value)),
            ),
            _ => match self.seen.take() {
                Some(record) => {
                    commit.push(Op::Put(record.key.clone(), json(&value)));
                    if record.key.as_str() != second {
                        commit.push(put(second, &value));
                    }
                    commit.require(Precondition::At(record.key, record.version));
                }
                None => drop(commit.push(put(first, &value))),
            },
        }
        commit
    }

    fn any(&mut self) -> &'static str {
        KEYS[self.random.random_range(0..KEYS.len())]
    }
}
