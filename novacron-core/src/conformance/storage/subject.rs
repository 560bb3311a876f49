//! A pool under test, with the few calls that nearly every behaviour makes.

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use super::{Ability, StorageFixture, TestSource};
use crate::conformance::within;
use crate::driver::{
    Artefact, ArtefactId, AttachRequest, Attachment, Call, CreateSource, CreateVolume,
    StorageBackend, VolumeInfo, VolumeTransfer,
};
use crate::error::Result;
use crate::model::{
    Bytes, ClusterId, Epoch, ImageId, ImageSource, SnapshotId, VmId, VolumeFormat, VolumeId,
};
use crate::time::{SeededIds, Timestamp};

const NO_TIME: Timestamp = Timestamp::from_millis(0);

/// The size of the volumes that behaviours make.
pub(super) const SIZE: Bytes = Bytes::mib(8);

/// A pool under test.
pub(super) struct Subject<'f> {
    pub(super) fixture: &'f dyn StorageFixture,
    pub(super) backend: Arc<dyn StorageBackend>,
    pub(super) cluster: ClusterId,
    pub(super) vm: VmId,
    pub(super) ids: SeededIds,
}

impl<'f> Subject<'f> {
    pub(super) async fn open(fixture: &'f dyn StorageFixture) -> Self {
        let ids = SeededIds::from_os();
        Self {
            backend: within(fixture.patience(), "open", fixture.open()).await,
            fixture,
            cluster: ClusterId::generate(NO_TIME, &ids),
            vm: VmId::generate(NO_TIME, &ids),
            ids,
        }
    }

    /// Ends the backend and opens it anew, as after a restart of the host application.
    pub(super) async fn reopen(self) -> Self {
        let patience = self.fixture.patience();
        within(patience, "close", self.fixture.close(self.backend)).await;
        Self {
            backend: within(patience, "open", self.fixture.open()).await,
            ..self
        }
    }

    pub(super) fn can(&self, ability: Ability) -> bool {
        !self.fixture.lacks().contains(&ability)
    }

    /// The accessor, which must be there exactly if the fixture says so.
    pub(super) fn transfer(&self) -> Option<&dyn VolumeTransfer> {
        let accessor = self.backend.transfer();
        assert_eq!(
            accessor.is_some(),
            self.can(Ability::Transfer),
            "what the fixture says it lacks and the driver's accessor differ"
        );
        accessor
    }

    pub(super) fn call(&self) -> Call {
        Call::within(self.fixture.patience())
    }

    pub(super) async fn soon<T>(&self, what: &str, future: impl Future<Output = T>) -> T {
        within(self.fixture.patience() * 2, what, future).await
    }

    pub(super) fn volume_id(&self) -> VolumeId {
        VolumeId::generate(NO_TIME, &self.ids)
    }

    pub(super) fn image_id(&self) -> ImageId {
        ImageId::generate(NO_TIME, &self.ids)
    }

    pub(super) fn snapshot_id(&self) -> SnapshotId {
        SnapshotId::generate(NO_TIME, &self.ids)
    }

    /// A request for a qcow2 volume or image.
    pub(super) fn request(
        &self,
        id: ArtefactId,
        size: Bytes,
        source: CreateSource,
    ) -> CreateVolume {
        CreateVolume {
            cluster: self.cluster,
            id,
            size,
            format: VolumeFormat::Qcow2,
            source,
        }
    }

    pub(super) async fn try_create(&self, request: &CreateVolume) -> Result<VolumeInfo> {
        let create = self.backend.create(self.call(), request);
        self.soon("create", create).await
    }

    pub(super) async fn create(&self, request: &CreateVolume) -> VolumeInfo {
        self.try_create(request).await.unwrap()
    }

    /// A fresh volume.
    pub(super) async fn volume(&self, size: Bytes, source: CreateSource) -> VolumeId {
        let id = self.volume_id();
        self.create(&self.request(ArtefactId::Volume(id), size, source))
            .await;
        id
    }

    /// A fresh blank volume.
    pub(super) async fn blank(&self) -> VolumeId {
        self.volume(SIZE, CreateSource::Blank).await
    }

    /// A fresh image of a source that is filled with a byte.
    pub(super) async fn image(&self, fill: u8) -> (ImageId, TestSource) {
        let (id, source) = (self.image_id(), self.fixture.source(fill).await);
        let import = import(&source.source, Some(&source.sha256));
        self.create(&self.request(ArtefactId::Image(id), Bytes(0), import))
            .await;
        (id, source)
    }

