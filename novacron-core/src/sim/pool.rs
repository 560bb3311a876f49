//! What is in a pool. A layer's data is one byte, which is enough to tell whose data it is.

use std::collections::{BTreeMap, BTreeSet};

use super::faults::chance;
use super::state::State;
use crate::driver::{ArtefactId, AttachRequest, CreateSource, CreateVolume, PoolInfo, VolumeInfo};
use crate::error::{Error, ErrorKind, Result};
use crate::model::{
    Bytes, ClusterId, Epoch, ImageId, ImageSource, NodeId, PoolId, SnapshotId, VmId, VolumeFormat,
    VolumeId,
};

/// What an empty layer takes up.
const EMPTY_LAYER: Bytes = Bytes(64 << 10);

/// Something outside that an image can be imported from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SimSource {
    /// Its size as a disk.
    pub size: Bytes,
    /// The SHA-256 of its bytes, 64 hex digits.
    pub sha256: String,
    /// The byte that it is filled with.
    pub fill: u8,
    /// Why it is not what it claims to be, if it is not.
    pub damage: Option<String>,
}

/// A pool.
#[derive(Debug)]
pub(super) struct SimPool {
    pub(super) capacity: Bytes,
    pub(super) used: Bytes,
    pub(super) outage: Option<u64>,
    pub(super) identity: Option<uuid::Uuid>,
    pub(super) volumes: BTreeMap<ArtefactId, SimVolume>,
    /// Image → volume cloned from it.
    clones: BTreeSet<(ImageId, VolumeId)>,
}

/// A volume or an image.
#[derive(Debug)]
pub(super) struct SimVolume {
    pub(super) cluster: ClusterId,
    pub(super) complete: bool,
    pub(super) size: Bytes,
    stored: Bytes,
    format: VolumeFormat,
    pub(super) content: u8,
    /// The image that it shares data with.
    parent: Option<ImageId>,
    /// Which layer takes the writes: the one that was made for this snapshot, or the first one.
    active: Option<SnapshotId>,
    /// Counts restores, each of which makes a new active layer.
    restores: u32,
    pub(super) snapshots: Vec<SimSnapshot>,
    pub(super) attached: Vec<(NodeId, VmId, Epoch)>,
}

/// A snapshot, prepared or committed.
#[derive(Debug)]
pub(super) struct SimSnapshot {
    pub(super) id: SnapshotId,
    pub(super) committed: bool,
    /// Its data, once it is below the active layer.
    content: Option<u8>,
}

impl SimVolume {
    pub(super) fn info(&self) -> VolumeInfo {
        let committed = self.snapshots.iter().filter(|s| s.committed);
        VolumeInfo {
            size: self.size,
            format: self.format,
            snapshots: committed.map(|s| s.id).collect(),
            stored: self.stored,
        }
    }

    /// The name of the active layer.
    pub(super) fn layer(&self) -> String {
        let base = self
            .active
            .map_or_else(|| "base".to_owned(), |s| s.to_string());
        match self.restores {
            0 => base,
            n => format!("{base}.{n}"),
        }
    }

    pub(super) fn is_attached(&self, user: &AttachRequest) -> bool {
        let key = (user.node.clone(), user.vm, user.epoch);
        self.attached.contains(&key)
    }

    pub(super) fn format(&self) -> VolumeFormat {
        self.format
    }

    pub(super) fn attach(&mut self, request: &AttachRequest) {
        let key = (request.node.clone(), request.vm, request.epoch);
        self.attached.retain(|a| *a != key);
        self.attached.reserve_exact(1);
        self.attached.push(key);
    }

    pub(super) fn detach(&mut self, request: &AttachRequest) {
        self.attached
            .retain(|a| *a != (request.node.clone(), request.vm, request.epoch));
    }

    /// Its data at a snapshot.
    pub(super) fn at(&self, snapshot: SnapshotId) -> Option<u8> {
        let found = self.snapshots.iter().find(|s| s.id == snapshot);
        found.filter(|s| s.committed).and_then(|s| s.content)
    }

    /// Writes to a layer: the active one, or the one that is prepared to be, to which the guest then has pivoted.
    pub(super) fn write(&mut self, layer: &str, fill: u8) -> bool {
        let before = self.content;
        if let Some(prepared) = self.prepared(layer) {
            prepared.content.get_or_insert(before);
        } else if self.layer() != layer {
            return false;
        }
        self.content = fill;
        true
    }

