//! Moving a VM off its node, or back to it: the leader's part.
//!
//! ```text
//!   held ── its node is to be empty, or its home is back ──► place found ──► RESERVE  claim.moving_to, room kept there
//!     ▲                                                            │ none: it stays, and says why
//!     └── no longer wanted, and its stop has not begun ────────────┤
//!                                                                  ▼
//!   (assignment: off) ──► owner stops it ──► released with its proof ──► granted there, with a new epoch
//! ```
//! A move is cold: the guest is asked to power off and boots at the other place. So a guest that is held in memory, and
//! one that is pinned to the node, stay, and whoever waits for the node to be empty is told. Nothing is stopped before
//! there is room for it elsewhere. At most [`Limits::moves_per_node`] leave a node at a time.
//!
//! [`Limits::moves_per_node`]: crate::cluster::Limits::moves_per_node

use std::collections::BTreeSet;

use super::cache::Cache;
use super::part::{self, Part};
use super::plan::{Draft, Plan};
use super::vm::{Place, placement_request};
use crate::driver::PlacementRequest;
use crate::error::Result;
use crate::lifecycle::RunPhase;
use crate::model::{
    Assignment, Claim, Node, NodeId, NodeState, ObjectRef, Power, Returning, Run, Versioned, Vm,
};

/// Whether a node takes VMs: schedulable, and answering its living owner.
pub(crate) fn is_open(id: &NodeId, cache: &Cache) -> bool {
    let schedulable = cache.nodes.get(id).is_some_and(|n| n.schedulable);
    let status = cache.node_status.get(id);
    schedulable
        && status.is_some_and(|s| {
            s.state == NodeState::Available
                && part::owner(&Part::Node(id.clone()), cache) == Some(s.member)
        })
}

fn is_left(node: &NodeId, cache: &Cache) -> bool {
    let node: Option<&Versioned<Node>> = cache.nodes.get(node);
    node.is_some_and(|n| n.evacuation.is_some())
}

/// Where the VM may go from its node: none if it need not, the only node if it goes home.
fn wanted(vm: &Vm, node: &NodeId, claim: &Claim, cache: &Cache) -> Option<Option<NodeId>> {
    if is_left(node, cache) {
        return Some(None);
    }
    let home = claim.home.as_ref().filter(|home| *home != node)?;
    // It may be asked for another node by now, where no room would be kept.
    if vm.node.as_ref().is_some_and(|only| only != home) {
        return None;
    }
    is_open(home, cache).then(|| Some(home.clone()))
}

/// Why the VM cannot leave its node as it is now.
pub(crate) fn obstacle(vm: &Vm, node: &NodeId, run: &Run) -> Option<&'static str> {
    if vm.node.as_ref() == Some(node) {
        return Some("it may be on no other node");
    }
    match (vm.power.state, run.phase) {
        (_, RunPhase::Unknown) => Some("what it does is not known"),
        (Power::Paused, _) => Some("it is held in memory, which a stop would lose"),
        _ => None,
    }
}

