//! The control plane alone: VMs on simulated drivers, created by many callers at once, records in SQLite on a real disk.
//!
//! Each VM has one disk, and each caller creates a VM and waits until it runs before the next. What counts is the time
//! from the first request to the last guest running. `syncs` are the store's own count of its transactions; the syncs
//! that fold its WAL into the file now and then are not in it.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use novacron_core::cluster::Cluster;
use novacron_core::model::{DiskSource, PoolId};
use novacron_core::sim::{SimHypervisor, SimStorage, SimWorld};
use novacron_core::store::Store;
use novacron_core::{Bytes, Deadline, MiB, Phase, VmSpec};

use crate::Result;
use crate::figure::{Samples, millis, promised, remark, reported};
use crate::site::{cpu_time, folder, probe_sync, store};

const RUNS: usize = 5;
const VMS: usize = 1000;
const HOSTS: usize = 100;
const CALLERS: usize = 64;

/// A world of equal hosts and one pool that all of them reach.
pub(crate) fn world(hosts: usize) -> Result<SimWorld> {
    let world = SimWorld::new(1);
    for _ in 0..hosts {
        world.add_host(64, MiB(256 * 1024));
    }
    world.add_pool(pool()?, Bytes::gib(1 << 20));
    Ok(world)
}

pub(crate) fn pool() -> Result<PoolId> {
    Ok(PoolId::new("shared")?)
}

/// A cluster over the whole world: `node-0` is its first host.
pub(crate) async fn cluster(world: &SimWorld, store: impl Store) -> Result<Cluster> {
    let mut builder = Cluster::builder("bench")
        .store(store)
        .storage("shared", SimStorage::new(world, pool()?));
    for (i, host) in world.hosts().into_iter().enumerate() {
        builder = builder.node(format!("node-{i}"), SimHypervisor::new(world, host));
    }
    let cluster = builder.build().await?;
    cluster.nodes().wait_available(within(600)).await?;
    Ok(cluster)
}

pub(crate) fn within(seconds: u64) -> Deadline {
    Deadline::after(Duration::from_secs(seconds))
}

/// A machine with one disk.
pub(crate) fn spec(number: usize) -> VmSpec {
    let source = DiskSource::Blank {
        size: Bytes::gib(1),
        pool: None,
    };
    VmSpec::new(format!("vm-{number}")).disk("root", source)
}

/// Creates VMs by many callers at once; each waits for its VM before it asks for the next.
pub(crate) async fn create(cluster: &Cluster, vms: usize, callers: usize) -> Result<Vec<f64>> {
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

pub(crate) async fn run() -> Result<()> {
    let mut rates = Vec::new();
    let mut syncs = Vec::new();
    for _ in 0..RUNS {
        let folder = folder()?;
        probe_sync(folder.path())?;
        let (world, store) = (world(HOSTS)?, store(folder.path()).await?);
        let cluster = cluster(&world, store.clone()).await?;
        let (before, cpu) = (store.stats(), cpu_time()?);
        let start = Instant::now();
        let took = create(&cluster, VMS, CALLERS).await?;
        let seconds = start.elapsed().as_secs_f64();
        let after = store.stats();
        if world.running_count() != VMS {
            return Err(format!("{} of {VMS} guests run", world.running_count()).into());
        }
        rates.push(VMS as f64 / seconds);
        syncs.push((after.groups - before.groups) as f64 / VMS as f64);
        remark(&format!(
            "{:.0} VMs a second; a VM: {} ms; {} commits in {} groups, the largest {}; CPU {:.0} ms",
            VMS as f64 / seconds,
            Samples::new(took).spread(),
            after.commits - before.commits,
            after.groups - before.groups,
            after.largest_group,
            millis(cpu_time()? - cpu),
        ));
        cluster.shutdown(within(30)).await?;
        drop(cluster);
        store.close().await?;
    }
    let rates = Samples::new(rates);
    promised("create-to-running", rates.median(), "VM/s", ">= 500");
    promised(
        "syncs-per-vm",
        Samples::new(syncs).median(),
        "syncs",
        "<= 0.2",
    );
    reported("create-to-running-worst", rates.percentile(0), "VM/s");
    Ok(())
}
