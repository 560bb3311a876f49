//! The loop: one task that owns queue, cache and world, and the set of tasks that carry out commits and commands.
//!
//! Order of a turn: take in whatever came (watch events, ended tasks, driver events), then look at every ready object.
//! A reconciler runs to its end within the turn; commits and commands run beside it, each holding its object busy. A
//! commit's object stays busy until the cache has the commit's revision, so that no decision is made twice from an old
//! view. Dropping the runtime aborts every task: guests are not touched.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, RwLock};
use std::time::Duration;

use futures::StreamExt;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;

use super::cache::{Cache, PREFIXES};
use super::executor::{Completion, Drivers, Report, domain_of, execute};
use super::plan::{Command, Draft, ObjectKey, Plan};
use super::queue::Queue;
use super::storage::{self, Outcome};
use super::world::{SeenPool, World};
use super::{action, node, operation, port, run, vm};
use crate::driver::{DomainOwner, Host, HostChange, Placer, Scheduler};
use crate::error::{Error, ErrorKind, Result};
use crate::model::{ActionId, ClusterId, Event, EventId, MiB, NodeId, NodeState, VmId, uuid_v7};
use crate::records;
use crate::store::{
    Change, Commit, ListOptions, Revision, Store, TxnId, TxnOutcome, WatchEvent, WatchStream,
};
use crate::time::{Clock, IdSource, Timestamp};

/// Records read at a time when the cache is filled.
const PAGE: usize = 1000;

/// How long after the end of a driver's event stream a new one is asked for.
const RELISTEN: Duration = Duration::from_millis(200);

/// What the runtime is made of.
#[derive(Debug)]
pub(crate) struct Parts {
    pub(crate) cluster: ClusterId,
    pub(crate) store: Arc<dyn Store>,
    pub(crate) clock: Arc<dyn Clock>,
    pub(crate) ids: Arc<dyn IdSource>,
    pub(crate) scheduler: Arc<dyn Scheduler>,
    pub(crate) drivers: Arc<Drivers>,
    pub(crate) cache: Arc<RwLock<Cache>>,
    /// The revision that the cache has: whoever waits for a change waits for this.
    pub(crate) progress: watch::Sender<Revision>,
    /// How often a node or pool is observed when nothing happens.
    pub(crate) resync: Duration,
    pub(crate) incarnation: u64,
}

/// What an ended task was.
enum Ended {
    Command(Box<Completion>),
    Commit {
        key: ObjectKey,
        booked: Option<VmId>,
        result: Result<Revision>,
    },
}

pub(crate) struct Runtime {
    parts: Parts,
    queue: Queue,
    world: World,
    tasks: JoinSet<Ended>,
    /// Objects whose commit is done, by the revision that the cache must reach first.
    settling: BTreeSet<(Revision, ObjectKey)>,
    outcomes: BTreeMap<ObjectKey, Outcome>,
    started_here: BTreeSet<ActionId>,
    waiting_for_place: BTreeSet<VmId>,
    placer: Box<dyn Placer>,
    dirty_hosts: BTreeSet<NodeId>,
    bookings: BTreeMap<VmId, (NodeId, u32, MiB)>,
    changes: Option<WatchStream>,
    events: mpsc::UnboundedReceiver<DriverEvent>,
    event_tx: mpsc::UnboundedSender<DriverEvent>,
    listeners: JoinSet<()>,
}

/// What a hypervisor pushed, or that its stream ended.
enum DriverEvent {
    Domain(NodeId, VmId),
    StreamEnded(NodeId),
}

impl Runtime {
    /// Fills the cache. Nothing is decided before that.
    pub(crate) async fn open(parts: Parts) -> Result<Self> {
        let (event_tx, events) = mpsc::unbounded_channel();
        let placer = parts.scheduler.open(Vec::new(), Revision::default());
        let mut runtime = Self {
            parts,
            queue: Queue::default(),
            world: World::default(),
            tasks: JoinSet::new(),
            settling: BTreeSet::new(),
            outcomes: BTreeMap::new(),
            started_here: BTreeSet::new(),
            waiting_for_place: BTreeSet::new(),
            placer,
            dirty_hosts: BTreeSet::new(),
            bookings: BTreeMap::new(),
            changes: None,
            events,
            event_tx,
            listeners: JoinSet::new(),
        };
        runtime.refill().await?;
        for node in runtime
            .parts
            .drivers
            .nodes
            .keys()
            .cloned()
            .collect::<Vec<_>>()
        {
            runtime.world.nodes.entry(node.clone()).or_default().stale = true;
            runtime.listen(node.clone());
            runtime.queue.push(ObjectKey::Node(node));
        }
        for pool in runtime.parts.drivers.pools.keys() {
            runtime.queue.push(ObjectKey::Pool(pool.clone()));
        }
        Ok(runtime)
    }

