//! Disks of a cloud and their snapshots. A disk is a volume whose pool is the cloud's zone.

use async_trait::async_trait;
use futures::stream::BoxStream;

use super::{CloudPlace, CloudTask, InstanceId};
use crate::driver::Call;
use crate::error::Result;
use crate::model::{Bytes, ClusterId, RegionId, SnapshotId, VolumeId};

/// A disk to make.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DiskRequest {
    /// The cluster it is made for.
    pub cluster: ClusterId,
    /// Its id, and the request's idempotency token.
    pub id: VolumeId,
    /// Where. It can be attached to instances of the same zone.
    pub place: CloudPlace,
    /// Its size; the source's if zero.
    pub size: Bytes,
    /// The kind of disk, as the catalog names it; the cloud's usual one if none.
    pub kind: Option<String>,
    /// What it begins as; zeroes if none.
    pub source: Option<DiskSourceId>,
}

/// What a disk begins as.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DiskSourceId {
    /// A snapshot in the same region.
    Snapshot(SnapshotId),
    /// A copy of another disk.
    Disk(VolumeId),
}

/// A disk as the cloud tells it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CloudDisk {
    /// The volume.
    pub id: VolumeId,
    /// The cloud's own name for it.
    pub cloud_id: String,
    /// Where.
    pub place: CloudPlace,
    /// Its size.
    pub size: Bytes,
    /// The instance that has it.
    pub attached: Option<InstanceId>,
    /// Its snapshots in the region.
    pub snapshots: Vec<SnapshotId>,
}

/// A cloud's disks.
#[async_trait]
pub trait CloudDisks: Send + Sync {
    /// Makes a disk. *A second identical call* changes nothing. *Left behind on failure:* only what `delete` removes.
    /// *Errors:* `Invalid` for a size that is smaller than the source's, `Exhausted` without quota.
    async fn create(&self, call: Call, request: &DiskRequest) -> Result<CloudTask>;

    /// One disk, or none if it does not exist.
    async fn inspect(
        &self,
        call: Call,
        region: &RegionId,
        id: VolumeId,
    ) -> Result<Option<CloudDisk>>;

    /// The cluster's disks in a region.
    async fn list(
        &self,
        call: Call,
        region: &RegionId,
        cluster: ClusterId,
    ) -> Result<BoxStream<'static, Result<CloudDisk>>>;

    /// Gives a disk to an instance, for it alone. *A second identical call* changes nothing. *Errors:*
    /// `FailedPrecondition` while another instance has it, or when they are in different zones.
    async fn attach(
        &self,
        call: Call,
        region: &RegionId,
        id: VolumeId,
        to: InstanceId,
    ) -> Result<CloudTask>;

    /// Takes it back. *Holds when the task is done:* the instance cannot write to it any more. One that is not attached
    /// is no error.
    async fn detach(
        &self,
        call: Call,
        region: &RegionId,
        id: VolumeId,
        from: InstanceId,
    ) -> Result<CloudTask>;

    /// Grows it. One that has at least that size is no error.
    async fn grow(
        &self,
        call: Call,
        region: &RegionId,
        id: VolumeId,
        size: Bytes,
    ) -> Result<CloudTask>;

    /// Removes it. *A second identical call* changes nothing. *Errors:* `FailedPrecondition` while it is attached.
    async fn delete(&self, call: Call, region: &RegionId, id: VolumeId) -> Result<CloudTask>;

    /// Takes a snapshot, of the instant of this call. *A second identical call* changes nothing.
    async fn snapshot(
        &self,
        call: Call,
        region: &RegionId,
        id: VolumeId,
        snapshot: SnapshotId,
    ) -> Result<CloudTask>;

    /// Removes a snapshot; one that is not there is no error.
    async fn delete_snapshot(
        &self,
        call: Call,
        region: &RegionId,
        snapshot: SnapshotId,
    ) -> Result<CloudTask>;
}
