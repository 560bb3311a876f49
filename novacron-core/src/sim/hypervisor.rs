//! A simulated hypervisor: one host of a world, behind the trait that real ones implement.

use std::time::Duration;

use async_trait::async_trait;
use futures::StreamExt;
use futures::stream::{self, BoxStream};
use tokio::sync::mpsc;

use super::devices::{disk, nic};
use super::guests::refused;
use super::state::SimDisk;
use super::state::{Place, SimDomain, State};
use super::world::SimWorld;
use crate::driver::{
    Call, DiskPivot, DiskStats, Domain, DomainId, DomainOwner, DomainSpec, DomainState,
    DomainStats, GuestEvent, HotPlug, Hypervisor, HypervisorEvent, NicStats, StopMode, StopReport,
};
use crate::error::Result;
use crate::model::{Bytes, Exit, HostId, HostInfo, MiB};

/// Events that a listener may be behind before its stream ends.
const BACKLOG: usize = 1024;

/// A driver for one host of a [`SimWorld`]. It has no state of its own: a new one after a crash sees what is there.
#[derive(Clone, Debug)]
pub struct SimHypervisor {
    world: SimWorld,
    pub(super) host: HostId,
}

impl SimHypervisor {
    /// A driver for a host.
    pub fn new(world: &SimWorld, host: HostId) -> Self {
        Self {
            world: world.clone(),
            host,
        }
    }

    /// The host.
    pub fn host(&self) -> HostId {
        self.host
    }

    pub(super) async fn run<T: Send + 'static>(
        &self,
        op: &'static str,
        id: Option<DomainId>,
        call: Call,
        effect: impl FnOnce(&mut State) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        self.world
            .call(op, Place::Host(self.host), id, call, effect)
            .await
    }
}

fn describe(id: DomainId, domain: &SimDomain) -> Domain {
    Domain {
        owner: DomainOwner::NovaCron(id),
        state: domain.state.clone(),
        disks: domain.guest_disks().map(|d| d.volume).collect(),
        nics: domain.nics.iter().map(|n| n.port).collect(),
    }
}

pub(super) fn started<'a>(
    state: &'a mut State,
    op: &'static str,
    host: HostId,
    id: DomainId,
) -> Result<&'a mut SimDomain> {
    let domain = state.domain(op, host, id)?;
    if domain.is_started() {
        Ok(domain)
    } else {
        Err(refused(op, id, "it is not started"))
    }
}

#[async_trait]
impl Hypervisor for SimHypervisor {
    async fn probe(&self, call: Call) -> Result<HostInfo> {
        const OP: &str = "sim.probe";
        let host = self.host;
        self.run(OP, None, call, move |state| {
            let h = state.host(OP, host)?;
            Ok(HostInfo {
                host,
                boot_id: h.boot_id.to_string(),
                capabilities: h.capabilities(),
            })
        })
        .await
    }

    async fn list(&self, call: Call) -> Result<Vec<Domain>> {
        const OP: &str = "sim.list";
        let host = self.host;
        self.run(OP, None, call, move |state| {
            state.settle(host);
            let h = state.host(OP, host)?;
            let foreign = h.foreign.iter().map(|name| Domain {
                owner: DomainOwner::Foreign(name.clone()),
                state: DomainState::Running,
                disks: Vec::new(),
                nics: Vec::new(),
            });
            let ours = h.domains.iter().map(|(id, domain)| describe(*id, domain));
            Ok(ours.chain(foreign).collect())
        })
        .await
    }

    async fn inspect(&self, call: Call, id: DomainId) -> Result<Option<Domain>> {
        const OP: &str = "sim.inspect";
        let host = self.host;
        self.run(OP, Some(id), call, move |state| {
            let h = state.host(OP, host)?;
            Ok(h.domains.get(&id).map(|domain| describe(id, domain)))
        })
        .await
    }

    async fn define(&self, call: Call, spec: &DomainSpec) -> Result<()> {
        const OP: &str = "sim.define";
        let (host, id) = (self.host, spec.id);
        let checked = spec.clone();
        let tpm = spec.tpm.as_ref().map(|tpm| &tpm.disk);
        let state = spec.nvram.iter().chain(tpm).map(|attachment| SimDisk {
            is_state: true,
            ..disk(attachment)
        });
        let domain = SimDomain {
            vcpus: spec.hardware.vcpus,
            memory: spec.hardware.memory,
            cdroms: spec.hardware.cdroms,
            disks: spec.disks.iter().map(disk).chain(state).collect(),
            nics: spec.nics.iter().map(nic).collect(),
            state: DomainState::Defined,
            pressed: false,
            ran: Duration::ZERO,
            since: None,
        };
        self.run(OP, Some(id), call, move |state| {
            let h = state.host(OP, host)?;
            checked.check(OP, &h.capabilities())?;
            let known = h.domains.get(&id);
            if known.is_none_or(|d| d.state == DomainState::Defined) {
                let is_new = known.is_none();
                h.domains.insert(id, domain);
                if is_new {
                    state.note(|| format!("host {host} domain {id} defined"));
                    state.push(host, id, GuestEvent::StateChanged);
                }
            }
            Ok(())
        })
        .await
    }

