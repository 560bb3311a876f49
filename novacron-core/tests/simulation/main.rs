//! The deterministic simulation: the real control loop, on one thread, from one seed.
//!
//! ```text
//!   faults:  random requests ∥ driver faults ∥ the process dies at a random commit and starts again, several times
//!   healing: no more faults; the loop gets time
//!   checks:  invariants/, one file each; then everything is deleted, and nothing may be left
//! ```
//! `NOVACRON_SIM_SEEDS=n` runs n seeds, `NOVACRON_SIM_SEED=s` the one that failed. `NOVACRON_SIM_SYNC_EVERY=n` takes the
//! durability of commit out: the store is synced with every n-th commit only, and the simulation must find it.

#![allow(
    clippy::unwrap_used,
    unreachable_pub,
    missing_docs,
    reason = "a test program: a panic is its way to fail"
)]

mod crash_store;
mod invariants;
mod workload;

use std::sync::Arc;
use std::time::Duration;

use crash_store::{CrashStore, Disk};
use invariants::{
    converges, no_overcommit, nothing_left, nothing_lost, one_writer, operations_end, runs_once,
};
use novacron_core::cluster::{ListRequest, MAX_PAGE, Retention, VmView};
use novacron_core::model::PoolId;
use novacron_core::sim::{FaultPlan, Latency, SimHypervisor, SimNetwork, SimStorage, SimWorld};
use novacron_core::store::MemoryStore;
use novacron_core::{Bytes, Cluster, MiB, Phase, SeededIds, TimerClock, Timestamp};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use tokio::time::{Instant, timeout};
use workload::Ledger;

const HOSTS: usize = 3;
const MEMORY: MiB = MiB(48 * 1024);
const SEEDS: u64 = 150;

struct Simulation {
    rng: StdRng,
    world: SimWorld,
    disk: Arc<Disk>,
    clock: TimerClock,
    ledger: Ledger,
}

/// Time is tokio's, and paused: this only lets it go on.
#[expect(clippy::disallowed_methods, reason = "the simulation is the clock")]
async fn pass(time: Duration) {
    tokio::time::sleep(time).await;
}

/// Every VM, walked in small pages.
pub(crate) async fn all_vms(cluster: &Cluster) -> Result<Vec<VmView>, String> {
    let (mut all, mut request) = (Vec::new(), ListRequest::new().limit(7));
    loop {
        let page = cluster.vms().list(&request).await;
        let page = page.map_err(|e| e.to_string())?;
        all.extend(page.items);
        match page.next {
            Some(token) => request = request.after(token),
            None => return Ok(all),
        }
    }
}

impl Simulation {
    fn new(seed: u64) -> Self {
        let world = SimWorld::new(seed);
        for _ in 0..HOSTS {
            world.add_host(64, MEMORY);
        }
        world.add_pool(PoolId::new("shared").unwrap(), Bytes::gib(10_000));
        world.keep_log();
        let clock = TimerClock::starting_at(Timestamp::from_millis(1_700_000_000_000));
        let sync_every = std::env::var("NOVACRON_SIM_SYNC_EVERY")
            .ok()
            .map(|n| n.parse().unwrap());
        let disk = Disk::new(MemoryStore::new(Arc::new(clock)), sync_every);
        Self {
            rng: StdRng::seed_from_u64(seed),
            world,
            disk,
            clock,
            ledger: Ledger::default(),
        }
    }

    async fn start(&mut self, store: CrashStore) -> Cluster {
        let mut builder = Cluster::builder("sim")
            .store(store)
            .clock(self.clock)
            .ids(SeededIds::from_seed(self.rng.random()))
            .resync(Duration::from_secs(5))
            // Short, so that forgetting is simulated too. A grave outlasts what a call may still do late.
            .retention(Retention {
                events: Duration::from_secs(100),
                audit: Duration::from_secs(200),
                history: Duration::from_secs(30),
                ..Retention::default()
            })
            .storage(
                "shared",
                SimStorage::new(&self.world, PoolId::new("shared").unwrap()),
            );
        for (i, host) in self.world.hosts().into_iter().enumerate() {
            let name = format!("node-{i}");
            builder = builder
                .node(name.clone(), SimHypervisor::new(&self.world, host))
                .network(name, SimNetwork::new(&self.world, host));
        }
        builder.build().await.unwrap()
    }

    /// Requests, until the process dies or its time is over.
    async fn life(&mut self, dies_at: u64, after: bool, time: Duration) {
        let store = self.disk.connect(Some((dies_at, after)));
        let died = store.clone();
        let life = async {
            let cluster = self.start(store).await;
            let end = Instant::now() + time;
            while Instant::now() < end {
                pass(Duration::from_millis(self.rng.random_range(0..1500))).await;
                self.ledger.step(&cluster, &self.world, &mut self.rng).await;
            }
        };
        tokio::select! {
            biased;
            () = died.died() => {}
            () = life => {}
        }
        // The dead process's tasks are dropped when the runtime next turns to them.
        for _ in 0..50 {
            tokio::task::yield_now().await;
        }
    }

