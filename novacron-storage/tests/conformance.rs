//! The suite that every `StorageBackend` passes, run by [`LocalStorage`].
#![allow(clippy::unwrap_used, reason = "to panic is to report")]

mod support;

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use novacron_core::conformance::storage::{Ability, StorageFixture, TestSource};
use novacron_core::driver::{Attachment, CreateSource, StorageBackend};
use novacron_core::model::{Bytes, ImageSource, NodeId, VolumeFormat};
use novacron_core::storage_conformance;
use novacron_storage::LocalStorage;
use support::{MIB, path_of, qemu_img, qemu_io, run};
use tempfile::TempDir;

/// A pool in a temporary folder, with sources of one format.
struct Fixture {
    dir: TempDir,
    format: VolumeFormat,
}

impl Fixture {
    fn new(format: VolumeFormat) -> Self {
        let dir = tempfile::tempdir().unwrap();
        Self { dir, format }
    }

    fn disk(&self, fill: u8) -> PathBuf {
        let path = self.dir.path().join(format!("source-{fill}"));
        let (text, format) = (path.to_str().unwrap(), support::name(self.format));
        qemu_img(&["create", "-q", "-f", format, text, "4M"]);
        qemu_io(&path, format, &format!("write -P {fill} 0 4M"));
        path
    }
}

#[async_trait]
impl StorageFixture for Fixture {
    /// A full disk takes a mount of its own: `bad_disk.rs`.
    fn lacks(&self) -> BTreeSet<Ability> {
        BTreeSet::from([Ability::Fill])
    }

    fn patience(&self) -> Duration {
        Duration::from_secs(60)
    }

    fn node(&self) -> NodeId {
        NodeId::new("alpha").unwrap()
    }

    async fn open(&self) -> Arc<dyn StorageBackend> {
        let pool = LocalStorage::open(self.dir.path().join("pool")).await;
        Arc::new(pool.unwrap())
    }

    async fn close(&self, backend: Arc<dyn StorageBackend>) {
        drop(backend);
    }

    async fn source(&self, fill: u8) -> TestSource {
        let path = self.disk(fill);
        let told = run("sha256sum", &[path.to_str().unwrap()]);
        TestSource {
            sha256: told.split_whitespace().next().unwrap().to_owned(),
            size: Bytes(4 * MIB),
            source: ImageSource::File(path),
        }
    }

    async fn damaged_source(&self) -> ImageSource {
        let path = self.disk(99);
        let length = match self.format {
            VolumeFormat::Qcow2 => 2 * MIB,
            VolumeFormat::Raw => 2 * MIB + 100,
        };
        let file = std::fs::OpenOptions::new().write(true).open(&path);
        file.unwrap().set_len(length).unwrap();
        ImageSource::File(path)
    }

    fn missing_source(&self) -> ImageSource {
        ImageSource::File(self.dir.path().join("nothing"))
    }

    async fn too_much(&self) -> (CreateSource, Bytes) {
        unreachable!("declared as lacking")
    }

    async fn write(&self, attachment: &Attachment, fill: u8) {
        support::write(attachment, fill, 0, 65_536);
    }

    async fn read(&self, attachment: &Attachment) -> u8 {
        let (path, format) = (path_of(attachment), support::name(attachment.format));
        let raw = self.dir.path().join("read.raw");
        qemu_img(&[
            "convert",
            "-f",
            format,
            "-O",
            "raw",
            path.to_str().unwrap(),
            raw.to_str().unwrap(),
        ]);
        let bytes = std::fs::read(raw).unwrap();
        let region = &bytes[..65_536];
        assert!(region.iter().all(|b| *b == region[0]), "not of one byte");
        region[0]
    }
}

mod from_qcow2 {
    super::storage_conformance!(super::Fixture::new(super::VolumeFormat::Qcow2));
}

mod from_raw {
    super::storage_conformance!(super::Fixture::new(super::VolumeFormat::Raw));
}
