//! The simulated storage against the suite: at once, and with calls that take their time.
#![cfg(feature = "conformance")]
#![allow(missing_docs, clippy::unwrap_used)]

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use novacron_core::conformance::storage::{Ability, StorageFixture, TestSource};
use novacron_core::driver::{Attachment, AttachmentSource, CreateSource, StorageBackend};
use novacron_core::model::{Bytes, ImageSource, NodeId, PoolId};
use novacron_core::sim::{Latency, SimSource, SimStorage, SimWorld};

struct Fixture {
    world: SimWorld,
    pool: PoolId,
}

impl Fixture {
    fn new() -> Self {
        let (world, pool) = (SimWorld::new(1), PoolId::new("pool").unwrap());
        world.add_pool(pool.clone(), Bytes::gib(1));
        Self { world, pool }
    }

    fn slow() -> Self {
        let fixture = Self::new();
        fixture.world.set_latency(Latency {
            call: Duration::ZERO..=Duration::from_millis(3),
            ..Latency::default()
        });
        fixture
    }

    fn add(&self, name: &str, fill: u8, size: Bytes, damage: Option<&str>) -> TestSource {
        let sha256 = format!("{fill:064x}");
        self.world.add_source(
            name,
            SimSource {
                size,
                sha256: sha256.clone(),
                fill,
                damage: damage.map(str::to_owned),
            },
        );
        TestSource {
            source: ImageSource::File(name.into()),
            sha256,
            size,
        }
    }
}

fn path(attachment: &Attachment) -> &std::path::Path {
    match &attachment.source {
        AttachmentSource::File(path) => path,
        other => panic!("not a file: {other:?}"),
    }
}

#[async_trait]
impl StorageFixture for Fixture {
    fn lacks(&self) -> BTreeSet<Ability> {
        BTreeSet::new()
    }

    fn patience(&self) -> Duration {
        Duration::from_secs(10)
    }

    fn node(&self) -> NodeId {
        NodeId::new("alpha").unwrap()
    }

    async fn open(&self) -> Arc<dyn StorageBackend> {
        Arc::new(SimStorage::new(&self.world, self.pool.clone()))
    }

    async fn close(&self, backend: Arc<dyn StorageBackend>) {
        drop(backend);
    }

    async fn source(&self, fill: u8) -> TestSource {
        self.add(&format!("/images/{fill}"), fill, Bytes::mib(4), None)
    }

    async fn damaged_source(&self) -> ImageSource {
        let why = "it has a backing file";
        self.add("/images/damaged", 1, Bytes::mib(4), Some(why))
            .source
    }

    fn missing_source(&self) -> ImageSource {
        ImageSource::Url("http://localhost/nothing".to_owned())
    }

    async fn too_much(&self) -> (CreateSource, Bytes) {
        let source = self.add("/images/huge", 1, Bytes::gib(2), None).source;
        let sha256 = None;
        (CreateSource::Import { source, sha256 }, Bytes(0))
    }

    async fn write(&self, attachment: &Attachment, fill: u8) {
        assert!(self.world.write(path(attachment), fill), "{attachment:?}");
    }

    async fn read(&self, attachment: &Attachment) -> u8 {
        self.world
            .read(path(attachment))
            .expect("the layer is there")
    }
}

mod at_once {
    novacron_core::storage_conformance!(super::Fixture::new());
}

mod with_latency {
    novacron_core::storage_conformance!(super::Fixture::slow());
}
