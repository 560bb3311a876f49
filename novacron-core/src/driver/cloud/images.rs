//! Images in a cloud: ours, brought there or made there, and what the cloud offers.

use async_trait::async_trait;
use futures::stream::BoxStream;

use super::{CloudTask, InstanceId};
use crate::driver::Call;
use crate::error::Result;
use crate::model::{Bytes, ClusterId, ImageId, RegionId};

/// An image to make in a cloud.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ImageRequest {
    /// The cluster it is made for.
    pub cluster: ClusterId,
    /// Its id, and the request's idempotency token.
    pub id: ImageId,
    /// The image's name, for people.
    pub name: String,
    /// Where.
    pub region: RegionId,
    /// What it is made of.
    pub source: CloudImageSource,
}

/// What an image in a cloud is made of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CloudImageSource {
    /// An object in the cloud's own object store, that the account can read: raw, or the format that the cloud takes.
    Object(String),
    /// A stopped instance's first disk.
    Instance(InstanceId),
    /// The same image in another region.
    Region(RegionId),
}

/// An image as the cloud tells it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CloudImage {
    /// The image, if it is one of ours.
    pub id: Option<ImageId>,
    /// The cloud's own name for it.
    pub cloud_id: String,
    /// Its name, for people.
    pub name: String,
    /// The guests' architecture, as `x86_64`.
    pub arch: String,
    /// The least that a first disk of it needs.
    pub size: Bytes,
    /// Whether instances can be made of it now.
    pub ready: bool,
}

/// A cloud's images.
#[async_trait]
pub trait CloudImages: Send + Sync {
    /// Makes an image. *A second identical call* changes nothing. *Left behind on failure:* only what `delete` removes.
    async fn create(&self, call: Call, request: &ImageRequest) -> Result<CloudTask>;

    /// One of ours, or none if it does not exist.
    async fn inspect(
        &self,
        call: Call,
        region: &RegionId,
        id: ImageId,
    ) -> Result<Option<CloudImage>>;

    /// The cluster's images in a region.
    async fn list(
        &self,
        call: Call,
        region: &RegionId,
        cluster: ClusterId,
    ) -> Result<BoxStream<'static, Result<CloudImage>>>;

    /// What the cloud and others offer, by a part of the name; the newest first, as far as the cloud can sort.
    async fn offered(
        &self,
        call: Call,
        region: &RegionId,
        name: &str,
    ) -> Result<BoxStream<'static, Result<CloudImage>>>;

    /// Removes one of ours with the data that only it needs. *A second identical call* changes nothing.
    async fn delete(&self, call: Call, region: &RegionId, id: ImageId) -> Result<CloudTask>;
}
