//! Images.

use super::Cluster;
use super::operations::OperationHandle;
use super::request::{Change, problem};
use super::vms::{as_text, name_taken};
use super::volumes::pick_pool;
use crate::control::plan::Draft;
use crate::error::{Error, ErrorKind, Result};
use crate::model::{
    Image, ImageId, ImageSource, Meta, Name, ObjectRef, OperationKind, PoolId, name_problem,
};

/// The cluster's images.
#[derive(Clone, Debug)]
pub struct Images(pub(super) Cluster);

/// An image that a caller asks for.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ImageSpec {
    /// Unique per project.
    pub name: String,
    /// Where it comes from.
    pub source: ImageSource,
    /// The SHA-256 of the source, 64 hex digits.
    #[serde(default)]
    pub sha256: Option<String>,
    /// Its pool; the only one of the cluster if none.
    #[serde(default)]
    pub pool: Option<PoolId>,
}

/// A handle on one image.
#[derive(Clone, Debug)]
pub struct ImageHandle {
    cluster: Cluster,
    id: ImageId,
    created: Option<OperationHandle>,
}

impl Images {
    /// Imports an image from a file on a node that reaches the pool, raw or qcow2.
    ///
    /// # Errors
    /// As [`Images::create`].
    pub async fn import_file(
        &self,
        name: &str,
        path: impl Into<std::path::PathBuf>,
    ) -> Result<ImageHandle> {
        self.create(ImageSpec {
            name: name.to_owned(),
            source: ImageSource::File(path.into()),
            sha256: None,
            pool: None,
        })
        .await
    }

    /// Imports an image.
    ///
    /// # Errors
    /// [`ErrorKind::Invalid`] with every problem; [`ErrorKind::AlreadyExists`]. What is wrong with the source's bytes is
    /// the operation's failure.
    pub async fn create(&self, spec: ImageSpec) -> Result<ImageHandle> {
        let (inner, options) = (&self.0.inner, self.0.options());
        inner.authorize(options, "image.create")?;
        let mut problems: Vec<_> = name_problem(&spec.name)
            .map(|m| problem("name", m))
            .into_iter()
            .collect();
        if spec
            .sha256
            .as_deref()
            .is_some_and(|s| s.len() != 64 || !s.bytes().all(|b| b.is_ascii_hexdigit()))
        {
            problems.push(problem("sha256", "64 hex digits"));
        }
        if let ImageSource::File(path) = &spec.source
            && !path.is_absolute()
        {
            problems.push(problem(
                "source.file",
                "must be an absolute path: it is read on the node",
            ));
        }
        let pool = inner
            .read(|cache| pick_pool(cache, spec.pool.as_ref()))
            .await?;
        let pool = pool.map_err(|m| problems.push(problem("pool", m))).ok();
        let (Some(pool), true) = (pool, problems.is_empty()) else {
            return Err(Error::invalid("image.create", problems));
        };
        let request = as_text(&spec)?;
        if let Some((ObjectRef::Image(id), _)) =
            inner.recall(options, "image.create", &request).await?
        {
            return Ok(ImageHandle {
                cluster: self.0.clone(),
                id,
                created: None,
            });
        }
        let now = inner.clock.now();
        let id = ImageId::generate(now, &*inner.ids);
        let name = Name::new(&spec.name)?;
        let meta = Meta::new(name, options.project.clone(), now);
        let image = Image {
            id,
            meta,
            pool,
            source: spec.source,
            sha256: spec.sha256,
        };
        let draft = Draft::new()
            .name(&image.meta, "image", id)?
            .put(&id, &image)?;
        let change = Change {
            verb: "image.create",
            object: ObjectRef::Image(id),
            kind: OperationKind::Create,
            draft,
            request,
        };
        let admitted = inner.admit(options, change).await.map_err(name_taken)?;
        Ok(ImageHandle {
            cluster: self.0.clone(),
            id,
            created: Some(OperationHandle::new(inner, admitted.operation)),
        })
    }

    /// A handle on an image by its name in the project.
    ///
    /// # Errors
    /// [`ErrorKind::NotFound`].
    pub async fn by_name(&self, name: &str) -> Result<ImageHandle> {
        let id = self
            .0
            .inner
            .resolve(&self.0.options().project, "image", name)
            .await?;
        Ok(ImageHandle {
            cluster: self.0.clone(),
            id,
            created: None,
        })
    }
}

impl ImageHandle {
    /// Its id.
    pub fn id(&self) -> ImageId {
        self.id
    }

    /// The operation that makes it, if this handle came from an import.
    pub fn operation(&self) -> Option<&OperationHandle> {
        self.created.as_ref()
    }

    /// Deletes it.
    ///
    /// # Errors
    /// [`ErrorKind::FailedPrecondition`] while a volume is a clone of it, naming one.
    pub async fn delete(&self) -> Result<OperationHandle> {
        let (inner, options, id) = (&self.cluster.inner, self.cluster.options(), self.id);
        inner.authorize(options, "image.delete")?;
        let now = inner.clock.now();
        let draft = inner
            .read(|cache| {
                let Some(image) = cache.images.get(&id) else {
                    return Err(Error::new(
                        ErrorKind::NotFound,
                        "image.delete",
                        "there is no such image",
                    )
                    .with("image", id));
                };
                if let Some(volume) = cache.clones_of(id).next() {
                    let message = format!("volume {volume} is a clone of it");
                    return Err(Error::new(
                        ErrorKind::FailedPrecondition,
                        "image.delete",
                        message,
                    ));
                }
                let mut marked = image.value.clone();
                marked.meta.deleted_at.get_or_insert(now);
                Draft::new()
                    .unchanged::<Image>(&id, Some(image.version))
                    .put(&id, &marked)
            })
            .await??;
        let change = Change {
            verb: "image.delete",
            object: ObjectRef::Image(id),
            kind: OperationKind::Delete,
            draft,
            request: id.to_string(),
        };
        Ok(OperationHandle::new(
            inner,
            inner.admit(options, change).await?.operation,
        ))
    }
}
