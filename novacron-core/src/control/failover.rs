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
//! | fencing | leader (here) | the mark, in the ownership record, while the member is lost: who owns the node must take it anew |
//! | fenced | leader (here) | the receipt, in the same record |
//! | recovered | leader ([`super::run`], [`super::vm`]) | each run's [`StopProof::Fenced`]; the claims are released by it |
//!
//! The host is fenced only after the mark is written, the receipt is written conditional on that very record, and every proof
//! conditional on the receipt's. So from before the fence on an owner that comes back can write nothing as such, and begin
//! nothing, before it has taken the record; and then it is his word that counts, and a receipt under way is void. A process that was shut down left its guests running
//! on purpose: its node is not fenced. A host that has armed its watchdog has ended itself a while after its owner was lost
//! ([`super::watchdog`]): that is a receipt, too, and the only one where there is no other fence.
//!
//! [`StopProof::Fenced`]: crate::model::StopProof::Fenced

use std::time::Duration;

use super::cache::Cache;
use super::node;
use super::plan::{Command, Draft, Outcome, Plan};
use super::watchdog;
use crate::driver::FenceTarget;
use crate::error::Result;
use crate::model::{FenceReceipt, Member, MemberState, NodeId, NodeState, ObjectRef, Ownership};
use crate::records::NodeOwner;
use crate::time::Timestamp;

/// What a leader knows of a node's host beside the records.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Means {
    /// Whether this process knows how to fence it.
    pub(crate) can_fence: bool,
    /// For how long, by this process's timer, its owner has been known to be lost.
    pub(crate) lost_for: Duration,
}

