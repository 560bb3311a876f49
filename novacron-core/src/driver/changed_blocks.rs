//! Which parts of a volume differ between two points in time: what an incremental backup reads and a copy sends again.

use async_trait::async_trait;
use futures::stream::BoxStream;

use super::Call;
use crate::error::Result;
use crate::model::{Bytes, SnapshotId, VolumeId};

/// A stretch of a disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Extent {
    /// Where it begins.
    pub offset: u64,
    /// How long it is; not zero.
    pub length: Bytes,
    /// Whether it reads as zeroes, so that it need not be read.
    pub zero: bool,
}

/// The extents of a volume that differ between two points in time.
#[async_trait]
pub trait ChangedBlocks: Send + Sync {
    /// The extents that differ between `from` and `to`, in order, not overlapping.
    ///
    /// *Needs:* `from` is a committed snapshot that is older than `to`; none stands for the empty disk, so that all that
    /// was ever written is told. `to` is a committed snapshot, or none for now; now needs that no domain writes the
    /// volume. *Holds on return:* every byte outside of the extents is the same at both points; a byte within may be the
    /// same too. What lies beyond the size at `from` counts as changed. While the stream is read both points are kept:
    /// deleting one waits, or is refused. *Errors:* `NotFound` for a snapshot that is not there; `FailedPrecondition`
    /// for a volume that is written, and where the difference cannot be told any more: read all of it then. An error
    /// within the stream ends it. *Left behind:* nothing, once the stream is dropped.
    async fn changed(
        &self,
        call: Call,
        id: VolumeId,
        from: Option<SnapshotId>,
        to: Option<SnapshotId>,
    ) -> Result<BoxStream<'static, Result<Extent>>>;
}
