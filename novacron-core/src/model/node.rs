//! Nodes: a hypervisor under management, and what its host can do.

use std::collections::BTreeSet;
use std::fmt;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::cpu::Cpu;
use super::ids::{HostId, MemberId, NodeId};
use super::units::MiB;
use crate::time::Timestamp;

/// A node's record: what should be.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Node {
    /// Its name.
    pub id: NodeId,
    /// Whether new VMs may be placed on it.
    pub schedulable: bool,
    /// That its VMs are to leave it, until it is schedulable again: maintenance.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub evacuation: Option<Evacuation>,
    /// Counts the changes.
    #[serde(default)]
    pub generation: u64,
}

/// That a node's VMs are to leave it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Evacuation {
    /// What becomes of them afterwards.
    pub returning: Returning,
}

/// What becomes of the VMs that left a node when it is schedulable again.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Returning {
    /// They stay where they are.
    #[default]
    Stay,
    /// They move back, as they left: as many at a time, and only where there is room for them.
    Return,
}

/// A node's status, written by its owner.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NodeStatus {
    /// Whether the hypervisor answers.
    pub state: NodeState,
    /// Why it does not.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub message: String,
    /// What the last probe found.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub host: Option<HostInfo>,
    /// The owner that saw it.
    pub member: MemberId,
    /// For how many seconds the host's armed watchdog waits to be fed: the host ends itself when this owner is lost.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub watchdog_secs: Option<u64>,
    /// Domains that no record names. They are reported, never touched.
    #[serde(default, skip_serializing_if = "Unexplained::is_empty")]
    pub unknown_domains: Unexplained,
    /// When the state last changed.
    pub since: Timestamp,
}

/// What was found that no record explains.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Unexplained {
    /// Its names: [`Unexplained::NAMED`] at most, so that a host full of others' things does not make the record too
    /// large to be written.
    pub names: Vec<String>,
    /// How many more there are.
    #[serde(default)]
    pub more: u64,
}

impl Unexplained {
    /// The most names that are told.
    pub const NAMED: usize = 100;
    /// The most characters of a name that are told.
    const LONGEST: usize = 200;

    /// Whether everything is explained.
    pub fn is_empty(&self) -> bool {
        self.names.is_empty() && self.more == 0
    }
}

impl FromIterator<String> for Unexplained {
    fn from_iter<I: IntoIterator<Item = String>>(found: I) -> Self {
        let mut found = found.into_iter();
        let short = |name: String| name.chars().take(Self::LONGEST).collect();
        let names = found.by_ref().take(Self::NAMED).map(short).collect();
        Self {
            names,
            more: found.count() as u64,
        }
    }
}

/// Whether a node's hypervisor answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum NodeState {
    /// It answers.
    Available,
    /// It does not; its guests may run on.
    Unreachable,
}

/// What a probe of a host found.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HostInfo {
    /// The host's own UUID: ownership is keyed by it.
    pub host: HostId,
    /// Changes with every boot of the host (`/proc/sys/kernel/random/boot_id`).
    pub boot_id: String,
    /// What it can do now. Only this is scheduled on.
    pub capabilities: NodeCapabilities,
}

/// What a host can do now.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct NodeCapabilities {
    /// The hypervisor and its version, as `QEMU 7.2.22`.
    pub hypervisor: String,
    /// The guests' architecture, as `x86_64`.
    pub arch: String,
    /// How guests are run: `kvm`, `tcg`, `sim`.
    pub acceleration: String,
    /// CPUs.
    pub cpus: u32,
    /// Memory.
    pub memory: MiB,
    /// The most vCPUs that one guest can have.
    pub max_vcpus: u32,
    /// The CPU models that guests can have by name: those of which the host lacks nothing.
    pub cpu_models: Arc<BTreeSet<String>>,
    /// The CPU features that guests can have.
    pub cpu_features: Arc<BTreeSet<String>>,
    /// What else it can do.
    pub can: BTreeSet<Capability>,
}