/// The next step of a move that the held claim is in, or should begin; none if there is none.
pub(crate) fn step(
    vm: &Versioned<Vm>,
    claim: &Versioned<Claim>,
    run: &Versioned<Run>,
    assignment: &Assignment,
    cache: &Cache,
    place: Place<'_>,
) -> Result<Option<Plan>> {
    let on = vm.power.state != Power::Off && vm.meta.deleted_at.is_none();
    let goal = wanted(vm, &run.node, claim, cache).filter(|_| on);
    let stays = matches!(
        run.phase,
        RunPhase::Assigned | RunPhase::Starting | RunPhase::Running | RunPhase::Paused
    );
    let change = |next: Claim, message: String| -> Result<Option<Plan>> {
        let draft = Draft::new()
            .unchanged::<Vm>(&vm.id, Some(vm.version))
            .unchanged::<Claim>(&vm.id, Some(claim.version))
            .unchanged::<Run>(&(run.node.clone(), vm.id), Some(run.version))
            .put(&vm.id, &next)?;
        let project = Some(&vm.meta.project);
        let draft = draft.event(ObjectRef::Vm(vm.id), project, "moving", message);
        Ok(Some(Plan::commit(draft)))
    };
    if let Some(to) = &claim.moving_to {
        if !stays || goal.is_some() && is_open(to, cache) {
            return Ok(None);
        }
        let next = Claim {
            moving_to: None,
            ..claim.value.clone()
        };
        return change(next, format!("does not move to {to} after all"));
    }
    let Some(only) = goal.filter(|_| stays && obstacle(vm, &run.node, run).is_none()) else {
        return Ok(None);
    };
    if cache.index.moves_from(&run.node).count() >= cache.index.limits.moves_per_node {
        return Ok(None);
    }
    let request = PlacementRequest {
        only: only.or_else(|| vm.node.clone()),
        prefer: None,
        recovery: true,
        ..placement_request(vm, assignment, None, cache)
    };
    let decision = match place(&request) {
        Ok(decision) => decision,
        Err(rejected) => {
            return Ok(Some(Plan {
                no_place: Some(rejected),
                ..Plan::nothing()
            }));
        }
    };
    let Some(to) = decision.winner.node().filter(|to| **to != run.node) else {
        return Ok(None);
    };
    let next = Claim {
        moving_to: Some(to.clone()),
        ..claim.value.clone()
    };
    change(next, format!("leaves {} for {to}", run.node))
}

/// The node that a VM which is granted a place on `node` returns to one day.
pub(crate) fn home(before: Option<&Claim>, node: &NodeId, cache: &Cache) -> Option<NodeId> {
    let before = before?;
    let returns = |from: &&NodeId| {
        let from = cache.nodes.get(*from);
        from.and_then(|n| n.evacuation)
            .is_some_and(|e| e.returning == Returning::Return)
    };
    let left = before.place.node().filter(returns).cloned();
    // The first one left is home, however far it went since.
    let home = before.home.clone().or(left);
    home.filter(|home| home != node)
}

/// The nodes that other VMs of the VM's anti-affinity group have, or are moving to.
pub(crate) fn apart(vm: &Vm, cache: &Cache) -> BTreeSet<NodeId> {
    let Some(group) = &vm.anti_affinity else {
        return BTreeSet::new();
    };
    let others = cache.index.group(&vm.meta.project, group);
    let claims = others
        .filter(|other| *other != vm.id)
        .filter_map(|other| cache.claims.get(&other));
    claims
        .flat_map(|claim| {
            let place = claim.place.node().filter(|_| claim.is_held());
            place.into_iter().chain(&claim.moving_to)
        })
        .cloned()
        .collect()
}

/// What still runs on a node that is to be empty, for people; none if it is empty.
pub(crate) fn remaining(node: &NodeId, cache: &Cache) -> Option<String> {
    const TOLD: usize = 5;
    let mut told = Vec::new();
    let mut count = 0;
    for (id, run) in cache.runs_on(node) {
        let claim = cache.claims.get(&id);
        let Some(claim) = claim.filter(|c| c.is_held() && c.place.node() == Some(node)) else {
            continue;
        };
        count += 1;
        let Some(vm) = cache.vms.get(&id).filter(|_| told.len() < TOLD) else {
            continue;
        };
        let why = match (&claim.moving_to, obstacle(vm, node, run)) {
            (Some(to), _) => format!("is moving to {to}"),
            (None, Some(why)) => format!("stays: {why}"),
            (None, None) => match cache.why_no_place(id) {
                Some(rejected) => format!("stays: {rejected}"),
                None => format!("is {}, and waits for its turn", run.phase),
            },
        };
        told.push(format!("{} {why}", vm.meta.name));
    }
    let more = count - told.len();
    let more = if more > 0 {
        format!("; {more} more")
    } else {
        String::new()
    };
    (count > 0).then(|| format!("{count} VM(s) left: {}{more}", told.join("; ")))
}
