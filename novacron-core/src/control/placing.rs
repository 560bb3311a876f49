//! Placing: the scheduler's view of the hosts, and the places that decisions booked in it.
//!
//! The view follows the cache: a host that changed is computed anew before the next decision, not at every change. A
//! decision books its place at once, and the booking counts until the cache has its commit, so that decisions made in
//! between do not take the same room. A VM that found no place waits here until some host has more room than before.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::cache::Cache;
use super::evacuate;
use super::panics::caught_now;
use crate::driver::{Host, HostChange, PlacementRequest, Placer, Rejected, Scheduler};
use crate::model::{Assignment, Decision, MiB, NodeId, VmId};
use crate::store::Revision;

/// Room on a node that was decided on and is not yet in the cache.
#[derive(Debug)]
struct Booking {
    node: NodeId,
    vcpus: u32,
    memory: MiB,
}

#[derive(Debug)]
pub(crate) struct Placing {
    scheduler: Arc<dyn Scheduler>,
    /// None after it panicked: a new one is opened for the next decision.
    placer: Option<Box<dyn Placer>>,
    /// The hosts as the placer has them.
    hosts: BTreeMap<NodeId, Host>,
    /// Hosts that the placer must be told of again.
    changed: BTreeSet<NodeId>,
    /// Whether a host has had more room since the waiting were last tried.
    room: bool,
    bookings: BTreeMap<VmId, Booking>,
    booked_on: BTreeSet<(NodeId, VmId)>,
    /// Those of VMs that lost their host.
    recoveries: BTreeSet<VmId>,
    waiting: BTreeSet<VmId>,
}

impl Placing {
    pub(crate) fn new(scheduler: Arc<dyn Scheduler>) -> Self {
        Self {
            placer: Some(scheduler.open(Vec::new(), Revision::default())),
            scheduler,
            hosts: BTreeMap::new(),
            changed: BTreeSet::new(),
            room: false,
            bookings: BTreeMap::new(),
            booked_on: BTreeSet::new(),
            recoveries: BTreeSet::new(),
            waiting: BTreeSet::new(),
        }
    }

    /// What the view says of these hosts is old.
    pub(crate) fn changed(&mut self, nodes: impl IntoIterator<Item = NodeId>) {
        self.changed.extend(nodes);
    }

    /// What the view says of any host may be old.
    pub(crate) fn all_changed(&mut self, cache: &Cache) {
        self.changed
            .extend(self.hosts.keys().chain(cache.nodes.keys()).cloned());
    }

    /// Decides, and books the place.
    pub(crate) fn decide(
        &mut self,
        vm: VmId,
        request: &PlacementRequest,
        cache: &Cache,
    ) -> Result<Decision, Rejected> {
        self.refresh(cache);
        self.take_reserved(vm, cache);
        let open = || {
            let hosts = self.hosts.values().cloned().collect();
            self.scheduler.open(hosts, cache.revision)
        };
        let request = &self.apart(vm, request, cache);
        let placer = &mut self.placer;
        let decided = caught_now(|| placer.get_or_insert_with(open).decide(request));
        let decision = decided.unwrap_or_else(|why| {
            self.placer = None;
            tracing::error!(%vm, why, "the scheduler panicked");
            let rule = format!("were not decided on: the scheduler panicked: {why}");
            let hosts = u32::try_from(self.hosts.len()).unwrap_or(u32::MAX);
            Err(Rejected {
                rejections: BTreeMap::from([(rule, hosts)]),
            })
        })?;
        if let Some(node) = decision.winner.node() {
            if let Some(host) = self.hosts.get_mut(node) {
                host.used_vcpus += u64::from(request.vcpus);
                host.used_memory.0 += request.memory.0;
            }
            self.booked_on.insert((node.clone(), vm));
            if cache.index.is_lost(vm) {
                self.recoveries.insert(vm);
            }
            let booking = Booking {
                node: node.clone(),
                vcpus: request.vcpus,
                memory: request.memory,
            };
            self.bookings.insert(vm, booking);
        }
        Ok(decision)
    }

    /// The request, kept apart also from those of its group that were decided on a moment ago.
    fn apart(&self, vm: VmId, request: &PlacementRequest, cache: &Cache) -> PlacementRequest {
        let mut request = request.clone();
        if let Some(spec) = cache.vms.get(&vm)
            && let Some(group) = &spec.anti_affinity
        {
            let others = cache.index.group(&spec.meta.project, group);
            let booked = others
                .filter(|other| *other != vm)
                .filter_map(|other| Some(self.bookings.get(&other)?.node.clone()));
            request.avoid.extend(booked);
        }
        request
    }

    /// The room that is kept for a VM that is being moved is its own to take.
    fn take_reserved(&mut self, vm: VmId, cache: &Cache) {
        let claim = cache.claims.get(&vm);
        let Some(to) = claim.and_then(|c| c.moving_to.as_ref()) else {
            return;
        };
        if let Some(host) = host_of(to, cache, Some(vm)) {
            self.tell(vec![HostChange::Set(self.booked(host, cache))], cache);
            self.changed.insert(to.clone());
        }
    }

