//! Claim, assignment and run: who may run a VM, what it was told, and what is.
//!
//! ```text
//!   claim/vm/<vm>            leader   epoch, place, held | released(StopProof)      never expires
//!   assignment/<node>/<vm>   leader   the resolved machine and the wanted power     the owner's only input
//!   run/<node>/<vm>          owner    phase, exit, StopProof                        the leader creates and removes it
//! ```
//! Each record has one writer. Every start has a new **epoch**: the leader grants it, in one commit with the assignment
//! and the run, only if no claim exists or the one before was released by a [`StopProof`]; the types ask for the proof.

use serde::{Deserialize, Serialize};

use super::ids::{HostId, NodeId, PlaceId, VmId, VolumeId};
use super::member::FenceReceipt;
use super::network::{MacAddr, NetworkKind, PortForward};
use super::storage::VolumeFormat;
use super::vm::{DiskRole, Machine, PowerRequest};
use super::{PoolId, PortId};
use crate::lifecycle::RunPhase;
use crate::time::Timestamp;

/// Number of a VM's start; a volume's writer carries the same one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Epoch(pub u64);

impl std::fmt::Display for Epoch {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.fmt(f)
    }
}

/// Why it is certain that an epoch of a VM does not run, and cannot begin to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum StopProof {
    /// The driver confirmed that the domain ended and that its run lock, where it has one, is free.
    DriverConfirmed {
        /// The host that was asked.
        host: HostId,
        /// The host's boot id at that time.
        boot_id: String,
        /// When.
        at: Timestamp,
    },
    /// The host has booted since the run began.
    HostRebooted {
        /// The boot id that the run began under.
        was: String,
        /// The boot id now.
        now: String,
    },
    /// It was never started: released before the first command.
    NeverStarted,
    /// The host was fenced after its owner was lost.
    Fenced {
        /// What the fence said.
        receipt: FenceReceipt,
        /// When this was concluded.
        at: Timestamp,
    },
    /// An operator's word.
    Operator {
        /// Whose.
        principal: String,
        /// When.
        at: Timestamp,
    },
}

impl StopProof {
    /// Whether the VM went with its host: nothing that it did, and nothing that was asked.
    pub fn is_host_lost(&self) -> bool {
        match self {
            Self::Fenced { .. } | Self::HostRebooted { .. } | Self::Operator { .. } => true,
            Self::DriverConfirmed { .. } | Self::NeverStarted => false,
        }
    }

    /// Whether the epoch's owner had no part in it, so that its volumes may still be attached.
    pub(crate) fn leaves_volumes(&self) -> bool {
        match self {
            Self::Operator { .. } | Self::Fenced { .. } => true,
            Self::DriverConfirmed { .. } | Self::HostRebooted { .. } | Self::NeverStarted => false,
        }
    }
}

/// The right to run a VM. There is at most one per VM, and it never expires.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Claim {
    /// Whose start this is.
    pub epoch: Epoch,
    /// Who may run it.
    pub place: PlaceId,
    /// The proof that released it; held while there is none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub released: Option<StopProof>,
    /// The power request that this start served.
    pub power_serial: u64,
    /// Starts that failed one after another; back to zero once it ran.
    #[serde(default)]
    pub failures: u32,
    /// Not to be started again before this time.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub not_before: Option<Timestamp>,
    /// Why this place was chosen.
    pub decision: super::Decision,
    /// Whether this start brings back a VM whose host was lost.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub recovery: bool,
    /// Where the VM is to be started next, with room kept for it there: it is being moved.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub moving_to: Option<NodeId>,
    /// The node that it was moved away from, and returns to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub home: Option<NodeId>,
}

impl Claim {
    /// Whether somebody may be running it.
    pub fn is_held(&self) -> bool {
        self.released.is_none()
    }

    /// The claim, released. Only a proof can do that.
    #[must_use]
    pub fn release(mut self, proof: StopProof) -> Self {
        self.released = Some(proof);
        self
    }
}

/// The right to write a volume: the VM's epoch that has it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VolumeClaim {
    /// The VM.
    pub vm: VmId,
    /// Its epoch.
    pub epoch: Epoch,
    /// Where.
    pub place: PlaceId,
    /// Whether the epoch is over without its owner having let go of the volume: then the pool's owner does, and removes
    /// the claim.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub orphaned: bool,
}