pub(crate) fn reconcile(
    node: &NodeId,
    cache: &Cache,
    grace: Duration,
    means: Means,
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
    let member = cache.members.get(&owner.member);
    let lost = member.is_none_or(|m| matches!(m.state, MemberState::Lost { .. }));
    let held = cache.runs_on(node).any(|(vm, run)| {
        let claim = cache.claims.get(&vm);
        run.proof.is_none() && claim.is_some_and(|c| c.is_held() && c.epoch == run.epoch)
    });
    let watchdog = status
        .watchdog_secs
        .filter(|_| status.member == owner.member)
        .map(|secs| watchdog::reset_after(Duration::from_secs(secs)));
    let can = means.can_fence || watchdog.is_some();
    let Some(host) = status.host.as_ref().filter(|_| can && lost && held) else {
        return Ok(Plan::nothing());
    };
    if status.state == NodeState::Available || owner.fenced.is_some() {
        return Ok(Plan::nothing());
    }
    let unchanged = || Draft::new().unchanged::<NodeOwner>(node, Some(owner.version));
    if owner.fencing.is_none() {
        let fencing = NodeOwner(Ownership {
            fencing: Some(now),
            ..owner.0.clone()
        });
        let (object, message) = (ObjectRef::Node(node.clone()), "its host is being fenced");
        return Ok(Plan::commit(
            unchanged()
                .unchanged::<Member>(&owner.member, member.map(|m| m.version))
                .put(node, &fencing)?
                .event(object, None, "fencing", message),
        ));
    }
    let reset = watchdog.is_some_and(|after| means.lost_for >= after);
    let by_itself = || FenceReceipt {
        method: "watchdog".to_owned(),
        detail: format!(
            "its owner was known to be lost for {} s, and its watchdog was not fed",
            means.lost_for.as_secs()
        ),
    };
    let receipt = match outcome {
        Some(Outcome::Fenced(receipt, of)) if *of == owner.version => Some(receipt.clone()),
        _ => reset.then(by_itself),
    };
    if let Some(receipt) = receipt {
        let message = format!("fenced by {}: {}", receipt.method, receipt.detail);
        let fenced = NodeOwner(Ownership {
            fenced: Some(receipt),
            ..owner.0.clone()
        });
        return Ok(Plan::commit(unchanged().put(node, &fenced)?.event(
            ObjectRef::Node(node.clone()),
            None,
            "fenced",
            message,
        )));
    }
    let wake = watchdog.map(|after| now.plus(after.saturating_sub(means.lost_for)));
    if !means.can_fence {
        return Ok(Plan {
            wake,
            ..Plan::nothing()
        });
    }
    Ok(Plan::command(Command::Fence {
        target: FenceTarget {
            node: node.clone(),
            host: host.host,
            boot_id: host.boot_id.clone(),
        },
        of: owner.version,
    }))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use uuid::Uuid;

    use super::*;
    use crate::lifecycle::RunPhase;
    use crate::model::{
        Claim, Decision, Epoch, HostId, HostInfo, MemberId, NodeCapabilities, NodeStatus, PlaceId,
        Role, Run, Unexplained, VmId,
    };
    use crate::records::{self, Stored};
    use crate::store::{Change, Op, Precondition, Revision};

    const NOW: Timestamp = Timestamp::from_millis(1_000_000);
    const OWNER: MemberId = MemberId(7);

    fn node() -> NodeId {
        NodeId::new("alpha").unwrap()
    }

    fn put<T: Stored>(cache: &mut Cache, id: &T::Id, value: &T, version: u64) {
        let Op::Put(key, value) = records::put(id, value).unwrap() else {
            panic!("a put");
        };
        let value = Some(value);
        let taken = cache.apply(&Change { key, value }, Revision(version), &mut Vec::new());
        taken.unwrap();
    }

    /// A node with a guest, whose owner (of version 1) is lost (version 2).
    fn lost(fencing: Option<Timestamp>) -> Cache {
        let mut cache = Cache::default();
        let at = Timestamp::default();
        let owner = Ownership {
            member: OWNER,
            since: at,
            fencing,
            fenced: None,
        };
        put(&mut cache, &node(), &NodeOwner(owner), 1);
        let member = Member {
            id: OWNER,
            name: String::new(),
            version: String::new(),
            level: 1,
            role: Role::Both,
            joined_at: at,
            clock_off_secs: None,
            endpoint: None,
            state: MemberState::Lost { at },
        };
        put(&mut cache, &OWNER, &member, 2);
        let status = NodeStatus {
            state: NodeState::Unreachable,
            message: String::new(),
            host: Some(HostInfo {
                host: HostId::from_uuid(Uuid::nil()),
                boot_id: "boot".to_owned(),
                capabilities: NodeCapabilities::default(),
            }),
            member: OWNER,
            watchdog_secs: None,
            unknown_domains: Unexplained::default(),
            since: at,
        };
        put(&mut cache, &node(), &status, 3);
        let (vm, place) = (VmId::from_uuid(Uuid::nil()), PlaceId::Node(node()));
        let claim = Claim {
            epoch: Epoch(1),
            place: place.clone(),
            released: None,
            power_serial: 1,
            failures: 0,
            not_before: None,
            recovery: false,
            moving_to: None,
            home: None,
            decision: Decision {
                scheduler: String::new(),
                view: Revision(1),
                seed: 0,
                winner: place,
                rejections: BTreeMap::new(),
            },
        };
        put(&mut cache, &vm, &claim, 4);
        let run = Run {
            vm,
            node: node(),
            epoch: Epoch(1),
            phase: RunPhase::Unknown,
            began: None,
            message: String::new(),
            exit: None,
            proof: None,
            since: at,
            started_at: None,
            generation: 1,
        };
        put(&mut cache, &(node(), vm), &run, 5);
        cache
    }

    fn plan(cache: &Cache, outcome: Option<&Outcome>) -> Plan {
        let means = Means {
            can_fence: true,
            lost_for: Duration::ZERO,
        };
        reconcile(&node(), cache, Duration::ZERO, means, outcome, NOW).unwrap()
    }

    fn fenced(of: u64) -> Outcome {
        let receipt = FenceReceipt {
            method: "power".to_owned(),
            detail: "off".to_owned(),
        };
        Outcome::Fenced(receipt, Revision(of))
    }

    #[test]
    fn a_host_is_fenced_only_once_its_owner_can_write_nothing_any_more() {
        let draft = plan(&lost(None), None).commit.expect("the mark first");
        for required in [
            Precondition::At(NodeOwner::key(&node()), Revision(1)),
            // One that is back meanwhile is not fenced.
            Precondition::At(Member::key(&OWNER), Revision(2)),
        ] {
            assert!(draft.requires.contains(&required), "{required:?}");
        }
        let marked = lost(Some(NOW));
        assert!(!super::super::part::is_kept(
            &marked.node_owners[&node()],
            &marked
        ));
        let plan = plan(&marked, None);
        assert!(matches!(plan.command, Some(Command::Fence { of, .. }) if of == Revision(1)));
    }

    #[test]
    fn a_watchdog_proves_something_only_after_its_time_and_only_its_owners() {
        let with = |member, fencing| {
            let mut cache = lost(fencing);
            let mut status = cache.node_status[&node()].value.clone();
            (status.watchdog_secs, status.member) = (Some(30), member);
            put(&mut cache, &node(), &status, 6);
            cache
        };
        let look = |cache: &Cache, secs| {
            let means = Means {
                can_fence: false,
                lost_for: Duration::from_secs(secs),
            };
            reconcile(&node(), cache, Duration::ZERO, means, None, NOW).unwrap()
        };
        let marked = with(OWNER, Some(NOW));
        let early = look(&marked, 60);
        assert!(early.commit.is_none() && early.command.is_none());
        assert_eq!(early.wake, Some(NOW.plus(Duration::from_secs(1))));
        let late = look(&marked, 61).commit.expect("the receipt");
        let required = Precondition::At(NodeOwner::key(&node()), Revision(1));
        assert!(late.requires.contains(&required));
        // The mark comes first here, too; and another owner's watchdog says nothing about this one.
        let put = |draft: Draft| {
            draft
                .events
                .iter()
                .map(|(_, _, reason, _)| *reason)
                .collect::<Vec<_>>()
        };
        let first = look(&with(OWNER, None), 61).commit.expect("the mark");
        assert_eq!(put(first), ["fencing"]);
        let other = look(&with(MemberId(3), Some(NOW)), 600);
        assert!(other.commit.is_none() && other.wake.is_none());
    }

    #[test]
    fn a_receipt_is_of_the_ownership_under_which_the_fence_was_begun() {
        let marked = lost(Some(NOW));
        let taken_back = plan(&marked, Some(&fenced(9)));
        assert!(matches!(taken_back.command, Some(Command::Fence { .. })));
        let draft = plan(&marked, Some(&fenced(1))).commit.expect("the receipt");
        let required = Precondition::At(NodeOwner::key(&node()), Revision(1));
        assert!(draft.requires.contains(&required));
    }
}