    /// Reads everything as of one revision and watches from there.
    async fn refill(&mut self) -> Result<()> {
        let store = &self.parts.store;
        let mut cache = Cache::default();
        let mut wake = Vec::new();
        let mut at = None;
        for prefix in PREFIXES {
            let mut after = None;
            loop {
                let page = store
                    .list(
                        prefix,
                        ListOptions {
                            after,
                            limit: PAGE,
                            at,
                        },
                    )
                    .await?;
                at = Some(page.revision);
                for record in &page.records {
                    let change = Change {
                        key: record.key.clone(),
                        value: Some(record.value.clone()),
                    };
                    if let Err(error) = cache.apply(&change, record.version, &mut wake) {
                        tracing::error!(%error, "a record is left out");
                    }
                }
                after = page.records.last().map(|r| r.key.clone());
                if !page.more {
                    break;
                }
            }
        }
        let revision = at.unwrap_or_default();
        cache.revision = revision;
        self.changes = Some(
            store
                .watch(PREFIXES.iter().map(|p| (*p).to_owned()).collect(), revision)
                .await?,
        );
        self.dirty_hosts.extend(cache.nodes.keys().cloned());
        *self
            .parts
            .cache
            .write()
            .unwrap_or_else(std::sync::PoisonError::into_inner) = cache;
        for key in wake {
            self.queue.push(key);
        }
        self.parts.progress.send_replace(revision);
        self.settle(revision);
        Ok(())
    }

    /// Runs until the process ends or the future is dropped.
    pub(crate) async fn run(mut self, mut stop: watch::Receiver<bool>) {
        loop {
            self.turn();
            let now = self.parts.clock.now();
            let timer = self.queue.next_timer().map(|at| at.since(now));
            let changes = self.changes.as_mut();
            tokio::select! {
                biased;
                _ = async { stop.wait_for(|stop| *stop).await.is_ok() } => return,
                change = async { match changes {
                    Some(changes) => changes.next().await,
                    None => std::future::pending().await,
                } } => self.take_change(change).await,
                Some(ended) = self.tasks.join_next(), if !self.tasks.is_empty() => self.take_ended(ended),
                Some(event) = self.events.recv() => self.take_event(event),
                () = wait(timer) => {}
            }
            self.take_more();
        }
    }

    /// Takes in what else is there already, so that a burst costs one turn.
    fn take_more(&mut self) {
        while let Some(ended) = self.tasks.try_join_next() {
            self.take_ended(ended);
        }
        while let Ok(event) = self.events.try_recv() {
            self.take_event(event);
        }
    }

    fn listen(&mut self, node: NodeId) {
        let Ok(hypervisor) = self.parts.drivers.node(&node) else {
            return;
        };
        let (mut stream, tx) = (hypervisor.events(), self.event_tx.clone());
        self.listeners.spawn(async move {
            while let Some(event) = stream.next().await {
                if tx
                    .send(DriverEvent::Domain(node.clone(), event.domain.vm))
                    .is_err()
                {
                    return;
                }
            }
            let _ = tx.send(DriverEvent::StreamEnded(node));
        });
    }

    fn take_event(&mut self, event: DriverEvent) {
        match event {
            DriverEvent::Domain(node, vm) => {
                self.world.runs.entry((node.clone(), vm)).or_default().stale = true;
                self.queue.push(ObjectKey::Run(node, vm));
            }
            // Not at once: a driver whose streams end as soon as they begin must not keep the loop busy.
            DriverEvent::StreamEnded(node) => {
                self.world.nodes.entry(node.clone()).or_default().deaf = true;
                let soon = self.parts.clock.now().plus(RELISTEN);
                self.queue.push_at(ObjectKey::Node(node), soon);
            }
        }
    }