    /// How many VMs that lost their host were decided on and are not in the cache.
    pub(crate) fn recoveries(&self) -> usize {
        self.recoveries.len()
    }

    /// Ends the VM's booking, if there is one: it came to nothing, or the cache has what it became.
    pub(crate) fn give_back(&mut self, vm: VmId) {
        if let Some(booking) = self.bookings.remove(&vm) {
            self.booked_on.remove(&(booking.node.clone(), vm));
            self.recoveries.remove(&vm);
            self.changed.insert(booking.node);
        }
    }

    /// The VM found no place.
    pub(crate) fn wait(&mut self, vm: VmId) {
        self.waiting.insert(vm);
    }

    /// What may have been missing is no host's to have: the waiting are to be tried again.
    pub(crate) fn reconsider(&mut self) {
        self.room = true;
    }

    /// The VMs to try again: all that wait, if there is room that was not there before.
    pub(crate) fn retry(&mut self, cache: &Cache) -> BTreeSet<VmId> {
        if self.waiting.is_empty() {
            return BTreeSet::new();
        }
        self.refresh(cache);
        if std::mem::take(&mut self.room) {
            std::mem::take(&mut self.waiting)
        } else {
            BTreeSet::new()
        }
    }

    /// Tells the placer of the hosts that changed.
    fn refresh(&mut self, cache: &Cache) {
        if self.changed.is_empty() {
            return;
        }
        let mut changes = Vec::new();
        for node in std::mem::take(&mut self.changed) {
            let change = self.host(node, cache);
            match &change {
                HostChange::Removed(node) => drop(self.hosts.remove(node)),
                HostChange::Set(host) => {
                    let before = self.hosts.insert(host.node.clone(), host.clone());
                    self.room |= host.open && before.is_none_or(|before| has_more(host, &before));
                }
            }
            changes.push(change);
        }
        self.tell(changes, cache);
    }

    fn tell(&mut self, changes: Vec<HostChange>, cache: &Cache) {
        if let Some(placer) = &mut self.placer
            && let Err(why) = caught_now(|| placer.apply(changes, cache.revision))
        {
            self.placer = None;
            tracing::error!(why, "the scheduler panicked over a change of the hosts");
        }
    }

    /// A host as the scheduler sees it, with the bookings on it.
    fn host(&self, node: NodeId, cache: &Cache) -> HostChange {
        match host_of(&node, cache, None) {
            Some(host) => HostChange::Set(self.booked(host, cache)),
            None => HostChange::Removed(node),
        }
    }

    /// The host with what was decided on and is not in the cache.
    fn booked(&self, mut host: Host, cache: &Cache) -> Host {
        let node = host.node.clone();
        let lowest = VmId::from_uuid(uuid::Uuid::nil());
        let booked = self.booked_on.range((node.clone(), lowest)..);
        for (_, vm) in booked.take_while(|(n, _)| *n == node) {
            let assigned = cache.assignments.get(&(node.clone(), *vm));
            let moving = cache.claims.get(vm).and_then(|c| c.moving_to.as_ref());
            if moving == Some(&node) || assigned.is_some_and(|a| counts(*vm, a, cache)) {
                continue;
            }
            if let Some(booking) = self.bookings.get(vm) {
                host.used_vcpus += u64::from(booking.vcpus);
                host.used_memory.0 += booking.memory.0;
            }
        }
        host
    }
}

/// Whether the assignment takes room on its node.
fn counts(vm: VmId, assignment: &Assignment, cache: &Cache) -> bool {
    let claim = cache.claims.get(&vm);
    claim.is_some_and(|c| c.is_held() && c.epoch == assignment.epoch)
}

/// A host by the records: its capabilities, and what the assignments to it and the moves to it, but those of `without`, add up to. None for
/// one that has not answered yet.
pub(crate) fn host_of(node: &NodeId, cache: &Cache, without: Option<VmId>) -> Option<Host> {
    cache.nodes.get(node)?;
    let status = cache.node_status.get(node)?;
    let capabilities = status.host.as_ref().map(|h| h.capabilities.clone());
    let mut host = Host {
        open: evacuate::is_open(node, cache),
        capabilities: capabilities.unwrap_or_default(),
        used_vcpus: 0,
        used_memory: MiB(0),
        node: node.clone(),
    };
    for (vm, assignment) in cache.assignments_to(node) {
        if Some(vm) != without && counts(vm, assignment, cache) {
            host.used_vcpus += u64::from(assignment.machine.hardware.vcpus);
            host.used_memory.0 += assignment.machine.hardware.memory.0;
        }
    }
    for vm in cache.index.moves_to(node).filter(|vm| Some(*vm) != without) {
        if let Some(vm) = cache.vms.get(&vm) {
            host.used_vcpus += u64::from(vm.machine.hardware.vcpus);
            host.used_memory.0 += vm.machine.hardware.memory.0;
        }
    }
    Some(host)
}

/// Whether something may fit on the host now that did not before.
fn has_more(host: &Host, before: &Host) -> bool {
    !before.open
        || host.used_vcpus < before.used_vcpus
        || host.used_memory < before.used_memory
        || host.capabilities != before.capabilities
}
