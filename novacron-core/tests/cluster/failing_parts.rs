//! Parts that others wrote, and that panic or lose answers: the loop goes on, and nothing is taken for what it is not.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use novacron_core::cluster::{Builder, VolumeSpec};
use novacron_core::driver::{
    Call, FirstFit, Host, HostChange, NetworkDriver, PlacementRequest, Placer, PortArtefact,
    PortRequest, Rejected, Scheduler,
};
use novacron_core::model::{
    Decision, DiskOptions, Epoch, NetworkKind, NicSpec, NodeId, PoolId, PortBinding, PortId,
};
use novacron_core::sim::{FaultPlan, SimHypervisor, SimNetwork, SimStorage};
use novacron_core::store::{
    Commit, Key, Lease, LeaseAnswer, ListOptions, MemoryStore, Page, Record, Revision, Store,
    TxnId, TxnOutcome, WatchStream,
};
use novacron_core::{
    Bytes as Size, Cluster, Deadline, Error, ErrorKind, MiB, Phase, Result, SeededIds,
};

use crate::{Site, soon, spec};

fn builder(site: &Site, network: impl NetworkDriver) -> Builder {
    let pool = PoolId::new("shared").unwrap();
    Cluster::builder("test")
        .store(site.store.clone())
        .clock(site.clock)
        .ids(SeededIds::from_seed(9))
        .storage("shared", SimStorage::new(&site.world, pool))
        .node(
            "node-0",
            SimHypervisor::new(&site.world, site.world.hosts()[0]),
        )
        .network("node-0", network)
}

fn sim_network(site: &Site) -> SimNetwork {
    SimNetwork::new(&site.world, site.world.hosts()[0])
}

/// First fit, but it panics over what is larger than it can imagine.
#[derive(Debug)]
struct Panics(Box<dyn Placer>);

#[derive(Debug)]
struct PanicScheduler;

impl Scheduler for PanicScheduler {
    fn open(&self, hosts: Vec<Host>, revision: Revision) -> Box<dyn Placer> {
        Box::new(Panics(FirstFit::default().open(hosts, revision)))
    }
}

impl Placer for Panics {
    fn apply(&mut self, changes: Vec<HostChange>, revision: Revision) {
        self.0.apply(changes, revision);
    }

    fn decide(&mut self, request: &PlacementRequest) -> Result<Decision, Rejected> {
        assert!(request.memory < MiB(4096), "so much memory");
        self.0.decide(request)
    }

    fn explain(&self, request: &PlacementRequest, node: &NodeId) -> Option<String> {
        self.0.explain(request, node)
    }

    fn fork(&self) -> Box<dyn Placer> {
        Box::new(Self(self.0.fork()))
    }
}

#[tokio::test(start_paused = true)]
async fn a_scheduler_that_panics_turns_down_that_vm_only() {
    let site = Site::new(1);
    let builder = builder(&site, sim_network(&site)).scheduler(PanicScheduler);
    let cluster = builder.build().await.unwrap();
    cluster.nodes().wait_available(soon()).await.unwrap();
    let first = cluster.vms().create(spec("first")).await.unwrap();
    first.wait_for(Phase::Running, soon()).await.unwrap();
    let big = spec("big").memory(MiB(8192));
    let big = cluster.vms().create(big).await.unwrap();
    let second = cluster.vms().create(spec("second")).await.unwrap();
    second.wait_for(Phase::Running, soon()).await.unwrap();
    let view = big.get().await.unwrap();
    assert_eq!(view.phase, Phase::Pending);
    let why = "no place: 1 node(s) were not decided on: the scheduler panicked: so much memory";
    assert_eq!(view.reason, why);
    big.delete().await.unwrap().wait(soon()).await.unwrap();
}

/// Panics the first time that a port is to be bound.
#[derive(Debug)]
struct PanicNetwork(SimNetwork, AtomicBool);

#[async_trait]
impl NetworkDriver for PanicNetwork {
    async fn list(&self, call: Call) -> Result<Vec<PortArtefact>> {
        self.0.list(call).await
    }

    async fn ensure_port(&self, call: Call, request: &PortRequest) -> Result<PortBinding> {
        assert!(self.1.swap(true, Ordering::SeqCst), "no wire");
        self.0.ensure_port(call, request).await
    }

    async fn release_port(&self, call: Call, port: PortId, epoch: Epoch) -> Result<()> {
        self.0.release_port(call, port, epoch).await
    }

    async fn before_switch(&self, call: Call, request: &PortRequest) -> Result<()> {
        self.0.before_switch(call, request).await
    }

    async fn after_switch(&self, call: Call, request: &PortRequest) -> Result<()> {
        self.0.after_switch(call, request).await
    }
}

#[tokio::test(start_paused = true)]
async fn a_driver_that_panics_is_asked_again() {
    let site = Site::new(1);
    let network = PanicNetwork(sim_network(&site), AtomicBool::new(false));
    let cluster = builder(&site, network).build().await.unwrap();
    let lan = cluster.networks().create("lan", NetworkKind::User).await;
    let nic = NicSpec::new(lan.unwrap().id());
    let vm = cluster.vms().create(spec("web").nic(nic)).await.unwrap();
    vm.wait_for(Phase::Running, soon()).await.unwrap();
    assert_eq!(site.world.artefacts().ports.len(), 1);
}

/// Loses the answers of commits that it makes, and does not tell of them for a while.
#[derive(Clone, Debug)]
struct Forgetful {
    store: MemoryStore,
    loses: Arc<AtomicBool>,
    /// How often it is asked in vain.
    silent: Arc<AtomicU32>,
}

