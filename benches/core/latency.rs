//! Round trips, reported without a goal: QEMU's monitor, a durable commit, a batch of commits, the way of a commit into
//! the control loop's cache.

use std::time::{Duration, Instant};

use futures::future::try_join_all;
use novacron_core::store::{Commit, Key, Op, Store, TxnId};
use novacron_core::{Clock, Phase, SystemClock};
use uuid::Uuid;

use crate::Result;
use crate::figure::{Samples, micros, millis, remark, reported};
use crate::qemu::{Guest, Monitor};
use crate::site::{folder, probe_sync, store};
use novacron_benches::sim::{cluster, spec, within, world};

const BATCH: usize = 64;

pub(crate) async fn run() -> Result<()> {
    qmp().await?;
    commits().await?;
    watch().await
}

/// `query-status` on a QEMU that does nothing else.
async fn qmp() -> Result<()> {
    let folder = folder()?;
    let socket = folder.path().join("qmp");
    let mut command = std::process::Command::new("qemu-system-x86_64");
    command
        .args([
            "-nodefaults",
            "-machine",
            "none",
            "-display",
            "none",
            "-qmp",
        ])
        .arg(format!("unix:{},server=on,wait=off", socket.display()));
    let guest = Guest::spawn(&mut command)?;
    let mut monitor = Monitor::connect(&socket).await?;
    let mut took = Vec::new();
    for _ in 0..2000 {
        let start = Instant::now();
        monitor.execute("query-status").await?;
        took.push(micros(start.elapsed()));
    }
    drop(guest);
    reported("qmp-round-trip-median", Samples::new(took).median(), "us");
    Ok(())
}

fn commit(number: u128) -> Result<Commit> {
    let mut commit = Commit::new(TxnId(Uuid::from_u128(number)));
    let value = format!("\"{}\"", "x".repeat(1000));
    commit.push(Op::Put(
        Key::new(format!("bench/{}", number % 1000))?,
        value.into(),
    ));
    Ok(commit)
}

/// One commit after the other, then many at once, each with one record of 1 kB.
async fn commits() -> Result<()> {
    let folder = folder()?;
    probe_sync(folder.path())?;
    let store = store(folder.path()).await?;
    let seed = u128::from(SystemClock.now().as_millis()) << 64;
    let mut number = seed;
    let mut took = Vec::new();
    for _ in 0..500 {
        number += 1;
        let commit = commit(number)?;
        let start = Instant::now();
        store.commit(commit).await?;
        took.push(millis(start.elapsed()));
    }
    reported("commit-median", Samples::new(took).median(), "ms");
    let (mut took, before) = (Vec::new(), store.stats());
    for _ in 0..100 {
        let mut batch = Vec::new();
        for _ in 0..BATCH {
            number += 1;
            batch.push(store.commit(commit(number)?));
        }
        let start = Instant::now();
        try_join_all(batch).await?;
        took.push(millis(start.elapsed()));
    }
    reported(
        "commit-batch-of-64-median",
        Samples::new(took).median(),
        "ms",
    );
    let after = store.stats();
    remark(&format!(
        "{} commits of the batches in {} groups",
        after.commits - before.commits,
        after.groups - before.groups
    ));
    store.close().await?;
    Ok(())
}

/// From a commit that returned to a read of the cache that has it; beside it the same read when nothing is on its way.
async fn watch() -> Result<()> {
    let folder = folder()?;
    let (world, store) = (world(1)?, store(folder.path()).await?);
    let cluster = cluster(&world, store.clone()).await?;
    let vm = cluster.vms().create(spec(1)).await?;
    vm.wait_for(Phase::Running, within(30)).await?;
    let (mut after_commit, mut idle) = (Vec::new(), Vec::new());
    for i in 0..500 {
        let operation = if i % 2 == 0 {
            vm.pause().await?
        } else {
            vm.start().await?
        };
        let start = Instant::now();
        vm.get().await?;
        after_commit.push(micros(start.elapsed()));
        operation.wait(within(30)).await?;
        crate::site::pass(Duration::from_millis(5)).await;
        let start = Instant::now();
        vm.get().await?;
        idle.push(micros(start.elapsed()));
    }
    let (after_commit, idle) = (Samples::new(after_commit), Samples::new(idle));
    reported("commit-to-cache-median", after_commit.median(), "us");
    reported("commit-to-cache-p99", after_commit.percentile(99), "us");
    reported("read-median", idle.median(), "us");
    cluster.shutdown(within(30)).await?;
    drop(cluster);
    store.close().await?;
    Ok(())
}
