//! What is in the world: hosts with domains, pools, and the indexes by which a violation is seen at once.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use rand::SeedableRng;
use rand::rngs::StdRng;
use tokio::sync::{Notify, mpsc};
use tokio::time::Instant;
use uuid::Uuid;

use super::faults::{FaultPlan, Latency, chance};
use super::observe::{LogEntry, Violation, ViolationKind};
use super::pool::{SimPool, SimSource};
use crate::driver::{DomainId, DomainState, GuestEvent, HypervisorEvent, PortArtefact};
use crate::error::{Error, ErrorKind, Result};
use crate::model::{
    Capability, ClusterId, DiskBus, DiskLimits, Epoch, HostId, LinkState, MiB, NicLimits,
    NodeCapabilities, PoolId, PortId, SnapshotId, VmId, VolumeId,
};

/// A change of the world that somebody else carries out.
pub(super) type Deed = Box<dyn FnOnce(&mut State) + Send>;

/// What a late call is about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Place {
    Host(HostId),
    /// A host's power switch, which answers also when the host does not.
    Power(HostId),
    Pool(PoolId),
}

/// What a call that has answered already may still do.
pub(super) struct Late {
    pub(super) place: Place,
    pub(super) domain: Option<DomainId>,
    pub(super) deed: Deed,
}

/// Everything in the world.
pub(super) struct State {
    pub(super) origin: Instant,
    pub(super) rng: StdRng,
    /// Apart from the faults', so that a plan does not change who is who.
    pub(super) ids: StdRng,
    pub(super) latency: Latency,
    pub(super) plan: FaultPlan,
    /// Counts the plans, so that the ticks of an older one end.
    pub(super) plan_serial: u64,
    pub(super) hosts: BTreeMap<HostId, SimHost>,
    pub(super) pools: BTreeMap<PoolId, SimPool>,
    pub(super) sources: BTreeMap<String, SimSource>,
    pub(super) running: BTreeSet<(VmId, HostId, DomainId)>,
    /// Whose guests write which volume at this moment.
    pub(super) writing: BTreeSet<(VolumeId, HostId, DomainId)>,
    /// Which started domains have which volume's image open, and so its lock.
    pub(super) open: BTreeSet<(VolumeId, HostId, DomainId)>,
    /// Whether an image that is open is locked.
    pub(super) image_locks: bool,
    pub(super) doors_locked: bool,
    pub(super) violations: Vec<Violation>,
    pub(super) log: Option<Vec<LogEntry>>,
    pub(super) late: BTreeMap<u64, Late>,
    pub(super) under_way: usize,
    pub(super) serial: u64,
    /// Whether the call being carried out has lost its caller.
    pub(super) orphan: bool,
    /// What the deed just done wants done later.
    pub(super) agenda: Vec<(Duration, Deed)>,
}

/// A host.
#[derive(Debug)]
pub(super) struct SimHost {
    pub(super) boot_id: Uuid,
    pub(super) boots: u64,
    pub(super) cpus: u32,
    pub(super) memory: MiB,
    /// The CPU models and features that its guests can have.
    pub(super) cpu_models: Arc<BTreeSet<String>>,
    pub(super) cpu_features: Arc<BTreeSet<String>>,
    /// Memory of the started domains.
    pub(super) used: MiB,
    /// The number of the outage, while its driver does not answer.
    pub(super) outage: Option<u64>,
    pub(super) domains: BTreeMap<DomainId, SimDomain>,
    pub(super) ports: BTreeMap<PortId, SimPort>,
    pub(super) foreign: Vec<String>,
    pub(super) listeners: Vec<mpsc::Sender<HypervisorEvent>>,
    /// When its watchdog resets it, if that is armed.
    pub(super) goes_off: Option<Instant>,
    /// Told of each boot.
    pub(super) booted: Arc<Notify>,
}

