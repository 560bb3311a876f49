//! Random stories of many processes over one store: each drives a host of its own, and all of them a remote one.
//!
//! ```text
//!   faults:  random requests to any process ∥ driver faults ∥ a slow disk
//!            ∥ processes die at a random commit, are cut off from the store for a while, come back under new numbers
//!   healing: every process is there and gets through; then as in [`random`](super::random)
//! ```
//! A process that is cut off goes on acting on its hosts, and believes for a while that it leads. It may also be cut off one
//! way only: it can read and not write, what it writes arrives and the answer does not, or it is told of no change. One
//! that stands still sends nothing and learns nothing for longer than its leases last, and goes on as if nothing had been.
//! Each has a clock of its own. In every second story a process ends with its host, which ends itself, by its watchdog, when
//! its process is lost; in the others hosts are fenced.

use std::time::Duration;

use novacron_core::cluster::Retention;
use novacron_core::sim::{FaultPlan, Latency};
use novacron_core::{Cluster, MiB};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use tokio::task::JoinHandle;
use tokio::time::{Instant, timeout};

use crate::crash_store::{CrashStore, Cut, Moment};
use crate::healing::heal;
use crate::invariants::{one_writer, runs_once};
use crate::seeds::{Outcome, seeds};
use crate::site::{Post, Site, Skewed, WATCHDOG, bury, pass, tell};
use crate::workload::Ledger;

const PROCESSES: usize = 3;
/// The host that every process drives.
const REMOTE: usize = PROCESSES;
const MEMORY: MiB = MiB(48 * 1024);
const SEEDS: u64 = 400;
const SECOND: Duration = Duration::from_secs(1);
const HOUR: Duration = Duration::from_secs(3600);

struct Process {
    cluster: Option<Cluster>,
    store: CrashStore,
    post: Post,
    /// Ends when its host has booted, and cuts it off from everything.
    host: Option<JoinHandle<()>>,
}

impl Drop for Process {
    fn drop(&mut self) {
        if let Some(host) = &self.host {
            host.abort();
        }
    }
}

impl Process {
    /// Whether its host has booted, so that it is not there any more.
    fn is_gone(&self) -> bool {
        self.host.as_ref().is_some_and(JoinHandle::is_finished)
    }

    /// Everything gets through to it again.
    fn goes_on(&self) {
        self.store.cut(Cut::Nothing);
        self.post.line.hold(false);
    }
}

struct Simulation {
    rng: StdRng,
    site: Site,
    ledger: Ledger,
    processes: Vec<Option<Process>>,
    clocks: Vec<Skewed>,
    is_self_fencing: bool,
}

impl Simulation {
    fn new(seed: u64) -> Self {
        let mut rng = StdRng::seed_from_u64(seed);
        let site = Site::shared(seed, PROCESSES + 1, MEMORY, Retention::default());
        let is_right = rng.random_bool(0.5);
        let clock = |_| match is_right {
            true => Skewed::right(site.clock),
            false => Skewed {
                right: site.clock,
                ahead: HOUR * rng.random_range(0..=2),
                drift: rng.random_range(0..1000),
            },
        };
        let clocks = (0..PROCESSES).map(clock).collect();
        let is_self_fencing = rng.random_bool(0.5);
        Self {
            rng,
            site,
            clocks,
            is_self_fencing,
            ledger: Ledger::default(),
            processes: (0..PROCESSES).map(|_| None).collect(),
        }
    }

    async fn start(&mut self, n: usize) {
        let store = self.site.disk.connect();
        let seed = self.rng.random();
        let mut post = self.site.post();
        post.clock = self.clocks[n];
        if self.is_self_fencing {
            post.self_fencing = Some(n);
            post.fenced = REMOTE..REMOTE + 1;
        }
        let host = self.is_self_fencing.then(|| {
            let booted = self.site.world.booted(self.site.world.hosts()[n]);
            let (store, line) = (store.clone(), post.line.clone());
            tokio::spawn(async move {
                booted.await;
                store.cut(Cut::Everything);
                line.hold(true);
            })
        });
        let built = self.site.start_on(store.clone(), seed, [n, REMOTE], &post);
        let cluster = timeout(SECOND * 60, built).await;
        let cluster = cluster.ok().and_then(Result::ok);
        self.processes[n] = Some(Process {
            cluster,
            store,
            post,
            host,
        });
    }

