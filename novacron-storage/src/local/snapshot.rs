//! Snapshots: layers that nothing writes to any more.
//!
//! ```text
//!               prepare s1              commit s1               restore s1
//! active: base ──────────► base ──────────────────► s1.qcow2 ──────────────► s1-1.qcow2
//!                          s1.qcow2 waits            on base (= s1)           on base (= s1); s1.qcow2 swept
//! ```
//! Every arrow is one replacement of `volume.json`; the new layer is there, and synced, before it. What the record does
//! not name afterwards is removed under the data lock.
//!
//! A prepared layer that has data was pivoted to: the guest's newest writes are in it. It is never thrown away:
//! `attach` asks for the commit, and deleting the snapshot makes the layer the active one.

use novacron_core::driver::{ArtefactId, AttachRequest, Attachment, Call};
use novacron_core::model::{SnapshotId, VolumeFormat, VolumeId};
use novacron_core::{Deadline, Error, ErrorKind, Result};

use super::create::no_snapshot;
use super::record::{Attached, Layer, Prepared, SnapshotEntry};
use super::volume::{Owned, Why};
use super::{Pool, attachment, chain, missing, writer};
use crate::task::blocking;

impl Pool {
    pub(super) async fn snapshot_prepare(
        &self,
        call: Call,
        id: VolumeId,
        snapshot: SnapshotId,
        writer: Option<&AttachRequest>,
    ) -> Result<Option<Attachment>> {
        const OP: &str = "storage.snapshot-prepare";
        let artefact = ArtefactId::Volume(id);
        let mut owned = self.own(OP, artefact, call.deadline, false).await?;
        if let Some(writer) = writer
            && !owned.record.attached.contains(&Attached::from(writer))
        {
            return Err(Error::new(
                ErrorKind::FailedPrecondition,
                OP,
                format!("{}.{} is not attached to it", writer.vm, writer.epoch),
            ));
        }
        let dir = owned.dir.clone();
        let answer =
            |layer: &str| writer.map(|w| attachment(dir.join(layer), VolumeFormat::Qcow2, w.epoch));
        if let Some(done) = owned.record.snapshot(snapshot) {
            let there = owned.record.layer(OP, &done.next).is_ok();
            return Ok(answer(if there {
                &done.next
            } else {
                &owned.record.active
            }));
        }
        match &owned.record.prepared {
            Some(prepared) if prepared.snapshot == snapshot => return Ok(answer(&prepared.layer)),
            Some(other) => return Err(pending(OP, other)),
            None => {}
        }
        let layer = format!("{snapshot}.qcow2");
        if owned.record.layer(OP, &layer).is_ok() {
            return Err(Error::new(
                ErrorKind::AlreadyExists,
                OP,
                format!("snapshot {snapshot} was there and is deleted; take a new id"),
            ));
        }
        self.add_layer(OP, &mut owned, &layer, None, call.deadline)
            .await?;
        crate::crash::point("prepare.layer-made");
        let answer = answer(&layer);
        owned.record.prepared = Some(Prepared { snapshot, layer });
        owned.commit(OP).await?;
        Ok(answer)
    }

    pub(super) async fn snapshot_commit(
        &self,
        call: Call,
        id: VolumeId,
        snapshot: SnapshotId,
    ) -> Result<()> {
        const OP: &str = "storage.snapshot-commit";
        let artefact = ArtefactId::Volume(id);
        let mut owned = self.own(OP, artefact, call.deadline, false).await?;
        if owned.record.snapshot(snapshot).is_some() {
            return Ok(());
        }
        match owned.record.prepared.take() {
            Some(prepared) if prepared.snapshot == snapshot => {
                let frozen = std::mem::replace(&mut owned.record.active, prepared.layer.clone());
                owned.record.format = VolumeFormat::Qcow2;
                owned.record.snapshots.push(SnapshotEntry {
                    id: snapshot,
                    layer: frozen,
                    next: prepared.layer,
                });
                owned.commit(OP).await
            }
            _ => Err(no_snapshot(OP, id, snapshot)),
        }
    }