    async fn run(&mut self) -> Result<(), String> {
        let second = Duration::from_secs(1);
        self.world.set_latency(Latency {
            call: Duration::ZERO..=second * 2,
            shutdown: Duration::ZERO..=second * 20,
        });
        if self.rng.random_bool(0.9) {
            self.world.faults(FaultPlan::everything());
        }
        for _ in 0..self.rng.random_range(2..5) {
            let (dies_at, after) = (self.rng.random_range(1..120), self.rng.random());
            self.life(dies_at, after, second * 60).await;
            runs_once::check(&self.world)?;
            one_writer::check(&self.world)?;
        }
        self.world.heal();
        let cluster = self.start(self.disk.connect(None)).await;
        nothing_lost::check(&cluster, &self.ledger).await?;
        self.settle(&cluster).await?;
        nothing_lost::check(&cluster, &self.ledger).await?;
        no_overcommit::check(&cluster, MEMORY).await?;
        self.delete_everything(&cluster).await?;
        operations_end::check(&cluster).await?;
        runs_once::check(&self.world)?;
        one_writer::check(&self.world)
    }

    /// Gives the loop time until desired equals observed. A user starts again what failed or powered itself off
    /// meanwhile, and gives up what cannot be: a VM whose volume failed.
    async fn settle(&mut self, cluster: &Cluster) -> Result<(), String> {
        let mut last = Ok(());
        for _ in 0..60 {
            pass(Duration::from_secs(20)).await;
            for view in all_vms(cluster).await? {
                let vm = cluster.vms().by_id(view.vm.id);
                if view.reason.contains("failed: ") || view.reason.contains("is gone") {
                    self.ledger.vms.insert(vm.id(), workload::Told::Unsure);
                    vm.delete().await.map_err(|e| e.to_string())?;
                } else if matches!(view.phase, Phase::Failed | Phase::Stopped)
                    && view.vm.power.state == novacron_core::model::Power::On
                {
                    vm.start().await.map_err(|e| e.to_string())?;
                } else if view.phase == Phase::Failed
                    || (view.phase == Phase::Stopped
                        && view.vm.power.state == novacron_core::model::Power::Paused)
                {
                    vm.pause().await.map_err(|e| e.to_string())?;
                }
            }
            last = converges::check(cluster, &self.world).await;
            if last.is_ok() {
                break;
            }
        }
        last.map_err(|e| format!("after healing: {e}"))
    }

    async fn delete_everything(&mut self, cluster: &Cluster) -> Result<(), String> {
        for view in all_vms(cluster).await? {
            cluster
                .vms()
                .by_id(view.vm.id)
                .delete()
                .await
                .map_err(|e| e.to_string())?;
        }
        let mut last = Ok(());
        for _ in 0..60 {
            pass(Duration::from_secs(20)).await;
            let request = ListRequest::new().limit(MAX_PAGE);
            let page = cluster.volumes().list(&request).await;
            for view in page.map_err(|e| e.to_string())?.items {
                let _ = cluster.volumes().by_id(view.volume.id).delete().await;
            }
            last = nothing_left::check(&self.world);
            if last.is_ok() {
                break;
            }
        }
        pass(Duration::from_secs(660)).await;
        last
    }
}

/// One seed, with a runtime of its own; the failure and the log.
fn simulate(seed: u64) -> (Result<(), String>, Vec<String>) {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .start_paused(true)
        .build()
        .unwrap();
    runtime.block_on(async {
        let mut simulation = Simulation::new(seed);
        let result = timeout(Duration::from_secs(24 * 3600), simulation.run()).await;
        let result =
            result.unwrap_or_else(|_| Err("it did not end within a simulated day".to_owned()));
        let log = simulation
            .world
            .log()
            .iter()
            .map(|e| format!("{:>10.3?} {}", e.at, e.what))
            .collect();
        (result, log)
    })
}

#[test]
fn every_seed_keeps_the_invariants() {
    let seeds = match std::env::var("NOVACRON_SIM_SEED") {
        Ok(seed) => {
            let seed = seed.parse().unwrap();
            seed..seed + 1
        }
        Err(_) => 0..std::env::var("NOVACRON_SIM_SEEDS").map_or(SEEDS, |n| n.parse().unwrap()),
    };
    let mut failures = Vec::new();
    for seed in seeds.clone() {
        let (result, log) = simulate(seed);
        if let Err(reason) = result {
            eprintln!("seed {seed}: {reason}");
            for line in log
                .iter()
                .rev()
                .take(if seeds.end - seeds.start == 1 { 400 } else { 0 })
                .rev()
            {
                eprintln!("  {line}");
            }
            failures.push(seed);
        }
    }
    println!(
        "simulated {} seeds, {} failed",
        seeds.end - seeds.start,
        failures.len()
    );
    if let Some(seed) = failures.first() {
        panic!(
            "{} seeds failed; repeat the first one by\n  NOVACRON_SIM_SEED={seed} cargo test -p novacron-core --features conformance --test simulation",
            failures.len()
        );
    }
}

#[test]
fn a_seed_repeats_exactly() {
    assert_eq!(simulate(7), simulate(7));
}