impl NodeCapabilities {
    /// What the host lacks for such a machine, in a rule's words: `lack the CPU model Haswell`.
    pub fn lacking(&self, cpu: &Cpu, needs: &BTreeSet<Capability>) -> Option<String> {
        let mut model = cpu.named().into_iter();
        if let Some(model) = model.find(|model| !self.cpu_models.contains(*model)) {
            return Some(format!("lack the CPU model {model}"));
        }
        let mut features = cpu.required();
        if let Some(feature) = features.find(|name| !self.cpu_features.contains(*name)) {
            return Some(format!("lack the CPU feature {feature}"));
        }
        let lacking = needs.difference(&self.can).next()?;
        Some(format!("lack {lacking}"))
    }
}

/// Something that one host can do and another perhaps not.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Capability {
    /// UEFI firmware is there.
    Uefi,
    /// UEFI firmware that starts what is signed only is there, with variables in which keys are enrolled.
    SecureBoot,
    /// Tap devices on bridges can be made.
    Bridge,
    /// User-mode networking is there.
    UserNetwork,
    /// Disks and NICs can be attached while the guest runs.
    HotPlug,
    /// Disks can be snapshotted while the guest runs.
    LiveSnapshot,
    /// Disks can be on virtio-scsi.
    ScsiDisks,
    /// Disks and CD-ROM drives can be on SATA.
    SataDisks,
    /// Disks can be on NVMe.
    NvmeDisks,
    /// What a guest reads and writes of a disk can be limited.
    DiskLimits,
    /// Disks that are read and written by io_uring.
    IoUring,
    /// Disks that are read and written by threads of their own.
    IoThreads,
    /// Guests can have NICs of the model e1000e.
    E1000eNics,
    /// What a guest sends and receives over a NIC can be limited.
    NicLimits,
    /// CPUs that have Hyper-V's enlightenments.
    HyperV,
    /// Huge pages are set aside.
    HugePages,
    /// Guests' memory can be kept from being swapped out.
    LockedMemory,
    /// Guests' memory can be shared with other processes.
    SharedMemory,
    /// Guests can have a USB tablet.
    Tablet,
    /// Guests can have a watchdog.
    Watchdog,
    /// A TPM 2.0 of the guest's, whose state is kept.
    Tpm,
}

impl Capability {
    /// All of them.
    pub const ALL: [Self; 21] = [
        Self::Uefi,
        Self::SecureBoot,
        Self::Bridge,
        Self::UserNetwork,
        Self::HotPlug,
        Self::LiveSnapshot,
        Self::ScsiDisks,
        Self::SataDisks,
        Self::NvmeDisks,
        Self::DiskLimits,
        Self::IoUring,
        Self::IoThreads,
        Self::E1000eNics,
        Self::NicLimits,
        Self::HyperV,
        Self::HugePages,
        Self::LockedMemory,
        Self::SharedMemory,
        Self::Tablet,
        Self::Watchdog,
        Self::Tpm,
    ];

    /// Those of which it is so.
    pub fn those<const N: usize>(all: [(Self, bool); N]) -> BTreeSet<Self> {
        let those = all.into_iter().filter(|(_, is)| *is);
        those.map(|(capability, _)| capability).collect()
    }
}

impl fmt::Display for Capability {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Uefi => "UEFI firmware",
            Self::SecureBoot => "Secure Boot",
            Self::Bridge => "bridged networks",
            Self::UserNetwork => "user-mode networks",
            Self::HotPlug => "hot-plug",
            Self::LiveSnapshot => "live snapshots",
            Self::ScsiDisks => "SCSI disks",
            Self::SataDisks => "SATA disks",
            Self::NvmeDisks => "NVMe disks",
            Self::DiskLimits => "limits of disks",
            Self::IoUring => "disks by io_uring",
            Self::IoThreads => "I/O threads",
            Self::HyperV => "Hyper-V enlightenments",
            Self::E1000eNics => "NICs of the model e1000e",
            Self::NicLimits => "limits of NICs",
            Self::HugePages => "huge pages",
            Self::LockedMemory => "locked memory",
            Self::SharedMemory => "shared memory",
            Self::Tablet => "USB tablets of guests",
            Self::Watchdog => "watchdogs of guests",
            Self::Tpm => "TPMs of guests",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_unexplained_is_told_up_to_a_limit() {
        let found: Unexplained = (0..250).map(|n| format!("{n:0>500}")).collect();
        assert_eq!((found.names.len(), found.more), (100, 150));
        assert!(found.names.iter().all(|name| name.len() == 200));
        assert!(Unexplained::from_iter([]).is_empty());
    }
}