impl SimHost {
    /// What it can do.
    pub(super) fn capabilities(&self) -> NodeCapabilities {
        NodeCapabilities {
            hypervisor: "simulated".to_owned(),
            arch: "x86_64".to_owned(),
            acceleration: "sim".to_owned(),
            cpus: self.cpus,
            memory: self.memory,
            max_vcpus: self.cpus,
            cpu_models: Arc::clone(&self.cpu_models),
            cpu_features: Arc::clone(&self.cpu_features),
            can: Capability::ALL.into(),
        }
    }
}

/// A domain: what has to be known of its spec, and no more.
#[derive(Debug)]
pub(super) struct SimDomain {
    pub(super) vcpus: u32,
    pub(super) memory: MiB,
    pub(super) cdroms: u8,
    pub(super) disks: Vec<SimDisk>,
    pub(super) nics: Vec<SimNic>,
    pub(super) state: DomainState,
    /// The power button was pressed while the vCPUs were held.
    pub(super) pressed: bool,
    /// How long it ran before `since`.
    pub(super) ran: Duration,
    /// Since when it runs.
    pub(super) since: Option<Instant>,
}

/// A port that is bound on a host.
#[derive(Clone, Copy, Debug)]
pub(super) struct SimPort {
    pub(super) artefact: PortArtefact,
}

/// An attached NIC.
#[derive(Clone, Debug)]
pub(super) struct SimNic {
    pub(super) port: PortId,
    /// Whether the host's network driver has to have made a device for it.
    pub(super) needs_device: bool,
    pub(super) link: LinkState,
    pub(super) limits: NicLimits,
}

/// An attached disk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct SimDisk {
    pub(super) volume: VolumeId,
    /// Its pool, if it is of this world.
    pub(super) pool: Option<PoolId>,
    /// The last snapshot that the domain pivoted for.
    pub(super) pivoted: Option<SnapshotId>,
    pub(super) limits: DiskLimits,
    pub(super) bus: DiskBus,
    /// Whether it holds a device's state, and the guest sees no disk.
    pub(super) is_state: bool,
}

impl SimDomain {
    /// The disks that its guest sees.
    pub(super) fn guest_disks(&self) -> impl Iterator<Item = &SimDisk> {
        self.disks.iter().filter(|disk| !disk.is_state)
    }

    /// Whether all of its CD-ROM drives have a medium.
    pub(super) fn drives_are_full(&self) -> bool {
        let media = self.disks.iter().filter(|disk| disk.bus == DiskBus::Cdrom);
        media.count() >= usize::from(self.cdroms)
    }

    /// Whether it is in memory.
    pub(super) fn is_started(&self) -> bool {
        matches!(self.state, DomainState::Paused | DomainState::Running)
    }
}

/// The domains that an index has under a volume.
fn who_has(
    index: &BTreeSet<(VolumeId, HostId, DomainId)>,
    volume: VolumeId,
) -> impl Iterator<Item = (HostId, DomainId)> + '_ {
    index
        .range((volume, HostId::from_uuid(Uuid::nil()), DOMAIN_MIN)..)
        .take_while(move |(of, ..)| *of == volume)
        .map(|(_, host, id)| (*host, *id))
}

impl State {
    pub(super) fn new(seed: u64) -> Self {
        Self {
            origin: Instant::now(),
            rng: StdRng::seed_from_u64(seed),
            ids: StdRng::seed_from_u64(seed ^ 0x0069_6473),
            latency: Latency::default(),
            plan: FaultPlan::default(),
            plan_serial: 0,
            hosts: BTreeMap::new(),
            pools: BTreeMap::new(),
            sources: BTreeMap::new(),
            running: BTreeSet::new(),
            writing: BTreeSet::new(),
            open: BTreeSet::new(),
            image_locks: true,
            doors_locked: false,
            violations: Vec::new(),
            log: None,
            late: BTreeMap::new(),
            under_way: 0,
            serial: 0,
            orphan: false,
            agenda: Vec::new(),
        }
    }

    pub(super) fn next_serial(&mut self) -> u64 {
        self.serial += 1;
        self.serial
    }

    /// Writes a line into the log, if one is kept.
    pub(super) fn note(&mut self, what: impl FnOnce() -> String) {
        let at = self.origin.elapsed();
        if let Some(log) = &mut self.log {
            log.push(LogEntry { at, what: what() });
        }
    }

