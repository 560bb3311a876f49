//! The control plane alone: VMs on simulated drivers, created by many callers at once, records in SQLite on a real disk.
//!
//! Each VM has one disk, and each caller creates a VM and waits until it runs before the next. What counts is the time
//! from the first request to the last guest running. `syncs` are the store's own count of its transactions; the syncs
//! that fold its WAL into the file now and then are not in it.

use std::time::Instant;

use novacron_benches::sim::{cluster, create, within, world};

use crate::Result;
use crate::figure::{Samples, millis, promised, remark, reported};
use crate::site::{cpu_time, folder, probe_sync, store};

const RUNS: usize = 5;
const VMS: usize = 1000;
const HOSTS: usize = 100;
const CALLERS: usize = 64;

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