    pub(super) async fn snapshot_delete(
        &self,
        call: Call,
        id: VolumeId,
        snapshot: SnapshotId,
    ) -> Result<()> {
        const OP: &str = "storage.snapshot-delete";
        let artefact = ArtefactId::Volume(id);
        let Some(record) = self.read(OP, artefact).await? else {
            return Ok(());
        };
        let known = record.snapshot(snapshot).is_some()
            || record.prepared.is_some_and(|p| p.snapshot == snapshot);
        let mut owned = self.own(OP, artefact, call.deadline, known).await?;
        if !known {
            return Ok(());
        }
        owned.record.snapshots.retain(|s| s.id != snapshot);
        if let Some(prepared) = owned.record.prepared.take_if(|p| p.snapshot == snapshot) {
            let path = owned.dir.join(&prepared.layer);
            let pivoted = blocking(OP, move || {
                Ok(writer::is_written(OP, &path)? || chain::has_data(OP, &path)?)
            })
            .await?;
            if pivoted {
                owned.record.active = prepared.layer;
                owned.record.format = VolumeFormat::Qcow2;
            }
        }
        owned.record.drop_unreachable();
        owned.commit(OP).await?;
        crate::crash::point("snapshot-delete.recorded");
        owned.sweep(OP, Why::Replaced).await?;
        self.merge(OP, &mut owned, call.deadline).await
    }

    pub(super) async fn restore(
        &self,
        call: Call,
        id: VolumeId,
        snapshot: SnapshotId,
    ) -> Result<()> {
        const OP: &str = "storage.restore";
        let artefact = ArtefactId::Volume(id);
        let mut owned = self.own(OP, artefact, call.deadline, true).await?;
        let Some(entry) = owned.record.snapshot(snapshot).cloned() else {
            return Err(no_snapshot(OP, id, snapshot));
        };
        if let Some(prepared) = &owned.record.prepared {
            return Err(pending(OP, prepared));
        }
        owned.record.refuse_attached(OP)?;
        let active = owned.dir.join(&owned.record.active);
        blocking(OP, move || writer::refuse_written(OP, &active)).await?;
        owned.record.restores += 1;
        let layer = format!("{snapshot}-{}.qcow2", owned.record.restores);
        self.add_layer(OP, &mut owned, &layer, Some(&entry.layer), call.deadline)
            .await?;
        crate::crash::point("restore.layer-made");
        owned.record.active = layer;
        owned.record.format = VolumeFormat::Qcow2;
        owned.record.drop_unreachable();
        owned.commit(OP).await?;
        crate::crash::point("restore.recorded");
        owned.sweep(OP, Why::Replaced).await
    }

    /// A new layer on `below`, or on the active one, as large as the volume is now. On failure the file is gone again.
    async fn add_layer(
        &self,
        op: &'static str,
        owned: &mut Owned,
        layer: &str,
        below: Option<&str>,
        deadline: Deadline,
    ) -> Result<()> {
        let below = below.unwrap_or(&owned.record.active).to_owned();
        let format = owned.record.layer(op, &below)?.format;
        let size = self.info(op, owned.record.id).await?.size.0;
        let path = owned.dir.join(layer);
        let made = self
            .new_layer(
                op,
                &path,
                VolumeFormat::Qcow2,
                size,
                Some((&below, format)),
                deadline,
                &owned.held,
            )
            .await;
        if let Err(error) = made {
            let swept = owned.sweep(op, Why::Replaced).await;
            return Err(match swept {
                Ok(()) if error.kind() == ErrorKind::OutcomeUnknown => Error::new(
                    ErrorKind::DeadlineExceeded,
                    op,
                    "the deadline passed; the volume is as it was",
                )
                .caused_by(error),
                Ok(()) => error,
                Err(left) => error.with("left_behind", left.report()),
            });
        }
        owned.record.size = size;
        owned.record.layers.push(Layer {
            file: layer.to_owned(),
            format: VolumeFormat::Qcow2,
            on: Some(below),
        });
        Ok(())
    }

    /// The layer of a snapshot, or the active one.
    pub(super) async fn layer_of(
        &self,
        op: &'static str,
        id: ArtefactId,
        snapshot: Option<SnapshotId>,
    ) -> Result<(super::record::Record, String)> {
        let record = self.read(op, id).await?.ok_or_else(|| missing(op, id))?;
        let layer = match (snapshot, id) {
            (None, _) => record.active.clone(),
            (Some(snapshot), ArtefactId::Volume(volume)) => match record.snapshot(snapshot) {
                Some(entry) => entry.layer.clone(),
                None => return Err(no_snapshot(op, volume, snapshot)),
            },
            (Some(_), ArtefactId::Image(_)) => {
                return Err(Error::new(
                    ErrorKind::NotFound,
                    op,
                    "an image has no snapshots",
                ));
            }
        };
        Ok((record, layer))
    }
}

fn pending(op: &'static str, prepared: &Prepared) -> Error {
    Error::new(
        ErrorKind::FailedPrecondition,
        op,
        format!(
            "snapshot {} is being taken; commit or delete it first",
            prepared.snapshot
        ),
    )
    .with("snapshot", prepared.snapshot)
}