    pub(super) fn violation(&mut self, kind: ViolationKind) {
        let violation = Violation {
            at: self.origin.elapsed(),
            kind,
        };
        self.note(|| format!("VIOLATION {violation}"));
        self.violations.push(violation);
    }

    /// Where a VM runs.
    pub(super) fn runners(&self, vm: VmId) -> impl Iterator<Item = (HostId, DomainId)> + '_ {
        self.running
            .range((vm, HostId::from_uuid(Uuid::nil()), DOMAIN_MIN)..)
            .take_while(move |(of, ..)| *of == vm)
            .map(|(_, host, id)| (*host, *id))
    }

    /// The running domains that have a volume.
    pub(super) fn writers_of(
        &self,
        volume: VolumeId,
    ) -> impl Iterator<Item = (HostId, DomainId)> + '_ {
        who_has(&self.writing, volume)
    }

    /// An error if another started domain has the volume's image open.
    pub(super) fn may_open(
        &self,
        op: &'static str,
        volume: VolumeId,
        by: (HostId, DomainId),
    ) -> Result<()> {
        let other = who_has(&self.open, volume).find(|other| *other != by);
        match other.filter(|_| self.image_locks) {
            None => Ok(()),
            Some((_, holder)) => {
                let message = "another domain holds the lock of the image";
                let error = Error::new(ErrorKind::Unavailable, op, message);
                Err(error.with("volume", volume).with("holder", holder))
            }
        }
    }

    pub(super) fn host(&mut self, op: &'static str, host: HostId) -> Result<&mut SimHost> {
        self.hosts
            .get_mut(&host)
            .ok_or_else(|| Error::new(ErrorKind::Internal, op, "no such host in this world"))
    }

    pub(super) fn domain(
        &mut self,
        op: &'static str,
        host: HostId,
        id: DomainId,
    ) -> Result<&mut SimDomain> {
        self.host(op, host)?
            .domains
            .get_mut(&id)
            .ok_or_else(|| Error::new(ErrorKind::NotFound, op, "no such domain").with("domain", id))
    }

    /// Tells every listener of a host.
    pub(super) fn push(&mut self, host: HostId, domain: DomainId, event: GuestEvent) {
        let lost = chance(&mut self.rng, self.plan.lose_events);
        let Some(h) = self.hosts.get_mut(&host) else {
            return;
        };
        if lost || h.outage.is_some() {
            h.listeners.clear();
        } else {
            // A listener that falls behind is dropped: its stream ends after what it has.
            let event = HypervisorEvent { domain, event };
            h.listeners.retain(|l| l.try_send(event.clone()).is_ok());
        }
    }

    /// Does now what calls that have answered may still do on a host.
    pub(super) fn settle(&mut self, host: HostId) {
        if self.plan.late_past_list || self.late.is_empty() {
            return;
        }
        let due: Vec<u64> = self
            .late
            .iter()
            .filter(|(_, late)| late.place == Place::Host(host))
            .map(|(serial, _)| *serial)
            .collect();
        for serial in due {
            if let Some(late) = self.late.remove(&serial) {
                (late.deed)(self);
            }
        }
    }

    /// Forgets what calls that have answered may still do to a domain.
    pub(super) fn abandon(&mut self, host: HostId, id: DomainId) {
        if !self.plan.late_past_list {
            self.late
                .retain(|_, late| late.place != Place::Host(host) || late.domain != Some(id));
        }
    }
}

/// Less than every domain.
const DOMAIN_MIN: DomainId = DomainId {
    cluster: ClusterId::from_uuid(Uuid::nil()),
    vm: VmId::from_uuid(Uuid::nil()),
    epoch: Epoch(0),
};

impl fmt::Debug for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("State")
            .field("hosts", &self.hosts.len())
            .field("pools", &self.pools.len())
            .field("running", &self.running.len())
            .field("violations", &self.violations.len())
            .finish_non_exhaustive()
    }
}
