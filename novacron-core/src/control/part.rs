//! Who looks after an object: the leader, the owner of a node, or the owner of a pool.
//!
//! A process looks at an object only while the part is its own, and what it commits then carries the proof of that as a
//! precondition: the leader its lease, an owner its ownership record as it was. So one that was paused, cut off or taken
//! for dead can write nothing once another has its part, whatever it still believes.
//!
//! A volume that a start has claimed is looked after where that start is, for what is done to it goes through the guest;
//! any other by its pool's owner.

use super::cache::Cache;
use super::plan::ObjectKey;
use super::session::Standing;
use crate::model::{MemberId, NodeId, Ownership, PoolId, Verb, VolumeId};
use crate::records::{NodeOwner, PoolOwner, Stored};
use crate::store::{Lease, Precondition};

/// A part of the work.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Part {
    Leader,
    Node(NodeId),
    Pool(PoolId),
}

/// Whose the object is; none if it is not in the records.
pub(crate) fn part_of(key: &ObjectKey, cache: &Cache) -> Option<Part> {
    match key {
        ObjectKey::Vm(_)
        | ObjectKey::Network(_)
        | ObjectKey::Operation(_)
        | ObjectKey::Retention
        | ObjectKey::Reasons
        | ObjectKey::Member(_) => Some(Part::Leader),
        ObjectKey::Node(node) | ObjectKey::Run(node, _) => {
            let part = Part::Node(node.clone());
            // What is to be said of a node that nobody looks after, the leader says.
            Some(match owner(&part, cache) {
                Some(_) => part,
                None => Part::Leader,
            })
        }
        ObjectKey::Pool(pool) => Some(Part::Pool(pool.clone())),
        ObjectKey::Image(image) => Some(Part::Pool(cache.images.get(image)?.pool.clone())),
        ObjectKey::Volume(volume) => of_volume(*volume, cache),
        ObjectKey::Snapshot(snapshot) => of_volume(cache.snapshots.get(snapshot)?.volume, cache),
        ObjectKey::Port(port) => {
            let status = cache.port_status.get(port);
            let vm = cache.ports.get(port).map(|p| p.vm);
            let claim = vm.and_then(|vm| cache.claims.get(&vm));
            let user = claim.filter(|c| c.is_held()).and_then(|c| c.place.node());
            // One that nobody uses, and whose node nobody looks after, is only removed from the records.
            let node = user.or(status.map(|s| &s.node)).cloned().map(Part::Node);
            let kept = node.filter(|node| user.is_some() || owner(node, cache).is_some());
            Some(kept.unwrap_or(Part::Leader))
        }
        ObjectKey::Action(action) => {
            let action = cache.actions.get(action)?;
            match action.verb {
                Verb::Restore { volume, .. } => Some(
                    cache
                        .volumes
                        .get(&volume)
                        .map_or(Part::Leader, |v| Part::Pool(v.pool.clone())),
                ),
                Verb::Reset => {
                    let claim = cache.claims.get(&action.vm).filter(|c| c.is_held());
                    let node = claim.and_then(|c| c.place.node());
                    Some(node.map_or(Part::Leader, |node| Part::Node(node.clone())))
                }
            }
        }
    }
}

fn of_volume(id: VolumeId, cache: &Cache) -> Option<Part> {
    let claim = cache.volume_claims.get(&id).filter(|c| !c.orphaned);
    if let Some(node) = claim.and_then(|c| c.place.node()) {
        return Some(Part::Node(node.clone()));
    }
    Some(Part::Pool(cache.volumes.get(&id)?.pool.clone()))
}

/// The living process that looks after a node or a pool. Who leads is known to the store alone.
pub(crate) fn owner(part: &Part, cache: &Cache) -> Option<MemberId> {
    let owner: &Ownership = match part {
        Part::Leader => return None,
        Part::Node(node) => cache.node_owners.get(node)?,
        Part::Pool(pool) => cache.pool_owners.get(pool)?,
    };
    is_kept(owner, cache).then_some(owner.member)
}

/// Whether the owner is alive. One that was taken for lost, and whose host is being fenced or was, must take it anew: what
/// it begins from then on is not covered by that receipt.
pub(super) fn is_kept(owner: &Ownership, cache: &Cache) -> bool {
    let member = cache.members.get(&owner.member);
    owner.fencing.is_none() && owner.fenced.is_none() && member.is_some_and(|m| m.is_alive())
}

/// What a commit of the part's keeper requires, if that is `me`.
pub(crate) fn guard(
    part: &Part,
    me: MemberId,
    standing: &Standing,
    cache: &Cache,
) -> Option<Precondition> {
    match part {
        Part::Node(node) if owner(part, cache) == Some(me) && standing.is_alive() => {
            let version = cache.node_owners.get(node)?.version;
            Some(Precondition::At(NodeOwner::key(node), version))
        }
        Part::Pool(pool) if owner(part, cache) == Some(me) && standing.is_alive() => {
            let version = cache.pool_owners.get(pool)?.version;
            Some(Precondition::At(PoolOwner::key(pool), version))
        }
        Part::Leader => standing.leads().map(lease),
        Part::Node(_) | Part::Pool(_) => None,
    }
}

fn lease(lease: &Lease) -> Precondition {
    Precondition::Lease {
        name: lease.name.clone(),
        token: lease.token,
    }
}
