//! Making a volume or an image.
//!
//! ```text
//! parts/… ──rename──► <uuid>/ (half made) ──layer, synced──► volume.json (made)
//! ```
//! A failure removes the directory again. A crash leaves it half made: the same call begins anew, `delete` removes it.

use std::ffi::OsString;
use std::path::Path;
use std::sync::{Arc, PoisonError};

use novacron_core::driver::{ArtefactId, Call, CreateSource, CreateVolume, VolumeInfo};
use novacron_core::model::{Bytes, ClusterId, ImageId, SnapshotId, VolumeFormat, VolumeId};
use novacron_core::{Deadline, Error, ErrorKind, Problem, Result};

use super::import::digest_of;
use super::layout::{
    CLUSTER, DATA_LOCK, LOCK, begin, cluster_of, new_file, remove_tree, sync_file, unname,
};
use super::lock::Want;
use super::record::{Layer, Record};
use super::volume::{Why, sweep};
use super::{Held, Pool, chain, missing};
use crate::qemu_img::{file_arg, format_name};
use crate::task::blocking;

const OP: &str = "storage.create";

/// An artefact while it is made.
#[derive(Debug)]
pub(super) struct Making {
    pub(super) dir: std::path::PathBuf,
    pub(super) format: VolumeFormat,
    pub(super) size: u64,
    pub(super) held: Arc<Held>,
    pub(super) deadline: Deadline,
}

impl Making {
    /// The name of the first layer.
    pub(super) fn base(&self) -> String {
        format!("base.{}", format_name(self.format))
    }

    pub(super) fn base_path(&self) -> std::path::PathBuf {
        self.dir.join(self.base())
    }

    /// The size to make from a source of this size: nothing of it is cut off.
    pub(super) fn size_from(&self, source: u64) -> Result<u64> {
        if self.size != 0 && self.size < source {
            let (wanted, source) = (Bytes(self.size), Bytes(source));
            let message = format!("{wanted} are less than the source's {source}");
            return Err(invalid("size", &message));
        }
        Ok(self.size.max(source))
    }
}

impl Pool {
    pub(super) async fn create(
        self: Arc<Self>,
        call: Call,
        request: &CreateVolume,
    ) -> Result<VolumeInfo> {
        let wanted = self.checked_size(OP, request.size.0)?;
        if wanted == 0 && request.source == CreateSource::Blank {
            return Err(invalid("size", "an empty volume needs a size"));
        }
        if let CreateSource::Import {
            sha256: Some(sum), ..
        } = &request.source
            && !(sum.len() == 64 && sum.bytes().all(|b| b.is_ascii_hexdigit()))
        {
            return Err(invalid("sha256", "it is 64 hex digits"));
        }

        let (pool, id, cluster) = (Arc::clone(&self), request.id, request.cluster);
        let dir = blocking(OP, move || {
            let _naming = pool.naming.read().unwrap_or_else(PoisonError::into_inner);
            begin(OP, &pool.layout, id, cluster)
        })
        .await?;
        let held = self
            .locks
            .acquire(OP, &dir, Want::Change, call.deadline)
            .await?
            .ok_or_else(|| {
                Error::new(
                    ErrorKind::Conflict,
                    OP,
                    format!("another call removed {id}"),
                )
            })?;
        let fingerprint = fingerprint(request);
        if let Some(record) = self.read(OP, id).await? {
            if record.cluster == cluster && record.request == fingerprint {
                return self.info(OP, id).await;
            }
            return Err(Error::new(
                ErrorKind::AlreadyExists,
                OP,
                format!("{id} was made by another request"),
            )
            .with("cluster", record.cluster));
        }
        let making = Making {
            dir,
            format: request.format,
            size: wanted,
            held,
            deadline: call.deadline,
        };
        self.restart(&making, id, cluster).await?;
        match self.make(&making, request, fingerprint).await {
            Ok(()) => self.info(OP, id).await,
            Err(error) => Err(self.undo(making, request, error).await),
        }
    }

    /// Clears what an interrupted call may have begun.
    async fn restart(&self, making: &Making, id: ArtefactId, cluster: ClusterId) -> Result<()> {
        let (dir, held) = (making.dir.clone(), Arc::clone(&making.held));
        let layout = self.layout.clone();
        blocking(OP, move || {
            let _held = held;
            if let Some(other) = cluster_of(&dir).filter(|c| *c != cluster) {
                return Err(Error::new(
                    ErrorKind::AlreadyExists,
                    OP,
                    "another cluster is making it",
                )
                .with("cluster", other));
            }
            for part in layout.parts(OP, id)? {
                remove_tree(OP, &part)?;
            }
            sweep(
                OP,
                &dir,
                &[CLUSTER, LOCK, DATA_LOCK].map(str::to_owned),
                Why::Interrupted,
            )
        })
        .await
    }

