//! Volumes.

use super::Cluster;
use super::check::{labels, size_problem};
use super::operations::OperationHandle;
use super::request::{Change, problem};
use super::vms::{as_text, name_taken};
use crate::control::cache::Cache;
use crate::control::plan::Draft;
use crate::error::{Error, ErrorKind, Result};
use crate::model::{
    Bytes, Meta, Name, ObjectRef, OperationKind, PoolId, StorageStatus, Versioned, Volume,
    VolumeFormat, VolumeId, VolumeSource, name_problem,
};

/// The cluster's volumes.
#[derive(Clone, Debug)]
pub struct Volumes(pub(super) Cluster);

/// A volume that a caller asks for.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VolumeSpec {
    /// Unique per project.
    pub name: String,
    /// Its size.
    pub size: Bytes,
    /// Its pool; the only one of the cluster if none.
    #[serde(default)]
    pub pool: Option<PoolId>,
    /// How it is stored.
    #[serde(default)]
    pub format: VolumeFormat,
    /// Labels.
    #[serde(default)]
    pub labels: std::collections::BTreeMap<String, String>,
}

impl VolumeSpec {
    /// An empty qcow2 volume in the only pool.
    pub fn new(name: impl Into<String>, size: Bytes) -> Self {
        Self {
            name: name.into(),
            size,
            pool: None,
            format: VolumeFormat::Qcow2,
            labels: std::collections::BTreeMap::new(),
        }
    }
}

/// A volume as it is.
#[derive(Clone, Debug)]
pub struct VolumeView {
    /// What should be.
    pub volume: Versioned<Volume>,
    /// What is; none before the controller has looked at it.
    pub status: Option<StorageStatus>,
}

/// A handle on one volume.
#[derive(Clone, Debug)]
pub struct VolumeHandle {
    pub(super) cluster: Cluster,
    pub(super) id: VolumeId,
    pub(super) created: Option<OperationHandle>,
}

/// The wanted pool, or the only one.
pub(super) fn pick_pool(cache: &Cache, wanted: Option<&PoolId>) -> Result<PoolId, String> {
    match wanted {
        Some(pool) if cache.pools.contains_key(pool) => Ok(pool.clone()),
        Some(pool) => Err(format!("there is no pool {pool}")),
        None if cache.pools.len() == 1 => {
            cache.pools.keys().next().cloned().ok_or_else(String::new)
        }
        None => Err(format!(
            "the cluster has {} pools: name one",
            cache.pools.len()
        )),
    }
}

impl Volumes {
    /// Creates an empty volume.
    ///
    /// # Errors
    /// [`ErrorKind::Invalid`] with every problem; [`ErrorKind::AlreadyExists`].
    pub async fn create(&self, spec: VolumeSpec) -> Result<VolumeHandle> {
        let (inner, options) = (&self.0.inner, self.0.options());
        inner.authorize(options, "volume.create")?;
        let mut problems = labels("labels", &spec.labels);
        problems.extend(name_problem(&spec.name).map(|m| problem("name", m)));
        problems.extend(size_problem(spec.size).map(|m| problem("size", m)));
        let pool = inner
            .read(|cache| pick_pool(cache, spec.pool.as_ref()))
            .await?;
        let pool = pool.map_err(|m| problems.push(problem("pool", m))).ok();
        let (Some(pool), true) = (pool, problems.is_empty()) else {
            return Err(Error::invalid("volume.create", problems));
        };
        let request = as_text(&spec)?;
        if let Some((ObjectRef::Volume(id), _)) =
            inner.recall(options, "volume.create", &request).await?
        {
            return Ok(self.by_id(id));
        }
        let now = inner.clock.now();
        let id = VolumeId::generate(now, &*inner.ids);
        let name = Name::new(&spec.name)?;
        let meta = Meta {
            labels: spec.labels,
            ..Meta::new(name, options.project.clone(), now)
        };
        let volume = Volume {
            id,
            meta,
            pool,
            source: VolumeSource::Blank,
            size: spec.size,
            format: spec.format,
        };
        let draft = Draft::new()
            .name(&volume.meta, "volume", id)?
            .put(&id, &volume)?;
        let change = Change {
            verb: "volume.create",
            object: ObjectRef::Volume(id),
            kind: OperationKind::Create,
            draft,
            request,
        };
        let admitted = inner.admit(options, change).await.map_err(name_taken)?;
        Ok(VolumeHandle {
            created: Some(OperationHandle::new(inner, admitted.operation)),
            ..self.by_id(id)
        })
    }

