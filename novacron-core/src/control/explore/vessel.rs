//! The production's [`Runtime`], made from a process of the exploration for one turn, and taken apart again.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, RwLock};
use std::time::Duration;

use tokio::sync::{Notify, watch};

use super::drivers::{Answer, Host, Pool, Power, Records, Request, Script};
use super::scenario::{Scenario, pool};
use super::site::Site;
use super::state::{NOW, Process, View};
use crate::control::cache::Cache;
use crate::control::clock::OwnClock;
use crate::control::executor::{Completion, Drivers};
use crate::control::index::Limits;
use crate::control::plan::{Command, ObjectKey, Plan};
use crate::control::retention::Retention;
use crate::control::runtime::{Ended, Parts, Runtime};
use crate::control::session::{Holder, LEADER, Standing};
use crate::control::waiters::Waiters;
use crate::driver::{Domain, DomainId, Fence, FirstFit, Hypervisor, NoSecrets, StorageBackend};
use crate::model::{ClusterId, NodeId};
use crate::store::{Lease, Revision, Store};
use crate::time::{Clock, IdSource, SeededIds, Timestamp};

#[derive(Debug)]
struct OneInstant;

impl Clock for OneInstant {
    fn now(&self) -> Timestamp {
        NOW
    }
}

pub(super) const CLUSTER: ClusterId = ClusterId::from_uuid(uuid::Uuid::nil());

pub(super) struct Vessel {
    script: Arc<Script>,
    store: Arc<dyn Store>,
    ids: Arc<dyn IdSource>,
    /// Of each slot.
    drivers: Vec<Arc<Drivers>>,
    timer: tokio::runtime::Runtime,
}

impl Vessel {
    pub(super) fn new(scenario: &Scenario) -> Self {
        let script = Arc::new(Script::default());
        let store: Arc<dyn Store> = Arc::new(Records(Arc::clone(&script)));
        let ids: Arc<dyn IdSource> = Arc::new(SeededIds::from_seed(1));
        let drivers = scenario.slots.iter().map(|slot| {
            let host = |node: &NodeId| -> (NodeId, Arc<dyn Hypervisor>) {
                (
                    node.clone(),
                    Arc::new(Host(node.clone(), Arc::clone(&script))),
                )
            };
            let fence = |node: &NodeId| -> (NodeId, Arc<dyn Fence>) {
                (node.clone(), Arc::new(Power(Arc::clone(&script))))
            };
            let volumes: Arc<dyn StorageBackend> = Arc::new(Pool(Arc::clone(&script)));
            Arc::new(Drivers {
                store: Arc::clone(&store),
                clock: Arc::new(OneInstant),
                ids: Arc::clone(&ids),
                secrets: Arc::new(NoSecrets),
                nodes: slot.drives.iter().map(host).collect(),
                networks: BTreeMap::new(),
                pools: BTreeMap::from([(pool(), volumes)]),
                watchdogs: BTreeMap::new(),
                fences: scenario.nodes.iter().map(fence).collect(),
                cache: Arc::default(),
                holder: Holder {
                    name: String::new(),
                    ttl: Duration::from_secs(10),
                },
            })
        });
        let timer = tokio::runtime::Builder::new_current_thread()
            .enable_time()
            .start_paused(true)
            .build();
        Self {
            drivers: drivers.collect(),
            timer: timer.expect("a timer"),
            script,
            store,
            ids,
        }
    }

    fn load(&self, process: &Process, cache: Arc<RwLock<Cache>>) -> Runtime {
        let lease = process.leads.map(|token| Lease {
            name: LEADER.to_owned(),
            holder: String::new(),
            token,
            ttl: Duration::from_secs(10),
        });
        let (_, standing) = watch::channel(Standing::believed(lease));
        let mut runtime = Runtime::new(Parts {
            cluster: CLUSTER,
            store: Arc::clone(&self.store),
            clock: Arc::new(OwnClock::new(Arc::new(OneInstant))),
            ids: Arc::clone(&self.ids),
            scheduler: Arc::new(FirstFit::default()),
            drivers: Arc::clone(&self.drivers[process.slot]),
            cache,
            progress: watch::channel(Revision::default()).0,
            waiters: Arc::new(Waiters::default()),
            resync: Duration::from_secs(5),
            retention: Retention::default(),
            // It is over at once: what waits for it may also wait.
            grace: Duration::ZERO,
            limits: Limits::default(),
            member: process.member,
            standing,
            nudge: Arc::new(Notify::new()),
        });
        runtime.owned = process.owned.clone();
        runtime.world = process.world.clone();
        runtime.outcomes = process.outcomes.clone();
        for (key, times) in &process.failures {
            for _ in 0..*times {
                runtime.queue.release_later(key, NOW);
            }
        }
        for key in process.tasks.keys() {
            runtime.queue.set_busy(key.clone());
        }
        runtime
    }

