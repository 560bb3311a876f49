//! A cloud: somebody else's hosts. Instances, images, disks and networks of one account, in one region or several.
//!
//! ```text
//!   CloudProvider ── instances() · disks() · images() · networks() · catalog()      groups of at most a dozen methods
//!   change ──► CloudTask ── stored in a record ──► task() ──► Running … ──► Done | Failed
//!   list   ──► stream of pages, read as far as it is wanted
//! ```
//! Everything that NovaCron makes in a cloud carries the cluster and its own id as a tag, and that id is also the
//! request's idempotency token: it was named in a committed record before. A change is answered by a [`CloudTask`], which
//! outlives this process; if the answer is lost, the same call again finds what the first one made. A driver repeats
//! HTTP requests that the cloud throttled or that broke (as long as the call's deadline allows and the request is
//! idempotent), and nothing else.
//!
//! Zones and what they offer are the catalog's to tell. What a cloud cannot do is an accessor that is none, or a flag of
//! [`CloudCapabilities`]; an API that answers "not here, not now" is [`Exhausted`](crate::ErrorKind::Exhausted), with the
//! cloud's own code as context, so that a placement can look elsewhere.

mod catalog;
mod disks;
mod fence;
mod images;
mod instances;
mod networks;

use std::fmt;
use std::time::Duration;

use async_trait::async_trait;
use futures::stream::BoxStream;
use serde::{Deserialize, Serialize};

pub use catalog::{CloudCatalog, InstanceType, Market, Price, Quota, Zone};
pub use disks::{CloudDisk, CloudDisks, DiskRequest, DiskSourceId};
pub use fence::CloudFence;
pub use images::{CloudImage, CloudImageSource, CloudImages, ImageRequest};
pub use instances::{
    CloudImageRef, CloudInstances, CloudNic, Instance, InstanceDisk, InstanceId, InstanceRequest,
    InstanceState, Interruption, StopKind,
};
pub use networks::{
    AddressRange, CloudNetwork, CloudNetworks, FirewallRule, NetworkRequest, Subnet,
};

use super::Call;
use crate::error::{ErrorKind, Result};
use crate::model::{ClusterId, ImageId, NetworkId, RegionId, SnapshotId, VolumeId};

/// Where in a cloud.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CloudPlace {
    /// The region, as the cluster names it.
    pub region: RegionId,
    /// The zone, as the cloud names it; any if none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub zone: Option<String>,
}

/// What the account can do now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CloudCapabilities {
    /// The account, project or subscription, as the cloud names it.
    pub account: String,
    /// The regions that can be used.
    pub regions: Vec<RegionId>,
    /// Memory can be kept over a stop.
    pub hibernate: bool,
    /// There are instances that the cloud may take back.
    pub spot: bool,
    /// The serial console's output can be read.
    pub console_output: bool,
    /// A disk of a running instance can grow.
    pub grow_attached: bool,
}

/// A change under way. It can be stored, and asked for by another process.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CloudTask {
    /// Where.
    pub region: RegionId,
    /// What the driver needs to ask for it; no secret.
    pub token: String,
}

/// Where a change stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TaskState {
    /// Under way.
    Running {
        /// How far, if the cloud tells.
        percent: Option<u8>,
        /// Not to be asked again before.
        ask_after: Duration,
    },
    /// It has taken effect.
    Done,
    /// It has ended without effect, or half: `inspect` tells.
    Failed {
        /// What a caller can do about it.
        kind: ErrorKind,
        /// In the cloud's words.
        message: String,
    },
}

/// Something of NovaCron's in a cloud.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CloudArtefact {
    /// Whose cluster it is.
    pub cluster: ClusterId,
    /// Which.
    pub id: CloudArtefactId,
    /// Where.
    pub place: CloudPlace,
    /// The cloud's own name for it.
    pub cloud_id: String,
}

/// What it is, by NovaCron's id.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum CloudArtefactId {
    /// An instance.
    Instance(InstanceId),
    /// A disk.
    Disk(VolumeId),
    /// A disk's snapshot.
    Snapshot(SnapshotId),
    /// An image.
    Image(ImageId),
    /// A network with its subnets and rules.
    Network(NetworkId),
}

/// One account of a cloud.
#[async_trait]
pub trait CloudProvider: fmt::Debug + Send + Sync + 'static {
    /// Whether the credentials are good, and what the account can do now.
    async fn probe(&self, call: Call) -> Result<CloudCapabilities>;

    /// Everything of NovaCron's in a region, also what a crash left half made.
    ///
    /// *Holds at the stream's end:* complete for changes that ended before the call: what is missing does not exist, as
    /// far as the cloud's own lists are consistent. An error within the stream ends it.
    async fn artefacts(
        &self,
        call: Call,
        region: &RegionId,
    ) -> Result<BoxStream<'static, Result<CloudArtefact>>>;

    /// Where a change stands. One that the cloud has forgotten is answered by what it was to bring about: Done if that
    /// holds, else Failed with `NotFound`.
    async fn task(&self, call: Call, task: &CloudTask) -> Result<TaskState>;

    /// Its instances.
    fn instances(&self) -> &dyn CloudInstances;

    /// What can be had, and for how much.
    fn catalog(&self) -> &dyn CloudCatalog;

    /// Its disks.
    fn disks(&self) -> Option<&dyn CloudDisks> {
        None
    }

    /// Its images.
    fn images(&self) -> Option<&dyn CloudImages> {
        None
    }

    /// Its networks.
    fn networks(&self) -> Option<&dyn CloudNetworks> {
        None
    }
}
