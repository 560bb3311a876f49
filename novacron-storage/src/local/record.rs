//! `volume.json`: what an artefact consists of. Replacing it is the commit point of every change.

use std::fs;
use std::io::{self, Read as _, Write as _};
use std::path::Path;

use novacron_core::driver::{ArtefactId, AttachRequest};
use novacron_core::model::{ClusterId, Epoch, ImageId, NodeId, SnapshotId, VmId, VolumeFormat};
use novacron_core::{Error, ErrorKind, Result};
use serde::{Deserialize, Serialize};

use super::layout::{RECORD, new_file, sync_dir};
use crate::failure::of_io;

const VERSION: u32 = 1;
const MAX_RECORD: u64 = 4 << 20;

/// What is around every record, whatever its version.
#[derive(Serialize, Deserialize)]
struct Envelope<T> {
    novacron_volume: u32,
    #[serde(flatten)]
    body: T,
}

/// What an artefact consists of.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Record {
    pub(super) cluster: ClusterId,
    pub(super) id: ArtefactId,
    /// The SHA-256 of what it was made from, to tell a repeated request from another one.
    pub(super) request: String,
    /// The size when the record was written; the truth is in the active layer's header, which a running guest's
    /// hypervisor may grow.
    pub(super) size: u64,
    /// How the active layer is stored.
    pub(super) format: VolumeFormat,
    /// The image that the first layer is a clone of.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) parent: Option<ImageId>,
    /// Every layer, each after the one that it stands on.
    pub(super) layers: Vec<Layer>,
    /// The layer that takes writes.
    pub(super) active: String,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(super) snapshots: Vec<SnapshotEntry>,
    /// The snapshot being taken.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) prepared: Option<Prepared>,
    /// Who may be using it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(super) attached: Vec<Attached>,
    /// How often the volume was restored: names the next layer.
    #[serde(default)]
    pub(super) restores: u64,
}

/// One file of data.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Layer {
    pub(super) file: String,
    pub(super) format: VolumeFormat,
    /// The layer of this artefact that it stands on; the first stands on the parent, if there is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) on: Option<String>,
}

/// A snapshot: a layer that nothing writes to any more.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct SnapshotEntry {
    pub(super) id: SnapshotId,
    pub(super) layer: String,
    /// The layer that was made to take the writes after it.
    pub(super) next: String,
}

/// A layer that waits to become the active one.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Prepared {
    pub(super) snapshot: SnapshotId,
    pub(super) layer: String,
}

/// A use of a volume that was not taken back yet.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Attached {
    pub(super) node: NodeId,
    pub(super) vm: VmId,
    pub(super) epoch: Epoch,
}

impl From<&AttachRequest> for Attached {
    fn from(request: &AttachRequest) -> Self {
        Self {
            node: request.node.clone(),
            vm: request.vm,
            epoch: request.epoch,
        }
    }
}

impl Record {
    /// An error while the volume is attached.
    pub(super) fn refuse_attached(&self, op: &'static str) -> Result<()> {
        match self.attached.last() {
            None => Ok(()),
            Some(user) => Err(Error::new(
                ErrorKind::FailedPrecondition,
                op,
                "the volume is attached; detach it first",
            )
            .with("vm", user.vm)
            .with("node", &user.node)
            .with("epoch", user.epoch)),
        }
    }

    /// A layer by its file's name.
    pub(super) fn layer(&self, op: &'static str, file: &str) -> Result<&Layer> {
        self.layers.iter().find(|l| l.file == file).ok_or_else(|| {
            Error::new(
                ErrorKind::Corrupt,
                op,
                format!(
                    "the record of {} names a layer {file:?} that it does not have",
                    self.id
                ),
            )
        })
    }

    pub(super) fn snapshot(&self, id: SnapshotId) -> Option<&SnapshotEntry> {
        self.snapshots.iter().find(|s| s.id == id)
    }

    /// The layers that the active one, the prepared one and the snapshots stand on.
    pub(super) fn drop_unreachable(&mut self) {
        let mut needed: Vec<String> = Vec::new();
        let roots = std::iter::once(&self.active)
            .chain(self.prepared.iter().map(|p| &p.layer))
            .chain(self.snapshots.iter().map(|s| &s.layer));
        for root in roots {
            let mut next = Some(root.clone());
            while let Some(file) = next.take() {
                if needed.contains(&file) {
                    break;
                }
                next = self
                    .layers
                    .iter()
                    .find(|l| l.file == file)
                    .and_then(|l| l.on.clone());
                needed.push(file);
            }
        }
        self.layers.retain(|l| needed.contains(&l.file));
    }

