//! A simulated network driver: one host's ports, behind the trait that real ones implement.

use async_trait::async_trait;

use super::observe::ViolationKind;
use super::state::{Place, SimPort};
use super::world::SimWorld;
use crate::driver::{Call, DomainId, NetworkDriver, PortArtefact, PortRequest};
use crate::error::Result;
use crate::model::{Epoch, HostId, PortBinding, PortId};

/// A driver for the ports of one host of a [`SimWorld`]. It has no state of its own: a new one after a crash sees what
/// is there. What it binds is a tap device, without which a [`SimHypervisor`](super::SimHypervisor) starts no domain that names it.
#[derive(Clone, Debug)]
pub struct SimNetwork {
    world: SimWorld,
    host: HostId,
}

impl SimNetwork {
    /// A driver for a host's ports.
    pub fn new(world: &SimWorld, host: HostId) -> Self {
        Self {
            world: world.clone(),
            host,
        }
    }
}

#[async_trait]
impl NetworkDriver for SimNetwork {
    async fn list(&self, call: Call) -> Result<Vec<PortArtefact>> {
        const OP: &str = "sim.port.list";
        let host = self.host;
        self.world
            .call(OP, Place::Host(host), None, call, move |state| {
                state.settle(host);
                let ports = state.host(OP, host)?.ports.values();
                Ok(ports.map(|p| p.artefact).collect())
            })
            .await
    }

    async fn ensure_port(&self, call: Call, request: &PortRequest) -> Result<PortBinding> {
        const OP: &str = "sim.port.ensure";
        let (host, port) = (self.host, request.port);
        let artefact = PortArtefact {
            cluster: request.cluster,
            vm: request.vm,
            epoch: request.epoch,
            port,
        };
        self.world
            .call(OP, Place::Host(host), None, call, move |state| {
                let ports = &mut state.host(OP, host)?.ports;
                // A call of an earlier start that comes late takes nothing over.
                if ports
                    .get(&port)
                    .is_none_or(|p| p.artefact.epoch <= artefact.epoch)
                {
                    ports.insert(port, SimPort { artefact });
                }
                state.note(|| format!("host {host} port {port} bound for {}", artefact.epoch));
                Ok(PortBinding::Tap {
                    device: format!("sim-{port}"),
                })
            })
            .await
    }

    async fn release_port(&self, call: Call, port: PortId, epoch: Epoch) -> Result<()> {
        const OP: &str = "sim.port.release";
        let host = self.host;
        self.world
            .call(OP, Place::Host(host), None, call, move |state| {
                let h = state.host(OP, host)?;
                let Some(held) = h.ports.get(&port).filter(|p| p.artefact.epoch <= epoch) else {
                    return Ok(());
                };
                let id = DomainId {
                    cluster: held.artefact.cluster,
                    vm: held.artefact.vm,
                    epoch: held.artefact.epoch,
                };
                h.ports.remove(&port);
                let used = h.domains.get(&id).is_some_and(|d| {
                    d.since.is_some() && d.nics.iter().any(|nic| nic.port == port)
                });
                if used {
                    let user = (host, id);
                    state.violation(ViolationKind::PortCut { port, user });
                }
                state.note(|| format!("host {host} port {port} released"));
                Ok(())
            })
            .await
    }

    async fn before_switch(&self, call: Call, request: &PortRequest) -> Result<()> {
        self.ensure_port(call, request).await.map(drop)
    }

    async fn after_switch(&self, call: Call, request: &PortRequest) -> Result<()> {
        self.ensure_port(call, request).await.map(drop)
    }
}
