//! What a cloud offers: zones, types, prices, quotas. Reads only; answers may be hours old, and say so.

use async_trait::async_trait;
use futures::stream::BoxStream;

use crate::driver::Call;
use crate::error::Result;
use crate::model::{Bandwidth, MiB, Money, RegionId};
use crate::time::Timestamp;

/// A zone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Zone {
    /// Its name.
    pub name: String,
    /// Whether it takes new instances.
    pub open: bool,
}

/// A type of instance.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InstanceType {
    /// Its name.
    pub name: String,
    /// vCPUs.
    pub vcpus: u32,
    /// Whether its vCPUs are a share of a CPU that a credit limits.
    pub burstable: bool,
    /// Memory.
    pub memory: MiB,
    /// The guests' architecture, as `x86_64`.
    pub arch: String,
    /// GPUs: model and count.
    pub gpus: Vec<(String, u32)>,
    /// Network, as far as it is promised.
    pub network: Option<Bandwidth>,
    /// The most disks that can be attached.
    pub max_disks: Option<u32>,
    /// The zones that offer it.
    pub zones: Vec<String>,
}

/// How an instance is paid.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Market {
    /// As long as it runs.
    OnDemand,
    /// As long as the cloud leaves it running.
    Spot,
}

/// What something costs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Price {
    /// What, as the catalog names it: a type of instance, a kind of disk, traffic to a region.
    pub item: String,
    /// Where; everywhere in the region if none.
    pub zone: Option<String>,
    /// How it is paid.
    pub market: Market,
    /// How much.
    pub amount: Money,
    /// For what, as `hour`, `gib-month`, `gib`.
    pub per: String,
    /// As of when.
    pub as_of: Timestamp,
}

/// How much of something the account may have.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Quota {
    /// What, in the cloud's words.
    pub name: String,
    /// At most.
    pub limit: u64,
    /// Of that, in use; none if the cloud does not tell.
    pub used: Option<u64>,
}

/// What a cloud offers.
#[async_trait]
pub trait CloudCatalog: Send + Sync {
    /// A region's zones.
    async fn zones(&self, call: Call, region: &RegionId) -> Result<Vec<Zone>>;

    /// A region's types of instances.
    async fn types(
        &self,
        call: Call,
        region: &RegionId,
    ) -> Result<BoxStream<'static, Result<InstanceType>>>;

    /// A region's prices.
    async fn prices(
        &self,
        call: Call,
        region: &RegionId,
    ) -> Result<BoxStream<'static, Result<Price>>>;

    /// A region's quotas.
    async fn quotas(&self, call: Call, region: &RegionId) -> Result<Vec<Quota>>;
}
