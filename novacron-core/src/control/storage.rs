//! The pool owner's part: volumes and images (here) and snapshots ([`super::snapshot`]) exist as they should.
//!
//! All three walk the same road: *named* (the spec record) → `creating` (the status record) → the command → `available`
//! or `failed`; and when marked deleted, once nothing needs them: the command → the records are removed and a grave is
//! left, so that an artefact that turns up late is known to be nobody's.
//!
//! What may help by itself is tried again for [`BUDGET`], what cannot ends at once; a deletion is tried until it is done,
//! and its operation says why it is not. A volume that cannot grow keeps its size, and its status says why.

use std::time::Duration;

use super::cache::{Cache, Table};
use super::plan::{BUDGET, Command, Draft, Outcome, Plan};
use super::vm::Waiting;
use crate::driver::{ArtefactId, AttachRequest, CreateSource, CreateVolume};
use crate::error::Result;
use crate::model::{
    Bytes, ClusterId, Image, ImageId, Meta, ObjectRef, PoolId, Snapshot, StorageState,
    StorageStatus, Versioned, Volume, VolumeClaim, VolumeFormat, VolumeId, VolumeSource,
};
use crate::records::{self, Grave, ImageStatus, Stored, VolumeStatus};
use crate::store::Op;
use crate::time::Timestamp;

/// What a look at a storage object is made of.
pub(crate) struct Look<'a> {
    pub(crate) cluster: ClusterId,
    pub(crate) cache: &'a Cache,
    pub(crate) outcome: Option<&'a Outcome>,
    /// For how long the object's commands have been failing.
    pub(crate) failing: Duration,
    pub(crate) now: Timestamp,
}

/// The parts in which volumes, images and snapshots differ.
pub(super) struct Object<'a> {
    pub(super) reference: ObjectRef,
    pub(super) meta: &'a Meta,
    pub(super) status: Option<&'a StorageStatus>,
    pub(super) wanted: Bytes,
    /// Whether its name in the project is its own.
    pub(super) named: bool,
}