    /// A handle on a volume by its id.
    pub fn by_id(&self, id: VolumeId) -> VolumeHandle {
        VolumeHandle {
            cluster: self.0.clone(),
            id,
            created: None,
        }
    }

    /// The project's volumes after `after`, at most `limit`.
    ///
    /// # Errors
    /// Those of the store.
    pub async fn list(&self, after: Option<VolumeId>, limit: usize) -> Result<Vec<VolumeView>> {
        let (inner, options) = (&self.0.inner, self.0.options());
        inner.authorize(options, "volume.list")?;
        inner
            .read(|cache| {
                let from = after.map_or(std::ops::Bound::Unbounded, std::ops::Bound::Excluded);
                let all = cache.volumes.range((from, std::ops::Bound::Unbounded));
                all.filter(|(_, v)| v.meta.project == options.project)
                    .take(limit)
                    .map(|(_, v)| view(v, cache))
                    .collect()
            })
            .await
    }
}

fn view(volume: &Versioned<Volume>, cache: &Cache) -> VolumeView {
    VolumeView {
        volume: volume.clone(),
        status: cache
            .volume_status
            .get(&volume.id)
            .map(|s| s.value.0.clone()),
    }
}

impl VolumeHandle {
    /// Its id.
    pub fn id(&self) -> VolumeId {
        self.id
    }

    /// The operation that makes it, if this handle came from `create`.
    pub fn operation(&self) -> Option<&OperationHandle> {
        self.created.as_ref()
    }

    /// The volume as it is now.
    ///
    /// # Errors
    /// [`ErrorKind::NotFound`].
    pub async fn get(&self) -> Result<VolumeView> {
        self.cluster
            .inner
            .authorize(self.cluster.options(), "volume.get")?;
        let found = self
            .cluster
            .inner
            .read(|cache| cache.volumes.get(&self.id).map(|v| view(v, cache)))
            .await?;
        found.ok_or_else(|| {
            Error::new(ErrorKind::NotFound, "volume", "there is no such volume")
                .with("volume", self.id)
        })
    }

    async fn update(
        &self,
        verb: &'static str,
        request: String,
        change: impl FnOnce(&mut Volume, &Cache) -> Result<OperationKind>,
    ) -> Result<OperationHandle> {
        let (inner, options) = (&self.cluster.inner, self.cluster.options());
        inner.authorize(options, verb)?;
        let current = self.get().await?.volume;
        if options
            .expected_version
            .is_some_and(|v| v != current.version)
        {
            return Err(
                Error::new(ErrorKind::Conflict, verb, "the volume has another version")
                    .retryable(false),
            );
        }
        let mut volume = current.value.clone();
        let kind = inner.peek(|cache| change(&mut volume, cache))?;
        let draft = Draft::new()
            .unchanged::<Volume>(&self.id, Some(current.version))
            .put(&self.id, &volume)?;
        let change = Change {
            verb,
            object: ObjectRef::Volume(self.id),
            kind,
            draft,
            request,
        };
        Ok(OperationHandle::new(
            inner,
            inner.admit(options, change).await?.operation,
        ))
    }

    /// Makes it larger, while it is attached or not.
    ///
    /// # Errors
    /// [`ErrorKind::Invalid`] when it would shrink.
    pub async fn grow(&self, size: Bytes) -> Result<OperationHandle> {
        self.update(
            "volume.grow",
            format!("{}:{}", self.id, size.0),
            |volume, _| {
                if let Some(message) = size_problem(size) {
                    return Err(Error::invalid(
                        "volume.grow",
                        vec![problem("size", message)],
                    ));
                }
                if size < volume.size {
                    let message = format!(
                        "{size} is less than its {}; a volume can only grow",
                        volume.size
                    );
                    return Err(Error::invalid(
                        "volume.grow",
                        vec![problem("size", message)],
                    ));
                }
                volume.size = size;
                volume.meta.generation += 1;
                Ok(OperationKind::Update {
                    generation: volume.meta.generation,
                })
            },
        )
        .await
    }

    /// Deletes it with its snapshots.
    ///
    /// # Errors
    /// [`ErrorKind::FailedPrecondition`] while a VM has it.
    pub async fn delete(&self) -> Result<OperationHandle> {
        let (now, id) = (self.cluster.inner.clock.now(), self.id);
        self.update("volume.delete", id.to_string(), |volume, cache| {
            if let Some(vm) = cache.users_of(id).next() {
                let message = format!("VM {vm} has it: detach it first");
                return Err(Error::new(
                    ErrorKind::FailedPrecondition,
                    "volume.delete",
                    message,
                ));
            }
            volume.meta.deleted_at.get_or_insert(now);
            Ok(OperationKind::Delete)
        })
        .await
    }
}
