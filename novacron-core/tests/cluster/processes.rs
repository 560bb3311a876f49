//! Several processes over one store: one leads, each looks after its own, and what one leaves another takes.

use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use futures::StreamExt;
use novacron_core::cluster::ListRequest;
use novacron_core::model::{MemberId, NetworkKind, NicSpec, NodeId, NodeState, PoolId, Role};
use novacron_core::sim::{SimFence, SimHypervisor, SimStorage};
use novacron_core::store::{
    Commit, Key, Lease, LeaseAnswer, ListOptions, MemoryStore, Page, Record, Revision, Store,
    TxnId, TxnOutcome, WatchStream,
};
use novacron_core::{Cluster, Deadline, ErrorKind, Phase, Result, SeededIds};
use tokio::sync::watch;
use tokio::time::Instant;

use crate::{Site, soon, spec};

/// How long a process that says nothing counts as alive.
const TTL: Duration = Duration::from_secs(10);

/// A process's way to the store, which can be cut off.
#[derive(Clone, Debug)]
struct Line {
    store: MemoryStore,
    cut: watch::Sender<bool>,
}

impl Line {
    /// Calls wait from now on, as those of a process that is stopped or cut off.
    fn cut(&self) {
        self.cut.send_replace(true);
    }

    fn mend(&self) {
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
struct Ground {
    site: Site,
    store: MemoryStore,
    seed: u64,
    /// How many hosts can be fenced.
    fenced: usize,
}

impl Ground {
    fn new(hosts: usize) -> Self {
        let site = Site::new(hosts);
        let store = MemoryStore::shared(std::sync::Arc::new(site.clock));
        Self {
            site,
            store,
            seed: 0,
            fenced: 0,
        }
    }

    /// A process that drives these hosts, and reaches the pool.
    async fn process(&mut self, role: Role, hosts: &[usize]) -> (Cluster, Line) {
        self.seed += 1;
        let line = Line {
            store: self.store.clone(),
            cut: watch::Sender::new(false),
        };
        let mut builder = Cluster::builder("test")
            .store(line.clone())
            .clock(self.site.clock)
            .ids(SeededIds::from_seed(self.seed))
            .lease_ttl(TTL)
            .role(role);
        if role.owns() {
            let pool = PoolId::new("shared").unwrap();
            builder = builder.storage("shared", SimStorage::new(&self.site.world, pool));
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
        (builder.build().await.unwrap(), line)
    }
}

fn node(n: usize) -> NodeId {
    NodeId::new(format!("node-{n}")).unwrap()
}

#[tokio::test(start_paused = true)]
async fn a_name_that_a_living_process_has_for_another_host_is_refused() {
    let mut ground = Ground::new(2);
    let (first, _) = ground.process(Role::Both, &[0]).await;
    first.nodes().wait_available(soon()).await.unwrap();
    let other = SimHypervisor::new(&ground.site.world, ground.site.world.hosts()[1]);
    let refused = Cluster::builder("test")
        .store(ground.store.clone())
        .clock(ground.site.clock)
        .ids(SeededIds::from_seed(9))
        .node("node-0", other)
        .build()
        .await
        .unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::FailedPrecondition);
    assert!(refused.message().contains("under that name"), "{refused}");
    // Who was refused is soon known to be gone; who is there is told.
    let gone = async || {
        let members = first
            .members()
            .list(&ListRequest::new())
            .await
            .unwrap()
            .items;
        let states: Vec<_> = members.iter().map(|m| (m.id, m.is_alive())).collect();
        states == [(first.members().me(), true), (MemberId(2), false)]
    };
    let mut changes = first.watch(None).await.unwrap();
    while !gone().await {
        changes.next().await.unwrap().unwrap();
    }
    let node = first.nodes().get(&node(0)).await.unwrap();
    assert_eq!(node.owner, Some(first.members().me()));
}

/// Runs a VM on a node.
async fn run(cluster: &Cluster, name: &str, at: usize) -> novacron_core::model::VmId {
    let mut spec = spec(name);
    spec.node = Some(node(at));
    let vm = cluster.vms().create(spec).await.unwrap();
    vm.wait_for(Phase::Running, soon()).await.unwrap();
    vm.id()
}

#[tokio::test(start_paused = true)]
async fn each_process_looks_after_its_own_and_any_takes_requests() {
    let mut ground = Ground::new(2);
    let (leader, _) = ground.process(Role::Controller, &[]).await;
    let (first, _) = ground.process(Role::Owner, &[0]).await;
    let (second, _) = ground.process(Role::Owner, &[1]).await;
    // Asked for at one process, placed by another, run by a third.
    let a = run(&second, "a", 0).await;
    let b = run(&first, "b", 1).await;
    for (id, host) in [(a, 0), (b, 1)] {
        let runs = ground.site.world.running(id);
        assert_eq!(runs.len(), 1);
        assert_eq!(runs[0].0, ground.site.world.hosts()[host]);
    }
    for cluster in [&leader, &first, &second] {
        let vm = cluster.vms().by_id(a);
        vm.stop().await.unwrap().wait(soon()).await.unwrap();
        vm.start().await.unwrap().wait(soon()).await.unwrap();
    }
    for id in [a, b] {
        let delete = leader.vms().by_id(id).delete().await.unwrap();
        delete.wait(soon()).await.unwrap();
    }
    assert!(ground.site.world.violations().is_empty());
    assert!(ground.site.world.artefacts().domains.is_empty());
    assert!(ground.site.world.artefacts().volumes.is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_leader_that_shuts_down_is_followed_at_once() {
    let mut ground = Ground::new(2);
    let (first, _) = ground.process(Role::Both, &[0]).await;
    let (second, _) = ground.process(Role::Both, &[1]).await;
    run(&second, "a", 1).await;
    first.shutdown(soon()).await.unwrap();
    let before = Instant::now();
    run(&second, "b", 1).await;
    assert!(
        before.elapsed() < Duration::from_secs(1),
        "{:?}",
        before.elapsed()
    );
}

#[tokio::test(start_paused = true)]
async fn a_leader_that_dies_is_followed_when_its_lease_has_run_out() {
    let mut ground = Ground::new(2);
    let (first, _) = ground.process(Role::Both, &[0]).await;
    let (second, _) = ground.process(Role::Both, &[1]).await;
    let on_first = run(&second, "a", 0).await;
    drop(first);
    let before = Instant::now();
    run(&second, "b", 1).await;
    assert!(before.elapsed() < TTL * 2, "{:?}", before.elapsed());
    // Nobody can tell of what the dead process looked after, and it is started nowhere else.
    let vm = second.vms().by_id(on_first);
    let view = vm.wait_for(Phase::Unknown, soon()).await.unwrap();
    assert!(view.reason.contains("is lost"), "{}", view.reason);
    assert!(view.claim.unwrap().is_held());
    let lost = second.nodes().get(&node(0)).await.unwrap().status.unwrap();
    assert_eq!(lost.state, NodeState::Unreachable);
    assert_eq!(ground.site.world.running(on_first).len(), 1);
    // Its next process finds everything as it was.
    let (_again, _) = ground.process(Role::Both, &[0]).await;
    vm.wait_for(Phase::Running, soon()).await.unwrap();
    assert_eq!(vm.get().await.unwrap().run.unwrap().epoch.0, 1);
    assert!(ground.site.world.violations().is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_dead_owner_of_a_living_hypervisor_is_replaced_and_its_guests_go_on() {
    let mut ground = Ground::new(2);
    // Both drive the same hypervisors, as remote ones; the first has them.
    let (first, _) = ground.process(Role::Both, &[0, 1]).await;
    let (second, _) = ground.process(Role::Both, &[0, 1]).await;
    let id = run(&second, "a", 0).await;
    drop(first);
    second.nodes().wait_available(soon()).await.unwrap();
    let vm = second.vms().by_id(id);
    vm.stop().await.unwrap().wait(soon()).await.unwrap();
    assert_eq!(vm.get().await.unwrap().run.unwrap().epoch.0, 1);
    vm.start().await.unwrap().wait(soon()).await.unwrap();
    let third = run(&second, "b", 1).await;
    assert_eq!(ground.site.world.running(third).len(), 1);
    assert!(ground.site.world.violations().is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_leader_that_was_cut_off_writes_nothing_when_it_is_back() {
    let mut ground = Ground::new(2);
    let (first, line) = ground.process(Role::Both, &[0, 1]).await;
    let (second, _) = ground.process(Role::Both, &[0, 1]).await;
    let id = run(&first, "a", 0).await;
    // What it decides now stays on the way for longer than its lease.
    first.vms().by_id(id).stop().await.unwrap();
    line.cut();
    let vm = second.vms().by_id(id);
    let stopped = vm.wait_for(Phase::Stopped, soon()).await.unwrap();
    assert!(!stopped.claim.unwrap().is_held());
    vm.start().await.unwrap().wait(soon()).await.unwrap();
    let (_, after) = (line.mend(), ground.store.revision().await.unwrap());
    // It learns that it leads no more, and is one of the processes again.
    let back = first.vms().by_id(id);
    back.wait_for(Phase::Running, soon()).await.unwrap();
    let late = Deadline::after(TTL * 3);
    let waited = back.wait_for(Phase::Stopped, late).await.unwrap_err();
    assert_eq!(waited.kind(), ErrorKind::DeadlineExceeded);
    assert!(
        ground.store.revision().await.unwrap() > after,
        "it is alive again"
    );
    assert_eq!(back.get().await.unwrap().run.unwrap().epoch.0, 2);
    assert_eq!(ground.site.world.running(id).len(), 1);
    assert!(ground.site.world.violations().is_empty());
    // And may lead again.
    drop(second);
    run(&first, "b", 1).await;
}

#[tokio::test(start_paused = true)]
async fn a_lost_hosts_vms_come_back_elsewhere_once_it_is_fenced() {
    let mut ground = Ground::new(2);
    ground.fenced = 2;
    let (first, _) = ground.process(Role::Both, &[0]).await;
    let (second, _) = ground.process(Role::Both, &[1]).await;
    let nic = second
        .networks()
        .create("lan", NetworkKind::User)
        .await
        .unwrap();
    let spec = spec("a").nic(NicSpec {
        network: nic.id(),
        mac: None,
        forwards: Vec::new(),
    });
    first.nodes().wait_available(soon()).await.unwrap();
    second
        .nodes()
        .set_schedulable(&node(1), false)
        .await
        .unwrap();
    let vm = second.vms().create(spec).await.unwrap();
    vm.wait_for(Phase::Running, soon()).await.unwrap();
    second
        .nodes()
        .set_schedulable(&node(1), true)
        .await
        .unwrap();
    drop(first);
    let moved = async || {
        vm.get()
            .await
            .unwrap()
            .run
            .is_some_and(|r| r.node == node(1))
    };
    let mut changes = second.watch(None).await.unwrap();
    while !moved().await {
        changes.next().await.unwrap().unwrap();
    }
    let view = vm.wait_for(Phase::Running, soon()).await.unwrap();
    assert_eq!(view.run.unwrap().epoch.0, 2);
    let runs = ground.site.world.running(vm.id());
    assert_eq!(runs.len(), 1);
    assert_eq!(runs[0].0, ground.site.world.hosts()[1]);
    // The host comes back: it finds its claim gone, and is used again.
    let (again, _) = ground.process(Role::Both, &[0]).await;
    again.nodes().wait_available(soon()).await.unwrap();
    run(&again, "b", 0).await;
    for name in ["a", "b"] {
        let vm = again.vms().by_name(name).await.unwrap();
        vm.delete().await.unwrap().wait(soon()).await.unwrap();
    }
    assert!(ground.site.world.artefacts().domains.is_empty());
    assert!(ground.site.world.violations().is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_process_that_was_shut_down_is_not_fenced() {
    let mut ground = Ground::new(2);
    ground.fenced = 2;
    let (first, _) = ground.process(Role::Both, &[0]).await;
    let (second, _) = ground.process(Role::Both, &[1]).await;
    let id = run(&second, "a", 0).await;
    first.shutdown(soon()).await.unwrap();
    let vm = second.vms().by_id(id);
    let view = vm.wait_for(Phase::Unknown, soon()).await.unwrap();
    assert!(view.reason.contains("was shut down"), "{}", view.reason);
    let _ = vm.wait_for(Phase::Running, soon()).await.unwrap_err();
    assert_eq!(ground.site.world.running(id).len(), 1);
}

/// Waits for what the VM's view tells at this process.
async fn tells_of(vm: &novacron_core::cluster::VmHandle, cluster: &Cluster, what: &str) {
    let mut changes = cluster.watch(None).await.unwrap();
    loop {
        let reason = vm.get().await.unwrap().reason;
        if reason.contains(what) {
            return;
        }
        let next = tokio::time::timeout(TTL * 3, changes.next()).await;
        next.unwrap_or_else(|_| panic!("last: {reason:?}"))
            .unwrap()
            .unwrap();
    }
}

#[tokio::test(start_paused = true)]
async fn every_process_can_tell_why_something_does_not_get_on() {
    let mut ground = Ground::new(2);
    let (leader, _) = ground.process(Role::Controller, &[]).await;
    let (first, _) = ground.process(Role::Owner, &[0]).await;
    first.nodes().wait_available(soon()).await.unwrap();
    let big = spec("big").memory(novacron_core::MiB(1024 * 1024));
    let big = first.vms().create(big).await.unwrap();
    tells_of(&big, &first, "have too little memory left").await;
    // Where it is known it is told at once, and elsewhere as long as it is true.
    tells_of(&leader.vms().by_id(big.id()), &leader, "too little memory").await;
    big.delete().await.unwrap().wait(soon()).await.unwrap();

    let waits = spec("waits");
    first
        .nodes()
        .set_schedulable(&node(0), false)
        .await
        .unwrap();
    let waits = first.vms().create(waits).await.unwrap();
    tells_of(&waits, &first, "are cordoned").await;
    drop(leader);
    let (second, _) = ground.process(Role::Both, &[1]).await;
    second
        .vms()
        .by_id(waits.id())
        .wait_for(Phase::Running, soon())
        .await
        .unwrap();
    let told = async || {
        let all = ListOptions {
            limit: 100,
            ..ListOptions::default()
        };
        ground
            .store
            .list("reason/", all)
            .await
            .unwrap()
            .records
            .len()
    };
    let mut changes = second.watch(None).await.unwrap();
    let deadline = Instant::now() + TTL * 6;
    while told().await > 0 {
        tokio::time::timeout_at(deadline, changes.next())
            .await
            .expect("what a lost process said goes")
            .unwrap()
            .unwrap();
    }
}
