//! A node: observe the host, report what it is, sweep what is proved to be over.
//!
//! A domain of ours that no run names is removed only when its end is on record: a claim of a later epoch, a released
//! claim of the same one, or the grave of its VM. Any other is reported in the node's status and never touched: it may
//! be all that is left after the records were restored from an old copy.

use std::collections::BTreeMap;
use std::time::Duration;

use super::cache::Cache;
use super::plan::{Command, Draft, Plan};
use super::world::World;
use crate::driver::DomainId;
use crate::error::Result;
use crate::model::{ClusterId, Epoch, NodeId, NodeState, NodeStatus, ObjectRef, VmId};
use crate::time::Timestamp;

/// How long after a look at a node whose event stream ended it is looked at again, and listened to anew: a driver whose
/// streams end as soon as they begin must not keep the loop busy.
const RELISTEN: Duration = Duration::from_millis(200);

/// Whether the records prove that this epoch of the VM is over.
fn is_over(vm: VmId, epoch: Epoch, cache: &Cache) -> bool {
    match (cache.claims.get(&vm), cache.graves.get(&format!("vm/{vm}"))) {
        (Some(claim), _) => claim.epoch > epoch || (claim.epoch == epoch && !claim.is_held()),
        (None, Some(grave)) => grave.epoch.is_some_and(|last| last >= epoch),
        (None, None) => false,
    }
}

/// A node that no process owns: it was built without it. Nobody looks at its guests, and nothing is placed there.
pub(crate) fn unowned(node: &NodeId, cache: &Cache, now: Timestamp) -> Result<Plan> {
    let Some(before) = cache.node_status.get(node) else {
        return Ok(Plan::nothing());
    };
    if before.state == NodeState::Unreachable {
        return Ok(Plan::nothing());
    }
    let message = "the cluster was built without this node".to_owned();
    let next = NodeStatus {
        state: NodeState::Unreachable,
        message: message.clone(),
        since: now,
        ..before.value.clone()
    };
    let draft = Draft::new()
        .unchanged::<NodeStatus>(node, Some(before.version))
        .put(node, &next)?;
    let object = ObjectRef::Node(node.clone());
    Ok(Plan::commit(draft.event(
        object,
        None,
        "unreachable",
        message,
    )))
}

pub(crate) fn reconcile(
    node: &NodeId,
    cluster: ClusterId,
    incarnation: u64,
    cache: &Cache,
    world: &World,
    every: Duration,
    now: Timestamp,
) -> Result<Plan> {
    let observe = || Plan::command(Command::Observe { node: node.clone() });
    let Some(seen) = world.nodes.get(node) else {
        return Ok(observe());
    };
    if seen.stale || seen.at == Timestamp::default() {
        return Ok(observe());
    }
    let relisten = seen.at.plus(RELISTEN);
    // One that does not answer is deaf for as long: that it does not is written first, and it is asked again below.
    if seen.deaf && seen.host.is_some() && now >= relisten {
        return Ok(observe());
    }
    // A node that does not answer is asked more often.
    let every = if seen.host.is_some() {
        every
    } else {
        every.min(Duration::from_secs(2))
    };
    // What is due to be observed is looked at afterwards.
    if now.since(seen.at) >= every {
        return Ok(observe());
    }
    let mut unknown: Vec<String> = seen.foreign.iter().cloned().collect();
    // By going along the node's runs: a search for each is most of the cost where there are many.
    let runs: BTreeMap<VmId, _> = cache.runs_on(node).collect();
    for (vm, epoch) in seen.domains.keys() {
        if runs
            .get(vm)
            .is_some_and(|run| run.epoch == *epoch && run.proof.is_none())
        {
            continue;
        }
        if is_over(*vm, *epoch, cache) {
            let id = DomainId {
                cluster,
                vm: *vm,
                epoch: *epoch,
            };
            return Ok(Plan::command(Command::Sweep {
                node: node.clone(),
                id,
            }));
        }
        // A run whose proof is written but whose claim is not yet released is on its way.
        if !cache.claims.contains_key(vm) {
            unknown.push(format!("{vm} (epoch {epoch})"));
        }
    }
    for held in &seen.ports {
        let named = cache
            .port_status
            .get(&held.port)
            .is_some_and(|status| status.node == *node && status.epoch == held.epoch);
        if !named && is_over(held.vm, held.epoch, cache) {
            return Ok(Plan::command(Command::ReleasePort {
                node: node.clone(),
                port: held.port,
                epoch: held.epoch,
            }));
        }
    }
    let before = cache.node_status.get(node);
    let state = if seen.host.is_some() {
        NodeState::Available
    } else {
        NodeState::Unreachable
    };
    let next = NodeStatus {
        state,
        message: seen.error.clone().unwrap_or_default(),
        host: seen
            .host
            .clone()
            .or_else(|| before.and_then(|b| b.host.clone())),
        incarnation,
        unknown_domains: unknown,
        since: before.filter(|b| b.state == state).map_or(now, |b| b.since),
    };
    if before.is_none_or(|b| b.value != next) {
        let mut draft = Draft::new()
            .unchanged::<NodeStatus>(node, before.map(|b| b.version))
            .put(node, &next)?;
        if before.is_none_or(|b| b.state != state) {
            let reason = if state == NodeState::Available {
                "available"
            } else {
                "unreachable"
            };
            draft = draft.event(
                ObjectRef::Node(node.clone()),
                None,
                reason,
                next.message.clone(),
            );
        }
        return Ok(Plan::commit(draft));
    }
    Ok(Plan::wake_at(seen.at.plus(every)))
}
