//! Several processes over one store: one leads, each looks after its own, and what one leaves another takes.

use std::time::Duration;

use novacron_core::cluster::{ListRequest, OperationHandle, VolumeSpec};
use novacron_core::model::{DiskOptions, MemberId, NetworkKind, NicSpec, NodeState, Role};
use novacron_core::sim::SimHypervisor;
use novacron_core::store::{ListOptions, Store};
use novacron_core::{Bytes, Cluster, Deadline, ErrorKind, Phase, SeededIds};
use tokio::time::Instant;

use crate::ground::{Ground, TTL, node};
use crate::{Changes, soon, spec};

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
    let mut changes = Changes::of(&first).await;
    while !gone().await {
        changes.next().await;
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

/// The first process stands still in the middle of an attach, between its look at the store and what it does then; the
/// second takes the hypervisor, and the disk back; then the first goes on.
#[tokio::test(start_paused = true)]
async fn a_disk_that_an_owner_of_before_gives_late_is_taken_back() {
    let mut ground = Ground::new(2);
    // So that the second is there before the first one's time for the attach is over.
    ground.ttl = Duration::from_secs(4);
    let (first, line) = ground.process(Role::Both, &[0, 1]).await;
    let (second, _) = ground.process(Role::Both, &[0, 1]).await;
    let done = async |operation: OperationHandle| drop(operation.wait(soon()).await.unwrap());
    let web = second.vms().by_id(run(&second, "web", 0).await);
    let other = second.vms().by_id(run(&second, "other", 1).await);
    let data = VolumeSpec::new("data", Bytes::gib(1));
    let data = second.volumes().create(data).await.unwrap();
    data.operation().unwrap().wait(soon()).await.unwrap();

    ground.gates[0].hold("attach");
    let calls = ground.gates[0].calls("attach");
    web.attach("data", data.id(), DiskOptions::default())
        .await
        .unwrap();
    while ground.gates[0].calls("attach") == calls {
        tokio::time::advance(Duration::from_millis(1)).await;
    }
    line.cut();
    let owner = async || {
        let node = second.nodes().get(&node(0)).await.unwrap();
        node.owner == Some(second.members().me())
    };
    let mut changes = Changes::of(&second).await;
    while !owner().await {
        changes.next().await;
    }
    done(web.detach("data").await.unwrap()).await;

    ground.gates[0].open();
    while ground.site.world.writers(data.id()).is_empty() {
        tokio::time::advance(Duration::from_millis(1)).await;
    }
    // As long as the guest has it open, nobody else gets it.
    done(
        other
            .attach("data", data.id(), DiskOptions::default())
            .await
            .unwrap(),
    )
    .await;
    let writers = ground.site.world.writers(data.id());
    assert_eq!(writers.len(), 1);
    assert_eq!(writers[0].1.vm, other.id());
    drop(first);
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
    let spec = spec("a").nic(NicSpec::new(nic.id()));
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
    let mut changes = Changes::of(&second).await;
    while !moved().await {
        changes.next().await;
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

#[tokio::test(start_paused = true)]
async fn a_store_that_was_away_for_longer_than_the_leases_costs_no_host() {
    let pass = async |time| {
        let passed = tokio::time::timeout(time, std::future::pending::<()>());
        passed.await.unwrap_err();
    };
    // The others are back a little after the one that leads then, which led before, or did not; and may have been asking
    // for their leases as the store went away.
    for (back_first, asking) in [(0, false), (1, false), (0, true), (1, true)] {
        let mut ground = Ground::new(2);
        (ground.fenced, ground.lost_after) = (2, Duration::from_secs(1));
        let processes = [
            ground.process(Role::Both, &[0]).await,
            ground.process(Role::Both, &[1]).await,
        ];
        let (leads, other) = (&processes[back_first], &processes[1 - back_first]);
        let on_other = run(&leads.0, "a", 1 - back_first).await;
        let on_leader = run(&leads.0, "b", back_first).await;
        if asking {
            pass(TTL - Duration::from_millis(100)).await;
        }
        leads.1.cut();
        other.1.cut();
        pass(TTL * 3 / 2).await;
        leads.1.mend();
        let vm = leads.0.vms().by_id(on_leader);
        vm.stop().await.unwrap().wait(soon()).await.unwrap();
        other.1.mend();
        let vm = leads.0.vms().by_id(on_other);
        let waited = vm
            .wait_for(Phase::Unknown, Deadline::after(TTL * 4))
            .await
            .unwrap_err();
        assert_eq!(waited.kind(), ErrorKind::DeadlineExceeded);
        assert_eq!(vm.get().await.unwrap().run.unwrap().epoch.0, 1);
        assert_eq!(ground.site.world.running(on_other).len(), 1);
        run(&other.0, "c", 1 - back_first).await;
        assert!(ground.site.world.violations().is_empty());
    }
}

#[tokio::test(start_paused = true)]
async fn a_process_that_stood_still_is_back_before_its_host_is_fenced() {
    let mut ground = Ground::new(2);
    (ground.fenced, ground.lost_after) = (2, TTL + Duration::from_secs(1));
    let (first, _) = ground.process(Role::Both, &[0]).await;
    let (second, line) = ground.process(Role::Both, &[1]).await;
    let id = run(&first, "a", 1).await;
    line.cut();
    let mut changes = Changes::of(&first).await;
    while first.nodes().get(&node(1)).await.unwrap().owner.is_some() {
        let looked = tokio::time::timeout(TTL / 10, changes.next()).await;
        drop(looked);
    }
    line.mend();
    let vm = first.vms().by_id(id);
    let waited = vm.wait_for(Phase::Unknown, Deadline::after(TTL * 4)).await;
    assert_eq!(waited.unwrap_err().kind(), ErrorKind::DeadlineExceeded);
    assert_eq!(vm.get().await.unwrap().run.unwrap().epoch.0, 1);
    run(&second, "b", 1).await;
    assert!(ground.site.world.violations().is_empty());
}

/// Waits for what the VM's view tells at this process.
async fn tells_of(vm: &novacron_core::cluster::VmHandle, cluster: &Cluster, what: &str) {
    let mut changes = Changes::of(cluster).await;
    loop {
        let reason = vm.get().await.unwrap().reason;
        if reason.contains(what) {
            return;
        }
        changes.next().await;
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
    let mut changes = Changes::of(&second).await;
    while told().await > 0 {
        changes.next().await;
    }
}
