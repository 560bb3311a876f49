//! The reference store as a model: random steps are taken on both stores, and whatever is asked of both must be answered
//! alike; errors are compared by their kind.

use std::collections::BTreeMap;
use std::fmt::Debug;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use futures::StreamExt as _;
use novacron_core::conformance::ManualClock;
use novacron_core::store::{
    Commit, Key, Lease, LeaseAnswer, ListOptions, MemoryStore, Op, Precondition, Revision, Store,
    TxnId, WatchEvent,
};
use novacron_core::{Error, ErrorKind};
use proptest::collection::vec;
use proptest::prelude::*;
use uuid::Uuid;

/// Times are multiples of this: long enough that what a test takes itself makes no difference.
const UNIT: Duration = Duration::from_secs(100);

const KEYS: &[&str] = &[
    "vm", "vm/a", "vm/a/x", "vm/b", "vm-x/a", "run/n/a", "run/n/b", "vmx",
];
const PREFIXES: &[&str] = &["", "v", "vm", "vm/", "vm/a", "run/", "run/n/a", "x", "vm_"];
const NAMES: &[&str] = &["leader", "owner/1"];
const HOLDERS: &[&str] = &["a", "b", "c"];

/// A revision relative to the present one: below zero is the past, above zero the future.
pub(crate) type Ago = i64;

#[derive(Clone, Debug)]
pub(crate) enum Step {
    Commit {
        txn: u8,
        preconditions: Vec<Need>,
        ops: Vec<(usize, Option<u16>)>,
    },
    Get(usize),
    List {
        prefix: usize,
        after: Option<usize>,
        limit: usize,
        at: Option<Ago>,
    },
    Outcome(u8),
    Watch {
        prefixes: Vec<usize>,
        after: Ago,
    },
    Compact(Ago),
    Acquire {
        name: usize,
        holder: usize,
        units: u32,
    },
    Renew(usize),
    Release(usize),
    Beat(usize, Option<u16>),
    Beats(usize),
    Pass(u32),
    Reopen,
}

#[derive(Clone, Debug)]
pub(crate) enum Need {
    Absent(usize),
    Present(usize),
    /// At its present version.
    Same(usize),
    At(usize, Ago),
    Lease(usize),
}

fn need() -> impl Strategy<Value = Need> {
    let key = 0..KEYS.len();
    prop_oneof![
        1 => key.clone().prop_map(Need::Absent),
        1 => key.clone().prop_map(Need::Present),
        6 => key.clone().prop_map(Need::Same),
        1 => (key, -4..1_i64).prop_map(|(key, ago)| Need::At(key, ago)),
        1 => (0..4_usize).prop_map(Need::Lease),
    ]
}

pub(crate) fn step() -> impl Strategy<Value = Step> {
    let key = 0..KEYS.len();
    let prefix = 0..PREFIXES.len();
    let ops = vec(
        (key.clone(), prop::option::weighted(0.7, any::<u16>())),
        0..5,
    );
    prop_oneof![
        12 => (any::<u8>(), vec(need(), 0..2), ops)
            .prop_map(|(txn, preconditions, ops)| Step::Commit { txn, preconditions, ops }),
        2 => key.clone().prop_map(Step::Get),
        4 => (prefix.clone(), prop::option::of(key.clone()), 0..6_usize, prop::option::of(-12..2_i64))
            .prop_map(|(prefix, after, limit, at)| Step::List { prefix, after, limit, at }),
        1 => any::<u8>().prop_map(Step::Outcome),
        3 => (vec(prefix.clone(), 1..3), -12..2_i64).prop_map(|(prefixes, after)| Step::Watch { prefixes, after }),
        1 => (-8..2_i64).prop_map(Step::Compact),
        2 => (0..NAMES.len(), 0..HOLDERS.len(), 1..30_u32)
            .prop_map(|(name, holder, units)| Step::Acquire { name, holder, units }),
        1 => (0..4_usize).prop_map(Step::Renew),
        1 => (0..4_usize).prop_map(Step::Release),
        1 => (key, any::<Option<u16>>()).prop_map(|(key, value)| Step::Beat(key, value)),
        1 => prefix.prop_map(Step::Beats),
        1 => prop_oneof![9 => 0..20_u32, 1 => Just(37_u32)].prop_map(Step::Pass),
        1 => Just(Step::Reopen),
    ]
}

