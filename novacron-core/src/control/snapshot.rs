//! The pool owner's part of a snapshot.
//!
//! ```text
//!   asked for ── its turn, volume there, writer known ──► creating ── taken ──► available
//!                                                           └── given up ── taken back ──► failed
//! ```
//! One snapshot of a volume is taken at a time, oldest first; the others wait and say so. Its way depends on who writes
//! the volume ([`writer`]): a guest goes over to a new layer, without one the data is frozen where it lies. So while a
//! snapshot is being taken no start may begin with the volume, and none is named while a start or a stop is under way.
//! Both write, or depend on, the volume's status record, so that of two commits that know nothing of each other the
//! second fails. A guest that stops between the look and the command makes the command fail: it is planned anew.
//!
//! What is given up is first taken back, for a layer that was prepared, and one that a guest went over to, is in the way
//! of everything else.

use super::cache::Cache;
use super::plan::{Command, Draft, Outcome, Plan};
use super::storage::{Look, Object};
use super::vm::Waiting;
use crate::driver::DomainId;
use crate::error::Result;
use crate::lifecycle::RunPhase;
use crate::model::{
    Bytes, Epoch, NodeId, ObjectRef, Snapshot, SnapshotId, StorageState, VmId, Volume, VolumeId,
};
use crate::records::{SnapshotStatus, VolumeStatus};

/// The domain that writes the volume, or none; or why that is about to change.
pub(super) fn writer(
    cache: &Cache,
    volume: VolumeId,
) -> Result<Option<(NodeId, VmId, Epoch)>, Waiting> {
    let Some(claim) = cache.volume_claims.get(&volume) else {
        return Ok(None);
    };
    let at = claim.place.node().map(|node| (node.clone(), claim.vm));
    let run = at.as_ref().and_then(|at| cache.runs.get(at));
    let assignment = at.as_ref().and_then(|at| cache.assignments.get(at));
    match (at, run, assignment) {
        // Its guest has the disks of the spec: this one is not about to come or to go.
        (Some((node, vm)), Some(run), Some(assignment))
            if run.epoch == claim.epoch
                && matches!(run.phase, RunPhase::Running | RunPhase::Paused)
                && run.generation == assignment.generation =>
        {
            Ok(Some((node, vm, claim.epoch)))
        }
        (_, Some(run), _) => Err(Waiting::For(format!(
            "VM {}, which has the volume, is {} and changing",
            claim.vm, run.phase
        ))),
        _ => Err(Waiting::For(format!(
            "VM {} has the volume, and no run yet",
            claim.vm
        ))),
    }
}

/// What a snapshot that was asked for waits for before it is taken.
fn turn(id: SnapshotId, of: VolumeId, cache: &Cache) -> Result<(), Waiting> {
    let unended = |id: &SnapshotId| {
        let state = cache.snapshot_status.get(id).map(|s| &s.0.state);
        matches!(state, None | Some(StorageState::Creating))
    };
    match cache.volume_status.get(&of).map(|s| &s.0.state) {
        Some(StorageState::Available) => {}
        Some(StorageState::Failed { reason }) => {
            return Err(Waiting::Failed(format!("its volume failed: {reason}")));
        }
        _ => return Err(Waiting::For("its volume is being made".to_owned())),
    }
    if let Some(first) = cache.snapshots_of(of).find(unended).filter(|f| *f != id) {
        return Err(Waiting::For(format!(
            "snapshot {first} of the volume is not taken yet"
        )));
    }
    match cache.restores_of(of).next() {
        Some(_) => Err(Waiting::For("its volume is being restored".to_owned())),
        None => Ok(()),
    }
}

/// Why a snapshot that was asked for, or is being taken, does not get on; none if nothing holds it up.
pub(super) fn waiting(id: SnapshotId, of: VolumeId, cache: &Cache) -> Option<String> {
    let ready = turn(id, of, cache).and_then(|()| writer(cache, of).map(drop));
    match ready {
        Err(Waiting::For(why)) => Some(why),
        _ => None,
    }
}

impl Look<'_> {
    pub(crate) fn snapshot(&self, id: SnapshotId) -> Result<Plan> {
        let Some(snapshot) = self.cache.snapshots.get(&id) else {
            return Ok(Plan::nothing());
        };
        let Some(volume) = self.cache.volumes.get(&snapshot.volume) else {
            return Ok(Plan::nothing());
        };
        let status = self.cache.snapshot_status.get(&id);
        let object = Object {
            reference: ObjectRef::Snapshot(id),
            meta: &snapshot.meta,
            status: status.map(|s| &s.0),
            wanted: Bytes(0),
            named: true,
        };
        let drop = |because| Command::DropSnapshot {
            pool: volume.pool.clone(),
            volume: volume.id,
            snapshot: id,
            because,
        };
        let state = status.map(|s| &s.0.state);
        if snapshot.meta.deleted_at.is_some() {
            let copied = matches!(state, Some(StorageState::Available))
                && self.cache.copies_of(id).any(|copy| self.being_made(copy));
            if copied {
                return Ok(Plan::nothing());
            }
            return self.gone::<Snapshot, SnapshotStatus>(
                &id,
                &self.cache.snapshots,
                &self.cache.snapshot_status,
                &object,
                drop(None),
            );
        }
        let made = |result| self.made(&id, status, &object, result, SnapshotStatus);
        match state {
            Some(StorageState::Available | StorageState::Failed { .. }) => Ok(Plan::nothing()),
            None => {
                match turn(id, volume.id, self.cache).and_then(|()| writer(self.cache, volume.id)) {
                    Ok(_) => {
                        let Some(of) = self.cache.volume_status.get(&volume.id) else {
                            return Ok(Plan::nothing());
                        };
                        let draft = Draft::new()
                            .unchanged::<Snapshot>(&id, Some(snapshot.version))
                            .touch::<VolumeStatus>(&volume.id, of)?;
                        self.named(draft, &id, &object, SnapshotStatus)
                    }
                    Err(Waiting::Failed(why)) => made(Err(why)),
                    Err(_) => Ok(Plan::nothing()),
                }
            }
            Some(StorageState::Creating) => match (self.outcome, self.decided()) {
                (Some(Outcome::Undone(reason)), _) => made(Err(reason.clone())),
                (_, Some(Ok(size))) => made(Ok(size)),
                (_, Some(Err(reason))) => Ok(Plan::command(drop(Some(reason)))),
                (_, None) => Ok(match self.attached(volume.id) {
                    Ok(attached) => Plan::command(Command::TakeSnapshot {
                        pool: volume.pool.clone(),
                        volume: volume.id,
                        snapshot: id,
                        attached,
                    }),
                    Err(_) => Plan::nothing(),
                }),
            },
        }
    }

    /// As [`writer`], as drivers name it.
    pub(super) fn attached(&self, volume: VolumeId) -> Result<Option<(NodeId, DomainId)>, Waiting> {
        let cluster = self.cluster;
        let writer = writer(self.cache, volume)?;
        Ok(writer.map(|(node, vm, epoch)| (node, DomainId { cluster, vm, epoch })))
    }

    /// Whether a volume is neither made nor given up.
    fn being_made(&self, id: VolumeId) -> bool {
        let state = self.cache.volume_status.get(&id).map(|s| &s.0.state);
        let wanted = |v: &Volume| v.meta.deleted_at.is_none();
        self.cache.volumes.get(&id).is_some_and(|v| wanted(v))
            && matches!(state, None | Some(StorageState::Creating))
    }
}
