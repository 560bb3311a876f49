//! Volumes of one pool. A backend owns every layer of a disk: nobody else makes, names or removes one.
//!
//! ```text
//!   create (blank | image | snapshot | import) ──► attach(epoch) ──► Attachment ──► detach ──► delete
//!   live snapshot:  snapshot_prepare(writer) ─► layer: Hypervisor::disk_pivot().pivot ─► snapshot_commit
//!                                            └► no layer: the backend freezes the data itself ─┘
//!   cold snapshot:  snapshot_prepare(nobody) ──────────────────────────────────────────► snapshot_commit
//! ```
//! Images and volumes are both *artefacts* with an id that a committed record named first; whatever a crash leaves in
//! the middle carries that id, so that `delete` removes it and [`StorageBackend::list`] shows it to the sweep.

use std::fmt;
use std::path::PathBuf;

use async_trait::async_trait;
use bytes::Bytes;
use futures::stream::BoxStream;
use serde::{Deserialize, Serialize};

use super::{Call, ChangedBlocks};
use crate::error::Result;
use crate::model::{
    self, ClusterId, Epoch, ImageId, ImageSource, NodeId, SnapshotId, VmId, VolumeFormat, VolumeId,
};

/// Something in a pool that a record named.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ArtefactId {
    /// A volume.
    Volume(VolumeId),
    /// An image.
    Image(ImageId),
}

impl fmt::Display for ArtefactId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Volume(id) => write!(f, "volume/{id}"),
            Self::Image(id) => write!(f, "image/{id}"),
        }
    }
}

/// What a pool holds under one id.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Artefact {
    /// Whose cluster it is.
    pub cluster: ClusterId,
    /// Which.
    pub id: ArtefactId,
    /// Bytes that it takes up in the pool.
    pub stored: model::Bytes,
}

/// What to make.
#[derive(Clone, Debug)]
pub struct CreateVolume {
    /// The cluster it is made for.
    pub cluster: ClusterId,
    /// Its id.
    pub id: ArtefactId,
    /// Its size; the source's if zero, which a blank volume cannot ask for.
    pub size: model::Bytes,
    /// How it is stored.
    pub format: VolumeFormat,
    /// What it begins as.
    pub source: CreateSource,
}

/// What a new volume begins as.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CreateSource {
    /// Zeroes.
    Blank,
    /// A linked clone of an image of this pool.
    Image(ImageId),
    /// A full copy of a snapshot of a volume of this pool.
    Snapshot(VolumeId, SnapshotId),
    /// Data from outside: checked to be what it says it is, then copied.
    Import {
        /// From where.
        source: ImageSource,
        /// The SHA-256 of the source's bytes, 64 hex digits.
        sha256: Option<String>,
    },
}

/// A volume as the backend sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VolumeInfo {
    /// Its size, as a guest sees it.
    pub size: model::Bytes,
    /// How its active layer is stored.
    pub format: VolumeFormat,
    /// Its snapshots.
    pub snapshots: Vec<SnapshotId>,
    /// Bytes that it takes up.
    pub stored: model::Bytes,
}

/// A pool as the backend sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PoolInfo {
    /// Bytes in all.
    pub capacity: model::Bytes,
    /// Bytes that are free.
    pub free: model::Bytes,
    /// The pool's own id, if it has one: the same name may stand for another folder one day, or for one whose file system
    /// is not mounted.
    pub identity: Option<uuid::Uuid>,
}

/// Who wants to use a volume.
#[derive(Clone, Debug)]
pub struct AttachRequest {
    /// Where.
    pub node: NodeId,
    /// For which VM.
    pub vm: VmId,
    /// For which start. A backend that enforces the writer lets an older epoch write no more.
    pub epoch: Epoch,
}

/// How a hypervisor reaches a volume's data.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Attachment {
    /// Where the data is.
    pub source: AttachmentSource,
    /// How it is stored there.
    pub format: VolumeFormat,
    /// The epoch that may write.
    pub epoch: Epoch,
    /// Whether the backend itself keeps a second writer out; if not, image locks and claims do.
    pub enforces_writer: bool,
}

/// Where an attached volume's data is.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum AttachmentSource {
    /// A file on the node.
    File(PathBuf),
    /// A block device on the node.
    BlockDevice(PathBuf),
    /// An NBD export on a unix socket of the node.
    Nbd {
        /// The socket.
        socket: PathBuf,
        /// The export's name.
        export: String,
    },
}