    /// Removes what a failed call made; the error then says that nothing happened.
    async fn undo(self: &Arc<Self>, making: Making, request: &CreateVolume, error: Error) -> Error {
        let (pool, id, cluster) = (Arc::clone(self), request.id, request.cluster);
        let undone = blocking(OP, move || {
            let part = unname(OP, &pool.layout, id, cluster)?;
            drop(making);
            remove_tree(OP, &part)
        })
        .await;
        match undone {
            Ok(()) if error.kind() == ErrorKind::OutcomeUnknown => Error::new(
                ErrorKind::DeadlineExceeded,
                OP,
                "the deadline passed; what was made is removed again",
            )
            .caused_by(error),
            Ok(()) => error,
            Err(left) => error.with("left_behind", left.report()),
        }
    }

    async fn make(
        self: &Arc<Self>,
        making: &Making,
        request: &CreateVolume,
        fingerprint: String,
    ) -> Result<()> {
        let mut parent = None;
        match &request.source {
            CreateSource::Blank => {
                self.blank(making, making.size, None).await?;
            }
            CreateSource::Image(image) => parent = self.clone_image(making, *image).await?,
            CreateSource::Snapshot(volume, snapshot) => {
                self.copy_snapshot(making, *volume, *snapshot).await?;
            }
            CreateSource::Import { source, sha256 } => {
                self.import(making, source, sha256.as_deref()).await?;
            }
        }
        crate::crash::point("create.layer-made");
        let (layer, dir, held) = (making.base(), making.dir.clone(), Arc::clone(&making.held));
        let (id, cluster, format) = (request.id, request.cluster, making.format);
        blocking(OP, move || {
            let _held = held;
            let path = dir.join(&layer);
            sync_file(OP, &path)?;
            let (size, _) = chain::header(OP, &path, format)?;
            Record {
                cluster,
                id,
                request: fingerprint,
                size,
                format,
                parent,
                layers: vec![Layer {
                    file: layer.clone(),
                    format,
                    on: None,
                }],
                active: layer,
                snapshots: Vec::new(),
                prepared: None,
                attached: Vec::new(),
                restores: 0,
            }
            .write(OP, &dir)
        })
        .await
    }

    /// An empty first layer, on top of another file if one is given.
    async fn blank(
        &self,
        making: &Making,
        size: u64,
        on: Option<(&str, VolumeFormat)>,
    ) -> Result<()> {
        self.new_layer(
            OP,
            &making.base_path(),
            making.format,
            size,
            on,
            making.deadline,
            &making.held,
        )
        .await
    }

