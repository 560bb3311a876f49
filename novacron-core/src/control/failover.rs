//! A node without a living owner: the leader's part.
//!
//! ```text
//!   available ── its owner's lease ran out ──► suspect ── grace ──► checking ──────────────► unreachable
//!       ▲                                         │   somebody else drives it?      │ a start holds a claim there,
//!       │◄──────────── taken by another owner ────┴───────────────────────────      │ and the node can be fenced
//!       │                                                                           ▼
//!       └◄── its process, or another, takes it ◄── recovered ◄── every run has its proof ◄── fenced ◄── fencing
//! ```
//! | step | who | what is written |
//! |---|---|---|
//! | suspect | leader ([`super::member`]) | the member is lost |
//! | checking | any process that drives the host ([`super::ownership`]) | that it is the owner now |
//! | unreachable | leader (here, [`super::run`]) | the node's status; that its runs are unknown |
//! | fencing, fenced | leader (here) | the receipt, in the ownership record |
//! | recovered | leader ([`super::run`], [`super::vm`]) | each run's [`StopProof::Fenced`]; the claims are released by it |
//!
//! The receipt is written conditional on the ownership record, and every proof conditional on that one: an owner that comes
//! back first takes the record, and then it is his word that counts. A process that was shut down left its guests running
//! on purpose: its node is not fenced.
//!
//! [`StopProof::Fenced`]: crate::model::StopProof::Fenced

use std::time::Duration;

use super::cache::Cache;
use super::node;
use super::plan::{Command, Draft, Outcome, Plan};
use crate::driver::FenceTarget;
use crate::error::Result;
use crate::model::{MemberState, NodeId, NodeState, ObjectRef, Ownership};
use crate::records::NodeOwner;
use crate::time::Timestamp;

/// `can_fence` says whether this process knows how.
pub(crate) fn reconcile(
    node: &NodeId,
    cache: &Cache,
    grace: Duration,
    can_fence: bool,
    outcome: Option<&Outcome>,
    now: Timestamp,
) -> Result<Plan> {
    let told = node::unowned(node, cache, grace, now)?;
    if told.commit.is_some() || told.wake.is_some() {
        return Ok(told);
    }
    let (Some(owner), Some(status)) = (cache.node_owners.get(node), cache.node_status.get(node))
    else {
        return Ok(Plan::nothing());
    };
    let lost = cache
        .members
        .get(&owner.member)
        .is_none_or(|m| matches!(m.state, MemberState::Lost { .. }));
    let held = cache.runs_on(node).any(|(vm, run)| {
        let claim = cache.claims.get(&vm);
        run.proof.is_none() && claim.is_some_and(|c| c.is_held() && c.epoch == run.epoch)
    });
    let Some(host) = status.host.as_ref().filter(|_| can_fence && lost && held) else {
        return Ok(Plan::nothing());
    };
    if status.state == NodeState::Available || owner.fenced.is_some() {
        return Ok(Plan::nothing());
    }
    if let Some(Outcome::Fenced(receipt)) = outcome {
        let message = format!("fenced by {}: {}", receipt.method, receipt.detail);
        let fenced = NodeOwner(Ownership {
            fenced: Some(receipt.clone()),
            ..owner.0.clone()
        });
        return Ok(Plan::commit(
            Draft::new()
                .unchanged::<NodeOwner>(node, Some(owner.version))
                .put(node, &fenced)?
                .event(ObjectRef::Node(node.clone()), None, "fenced", message),
        ));
    }
    Ok(Plan::command(Command::Fence(FenceTarget {
        node: node.clone(),
        host: host.host,
        boot_id: host.boot_id.clone(),
    })))
}