/// What a node's owner has to make true: everything resolved, so that it needs no other record.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Assignment {
    /// The VM.
    pub vm: VmId,
    /// The VM's name, for people.
    pub name: String,
    /// The start this is.
    pub epoch: Epoch,
    /// The generation of the VM's spec that this was made from.
    pub generation: u64,
    /// The machine.
    pub machine: Machine,
    /// The machine's disks, in its order.
    pub disks: Vec<AssignedDisk>,
    /// The machine's NICs, in its order.
    pub ports: Vec<AssignedPort>,
    /// The wanted power.
    pub power: PowerRequest,
}

impl Assignment {
    /// The disks that the guest sees.
    pub(crate) fn guest_disks(&self) -> impl Iterator<Item = &AssignedDisk> {
        let is_state = |volume| self.machine.role(volume).is_some_and(DiskRole::is_state);
        self.disks.iter().filter(move |disk| !is_state(disk.volume))
    }
}

/// A disk, resolved.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AssignedDisk {
    /// The disk's name in the VM.
    pub name: String,
    /// The volume.
    pub volume: VolumeId,
    /// Its pool.
    pub pool: PoolId,
    /// Its format.
    pub format: VolumeFormat,
    /// The generation in which what of its options is live was last changed for this start; 0 if that is as the start had it.
    #[serde(default)]
    pub live_generation: u64,
}

/// A NIC, resolved.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AssignedPort {
    /// The port.
    pub port: PortId,
    /// The MAC address.
    pub mac: MacAddr,
    /// The network.
    pub network: NetworkKind,
    /// Port forwards.
    pub forwards: Vec<PortForward>,
    /// As [`AssignedDisk::live_generation`].
    #[serde(default)]
    pub live_generation: u64,
}

/// One boot of one host.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HostBoot {
    /// The host's own UUID: the same name may stand for another machine one day.
    pub host: HostId,
    /// Its boot id.
    pub boot_id: String,
}

/// What is: the status of one epoch of a VM on one node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Run {
    /// The VM.
    pub vm: VmId,
    /// The node.
    pub node: NodeId,
    /// The start this is.
    pub epoch: Epoch,
    /// Where it stands.
    pub phase: RunPhase,
    /// The host when the start was issued, and its boot.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub began: Option<HostBoot>,
    /// Why it is as it is, for people.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub message: String,
    /// How the guest ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub exit: Option<Exit>,
    /// The proof that it does not run any more.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub proof: Option<StopProof>,
    /// When the phase was entered.
    pub since: Timestamp,
    /// When it first ran in this epoch.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub started_at: Option<Timestamp>,
    /// The generation of the spec that the domain follows.
    #[serde(default)]
    pub generation: u64,
}

/// How a guest ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Exit {
    /// The guest powered itself off.
    GuestShutdown,
    /// It was stopped by a request.
    Requested,
    /// The guest's kernel panicked.
    Panicked,
    /// The hypervisor's process ended by itself, or was killed outright: the two cannot always be told apart.
    Crashed {
        /// Its last words.
        detail: String,
    },
    /// Somebody else on the host ended the hypervisor's process in an orderly way, such as by SIGTERM. Nobody asked
    /// NovaCron for it, so it counts as a failure.
    Terminated {
        /// How, and its last words.
        detail: String,
    },
    /// It never began to run.
    StartFailed {
        /// Why.
        detail: String,
    },
}

impl std::fmt::Display for Exit {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::GuestShutdown => f.write_str("the guest powered itself off"),
            Self::Requested => f.write_str("it was asked to stop"),
            Self::Panicked => f.write_str("the guest's kernel panicked"),
            Self::Crashed { detail } => write!(f, "it crashed: {detail}"),
            Self::Terminated { detail } => write!(f, "it was ended from outside: {detail}"),
            Self::StartFailed { detail } => write!(f, "its start failed: {detail}"),
        }
    }
}

impl Exit {
    /// Whether a restart policy `on_failure` starts it again.
    pub fn is_failure(&self) -> bool {
        matches!(
            self,
            Self::Panicked
                | Self::Crashed { .. }
                | Self::Terminated { .. }
                | Self::StartFailed { .. }
        )
    }
}
