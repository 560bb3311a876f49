//! Several processes' common ground, and each one's line to the store.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use novacron_core::cluster::Builder;
use novacron_core::model::{NodeId, PoolId, Role};
use novacron_core::sim::{SimFence, SimHypervisor, SimStorage};
use novacron_core::store::{
    Commit, Key, Lease, LeaseAnswer, ListOptions, MemoryStore, Page, Record, Revision, Store,
    TxnId, TxnOutcome, WatchStream,
};
use novacron_core::{Cluster, Result, SeededIds, TimerClock};
use tokio::sync::watch;

use crate::Site;
use crate::gate::Gate;

/// How long a process that says nothing counts as alive.
pub const TTL: Duration = Duration::from_secs(10);

/// A process's way to the store, which can be cut off.
#[derive(Clone, Debug)]
pub struct Line {
    store: MemoryStore,
    cut: watch::Sender<bool>,
}

impl Line {
    /// Calls wait from now on, as those of a process that is stopped or cut off.
    pub fn cut(&self) {
        self.cut.send_replace(true);
    }

    pub fn mend(&self) {
        self.cut.send_replace(false);
    }

    async fn pass(&self) {
        let mut cut = self.cut.subscribe();
        cut.wait_for(|cut| !cut).await.unwrap();
    }
}

#[async_trait]
impl Store for Line {
    fn exclusive(&self) -> bool {
        self.store.exclusive()
    }

    async fn revision(&self) -> Result<Revision> {
        self.pass().await;
        self.store.revision().await
    }

    async fn get(&self, key: &Key) -> Result<Option<Record>> {
        self.pass().await;
        self.store.get(key).await
    }

    async fn list(&self, prefix: &str, options: ListOptions) -> Result<Page> {
        self.pass().await;
        self.store.list(prefix, options).await
    }

    async fn commit(&self, commit: Commit) -> Result<Revision> {
        self.pass().await;
        self.store.commit(commit).await
    }

    async fn outcome(&self, txn: TxnId) -> Result<TxnOutcome> {
        self.pass().await;
        self.store.outcome(txn).await
    }

    async fn watch(&self, prefixes: Vec<String>, after: Revision) -> Result<WatchStream> {
        self.pass().await;
        self.store.watch(prefixes, after).await
    }

    async fn compact(&self, before: Revision) -> Result<()> {
        self.pass().await;
        self.store.compact(before).await
    }

    async fn lease_acquire(&self, name: &str, holder: &str, ttl: Duration) -> Result<LeaseAnswer> {
        self.pass().await;
        self.store.lease_acquire(name, holder, ttl).await
    }

    async fn lease_renew(&self, lease: &Lease) -> Result<()> {
        self.pass().await;
        self.store.lease_renew(lease).await
    }

    async fn lease_release(&self, lease: &Lease) -> Result<()> {
        self.pass().await;
        self.store.lease_release(lease).await
    }

    async fn put_beat(&self, key: &Key, value: Option<Bytes>) -> Result<()> {
        self.pass().await;
        self.store.put_beat(key, value).await
    }

    async fn beats(&self, prefix: &str) -> Result<Vec<(Key, Bytes)>> {
        self.pass().await;
        self.store.beats(prefix).await
    }
}

/// Several processes' common ground.
pub struct Ground {
    pub site: Site,
    pub store: MemoryStore,
    /// The clock of the processes that begin from now on.
    pub clock: TimerClock,
    /// How many hosts can be fenced.
    pub fenced: usize,
    /// How long after its process was lost a host is.
    pub lost_after: Duration,
    /// How long a process of the next ones that says nothing counts as alive.
    pub ttl: Duration,
    /// Each process's way to the pool, if it has one.
    pub gates: Vec<Gate>,
    seed: u64,
}

impl Ground {
    pub fn new(hosts: usize) -> Self {
        let site = Site::new(hosts);
        let store = MemoryStore::shared(Arc::new(site.clock));
        Self {
            clock: site.clock,
            site,
            store,
            fenced: 0,
            lost_after: TTL * 3,
            ttl: TTL,
            gates: Vec::new(),
            seed: 0,
        }
    }

    /// A process that drives these hosts, and reaches the pool.
    pub async fn process(&mut self, role: Role, hosts: &[usize]) -> (Cluster, Line) {
        let (builder, line) = self.builder(role, hosts);
        (builder.build().await.unwrap(), line)
    }

    /// The same, before it is built.
    pub fn builder(&mut self, role: Role, hosts: &[usize]) -> (Builder, Line) {
        self.seed += 1;
        let line = Line {
            store: self.store.clone(),
            cut: watch::Sender::new(false),
        };
        let mut builder = Cluster::builder("test")
            .store(line.clone())
            .clock(self.clock)
            .ids(SeededIds::from_seed(self.seed))
            .lease_ttl(self.ttl)
            .lost_after(self.lost_after)
            .role(role);
        if role.owns() {
            let pool = PoolId::new("shared").unwrap();
            let gate = Gate::new(SimStorage::new(&self.site.world, pool));
            self.gates.push(gate.clone());
            builder = builder.storage("shared", gate);
        }
        if role.leads() {
            for (n, host) in self
                .site
                .world
                .hosts()
                .into_iter()
                .enumerate()
                .take(self.fenced)
            {
                let fence = SimFence::new(&self.site.world, host);
                builder = builder.fence(format!("node-{n}"), fence);
            }
        }
        for host in hosts {
            let hypervisor = SimHypervisor::new(&self.site.world, self.site.world.hosts()[*host]);
            builder = builder.node(format!("node-{host}"), hypervisor);
        }
        (builder, line)
    }
}

pub fn node(n: usize) -> NodeId {
    NodeId::new(format!("node-{n}")).unwrap()
}
