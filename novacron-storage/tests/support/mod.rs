//! A pool in a temporary folder, and ways to put bytes into volumes and get them out.
#![allow(
    dead_code,
    clippy::unwrap_used,
    reason = "each test binary uses its own part; to panic is to report"
)]

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use futures::TryStreamExt as _;
use novacron_core::driver::{
    ArtefactId, AttachRequest, Attachment, AttachmentSource, Call, CreateSource, CreateVolume,
    StorageBackend as _, VolumeInfo,
};
use novacron_core::model::{
    Bytes, ClusterId, Epoch, ImageId, ImageSource, NodeId, SnapshotId, VmId, VolumeFormat, VolumeId,
};
use novacron_core::{IdSource as _, Result, SeededIds, Timestamp};
use novacron_storage::LocalStorage;
use tempfile::TempDir;

pub(crate) const MIB: u64 = 1 << 20;

pub(crate) struct Fixture {
    pub(crate) dir: TempDir,
    pub(crate) pool: LocalStorage,
    pub(crate) cluster: ClusterId,
    ids: SeededIds,
}

pub(crate) fn call() -> Call {
    Call::within(Duration::from_secs(60))
}

impl Fixture {
    pub(crate) async fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        Self::in_folder(dir).await
    }

    pub(crate) async fn in_folder(dir: TempDir) -> Self {
        let pool = LocalStorage::open(dir.path().join("pool")).await.unwrap();
        let ids = SeededIds::from_seed(7);
        let cluster = ClusterId::generate(Timestamp::from_millis(1), &ids);
        Self {
            dir,
            pool,
            cluster,
            ids,
        }
    }

    pub(crate) fn volume(&self) -> VolumeId {
        VolumeId::generate(Timestamp::from_millis(2), &self.ids)
    }

    pub(crate) fn image(&self) -> ImageId {
        ImageId::generate(Timestamp::from_millis(3), &self.ids)
    }

    pub(crate) fn snapshot(&self) -> SnapshotId {
        SnapshotId::generate(Timestamp::from_millis(4), &self.ids)
    }

    pub(crate) fn bits(&self) -> u64 {
        self.ids.bits() as u64
    }

    pub(crate) fn request(
        &self,
        id: ArtefactId,
        size: u64,
        format: VolumeFormat,
        source: CreateSource,
    ) -> CreateVolume {
        CreateVolume {
            cluster: self.cluster,
            id,
            size: Bytes(size),
            format,
            source,
        }
    }

    pub(crate) async fn create(
        &self,
        id: ArtefactId,
        size: u64,
        format: VolumeFormat,
        source: CreateSource,
    ) -> Result<VolumeInfo> {
        let request = self.request(id, size, format, source);
        self.pool.create(call(), &request).await
    }

    pub(crate) async fn blank(&self, size: u64, format: VolumeFormat) -> VolumeId {
        let id = self.volume();
        self.create(ArtefactId::Volume(id), size, format, CreateSource::Blank)
            .await
            .unwrap();
        id
    }

    /// Imports a file as a new image.
    pub(crate) async fn import(&self, path: &Path) -> Result<ImageId> {
        let id = self.image();
        let source = file(path);
        self.create(ArtefactId::Image(id), 0, VolumeFormat::Qcow2, source)
            .await?;
        Ok(id)
    }

    pub(crate) fn user(&self, epoch: u64) -> AttachRequest {
        AttachRequest {
            node: NodeId::new("alpha").unwrap(),
            vm: VmId::from_uuid(self.cluster.uuid()),
            epoch: Epoch(epoch),
        }
    }

    pub(crate) async fn attach(&self, id: VolumeId) -> Attachment {
        self.pool.attach(call(), id, &self.user(3)).await.unwrap()
    }

    pub(crate) async fn detach(&self, id: VolumeId) {
        self.pool.detach(call(), id, &self.user(3)).await.unwrap();
    }

    /// Writes as a guest would, which is gone afterwards.
    pub(crate) async fn write(&self, id: VolumeId, pattern: u8, offset: u64, length: u64) {
        let attachment = self.attach(id).await;
        write(&attachment, pattern, offset, length);
        self.detach(id).await;
    }

    pub(crate) async fn read(&self, id: ArtefactId, snapshot: Option<SnapshotId>) -> Vec<u8> {
        let transfer = self.pool.transfer().unwrap();
        let pieces: Vec<bytes::Bytes> = transfer
            .export(call(), id, snapshot)
            .await
            .unwrap()
            .try_collect()
            .await
            .unwrap();
        pieces.concat()
    }

    pub(crate) async fn snap(&self, id: VolumeId) -> SnapshotId {
        let snapshot = self.snapshot();
        self.pool
            .snapshot_prepare(call(), id, snapshot, None)
            .await
            .unwrap();
        self.pool
            .snapshot_commit(call(), id, snapshot)
            .await
            .unwrap();
        snapshot
    }

    /// Every file and folder under the pool.
    pub(crate) fn left(&self) -> Vec<PathBuf> {
        let mut found = Vec::new();
        let mut open = vec![
            self.pool.dir().join("volumes"),
            self.pool.dir().join("images"),
            self.pool.dir().join("parts/volumes"),
            self.pool.dir().join("parts/images"),
        ];
        while let Some(dir) = open.pop() {
            for entry in std::fs::read_dir(dir).unwrap() {
                let path = entry.unwrap().path();
                if path.is_dir() {
                    open.push(path.clone());
                }
                found.push(path);
            }
        }
        found
    }
}