/// A store that is compared with the model.
#[async_trait]
pub(crate) trait Subject {
    fn store(&self) -> &dyn Store;

    /// Ends it, and opens the same data anew.
    async fn reopen(&mut self);

    /// Lets time pass for its leases and outcomes, on the model's clock or on one that goes as that does.
    async fn pass(&self, by: Duration);
}

/// Both stores, and what was learned from the model.
pub(crate) struct Pair<S> {
    clock: Arc<ManualClock>,
    model: MemoryStore,
    subject: S,
    leases: Vec<Lease>,
}

/// Asks both stores and compares; an error is compared by its kind.
macro_rules! both {
    ($pair:expr, $store:ident => $ask:expr) => {{
        let of_model = {
            let $store: &dyn Store = &$pair.model;
            $ask
        }
        .map_err(|e: Error| e.kind());
        let of_subject = {
            let $store = $pair.subject.store();
            $ask
        }
        .map_err(|e: Error| e.kind());
        assert_eq!(of_model, of_subject);
        of_model
    }};
}

impl<S: Subject> Pair<S> {
    /// Compares a store that is empty with an empty model, whose clock is `clock`.
    pub(crate) fn new(clock: &Arc<ManualClock>, subject: S) -> Self {
        Self {
            clock: Arc::clone(clock),
            model: MemoryStore::new(Arc::<ManualClock>::clone(clock)),
            subject,
            leases: Vec::new(),
        }
    }

    /// Takes every step, and compares what is there at the end.
    pub(crate) async fn compare(mut self, steps: Vec<Step>) -> S {
        for step in steps {
            self.run(step).await;
        }
        let all = ListOptions {
            limit: usize::MAX,
            ..ListOptions::default()
        };
        let all = both!(self, s => s.list("", all.clone()).await.map(|page| (page.records, page.revision)));
        assert_ne!(all.map_err(|kind| kind == ErrorKind::Internal), Err(true));
        self.subject
    }

    async fn tip(&self) -> u64 {
        self.model
            .list("", ListOptions::default())
            .await
            .unwrap()
            .revision
            .0
    }

    async fn at(&self, ago: Ago) -> Revision {
        Revision(self.tip().await.saturating_add_signed(ago))
    }

    async fn precondition(&self, need: &Need) -> Option<Precondition> {
        Some(match need {
            Need::Absent(key) => Precondition::Absent(key_of(*key)),
            Need::Present(key) => Precondition::Present(key_of(*key)),
            Need::Same(key) => match self.model.get(&key_of(*key)).await.unwrap() {
                Some(record) => Precondition::At(record.key, record.version),
                None => Precondition::Absent(key_of(*key)),
            },
            Need::At(key, ago) => Precondition::At(key_of(*key), self.at(*ago).await),
            Need::Lease(index) => {
                let lease = self.lease(*index)?;
                Precondition::Lease {
                    name: lease.name,
                    token: lease.token,
                }
            }
        })
    }

    /// One of the latest leases that were granted.
    fn lease(&self, index: usize) -> Option<Lease> {
        self.leases.iter().rev().nth(index).cloned()
    }