impl Look<'_> {
    pub(crate) fn volume(&self, id: VolumeId) -> Result<Plan> {
        let Some(volume) = self.cache.volumes.get(&id) else {
            return Ok(Plan::nothing());
        };
        if let Some(claim) = self.cache.volume_claims.get(&id).filter(|c| c.orphaned) {
            return Ok(self.let_go(volume, claim));
        }
        let status = self.cache.volume_status.get(&id);
        let object = Object {
            reference: ObjectRef::Volume(id),
            meta: &volume.meta,
            status: status.map(|s| &s.0),
            wanted: volume.size,
            named: volume.made_with.is_none(),
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
            None => self.named::<VolumeStatus>(Draft::new(), &id, &object, VolumeStatus),
            Some(StorageState::Available) => self.grown(volume, &object),
            Some(StorageState::Failed { .. }) => Ok(Plan::nothing()),
            Some(StorageState::Creating) => {
                let made = |result| self.made(&id, status, &object, result, VolumeStatus);
                if let Some(result) = self.decided() {
                    return made(result);
                }
                match self.source(volume.source) {
                    Ok(source) => Ok(self.create(
                        volume.pool.clone(),
                        ArtefactId::Volume(id),
                        volume.size,
                        volume.format,
                        source,
                    )),
                    Err(Waiting::Failed(why)) => made(Err(why)),
                    Err(_) => Ok(Plan::nothing()),
                }
            }
        }
    }

    /// Its writer is over, and its owner could not let go of the volume.
    fn let_go(&self, volume: &Volume, claim: &Versioned<VolumeClaim>) -> Plan {
        match (self.outcome, claim.place.node()) {
            (Some(Outcome::Detached(epoch)), _) if *epoch == claim.epoch => Plan::commit(
                Draft::new()
                    .unchanged::<VolumeClaim>(&volume.id, Some(claim.version))
                    .delete::<VolumeClaim>(&volume.id),
            ),
            (_, Some(node)) => Plan::command(Command::Detach {
                pool: volume.pool.clone(),
                volume: volume.id,
                by: AttachRequest {
                    node: node.clone(),
                    vm: claim.vm,
                    epoch: claim.epoch,
                },
            }),
            (_, None) => Plan::nothing(),
        }
    }

    /// What a volume is made from, once that is there.
    fn source(&self, source: VolumeSource) -> Result<CreateSource, Waiting> {
        let (what, state, ready) = match source {
            VolumeSource::Blank => return Ok(CreateSource::Blank),
            // One that is marked deleted stays as long as it has a clone.
            VolumeSource::Image(image) => {
                let known = self.cache.images.contains_key(&image);
                let status = self.cache.image_status.get(&image);
                let state = known.then(|| status.map(|s| &s.0.state));
                ("image", state, CreateSource::Image(image))
            }
            VolumeSource::Snapshot(snapshot) => {
                let Some(found) = self.cache.snapshots.get(&snapshot) else {
                    return Err(Waiting::Failed("its snapshot is gone".to_owned()));
                };
                let status = self.cache.snapshot_status.get(&snapshot);
                let state = status.map(|s| &s.0.state);
                // One that is marked deleted is kept for its copies only if there is something to copy.
                let going = found.meta.deleted_at.is_some()
                    && !matches!(state, Some(StorageState::Available));
                let ready = CreateSource::Snapshot(found.volume, snapshot);
                ("snapshot", (!going).then_some(state), ready)
            }
        };
        match state {
            None => Err(Waiting::Failed(format!("its {what} is gone"))),
            Some(Some(StorageState::Available)) => Ok(ready),
            Some(Some(StorageState::Failed { reason })) => {
                Err(Waiting::Failed(format!("its {what} failed: {reason}")))
            }
            Some(_) => Err(Waiting::For(format!("its {what} is being made"))),
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
        match self.decided() {
            Some(Ok(Some(size))) if size >= volume.size => self.made(
                &volume.id,
                Some(status),
                object,
                Ok(Some(size)),
                VolumeStatus,
            ),
            Some(Err(reason)) => {
                let next = StorageStatus {
                    generation: volume.meta.generation,
                    problem: Some(reason.clone()),
                    since: self.now,
                    ..status.0.clone()
                };
                let (of, project) = (object.reference.clone(), &object.meta.project);
                Ok(Plan::commit(
                    Draft::new()
                        .unchanged::<VolumeStatus>(&volume.id, Some(status.version))
                        .put(&volume.id, &VolumeStatus(next))?
                        .event(of, Some(project), "not-grown", reason),
                ))
            }
            _ => Ok(match self.attached(volume.id) {
                Ok(attached) => Plan::command(Command::Grow {
                    pool: volume.pool.clone(),
                    volume: volume.id,
                    size: volume.size,
                    attached,
                }),
                Err(_) => Plan::nothing(),
            }),
        }
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
            named: true,
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
            None => self.named::<ImageStatus>(Draft::new(), &id, &object, ImageStatus),
            Some(StorageState::Creating) => {
                if let Some(result) = self.decided() {
                    return self.made(&id, status, &object, result, ImageStatus);
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

    /// How the last command settled the object, if it did: its size, or why it failed for good.
    pub(super) fn decided(&self) -> Option<Result<Option<Bytes>, String>> {
        match self.outcome? {
            Outcome::Done(size) => Some(Ok(*size)),
            Outcome::Failed { reason, retryable } if !retryable || self.failing >= BUDGET => {
                Some(Err(reason.clone()))
            }
            Outcome::Failed { .. }
            | Outcome::Gone
            | Outcome::Fenced(..)
            | Outcome::Lapsed(_)
            | Outcome::Bound(_)
            | Outcome::Detached(_)
            | Outcome::Undone(_) => None,
        }
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
    pub(super) fn named<S: Stored>(
        &self,
        draft: Draft,
        id: &S::Id,
        object: &Object<'_>,
        wrap: fn(StorageStatus) -> S,
    ) -> Result<Plan> {
        let status = StorageStatus {
            state: StorageState::Creating,
            size: object.wanted,
            generation: 0,
            problem: None,
            since: self.now,
        };
        Ok(Plan::commit(
            draft.unchanged::<S>(id, None).put(id, &wrap(status))?,
        ))
    }

    pub(super) fn made<S: Stored>(
        &self,
        id: &S::Id,
        status: Option<&Versioned<S>>,
        object: &Object<'_>,
        result: Result<Option<Bytes>, String>,
        wrap: fn(StorageStatus) -> S,
    ) -> Result<Plan> {
        let before = object.status.map_or(object.wanted, |s| s.size);
        let (word, message) = match &result {
            Ok(_) => ("available", "ready".to_owned()),
            Err(reason) => ("failed", reason.clone()),
        };
        let (state, size) = match result {
            Ok(size) => (StorageState::Available, size.unwrap_or(before)),
            Err(reason) => (StorageState::Failed { reason }, before),
        };
        let next = StorageStatus {
            state,
            size,
            generation: object.meta.generation,
            problem: None,
            since: self.now,
        };
        let (of, project) = (object.reference.clone(), &object.meta.project);
        Ok(Plan::commit(
            Draft::new()
                .unchanged::<S>(id, status.map(|s| s.version))
                .put(id, &wrap(next))?
                .event(of, Some(project), word, message),
        ))
    }

    /// Marked deleted and needed by nothing: remove it, then its records.
    pub(super) fn gone<T, S>(
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
        let mut draft = Draft::new()
            .unchanged::<T>(id, specs.get(id).map(|s| s.version))
            .unchanged::<S>(id, statuses.get(id).map(|s| s.version))
            .delete::<T>(id)
            .delete::<S>(id)
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
        if object.named {
            let (project, kind) = (&object.meta.project, object.reference.kind());
            let name = records::name_key(project, kind, &object.meta.name);
            draft = draft.op(Op::Delete(name));
        }
        Ok(Plan::commit(draft))
    }
}
