//! Volumes: disks that stay when a VM goes.

use std::collections::BTreeMap;

use futures::stream::BoxStream;

use super::object::{Object, find, object_parts, siblings};
use super::request::{problem, refuse};
use super::{OperationHandle, RequestOptions, check};
use crate::control::cache::Cache;
use crate::control::plan::Draft;
use crate::driver::{ArtefactId, Call};
use crate::error::{Error, ErrorKind, Problem, Result};
use crate::model::{
    Bytes, DiskBus, Image, Meta, Name, OperationKind, PoolId, Snapshot, SnapshotId, StorageState,
    StorageStatus, Versioned, Volume, VolumeFormat, VolumeId, VolumeSource,
};
use crate::time::Timestamp;

const CREATE: &str = "volume.create";

/// A volume that a caller asks for.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VolumeSpec {
    /// Unique per project: 1 to 63 of `a-z 0-9 - .`.
    pub name: String,
    /// Its size: 1 MiB to 64 TiB, a multiple of 512 bytes. Zero for one with a source: as large as that.
    pub size: Bytes,
    /// What it begins as; zeroes unless said otherwise.
    #[serde(default)]
    pub source: VolumeSource,
    /// Its pool; its source's if it has one, else the only one of the cluster if none.
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
            source: VolumeSource::Blank,
            pool: None,
            format: VolumeFormat::Qcow2,
            labels: BTreeMap::new(),
            annotations: BTreeMap::new(),
        }
    }

    /// Begins as a clone of an image, or as a copy of a snapshot, in its pool.
    #[must_use]
    pub fn source(mut self, source: VolumeSource) -> Self {
        self.source = source;
        self
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

/// The pool that the volume will lie in, and its source as it was read.
fn place(
    cache: &Cache,
    options: &RequestOptions,
    spec: &VolumeSpec,
) -> Result<(PoolId, Draft), Problem> {
    let none = |field: &str, what: String| problem(field, format!("the project has no {what}"));
    let going = |field: &str, meta: &Meta| match meta.deleted_at {
        Some(_) => Err(problem(field, "it is being deleted")),
        None => Ok(()),
    };
    let (pool, draft) = match spec.source {
        VolumeSource::Blank => {
            let pool = pick_pool(cache, spec.pool.as_ref());
            return Ok((pool.map_err(|why| problem("pool", why))?, Draft::new()));
        }
        VolumeSource::Image(id) => {
            let field = "source.image";
            let found = find::<Image>(cache, options, CREATE, id);
            let image = found.map_err(|_| none(field, format!("image {id}")))?;
            going(field, &image.meta)?;
            let draft = Draft::new().unchanged::<Image>(&id, Some(image.version));
            (image.pool.clone(), draft)
        }
        VolumeSource::Snapshot(id) => {
            let field = "source.snapshot";
            let found = find::<Snapshot>(cache, options, CREATE, id);
            let snapshot = found.map_err(|_| none(field, format!("snapshot {id}")))?;
            going(field, &snapshot.meta)?;
            let of = cache.volumes.get(&snapshot.volume);
            let of = of.ok_or_else(|| problem(field, "its volume is gone"))?;
            let draft = Draft::new().unchanged::<Snapshot>(&id, Some(snapshot.version));
            (of.pool.clone(), draft)
        }
    };
    match &spec.pool {
        Some(wanted) if *wanted != pool => {
            let why = format!("it lies in its source's pool, {pool}");
            Err(problem("pool", why))
        }
        _ => Ok((pool, draft)),
    }
}

impl Volumes {
    /// Creates a volume. The handle's [`operation`](VolumeHandle::operation) ends when it is there.
    ///
    /// # Errors
    /// [`ErrorKind::Invalid`](crate::ErrorKind::Invalid) with every problem;
    /// [`ErrorKind::AlreadyExists`](crate::ErrorKind::AlreadyExists) when the name is taken.
    pub async fn create(&self, spec: VolumeSpec) -> Result<VolumeHandle> {
        let (inner, options) = (&self.0.inner, self.0.options());
        let draft = async {
            let mut problems = check::volume(&spec);
            let placed = inner.read(|cache| place(cache, options, &spec)).await?;
            let placed = placed.map_err(|found| problems.push(found)).ok();
            let (Some((pool, draft)), true) = (placed, problems.is_empty()) else {
                return Err(Error::invalid(CREATE, problems));
            };
            let now = inner.clock.now();
            let id = VolumeId::generate(now, &*inner.ids);
            let meta = Meta {
                labels: spec.labels.clone(),
                annotations: spec.annotations.clone(),
                ..Meta::new(Name::new(&spec.name)?, options.project.clone(), now)
            };
            let draft = draft.name(&meta, "volume", id)?;
            let volume = Volume {
                id,
                meta,
                pool,
                source: spec.source,
                size: spec.size,
                format: spec.format,
                made_with: None,
            };
            Ok((id, draft.put(&id, &volume)?))
        };
        let made = self.0.create::<Volume>(CREATE, &spec, draft);
        Ok(self.created(made.await?))
    }
}

impl VolumeHandle {
    /// The bytes of one of its snapshots as a raw image, holes as zeroes, in order; also while a guest writes the volume.
    /// The deadline is that of the whole stream, which ends with an error if it cannot go on.
    ///
    /// # Errors
    /// [`ErrorKind::NotFound`] also for the snapshot; [`ErrorKind::Invalid`] for one of another volume;
    /// [`ErrorKind::FailedPrecondition`] for one that is not taken (yet); [`ErrorKind::Unsupported`] when the pool's
    /// driver cannot copy data out.
    pub async fn export(
        &self,
        call: Call,
        snapshot: SnapshotId,
    ) -> Result<BoxStream<'static, Result<bytes::Bytes>>> {
        const VERB: &str = "volume.export";
        let (inner, options) = (&self.cluster.inner, self.cluster.options());
        inner.authorize(options, VERB)?;
        let pool = inner.read(|cache| {
            let volume = find::<Volume>(cache, options, VERB, self.id)?;
            let of = find::<Snapshot>(cache, options, VERB, snapshot)?.volume;
            if of != self.id {
                let message = format!("it is a snapshot of volume {of}");
                return Err(Error::invalid(VERB, vec![problem("snapshot", message)]));
            }
            match cache.snapshot_status.get(&snapshot).map(|s| &s.0.state) {
                Some(StorageState::Available) => Ok(volume.pool.clone()),
                _ => {
                    let message = "the snapshot is not taken";
                    Err(Error::new(ErrorKind::FailedPrecondition, VERB, message))
                }
            }
        });
        let backend = inner.drivers.pool(&pool.await??)?;
        let transfer = backend.transfer().ok_or_else(|| {
            let message = "the pool's driver cannot copy data out";
            Error::new(ErrorKind::Unsupported, VERB, message)
        })?;
        let id = ArtefactId::Volume(self.id);
        transfer.export(call, id, Some(snapshot)).await
    }

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
                let status = cache.volume_status.get(&volume.id);
                let now = volume.size_by(status.map(|s| &s.0));
                if size < now {
                    problems.push(format!("{size} is less than its {now}; it can only grow"));
                }
                let disk = cache.disk_of(volume);
                if disk.is_some_and(|disk| disk.role.is_state()) {
                    let message =
                        "it holds the state of a VM's firmware or TPM, which has its size";
                    problems.push(message.to_owned());
                }
                if disk.is_some_and(|disk| disk.options.bus == DiskBus::Cdrom) {
                    let message = "it is the medium in a VM's CD-ROM drive, which has its size";
                    problems.push(message.to_owned());
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