    /// Reads the record in `dir`; none if there is none yet.
    pub(super) fn read(op: &'static str, dir: &Path) -> Result<Option<Self>> {
        let path = dir.join(RECORD);
        let mut text = Vec::new();
        let read = fs::File::open(&path).and_then(|f| f.take(MAX_RECORD).read_to_end(&mut text));
        match read {
            Ok(_) => Self::parse(op, &text)
                .map(Some)
                .map_err(|e| e.with("path", path.display())),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(e) => Err(of_io(op, "cannot read the record", &path, e)),
        }
    }

    fn parse(op: &'static str, text: &[u8]) -> Result<Self> {
        let damaged = |e: serde_json::Error| {
            Error::new(ErrorKind::Corrupt, op, "the record is damaged").caused_by(e)
        };
        let envelope: Envelope<serde_json::Value> =
            serde_json::from_slice(text).map_err(damaged)?;
        if envelope.novacron_volume > VERSION {
            return Err(Error::new(
                ErrorKind::Corrupt,
                op,
                format!(
                    "the record is of version {}, written by a newer NovaCron; this one knows {VERSION}",
                    envelope.novacron_volume
                ),
            ));
        }
        let record: Self = serde_json::from_value(envelope.body).map_err(damaged)?;
        let names = record.layers.iter().map(|l| &l.file);
        if let Some(bad) = names.clone().find(|n| !is_layer_name(n)) {
            return Err(Error::new(
                ErrorKind::Corrupt,
                op,
                format!("{bad:?} is not the name of a layer"),
            ));
        }
        record.layer(op, &record.active)?;
        Ok(record)
    }

    /// Replaces the record in `dir`; durable on return.
    pub(super) fn write(&self, op: &'static str, dir: &Path) -> Result<()> {
        let path = dir.join(RECORD);
        let fresh = dir.join("volume.json.new");
        let envelope = Envelope {
            novacron_volume: VERSION,
            body: self,
        };
        let text = serde_json::to_vec_pretty(&envelope).map_err(|e| {
            Error::new(ErrorKind::Internal, op, "cannot write the record").caused_by(e)
        })?;
        let mut file = new_file(op, &fresh)?;
        let written = file.write_all(&text).and_then(|()| file.sync_all());
        crate::crash::point("record.written");
        let named = written.and_then(|()| fs::rename(&fresh, &path));
        if let Err(e) = named {
            let _ = fs::remove_file(&fresh);
            return Err(of_io(op, "cannot write the record", &path, e));
        }
        sync_dir(op, dir)?;
        crate::crash::point("record.named");
        Ok(())
    }
}

/// Whether a layer of ours could be called so: no separators, no dots in front.
fn is_layer_name(name: &str) -> bool {
    let stem = name.strip_suffix(".qcow2").or(name.strip_suffix(".raw"));
    stem.is_some_and(|stem| {
        !stem.is_empty()
            && stem
                .bytes()
                .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record() -> Record {
        let uuid = uuid::Uuid::from_u128(7);
        Record {
            cluster: ClusterId::from_uuid(uuid),
            id: ArtefactId::Image(ImageId::from_uuid(uuid)),
            request: "00".into(),
            size: 1 << 20,
            format: VolumeFormat::Qcow2,
            parent: None,
            layers: vec![Layer {
                file: "base.qcow2".into(),
                format: VolumeFormat::Qcow2,
                on: None,
            }],
            active: "base.qcow2".into(),
            snapshots: Vec::new(),
            prepared: None,
            attached: Vec::new(),
            restores: 0,
        }
    }

    #[test]
    fn a_record_is_read_as_it_was_written() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(Record::read("t", dir.path()).unwrap(), None);
        record().write("t", dir.path()).unwrap();
        assert_eq!(Record::read("t", dir.path()).unwrap(), Some(record()));
    }

    #[test]
    fn newer_damaged_and_hostile_records_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        record().write("t", dir.path()).unwrap();
        let path = dir.path().join(RECORD);
        let text = fs::read_to_string(&path).unwrap();
        for (from, to, says) in [
            ("\"novacron_volume\": 1", "\"novacron_volume\": 2", "newer"),
            ("base.qcow2", "../../../etc/x.qcow2", "not the name"),
            ("\"active\": \"base", "\"active\": \"other", "does not have"),
            ("{", "", "damaged"),
        ] {
            fs::write(&path, text.replacen(from, to, 1)).unwrap();
            let error = Record::read("t", dir.path()).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Corrupt);
            assert!(error.report().contains(says), "{}", error.report());
        }
    }
}
