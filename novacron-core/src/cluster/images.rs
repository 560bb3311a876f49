//! Images: read-only volumes that disks are cloned from.

use std::collections::BTreeMap;
use std::path::PathBuf;

use super::check;
use super::object::{Object, object_parts, siblings};
use super::request::problem;
use super::volumes::pick_pool;
use crate::control::cache::Cache;
use crate::control::plan::Draft;
use crate::error::{Error, Result};
use crate::model::{Image, ImageId, ImageSource, Meta, Name, PoolId, StorageStatus, Versioned};
use crate::time::Timestamp;

/// An image that a caller asks for.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ImageSpec {
    /// Unique per project: 1 to 63 of `a-z 0-9 - .`.
    pub name: String,
    /// Where it comes from.
    pub source: ImageSource,
    /// The SHA-256 that the source must have, 64 hex digits.
    #[serde(default)]
    pub sha256: Option<String>,
    /// Its pool; the only one of the cluster if none.
    #[serde(default)]
    pub pool: Option<PoolId>,
    /// Labels: short, for selection.
    #[serde(default)]
    pub labels: BTreeMap<String, String>,
    /// Annotations: for the host application, not looked at.
    #[serde(default)]
    pub annotations: BTreeMap<String, String>,
}

impl ImageSpec {
    /// An image from this source in the only pool, its checksum not looked at.
    pub fn new(name: impl Into<String>, source: ImageSource) -> Self {
        Self {
            name: name.into(),
            source,
            sha256: None,
            pool: None,
            labels: BTreeMap::new(),
            annotations: BTreeMap::new(),
        }
    }
}

/// An image as it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ImageView {
    /// What should be.
    pub image: Versioned<Image>,
    /// What is; none before the controller has looked at it.
    pub status: Option<StorageStatus>,
}

siblings! {
    "image", Image, ImageId, ImageView, Images, ImageHandle,
    /// Deletes it.
    ///
    /// # Errors
    /// [`ErrorKind::NotFound`](crate::ErrorKind::NotFound);
    /// [`ErrorKind::FailedPrecondition`](crate::ErrorKind::FailedPrecondition) while a volume is a clone of it, naming
    /// one.
}

impl Object for Image {
    type View = ImageView;
    object_parts!("image", Image, images);

    fn view(image: &Versioned<Self>, cache: &Cache, _: Timestamp) -> ImageView {
        let status = cache.image_status.get(&image.id);
        ImageView {
            image: image.clone(),
            status: status.map(|s| s.value.0.clone()),
        }
    }

    fn in_use(&self, cache: &Cache) -> Option<String> {
        let volume = cache.clones_of(self.id).next()?;
        Some(format!("volume {volume} is a clone of it"))
    }
}

impl Images {
    /// Imports an image from a file on a node that reaches the pool, raw or qcow2.
    ///
    /// # Errors
    /// As [`Images::create`].
    pub async fn import_file(&self, name: &str, path: impl Into<PathBuf>) -> Result<ImageHandle> {
        let source = ImageSource::File(path.into());
        self.create(ImageSpec::new(name, source)).await
    }

    /// Imports an image. The handle's [`operation`](ImageHandle::operation) ends when it is there; what is wrong with
    /// the source's bytes is that operation's failure.
    ///
    /// # Errors
    /// [`ErrorKind::Invalid`](crate::ErrorKind::Invalid) with every problem;
    /// [`ErrorKind::AlreadyExists`](crate::ErrorKind::AlreadyExists) when the name is taken.
    pub async fn create(&self, spec: ImageSpec) -> Result<ImageHandle> {
        let (inner, options) = (&self.0.inner, self.0.options());
        let draft = async {
            let mut problems = check::image(&spec);
            let pool = inner
                .read(|cache| pick_pool(cache, spec.pool.as_ref()))
                .await?;
            let pool = pool.map_err(|m| problems.push(problem("pool", m))).ok();
            let (Some(pool), true) = (pool, problems.is_empty()) else {
                return Err(Error::invalid("image.create", problems));
            };
            let now = inner.clock.now();
            let id = ImageId::generate(now, &*inner.ids);
            let meta = Meta {
                labels: spec.labels.clone(),
                annotations: spec.annotations.clone(),
                ..Meta::new(Name::new(&spec.name)?, options.project.clone(), now)
            };
            let draft = Draft::new().name(&meta, "image", id)?;
            let image = Image {
                id,
                meta,
                pool,
                source: spec.source.clone(),
                sha256: spec.sha256.clone(),
            };
            Ok((id, draft.put(&id, &image)?))
        };
        let made = self.0.create::<Image>("image.create", &spec, draft);
        Ok(self.created(made.await?))
    }
}
