//! Pools, volumes, images and snapshots. Each has a spec record, which the API writes, and a status record, which the
//! storage controller writes.

use std::collections::BTreeSet;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::ids::{ImageId, NodeId, PoolId, SnapshotId, VmId, VolumeId};
use super::meta::Meta;
use super::node::Unexplained;
use super::units::Bytes;
use crate::time::Timestamp;

/// From where a pool's volumes can be reached.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PoolScope {
    /// These nodes.
    Nodes(BTreeSet<NodeId>),
    /// Every node.
    All,
}

impl PoolScope {
    /// Whether `node` can reach the pool.
    pub fn reaches(&self, node: &NodeId) -> bool {
        match self {
            Self::Nodes(nodes) => nodes.contains(node),
            Self::All => true,
        }
    }
}

/// A storage pool's record, written when a cluster with it is built.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Pool {
    /// Its name.
    pub id: PoolId,
    /// From where it can be reached.
    pub scope: PoolScope,
}

/// A pool's status, written by its owner.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PoolStatus {
    /// Whether the backend answers.
    pub state: PoolState,
    /// Why it does not.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub message: String,
    /// The pool's own id, if it has one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub identity: Option<uuid::Uuid>,
    /// Bytes in all, when it last answered.
    pub capacity: Bytes,
    /// Bytes that were free, to within a hundredth of the capacity.
    pub free: Bytes,
    /// Artefacts of this cluster that neither a record nor a grave names. They are reported, never touched.
    #[serde(default, skip_serializing_if = "Unexplained::is_empty")]
    pub unknown_artefacts: Unexplained,
    /// When the state last changed.
    pub since: Timestamp,
}

/// Whether a pool's backend answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PoolState {
    /// It answers.
    Available,
    /// It does not; what is attached may go on.
    Unreachable,
}

/// A volume's record.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Volume {
    /// Its id.
    pub id: VolumeId,
    /// Name and history.
    pub meta: Meta,
    /// Where it is.
    pub pool: PoolId,
    /// What it begins as.
    pub source: VolumeSource,
    /// The size it should have; it can only grow.
    pub size: Bytes,
    /// How it is stored.
    pub format: VolumeFormat,
    /// The VM that it was made with: it has the name of its disk there, and none of its own in the project.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub made_with: Option<VmId>,
}

impl Volume {
    /// Its size as far as is known: the status knows a clone's, which is its image's, and that of one that could not be
    /// grown; one that is growing counts as grown.
    pub(crate) fn size_by(&self, status: Option<&StorageStatus>) -> Bytes {
        match status {
            Some(status) if status.generation >= self.meta.generation => status.size,
            Some(status) => status.size.max(self.size),
            None => self.size,
        }
    }
}

/// What a volume begins as.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum VolumeSource {
    /// Zeroes.
    #[default]
    Blank,
    /// A linked clone of an image: shares its data, and the image cannot be deleted while the clone is there.
    Image(ImageId),
    /// A full copy of a snapshot of a volume in the same pool.
    Snapshot(SnapshotId),
}

/// How a volume is stored.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum VolumeFormat {
    /// qcow2: sparse, snapshots.
    #[default]
    Qcow2,
    /// Raw bytes.
    Raw,
}

/// Where a volume, an image or a snapshot stands in the world.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum StorageState {
    /// Named; being made.
    Creating,
    /// Ready.
    Available,
    /// Making it failed for good.
    Failed {
        /// Why.
        reason: String,
    },
}

/// The status record of a volume, an image or a snapshot.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StorageStatus {
    /// Where it stands.
    pub state: StorageState,
    /// Its real size, as the guest sees it.
    pub size: Bytes,
    /// The spec's generation that this answers.
    pub generation: u64,
    /// Why that generation could not be reached: it stays as it was.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub problem: Option<String>,
    /// When it last changed.
    pub since: Timestamp,
}

/// An image's record: a read-only volume that others are cloned from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Image {
    /// Its id.
    pub id: ImageId,
    /// Name and history.
    pub meta: Meta,
    /// Where it is kept.
    pub pool: PoolId,
    /// Where it comes from.
    pub source: ImageSource,
    /// The SHA-256 that the source must have, 64 hex digits.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sha256: Option<String>,
}

/// Where an image comes from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum ImageSource {
    /// A file on a node that reaches the pool, raw or qcow2.
    File(PathBuf),
    /// An http(s) URL.
    Url(String),
}

/// A snapshot's record: one volume at one point in time.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Snapshot {
    /// Its id.
    pub id: SnapshotId,
    /// Name and history.
    pub meta: Meta,
    /// Of which volume.
    pub volume: VolumeId,
}
