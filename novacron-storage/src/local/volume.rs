//! Volumes that are there: looking at one, attaching it, growing it.

use std::path::PathBuf;
use std::sync::Arc;

use novacron_core::driver::{ArtefactId, AttachRequest, Attachment, Call, VolumeInfo};
use novacron_core::model::{self, VolumeId};
use novacron_core::{Deadline, Error, ErrorKind, Problem, Result};

use super::layout::{LOCK, RECORD, stored, sync_file};
use super::lock::Want;
use super::record::{Attached, Record};
use super::{Held, Pool, attachment, chain, layout, missing, writer};
use crate::failure::of_io;
use crate::qemu_img::{file_arg, format_name};
use crate::task::blocking;

/// An artefact that nobody else changes.
#[derive(Debug)]
pub(super) struct Owned {
    pub(super) dir: PathBuf,
    pub(super) record: Record,
    pub(super) held: Arc<Held>,
    /// Held too when layers are to be removed.
    pub(super) data: Option<Arc<Held>>,
}

impl Pool {
    pub(super) async fn read(&self, op: &'static str, id: ArtefactId) -> Result<Option<Record>> {
        let dir = self.layout.dir(id);
        blocking(op, move || Record::read(op, &dir)).await
    }

    pub(super) async fn inspect(
        &self,
        op: &'static str,
        id: ArtefactId,
    ) -> Result<Option<VolumeInfo>> {
        let dir = self.layout.dir(id);
        blocking(op, move || {
            let Some(record) = Record::read(op, &dir)? else {
                return Ok(None);
            };
            let active = dir.join(&record.active);
            let (size, _) = chain::header(op, &active, record.format)?;
            let stored =
                stored(&dir).map_err(|e| of_io(op, "cannot look at the volume", &dir, e))?;
            Ok(Some(VolumeInfo {
                size: model::Bytes(size),
                format: record.format,
                snapshots: record.snapshots.iter().map(|s| s.id).collect(),
                stored: model::Bytes(stored),
            }))
        })
        .await
    }

    pub(super) async fn info(&self, op: &'static str, id: ArtefactId) -> Result<VolumeInfo> {
        self.inspect(op, id).await?.ok_or_else(|| missing(op, id))
    }

    /// Takes the locks to change an artefact, and sweeps what an interrupted change left behind.
    pub(super) async fn own(
        &self,
        op: &'static str,
        id: ArtefactId,
        deadline: Deadline,
        remove: bool,
    ) -> Result<Owned> {
        let dir = self.layout.dir(id);
        let held = self.locks.acquire(op, &dir, Want::Change, deadline).await?;
        let held = held.ok_or_else(|| missing(op, id))?;
        let data = if remove {
            let data = self.locks.acquire(op, &dir, Want::Remove, deadline).await?;
            Some(data.ok_or_else(|| missing(op, id))?)
        } else {
            None
        };
        let record = self.read(op, id).await?.ok_or_else(|| missing(op, id))?;
        let owned = Owned {
            dir,
            record,
            held,
            data,
        };
        owned.sweep(op, Why::Interrupted).await?;
        Ok(owned)
    }

    pub(super) async fn attach(
        &self,
        call: Call,
        id: VolumeId,
        request: &AttachRequest,
    ) -> Result<Attachment> {
        const OP: &str = "storage.attach";
        let artefact = ArtefactId::Volume(id);
        let known = self.read(OP, artefact).await?;
        let mut record = known.ok_or_else(|| missing(OP, artefact))?;
        let dir = self.layout.dir(artefact);
        if let Some(prepared) = &record.prepared {
            let layer = dir.join(&prepared.layer);
            if blocking(OP, move || chain::has_data(OP, &layer)).await? {
                return Err(Error::new(
                    ErrorKind::FailedPrecondition,
                    OP,
                    format!(
                        "the guest went over to the layer of snapshot {}, which is not committed: commit it first",
                        prepared.snapshot
                    ),
                ));
            }
        }
        let user = Attached::from(request);
        if !record.attached.contains(&user) {
            let mut owned = self.own(OP, artefact, call.deadline, false).await?;
            owned.record.attached.push(user);
            owned.commit(OP).await?;
            record = owned.record;
        }
        let path = dir.join(&record.active);
        let asked = path.clone();
        blocking(OP, move || {
            std::fs::metadata(&asked).map_err(|e| of_io(OP, "cannot find the layer", &asked, e))
        })
        .await?;
        Ok(attachment(path, record.format, request.epoch))
    }

