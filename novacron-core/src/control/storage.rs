//! The pool owner's part: volumes, images and snapshots exist as they should.
//!
//! All three walk the same road: *named* (the spec record) → `creating` (the status record) → the command → `available`
//! or `failed`; and when marked deleted, once nothing needs them: the command → the records are removed and a grave is
//! left, so that an artefact that turns up late is known to be nobody's.

use super::cache::{Cache, Table};
use super::plan::{BUDGET, Command, Draft, Outcome, Plan};
use crate::driver::{ArtefactId, CreateSource, CreateVolume, DomainId};
use crate::error::Result;
use crate::model::{
    Bytes, ClusterId, Image, ImageId, Meta, NodeId, ObjectRef, PlaceId, PoolId, Snapshot,
    SnapshotId, StorageState, StorageStatus, Versioned, Volume, VolumeFormat, VolumeId,
    VolumeSource,
};
use crate::records::{self, Grave, ImageStatus, SnapshotStatus, Stored, VolumeStatus};
use crate::store::Op;
use crate::time::Timestamp;

/// What a look at a storage object is made of.
pub(crate) struct Look<'a> {
    pub(crate) cluster: ClusterId,
    pub(crate) cache: &'a Cache,
    pub(crate) outcome: Option<&'a Outcome>,
    pub(crate) failures: u32,
    pub(crate) now: Timestamp,
}

/// The parts in which volumes, images and snapshots differ.
struct Object<'a> {
    reference: ObjectRef,
    meta: &'a Meta,
    status: Option<&'a StorageStatus>,
    wanted: Bytes,
}

