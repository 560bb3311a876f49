//! What outlives a process: the world and the disk; and what every story does with them.

use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use novacron_core::cluster::{ListRequest, Retention};
use novacron_core::model::{NodeId, PoolId};
use novacron_core::sim::{
    SimFence, SimHypervisor, SimLine, SimNetwork, SimSource, SimStorage, SimWatchdog, SimWorld,
};
use novacron_core::store::MemoryStore;
use novacron_core::{Bytes, Clock, Cluster, MiB, SeededIds, TimerClock, Timestamp};

use crate::crash_store::{CrashStore, Disk};
use crate::invariants::nothing_left;

/// The file that images are imported from.
pub(crate) const SOURCE: &str = "/images/debian.qcow2";

/// How often the control loop looks at everything again.
pub(crate) const RESYNC: Duration = Duration::from_secs(5);

pub(crate) struct Site {
    pub world: SimWorld,
    pub disk: Arc<Disk>,
    pub clock: TimerClock,
    retention: Retention,
}

/// The clock of a process's host: wrong by so much, and by more and more.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Skewed {
    pub right: TimerClock,
    /// Ahead by this, less an hour.
    pub ahead: Duration,
    /// Of a million parts, how many it is too fast.
    pub drift: u32,
}

impl Skewed {
    pub(crate) fn right(clock: TimerClock) -> Self {
        Self {
            right: clock,
            ahead: Duration::from_secs(3600),
            drift: 0,
        }
    }
}

impl Clock for Skewed {
    fn now(&self) -> Timestamp {
        let now = self.right.now();
        let fast = now.since(BEGIN) * self.drift / 1_000_000;
        now.plus(self.ahead)
            .plus(fast)
            .minus(Duration::from_secs(3600))
    }
}

/// What a process has of its own.
#[derive(Clone, Debug)]
pub(crate) struct Post {
    /// Its way to hosts and pools.
    pub line: SimLine,
    pub clock: Skewed,
    /// The hosts that it can fence.
    pub fenced: Range<usize>,
    /// The host that ends itself when this process is lost.
    pub self_fencing: Option<usize>,
}

/// For how long a host waits to hear from its process.
pub(crate) const WATCHDOG: Duration = Duration::from_secs(30);

/// When every world begins.
const BEGIN: Timestamp = Timestamp::from_millis(1_700_000_000_000);

/// Time is tokio's, and paused: this only lets it go on.
#[expect(clippy::disallowed_methods, reason = "the simulation is the clock")]
pub(crate) async fn pass(time: Duration) {
    tokio::time::sleep(time).await;
}

/// Every object of a kind, walked in small pages.
macro_rules! every {
    ($list:expr) => {{
        let list = $list;
        let mut request = novacron_core::cluster::ListRequest::new().limit(7);
        let mut all = Vec::new();
        loop {
            let page = list.list(&request).await;
            let page = page.map_err(|e| e.to_string())?;
            all.extend(page.items);
            match page.next {
                Some(token) => request = request.after(token),
                None => break all,
            }
        }
    }};
}
pub(crate) use every;

pub(crate) fn node(n: usize) -> NodeId {
    NodeId::new(format!("node-{n}")).unwrap()
}

fn pool() -> PoolId {
    PoolId::new("shared").unwrap()
}

impl Site {
    /// Of one process at a time.
    pub(crate) fn new(seed: u64, hosts: usize, memory: MiB, retention: Retention) -> Self {
        Self::with(seed, hosts, memory, retention, MemoryStore::new)
    }

    /// Of many processes.
    pub(crate) fn shared(seed: u64, hosts: usize, memory: MiB, retention: Retention) -> Self {
        Self::with(seed, hosts, memory, retention, MemoryStore::shared)
    }

    fn with(
        seed: u64,
        hosts: usize,
        memory: MiB,
        retention: Retention,
        store: fn(Arc<dyn Clock>) -> MemoryStore,
    ) -> Self {
        let world = SimWorld::new(seed);
        // Only the control plane keeps a second writer out here.
        world.set_image_locks(false);
        for _ in 0..hosts {
            world.add_host(64, memory);
        }
        world.add_pool(pool(), Bytes::gib(10_000));
        let source = SimSource {
            size: Bytes::gib(2),
            sha256: "0".repeat(64),
            fill: 5,
            damage: None,
        };
        world.add_source(SOURCE, source);
        world.keep_log();
        let clock = TimerClock::starting_at(BEGIN);
        let sync_every = std::env::var("NOVACRON_SIM_SYNC_EVERY").ok();
        let sync_every = sync_every.map(|n| n.parse().unwrap());
        let disk = Disk::new(store(Arc::new(clock)), sync_every);
        Self {
            world,
            disk,
            clock,
            retention,
        }
    }

