//! Snapshots: a volume at one point in time.

use super::check;
use super::object::{Object, find, object_parts, siblings};
use super::request::refuse;
use crate::control::cache::Cache;
use crate::control::plan::Draft;
use crate::error::{Error, ErrorKind, Result};
use crate::model::{
    DiskBus, Meta, Name, Snapshot, SnapshotId, StorageStatus, Versioned, Volume, VolumeId,
};
use crate::time::Timestamp;

/// A snapshot as it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SnapshotView {
    /// What should be.
    pub snapshot: Versioned<Snapshot>,
    /// What is; none before the controller has looked at it.
    pub status: Option<StorageStatus>,
}

siblings! {
    "snapshot", Snapshot, SnapshotId, SnapshotView, Snapshots, SnapshotHandle,
    /// Deletes it; the volume stays as it is.
    ///
    /// # Errors
    /// [`ErrorKind::NotFound`](crate::ErrorKind::NotFound).
}

impl Object for Snapshot {
    type View = SnapshotView;
    object_parts!("snapshot", Snapshot, snapshots);

    fn view(snapshot: &Versioned<Self>, cache: &Cache, _: Timestamp) -> SnapshotView {
        let status = cache.snapshot_status.get(&snapshot.id);
        SnapshotView {
            snapshot: snapshot.clone(),
            status: status.map(|s| s.value.0.clone()),
        }
    }

    fn in_use(&self, _: &Cache) -> Option<String> {
        None
    }
}

impl Snapshots {
    /// Takes a snapshot of a volume; of one that is attached to a running guest, while it runs (crash-consistent unless
    /// the guest was frozen).
    ///
    /// # Errors
    /// [`ErrorKind::Invalid`] for the name; [`ErrorKind::NotFound`] for the volume;
    /// [`ErrorKind::FailedPrecondition`] when the volume is being deleted, and while it is the medium in a CD-ROM drive;
    /// [`ErrorKind::AlreadyExists`].
    pub async fn create(&self, name: &str, volume: VolumeId) -> Result<SnapshotHandle> {
        const VERB: &str = "snapshot.create";
        let (inner, options) = (&self.0.inner, self.0.options());
        let request = (name, volume);
        let draft = async {
            refuse(VERB, check::name(name))?;
            let version = inner
                .read(|cache| {
                    let found = find::<Volume>(cache, options, VERB, volume)?;
                    if found.meta.deleted_at.is_some() {
                        let message = "the volume is being deleted";
                        return Err(Error::new(ErrorKind::FailedPrecondition, VERB, message));
                    }
                    let disk = cache.disk_of(found);
                    if disk.is_some_and(|disk| disk.role.is_state()) {
                        let message = "it holds the state of a VM's firmware or TPM, of which there are no snapshots";
                        return Err(Error::new(ErrorKind::Unsupported, VERB, message));
                    }
                    if disk.is_some_and(|disk| disk.options.bus == DiskBus::Cdrom) {
                        let message = "it is the medium in a VM's CD-ROM drive: detach it first";
                        return Err(Error::new(ErrorKind::FailedPrecondition, VERB, message));
                    }
                    Ok(found.version)
                })
                .await??;
            let now = inner.clock.now();
            let id = SnapshotId::generate(now, &*inner.ids);
            let meta = Meta::new(Name::new(name)?, options.project.clone(), now);
            let draft = Draft::new()
                .name(&meta, "snapshot", id)?
                .unchanged::<Volume>(&volume, Some(version))
                .put(&id, &Snapshot { id, meta, volume })?;
            Ok((id, draft))
        };
        let made = self.0.create::<Snapshot>(VERB, &request, draft);
        Ok(self.created(made.await?))
    }
}