    /// Takes an attachment back, and with it the older ones of the same VM: its later start was proof of their end.
    pub(super) async fn detach(
        &self,
        call: Call,
        id: VolumeId,
        request: &AttachRequest,
    ) -> Result<()> {
        const OP: &str = "storage.detach";
        let artefact = ArtefactId::Volume(id);
        let taken_back = |user: &Attached| user.vm == request.vm && user.epoch <= request.epoch;
        let there = self.read(OP, artefact).await?;
        if !there.is_some_and(|record| record.attached.iter().any(taken_back)) {
            return Ok(());
        }
        let mut owned = self.own(OP, artefact, call.deadline, false).await?;
        owned.record.attached.retain(|user| !taken_back(user));
        owned.commit(OP).await
    }

    pub(super) async fn resize(
        &self,
        call: Call,
        id: VolumeId,
        size: model::Bytes,
    ) -> Result<VolumeInfo> {
        const OP: &str = "storage.resize";
        let artefact = ArtefactId::Volume(id);
        let mut owned = self.own(OP, artefact, call.deadline, false).await?;
        let now = self.info(OP, artefact).await?;
        if now.size >= size {
            return Ok(now);
        }
        let size = self.checked_size(OP, size.0)?;
        if let Some(prepared) = &owned.record.prepared {
            return Err(Error::new(
                ErrorKind::FailedPrecondition,
                OP,
                format!(
                    "snapshot {} is being taken; commit or delete it first",
                    prepared.snapshot
                ),
            ));
        }
        owned.record.refuse_attached(OP)?;
        let path = owned.dir.join(&owned.record.active);
        let asked = path.clone();
        blocking(OP, move || writer::refuse_written(OP, &asked)).await?;
        let args = [
            "resize".as_ref(),
            "-q".as_ref(),
            "-f".as_ref(),
            format_name(owned.record.format).as_ref(),
            file_arg(&path),
            size.to_string().as_ref(),
        ]
        .map(std::ffi::OsStr::to_owned);
        self.qemu
            .run(OP, args, call.deadline, Some(&owned.held))
            .await?
            .success(OP, ErrorKind::Internal)?;
        blocking(OP, move || sync_file(OP, &path)).await?;
        owned.record.size = size;
        owned.commit(OP).await?;
        self.info(OP, artefact).await
    }

    /// A size as it is stored: whole sectors, within bounds.
    pub(super) fn checked_size(&self, op: &'static str, size: u64) -> Result<u64> {
        match size.checked_next_multiple_of(512) {
            Some(rounded) if rounded <= self.max_size => Ok(rounded),
            _ => Err(Error::invalid(
                op,
                vec![Problem {
                    field: "size".into(),
                    message: format!(
                        "{size} bytes are too many; at most {} are allowed",
                        self.max_size
                    ),
                }],
            )),
        }
    }
}

impl Owned {
    /// Writes the record.
    pub(super) async fn commit(&self, op: &'static str) -> Result<()> {
        let (dir, record, held) = (
            self.dir.clone(),
            self.record.clone(),
            Arc::clone(&self.held),
        );
        blocking(op, move || {
            let _held = held;
            record.write(op, &dir)
        })
        .await
    }

    /// Removes the files that the record does not name. Where readers may be at work, only those that none can know.
    pub(super) async fn sweep(&self, op: &'static str, why: Why) -> Result<()> {
        let mut keep: Vec<String> = self.record.layers.iter().map(|l| l.file.clone()).collect();
        keep.extend([RECORD, layout::CLUSTER, LOCK, layout::DATA_LOCK].map(str::to_owned));
        let (dir, held, data) = (self.dir.clone(), Arc::clone(&self.held), self.data.clone());
        blocking(op, move || {
            let _held = (held, data);
            sweep(op, &dir, &keep, why)
        })
        .await
    }
}

/// Why there are files that no record names.
#[derive(Clone, Copy, Debug)]
pub(super) enum Why {
    /// An earlier call was cut short.
    Interrupted,
    /// This call has no need of them any more.
    Replaced,
}

/// Removes every file of `dir` that is not in `keep`.
pub(super) fn sweep(
    op: &'static str,
    dir: &std::path::Path,
    keep: &[String],
    why: Why,
) -> Result<()> {
    let fail = |e| of_io(op, "cannot sweep the folder", dir, e);
    for entry in std::fs::read_dir(dir).map_err(fail)? {
        let entry = entry.map_err(fail)?;
        let name = entry.file_name();
        // NFS names a removed file that is still open so.
        let ours = |n: &str| keep.iter().any(|k| k == n) || n.starts_with(".nfs");
        if name.to_str().is_some_and(ours) {
            continue;
        }
        let path = entry.path();
        match why {
            Why::Interrupted => {
                tracing::info!(path = %path.display(), "removing what an interrupted call left behind");
            }
            Why::Replaced => tracing::debug!(path = %path.display(), "removing what is replaced"),
        }
        std::fs::remove_file(path).map_err(fail)?;
    }
    Ok(())
}
