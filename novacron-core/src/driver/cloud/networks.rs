//! Networks in a cloud: one of ours is a virtual network of the cloud with a subnet in each zone that is used.

use std::net::IpAddr;

use async_trait::async_trait;
use futures::stream::BoxStream;

use super::CloudTask;
use crate::driver::Call;
use crate::error::Result;
use crate::model::{ClusterId, NetworkId, Protocol, RegionId};

/// A network to make.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NetworkRequest {
    /// The cluster it is made for.
    pub cluster: ClusterId,
    /// Its id, and the request's idempotency token.
    pub id: NetworkId,
    /// The network's name, for people.
    pub name: String,
    /// Where.
    pub region: RegionId,
    /// Its subnets.
    pub subnets: Vec<Subnet>,
    /// What may come in; all else may not. Everything may go out.
    pub rules: Vec<FirewallRule>,
}

/// A range of addresses: the first one, and the length of the prefix.
pub type AddressRange = (IpAddr, u8);

/// A subnet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Subnet {
    /// Its addresses.
    pub range: AddressRange,
    /// The zone, in clouds whose subnets are of a zone.
    pub zone: Option<String>,
}

/// Lets something in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FirewallRule {
    /// From where.
    pub from: AddressRange,
    /// The protocol; any if none.
    pub protocol: Option<Protocol>,
    /// The ports, first and last; any if none.
    pub ports: Option<(u16, u16)>,
}

/// A network as the cloud tells it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CloudNetwork {
    /// The network.
    pub id: NetworkId,
    /// The cloud's own name for it.
    pub cloud_id: String,
    /// Its subnets.
    pub subnets: Vec<Subnet>,
    /// What may come in.
    pub rules: Vec<FirewallRule>,
}

/// A cloud's networks.
#[async_trait]
pub trait CloudNetworks: Send + Sync {
    /// Makes a network, or gives the one of this id these subnets and rules.
    ///
    /// *Holds when the task is done:* it has them and no others. *A second identical call* changes nothing. *Left behind
    /// on failure:* only what `delete` removes. *Errors:* `FailedPrecondition` for a subnet to be removed in which an
    /// instance is.
    async fn ensure(&self, call: Call, request: &NetworkRequest) -> Result<CloudTask>;

    /// One network, or none if it does not exist.
    async fn inspect(
        &self,
        call: Call,
        region: &RegionId,
        id: NetworkId,
    ) -> Result<Option<CloudNetwork>>;

    /// The cluster's networks in a region.
    async fn list(
        &self,
        call: Call,
        region: &RegionId,
        cluster: ClusterId,
    ) -> Result<BoxStream<'static, Result<CloudNetwork>>>;

    /// Removes it with everything that was made for it. *A second identical call* changes nothing. *Errors:*
    /// `FailedPrecondition` while an instance is in it.
    async fn delete(&self, call: Call, region: &RegionId, id: NetworkId) -> Result<CloudTask>;
}
