//! Nodes: a hypervisor under management, and what its host can do.

use serde::{Deserialize, Serialize};

use super::ids::{HostId, NodeId};
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
    /// Counts the owners' processes: an action of an older one is not repeated.
    pub incarnation: u64,
    /// Domains that no record names. They are reported, never touched.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub unknown_domains: Vec<String>,
    /// When it last changed.
    pub since: Timestamp,
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
    /// UEFI firmware is there.
    pub uefi: bool,
    /// Tap devices on bridges can be made.
    pub bridge: bool,
    /// User-mode networking is there.
    pub user_network: bool,
    /// Disks and NICs can be attached while the guest runs.
    pub hot_plug: bool,
    /// Disks can be snapshotted while the guest runs.
    pub live_snapshot: bool,
}