    async fn take_change(&mut self, change: Option<Result<WatchEvent>>) {
        match change {
            Some(Ok(WatchEvent::Commit { revision, changes })) => self.apply(revision, &changes),
            Some(Ok(WatchEvent::Bookmark(revision))) => {
                self.parts
                    .progress
                    .send_if_modified(|r| std::mem::replace(r, revision.max(*r)) < revision);
                self.settle(revision);
            }
            ended => {
                if let Some(Err(error)) = ended {
                    tracing::warn!(%error, "the watch ended; the records are read again");
                }
                self.changes = None;
                let mut wait_for = Duration::from_millis(100);
                while let Err(error) = self.refill().await {
                    tracing::warn!(%error, "the records cannot be read");
                    wait(Some(wait_for)).await;
                    wait_for = (wait_for * 2).min(Duration::from_secs(10));
                }
            }
        }
    }

    fn apply(&mut self, revision: Revision, changes: &[Change]) {
        let mut wake = Vec::new();
        {
            let mut cache = self
                .parts
                .cache
                .write()
                .unwrap_or_else(std::sync::PoisonError::into_inner);
            for change in changes {
                if let Err(error) = cache.apply(change, revision, &mut wake) {
                    tracing::error!(%error, "a record is left out");
                }
            }
            cache.revision = cache.revision.max(revision);
        }
        for key in wake {
            match &key {
                ObjectKey::Node(node) => {
                    self.dirty_hosts.insert(node.clone());
                    for vm in std::mem::take(&mut self.waiting_for_place) {
                        self.queue.push(ObjectKey::Vm(vm));
                    }
                }
                ObjectKey::Run(node, _) => drop(self.dirty_hosts.insert(node.clone())),
                ObjectKey::Vm(_) if !self.waiting_for_place.is_empty() => {
                    for vm in std::mem::take(&mut self.waiting_for_place) {
                        self.queue.push(ObjectKey::Vm(vm));
                    }
                }
                _ => {}
            }
            self.queue.push(key);
        }
        self.parts.progress.send_replace(revision);
        self.settle(revision);
    }

    /// Frees the objects whose commits the cache has.
    fn settle(&mut self, revision: Revision) {
        while self.settling.first().is_some_and(|(at, _)| *at <= revision) {
            if let Some((_, key)) = self.settling.pop_first() {
                self.queue.release(&key);
            }
        }
    }

    fn take_ended(&mut self, ended: Result<Ended, tokio::task::JoinError>) {
        let now = self.parts.clock.now();
        match ended {
            Ok(Ended::Command(completion)) => self.take_completion(*completion, now),
            Ok(Ended::Commit {
                key,
                booked,
                result,
            }) => {
                if let Some((node, ..)) = booked.and_then(|vm| self.bookings.remove(&vm)) {
                    self.dirty_hosts.insert(node);
                }
                match result {
                    Ok(revision) => {
                        self.queue.succeeded(&key);
                        self.outcomes.remove(&key);
                        let has = *self.parts.progress.borrow();
                        if has >= revision {
                            self.queue.release(&key);
                        } else {
                            self.settling.insert((revision, key));
                        }
                    }
                    // A conflict means that a newer view is on its way.
                    Err(error) => {
                        if error.kind() != ErrorKind::Conflict {
                            tracing::warn!(%error, ?key, "a commit failed");
                        }
                        self.queue.release_later(&key, now);
                    }
                }
            }
            Err(error) if error.is_panic() => tracing::error!(%error, "a task panicked"),
            Err(_) => {}
        }
    }