    async fn run(&mut self, step: Step) {
        match step {
            Step::Commit {
                txn,
                preconditions,
                ops,
            } => {
                let mut commit = Commit::new(txn_of(txn));
                for need in &preconditions {
                    commit.preconditions.extend(self.precondition(need).await);
                }
                for (key, value) in ops {
                    let key = key_of(key);
                    commit.push(value.map_or(Op::Delete(key.clone()), |v| {
                        Op::Put(key, v.to_string().into())
                    }));
                }
                let _ = both!(self, s => s.commit(commit.clone()).await);
            }
            Step::Get(key) => drop(both!(self, s => s.get(&key_of(key)).await)),
            Step::List {
                prefix,
                after,
                limit,
                at,
            } => {
                let at = match at {
                    Some(ago) => Some(self.at(ago).await),
                    None => None,
                };
                let options = ListOptions {
                    after: after.map(key_of),
                    limit,
                    at,
                };
                let ask = async |s: &dyn Store| {
                    let page = s.list(PREFIXES[prefix], options.clone()).await?;
                    Ok((page.records, page.revision, page.more))
                };
                drop(both!(self, s => ask(s).await));
            }
            Step::Outcome(txn) => drop(both!(self, s => s.outcome(txn_of(txn)).await)),
            Step::Watch { prefixes, after } => {
                let (tip, after) = (Revision(self.tip().await), self.at(after).await);
                let prefixes: Vec<_> = prefixes
                    .into_iter()
                    .map(|i| PREFIXES[i].to_owned())
                    .collect();
                drop(both!(self, s => told(s, &prefixes, after, tip).await));
            }
            Step::Compact(ago) => {
                let before = self.at(ago).await;
                let _ = both!(self, s => s.compact(before).await);
            }
            Step::Acquire {
                name,
                holder,
                units,
            } => {
                let ttl = UNIT * units;
                let answer = both!(self, s => s.lease_acquire(NAMES[name], HOLDERS[holder], ttl).await.map(rounded));
                if let Ok(LeaseAnswer::Granted(lease)) = answer {
                    self.leases.push(lease);
                }
            }
            Step::Renew(index) => {
                if let Some(lease) = self.lease(index) {
                    let _ = both!(self, s => s.lease_renew(&lease).await);
                }
            }
            Step::Release(index) => {
                if let Some(lease) = self.lease(index) {
                    let _ = both!(self, s => s.lease_release(&lease).await);
                }
            }
            Step::Beat(key, value) => {
                let value = value.map(|v| Bytes::from(v.to_string()));
                let _ = both!(self, s => s.put_beat(&key_of(key), value.clone()).await);
            }
            Step::Beats(prefix) => drop(both!(self, s => s.beats(PREFIXES[prefix]).await)),
            Step::Pass(units) => {
                self.clock.advance(UNIT * units);
                self.subject.pass(UNIT * units).await;
            }
            Step::Reopen => self.subject.reopen().await,
        }
    }
}

/// A store on a clock that cannot be stopped tells a little less than what remains in the model.
fn rounded(answer: LeaseAnswer) -> LeaseAnswer {
    match answer {
        LeaseAnswer::HeldBy { holder, remaining } => {
            let units = remaining.as_millis().div_ceil(UNIT.as_millis());
            LeaseAnswer::HeldBy {
                holder,
                remaining: UNIT * u32::try_from(units).unwrap(),
            }
        }
        granted @ LeaseAnswer::Granted(_) => granted,
    }
}

fn key_of(index: usize) -> Key {
    Key::new(KEYS[index]).unwrap()
}

/// Few enough that some come twice.
fn txn_of(n: u8) -> TxnId {
    TxnId(Uuid::from_u128(n.into()))
}

/// What a watch tells up to the bookmark at `tip`.
async fn told(
    store: &dyn Store,
    prefixes: &[String],
    after: Revision,
    tip: Revision,
) -> Result<impl Debug + PartialEq, Error> {
    let mut watch = store.watch(prefixes.to_vec(), after).await?;
    let mut commits = BTreeMap::new();
    loop {
        let event = tokio::time::timeout(Duration::from_secs(30), watch.next()).await;
        match event
            .expect("an event in time")
            .expect("no end without an error")?
        {
            WatchEvent::Commit { revision, changes } => {
                assert!(commits.insert(revision, changes).is_none(), "told twice");
            }
            WatchEvent::Bookmark(revision) if revision >= tip => return Ok(commits),
            WatchEvent::Bookmark(_) => {}
        }
    }
}
