//! A simulated storage backend: one pool of a world, behind the trait that real ones implement.

use async_trait::async_trait;
use bytes::Bytes;
use futures::StreamExt;
use futures::stream::{self, BoxStream};

use super::observe::ViolationKind;
use super::pool::SimVolume;
use super::state::{Place, State};
use super::world::{SimWorld, layer_path};
use crate::driver::{
    Artefact, ArtefactId, AttachRequest, Attachment, AttachmentSource, Call, CreateVolume,
    PoolInfo, StorageBackend, VolumeInfo, VolumeTransfer,
};
use crate::error::{Error, ErrorKind, Result};
use crate::model::{self, Epoch, PoolId, SnapshotId, VolumeId};

/// Bytes of one piece of an export.
const PIECE: u64 = 1 << 20;

/// A driver for one pool of a [`SimWorld`]. It has no state of its own: a new one after a crash sees what is there.
#[derive(Clone, Debug)]
pub struct SimStorage {
    world: SimWorld,
    pool: PoolId,
}

impl SimStorage {
    /// A driver for a pool.
    pub fn new(world: &SimWorld, pool: PoolId) -> Self {
        Self {
            world: world.clone(),
            pool,
        }
    }

    async fn run<T: Send + 'static>(
        &self,
        op: &'static str,
        call: Call,
        effect: impl FnOnce(&mut State, &PoolId) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        let pool = self.pool.clone();
        let place = Place::Pool(pool.clone());
        self.world
            .call(op, place, None, call, move |state| effect(state, &pool))
            .await
    }
}

/// A volume that is not attached.
fn detached<'a>(
    state: &'a mut State,
    op: &'static str,
    pool: &PoolId,
    id: VolumeId,
) -> Result<&'a mut SimVolume> {
    let volume = state.pool(op, pool)?.find(op, ArtefactId::Volume(id))?;
    match volume.attached.first() {
        None => {
            unused(state, op, id);
            state.pool(op, pool)?.find(op, ArtefactId::Volume(id))
        }
        Some((node, vm, epoch)) => {
            Err(
                Error::new(ErrorKind::FailedPrecondition, op, "the volume is attached")
                    .with("volume", id)
                    .with("to", format!("{vm}.{epoch} on {node}")),
            )
        }
    }
}

/// Writes down if a running domain writes the volume.
fn unused(state: &mut State, by: &'static str, volume: VolumeId) {
    let user = state.writers_of(volume).next();
    if let Some(user) = user {
        state.violation(ViolationKind::ChangedInUse { volume, by, user });
    }
}

fn attachment(
    pool: &PoolId,
    id: VolumeId,
    volume: &SimVolume,
    layer: String,
    epoch: Epoch,
) -> Attachment {
    Attachment {
        source: AttachmentSource::File(layer_path(pool, id, layer)),
        format: volume.format(),
        epoch,
        enforces_writer: false,
    }
}

#[async_trait]
impl StorageBackend for SimStorage {
    async fn probe(&self, call: Call) -> Result<PoolInfo> {
        const OP: &str = "sim.pool.probe";
        self.run(OP, call, |state, pool| Ok(state.pool(OP, pool)?.info()))
            .await
    }

    async fn list(&self, call: Call) -> Result<Vec<Artefact>> {
        const OP: &str = "sim.pool.list";
        self.run(OP, call, |state, pool| {
            let volumes = state.pool(OP, pool)?.volumes.iter();
            let artefacts = volumes.map(|(id, volume)| Artefact {
                cluster: volume.cluster,
                id: *id,
                stored: volume.info().stored,
            });
            Ok(artefacts.collect())
        })
        .await
    }

    async fn create(&self, call: Call, request: &CreateVolume) -> Result<VolumeInfo> {
        const OP: &str = "sim.volume.create";
        let request = request.clone();
        self.run(OP, call, move |state, pool| {
            state.create(OP, pool, &request)
        })
        .await
    }

    async fn inspect(&self, call: Call, id: ArtefactId) -> Result<Option<VolumeInfo>> {
        const OP: &str = "sim.volume.inspect";
        self.run(OP, call, move |state, pool| {
            let volumes = &state.pool(OP, pool)?.volumes;
            Ok(volumes.get(&id).filter(|v| v.complete).map(SimVolume::info))
        })
        .await
    }

    async fn resize(&self, call: Call, id: VolumeId, size: model::Bytes) -> Result<VolumeInfo> {
        const OP: &str = "sim.volume.resize";
        self.run(OP, call, move |state, pool| {
            let volume = state.pool(OP, pool)?.find(OP, ArtefactId::Volume(id))?;
            if volume.size >= size {
                return Ok(volume.info());
            }
            let volume = detached(state, OP, pool, id)?;
            volume.size = size;
            Ok(volume.info())
        })
        .await
    }

