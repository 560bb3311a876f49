//! A running domain's disks, readable as they were at one point, while the guest writes on: what a backup reads.
//!
//! ```text
//!   [agent: freeze] ── begin ──► Exported: one NBD export per disk, all of one instant ── [agent: thaw]
//!                                  │ dirty(volume): what changed since the checkpoint before
//!                                  ▼
//!                        the reader reads ──► end ──► scratch space and exports are gone
//!   begin(since: c1, checkpoint: c2) … begin(since: c2, checkpoint: c3) …      a chain of increments
//! ```
//! What the guest overwrites meanwhile is first copied to scratch volumes, which the storage layer made and attached and
//! a record named. A checkpoint lives in the domain or in the image; one that is lost (the domain ended, the disk was
//! moved) makes the next backup a full one, and is told, never guessed.

use async_trait::async_trait;
use futures::stream::BoxStream;

use super::{Attachment, AttachmentSource, Call, DomainId, Extent};
use crate::error::Result;
use crate::model::{Bytes, CheckpointId, ExportId, VolumeId};

/// What to make readable.
#[derive(Clone, Debug)]
pub struct ExportRequest {
    /// Its name: a committed record has it.
    pub id: ExportId,
    /// The disks.
    pub disks: Vec<ExportDisk>,
    /// Count changes from this instant on under this name.
    pub checkpoint: Option<CheckpointId>,
}

/// A disk to make readable.
#[derive(Clone, Debug)]
pub struct ExportDisk {
    /// The volume.
    pub volume: VolumeId,
    /// Tell what changed since then; everything if none.
    pub since: Option<CheckpointId>,
    /// Takes what the guest overwrites while the export is read: a volume that nobody else uses.
    pub scratch: Attachment,
}

/// A disk that can be read as it was at the export's instant.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ExportedDisk {
    /// The volume.
    pub volume: VolumeId,
    /// Where to read it: an NBD export of this host, read-only.
    pub source: AttachmentSource,
    /// Its size.
    pub size: Bytes,
}

/// Exports of a running domain's disks at one point in time.
#[async_trait]
pub trait BlockExport: Send + Sync {
    /// Makes the disks readable as they are at one instant.
    ///
    /// *Needs:* a started domain to which all of them are attached; scratch space. *Holds on return:* every export reads
    /// as the disk was at the same instant; what changes from then on is counted under the checkpoint. *A second identical
    /// call* answers the same and takes no new instant. *Left behind on failure:* nothing: neither exports nor the
    /// checkpoint; after a crash only what [`BlockExport::end`] and [`BlockExport::forget`] remove. *Errors:* `NotFound`,
    /// naming it, for a checkpoint that is lost: the caller then asks for everything; `FailedPrecondition` while another
    /// export of a disk is open.
    async fn begin(
        &self,
        call: Call,
        id: DomainId,
        request: &ExportRequest,
    ) -> Result<Vec<ExportedDisk>>;

    /// The extents of an exported disk that changed since its checkpoint (all that has data, without one), in order.
    /// Needs an open export. *A second identical call* tells the same.
    async fn dirty(
        &self,
        call: Call,
        id: DomainId,
        export: ExportId,
        volume: VolumeId,
    ) -> Result<BoxStream<'static, Result<Extent>>>;

    /// Ends an export; its readers' connections are cut.
    ///
    /// *Holds on return:* nothing of it is left in the domain, and the scratch volumes are closed. Its checkpoint stays.
    /// *A second identical call*, one of an export that is not open and one of a domain that has ended change nothing.
    /// *Errors:* `Exhausted`, with the disk's volume, when scratch space ran out on the way: what was read is worthless;
    /// the export is ended all the same, and the guest was not disturbed.
    async fn end(&self, call: Call, id: DomainId, export: ExportId) -> Result<()>;

    /// The exports that are open.
    async fn exports(&self, call: Call, id: DomainId) -> Result<Vec<ExportId>>;

    /// The checkpoints from which changes can still be told.
    async fn checkpoints(&self, call: Call, id: DomainId) -> Result<Vec<CheckpointId>>;

    /// Stops counting from a checkpoint. One that is not there is no error. *Errors:* `FailedPrecondition` while an open
    /// export tells the changes since.
    async fn forget(&self, call: Call, id: DomainId, checkpoint: CheckpointId) -> Result<()>;
}