    fn take_completion(&mut self, completion: Completion, now: Timestamp) {
        let Completion {
            key,
            command,
            result,
            seen,
        } = completion;
        if let Err(error) = &result {
            tracing::debug!(%error, ?key, "a command failed");
        }
        if let Some((node, id)) = domain_of(&command) {
            let run = self.world.runs.entry((node.clone(), id.vm)).or_default();
            let observations = self.world.nodes.get(node).map_or(0, |n| n.observations);
            run.touched = observations;
            // What may still happen shows in a list that begins after this.
            if matches!(&result, Err(error) if error.kind() == ErrorKind::OutcomeUnknown)
                && let Some(host) = self.world.nodes.get_mut(node)
            {
                run.unsettled = Some(observations + 1);
                host.stale = true;
                self.queue.push(ObjectKey::Node(node.clone()));
            }
            if let Some(seen) = seen {
                if let Some(host) = self.world.nodes.get_mut(node) {
                    host.set(id, seen);
                }
            } else if let Some(host) = self.world.nodes.get_mut(node) {
                host.stale = true;
                self.queue.push(ObjectKey::Node(node.clone()));
            }
            match (&result, &command) {
                (Err(error), Command::Start { .. } | Command::Adapt { .. }) => {
                    run.error = Some((
                        id.epoch,
                        error.report(),
                        error.is_retryable() || error.kind() == ErrorKind::OutcomeUnknown,
                    ));
                }
                (Ok(_), Command::Start { assignment, .. } | Command::Adapt { assignment, .. }) => {
                    run.error = None;
                    run.adapted = Some((id.epoch, assignment.generation));
                }
                (Ok(Report::Retired(proof)), Command::Retire { .. }) => {
                    run.retired = Some((id.epoch, proof.clone()));
                }
                (_, Command::Stop { .. }) => run.asked_at = Some(now),
                _ => {}
            }
        }
        let failed = result.is_err();
        match (&command, result) {
            (Command::Observe { node }, result) => self.take_observation(node, result, now),
            (Command::Inventory { pool }, Ok(Report::Inventory(list))) => {
                let ours = list
                    .into_iter()
                    .filter(|a| a.cluster == self.parts.cluster)
                    .map(|a| a.id)
                    .collect();
                self.world.pools.insert(
                    pool.clone(),
                    SeenPool {
                        artefacts: ours,
                        at: now,
                        listed: true,
                    },
                );
            }
            (Command::Delete { pool, id }, Ok(_)) => {
                if let Some(seen) = self.world.pools.get_mut(pool) {
                    seen.artefacts.remove(id);
                }
                self.outcomes.insert(key.clone(), Outcome::Gone);
            }
            (Command::BindPort { .. }, Ok(Report::Bound(binding))) => {
                drop(self.outcomes.insert(key.clone(), Outcome::Bound(binding)));
            }
            (Command::ReleasePort { node, port, epoch }, Ok(_)) => {
                if let Some(seen) = self.world.nodes.get_mut(node) {
                    seen.ports
                        .retain(|held| held.port != *port || held.epoch != *epoch);
                }
                if matches!(key, ObjectKey::Port(_)) {
                    self.outcomes.insert(key.clone(), Outcome::Gone);
                }
            }
            (_, Ok(Report::Sized(size))) => {
                drop(self.outcomes.insert(key.clone(), Outcome::Done(Some(size))));
            }
            (Command::TakeSnapshot { .. } | Command::Act { .. }, Ok(_)) => {
                self.outcomes.insert(key.clone(), Outcome::Done(None));
            }
            (Command::DropSnapshot { .. }, Ok(_)) => {
                drop(self.outcomes.insert(key.clone(), Outcome::Gone));
            }
            (
                Command::Create { .. }
                | Command::Grow { .. }
                | Command::TakeSnapshot { .. }
                | Command::BindPort { .. }
                | Command::Act { .. },
                Err(error),
            ) => {
                let retryable = error.is_retryable()
                    || matches!(
                        error.kind(),
                        ErrorKind::OutcomeUnknown
                            | ErrorKind::DeadlineExceeded
                            | ErrorKind::Internal
                    );
                self.outcomes.insert(
                    key.clone(),
                    Outcome::Failed {
                        reason: error.report(),
                        retryable,
                    },
                );
            }
            _ => {}
        }
        if failed {
            self.queue.release_later(&key, now);
        } else {
            self.queue.succeeded(&key);
            self.queue.release(&key);
        }
    }

    fn take_observation(&mut self, node: &NodeId, result: Result<Report>, now: Timestamp) {
        let seen = self.world.nodes.entry(node.clone()).or_default();
        seen.at = now;
        match result {
            Ok(Report::Observed(host, domains, ports)) => {
                seen.host = Some(host);
                if let Some(ports) = ports {
                    seen.ports = ports
                        .into_iter()
                        .filter(|p| p.cluster == self.parts.cluster)
                        .collect();
                }
                seen.error = None;
                seen.foreign.clear();
                let mut listed = BTreeMap::new();
                for domain in domains {
                    match &domain.owner {
                        DomainOwner::NovaCron(id) if id.cluster == self.parts.cluster => {
                            listed.insert((id.vm, id.epoch), domain);
                        }
                        DomainOwner::NovaCron(id) => drop(
                            seen.foreign
                                .insert(format!("{id} of cluster {}", id.cluster)),
                        ),
                        DomainOwner::Foreign(name) => drop(seen.foreign.insert(name.clone())),
                    }
                }
                // What a command touches at this moment, or has since the list was asked for, it knows better.
                let runs = &mut self.world.runs;
                let busy = |vm: VmId| {
                    let at = (node.clone(), vm);
                    let touched = runs.get(&at).map_or(0, |run| run.touched);
                    touched >= seen.observations
                        || self.queue.is_busy(&ObjectKey::Run(node.clone(), vm))
                };
                let mut keep: BTreeMap<_, _> = std::mem::take(&mut seen.domains)
                    .into_iter()
                    .filter(|((vm, _), _)| busy(*vm))
                    .collect();
                keep.extend(listed.into_iter().filter(|((vm, _), _)| !busy(*vm)));
                seen.domains = keep;
                seen.listed = true;
                let first = (node.clone(), VmId::from_uuid(uuid::Uuid::nil()));
                let of_node = runs.range_mut(first..).take_while(|((n, _), _)| n == node);
                for (_, run) in of_node {
                    run.unsettled = run.unsettled.filter(|at| *at > seen.observations);
                }
            }
            Err(error) => {
                seen.host = None;
                seen.listed = false;
                seen.error = Some(error.report());
            }
            Ok(_) => {}
        }
        let cache = self
            .parts
            .cache
            .read()
            .unwrap_or_else(std::sync::PoisonError::into_inner);
        for (vm, _) in cache.runs_on(node) {
            self.queue.push(ObjectKey::Run(node.clone(), vm));
        }
    }