    async fn delete(&self, call: Call, id: ArtefactId) -> Result<()> {
        const OP: &str = "sim.volume.delete";
        self.run(OP, call, move |state, pool| {
            if let ArtefactId::Volume(volume) = id {
                unused(state, OP, volume);
            }
            state.pool(OP, pool)?.delete(OP, id)?;
            state.note(|| format!("{id} deleted"));
            Ok(())
        })
        .await
    }

    async fn attach(
        &self,
        call: Call,
        id: VolumeId,
        request: &AttachRequest,
    ) -> Result<Attachment> {
        const OP: &str = "sim.volume.attach";
        let request = request.clone();
        self.run(OP, call, move |state, pool| {
            let volume = state.pool(OP, pool)?.find(OP, ArtefactId::Volume(id))?;
            volume.attach(&request);
            Ok(attachment(pool, id, volume, volume.layer(), request.epoch))
        })
        .await
    }

    async fn detach(&self, call: Call, id: VolumeId, request: &AttachRequest) -> Result<()> {
        const OP: &str = "sim.volume.detach";
        let request = request.clone();
        self.run(OP, call, move |state, pool| {
            let volumes = &mut state.pool(OP, pool)?.volumes;
            if let Some(volume) = volumes.get_mut(&ArtefactId::Volume(id)) {
                volume.detach(&request);
            }
            Ok(())
        })
        .await
    }

    async fn snapshot_prepare(
        &self,
        call: Call,
        id: VolumeId,
        snapshot: SnapshotId,
        writer: Option<&AttachRequest>,
    ) -> Result<Option<Attachment>> {
        const OP: &str = "sim.snapshot.prepare";
        let writer = writer.cloned();
        self.run(OP, call, move |state, pool| {
            let volume = state.pool(OP, pool)?.find(OP, ArtefactId::Volume(id))?;
            if let Some(writer) = &writer
                && !volume.is_attached(writer)
            {
                let message = "the writer is not attached";
                return Err(
                    Error::new(ErrorKind::FailedPrecondition, OP, message).with("volume", id)
                );
            }
            volume.prepare(OP, snapshot)?;
            Ok(writer
                .map(|writer| attachment(pool, id, volume, snapshot.to_string(), writer.epoch)))
        })
        .await
    }

    async fn snapshot_commit(&self, call: Call, id: VolumeId, snapshot: SnapshotId) -> Result<()> {
        const OP: &str = "sim.snapshot.commit";
        self.run(OP, call, move |state, pool| {
            let volume = state.pool(OP, pool)?.find(OP, ArtefactId::Volume(id))?;
            volume.commit(OP, snapshot)
        })
        .await
    }

    async fn snapshot_delete(&self, call: Call, id: VolumeId, snapshot: SnapshotId) -> Result<()> {
        const OP: &str = "sim.snapshot.delete";
        self.run(OP, call, move |state, pool| {
            let volumes = &mut state.pool(OP, pool)?.volumes;
            if let Some(volume) = volumes.get_mut(&ArtefactId::Volume(id)) {
                volume.forget(snapshot);
            }
            Ok(())
        })
        .await
    }

    async fn restore(&self, call: Call, id: VolumeId, snapshot: SnapshotId) -> Result<()> {
        const OP: &str = "sim.volume.restore";
        self.run(OP, call, move |state, pool| {
            detached(state, OP, pool, id)?.restore(OP, snapshot)?;
            state.note(|| format!("{id} restored to {snapshot}"));
            Ok(())
        })
        .await
    }

    fn transfer(&self) -> Option<&dyn VolumeTransfer> {
        Some(self)
    }
}

#[async_trait]
impl VolumeTransfer for SimStorage {
    async fn export(
        &self,
        call: Call,
        id: ArtefactId,
        snapshot: Option<SnapshotId>,
    ) -> Result<BoxStream<'static, Result<Bytes>>> {
        const OP: &str = "sim.volume.export";
        let (fill, size) = self
            .run(OP, call, move |state, pool| {
                let volume = state.pool(OP, pool)?.find(OP, id)?;
                let fill = match snapshot {
                    None => Some(volume.content),
                    Some(snapshot) => volume.at(snapshot),
                };
                let fill = fill.ok_or_else(|| {
                    Error::new(ErrorKind::NotFound, OP, "no such snapshot").with("id", id)
                })?;
                Ok((fill, volume.size.0))
            })
            .await?;
        let pieces = (0..size.div_ceil(PIECE)).map(move |n| {
            let length = PIECE.min(size - n * PIECE);
            Ok(Bytes::from(vec![
                fill;
                usize::try_from(length).unwrap_or(0)
            ]))
        });
        Ok(stream::iter(pieces).boxed())
    }
}
