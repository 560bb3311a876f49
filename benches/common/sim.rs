//! Clusters on simulated hosts.

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use novacron_core::cluster::{Builder, Cluster};
use novacron_core::model::{DiskSource, PoolId};
use novacron_core::sim::{SimHypervisor, SimStorage, SimWorld};
use novacron_core::store::Store;
use novacron_core::{Bytes, Deadline, MiB, Phase, VmSpec};

use crate::Result;
use crate::figure::millis;

/// A world of equal hosts and one pool that all of them reach.
pub fn world(hosts: usize) -> Result<SimWorld> {
    let world = SimWorld::new(1);
    for _ in 0..hosts {
        world.add_host(64, MiB(256 * 1024));
    }
    world.add_pool(pool()?, Bytes::gib(1 << 20));
    Ok(world)
}

/// The pool's name.
pub fn pool() -> Result<PoolId> {
    Ok(PoolId::new("shared")?)
}

/// A cluster over the whole world: `node-0` is its first host.
pub async fn cluster(world: &SimWorld, store: impl Store) -> Result<Cluster> {
    let builder = Cluster::builder("bench").store(store);
    let cluster = on_hosts(builder, world, 0..world.hosts().len())?
        .build()
        .await?;
    cluster.nodes().wait_available(within(600)).await?;
    Ok(cluster)
}

/// Adds the pool and these of the world's hosts.
pub fn on_hosts(builder: Builder, world: &SimWorld, hosts: Range<usize>) -> Result<Builder> {
    let mut builder = builder.storage("shared", SimStorage::new(world, pool()?));
    let all = world.hosts();
    for i in hosts {
        builder = builder.node(format!("node-{i}"), SimHypervisor::new(world, all[i]));
    }
    Ok(builder)
}

/// So many seconds from now.
pub fn within(seconds: u64) -> Deadline {
    Deadline::after(Duration::from_secs(seconds))
}

/// A machine with one disk.
pub fn spec(number: usize) -> VmSpec {
    let source = DiskSource::Blank {
        size: Bytes::gib(1),
        pool: None,
    };
    VmSpec::new(format!("vm-{number}")).disk("root", source)
}

/// Creates VMs by many callers at once; each waits for its VM before it asks for the next.
pub async fn create(cluster: &Cluster, vms: usize, callers: usize) -> Result<Vec<f64>> {
    let next = Arc::new(AtomicUsize::new(0));
    let mut tasks = tokio::task::JoinSet::new();
    for _ in 0..callers {
        let (cluster, next) = (cluster.clone(), Arc::clone(&next));
        tasks.spawn(async move {
            let mut took = Vec::new();
            loop {
                let number = next.fetch_add(1, Ordering::Relaxed);
                if number >= vms {
                    return Ok::<_, novacron_core::Error>(took);
                }
                let start = Instant::now();
                let vm = cluster.vms().create(spec(number)).await?;
                vm.wait_for(Phase::Running, within(300)).await?;
                took.push(millis(start.elapsed()));
            }
        });
    }
    let mut took = Vec::new();
    while let Some(ended) = tasks.join_next().await {
        took.extend(ended??);
    }
    Ok(took)
}
