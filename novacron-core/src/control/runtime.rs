//! The loop: one task that owns queue, cache and world, and the set of tasks that carry out commits and commands.
//!
//! Order of a turn: take in whatever came (watch events in [`super::changes`], ended tasks in [`super::ended`], driver
//! events here), then look at every ready object.
//! A reconciler runs to its end within the turn; commits and commands run beside it, each holding its object busy. A
//! commit's object stays busy until the cache has the commit's revision, so that no decision is made twice from an old
//! view. Dropping the runtime aborts every task: guests are not touched.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use futures::{FutureExt, StreamExt};
use tokio::sync::{Notify, mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::Instant;

use super::cache::Cache;
use super::clock::OwnClock;
use super::commit::{commit_settled, finish};
use super::executor::{Completion, Drivers, execute};
use super::index::Limits;
use super::owned::Owned;
use super::panics::{caught, caught_now};
use super::part;
use super::placing::Placing;
use super::plan::{Command, Draft, ObjectKey, Outcome, Plan};
use super::queue::Queue;
use super::reasons;
use super::retention::Retention;
use super::session::Standing;
use super::waiters::Waiters;
use super::world::World;
use super::{
    action, failover, member, network, node, operation, ownership, pool, port, retention, run,
    storage, vm,
};
use crate::driver::Scheduler;
use crate::error::{Error, ErrorKind, Result};
use crate::model::{ActionId, ClusterId, MemberId, NodeId, VmId};
use crate::records::{LEVEL, NodeOwner, PoolOwner};
use crate::store::{Revision, Store, WatchStream};
use crate::time::{Clock, IdSource, Timestamp};

/// Driver events that wait to be taken in. Of a hypervisor that pushes more, the stream is taken to have ended: what
/// it would have told is looked for.
const EVENTS: usize = 4096;

/// Changes that are taken in before what they woke is looked at.
const BURST: usize = 256;

/// What the runtime is made of.
#[derive(Debug)]
pub(crate) struct Parts {
    pub(crate) cluster: ClusterId,
    pub(crate) store: Arc<dyn Store>,
    pub(crate) clock: Arc<OwnClock>,
    pub(crate) ids: Arc<dyn IdSource>,
    pub(crate) scheduler: Arc<dyn Scheduler>,
    pub(crate) drivers: Arc<Drivers>,
    pub(crate) cache: Arc<RwLock<Cache>>,
    /// The revision that the cache has: whoever waits for a change waits for this.
    pub(crate) progress: watch::Sender<Revision>,
    /// Whoever waits for an object waits here.
    pub(crate) waiters: Arc<Waiters>,
    /// How often a node or pool is observed when nothing happens.
    pub(crate) resync: Duration,
    pub(crate) retention: Retention,
    /// How long a node may be without an owner before its guests count as out of sight.
    pub(crate) grace: Duration,
    pub(crate) limits: Limits,
    /// This process.
    pub(crate) member: MemberId,
    pub(crate) standing: watch::Receiver<Standing>,
    /// Has the leases asked for at once.
    pub(crate) nudge: Arc<Notify>,
}

/// What an ended task was.
pub(super) enum Ended {
    Command(Box<Completion>),
    Commit {
        key: ObjectKey,
        result: Result<Revision>,
    },
}

pub(crate) struct Runtime {
    pub(super) parts: Parts,
    pub(super) queue: Queue,
    pub(super) world: World,
    tasks: JoinSet<Ended>,
    /// Objects whose commit is done, by the revision that the cache must reach first.
    pub(super) settling: BTreeSet<(Revision, ObjectKey)>,
    pub(super) outcomes: BTreeMap<ObjectKey, Outcome>,
    started_here: BTreeSet<ActionId>,
    pub(super) placing: Placing,
    pub(super) changes: Option<WatchStream>,
    events: mpsc::Receiver<DriverEvent>,
    event_tx: mpsc::Sender<DriverEvent>,
    listeners: JoinSet<()>,
    /// What this process looks after, as of the cache.
    pub(super) owned: Owned,
    /// Whether it led, and was alive, when that was last looked at.
    pub(super) stood: (bool, bool),
    /// Since when other processes are known to be lost.
    pub(super) lost: BTreeMap<MemberId, Instant>,
}

/// What a hypervisor pushed, or that its stream ended.
enum DriverEvent {
    Domain(NodeId, VmId),
    StreamEnded(NodeId),
}

impl Runtime {
    /// Knows nothing yet.
    pub(super) fn new(parts: Parts) -> Self {
        let (event_tx, events) = mpsc::channel(EVENTS);
        let placing = Placing::new(Arc::clone(&parts.scheduler));
        Self {
            parts,
            queue: Queue::default(),
            world: World::default(),
            tasks: JoinSet::new(),
            settling: BTreeSet::new(),
            outcomes: BTreeMap::new(),
            started_here: BTreeSet::new(),
            placing,
            changes: None,
            events,
            event_tx,
            listeners: JoinSet::new(),
            owned: Owned::default(),
            stood: (false, false),
            lost: BTreeMap::new(),
        }
    }

    /// Fills the cache. Nothing is decided before that.
    pub(crate) async fn open(parts: Parts) -> Result<Self> {
        let mut runtime = Self::new(parts);
        let self_fencing = runtime.parts.drivers.watchdogs.keys().cloned();
        runtime.world.self_fencing = self_fencing.collect();
        runtime.refill().await?;
        runtime.queue.push(ObjectKey::Retention);
        for node in runtime.parts.drivers.nodes.keys() {
            runtime.queue.push(ObjectKey::Node(node.clone()));
        }
        for pool in runtime.parts.drivers.pools.keys() {
            runtime.queue.push(ObjectKey::Pool(pool.clone()));
        }
        Ok(runtime)
    }

    /// Runs until the process ends or the future is dropped.
    pub(crate) async fn run(mut self, mut stop: watch::Receiver<bool>) {
        loop {
            self.stand();
            self.turn();
            let now = self.parts.clock.now();
            let timer = self.queue.next_timer().map(|at| at.since(now));
            let changes = self.changes.as_mut();
            tokio::select! {
                biased;
                _ = async { stop.wait_for(|stop| *stop).await.is_ok() } => break,
                change = async { match changes {
                    Some(changes) => changes.next().await,
                    None => std::future::pending().await,
                } } => self.take_change(change).await,
                Some(ended) = self.tasks.join_next(), if !self.tasks.is_empty() => self.take_ended(ended),
                Some(event) = self.events.recv() => self.take_event(event),
                Ok(()) = self.parts.standing.changed() => {}
                () = wait(timer) => {}
            }
            self.take_more().await;
        }
        // An abort alone is not waited for, and whoever stopped the loop may open the same folders next.
        self.tasks.shutdown().await;
        self.listeners.shutdown().await;
    }

    /// Takes in what else is there already, so that a burst costs one turn.
    async fn take_more(&mut self) {
        for _ in 0..BURST {
            let Some(change) = self.changes.as_mut().and_then(|c| c.next().now_or_never()) else {
                break;
            };
            self.take_change(change).await;
        }
        while let Some(ended) = self.tasks.try_join_next() {
            self.take_ended(ended);
        }
        while let Ok(event) = self.events.try_recv() {
            self.take_event(event);
        }
    }

    pub(super) fn listen(&mut self, node: NodeId) {
        let Ok(hypervisor) = self.parts.drivers.node(&node) else {
            return;
        };
        let (stream, tx) = (caught_now(|| hypervisor.events()), self.event_tx.clone());
        self.listeners.spawn(async move {
            let told = async {
                let mut stream =
                    stream.map_err(|why| Error::new(ErrorKind::Internal, "node.events", why))?;
                while let Some(event) = stream.next().await {
                    let event = DriverEvent::Domain(node.clone(), event.domain.vm);
                    if tx.try_send(event).is_err() {
                        break;
                    }
                }
                Ok(())
            };
            if let Err(error) = caught("node.events", told).await {
                tracing::error!(%error, %node, "a hypervisor's events ended");
            }
            let _ = tx.send(DriverEvent::StreamEnded(node)).await;
        });
    }

    fn take_event(&mut self, event: DriverEvent) {
        let (DriverEvent::Domain(node, _) | DriverEvent::StreamEnded(node)) = &event;
        if !self.owned.nodes.contains(node) {
            return;
        }
        match event {
            DriverEvent::Domain(node, vm) => {
                self.world.nodes.entry(node.clone()).or_default().active = true;
                self.world.runs.entry((node.clone(), vm)).or_default().stale = true;
                self.queue.push(ObjectKey::Run(node, vm));
            }
            DriverEvent::StreamEnded(node) => {
                self.world.nodes.entry(node.clone()).or_default().deaf = true;
                self.queue.push(ObjectKey::Node(node));
            }
        }
    }

    /// Looks at every ready object.
    fn turn(&mut self) {
        if let Some(by) = self.parts.clock.put_right() {
            tracing::info!(milliseconds = by, "this process's clock was put right");
            self.world.move_times(by);
            self.queue.move_times(by);
        }
        self.queue.fire(self.parts.clock.now());
        self.retry_waiting();
        while let Some(key) = self.queue.pop() {
            match self.reconcile(&key) {
                Ok(plan) => self.carry_out(key, plan),
                Err(error) => {
                    tracing::error!(%error, ?key, "an object cannot be looked at");
                    self.queue.release_later(&key, self.parts.clock.now());
                }
            }
        }
    }

    fn retry_waiting(&mut self) {
        let cache = self
            .parts
            .cache
            .read()
            .unwrap_or_else(PoisonError::into_inner);
        for vm in self.placing.retry(&cache) {
            self.queue.push(ObjectKey::Vm(vm));
        }
    }

    /// What is to be done about the object, if this process has its part.
    pub(super) fn reconcile(&mut self, key: &ObjectKey) -> Result<Plan> {
        let now = self.parts.clock.now();
        let cache = Arc::clone(&self.parts.cache);
        let cache = cache.read().unwrap_or_else(PoisonError::into_inner);
        let me = self.parts.member;
        // It came back after the others had gone on without it.
        if cache.level > LEVEL {
            return Ok(Plan::nothing());
        }
        let standing = self.parts.standing.borrow().clone();
        if *key == ObjectKey::Reasons {
            if self.parts.store.exclusive() {
                return Ok(Plan::nothing());
            }
            return reasons::reconcile(me, standing.leads().is_some(), &cache, now);
        }
        let Some(part) = part::part_of(key, &cache) else {
            return Ok(Plan::nothing());
        };
        if standing.is_alive() && part::owner(&part, &cache).is_none() {
            match key {
                ObjectKey::Member(id) if *id == me => {
                    return member::own(me, standing.leads().is_some(), &cache);
                }
                ObjectKey::Node(id) if self.parts.drivers.nodes.contains_key(id) => {
                    let owner = cache.node_owners.get(id);
                    return ownership::take::<NodeOwner>(id, me, owner, &cache, now);
                }
                ObjectKey::Pool(id) if self.parts.drivers.pools.contains_key(id) => {
                    let owner = cache.pool_owners.get(id);
                    return ownership::take::<PoolOwner>(id, me, owner, &cache, now);
                }
                _ => {}
            }
        }
        let Some(guard) = part::guard(&part, me, &standing, &cache) else {
            return Ok(Plan::nothing());
        };
        let plan = self.decide(key, &cache, now)?;
        Ok(plan.requiring(guard))
    }

    /// What the object's reconciler says. This process has its part.
    fn decide(&mut self, key: &ObjectKey, cache: &Cache, now: Timestamp) -> Result<Plan> {
        let (cluster, resync, me) = (self.parts.cluster, self.parts.resync, self.parts.member);
        let look = storage::Look {
            cluster,
            cache,
            outcome: self.outcomes.get(key),
            failing: self.queue.failing(key, now),
            now,
        };
        match key {
            ObjectKey::Volume(id) => look.volume(*id),
            ObjectKey::Image(id) => look.image(*id),
            ObjectKey::Snapshot(id) => look.snapshot(*id),
            ObjectKey::Pool(id) => pool::reconcile(id, cache, &self.world, resync, now),
            ObjectKey::Member(id) if *id == me => Ok(Plan::nothing()),
            ObjectKey::Member(id) => {
                let from = now.plus(self.patience());
                member::reconcile(*id, cache, &self.world, self.outcomes.get(key), from, now)
            }
            ObjectKey::Node(id) if self.owned.nodes.contains(id) => {
                node::reconcile(id, cluster, me, cache, &self.world, resync, now)
            }
            ObjectKey::Node(id) => failover::reconcile(
                id,
                cache,
                self.parts.grace,
                self.means(id, cache),
                self.outcomes.get(key),
                now,
            ),
            ObjectKey::Run(node, vm) if !self.owned.nodes.contains(node) => {
                run::unowned(node, *vm, cache, self.parts.grace, now)
            }
            ObjectKey::Run(node, vm) => run::reconcile(
                node,
                *vm,
                cluster,
                cache,
                &self.world,
                self.queue.failures(key),
                now,
            ),
            ObjectKey::Action(id) => {
                if !cache.actions.contains_key(id) {
                    self.started_here.remove(id);
                }
                let started_here = self.started_here.contains(id);
                action::reconcile(
                    *id,
                    cluster,
                    cache,
                    started_here,
                    self.outcomes.get(key),
                    now,
                )
            }
            ObjectKey::Port(id) => port::reconcile(
                *id,
                cluster,
                cache,
                self.outcomes.get(key),
                self.queue.failing(key, now),
                &self.owned.nodes,
            ),
            ObjectKey::Network(id) => network::reconcile(*id, cache),
            ObjectKey::Reasons => Ok(Plan::nothing()),
            ObjectKey::Operation(id) => {
                operation::reconcile(*id, cache, self.parts.retention.operations, now)
            }
            ObjectKey::Retention => {
                retention::reconcile(&self.parts.retention, &self.world.rounds, cache, now)
            }
            ObjectKey::Vm(id) => {
                let placing = &mut self.placing;
                let granted = placing.recoveries();
                let plan = vm::reconcile(*id, cache, granted, now, &mut |request| {
                    placing.decide(*id, request, cache)
                });
                let commits = plan.as_ref().is_ok_and(|plan| plan.commit.is_some());
                if !commits {
                    placing.give_back(*id);
                }
                plan
            }
        }
    }

    /// The other processes, if there may be any, are told what this one has learned.
    pub(super) fn tell_soon(&mut self) {
        if !self.parts.store.exclusive() {
            let at = self.parts.clock.now().plus(reasons::DELAY);
            self.queue.push_at(ObjectKey::Reasons, at);
        }
    }

    /// What can be done about a node's host.
    fn means(&self, node: &NodeId, cache: &Cache) -> failover::Means {
        let owner = cache.node_owners.get(node).map(|o| o.member);
        let lost = owner.and_then(|owner| self.lost.get(&owner));
        failover::Means {
            can_fence: self.parts.drivers.fences.contains_key(node),
            lost_for: lost.map_or(Duration::ZERO, Instant::elapsed),
        }
    }

    /// How long it is until this process may take another one for lost.
    fn patience(&self) -> Duration {
        let ttl = self.parts.drivers.holder.ttl;
        let since = self.parts.standing.borrow().steady_since(ttl);
        since.map_or(ttl, |since| ttl.saturating_sub(since.elapsed()))
    }

    fn carry_out(&mut self, key: ObjectKey, plan: Plan) {
        if let Some(at) = plan.wake {
            self.queue.push_at(key.clone(), at);
        }
        if let (Some(rejected), ObjectKey::Vm(vm)) = (plan.no_place, &key) {
            self.placing.wait(*vm);
            self.tell_soon();
            self.parts
                .cache
                .write()
                .unwrap_or_else(PoisonError::into_inner)
                .no_place
                .insert(*vm, rejected);
        }
        if let Some(draft) = plan.commit {
            if let ObjectKey::Action(id) = key {
                self.started_here.insert(id);
            }
            self.queue.set_busy(key.clone());
            self.commit(key, draft);
        } else if let Some(command) = plan.command {
            self.begin(&key, &command);
            let drivers = Arc::clone(&self.parts.drivers);
            self.tasks.spawn(async move {
                Ended::Command(Box::new(execute(drivers, key, command).await))
            });
        } else if self.queue.failures(&key) > 0 || self.outcomes.contains_key(&key) {
            let cache = &self.parts.cache;
            let cache = cache.read().unwrap_or_else(PoisonError::into_inner);
            if !cache.has(&key) {
                self.queue.succeeded(&key);
                self.outcomes.remove(&key);
            }
        }
    }

    /// Takes down that a command of the object is under way.
    pub(super) fn begin(&mut self, key: &ObjectKey, command: &Command) {
        if let ObjectKey::Run(node, vm) = key
            && let Some(run) = self.world.runs.get_mut(&(node.clone(), *vm))
        {
            run.stale = false;
        }
        if matches!(command, Command::Forget(_)) {
            let (keep, now) = (&self.parts.retention, self.parts.clock.now());
            let revision = *self.parts.progress.borrow();
            self.world.rounds.begin(keep, revision, now);
        }
        if let Command::Observe { node } = command {
            let seen = self.world.nodes.entry(node.clone()).or_default();
            seen.observations += 1;
            seen.stale = false;
            // Listening begins before the list is read, so that nothing falls between the two.
            if std::mem::take(&mut seen.deaf) {
                self.listen(node.clone());
            }
        }
        self.queue.set_busy(key.clone());
    }

    fn commit(&mut self, key: ObjectKey, draft: Draft) {
        let now = self.parts.clock.now();
        let commit = finish(draft, now, &*self.parts.ids);
        let store = Arc::clone(&self.parts.store);
        self.tasks.spawn(async move {
            let result = match commit {
                Ok(commit) => commit_settled(&*store, commit).await,
                Err(error) => Err(error),
            };
            Ended::Commit { key, result }
        });
    }
}

impl Drop for Runtime {
    fn drop(&mut self) {
        self.parts.waiters.end();
    }
}

/// Waits for the timer, or for ever.
#[expect(clippy::disallowed_methods, reason = "the runtime owns every timer")]
pub(crate) async fn wait(after: Option<Duration>) {
    match after {
        Some(after) => tokio::time::sleep(after).await,
        None => std::future::pending().await,
    }
}