    async fn start(&self, call: Call, id: DomainId) -> Result<()> {
        const OP: &str = "sim.start";
        let host = self.host;
        self.run(OP, Some(id), call, move |state| state.start(OP, host, id))
            .await
    }

    async fn resume(&self, call: Call, id: DomainId) -> Result<()> {
        const OP: &str = "sim.resume";
        let host = self.host;
        self.run(OP, Some(id), call, move |state| state.resume(OP, host, id))
            .await
    }

    async fn pause(&self, call: Call, id: DomainId) -> Result<()> {
        const OP: &str = "sim.pause";
        let host = self.host;
        self.run(OP, Some(id), call, move |state| {
            started(state, OP, host, id)?;
            state.enter(host, id, DomainState::Paused);
            Ok(())
        })
        .await
    }

    async fn stop(&self, call: Call, id: DomainId, mode: StopMode) -> Result<StopReport> {
        const OP: &str = "sim.stop";
        let host = self.host;
        self.run(OP, Some(id), call, move |state| {
            let known = state.host(OP, host)?.domains.get(&id);
            match known.map(|d| (&d.state, d.is_started())) {
                None | Some((DomainState::Ended(_), _)) => return Ok(StopReport::Ended),
                Some((_, true)) if mode == StopMode::Shutdown => {
                    state.press(host, id);
                    return Ok(StopReport::Asked);
                }
                Some(_) => {}
            }
            // One that was never started cannot be any more: what was answered stays true.
            state.enter(host, id, DomainState::Ended(Exit::Requested));
            Ok(StopReport::Ended)
        })
        .await
    }

    async fn reset(&self, call: Call, id: DomainId) -> Result<()> {
        const OP: &str = "sim.reset";
        let host = self.host;
        self.run(OP, Some(id), call, move |state| {
            started(state, OP, host, id)?;
            state.note(|| format!("host {host} domain {id} reset"));
            state.push(host, id, GuestEvent::Reset);
            Ok(())
        })
        .await
    }

    async fn undefine(&self, call: Call, id: DomainId) -> Result<()> {
        const OP: &str = "sim.undefine";
        let host = self.host;
        self.run(OP, Some(id), call, move |state| {
            match state
                .host(OP, host)?
                .domains
                .get(&id)
                .map(|d| (&d.state, d.is_started()))
            {
                Some((_, true)) => return Err(refused(OP, id, "it runs")),
                Some((DomainState::Unknown(_), _)) => {
                    return Err(refused(OP, id, "it may run"));
                }
                _ => {}
            }
            state.abandon(host, id);
            if state.host(OP, host)?.domains.remove(&id).is_some() {
                state.note(|| format!("host {host} domain {id} undefined"));
                state.push(host, id, GuestEvent::StateChanged);
            }
            Ok(())
        })
        .await
    }

    async fn stats(&self, call: Call, id: DomainId) -> Result<DomainStats> {
        const OP: &str = "sim.stats";
        let host = self.host;
        self.run(OP, Some(id), call, move |state| {
            let domain = started(state, OP, host, id)?;
            let ran = domain.ran + domain.since.map_or(Duration::ZERO, |s| s.elapsed());
            let ns = u64::try_from(ran.as_nanos()).unwrap_or(u64::MAX);
            let disks = domain.guest_disks().map(|d| DiskStats {
                volume: d.volume,
                read_bytes: 0,
                written_bytes: 0,
                reads: 0,
                writes: 0,
            });
            let nics = domain.nics.iter().map(|nic| NicStats {
                port: nic.port,
                received_bytes: 0,
                sent_bytes: 0,
            });
            Ok(DomainStats {
                vcpu_ns: vec![ns; domain.vcpus as usize],
                resident: Bytes::from(MiB(domain.memory.0)),
                disks: disks.collect(),
                nics: nics.collect(),
                guest_memory: None,
            })
        })
        .await
    }

    fn events(&self) -> BoxStream<'static, HypervisorEvent> {
        let mut state = self.world.lock();
        let Some(host) = state.hosts.get_mut(&self.host) else {
            return stream::empty().boxed();
        };
        if host.outage.is_some() {
            return stream::empty().boxed();
        }
        let (sender, mut receiver) = mpsc::channel(BACKLOG);
        host.listeners.retain(|l| !l.is_closed());
        host.listeners.push(sender);
        stream::poll_fn(move |context| receiver.poll_recv(context)).boxed()
    }

    fn hot_plug(&self) -> Option<&dyn HotPlug> {
        Some(self)
    }

    fn disk_pivot(&self) -> Option<&dyn DiskPivot> {
        Some(self)
    }
}