/// Volumes of one pool.
#[async_trait]
pub trait StorageBackend: fmt::Debug + Send + Sync + 'static {
    /// Capacity, and whether the pool answers.
    async fn probe(&self, call: Call) -> Result<PoolInfo>;

    /// Everything of NovaCron's in the pool, also what a crash left half made.
    ///
    /// *Holds on return:* complete: what is missing does not exist, and no call on this backend that ended before can
    /// still make it.
    async fn list(&self, call: Call) -> Result<Vec<Artefact>>;

    /// Makes a volume or an image.
    ///
    /// *Holds on return:* it has at least the wanted size, is durable, and `inspect` shows it. *A second identical
    /// call* changes nothing, and answers what is there by now. *Left behind on failure:* nothing; after a crash only
    /// what `delete` of the same id removes. *Errors:* `Invalid` for a source that is not what it claims to be (with the
    /// reason) and for a wanted size that is smaller than the source's (naming both), `NotFound` for a missing source,
    /// `Exhausted` when the pool is full.
    async fn create(&self, call: Call, request: &CreateVolume) -> Result<VolumeInfo>;

    /// A volume or an image, or none if it has not been made completely.
    async fn inspect(&self, call: Call, id: ArtefactId) -> Result<Option<VolumeInfo>>;

    /// Grows a volume. *A second identical call* changes nothing: one that has at least that size is no error. *Errors:*
    /// `FailedPrecondition` while it is attached, judged when the call takes effect, so that one whose answer was lost
    /// cannot come in behind a guest.
    async fn resize(&self, call: Call, id: VolumeId, size: model::Bytes) -> Result<VolumeInfo>;

    /// Removes a volume or an image with every layer of it.
    ///
    /// *Holds on return:* nothing of it is left. *A second identical call* changes nothing. *Errors:*
    /// `FailedPrecondition` while another volume is a clone of it, naming one.
    async fn delete(&self, call: Call, id: ArtefactId) -> Result<()>;

    /// Says how to reach the volume's data from a node. *A second identical call* answers the same.
    async fn attach(&self, call: Call, id: VolumeId, request: &AttachRequest)
    -> Result<Attachment>;

    /// Takes that back. One that is not attached is no error.
    async fn detach(&self, call: Call, id: VolumeId, request: &AttachRequest) -> Result<()>;

    /// Makes everything ready for `snapshot`; nothing changes for a running guest.
    ///
    /// *Needs:* `writer` is the attached user whose domain may write the volume; none if no domain may. One snapshot is
    /// taken at a time. *Holds on return:* if the writer has to go over to a new layer before the commit, how it reaches
    /// that layer, under its own epoch; none if there is no writer, or if the backend freezes the data by itself at the
    /// commit. *A second identical call* answers the same, after the commit too. *Errors:* `FailedPrecondition` for a
    /// writer that is not attached, or while another snapshot is prepared, naming it as `snapshot`. *Left behind on failure:* nothing that a
    /// guest sees.
    async fn snapshot_prepare(
        &self,
        call: Call,
        id: VolumeId,
        snapshot: SnapshotId,
        writer: Option<&AttachRequest>,
    ) -> Result<Option<Attachment>>;

    /// Takes the snapshot: nothing changes it any more, and what is written from now on is above it.
    ///
    /// *Needs:* it was prepared, and the writer went over to the new layer, if it was given one. *A second identical
    /// call* changes nothing, also when the guest has written on. *Errors:* `NotFound` for one that was not prepared, or
    /// was deleted.
    async fn snapshot_commit(&self, call: Call, id: VolumeId, snapshot: SnapshotId) -> Result<()>;

    /// Forgets a snapshot of a volume (and a prepared one); data that others need stays. One that is not there is no
    /// error.
    async fn snapshot_delete(&self, call: Call, id: VolumeId, snapshot: SnapshotId) -> Result<()>;

    /// The volume goes back to a snapshot; every snapshot of it stays.
    ///
    /// *Errors:* `FailedPrecondition` while it is attached, judged as by `resize`. *A second identical call* goes back again, and what was written in between is lost: whoever
    /// cannot tell whether the first one ended asks a person. *Left behind on failure:* the volume as it was.
    async fn restore(&self, call: Call, id: VolumeId, snapshot: SnapshotId) -> Result<()>;

    /// Copying data out of the pool.
    fn transfer(&self) -> Option<&dyn VolumeTransfer> {
        None
    }

    /// What differs between two points in time of a volume.
    fn changed_blocks(&self) -> Option<&dyn ChangedBlocks> {
        None
    }
}

/// Copying data out of a pool.
#[async_trait]
pub trait VolumeTransfer: Send + Sync {
    /// The volume's bytes as a raw image, holes as zeroes, in order. Needs: not attached for writing, or a snapshot.
    async fn export(
        &self,
        call: Call,
        id: ArtefactId,
        snapshot: Option<SnapshotId>,
    ) -> Result<BoxStream<'static, Result<Bytes>>>;
}
