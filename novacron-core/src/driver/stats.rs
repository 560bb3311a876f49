//! The numbers of a domain, counted up since its start, and its memory now.

use serde::{Deserialize, Serialize};

use crate::model::{Bytes, PortId, VolumeId};
use crate::time::Timestamp;

/// Numbers of a running domain, since its start unless said otherwise.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct DomainStats {
    /// CPU time of each vCPU, ns.
    pub vcpu_ns: Vec<u64>,
    /// Memory of the domain's process on the host, bytes, now.
    pub resident: Bytes,
    /// Per disk.
    pub disks: Vec<DiskStats>,
    /// Per NIC.
    pub nics: Vec<NicStats>,
    /// What the guest's own kernel says of its memory; nothing without its balloon's driver, and for the first seconds.
    #[serde(default)]
    pub guest_memory: Option<GuestMemory>,
}

/// A guest's memory, as its kernel counted it at a time: a virtio balloon's statistics (virtio 1.2, 5.5.6.4). It is asked every
/// few seconds; one that is paused or hangs does not answer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct GuestMemory {
    /// When the guest said so.
    pub at: Timestamp,
    /// What the kernel has, less what it took for itself when it booted.
    pub total: Bytes,
    /// What programs could be given without swapping: Linux's `MemAvailable`.
    pub usable: Bytes,
    /// What is of no use for anything now.
    pub unused: Bytes,
    /// What caches files, and can be given up for programs.
    pub caches: Bytes,
    /// What was read back from swap since it booted.
    pub swapped_in: Bytes,
    /// What was written to swap since it booted.
    pub swapped_out: Bytes,
}

/// Numbers of a disk.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DiskStats {
    /// The volume.
    pub volume: VolumeId,
    /// Bytes read.
    pub read_bytes: u64,
    /// Bytes written.
    pub written_bytes: u64,
    /// Read requests.
    pub reads: u64,
    /// Write requests.
    pub writes: u64,
}

/// Numbers of a NIC. A driver that cannot count leaves the domain's list empty.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NicStats {
    /// The port.
    pub port: PortId,
    /// Bytes the guest received.
    pub received_bytes: u64,
    /// Bytes the guest sent.
    pub sent_bytes: u64,
}
