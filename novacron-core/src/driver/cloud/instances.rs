//! Instances: VMs that a cloud runs.
//!
//! A cloud keeps an instance from running twice by itself, so an instance is named by its VM alone, and carries the
//! epoch of its latest start as a tag. What may start it is the VM's claim, as everywhere.

use std::collections::BTreeMap;
use std::fmt;
use std::net::IpAddr;

use async_trait::async_trait;
use bytes::Bytes;
use futures::stream::BoxStream;
use secrecy::SecretString;
use serde::{Deserialize, Serialize};

use super::{CloudPlace, CloudTask};
use crate::driver::Call;
use crate::error::Result;
use crate::model::{self, ClusterId, Epoch, Exit, ImageId, NetworkId, RegionId, VmId, VolumeId};
use crate::time::Timestamp;

/// Names an instance: one VM of one cluster.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct InstanceId {
    /// The cluster.
    pub cluster: ClusterId,
    /// The VM.
    pub vm: VmId,
}

impl fmt::Display for InstanceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.vm.fmt(f)
    }
}

/// An instance to make.
#[derive(Clone, Debug)]
pub struct InstanceRequest {
    /// Its identity, and the request's idempotency token.
    pub id: InstanceId,
    /// The VM's name, for people.
    pub name: String,
    /// The start that making it is.
    pub epoch: Epoch,
    /// Where.
    pub place: CloudPlace,
    /// The type, as the catalog names it.
    pub kind: String,
    /// What its first disk begins as.
    pub image: CloudImageRef,
    /// Size of its first disk; the image's if none.
    pub root_size: Option<model::Bytes>,
    /// Disks that are there, to be attached at once.
    pub disks: Vec<VolumeId>,
    /// NICs, in order.
    pub nics: Vec<CloudNic>,
    /// cloud-init's user data, its secrets filled in.
    pub user_data: Option<SecretString>,
    /// Whether the cloud may take it back, and then?
    pub spot: Option<Interruption>,
    /// Labels for people and bills.
    pub labels: BTreeMap<String, String>,
}

/// An image to begin from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CloudImageRef {
    /// One of ours in this cloud.
    Ours(ImageId),
    /// One of the cloud's, or of others, by the cloud's name for it.
    Theirs(String),
}

/// A NIC of an instance.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CloudNic {
    /// The network.
    pub network: NetworkId,
    /// Whether it gets an address that the world can reach.
    pub public: bool,
}

/// What happens when the cloud takes an instance back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Interruption {
    /// It is stopped, and can be started later.
    Stop,
    /// It is deleted with its first disk.
    Delete,
}

/// An instance as the cloud tells it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Instance {
    /// Whose it is; none for one that NovaCron did not make, which is never touched.
    pub id: Option<InstanceId>,
    /// The epoch of its latest start.
    pub epoch: Option<Epoch>,
    /// The cloud's own name for it.
    pub cloud_id: String,
    /// Where.
    pub place: CloudPlace,
    /// The type.
    pub kind: String,
    /// What it does.
    pub state: InstanceState,
    /// Its addresses.
    pub addresses: Vec<IpAddr>,
    /// Its disks.
    pub disks: Vec<InstanceDisk>,
    /// When the cloud says that it will take it back.
    pub interrupted_at: Option<Timestamp>,
}

/// What an instance does.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum InstanceState {
    /// On its way up.
    Starting,
    /// It runs.
    Running,
    /// On its way down.
    Stopping,
    /// It does not run; the cloud starts it only when asked.
    Stopped(Exit),
    /// As stopped, its memory kept.
    Hibernated,
    /// It is being deleted, or was, and does not run.
    Deleted,
    /// The cloud's word for it is none of these.
    Unknown(String),
}

/// A disk of an instance.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InstanceDisk {
    /// The volume, if it is one of ours.
    pub volume: Option<VolumeId>,
    /// Its name in the guest, as far as the cloud knows it.
    pub device: String,
}

/// How to stop an instance.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StopKind {
    /// Press the power button; the cloud ends it when the guest does not.
    Shutdown,
    /// End it now.
    Kill,
    /// Keep its memory.
    Hibernate,
}

/// A cloud's instances.
#[async_trait]
pub trait CloudInstances: Send + Sync {
    /// Makes an instance, which starts at once.
    ///
    /// *Needs:* the claim of this epoch; a type and an image that the zone has. *Holds when the task is done:* it runs, or
    /// has run, under this epoch. *A second identical call* changes nothing and answers the same task, or one that is
    /// done. *Left behind on failure:* only what `delete` removes. *Errors:* `Exhausted` without quota or capacity,
    /// `AlreadyExists` for an instance of this id that was made by another request.
    async fn create(&self, call: Call, request: &InstanceRequest) -> Result<CloudTask>;

    /// One instance, or none if it does not exist.
    async fn inspect(
        &self,
        call: Call,
        region: &RegionId,
        id: InstanceId,
    ) -> Result<Option<Instance>>;

    /// Every instance of the account in a region, also others'.
    async fn list(
        &self,
        call: Call,
        region: &RegionId,
    ) -> Result<BoxStream<'static, Result<Instance>>>;

    /// Starts a stopped instance under a new epoch.
    ///
    /// *Needs:* the claim of this epoch. *Holds when the task is done:* it carries the epoch and runs, or has run. *A
    /// second identical call* changes nothing. *Errors:* `FailedPrecondition` when a later epoch was started; `Exhausted`
    /// when the cloud has no room for it now.
    async fn start(
        &self,
        call: Call,
        region: &RegionId,
        id: InstanceId,
        epoch: Epoch,
    ) -> Result<CloudTask>;

    /// Stops an instance. *Holds when the task is done:* it does not run, and runs again only by `start`. *A second
    /// identical call* changes nothing; one that does not exist is stopped.
    async fn stop(
        &self,
        call: Call,
        region: &RegionId,
        id: InstanceId,
        kind: StopKind,
    ) -> Result<CloudTask>;

    /// Presses the reset button. Needs a running instance.
    async fn reset(&self, call: Call, region: &RegionId, id: InstanceId) -> Result<CloudTask>;

    /// Makes it an instance of another type. Needs a stopped one. *A second identical call* changes nothing.
    async fn change_type(
        &self,
        call: Call,
        region: &RegionId,
        id: InstanceId,
        kind: &str,
    ) -> Result<CloudTask>;

    /// Removes an instance with its first disk and its NICs; other disks are let go.
    ///
    /// *Holds when the task is done:* nothing of it is left that costs money. *A second identical call* changes nothing.
    async fn delete(&self, call: Call, region: &RegionId, id: InstanceId) -> Result<CloudTask>;

    /// What its serial console wrote, as far as the cloud keeps it; it may be minutes old.
    async fn console_output(&self, call: Call, region: &RegionId, id: InstanceId) -> Result<Bytes>;
}
