//! What the leader asks of the records over and over, kept as they change: which VMs lost their host, which are moving,
//! which must not be together.
//!
//! **Whose turn it is.** VMs that lost their host come back in the order of their priority, a bounded number at a time
//! ([`Limits::recoveries_per_node`] for every node that takes VMs), so that the loss of a full host does not become
//! a storm on the others. A VM goes first only while it can be placed: one that finds no place, and one that has not been
//! granted any within [`PATIENCE`], keeps nobody waiting.
//!
//! [`Limits::recoveries_per_node`]: crate::cluster::Limits::recoveries_per_node

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use super::cache::Cache;
use super::evacuate::is_open;
use super::plan::ObjectKey;
use crate::lifecycle::RunPhase;
use crate::model::{Name, NodeId, ObjectRef, Power, VmId};
use crate::time::{Timestamp, lasts};

/// For how long a VM that could be placed goes before those of a lower priority.
const PATIENCE: Duration = Duration::from_secs(30);

/// How much is done at a time where many VMs change their place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// VMs that leave one node at a time when it is evacuated, or return; 2 by default.
    pub moves_per_node: usize,
    /// Starts of VMs whose host was lost that are under way at a time, for every node that takes VMs; 4 by default.
    pub recoveries_per_node: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            moves_per_node: 2,
            recoveries_per_node: 4,
        }
    }
}

/// What is indexed of a VM.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Facts {
    /// It lost its host and is to be started again: its priority.
    lost: Option<i32>,
    /// It is being started again after that.
    recovering: bool,
    /// From where to where it is moving.
    moving: Option<(NodeId, NodeId)>,
    home: Option<NodeId>,
    group: Option<(Name, Name)>,
}

#[derive(Clone, Debug, Default)]
pub(crate) struct Index {
    pub(crate) limits: Limits,
    facts: BTreeMap<VmId, Facts>,
    lost: BTreeSet<(Reverse<i32>, VmId)>,
    recovering: BTreeSet<VmId>,
    moves_from: BTreeSet<(NodeId, VmId)>,
    moves_to: BTreeSet<(NodeId, VmId)>,
    homes: BTreeSet<(NodeId, VmId)>,
    groups: BTreeSet<(Name, Name, VmId)>,
}

fn of_node(set: &BTreeSet<(NodeId, VmId)>, node: &NodeId) -> impl Iterator<Item = VmId> {
    let lowest = VmId::from_uuid(uuid::Uuid::nil());
    set.range((node.clone(), lowest)..)
        .take_while(move |(n, _)| n == node)
        .map(|(_, vm)| *vm)
}

impl Index {
    pub(crate) fn new(limits: Limits) -> Self {
        Self {
            limits,
            ..Self::default()
        }
    }

    /// Whether the VM lost its host and is to be started again.
    pub(crate) fn is_lost(&self, vm: VmId) -> bool {
        self.facts.get(&vm).is_some_and(|f| f.lost.is_some())
    }

    /// The VMs that are leaving the node.
    pub(crate) fn moves_from(&self, node: &NodeId) -> impl Iterator<Item = VmId> {
        of_node(&self.moves_from, node)
    }

    /// The VMs that room is kept for on the node.
    pub(crate) fn moves_to(&self, node: &NodeId) -> impl Iterator<Item = VmId> {
        of_node(&self.moves_to, node)
    }

    /// The VMs that return to the node.
    pub(super) fn homes(&self, node: &NodeId) -> impl Iterator<Item = VmId> {
        of_node(&self.homes, node)
    }

    /// The VMs of an anti-affinity group.
    pub(crate) fn group(&self, project: &Name, group: &Name) -> impl Iterator<Item = VmId> {
        let lowest = VmId::from_uuid(uuid::Uuid::nil());
        self.groups
            .range((project.clone(), group.clone(), lowest)..)
            .take_while(move |(p, g, _)| p == project && g == group)
            .map(|(_, _, vm)| *vm)
    }

    fn replace(&mut self, vm: VmId, new: Facts) -> Facts {
        let old = self.facts.remove(&vm).unwrap_or_default();
        if old != new {
            self.set(vm, &old, false);
            self.set(vm, &new, true);
        }
        if new != Facts::default() {
            self.facts.insert(vm, new);
        }
        old
    }

