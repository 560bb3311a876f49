//! What can be seen of the world from outside: what runs, what is left, and what must never have happened.

use std::fmt;
use std::time::Duration;

use super::world::SimWorld;
use crate::driver::{ArtefactId, DomainId, DomainState, PortArtefact};
use crate::model::{ClusterId, HostId, PoolId, PortId, SnapshotId, VmId, VolumeId};

/// Something that must never happen.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Violation {
    /// When, since the world began.
    pub at: Duration,
    /// What.
    pub kind: ViolationKind,
}

/// What must never happen.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ViolationKind {
    /// A domain began to run while another one of the same VM did.
    RunsTwice {
        /// The one that ran already.
        first: (HostId, DomainId),
        /// The one that began to.
        second: (HostId, DomainId),
    },
    /// A running domain got a volume that another running domain writes.
    TwoWriters {
        /// The volume.
        volume: VolumeId,
        /// The one that wrote already.
        first: (HostId, DomainId),
        /// The one that began to.
        second: (HostId, DomainId),
    },
    /// A volume was deleted, restored or resized by its backend while a running domain wrote to it.
    ChangedInUse {
        /// The volume.
        volume: VolumeId,
        /// By which call.
        by: &'static str,
        /// The domain.
        user: (HostId, DomainId),
    },
    /// A port was released while a running domain had a NIC on it.
    PortCut {
        /// The port.
        port: PortId,
        /// The domain.
        user: (HostId, DomainId),
    },
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "at {:?}: ", self.at)?;
        match &self.kind {
            ViolationKind::RunsTwice { first, second } => write!(
                f,
                "domain {} began to run on host {} while {} ran on host {}",
                second.1, second.0, first.1, first.0
            ),
            ViolationKind::TwoWriters {
                volume,
                first,
                second,
            } => write!(
                f,
                "volume {volume} got domain {} on host {} as a writer beside {} on host {}",
                second.1, second.0, first.1, first.0
            ),
            ViolationKind::ChangedInUse { volume, by, user } => write!(
                f,
                "volume {volume} was changed by {by} while domain {} on host {} wrote to it",
                user.1, user.0
            ),
            ViolationKind::PortCut { port, user } => write!(
                f,
                "port {port} was released while domain {} on host {} had a NIC on it",
                user.1, user.0
            ),
        }
    }
}

/// A line of the world's log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogEntry {
    /// When, since the world began.
    pub at: Duration,
    /// What.
    pub what: String,
}

/// A domain of NovaCron's, in any state.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SimDomainRef {
    /// Where.
    pub host: HostId,
    /// Which.
    pub id: DomainId,
    /// What it does.
    pub state: DomainState,
}

/// A volume or an image, also a half-made one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SimVolumeRef {
    /// Where.
    pub pool: PoolId,
    /// Whose.
    pub cluster: ClusterId,
    /// Which.
    pub id: ArtefactId,
    /// Whether it was made completely.
    pub complete: bool,
    /// Its snapshots; true for the committed ones.
    pub snapshots: Vec<(SnapshotId, bool)>,
    /// How many attachments it has.
    pub attachments: usize,
}

/// Everything of NovaCron's in the world.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SimArtefacts {
    /// Domains in every state.
    pub domains: Vec<SimDomainRef>,
    /// Volumes and images.
    pub volumes: Vec<SimVolumeRef>,
    /// Ports that are bound.
    pub ports: Vec<(HostId, PortArtefact)>,
}

impl SimWorld {
    /// Where the VM's vCPUs run.
    pub fn running(&self, vm: VmId) -> Vec<(HostId, DomainId)> {
        self.lock().runners(vm).collect()
    }

    /// How many domains run.
    pub fn running_count(&self) -> usize {
        self.lock().running.len()
    }

    /// The running domains that write a volume.
    pub fn writers(&self, volume: VolumeId) -> Vec<(HostId, DomainId)> {
        self.lock().writers_of(volume).collect()
    }

    /// Everything that happened and never must.
    pub fn violations(&self) -> Vec<Violation> {
        self.lock().violations.clone()
    }

    /// Keeps a log from now on; for a failing seed, not for a benchmark.
    pub fn keep_log(&self) {
        self.lock().log.get_or_insert_default();
    }

    /// The log as far as it was kept.
    pub fn log(&self) -> Vec<LogEntry> {
        self.lock().log.clone().unwrap_or_default()
    }

    /// Calls that have answered, or lost their caller, and may still take effect.
    pub fn calls_under_way(&self) -> usize {
        self.lock().under_way
    }

    /// Everything of NovaCron's that is there.
    pub fn artefacts(&self) -> SimArtefacts {
        let state = self.lock();
        let domains = state.hosts.iter().flat_map(|(host, h)| {
            h.domains.iter().map(|(id, domain)| SimDomainRef {
                host: *host,
                id: *id,
                state: domain.state.clone(),
            })
        });
        let volumes = state.pools.iter().flat_map(|(pool, p)| {
            p.volumes.iter().map(|(id, volume)| SimVolumeRef {
                pool: pool.clone(),
                cluster: volume.cluster,
                id: *id,
                complete: volume.complete,
                snapshots: volume
                    .snapshots
                    .iter()
                    .map(|s| (s.id, s.committed))
                    .collect(),
                attachments: volume.attached.len(),
            })
        });
        let ports = state
            .hosts
            .iter()
            .flat_map(|(host, h)| h.ports.values().map(|p| (*host, p.artefact)));
        SimArtefacts {
            ports: ports.collect(),
            domains: domains.collect(),
            volumes: volumes.collect(),
        }
    }
}