    /// Reads a layer.
    pub(super) fn read(&mut self, layer: &str) -> Option<u8> {
        let known = self.layer() == layer || self.prepared(layer).is_some();
        known.then_some(self.content)
    }

    /// The snapshot whose prepared layer this is.
    fn prepared(&mut self, layer: &str) -> Option<&mut SimSnapshot> {
        self.snapshots
            .iter_mut()
            .find(|s| !s.committed && s.id.to_string() == layer)
    }

    pub(super) fn prepare(&mut self, op: &'static str, snapshot: SnapshotId) -> Result<()> {
        if self.snapshots.iter().any(|s| s.id == snapshot) {
            return Ok(());
        }
        if let Some(other) = self.snapshots.iter().find(|s| !s.committed) {
            let message = "another snapshot is prepared and not committed";
            return Err(
                Error::new(ErrorKind::FailedPrecondition, op, message).with("snapshot", other.id)
            );
        }
        self.snapshots.push(SimSnapshot {
            id: snapshot,
            committed: false,
            content: None,
        });
        Ok(())
    }

    pub(super) fn commit(&mut self, op: &'static str, snapshot: SnapshotId) -> Result<()> {
        let content = self.content;
        let Some(found) = self.snapshots.iter_mut().find(|s| s.id == snapshot) else {
            return Err(no_snapshot(op, snapshot));
        };
        if !found.committed {
            found.committed = true;
            found.content.get_or_insert(content);
            self.active = Some(snapshot);
            self.restores = 0;
        }
        Ok(())
    }

    pub(super) fn forget(&mut self, snapshot: SnapshotId) {
        // A prepared layer that the guest went over to has its newest data: it stays the one that is written.
        let pivoted = |s: &SimSnapshot| s.id == snapshot && !s.committed && s.content.is_some();
        if self.snapshots.iter().any(pivoted) {
            self.active = Some(snapshot);
            self.restores = 0;
        }
        self.snapshots.retain(|s| s.id != snapshot);
    }

    pub(super) fn restore(&mut self, op: &'static str, snapshot: SnapshotId) -> Result<()> {
        let content = self.at(snapshot).ok_or_else(|| no_snapshot(op, snapshot))?;
        self.content = content;
        self.restores += 1;
        Ok(())
    }
}

fn no_snapshot(op: &'static str, snapshot: SnapshotId) -> Error {
    Error::new(ErrorKind::NotFound, op, "no such snapshot").with("snapshot", snapshot)
}

impl SimPool {
    pub(super) fn new(capacity: Bytes) -> Self {
        Self {
            capacity,
            used: Bytes(0),
            outage: None,
            identity: None,
            volumes: BTreeMap::new(),
            clones: BTreeSet::new(),
        }
    }

    pub(super) fn info(&self) -> PoolInfo {
        PoolInfo {
            capacity: self.capacity,
            free: Bytes(self.capacity.0.saturating_sub(self.used.0)),
            identity: self.identity,
        }
    }

    /// Whether a volume was made completely.
    pub(super) fn has_volume(&self, id: VolumeId) -> bool {
        self.volumes
            .get(&ArtefactId::Volume(id))
            .is_some_and(|v| v.complete)
    }

    /// A volume or image that was made completely.
    pub(super) fn find(&mut self, op: &'static str, id: ArtefactId) -> Result<&mut SimVolume> {
        self.volumes
            .get_mut(&id)
            .filter(|v| v.complete)
            .ok_or_else(|| Error::new(ErrorKind::NotFound, op, "not in this pool").with("id", id))
    }

    pub(super) fn grow(&mut self, id: VolumeId, size: Bytes) {
        if let Some(volume) = self.volumes.get_mut(&ArtefactId::Volume(id)) {
            volume.size = volume.size.max(size);
        }
    }

    /// A domain has pivoted: what it wrote so far is the prepared snapshot's data.
    pub(super) fn pivoted(&mut self, id: VolumeId, snapshot: SnapshotId) {
        if let Some(volume) = self.volumes.get_mut(&ArtefactId::Volume(id)) {
            let content = volume.content;
            if let Some(found) = volume.snapshots.iter_mut().find(|s| s.id == snapshot) {
                found.content.get_or_insert(content);
            }
        }
    }

