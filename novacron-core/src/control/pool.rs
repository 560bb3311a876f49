//! A pool: probe and list it, report what it is, remove what is proved to be nobody's.
//!
//! An artefact of ours without a record is removed when it has a grave. Any other is reported in the pool's status and
//! never touched: it may be all that is left after the records were restored from an old copy. Status and inventories
//! come first, as with a [`node`](super::node).

use std::time::Duration;

use super::cache::Cache;
use super::node::ASK_AGAIN;
use super::plan::{Command, Draft, Plan};
use super::world::{SeenPool, World};
use crate::driver::ArtefactId;
use crate::error::Result;
use crate::model::{Bytes, ObjectRef, PoolId, PoolState, PoolStatus, Unexplained};
use crate::time::Timestamp;

pub(crate) fn reconcile(
    id: &PoolId,
    cache: &Cache,
    world: &World,
    every: Duration,
    now: Timestamp,
) -> Result<Plan> {
    let inventory = || Plan::command(Command::Inventory { pool: id.clone() });
    let Some(seen) = world.pools.get(id).filter(|p| p.at > Timestamp::default()) else {
        return Ok(inventory());
    };
    let (dead, unknown): (Vec<ArtefactId>, Vec<ArtefactId>) = seen
        .strays
        .iter()
        .partition(|artefact| cache.graves.contains_key(&artefact.to_string()));
    let unknown = unknown.iter().map(ArtefactId::to_string).collect();
    if let Some(draft) = report(id, seen, unknown, cache, now)? {
        return Ok(Plan::commit(draft));
    }
    let answers = seen.error.is_none();
    let due = seen
        .at
        .plus(if answers { every } else { every.min(ASK_AGAIN) });
    if now >= due {
        return Ok(inventory());
    }
    let may = |artefact: &ArtefactId| answers && seen.tried.may(artefact, every, now);
    Ok(match dead.into_iter().find(may) {
        Some(artefact) => Plan::command(Command::Delete {
            pool: id.clone(),
            id: artefact,
        }),
        None => Plan::wake_at(due),
    })
}

/// The pool's status, if it is another one than before.
fn report(
    id: &PoolId,
    seen: &SeenPool,
    unknown_artefacts: Unexplained,
    cache: &Cache,
    now: Timestamp,
) -> Result<Option<Draft>> {
    let before = cache.pool_status.get(id);
    let (state, reason) = match seen.error {
        None => (PoolState::Available, "available"),
        Some(_) => (PoolState::Unreachable, "unreachable"),
    };
    let was = before.map_or((Bytes(0), Bytes(0)), |b| (b.capacity, b.free));
    let (capacity, free) = match &seen.info {
        // What is free changes all the time: a record of every change would tell nobody anything.
        Some(info) if info.capacity == was.0 && is_close(info.free, was) => was,
        Some(info) => (info.capacity, info.free),
        None => was,
    };
    let known = before.and_then(|b| b.identity);
    let next = PoolStatus {
        state,
        identity: known.or(seen.info.as_ref().and_then(|info| info.identity)),
        message: seen.error.clone().unwrap_or_default(),
        capacity,
        free,
        unknown_artefacts,
        since: before.filter(|b| b.state == state).map_or(now, |b| b.since),
    };
    if before.is_some_and(|b| b.value == next) {
        return Ok(None);
    }
    let draft = Draft::new()
        .unchanged::<PoolStatus>(id, before.map(|b| b.version))
        .put(id, &next)?;
    Ok(Some(if before.is_some_and(|b| b.state == state) {
        draft
    } else {
        draft.event(ObjectRef::Pool(id.clone()), None, reason, next.message)
    }))
}

/// Whether as much is free as was, to within a hundredth of the capacity.
fn is_close(free: Bytes, (capacity, was): (Bytes, Bytes)) -> bool {
    free.0.abs_diff(was.0) <= capacity.0 / 100
}