    /// A new file without data.
    #[expect(
        clippy::too_many_arguments,
        reason = "each is one argument of qemu-img"
    )]
    pub(super) async fn new_layer(
        &self,
        op: &'static str,
        path: &Path,
        format: VolumeFormat,
        size: u64,
        on: Option<(&str, VolumeFormat)>,
        deadline: Deadline,
        held: &Arc<Held>,
    ) -> Result<()> {
        let target = path.to_owned();
        blocking(op, move || new_file(op, &target)).await?;
        let mut args: Vec<OsString> = vec!["create".into(), "-q".into(), "-f".into()];
        args.push(format_name(format).into());
        if let Some((file, format)) = on {
            args.extend([
                "-b".into(),
                file.into(),
                "-F".into(),
                format_name(format).into(),
            ]);
        }
        args.push(file_arg(path).into());
        args.push(size.to_string().into());
        self.qemu
            .run(op, args, deadline, Some(held))
            .await?
            .success(op, ErrorKind::Internal)?;
        let target = path.to_owned();
        blocking(op, move || sync_file(op, &target)).await
    }

    /// A layer on top of an image; a full copy where the volume is to be raw, which cannot stand on anything.
    async fn clone_image(&self, making: &Making, image: ImageId) -> Result<Option<ImageId>> {
        let id = ArtefactId::Image(image);
        let dir = self.layout.dir(id);
        let held = self
            .locks
            .acquire(OP, &dir, Want::Read, making.deadline)
            .await?;
        let _held = held.ok_or_else(|| missing(OP, id))?;
        let record = self.read(OP, id).await?.ok_or_else(|| missing(OP, id))?;
        let source = dir.join(&record.active);
        let size = self.size_over(making, &source, record.format).await?;
        if making.format == VolumeFormat::Raw {
            self.convert(making, &source, record.format, size).await?;
            return Ok(None);
        }
        let on = format!("../../images/{image}/{}", record.active);
        self.blank(making, size, Some((&on, record.format))).await?;
        Ok(Some(image))
    }

    async fn copy_snapshot(
        &self,
        making: &Making,
        volume: VolumeId,
        snapshot: SnapshotId,
    ) -> Result<()> {
        let id = ArtefactId::Volume(volume);
        let dir = self.layout.dir(id);
        let held = self
            .locks
            .acquire(OP, &dir, Want::Read, making.deadline)
            .await?;
        let _held = held.ok_or_else(|| missing(OP, id))?;
        let record = self.read(OP, id).await?.ok_or_else(|| missing(OP, id))?;
        let Some(entry) = record.snapshot(snapshot) else {
            return Err(no_snapshot(OP, volume, snapshot));
        };
        let format = record.layer(OP, &entry.layer)?.format;
        let source = dir.join(&entry.layer);
        let size = self.size_over(making, &source, format).await?;
        self.convert(making, &source, format, size).await
    }

    /// The size to make over a layer.
    async fn size_over(&self, making: &Making, source: &Path, format: VolumeFormat) -> Result<u64> {
        let source = source.to_owned();
        let (size, _) = blocking(OP, move || chain::header(OP, &source, format)).await?;
        making.size_from(size)
    }

    /// Copies a file's data into the first layer, holes left out.
    pub(super) async fn convert(
        &self,
        making: &Making,
        source: &Path,
        from: VolumeFormat,
        size: u64,
    ) -> Result<()> {
        let target = making.base_path();
        let made = target.clone();
        blocking(OP, move || new_file(OP, &made)).await?;
        let args: [OsString; 8] = [
            "convert".into(),
            "-q".into(),
            "-f".into(),
            format_name(from).into(),
            "-O".into(),
            format_name(making.format).into(),
            file_arg(source).into(),
            file_arg(&target).into(),
        ];
        self.qemu
            .run(OP, args, making.deadline, Some(&making.held))
            .await?
            .success(OP, ErrorKind::Internal)?;
        self.extend(making, size).await
    }

    /// Grows the first layer to `size`, if it is smaller.
    pub(super) async fn extend(&self, making: &Making, size: u64) -> Result<()> {
        let (path, format) = (making.base_path(), making.format);
        let at = path.clone();
        let (now, _) = blocking(OP, move || chain::header(OP, &at, format)).await?;
        if now >= size {
            return Ok(());
        }
        let args: [OsString; 6] = [
            "resize".into(),
            "-q".into(),
            "-f".into(),
            format_name(format).into(),
            file_arg(&path).into(),
            size.to_string().into(),
        ];
        self.qemu
            .run(OP, args, making.deadline, Some(&making.held))
            .await?
            .success(OP, ErrorKind::Internal)
    }
}

pub(super) fn invalid(field: &str, message: &str) -> Error {
    Error::invalid(
        OP,
        vec![Problem {
            field: field.into(),
            message: message.into(),
        }],
    )
}

pub(super) fn no_snapshot(op: &'static str, volume: VolumeId, snapshot: SnapshotId) -> Error {
    Error::new(
        ErrorKind::NotFound,
        op,
        format!("volume/{volume} has no snapshot {snapshot}"),
    )
}

/// What tells a repeated request from another one. The size is left out: a request that is repeated after the record
/// was grown finds the smaller volume, and grows it. A hash, since a URL may carry a secret.
fn fingerprint(request: &CreateVolume) -> String {
    let source = match &request.source {
        CreateSource::Blank => serde_json::json!("blank"),
        CreateSource::Image(image) => serde_json::json!({ "image": image }),
        CreateSource::Snapshot(volume, snapshot) => {
            serde_json::json!({ "volume": volume, "snapshot": snapshot })
        }
        CreateSource::Import { source, sha256 } => {
            serde_json::json!({ "import": source, "sha256": sha256 })
        }
    };
    let request = serde_json::json!({
        "format": request.format,
        "source": source,
    });
    digest_of(request.to_string().as_bytes())
}