impl Look<'_> {
    pub(crate) fn volume(&self, id: VolumeId) -> Result<Plan> {
        let Some(volume) = self.cache.volumes.get(&id) else {
            return Ok(Plan::nothing());
        };
        let status = self.cache.volume_status.get(&id);
        let object = Object {
            reference: ObjectRef::Volume(id),
            meta: &volume.meta,
            status: status.map(|s| &s.0),
            wanted: volume.size,
        };
        if volume.meta.deleted_at.is_some() {
            let needed = self.cache.volume_claims.contains_key(&id)
                || self.cache.users_of(id).any(|vm| {
                    self.cache
                        .vms
                        .get(&vm)
                        .is_some_and(|vm| vm.meta.deleted_at.is_none())
                });
            if needed {
                return Ok(Plan::nothing());
            }
            // Its snapshots go first.
            let mut draft = Draft::new();
            for snapshot in self
                .cache
                .snapshots_of(id)
                .filter_map(|s| self.cache.snapshots.get(&s))
                .take(40)
            {
                if snapshot.meta.deleted_at.is_none() {
                    let mut marked = snapshot.value.clone();
                    marked.meta.deleted_at = Some(self.now);
                    draft = draft
                        .unchanged::<Snapshot>(&snapshot.id, Some(snapshot.version))
                        .put(&snapshot.id, &marked)?;
                }
            }
            if !draft.ops.is_empty() {
                return Ok(Plan::commit(
                    draft.unchanged::<Volume>(&id, Some(volume.version)),
                ));
            }
            if self.cache.snapshots_of(id).next().is_some() {
                return Ok(Plan::nothing());
            }
            let command = Command::Delete {
                pool: volume.pool.clone(),
                id: ArtefactId::Volume(id),
            };
            return self.gone::<Volume, VolumeStatus>(
                &id,
                &self.cache.volumes,
                &self.cache.volume_status,
                &object,
                command,
            );
        }
        match status.map(|s| &s.0.state) {
            Some(StorageState::Available) => self.grown(volume, &object),
            Some(StorageState::Failed { .. }) => Ok(Plan::nothing()),
            Some(StorageState::Creating) => {
                let source = match volume.source {
                    VolumeSource::Blank => CreateSource::Blank,
                    VolumeSource::Image(image) => {
                        match self.cache.image_status.get(&image).map(|s| &s.0.state) {
                            Some(StorageState::Available) => CreateSource::Image(image),
                            Some(StorageState::Failed { reason }) => {
                                let outcome = Outcome::Failed {
                                    reason: format!("its image failed: {reason}"),
                                    retryable: false,
                                };
                                return self.made::<VolumeStatus>(
                                    &id,
                                    status,
                                    &object,
                                    &outcome,
                                    VolumeStatus,
                                );
                            }
                            _ => return Ok(Plan::nothing()),
                        }
                    }
                    VolumeSource::Snapshot(snapshot) => match self.cache.snapshots.get(&snapshot) {
                        Some(s) => CreateSource::Snapshot(s.volume, snapshot),
                        None => {
                            let outcome = Outcome::Failed {
                                reason: "its snapshot is gone".to_owned(),
                                retryable: false,
                            };
                            return self.made::<VolumeStatus>(
                                &id,
                                status,
                                &object,
                                &outcome,
                                VolumeStatus,
                            );
                        }
                    },
                };
                if let Some(outcome) = self.decided() {
                    return self.made::<VolumeStatus>(&id, status, &object, outcome, VolumeStatus);
                }
                Ok(self.create(
                    volume.pool.clone(),
                    ArtefactId::Volume(id),
                    volume.size,
                    volume.format,
                    source,
                ))
            }
            None => self.named::<VolumeStatus>(&id, &object, VolumeStatus),
        }
    }

    /// A volume that is there: as large as it should be?
    fn grown(&self, volume: &Versioned<Volume>, object: &Object<'_>) -> Result<Plan> {
        let Some(status) = self.cache.volume_status.get(&volume.id) else {
            return Ok(Plan::nothing());
        };
        if status.0.generation >= volume.meta.generation {
            return Ok(Plan::nothing());
        }
        if let Some(Outcome::Done(Some(size))) = self.outcome
            && *size >= volume.size
        {
            return self.made::<VolumeStatus>(
                &volume.id,
                Some(status),
                object,
                &Outcome::Done(Some(*size)),
                VolumeStatus,
            );
        }
        let attached = self.attached(volume.id);
        Ok(Plan::command(Command::Grow {
            pool: volume.pool.clone(),
            volume: volume.id,
            size: volume.size,
            attached,
        }))
    }

    /// The domain that writes the volume, if one may run.
    fn attached(&self, volume: VolumeId) -> Option<(NodeId, DomainId)> {
        let claim = self.cache.volume_claims.get(&volume)?;
        let PlaceId::Node(node) = &claim.place else {
            return None;
        };
        let run = self.cache.runs.get(&(node.clone(), claim.vm))?;
        let up = run.epoch == claim.epoch && run.phase.may_run();
        up.then(|| {
            (
                node.clone(),
                DomainId {
                    cluster: self.cluster,
                    vm: claim.vm,
                    epoch: claim.epoch,
                },
            )
        })
    }

    pub(crate) fn image(&self, id: ImageId) -> Result<Plan> {
        let Some(image) = self.cache.images.get(&id) else {
            return Ok(Plan::nothing());
        };
        let status = self.cache.image_status.get(&id);
        let object = Object {
            reference: ObjectRef::Image(id),
            meta: &image.meta,
            status: status.map(|s| &s.0),
            wanted: Bytes(0),
        };
        if image.meta.deleted_at.is_some() {
            if self.cache.clones_of(id).next().is_some() {
                return Ok(Plan::nothing());
            }
            let command = Command::Delete {
                pool: image.pool.clone(),
                id: ArtefactId::Image(id),
            };
            return self.gone::<Image, ImageStatus>(
                &id,
                &self.cache.images,
                &self.cache.image_status,
                &object,
                command,
            );
        }
        match status.map(|s| &s.0.state) {
            None => self.named::<ImageStatus>(&id, &object, ImageStatus),
            Some(StorageState::Creating) => {
                if let Some(outcome) = self.decided() {
                    return self.made::<ImageStatus>(&id, status, &object, outcome, ImageStatus);
                }
                let source = CreateSource::Import {
                    source: image.source.clone(),
                    sha256: image.sha256.clone(),
                };
                Ok(self.create(
                    image.pool.clone(),
                    ArtefactId::Image(id),
                    Bytes(0),
                    VolumeFormat::Qcow2,
                    source,
                ))
            }
            Some(_) => Ok(Plan::nothing()),
        }
    }

    pub(crate) fn snapshot(&self, id: SnapshotId) -> Result<Plan> {
        let Some(snapshot) = self.cache.snapshots.get(&id) else {
            return Ok(Plan::nothing());
        };
        let status = self.cache.snapshot_status.get(&id);
        let object = Object {
            reference: ObjectRef::Snapshot(id),
            meta: &snapshot.meta,
            status: status.map(|s| &s.0),
            wanted: Bytes(0),
        };
        let Some(volume) = self.cache.volumes.get(&snapshot.volume) else {
            return Ok(Plan::nothing());
        };
        if snapshot.meta.deleted_at.is_some() {
            let command = Command::DropSnapshot {
                pool: volume.pool.clone(),
                volume: volume.id,
                snapshot: id,
            };
            return self.gone::<Snapshot, SnapshotStatus>(
                &id,
                &self.cache.snapshots,
                &self.cache.snapshot_status,
                &object,
                command,
            );
        }
        match status.map(|s| &s.0.state) {
            None => self.named::<SnapshotStatus>(&id, &object, SnapshotStatus),
            Some(StorageState::Creating) => {
                if let Some(outcome) = self.decided() {
                    return self.made::<SnapshotStatus>(
                        &id,
                        status,
                        &object,
                        outcome,
                        SnapshotStatus,
                    );
                }
                let attached = self.attached(volume.id);
                Ok(Plan::command(Command::TakeSnapshot {
                    pool: volume.pool.clone(),
                    volume: volume.id,
                    snapshot: id,
                    attached,
                }))
            }
            Some(_) => Ok(Plan::nothing()),
        }
    }

    /// The last command's outcome, if it settles the object.
    fn decided(&self) -> Option<&Outcome> {
        self.outcome.filter(|o| match o {
            Outcome::Done(_) => true,
            Outcome::Gone | Outcome::Bound(_) => false,
            Outcome::Failed { retryable, .. } => !retryable || self.failures >= BUDGET,
        })
    }

    fn create(
        &self,
        pool: PoolId,
        id: ArtefactId,
        size: Bytes,
        format: VolumeFormat,
        source: CreateSource,
    ) -> Plan {
        let request = Box::new(CreateVolume {
            cluster: self.cluster,
            id,
            size,
            format,
            source,
        });
        Plan::command(Command::Create { pool, request })
    }

    /// Name, then make: the status record comes before the first command.
    fn named<S: Stored>(
        &self,
        id: &S::Id,
        object: &Object<'_>,
        wrap: fn(StorageStatus) -> S,
    ) -> Result<Plan> {
        let status = StorageStatus {
            state: StorageState::Creating,
            size: object.wanted,
            generation: 0,
            since: self.now,
        };
        Ok(Plan::commit(
            Draft::new()
                .unchanged::<S>(id, None)
                .put(id, &wrap(status))?,
        ))
    }

    fn made<S: Stored>(
        &self,
        id: &S::Id,
        status: Option<&Versioned<S>>,
        object: &Object<'_>,
        outcome: &Outcome,
        wrap: fn(StorageStatus) -> S,
    ) -> Result<Plan> {
        let before = object.status.map_or(object.wanted, |s| s.size);
        let (state, size, reason, message) = match outcome {
            Outcome::Done(size) => (
                StorageState::Available,
                size.unwrap_or(before),
                "available",
                "ready".to_owned(),
            ),
            Outcome::Gone | Outcome::Bound(_) => return Ok(Plan::nothing()),
            Outcome::Failed { reason, .. } => (
                StorageState::Failed {
                    reason: reason.clone(),
                },
                before,
                "failed",
                reason.clone(),
            ),
        };
        let next = StorageStatus {
            state,
            size,
            generation: object.meta.generation,
            since: self.now,
        };
        let draft = Draft::new()
            .unchanged::<S>(id, status.map(|s| s.version))
            .put(id, &wrap(next))?
            .event(
                object.reference.clone(),
                Some(&object.meta.project),
                reason,
                message,
            );
        Ok(Plan::commit(draft))
    }

    /// Marked deleted and needed by nothing: remove it, then its records.
    fn gone<T, S>(
        &self,
        id: &T::Id,
        specs: &Table<T::Id, T>,
        statuses: &Table<S::Id, S>,
        object: &Object<'_>,
        command: Command,
    ) -> Result<Plan>
    where
        T: Stored,
        S: Stored<Id = T::Id>,
        T::Id: Ord,
    {
        if !matches!(self.outcome, Some(Outcome::Gone)) {
            return Ok(Plan::command(command));
        }
        let name = records::name_key(
            &object.meta.project,
            object.reference.kind(),
            &object.meta.name,
        );
        let draft = Draft::new()
            .unchanged::<T>(id, specs.get(id).map(|s| s.version))
            .unchanged::<S>(id, statuses.get(id).map(|s| s.version))
            .delete::<T>(id)
            .delete::<S>(id)
            .op(Op::Delete(name))
            .put(
                &object.reference.to_string(),
                &Grave {
                    at: self.now,
                    epoch: None,
                },
            )?
            .event(
                object.reference.clone(),
                Some(&object.meta.project),
                "deleted",
                format!("{} is gone", object.meta.name),
            );
        Ok(Plan::commit(draft))
    }
}