pub(crate) fn file(path: &Path) -> CreateSource {
    CreateSource::Import {
        source: ImageSource::File(path.to_owned()),
        sha256: None,
    }
}

pub(crate) fn path_of(attachment: &Attachment) -> &Path {
    match &attachment.source {
        AttachmentSource::File(path) => path,
        other => panic!("a file, not {other:?}"),
    }
}

pub(crate) fn name(format: VolumeFormat) -> &'static str {
    match format {
        VolumeFormat::Qcow2 => "qcow2",
        VolumeFormat::Raw => "raw",
    }
}

pub(crate) fn write(attachment: &Attachment, pattern: u8, offset: u64, length: u64) {
    qemu_io(
        path_of(attachment),
        name(attachment.format),
        &format!("write -P {pattern} {offset} {length}"),
    );
}

pub(crate) fn qemu_io(path: &Path, format: &str, command: &str) {
    run(
        "qemu-io",
        &["-f", format, "-c", command, path.to_str().unwrap()],
    );
}

pub(crate) fn qemu_img(args: &[&str]) -> String {
    run("qemu-img", args)
}

pub(crate) fn run(program: &str, args: &[&str]) -> String {
    let out = Command::new(program)
        .args(args)
        .output()
        .unwrap_or_else(|e| panic!("{program}: {e} (Debian, Ubuntu: apt install qemu-utils)"));
    assert!(
        out.status.success(),
        "{program} {args:?}: {}",
        String::from_utf8_lossy(&out.stderr)
    );
    String::from_utf8(out.stdout).unwrap()
}

/// A disk of `size` bytes with these stretches of one byte each.
pub(crate) fn disk(size: u64, stretches: &[(u8, u64, u64)]) -> Vec<u8> {
    let mut bytes = vec![0; size as usize];
    for (pattern, offset, length) in stretches {
        bytes[*offset as usize..(offset + length) as usize].fill(*pattern);
    }
    bytes
}

/// Compares without printing megabytes.
#[track_caller]
pub(crate) fn same(got: &[u8], wanted: &[u8]) {
    assert_eq!(got.len(), wanted.len(), "length");
    if let Some(at) = got.iter().zip(wanted).position(|(a, b)| a != b) {
        panic!("byte {at} is {} instead of {}", got[at], wanted[at]);
    }
}
