//! The reference store as a model: whatever is asked of both, EtcdStore answers as MemoryStore does.
//!
//! Revisions differ (etcd's have gaps), so both count commits: the n-th commit of one is the n-th of the other. Leases
//! are left to the suite, because time cannot be moved here.

use std::collections::BTreeMap;
use std::sync::Arc;

use novacron_core::conformance::ManualClock;
use novacron_core::store::{
    Commit, ListOptions, MemoryStore, Op, Precondition, Revision, Store, TxnId, TxnOutcome,
};
use novacron_core::{Error, ErrorKind};
use proptest::collection::vec;
use proptest::prelude::*;
use uuid::Uuid;

use super::shared::{key, read_until, value};
use super::support::etcd::Etcd;

const KEYS: &[&str] = &["vm", "vm/a", "vm/a/x", "vm/b", "vm-x/a", "run/n/a", "vmx"];
const PREFIXES: &[&str] = &["", "v", "vm", "vm/", "vm/a", "run/", "x", "vm_"];

/// A commit relative to the latest one: below zero is the past, above zero the future.
type Ago = i64;

#[derive(Clone, Debug)]
enum Step {
    Commit(u8, Vec<Need>, Vec<(usize, Option<u16>)>),
    Get(usize),
    List(usize, Option<usize>, usize, Option<Ago>),
    Outcome(u8),
    Watch(usize, Ago),
    Compact(Ago),
    Beat(usize, Option<u16>),
    Beats(usize),
    Reopen,
}

#[derive(Clone, Debug)]
enum Need {
    Absent(usize),
    Present(usize),
    At(usize, Ago),
}

fn step() -> impl Strategy<Value = Step> {
    let (a_key, prefix) = (0..KEYS.len(), 0..PREFIXES.len());
    let need = prop_oneof![
        a_key.clone().prop_map(Need::Absent),
        a_key.clone().prop_map(Need::Present),
        (a_key.clone(), -4..2_i64).prop_map(|(key, ago)| Need::At(key, ago)),
    ];
    let op = (a_key.clone(), prop::option::weighted(0.7, any::<u16>()));
    prop_oneof![
        12 => (any::<u8>(), vec(need, 0..2), vec(op, 0..5)).prop_map(|(t, n, o)| Step::Commit(t, n, o)),
        2 => a_key.clone().prop_map(Step::Get),
        4 => (prefix.clone(), prop::option::of(a_key.clone()), 0..6_usize, prop::option::of(-12..2_i64))
            .prop_map(|(prefix, after, limit, at)| Step::List(prefix, after, limit, at)),
        1 => any::<u8>().prop_map(Step::Outcome),
        2 => (prefix.clone(), -12..2_i64).prop_map(|(prefix, after)| Step::Watch(prefix, after)),
        1 => (-8..1_i64).prop_map(Step::Compact),
        1 => (a_key, any::<Option<u16>>()).prop_map(|(key, value)| Step::Beat(key, value)),
        1 => prefix.prop_map(Step::Beats),
        1 => Just(Step::Reopen),
    ]
}

/// A store, and the revisions of its commits in order.
struct Side<'a> {
    store: &'a dyn Store,
    revisions: &'a mut Vec<Revision>,
}