    pub(super) fn delete(&mut self, op: &'static str, id: ArtefactId) -> Result<()> {
        if let ArtefactId::Image(image) = id {
            let from = (image, VolumeId::from_uuid(uuid::Uuid::nil()));
            if let Some((_, clone)) = self.clones.range(from..).next().filter(|c| c.0 == image) {
                let message = format!("volume {clone} is a clone of it");
                return Err(Error::new(ErrorKind::FailedPrecondition, op, message).with("id", id));
            }
        }
        if let Some(gone) = self.volumes.remove(&id) {
            self.used.0 -= gone.stored.0;
            if let (ArtefactId::Volume(volume), Some(image)) = (id, gone.parent) {
                self.clones.remove(&(image, volume));
            }
        }
        Ok(())
    }
}

impl State {
    pub(super) fn pool(&mut self, op: &'static str, pool: &PoolId) -> Result<&mut SimPool> {
        self.pools
            .get_mut(pool)
            .ok_or_else(|| Error::new(ErrorKind::Internal, op, "no such pool in this world"))
    }

    pub(super) fn create(
        &mut self,
        op: &'static str,
        pool: &PoolId,
        request: &CreateVolume,
    ) -> Result<VolumeInfo> {
        if let Some(known) = self.pool(op, pool)?.volumes.get(&request.id)
            && known.complete
        {
            return Ok(known.info());
        }
        let id = request.id;
        let no = |kind, message: &'static str| Error::new(kind, op, message).with("id", id);
        let (least, content, stored) = match &request.source {
            CreateSource::Blank if request.size.0 == 0 => {
                return Err(no(ErrorKind::Invalid, "a blank volume needs a size"));
            }
            CreateSource::Blank => (Bytes(0), 0, EMPTY_LAYER),
            CreateSource::Image(image) => {
                let image = self.pool(op, pool)?.find(op, ArtefactId::Image(*image))?;
                (image.size, image.content, EMPTY_LAYER)
            }
            CreateSource::Snapshot(volume, snapshot) => {
                let of = self.pool(op, pool)?.find(op, ArtefactId::Volume(*volume))?;
                let content = of.at(*snapshot).ok_or_else(|| no_snapshot(op, *snapshot))?;
                (of.size, content, of.size)
            }
            CreateSource::Import { source, sha256 } => {
                let name = match source {
                    ImageSource::File(path) => path.display().to_string(),
                    ImageSource::Url(url) => url.clone(),
                };
                let found = self.sources.get(&name).ok_or_else(|| {
                    no(ErrorKind::NotFound, "no such source").with("source", &name)
                })?;
                if let Some(damage) = &found.damage {
                    return Err(Error::new(ErrorKind::Invalid, op, damage.clone()).with("id", id));
                }
                if sha256
                    .as_ref()
                    .is_some_and(|s| !s.eq_ignore_ascii_case(&found.sha256))
                {
                    return Err(no(ErrorKind::Invalid, "the SHA-256 is another one")
                        .with("found", &found.sha256));
                }
                (found.size, found.fill, found.size)
            }
        };
        if request.size.0 != 0 && request.size < least {
            let message = format!(
                "its size would be {}, and its source has {least}",
                request.size
            );
            return Err(Error::new(ErrorKind::Invalid, op, message).with("id", id));
        }
        let half_made = self.orphan && chance(&mut self.rng, self.plan.half_made);
        let pool = self.pool(op, pool)?;
        // What was left half made is written over.
        let before = pool.volumes.get(&id).map_or(0, |v| v.stored.0);
        if pool.used.0 - before + stored.0 > pool.capacity.0 {
            return Err(no(ErrorKind::Exhausted, "the pool is full"));
        }
        pool.used.0 = pool.used.0 - before + stored.0;
        let parent = match (id, &request.source) {
            (ArtefactId::Volume(volume), CreateSource::Image(image)) => {
                pool.clones.insert((*image, volume));
                Some(*image)
            }
            _ => None,
        };
        let volume = SimVolume {
            cluster: request.cluster,
            complete: !half_made,
            size: request.size.max(least),
            stored,
            format: request.format,
            content,
            parent,
            active: None,
            restores: 0,
            snapshots: Vec::new(),
            attached: Vec::new(),
        };
        let info = volume.info();
        pool.volumes.insert(id, volume);
        self.note(|| format!("{id} made, complete: {}", !half_made));
        Ok(info)
    }
}