    fn set(&mut self, vm: VmId, facts: &Facts, there: bool) {
        fn put<T: Ord>(set: &mut BTreeSet<T>, entry: T, there: bool) {
            if there {
                set.insert(entry);
            } else {
                set.remove(&entry);
            }
        }
        if let Some(priority) = facts.lost {
            put(&mut self.lost, (Reverse(priority), vm), there);
        }
        if facts.recovering {
            put(&mut self.recovering, vm, there);
        }
        if let Some((from, to)) = &facts.moving {
            put(&mut self.moves_from, (from.clone(), vm), there);
            put(&mut self.moves_to, (to.clone(), vm), there);
        }
        if let Some(home) = &facts.home {
            put(&mut self.homes, (home.clone(), vm), there);
        }
        if let Some((project, group)) = &facts.group {
            put(
                &mut self.groups,
                (project.clone(), group.clone(), vm),
                there,
            );
        }
    }
}

impl Cache {
    fn facts(&self, id: VmId) -> Facts {
        let Some(vm) = self.vms.get(&id) else {
            return Facts::default();
        };
        let group = vm.anti_affinity.clone();
        let mut facts = Facts {
            group: group.map(|group| (vm.meta.project.clone(), group)),
            ..Facts::default()
        };
        let Some(claim) = self.claims.get(&id) else {
            return facts;
        };
        facts.home.clone_from(&claim.home);
        let wanted = vm.power.state != Power::Off && vm.meta.deleted_at.is_none();
        let Some(node) = claim.place.node().filter(|_| wanted) else {
            return facts;
        };
        facts.moving = claim.moving_to.clone().map(|to| (node.clone(), to));
        let run = self.runs.get(&(node.clone(), id));
        let lost = match &claim.released {
            Some(proof) => proof.is_host_lost(),
            None => {
                let fenced = self
                    .node_owners
                    .get(node)
                    .is_some_and(|o| o.fenced.is_some());
                fenced && run.is_some_and(|r| r.phase.may_run())
            }
        };
        facts.lost = lost.then_some(vm.priority);
        facts.recovering = claim.is_held()
            && claim.recovery
            && run.is_some_and(|r| matches!(r.phase, RunPhase::Assigned | RunPhase::Starting));
        facts
    }

    /// Takes in that one of the VM's records, or its node's, changed.
    pub(super) fn reindex(&mut self, id: VmId, wake: &mut Vec<ObjectKey>) {
        let new = self.facts(id);
        let old = self.index.replace(id, new.clone());
        if old == new {
            return;
        }
        if (&old.lost, old.recovering) != (&new.lost, new.recovering) {
            // Whoever is next in turn; one of those will be.
            let next = self.index.lost.iter().take(2 * self.slots() + 1);
            wake.extend(next.map(|(_, vm)| ObjectKey::Vm(*vm)));
        }
        if old.moving != new.moving {
            for (from, to) in old.moving.iter().chain(&new.moving) {
                wake.push(ObjectKey::Node(to.clone()));
                wake.extend(self.runs_on(from).map(|(vm, _)| ObjectKey::Vm(vm)));
            }
        }
    }

    /// What is decided differently when a node takes VMs, or is to be empty, or no longer.
    pub(super) fn wake_placed(&self, node: &NodeId, wake: &mut Vec<ObjectKey>) {
        for (vm, _) in self.runs_on(node) {
            wake.push(ObjectKey::Vm(vm));
            wake.push(ObjectKey::Run(node.clone(), vm));
        }
        wake.extend(self.index.homes(node).map(ObjectKey::Vm));
        let moving = self.index.moves_to(node);
        wake.extend(moving.map(ObjectKey::Vm));
        self.wake_operations(&ObjectRef::Node(node.clone()), wake);
    }

    /// How many VMs may be on their way back at a time.
    fn slots(&self) -> usize {
        let open = self.nodes.keys().filter(|n| is_open(n, self)).count();
        self.index.limits.recoveries_per_node.max(1) * open.max(1)
    }

    /// Why a VM that lost its host waits for others; none if it is its turn. `granted` have been, and are not in the cache.
    pub(crate) fn before(&self, id: VmId, granted: usize, now: Timestamp) -> Option<String> {
        let index = &self.index;
        let priority = index.facts.get(&id)?.lost?;
        let first = index
            .lost
            .iter()
            .take_while(|(Reverse(other), _)| *other > priority);
        for (_, vm) in first {
            let since = self.run_of(*vm).map(|r| r.since).unwrap_or_default();
            if !self.no_place.contains_key(vm) && lasts(since, PATIENCE, now).is_some() {
                let name = self.vms.get(vm).map(|vm| vm.meta.name.to_string());
                return Some(format!(
                    "{} has a higher priority and goes first",
                    name.unwrap_or_default()
                ));
            }
        }
        let (under_way, slots) = (index.recovering.len() + granted, self.slots());
        (under_way >= slots).then(|| {
            format!("{under_way} VMs that lost their host are being started, and {slots} may be")
        })
    }
}
