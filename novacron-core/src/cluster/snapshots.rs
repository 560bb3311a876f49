//! Snapshots of volumes.

use super::Cluster;
use super::operations::OperationHandle;
use super::request::{Change, problem};
use super::vms::name_taken;
use crate::control::plan::Draft;
use crate::error::{Error, ErrorKind, Result};
use crate::model::{
    Meta, Name, ObjectRef, OperationKind, Snapshot, SnapshotId, Volume, VolumeId, name_problem,
};

/// The cluster's snapshots.
#[derive(Clone, Debug)]
pub struct Snapshots(pub(super) Cluster);

/// A handle on one snapshot.
#[derive(Clone, Debug)]
pub struct SnapshotHandle {
    cluster: Cluster,
    id: SnapshotId,
    created: Option<OperationHandle>,
}

impl Snapshots {
    /// Takes a snapshot of a volume; of one that is attached to a running guest, while it runs (crash-consistent unless
    /// the guest was frozen).
    ///
    /// # Errors
    /// [`ErrorKind::Invalid`], [`ErrorKind::NotFound`], [`ErrorKind::AlreadyExists`].
    pub async fn create(&self, name: &str, volume: VolumeId) -> Result<SnapshotHandle> {
        let (inner, options) = (&self.0.inner, self.0.options());
        inner.authorize(options, "snapshot.create")?;
        if let Some(message) = name_problem(name) {
            return Err(Error::invalid(
                "snapshot.create",
                vec![problem("name", message)],
            ));
        }
        let request = format!("{name}:{volume}");
        if let Some((ObjectRef::Snapshot(id), _)) =
            inner.recall(options, "snapshot.create", &request).await?
        {
            return Ok(SnapshotHandle {
                cluster: self.0.clone(),
                id,
                created: None,
            });
        }
        let version = inner
            .read(|cache| {
                cache
                    .volumes
                    .get(&volume)
                    .filter(|v| v.meta.deleted_at.is_none())
                    .map(|v| v.version)
            })
            .await?
            .ok_or_else(|| {
                Error::new(
                    ErrorKind::NotFound,
                    "snapshot.create",
                    "there is no such volume",
                )
                .with("volume", volume)
            })?;
        let now = inner.clock.now();
        let id = SnapshotId::generate(now, &*inner.ids);
        let name = Name::new(name)?;
        let meta = Meta::new(name, options.project.clone(), now);
        let draft = Draft::new()
            .name(&meta, "snapshot", id)?
            .unchanged::<Volume>(&volume, Some(version))
            .put(&id, &Snapshot { id, meta, volume })?;
        let change = Change {
            verb: "snapshot.create",
            object: ObjectRef::Snapshot(id),
            kind: OperationKind::Create,
            draft,
            request,
        };
        let admitted = inner.admit(options, change).await.map_err(name_taken)?;
        Ok(SnapshotHandle {
            cluster: self.0.clone(),
            id,
            created: Some(OperationHandle::new(inner, admitted.operation)),
        })
    }
}

impl SnapshotHandle {
    /// Its id.
    pub fn id(&self) -> SnapshotId {
        self.id
    }

    /// The operation that makes it, if this handle came from `create`.
    pub fn operation(&self) -> Option<&OperationHandle> {
        self.created.as_ref()
    }

    /// Deletes it; the volume stays as it is.
    ///
    /// # Errors
    /// [`ErrorKind::NotFound`].
    pub async fn delete(&self) -> Result<OperationHandle> {
        let (inner, options, id) = (&self.cluster.inner, self.cluster.options(), self.id);
        inner.authorize(options, "snapshot.delete")?;
        let now = inner.clock.now();
        let draft = inner
            .read(|cache| {
                let Some(snapshot) = cache.snapshots.get(&id) else {
                    return Err(Error::new(
                        ErrorKind::NotFound,
                        "snapshot.delete",
                        "there is no such snapshot",
                    ));
                };
                let mut marked = snapshot.value.clone();
                marked.meta.deleted_at.get_or_insert(now);
                Draft::new()
                    .unchanged::<Snapshot>(&id, Some(snapshot.version))
                    .put(&id, &marked)
            })
            .await??;
        let change = Change {
            verb: "snapshot.delete",
            object: ObjectRef::Snapshot(id),
            kind: OperationKind::Delete,
            draft,
            request: id.to_string(),
        };
        Ok(OperationHandle::new(
            inner,
            inner.admit(options, change).await?.operation,
        ))
    }
}