    fn save(runtime: &mut Runtime, before: &Process, key: Option<&ObjectKey>) -> Process {
        let keys: BTreeSet<_> = before.failures.keys().chain(key).cloned().collect();
        let failures = keys
            .into_iter()
            .map(|key| (runtime.queue.failures(&key).min(3), key));
        Process {
            owned: std::mem::take(&mut runtime.owned),
            world: std::mem::take(&mut runtime.world),
            outcomes: std::mem::take(&mut runtime.outcomes),
            failures: failures
                .filter(|(n, _)| *n > 0)
                .map(|(n, k)| (k, n))
                .collect(),
            ..before.clone()
        }
    }

    fn turn<T>(
        &self,
        process: &Process,
        cache: Arc<RwLock<Cache>>,
        key: Option<&ObjectKey>,
        deed: impl FnOnce(&mut Runtime) -> T,
    ) -> (T, Process) {
        let _timer = self.timer.enter();
        let mut runtime = self.load(process, cache);
        let result = deed(&mut runtime);
        let after = Self::save(&mut runtime, process, key);
        drop(runtime);
        // What listened is dropped when the timer's runtime next turns to it.
        self.timer.block_on(tokio::task::yield_now());
        (result, after)
    }

    /// What the process would do about the object; the process after it began that.
    pub(super) fn look(&self, process: &Process, view: &View, key: &ObjectKey) -> (Plan, Process) {
        let cache = Arc::clone(&view.cache);
        self.turn(process, cache, Some(key), |runtime| {
            runtime.placing.all_changed(&view.cache());
            let plan = runtime
                .reconcile(key)
                .expect("an object that can be looked at");
            if let Some(command) = &plan.command {
                runtime.begin(key, command);
            }
            plan
        })
    }

    pub(super) fn takes(
        &self,
        process: &Process,
        view: &View,
        key: &ObjectKey,
        ended: Ended,
    ) -> Process {
        let cache = Arc::clone(&view.cache);
        let taken = |runtime: &mut Runtime| runtime.take_ended(Ok(ended));
        self.turn(process, cache, Some(key), taken).1
    }

    pub(super) fn sees(&self, process: &Process, old: &View, new: &View) -> Process {
        let cache = Arc::new(RwLock::new(old.cache().clone()));
        let changes = old.changes_to(new);
        let seen = |runtime: &mut Runtime| runtime.apply(Revision(1), &changes);
        self.turn(process, cache, None, seen).1
    }

    /// The process as it has just read the records.
    pub(super) fn joined(&self, process: &Process, view: &View) -> Process {
        let cache = Arc::clone(&view.cache);
        let own = |runtime: &mut Runtime| {
            let cache = view.cache();
            let nodes = cache.nodes.keys().cloned().map(ObjectKey::Node);
            for key in nodes.chain(cache.pools.keys().cloned().map(ObjectKey::Pool)) {
                runtime.own(&key, &cache);
            }
        };
        self.turn(process, cache, None, own).1
    }

    /// Carries a command on: what it asks next, or what it came to.
    pub(super) fn carry_on(
        &self,
        slot: usize,
        key: &ObjectKey,
        command: &Command,
        answers: &[Answer],
    ) -> Result<Request, Box<Completion>> {
        let _timer = self.timer.enter();
        self.script
            .carry_on(&self.drivers[slot], key, command, answers)
    }

    /// Whether another look at the node would tell its owner anything.
    pub(super) fn is_news(process: &Process, node: &NodeId, site: &Site) -> bool {
        let (Some(seen), Some(host)) = (process.world.nodes.get(node), site.hosts.get(node)) else {
            return false;
        };
        let mut runs = process.world.runs.iter().filter(|((n, _), _)| n == node);
        let known: BTreeMap<DomainId, Domain> = seen
            .domains
            .iter()
            .map(|((vm, epoch), domain)| {
                let (cluster, vm, epoch) = (CLUSTER, *vm, *epoch);
                (DomainId { cluster, vm, epoch }, domain.clone())
            })
            .collect();
        seen.host.as_ref() != Some(&host.info(node))
            || known != host.domains
            || runs.any(|(_, run)| run.unsettled.is_some())
    }
}