    async fn kill(&mut self, n: usize) {
        let cluster = self.processes[n].take().and_then(|mut p| p.cluster.take());
        bury(cluster).await;
    }

    /// What befalls a process.
    async fn fate(&mut self) {
        let n = self.rng.random_range(0..PROCESSES);
        match (&self.processes[n], self.rng.random_range(0..7)) {
            (None, _) => self.start(n).await,
            (Some(p), 0) => {
                let moment = match self.rng.random_range(0..3) {
                    0 => Moment::Before,
                    1 => Moment::After,
                    _ => Moment::Amid,
                };
                p.store.dies_at(self.rng.random_range(1..20), moment);
            }
            (Some(_), 1) => self.kill(n).await,
            (Some(p), 2) if !p.store.is_cut() => p.store.cut(Cut::Everything),
            (Some(p), 3) if !p.store.is_cut() => {
                let ways = [Cut::Writes, Cut::Answers, Cut::Changes];
                p.store.cut(ways[self.rng.random_range(0..ways.len())]);
            }
            // It stands still.
            (Some(p), 4) => {
                p.store.cut(Cut::Everything);
                p.post.line.hold(true);
            }
            (Some(p), _) => p.goes_on(),
        }
    }

    /// A host that nobody has fed ends the process that was just started, too.
    async fn until_every_process_lasts(&mut self) {
        let mut since = Instant::now();
        while self.is_self_fencing && since.elapsed() < WATCHDOG * 3 {
            for n in 0..PROCESSES {
                let lasts = |p: &Process| p.cluster.is_some() && !p.is_gone();
                if !self.processes[n].as_ref().is_some_and(lasts) {
                    self.kill(n).await;
                    self.start(n).await;
                    since = Instant::now();
                }
            }
            pass(SECOND).await;
        }
    }

    async fn run(&mut self) -> Result<(), String> {
        for n in 0..PROCESSES {
            self.start(n).await;
        }
        self.site.world.set_latency(Latency {
            call: Duration::ZERO..=SECOND * 2,
            shutdown: Duration::ZERO..=SECOND * 20,
        });
        if self.rng.random_bool(0.7) {
            self.site.world.faults(FaultPlan::everything());
        }
        let slow = self.rng.random_bool(0.5).then_some(SECOND);
        self.site.disk.slow_down(self.rng.random(), slow);
        let end = Instant::now() + SECOND * 200;
        while Instant::now() < end {
            pass(Duration::from_millis(self.rng.random_range(0..1500))).await;
            for n in 0..PROCESSES {
                if self.processes[n].as_ref().is_some_and(Process::is_gone) {
                    self.kill(n).await;
                }
            }
            if self.rng.random_bool(0.15) {
                self.fate().await;
            }
            let n = self.rng.random_range(0..PROCESSES);
            let Some(cluster) = self.processes[n].as_ref().and_then(|p| p.cluster.clone()) else {
                continue;
            };
            let step = async {
                self.ledger.resume(&cluster).await;
                let (world, rng) = (&self.site.world, &mut self.rng);
                self.ledger.step(&cluster, world, rng).await;
            };
            // One that is dead or cut off does not answer: another is asked.
            let _ = timeout(SECOND * 5, step).await;
            runs_once::check(&self.site.world)?;
            one_writer::check(&self.site.world)?;
        }
        self.site.world.heal();
        self.site.disk.slow_down(0, None);
        for n in 0..PROCESSES {
            self.kill(n).await;
            self.start(n).await;
        }
        self.until_every_process_lasts().await;
        let cluster = self.processes[0].as_ref().and_then(|p| p.cluster.clone());
        let cluster = cluster.ok_or("a process cannot be built")?;
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
fn many_processes_keep_the_invariants() {
    seeds("many_processes", SEEDS, simulate);
}

#[test]
fn a_seed_of_many_processes_repeats_exactly() {
    assert_eq!(simulate(7), simulate(7));
}