    /// Looks at every ready object.
    fn turn(&mut self) {
        self.queue.fire(self.parts.clock.now());
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

    fn reconcile(&mut self, key: &ObjectKey) -> Result<Plan> {
        let now = self.parts.clock.now();
        let cache = Arc::clone(&self.parts.cache);
        let cache = cache
            .read()
            .unwrap_or_else(std::sync::PoisonError::into_inner);
        let (cluster, resync) = (self.parts.cluster, self.parts.resync);
        let look = storage::Look {
            cluster,
            cache: &cache,
            world: &self.world,
            outcome: self.outcomes.get(key),
            failures: self.queue.failures(key),
            now,
        };
        match key {
            ObjectKey::Volume(id) => look.volume(*id),
            ObjectKey::Image(id) => look.image(*id),
            ObjectKey::Snapshot(id) => look.snapshot(*id),
            ObjectKey::Pool(id) if self.parts.drivers.pools.contains_key(id) => {
                Ok(look.pool(id, resync))
            }
            ObjectKey::Node(id) if self.parts.drivers.nodes.contains_key(id) => node::reconcile(
                id,
                cluster,
                self.parts.incarnation,
                &cache,
                &self.world,
                resync,
                now,
            ),
            ObjectKey::Pool(_) | ObjectKey::Node(_) => Ok(Plan::nothing()),
            ObjectKey::Run(node, vm) => run::reconcile(
                node,
                *vm,
                cluster,
                &cache,
                &self.world,
                self.queue.failures(key),
                now,
            ),
            ObjectKey::Action(id) => action::reconcile(
                *id,
                cluster,
                &cache,
                self.started_here.contains(id),
                self.outcomes.get(key),
                now,
            ),
            ObjectKey::Port(id) => port::reconcile(
                *id,
                cluster,
                &cache,
                self.outcomes.get(key),
                self.queue.failures(key),
            ),
            ObjectKey::Operation(id) => operation::reconcile(*id, &cache, now),
            ObjectKey::Vm(id) => {
                let mut booked = None;
                let (placer, dirty, bookings) =
                    (&mut self.placer, &mut self.dirty_hosts, &self.bookings);
                let plan = vm::reconcile(*id, &cache, now, &mut |request| {
                    if !dirty.is_empty() {
                        let changes = std::mem::take(dirty)
                            .into_iter()
                            .map(|n| host_of(n, &cache, bookings))
                            .collect();
                        placer.apply(changes, cache.revision);
                    }
                    let decision = placer.decide(request)?;
                    booked = decision
                        .winner
                        .node()
                        .map(|n| (n.clone(), request.vcpus, request.memory));
                    Ok(decision)
                });
                if let Some(booked) = booked {
                    match &plan {
                        Ok(Plan {
                            commit: Some(_), ..
                        }) => drop(self.bookings.insert(*id, booked)),
                        _ => drop(self.dirty_hosts.insert(booked.0)),
                    }
                }
                plan
            }
        }
    }

    fn carry_out(&mut self, key: ObjectKey, plan: Plan) {
        if let Some(at) = plan.wake {
            self.queue.push_at(key.clone(), at);
        }
        if plan.waits_for_place
            && let ObjectKey::Vm(vm) = key
        {
            self.waiting_for_place.insert(vm);
        }
        if let Some(draft) = plan.commit {
            if let ObjectKey::Action(id) = key {
                self.started_here.insert(id);
            }
            self.queue.set_busy(key.clone());
            self.commit(key, draft);
        } else if let Some(command) = plan.command {
            if let ObjectKey::Run(node, vm) = &key
                && let Some(run) = self.world.runs.get_mut(&(node.clone(), *vm))
            {
                run.stale = false;
            }
            if let Command::Observe { node } = &command {
                let seen = self.world.nodes.entry(node.clone()).or_default();
                seen.observations += 1;
                seen.stale = false;
                // Listening begins before the list is read, so that nothing falls between the two.
                if std::mem::take(&mut seen.deaf) {
                    self.listen(node.clone());
                }
            }
            self.queue.set_busy(key.clone());
            let drivers = Arc::clone(&self.parts.drivers);
            self.tasks.spawn(async move {
                Ended::Command(Box::new(execute(drivers, key, command).await))
            });
        }
    }

    fn commit(&mut self, key: ObjectKey, draft: Draft) {
        let now = self.parts.clock.now();
        let booked = match &key {
            ObjectKey::Vm(vm) if self.bookings.contains_key(vm) => Some(*vm),
            _ => None,
        };
        let commit = finish(draft, now, &*self.parts.ids);
        let store = Arc::clone(&self.parts.store);
        self.tasks.spawn(async move {
            let result = match commit {
                Ok(commit) => commit_known(&*store, commit).await,
                Err(error) => Err(error),
            };
            Ended::Commit {
                key,
                booked,
                result,
            }
        });
    }
}

/// A draft as a commit, with its events.
pub(crate) fn finish(draft: Draft, now: Timestamp, ids: &dyn IdSource) -> Result<Commit> {
    let mut commit = Commit::new(TxnId(uuid_v7(now, ids)));
    commit.preconditions = draft.requires;
    commit.ops = draft.ops;
    for (object, reason, message) in draft.events {
        let id = EventId::generate(now, ids);
        let event = Event {
            id,
            at: now,
            object,
            reason: reason.to_owned(),
            message,
        };
        commit.ops.push(records::put(&id, &event)?);
    }
    Ok(commit)
}

/// Commits, and finds out what became of a commit whose answer was lost.
pub(crate) async fn commit_known(store: &dyn Store, commit: Commit) -> Result<Revision> {
    let txn = commit.txn;
    match store.commit(commit).await {
        Err(error) if error.kind() == ErrorKind::OutcomeUnknown => {
            match store.outcome(txn).await? {
                TxnOutcome::Committed(revision) => Ok(revision),
                TxnOutcome::NotCommitted => Err(Error::new(
                    ErrorKind::Unavailable,
                    "store.commit",
                    "the commit was lost and did not happen",
                )
                .caused_by(error)),
            }
        }
        result => result,
    }
}

/// A host as the scheduler sees it: its capabilities, and what the assignments to it add up to.
fn host_of(
    node: NodeId,
    cache: &Cache,
    bookings: &BTreeMap<VmId, (NodeId, u32, MiB)>,
) -> HostChange {
    let (Some(spec), Some(status)) = (cache.nodes.get(&node), cache.node_status.get(&node)) else {
        return HostChange::Removed(node);
    };
    let mut host = Host {
        open: spec.schedulable && status.state == NodeState::Available,
        capabilities: status
            .host
            .as_ref()
            .map(|h| h.capabilities.clone())
            .unwrap_or_default(),
        used_vcpus: 0,
        used_memory: MiB(0),
        node: node.clone(),
    };
    let mut counted = BTreeSet::new();
    for (vm, assignment) in cache.assignments_to(&node) {
        if cache
            .claims
            .get(&vm)
            .is_some_and(|c| c.is_held() && c.epoch == assignment.epoch)
        {
            counted.insert(vm);
            host.used_vcpus += u64::from(assignment.machine.vcpus);
            host.used_memory.0 += assignment.machine.memory.0;
        }
    }
    for (vm, (booked, vcpus, memory)) in bookings {
        if *booked == node && !counted.contains(vm) {
            host.used_vcpus += u64::from(*vcpus);
            host.used_memory.0 += memory.0;
        }
    }
    HostChange::Set(host)
}

/// Waits for the timer, or for ever.
#[expect(clippy::disallowed_methods, reason = "the runtime owns every timer")]
async fn wait(after: Option<Duration>) {
    match after {
        Some(after) => tokio::time::sleep(after).await,
        None => std::future::pending().await,
    }
}