fn lost(kind: ErrorKind) -> Error {
    Error::new(kind, "test", "the line is dead")
}

#[async_trait]
impl Store for Forgetful {
    fn exclusive(&self) -> bool {
        self.store.exclusive()
    }

    async fn revision(&self) -> Result<Revision> {
        self.store.revision().await
    }

    async fn get(&self, key: &Key) -> Result<Option<Record>> {
        self.store.get(key).await
    }

    async fn list(&self, prefix: &str, options: ListOptions) -> Result<Page> {
        self.store.list(prefix, options).await
    }

    async fn commit(&self, commit: Commit) -> Result<Revision> {
        let answer = self.store.commit(commit).await;
        if self.loses.load(Ordering::SeqCst) {
            return Err(lost(ErrorKind::OutcomeUnknown));
        }
        answer
    }

    async fn outcome(&self, txn: TxnId) -> Result<TxnOutcome> {
        let one_less = |n: u32| n.checked_sub(1);
        let silent = &self.silent;
        if silent
            .fetch_update(Ordering::SeqCst, Ordering::SeqCst, one_less)
            .is_ok()
        {
            return Err(lost(ErrorKind::Unavailable));
        }
        self.store.outcome(txn).await
    }

    async fn watch(&self, prefixes: Vec<String>, after: Revision) -> Result<WatchStream> {
        self.store.watch(prefixes, after).await
    }

    async fn compact(&self, before: Revision) -> Result<()> {
        self.store.compact(before).await
    }

    async fn lease_acquire(&self, name: &str, holder: &str, ttl: Duration) -> Result<LeaseAnswer> {
        self.store.lease_acquire(name, holder, ttl).await
    }

    async fn lease_renew(&self, lease: &Lease) -> Result<()> {
        self.store.lease_renew(lease).await
    }

    async fn lease_release(&self, lease: &Lease) -> Result<()> {
        self.store.lease_release(lease).await
    }

    async fn put_beat(&self, key: &Key, value: Option<Bytes>) -> Result<()> {
        self.store.put_beat(key, value).await
    }

    async fn beats(&self, prefix: &str) -> Result<Vec<(Key, Bytes)>> {
        self.store.beats(prefix).await
    }
}

#[tokio::test(start_paused = true)]
async fn a_commit_that_nobody_tells_of_is_not_taken_for_not_made() {
    let site = Site::new(1);
    let store = Forgetful {
        store: site.store.clone(),
        loses: Arc::default(),
        silent: Arc::default(),
    };
    let builder = builder(&site, sim_network(&site)).store(store.clone());
    let cluster = builder.build().await.unwrap();
    cluster.nodes().wait_available(soon()).await.unwrap();

    store.loses.store(true, Ordering::SeqCst);
    store.silent.store(1, Ordering::SeqCst);
    let unknown = cluster.vms().create(spec("web")).await.unwrap_err();
    assert_eq!(unknown.kind(), ErrorKind::OutcomeUnknown, "{unknown}");
    assert!(unknown.report().contains("the line is dead"), "{unknown}");

    // It was made; and the loop, whose commits fare no better, asks until it knows.
    store.silent.store(6, Ordering::SeqCst);
    let vm = cluster.vms().by_name("web").await.unwrap();
    vm.wait_for(Phase::Running, soon()).await.unwrap();
    vm.delete().await.unwrap().wait(soon()).await.unwrap();
    assert_eq!(store.silent.load(Ordering::SeqCst), 0);
    assert!(site.world.violations().is_empty());
}

/// A disk whose attaching is not known to have happened may still appear in the guest: until a list has told, nobody
/// else may have the volume.
#[tokio::test(start_paused = true)]
async fn a_disk_that_may_still_be_attached_is_not_given_to_another() {
    let mut site = Site::new(1);
    let cluster = site.start().await;
    let data = VolumeSpec::new("data", Size::gib(1));
    let data = cluster.volumes().create(data).await.unwrap();
    let first = cluster.vms().create(spec("first")).await.unwrap();
    let second = cluster.vms().create(spec("second")).await.unwrap();
    for vm in [&first, &second] {
        vm.wait_for(Phase::Running, soon()).await.unwrap();
    }
    site.world.faults(FaultPlan {
        // The host does not answer either, so that no list tells.
        only: &["sim.attach_disk", "sim.probe"],
        lie_late: 1.0,
        late_by: Duration::from_secs(20)..=Duration::from_secs(20),
        ..FaultPlan::default()
    });
    first
        .attach("data", data.id(), DiskOptions::default())
        .await
        .unwrap();
    while site.world.calls_under_way() == 0 {
        tokio::task::yield_now().await;
    }
    let detach = first.detach("data").await.unwrap();
    // Nothing of it is known while the host does not answer. These waits only let the time pass.
    let minute = || Deadline::after(Duration::from_secs(60));
    let _ = first.wait_for(Phase::Stopped, minute()).await.unwrap_err();
    site.world.faults(FaultPlan::default());
    detach.wait(soon()).await.unwrap();
    let attach = second
        .attach("data", data.id(), DiskOptions::default())
        .await
        .unwrap();
    attach.wait(soon()).await.unwrap();
    let _ = first.wait_for(Phase::Stopped, minute()).await.unwrap_err();
    let writers = site.world.writers(data.id());
    assert_eq!(writers.len(), 1, "{writers:?}");
    assert!(site.world.violations().is_empty());
}