    /// Starts a process that drives every host.
    pub(crate) async fn start(&self, store: CrashStore, seed: u64) -> Cluster {
        let hosts = 0..self.world.hosts().len();
        self.start_on(store, seed, hosts, &self.post())
            .await
            .unwrap()
    }

    /// The post of a process whose clock is right.
    pub(crate) fn post(&self) -> Post {
        Post {
            line: SimLine::default(),
            clock: Skewed::right(self.clock),
            fenced: 0..self.world.hosts().len(),
            self_fencing: None,
        }
    }

    /// Starts a process that drives these hosts.
    pub(crate) async fn start_on(
        &self,
        store: CrashStore,
        seed: u64,
        hosts: impl IntoIterator<Item = usize>,
        post: &Post,
    ) -> novacron_core::Result<Cluster> {
        let world = self.world.over(&post.line);
        let mut builder = Cluster::builder("sim")
            .store(store)
            .clock(post.clock)
            .ids(SeededIds::from_seed(seed))
            .resync(RESYNC)
            .retention(self.retention)
            .storage("shared", SimStorage::new(&world, pool()));
        for i in post.fenced.clone() {
            let fence = SimFence::new(&world, self.world.hosts()[i]);
            builder = builder.fence(node(i).to_string(), fence);
        }
        for i in hosts {
            let (name, host) = (node(i).to_string(), self.world.hosts()[i]);
            if post.self_fencing == Some(i) {
                let watchdog = SimWatchdog::new(&self.world, host, WATCHDOG);
                builder = builder.self_fence(name.clone(), watchdog);
            }
            builder = builder
                .node(name.clone(), SimHypervisor::new(&world, host))
                .network(name, SimNetwork::new(&world, host));
        }
        builder.build().await
    }

    /// Deletes everything that users made, and waits until it is gone from the records and from the world.
    pub(crate) async fn delete_everything(&self, cluster: &Cluster) -> Result<(), String> {
        for view in every!(cluster.vms()) {
            let gone = cluster.vms().by_id(view.vm.id).delete().await;
            gone.map_err(|e| e.to_string())?;
        }
        let mut last = Ok(());
        for _ in 0..120 {
            pass(RESYNC * 2).await;
            // Refused while something still uses it.
            for view in every!(cluster.volumes()) {
                drop(cluster.volumes().by_id(view.volume.id).delete().await);
            }
            for view in every!(cluster.images()) {
                drop(cluster.images().by_id(view.image.id).delete().await);
            }
            for network in every!(cluster.networks()) {
                drop(cluster.networks().by_id(network.id).delete().await);
            }
            last = nothing_left::in_the_world(&self.world);
            if last.is_ok() {
                last = nothing_left::in_the_records(&self.disk).await;
            }
            if last.is_ok() && self.world.calls_under_way() == 0 {
                return Ok(());
            }
        }
        last
    }

    /// The world's log, for people.
    pub(crate) fn log(&self) -> Vec<String> {
        let line = |e: novacron_core::sim::LogEntry| format!("{:>10.3?} {}", e.at, e.what);
        self.world.log().into_iter().map(line).collect()
    }
}

/// Runs a story on a paused clock, in a runtime of its own.
pub(crate) fn tell<T>(story: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .start_paused(true)
        .build();
    runtime.unwrap().block_on(story)
}

/// Gives the loop so many rounds of three seconds until all is as it should be, and still is a while later.
pub(crate) async fn settled(
    rounds: usize,
    as_it_should: impl AsyncFn() -> Result<(), String>,
) -> Result<(), String> {
    let mut last = Ok(());
    for _ in 0..rounds {
        pass(Duration::from_secs(3)).await;
        last = as_it_should().await;
        if last.is_ok() {
            pass(RESYNC * 3).await;
            last = as_it_should().await;
            if last.is_ok() {
                return Ok(());
            }
        }
    }
    last
}

/// The tasks of a process that has died are dropped when the runtime next turns to them.
pub(crate) async fn bury(cluster: Option<Cluster>) {
    drop(cluster);
    for _ in 0..50 {
        tokio::task::yield_now().await;
    }
}

/// The operations that have not ended.
pub(crate) async fn running_operations(cluster: &Cluster) -> Result<Vec<String>, String> {
    use novacron_core::cluster::MAX_PAGE;
    use novacron_core::model::OperationState;
    let (mut running, mut request) = (Vec::new(), ListRequest::new().limit(MAX_PAGE));
    loop {
        let page = cluster.operations(&request).await;
        let page = page.map_err(|e| e.to_string())?;
        let items = page.items.iter();
        let still = items.filter(|o| o.state == OperationState::Running);
        running.extend(still.map(|o| format!("{o:?}")));
        match page.next {
            Some(token) => request = request.after(token),
            None => return Ok(running),
        }
    }
}
