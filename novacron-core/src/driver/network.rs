//! One host's ends of networks: what a port needs there before a guest can use it, and what must go with it.
//!
//! ```text
//!   ensure_port(port, epoch) ──► PortBinding ──► Hypervisor (a NIC) ──► release_port(port, epoch)
//! ```
//! The port controller binds every port of a start before the domain is made, and releases it when that start is
//! proved to be over. Whatever a driver makes carries cluster, VM, epoch and port, so that a sweep can tell what is
//! nobody's any more. [`HypervisorNetworks`] makes nothing: user-mode stacks and taps on a bridge that is there
//! already are the hypervisor's own work, and go with its process.

use std::fmt;

use async_trait::async_trait;

use super::Call;
use crate::error::Result;
use crate::model::{ClusterId, Epoch, MacAddr, NetworkKind, PortBinding, PortId, VmId};

/// A port to be bound on a host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PortRequest {
    /// The cluster.
    pub cluster: ClusterId,
    /// The port.
    pub port: PortId,
    /// The VM it belongs to.
    pub vm: VmId,
    /// The VM's start that it is bound for.
    pub epoch: Epoch,
    /// The guest's MAC address.
    pub mac: MacAddr,
    /// The network it leads to.
    pub network: NetworkKind,
}

/// Something that a driver holds on its host for a port.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct PortArtefact {
    /// Whose cluster.
    pub cluster: ClusterId,
    /// The VM.
    pub vm: VmId,
    /// Its start.
    pub epoch: Epoch,
    /// The port.
    pub port: PortId,
}

/// One host's ends of networks.
#[async_trait]
pub trait NetworkDriver: fmt::Debug + Send + Sync + 'static {
    /// Everything of NovaCron's on the host, also what a crash left half made.
    ///
    /// *Holds on return:* complete: what is missing does not exist, and no call that ended before can still make it.
    async fn list(&self, call: Call) -> Result<Vec<PortArtefact>>;

    /// Makes what the port needs on this host.
    ///
    /// *Holds on return:* a hypervisor of this host can use the binding. *A second identical call* answers the same;
    /// one for a later epoch takes the port over from the earlier one. *Left behind on failure:* only what
    /// [`NetworkDriver::release_port`] removes.
    async fn ensure_port(&self, call: Call, request: &PortRequest) -> Result<PortBinding>;

    /// Removes what was made for this epoch of the port.
    ///
    /// *Holds on return:* nothing of it is left; what a later epoch has taken over stays. *A second identical call*
    /// changes nothing, and a port that was never bound is no error.
    async fn release_port(&self, call: Call, port: PortId, epoch: Epoch) -> Result<()>;

    /// A live migration is about to let the guest run here instead of where it runs now.
    ///
    /// Needs: `request` is bound here. *Holds on return:* the guest's first packet will pass, and nothing has been
    /// announced yet. *A second identical call* changes nothing. *Undone by* [`NetworkDriver::release_port`].
    async fn before_switch(&self, call: Call, request: &PortRequest) -> Result<()>;

    /// The guest runs here now: the network is told where its MAC address has gone.
    ///
    /// *A second identical call* announces again.
    async fn after_switch(&self, call: Call, request: &PortRequest) -> Result<()>;
}

/// Leaves everything to the hypervisor: it makes the device itself, and the device goes with the domain.
#[derive(Clone, Copy, Debug, Default)]
pub struct HypervisorNetworks;

#[async_trait]
impl NetworkDriver for HypervisorNetworks {
    async fn list(&self, _call: Call) -> Result<Vec<PortArtefact>> {
        Ok(Vec::new())
    }

    async fn ensure_port(&self, _call: Call, request: &PortRequest) -> Result<PortBinding> {
        Ok(match &request.network {
            NetworkKind::User => PortBinding::User,
            NetworkKind::Bridge { bridge } => PortBinding::Bridge {
                bridge: bridge.clone(),
            },
        })
    }

    async fn release_port(&self, _call: Call, _port: PortId, _epoch: Epoch) -> Result<()> {
        Ok(())
    }

    async fn before_switch(&self, _call: Call, _request: &PortRequest) -> Result<()> {
        Ok(())
    }

    async fn after_switch(&self, _call: Call, _request: &PortRequest) -> Result<()> {
        Ok(())
    }
}