impl Side<'_> {
    fn at(&self, ago: Ago) -> Revision {
        let last = self.revisions.len() as i64 - 1;
        match usize::try_from((last + ago).max(0))
            .ok()
            .and_then(|i| self.revisions.get(i))
        {
            Some(revision) => *revision,
            None => Revision(self.revisions[last as usize].0 + 1000),
        }
    }

    /// The number of a commit.
    fn number(&self, revision: Revision) -> Option<usize> {
        self.revisions.iter().position(|r| *r == revision)
    }

    async fn ask(&mut self, step: &Step) -> Result<String, ErrorKind> {
        self.answer(step).await.map_err(|error| error.kind())
    }

    async fn answer(&mut self, step: &Step) -> Result<String, Error> {
        let store = self.store;
        Ok(match step {
            Step::Commit(txn, needs, ops) => {
                let mut commit = Commit::new(txn_of(*txn));
                for need in needs {
                    commit.require(match need {
                        Need::Absent(k) => Precondition::Absent(key(KEYS[*k])),
                        Need::Present(k) => Precondition::Present(key(KEYS[*k])),
                        Need::At(k, ago) => Precondition::At(key(KEYS[*k]), self.at(*ago)),
                    });
                }
                for (k, content) in ops {
                    let key = key(KEYS[*k]);
                    commit.push(match content {
                        Some(content) => Op::Put(key, value(content)),
                        None => Op::Delete(key),
                    });
                }
                let revision = store.commit(commit).await?;
                if self.number(revision).is_none() {
                    self.revisions.push(revision);
                }
                format!("{:?}", self.number(revision))
            }
            Step::Get(k) => {
                let found = store.get(&key(KEYS[*k])).await?;
                format!("{:?}", found.map(|r| (self.number(r.version), r.value)))
            }
            Step::List(prefix, after, limit, at) => {
                let options = ListOptions {
                    after: after.map(|k| key(KEYS[k])),
                    limit: *limit,
                    at: at.map(|ago| self.at(ago)),
                };
                let page = store.list(PREFIXES[*prefix], options).await?;
                let records = page.records.into_iter();
                let records: Vec<_> = records
                    .map(|r| (r.key, self.number(r.version), r.value))
                    .collect();
                format!("{records:?} {:?} {}", self.number(page.revision), page.more)
            }
            Step::Outcome(txn) => match store.outcome(txn_of(*txn)).await? {
                TxnOutcome::Committed(revision) => format!("{:?}", self.number(revision)),
                TxnOutcome::NotCommitted => "not".to_owned(),
            },
            Step::Watch(prefix, ago) => {
                let (after, tip) = (self.at(*ago), self.at(0));
                let mut watch = store
                    .watch(vec![PREFIXES[*prefix].to_owned()], after)
                    .await?;
                let mut commits = BTreeMap::new();
                for (revision, keys) in read_until(&mut watch, tip).await? {
                    commits.insert(self.number(revision), keys);
                }
                format!("{commits:?}")
            }
            Step::Compact(ago) => format!("{:?}", store.compact(self.at(*ago)).await?),
            Step::Beat(k, content) => {
                let content = content.map(value);
                format!("{:?}", store.put_beat(&key(KEYS[*k]), content).await?)
            }
            Step::Beats(prefix) => format!("{:?}", store.beats(PREFIXES[*prefix]).await?),
            Step::Reopen => String::new(),
        })
    }
}

/// Few enough that some come twice.
fn txn_of(n: u8) -> TxnId {
    TxnId(Uuid::from_u128(n.into()))
}

#[test]
fn etcd_store_answers_as_the_model() {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    let etcd = Etcd::start();
    let round = std::cell::Cell::new(0);
    let config = ProptestConfig {
        cases: 24,
        failure_persistence: None,
        ..ProptestConfig::default()
    };
    proptest!(config, |(steps in vec(step(), 1..120))| {
        // Compaction is for the whole etcd: what an earlier case compacted is older than anything of this one.
        round.set(round.get() + 1);
        let mut options = etcd.options();
        options.prefix = format!("/{}/", round.get());
        runtime.block_on(async {
            let model = MemoryStore::new(Arc::new(ManualClock::default()));
            let connect = || novacron_core::store::EtcdStore::connect(options.clone());
            let mut store = connect().await.unwrap();
            let (mut of_model, mut of_etcd) = (Vec::new(), Vec::new());
            let first = Step::Commit(0, Vec::new(), vec![(0, Some(0))]);
            for step in std::iter::once(first).chain(steps) {
                if matches!(step, Step::Reopen) {
                    store = connect().await.unwrap();
                }
                let mut model = Side { store: &model, revisions: &mut of_model };
                let mut etcd = Side { store: &store, revisions: &mut of_etcd };
                assert_eq!(model.ask(&step).await, etcd.ask(&step).await, "{step:?}");
            }
        });
    });
}
