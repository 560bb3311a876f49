//! A simulated world of one host, which outlives the clusters that are built on it.

use std::time::Duration;

use novacron_core::model::{DiskSource, PoolId};
use novacron_core::sim::{SimHypervisor, SimStorage, SimWorld};
use novacron_core::store::Store;
use novacron_core::{Bytes, Cluster, Deadline, MiB, Result, VmSpec};

/// When what is waited for must have come.
pub(crate) fn soon() -> Deadline {
    Deadline::after(Duration::from_secs(30))
}

pub(crate) struct World {
    world: SimWorld,
    alpha: SimHypervisor,
    pool: PoolId,
}

impl World {
    pub(crate) fn new() -> Self {
        let world = SimWorld::new(1);
        let pool = PoolId::new("shared").unwrap();
        world.add_pool(pool.clone(), Bytes::gib(100));
        let alpha = SimHypervisor::new(&world, world.add_host(8, MiB(16_384)));
        Self { world, alpha, pool }
    }

    pub(crate) async fn cluster(&self, name: &str, store: impl Store) -> Result<Cluster> {
        Cluster::builder(name)
            .store(store)
            .node("alpha", self.alpha.clone())
            .storage("shared", SimStorage::new(&self.world, self.pool.clone()))
            .build()
            .await
    }
}

/// A small VM with a disk.
pub(crate) fn named(name: &str) -> VmSpec {
    let root = DiskSource::Blank {
        size: Bytes::gib(1),
        pool: None,
    };
    VmSpec::new(name).memory(MiB(512)).disk("root", root)
}
