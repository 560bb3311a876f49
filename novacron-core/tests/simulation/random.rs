//! Random stories: requests, driver faults and crashes from one seed; then healing, and the checks.
//!
//! ```text
//!   faults:  random requests ∥ driver faults ∥ a disk that may be slow ∥ the process dies at a random commit and starts again, several times
//!   healing: no more faults; what got no answer is sent again; the loop gets time
//!   checks:  invariants/, one file each; then everything is deleted, and nothing may be left
//! ```

use std::collections::BTreeSet;
use std::time::Duration;

use novacron_core::MiB;
use novacron_core::cluster::{CHANGES, Retention};
use novacron_core::sim::{FaultPlan, Latency};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use tokio::time::{Instant, timeout};

use crate::crash_store::Moment;
use crate::healing::heal;
use crate::invariants::{one_writer, runs_once};
use crate::seeds::{Outcome, seeds};
use crate::site::{Site, bury, pass, tell};
use crate::workload::Ledger;

const HOSTS: usize = 3;
const MEMORY: MiB = MiB(48 * 1024);
const SEEDS: u64 = 1000;

struct Simulation {
    rng: StdRng,
    site: Site,
    ledger: Ledger,
}

impl Simulation {
    fn new(seed: u64) -> Self {
        // Short, so that forgetting is simulated too. A grave outlasts what a call may still do late.
        let retention = Retention {
            events: Duration::from_secs(100),
            audit: Duration::from_secs(200),
            history: Duration::from_secs(30),
            ..Retention::default()
        };
        Self {
            rng: StdRng::seed_from_u64(seed),
            site: Site::new(seed, HOSTS, MEMORY, retention),
            ledger: Ledger::default(),
        }
    }

    /// Requests, until the process dies or its time is over.
    async fn life(&mut self, dies_at: u64, moment: Moment, time: Duration) {
        let store = self.site.disk.connect();
        store.dies_at(dies_at, moment);
        let died = store.clone();
        let seed = self.rng.random();
        let life = async {
            let cluster = self.site.start(store, seed).await;
            self.ledger.resume(&cluster).await;
            let end = Instant::now() + time;
            while Instant::now() < end {
                pass(Duration::from_millis(self.rng.random_range(0..1500))).await;
                let (world, rng) = (&self.site.world, &mut self.rng);
                self.ledger.step(&cluster, world, rng).await;
            }
        };
        tokio::select! {
            biased;
            () = died.died() => {}
            () = life => {}
        }
        bury(None).await;
    }

    async fn run(&mut self) -> Result<(), String> {
        let second = Duration::from_secs(1);
        self.site.world.set_latency(Latency {
            call: Duration::ZERO..=second * 2,
            shutdown: Duration::ZERO..=second * 20,
        });
        if self.rng.random_bool(0.9) {
            self.site.world.faults(FaultPlan::everything());
        }
        let slow = self.rng.random_bool(0.5).then_some(second);
        self.site.disk.slow_down(self.rng.random(), slow);
        for _ in 0..self.rng.random_range(2..5) {
            let dies_at = self.rng.random_range(1..120);
            let moment = match self.rng.random_range(0..3) {
                0 => Moment::Before,
                1 => Moment::After,
                _ => Moment::Amid,
            };
            self.life(dies_at, moment, second * 60).await;
            runs_once::check(&self.site.world)?;
            one_writer::check(&self.site.world)?;
        }
        self.site.world.heal();
        self.site.disk.slow_down(0, None);
        let seed = self.rng.random();
        let cluster = self.site.start(self.site.disk.connect(), seed).await;
        heal(&mut self.ledger, &self.site, &cluster, MEMORY).await
    }
}

fn simulate(seed: u64) -> Outcome {
    tell(async {
        let mut simulation = Simulation::new(seed);
        let result = timeout(Duration::from_secs(24 * 3600), simulation.run()).await;
        Outcome::of(result, &simulation.site, simulation.ledger)
    })
}

#[test]
fn every_seed_keeps_the_invariants() {
    let told = seeds("every_seed", SEEDS, simulate);
    if let Some(told) = told {
        let made: BTreeSet<_> = told.keys().map(String::as_str).collect();
        // Each node has a process that drives it: none can be forgotten.
        let possible = CHANGES.into_iter().filter(|verb| *verb != "node.remove");
        assert_eq!(made, possible.collect(), "the changes that were made");
    }
}

#[test]
fn a_seed_repeats_exactly() {
    assert_eq!(simulate(7), simulate(7));
}
