//! References to objects of any kind.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::ids::{ImageId, NetworkId, NodeId, PoolId, SnapshotId, VmId, VolumeId};

/// An object that users can name.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ObjectRef {
    /// A VM.
    Vm(VmId),
    /// A volume.
    Volume(VolumeId),
    /// An image.
    Image(ImageId),
    /// A snapshot.
    Snapshot(SnapshotId),
    /// A network.
    Network(NetworkId),
    /// A node.
    Node(NodeId),
    /// A pool.
    Pool(PoolId),
}

impl ObjectRef {
    /// The kind's word, as in keys: `vm`.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Vm(_) => "vm",
            Self::Volume(_) => "volume",
            Self::Image(_) => "image",
            Self::Snapshot(_) => "snapshot",
            Self::Network(_) => "network",
            Self::Node(_) => "node",
            Self::Pool(_) => "pool",
        }
    }
}

impl fmt::Display for ObjectRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/", self.kind())?;
        match self {
            Self::Vm(id) => id.fmt(f),
            Self::Volume(id) => id.fmt(f),
            Self::Image(id) => id.fmt(f),
            Self::Snapshot(id) => id.fmt(f),
            Self::Network(id) => id.fmt(f),
            Self::Node(id) => id.fmt(f),
            Self::Pool(id) => id.fmt(f),
        }
    }
}