    pub(super) async fn inspect(&self, id: ArtefactId) -> Option<VolumeInfo> {
        let inspect = self.backend.inspect(self.call(), id);
        self.soon("inspect", inspect).await.unwrap()
    }

    pub(super) async fn info(&self, id: VolumeId) -> VolumeInfo {
        match self.inspect(ArtefactId::Volume(id)).await {
            Some(info) => info,
            None => panic!("volume {id} is not there"),
        }
    }

    pub(super) async fn list(&self) -> Vec<Artefact> {
        let list = self.backend.list(self.call());
        self.soon("list", list).await.unwrap()
    }

    /// The ids that are listed, in order.
    pub(super) async fn listed(&self) -> Vec<ArtefactId> {
        let mut listed: Vec<_> = self.list().await.iter().map(|a| a.id).collect();
        listed.sort_unstable();
        listed
    }

    pub(super) async fn delete(&self, id: ArtefactId) {
        let delete = self.backend.delete(self.call(), id);
        self.soon("delete", delete).await.unwrap();
    }

    pub(super) fn user(&self, epoch: u64) -> AttachRequest {
        AttachRequest {
            node: self.fixture.node(),
            vm: self.vm,
            epoch: Epoch(epoch),
        }
    }

    pub(super) async fn attach(&self, id: VolumeId) -> Attachment {
        let user = self.user(1);
        let attach = self.backend.attach(self.call(), id, &user);
        self.soon("attach", attach).await.unwrap()
    }

    pub(super) async fn detach(&self, id: VolumeId) {
        let user = self.user(1);
        let detach = self.backend.detach(self.call(), id, &user);
        self.soon("detach", detach).await.unwrap();
    }

    /// Writes as a guest that is started for it.
    pub(super) async fn write(&self, id: VolumeId, fill: u8) {
        let attachment = self.attach(id).await;
        self.fixture.write(&attachment, fill).await;
        self.detach(id).await;
    }

    /// Reads as a guest that is started for it.
    pub(super) async fn read(&self, id: VolumeId) -> u8 {
        let attachment = self.attach(id).await;
        let fill = self.fixture.read(&attachment).await;
        self.detach(id).await;
        fill
    }

    /// Prepares a snapshot of a volume that nobody writes.
    pub(super) async fn prepare(&self, id: VolumeId, snapshot: SnapshotId) {
        let call = self.call();
        let prepare = self.backend.snapshot_prepare(call, id, snapshot, None);
        assert_eq!(self.soon("snapshot_prepare", prepare).await.unwrap(), None);
    }

    /// Prepares a snapshot of a volume that is written.
    pub(super) async fn prepare_for(
        &self,
        id: VolumeId,
        snapshot: SnapshotId,
        writer: &AttachRequest,
    ) -> Option<Attachment> {
        let call = self.call();
        let prepare = self
            .backend
            .snapshot_prepare(call, id, snapshot, Some(writer));
        self.soon("snapshot_prepare", prepare).await.unwrap()
    }

    pub(super) async fn commit(&self, id: VolumeId, snapshot: SnapshotId) {
        let commit = self.backend.snapshot_commit(self.call(), id, snapshot);
        self.soon("snapshot_commit", commit).await.unwrap();
    }

    /// A fresh snapshot of a volume that is not attached.
    pub(super) async fn snapshot(&self, id: VolumeId) -> SnapshotId {
        let snapshot = self.snapshot_id();
        self.prepare(id, snapshot).await;
        self.commit(id, snapshot).await;
        snapshot
    }

    pub(super) async fn forget(&self, id: VolumeId, snapshot: SnapshotId) {
        let delete = self.backend.snapshot_delete(self.call(), id, snapshot);
        self.soon("snapshot_delete", delete).await.unwrap();
    }

    pub(super) async fn restore(&self, id: VolumeId, snapshot: SnapshotId) {
        let restore = self.backend.restore(self.call(), id, snapshot);
        self.soon("restore", restore).await.unwrap();
    }
}

pub(super) fn import(source: &ImageSource, sha256: Option<&str>) -> CreateSource {
    CreateSource::Import {
        source: source.clone(),
        sha256: sha256.map(str::to_owned),
    }
}

/// A call whose time is over.
pub(super) fn too_late() -> Call {
    Call::within(Duration::ZERO)
}
