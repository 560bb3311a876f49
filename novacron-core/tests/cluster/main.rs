//! The cluster from the outside, on simulated drivers and a paused clock.

#![allow(
    clippy::unwrap_used,
    unreachable_pub,
    missing_docs,
    missing_debug_implementations,
    reason = "a test program: a panic is its way to fail"
)]
#![cfg(feature = "sim")]

mod any_json;
mod bad_input;
mod boot_disk;
mod cancel;
mod clocks;
mod door;
mod evacuate;
mod failing_parts;
mod forgetting;
mod gate;
mod ground;
mod hardware;
mod hosts;
mod life;
mod lists;
#[cfg(feature = "peers")]
mod peers;
mod processes;
mod settings;
mod storage;
mod strays;
mod upgrade;
mod watchdogs;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use crate::gate::Gate;
use futures::StreamExt;
use futures::stream::BoxStream;
use novacron_core::cluster::{ObjectChange, OperationHandle, Retention};
use novacron_core::driver::{AttachRequest, AttachmentSource, Call, StorageBackend};
use novacron_core::model::{
    DiskSource, Epoch, ImageSource, NodeId, OperationState, PoolId, VmId, VolumeId,
};
use novacron_core::sim::{SimHypervisor, SimNetwork, SimSource, SimStorage, SimWorld};
use novacron_core::store::{ListOptions, MemoryStore, Record, Store};
use novacron_core::{
    Bytes, Cluster, Deadline, MiB, Result, SeededIds, TimerClock, Timestamp, VmSpec,
};
use tokio::time::timeout_at;

pub struct Site {
    pub world: SimWorld,
    pub store: MemoryStore,
    pub retention: Retention,
    /// Between the cluster and its pool.
    pub gate: Gate,
    pub clock: TimerClock,
    seed: u64,
}

impl Site {
    pub fn new(hosts: usize) -> Self {
        let world = SimWorld::new(1);
        for _ in 0..hosts {
            world.add_host(16, MiB(64 * 1024));
        }
        world.add_pool(PoolId::new("shared").unwrap(), Bytes::gib(1000));
        let clock = TimerClock::starting_at(Timestamp::from_millis(1_700_000_000_000));
        let pool = PoolId::new("shared").unwrap();
        Self {
            gate: Gate::new(SimStorage::new(&world, pool)),
            world,
            store: MemoryStore::new(Arc::new(clock)),
            retention: Retention::default(),
            clock,
            seed: 0,
        }
    }

    /// The file that the volume's writes go to now.
    pub async fn layer(&self, volume: VolumeId) -> PathBuf {
        let storage = SimStorage::new(&self.world, PoolId::new("shared").unwrap());
        let request = AttachRequest {
            node: NodeId::new("node-0").unwrap(),
            vm: VmId::from_uuid(volume.uuid()),
            epoch: Epoch(1),
        };
        let call = Call::within(Duration::from_secs(5));
        let attachment = storage.attach(call, volume, &request).await.unwrap();
        storage.detach(call, volume, &request).await.unwrap();
        match attachment.source {
            AttachmentSource::File(path) => path,
            other => panic!("not a file: {other:?}"),
        }
    }

    pub async fn start(&mut self) -> Cluster {
        self.seed += 1;
        let mut builder = Cluster::builder("test")
            .store(self.store.clone())
            .clock(self.clock)
            .retention(self.retention)
            .ids(SeededIds::from_seed(self.seed))
            .storage("shared", self.gate.clone());
        for (i, host) in self.world.hosts().into_iter().enumerate() {
            let name = format!("node-{i}");
            builder = builder
                .node(name.clone(), SimHypervisor::new(&self.world, host))
                .network(name, SimNetwork::new(&self.world, host));
        }
        let cluster = builder.build().await.unwrap();
        cluster.nodes().wait_available(soon()).await.unwrap();
        cluster
    }
}

pub fn soon() -> Deadline {
    Deadline::after(Duration::from_secs(120))
}

/// The changes that a process sees, for as long as a test may wait for one of them.
pub struct Changes {
    stream: BoxStream<'static, Result<ObjectChange>>,
    end: Deadline,
}

impl Changes {
    pub async fn of(cluster: &Cluster) -> Self {
        Self {
            stream: cluster.watch(None).await.unwrap(),
            end: soon(),
        }
    }

    /// Waits for the next one.
    pub async fn next(&mut self) {
        let next = timeout_at(self.end.instant(), self.stream.next()).await;
        next.expect("what is waited for comes in time")
            .unwrap()
            .unwrap();
    }
}

/// Waits for what an operation tells of its progress.
pub async fn tells(operation: &OperationHandle, what: &str) {
    // Time stands still meanwhile.
    for _ in 0..1_000_000 {
        let now = operation.get().await.unwrap();
        assert_eq!(now.state, OperationState::Running, "{}", now.progress);
        if now.progress.contains(what) {
            return;
        }
        tokio::task::yield_now().await;
    }
    panic!("{what:?} was never told");
}

pub fn spec(name: &str) -> VmSpec {
    VmSpec::new(name).disk(
        "root",
        DiskSource::Blank {
            size: Bytes::gib(1),
            pool: None,
        },
    )
}

/// A file that images are imported from.
pub const SOURCE: &str = "/images/debian.qcow2";

impl Site {
    /// Puts the file there.
    pub fn add_source(&self) -> ImageSource {
        let source = SimSource {
            size: Bytes::gib(2),
            sha256: "0".repeat(64),
            fill: 5,
            damage: None,
        };
        self.world.add_source(SOURCE, source);
        ImageSource::File(SOURCE.into())
    }

    /// The records that only requests of users write, and how many operations there are.
    pub async fn written(&self) -> (Vec<Record>, usize) {
        let mut found = Vec::new();
        let kinds = [
            "audit",
            "name",
            "idempotency",
            "vm",
            "volume",
            "image",
            "snapshot",
            "network",
            "port",
            "action",
            "node",
        ];
        for kind in kinds {
            found.extend(self.records(&format!("{kind}/")).await);
        }
        (found, self.records("operation/").await.len())
    }

    pub async fn records(&self, prefix: &str) -> Vec<Record> {
        let all = ListOptions {
            limit: 10_000,
            ..ListOptions::default()
        };
        self.store.list(prefix, all).await.unwrap().records
    }
}
