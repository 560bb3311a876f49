//! Volumes: disks that stay when a VM goes.

use std::collections::BTreeMap;

use super::object::{Object, object_parts, siblings};
use super::request::{problem, refuse};
use super::{OperationHandle, check};
use crate::control::cache::Cache;
use crate::control::plan::Draft;
use crate::error::{Error, Result};
use crate::model::{
    Bytes, Meta, Name, OperationKind, PoolId, StorageStatus, Versioned, Volume, VolumeFormat,
    VolumeId, VolumeSource,
};
use crate::time::Timestamp;

/// A volume that a caller asks for.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VolumeSpec {
    /// Unique per project: 1 to 63 of `a-z 0-9 - .`.
    pub name: String,
    /// Its size: 1 MiB to 64 TiB, a multiple of 512 bytes.
    pub size: Bytes,
    /// Its pool; the only one of the cluster if none.
    #[serde(default)]
    pub pool: Option<PoolId>,
    /// How it is stored.
    #[serde(default)]
    pub format: VolumeFormat,
    /// Labels: short, for selection.
    #[serde(default)]
    pub labels: BTreeMap<String, String>,
    /// Annotations: for the host application, not looked at.
    #[serde(default)]
    pub annotations: BTreeMap<String, String>,
}

impl VolumeSpec {
    /// An empty qcow2 volume in the only pool.
    pub fn new(name: impl Into<String>, size: Bytes) -> Self {
        Self {
            name: name.into(),
            size,
            pool: None,
            format: VolumeFormat::Qcow2,
            labels: BTreeMap::new(),
            annotations: BTreeMap::new(),
        }
    }
}

/// A volume as it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VolumeView {
    /// What should be.
    pub volume: Versioned<Volume>,
    /// What is; none before the controller has looked at it.
    pub status: Option<StorageStatus>,
}

siblings! {
    "volume", Volume, VolumeId, VolumeView, Volumes, VolumeHandle,
    /// Deletes it with its snapshots.
    ///
    /// # Errors
    /// [`ErrorKind::NotFound`](crate::ErrorKind::NotFound);
    /// [`ErrorKind::FailedPrecondition`](crate::ErrorKind::FailedPrecondition) while a VM has it.
}

impl Object for Volume {
    type View = VolumeView;
    object_parts!("volume", Volume, volumes);

    fn view(volume: &Versioned<Self>, cache: &Cache, _: Timestamp) -> VolumeView {
        let status = cache.volume_status.get(&volume.id);
        VolumeView {
            volume: volume.clone(),
            status: status.map(|s| s.value.0.clone()),
        }
    }

    fn in_use(&self, cache: &Cache) -> Option<String> {
        let vm = cache.users_of(self.id).next()?;
        Some(format!("VM {vm} has it: detach it first"))
    }
}

/// The wanted pool, or the only one.
pub(super) fn pick_pool(cache: &Cache, wanted: Option<&PoolId>) -> Result<PoolId, String> {
    match wanted {
        Some(pool) if cache.pools.contains_key(pool) => Ok(pool.clone()),
        Some(pool) => Err(format!("there is no pool {pool}")),
        None => match cache.pools.keys().next() {
            Some(pool) if cache.pools.len() == 1 => Ok(pool.clone()),
            _ => Err(format!(
                "the cluster has {} pools: name one",
                cache.pools.len()
            )),
        },
    }
}

impl Volumes {
    /// Creates an empty volume. The handle's [`operation`](VolumeHandle::operation) ends when it is there.
    ///
    /// # Errors
    /// [`ErrorKind::Invalid`](crate::ErrorKind::Invalid) with every problem;
    /// [`ErrorKind::AlreadyExists`](crate::ErrorKind::AlreadyExists) when the name is taken.
    pub async fn create(&self, spec: VolumeSpec) -> Result<VolumeHandle> {
        let (inner, options) = (&self.0.inner, self.0.options());
        let draft = async {
            let mut problems = check::volume(&spec);
            let pool = inner
                .read(|cache| pick_pool(cache, spec.pool.as_ref()))
                .await?;
            let pool = pool.map_err(|m| problems.push(problem("pool", m))).ok();
            let (Some(pool), true) = (pool, problems.is_empty()) else {
                return Err(Error::invalid("volume.create", problems));
            };
            let now = inner.clock.now();
            let id = VolumeId::generate(now, &*inner.ids);
            let meta = Meta {
                labels: spec.labels.clone(),
                annotations: spec.annotations.clone(),
                ..Meta::new(Name::new(&spec.name)?, options.project.clone(), now)
            };
            let draft = Draft::new().name(&meta, "volume", id)?;
            let volume = Volume {
                id,
                meta,
                pool,
                source: VolumeSource::Blank,
                size: spec.size,
                format: spec.format,
            };
            Ok((id, draft.put(&id, &volume)?))
        };
        let made = self.0.create::<Volume>("volume.create", &spec, draft);
        Ok(self.created(made.await?))
    }
}

impl VolumeHandle {
    /// Makes it larger, while it is attached or not. A running guest sees the new size at once.
    ///
    /// # Errors
    /// [`ErrorKind::NotFound`](crate::ErrorKind::NotFound); [`ErrorKind::Invalid`](crate::ErrorKind::Invalid) when it
    /// would shrink, or for a size that no volume can have.
    pub async fn grow(&self, size: Bytes) -> Result<OperationHandle> {
        const VERB: &str = "volume.grow";
        self.cluster
            .change::<Volume>(VERB, self.id, &size, |volume, draft, cache| {
                let mut problems: Vec<_> = check::size(size).into_iter().collect();
                // A clone's size is its image's, which only the status knows.
                let status = cache.volume_status.get(&volume.id);
                let now = status.map_or(volume.size, |s| s.0.size.max(volume.size));
                if size < now {
                    problems.push(format!("{size} is less than its {now}; it can only grow"));
                }
                let problems = problems.into_iter().map(|m| problem("size", m));
                refuse(VERB, problems.collect())?;
                volume.size = size;
                volume.meta.generation += 1;
                let generation = volume.meta.generation;
                Ok((draft, OperationKind::Update { generation }))
            })
            .await
    }
}
