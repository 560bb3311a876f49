//! Placing: the scheduler's view of the hosts, and the places that decisions booked in it.
//!
//! The view follows the cache: a host that changed is computed anew before the next decision, not at every change. A
//! decision books its place at once, and the booking counts until the cache has its commit, so that decisions made in
//! between do not take the same room. A VM that found no place waits here until some host has more room than before.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::cache::Cache;
use super::panics::caught_now;
use super::part::{self, Part};
use crate::driver::{Host, HostChange, PlacementRequest, Placer, Rejected, Scheduler};
use crate::model::{Assignment, Decision, MiB, NodeId, NodeState, VmId};
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
        let open = || {
            let hosts = self.hosts.values().cloned().collect();
            self.scheduler.open(hosts, cache.revision)
        };
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
            let booking = Booking {
                node: node.clone(),
                vcpus: request.vcpus,
                memory: request.memory,
            };
            self.bookings.insert(vm, booking);
        }
        Ok(decision)
    }

    /// Ends the VM's booking, if there is one: it came to nothing, or the cache has what it became.
    pub(crate) fn give_back(&mut self, vm: VmId) {
        if let Some(booking) = self.bookings.remove(&vm) {
            self.booked_on.remove(&(booking.node.clone(), vm));
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
        if let Some(placer) = &mut self.placer
            && let Err(why) = caught_now(|| placer.apply(changes, cache.revision))
        {
            self.placer = None;
            tracing::error!(why, "the scheduler panicked over a change of the hosts");
        }
    }

    /// A host as the scheduler sees it, with the bookings on it.
    fn host(&self, node: NodeId, cache: &Cache) -> HostChange {
        let Some(mut host) = host_of(&node, cache, None) else {
            return HostChange::Removed(node);
        };
        let lowest = VmId::from_uuid(uuid::Uuid::nil());
        let booked = self.booked_on.range((node.clone(), lowest)..);
        for (_, vm) in booked.take_while(|(n, _)| *n == node) {
            let assigned = cache.assignments.get(&(node.clone(), *vm));
            if assigned.is_some_and(|a| counts(*vm, a, cache)) {
                continue;
            }
            if let Some(booking) = self.bookings.get(vm) {
                host.used_vcpus += u64::from(booking.vcpus);
                host.used_memory.0 += booking.memory.0;
            }
        }
        HostChange::Set(host)
    }
}

/// Whether the assignment takes room on its node.
fn counts(vm: VmId, assignment: &Assignment, cache: &Cache) -> bool {
    let claim = cache.claims.get(&vm);
    claim.is_some_and(|c| c.is_held() && c.epoch == assignment.epoch)
}

/// A host by the records: its capabilities, and what the assignments to it, but that of `without`, add up to. None for
/// one that has not answered yet.
pub(crate) fn host_of(node: &NodeId, cache: &Cache, without: Option<VmId>) -> Option<Host> {
    let (spec, status) = (cache.nodes.get(node)?, cache.node_status.get(node)?);
    let capabilities = status.host.as_ref().map(|h| h.capabilities.clone());
    let mut host = Host {
        open: spec.schedulable
            && status.state == NodeState::Available
            && part::owner(&Part::Node(node.clone()), cache) == Some(status.member),
        capabilities: capabilities.unwrap_or_default(),
        used_vcpus: 0,
        used_memory: MiB(0),
        node: node.clone(),
    };
    for (vm, assignment) in cache.assignments_to(node) {
        if Some(vm) != without && counts(vm, assignment, cache) {
            host.used_vcpus += u64::from(assignment.machine.vcpus);
            host.used_memory.0 += assignment.machine.memory.0;
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
