//! A node: observe the host, report what it is, sweep what is proved to be over.
//!
//! A domain of ours that no run names is removed only when its end is on record: a claim of a later epoch, a released
//! claim of the same one, or the grave of its VM. Any other is reported in the node's status and never touched: it may
//! be all that is left after the records were restored from an old copy.
//!
//! A host that is to end itself when its owner is lost has its watchdog armed first, and nothing is begun on it before that is
//! recorded ([`super::watchdog`]).
//!
//! A host that was out of sight is swept before it is reported: its copies of what runs elsewhere by now go first. After that
//! status and observations come first, and their rhythm does not depend on what fails; a stray that cannot be swept is left
//! alone for a while, so that it keeps neither the others nor the look at the host.

use std::collections::BTreeMap;
use std::time::Duration;

use super::cache::Cache;
use super::plan::{Command, Draft, Plan};
use super::world::{Leftover, SeenNode, World};
use crate::driver::DomainId;
use crate::error::Result;
use crate::model::{
    ClusterId, Epoch, MemberId, MemberState, NodeId, NodeState, NodeStatus, ObjectRef, Unexplained,
    VmId,
};
use crate::time::{Timestamp, lasts};

/// How often a host or a pool that does not answer is asked.
pub(super) const ASK_AGAIN: Duration = Duration::from_secs(2);
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

/// What became of the node's owner, if it has no living one, and since when.
pub(super) fn ownerless(node: &NodeId, cache: &Cache) -> (String, Timestamp) {
    let owner = cache.node_owners.get(node).map(|owner| owner.member);
    let member = owner.and_then(|member| cache.members.get(&member));
    match member.map(|m| (&m.state, &m.name)) {
        Some((MemberState::Left { at }, name)) => {
            (format!("its process ({name}) was shut down"), *at)
        }
        Some((MemberState::Lost { at }, name)) => (format!("its process ({name}) is lost"), *at),
        _ => ("no process looks after it".to_owned(), Timestamp::default()),
    }
}

/// A node that no living process owns. Nobody looks at its guests, and nothing is placed there; after a while, in which
/// another process may take it, that is said.
pub(crate) fn unowned(
    node: &NodeId,
    cache: &Cache,
    grace: Duration,
    now: Timestamp,
) -> Result<Plan> {
    let Some(before) = cache.node_status.get(node) else {
        return Ok(Plan::nothing());
    };
    if before.state == NodeState::Unreachable {
        return Ok(Plan::nothing());
    }
    let (message, since) = ownerless(node, cache);
    if let Some(end) = lasts(since, grace, now) {
        return Ok(Plan::wake_at(end));
    }
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
    member: MemberId,
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
    let soon = match (&seen.host, seen.deaf) {
        (None, _) => every.min(ASK_AGAIN),
        (Some(_), true) => every.min(RELISTEN),
        (Some(_), false) => every,
    };
    // What is due to be observed is looked at afterwards.
    if now.since(seen.at) >= soon {
        return Ok(observe());
    }
    if world.self_fencing.contains(node) && seen.host.is_some() && seen.watchdog.is_none() {
        return Ok(Plan::command(Command::ArmWatchdog { node: node.clone() }));
    }
    let (unknown, sweep) = strays(node, cluster, seen, cache, every, now);
    let sweep = sweep.filter(|_| seen.host.is_some());
    let is_known = cache
        .node_status
        .get(node)
        .is_some_and(|s| s.member == member && s.state == NodeState::Available);
    if let Some(sweep) = sweep.clone().filter(|_| !is_known) {
        return Ok(Plan::command(sweep));
    }
    if let Some(draft) = report(node, member, seen, unknown, cache, now)? {
        return Ok(Plan::commit(draft));
    }
    Ok(match sweep {
        Some(sweep) => Plan::command(sweep),
        None => Plan::wake_at(seen.at.plus(soon)),
    })
}

/// What no record explains, and the next thing to sweep.
fn strays(
    node: &NodeId,
    cluster: ClusterId,
    seen: &SeenNode,
    cache: &Cache,
    every: Duration,
    now: Timestamp,
) -> (Unexplained, Option<Command>) {
    let mut unknown: Vec<String> = seen.foreign.iter().cloned().collect();
    let mut sweep = None;
    // By going along the node's runs: a search for each is most of the cost where there are many.
    let runs: BTreeMap<VmId, _> = cache.runs_on(node).collect();
    for &(vm, epoch) in seen.domains.keys() {
        let run = runs.get(&vm);
        if run.is_some_and(|run| run.epoch == epoch && run.proof.is_none()) {
            continue;
        }
        if is_over(vm, epoch, cache) {
            let what = Leftover::Domain(vm, epoch);
            if sweep.is_none() && seen.tried.may(&what, every, now) {
                let id = DomainId { cluster, vm, epoch };
                let node = node.clone();
                sweep = Some(Command::Sweep { node, id });
            }
        } else if !cache.claims.contains_key(&vm) {
            // With a claim, it is a run whose proof is written and whose claim is about to be released.
            unknown.push(format!("{vm} (epoch {epoch})"));
        }
    }
    for held in &seen.ports {
        if sweep.is_some() {
            break;
        }
        let named = cache
            .port_status
            .get(&held.port)
            .is_some_and(|status| status.node == *node && status.epoch == held.epoch);
        let what = Leftover::Port(held.port, held.epoch);
        if !named && is_over(held.vm, held.epoch, cache) && seen.tried.may(&what, every, now) {
            sweep = Some(Command::ReleasePort {
                node: node.clone(),
                port: held.port,
                epoch: held.epoch,
            });
        }
    }
    (unknown.into_iter().collect(), sweep)
}

/// The node's status, if it is another one than before.
fn report(
    node: &NodeId,
    member: MemberId,
    seen: &SeenNode,
    unknown_domains: Unexplained,
    cache: &Cache,
    now: Timestamp,
) -> Result<Option<Draft>> {
    let before = cache.node_status.get(node);
    let (state, reason) = match seen.host {
        Some(_) => (NodeState::Available, "available"),
        None => (NodeState::Unreachable, "unreachable"),
    };
    let host = seen.host.as_ref();
    let next = NodeStatus {
        state,
        message: seen.error.clone().unwrap_or_default(),
        host: host.or(before.and_then(|b| b.host.as_ref())).cloned(),
        member,
        watchdog_secs: seen
            .watchdog
            .map(|t| t.as_secs() + u64::from(t.subsec_nanos() > 0)),
        unknown_domains,
        since: before.filter(|b| b.state == state).map_or(now, |b| b.since),
    };
    if before.is_some_and(|b| b.value == next) {
        return Ok(None);
    }
    let draft = Draft::new()
        .unchanged::<NodeStatus>(node, before.map(|b| b.version))
        .put(node, &next)?;
    Ok(Some(if before.is_some_and(|b| b.state == state) {
        draft
    } else {
        draft.event(ObjectRef::Node(node.clone()), None, reason, next.message)
    }))
}
