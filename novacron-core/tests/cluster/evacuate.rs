//! VMs that leave their node: because it is to be empty, or because its host is lost.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use novacron_core::cluster::{Evidence, ListRequest, OperationHandle, VmHandle};
use novacron_core::driver::FirstFit;
use novacron_core::model::{
    NodeId, NodeState, OperationState, PoolId, Power, Returning, StopProof, VmId,
};
use novacron_core::sim::{SimFence, SimHypervisor, SimStorage};
use novacron_core::{Cluster, Deadline, ErrorKind, MiB, Phase, RequestOptions, SeededIds, VmSpec};

use crate::ground::node;
use crate::{Changes, Site, soon, spec, tells};

/// Runs a VM, first on this node, later on any.
async fn runs_on(cluster: &Cluster, spec: VmSpec, at: usize) -> VmHandle {
    let others: Vec<_> = nodes(cluster)
        .await
        .into_iter()
        .filter(|n| *n != node(at))
        .collect();
    for other in &others {
        cluster.nodes().set_schedulable(other, false).await.unwrap();
    }
    let vm = cluster.vms().create(spec).await.unwrap();
    vm.wait_for(Phase::Running, soon()).await.unwrap();
    for other in &others {
        cluster.nodes().set_schedulable(other, true).await.unwrap();
    }
    vm
}

async fn nodes(cluster: &Cluster) -> Vec<NodeId> {
    let page = cluster.nodes().list(&ListRequest::new()).await.unwrap();
    page.items.into_iter().map(|n| n.node.value.id).collect()
}

async fn place(vm: &VmHandle) -> String {
    vm.get()
        .await
        .unwrap()
        .place
        .map(|p| p.to_string())
        .unwrap_or_default()
}

/// Waits until it runs on the node.
async fn arrives(cluster: &Cluster, vm: &VmHandle, at: usize) {
    let mut changes = Changes::of(cluster).await;
    loop {
        let view = vm.get().await.unwrap();
        if view.phase == Phase::Running && place(vm).await == node(at).to_string() {
            return;
        }
        changes.next().await;
    }
}

async fn evacuate(cluster: &Cluster, at: usize, returning: Returning) -> OperationHandle {
    let nodes = cluster.nodes();
    nodes
        .evacuate(&node(at), Evidence::Observed, returning)
        .await
        .unwrap()
}

#[tokio::test(start_paused = true)]
async fn a_node_that_is_evacuated_is_emptied_kept_empty_and_filled_again_on_request() {
    let mut site = Site::new(2);
    let cluster = site.start().await;
    let mut vms = Vec::new();
    for n in 0..5 {
        vms.push(runs_on(&cluster, spec(&format!("web-{n}")), 0).await);
    }
    let off = runs_on(&cluster, spec("off"), 0).await;
    off.stop().await.unwrap().wait(soon()).await.unwrap();

    let operation = evacuate(&cluster, 0, Returning::Return).await;
    operation.wait(soon()).await.unwrap();
    for vm in &vms {
        arrives(&cluster, vm, 1).await;
        let view = vm.get().await.unwrap();
        assert_eq!(view.run.unwrap().epoch.0, 2);
        assert_eq!(view.claim.unwrap().home, Some(node(0)));
    }
    // What was off is off, and starts elsewhere; what is new goes elsewhere too.
    assert_eq!(off.get().await.unwrap().phase, Phase::Stopped);
    off.start().await.unwrap().wait(soon()).await.unwrap();
    let new = cluster.vms().create(spec("new")).await.unwrap();
    new.wait_for(Phase::Running, soon()).await.unwrap();
    assert_eq!(
        (place(&off).await, place(&new).await),
        (node(1).to_string(), node(1).to_string())
    );

    // Those that left come back, the others stay.
    cluster
        .nodes()
        .set_schedulable(&node(0), true)
        .await
        .unwrap();
    for vm in &vms {
        arrives(&cluster, vm, 0).await;
        assert_eq!(vm.get().await.unwrap().claim.unwrap().home, None);
    }
    assert_eq!(place(&new).await, node(1).to_string());
    assert!(
        site.world.violations().is_empty(),
        "{:?}",
        site.world.violations()
    );
}

#[tokio::test(start_paused = true)]
async fn no_more_leave_at_a_time_than_may_and_none_is_stopped_without_room() {
    let site = Site::new(2);
    let cluster = built(&site, 1, &[0, 1], 0, FirstFit::default()).await;
    let big = |name: &str| spec(name).memory(MiB(20 * 1024));
    let mut vms = Vec::new();
    for n in 0..3 {
        vms.push(runs_on(&cluster, big(&format!("big-{n}")), 0).await);
    }
    let there = runs_on(&cluster, big("there"), 1).await;
    let mut changes = Changes::of(&cluster).await;
    let operation = evacuate(&cluster, 0, Returning::Stay).await;
    // There is room for two of the three: the third runs on.
    tells(&operation, "1 VM(s) left").await;
    tells(&operation, "too little memory left").await;
    let mut moving = 0;
    loop {
        let mut running = 0;
        let mut now = 0;
        for vm in &vms {
            let view = vm.get().await.unwrap();
            running += usize::from(view.phase == Phase::Running);
            now += usize::from(view.claim.is_some_and(|c| c.moving_to.is_some()));
        }
        moving = moving.max(now);
        if running == 3 {
            break;
        }
        changes.next().await;
    }
    assert!(moving <= 2, "{moving} at once");
    there.stop().await.unwrap().wait(soon()).await.unwrap();
    operation.wait(soon()).await.unwrap();
    for vm in &vms {
        arrives(&cluster, vm, 1).await;
    }
    assert!(site.world.violations().is_empty());
}

#[tokio::test(start_paused = true)]
async fn what_cannot_leave_stays_and_is_told_until_the_time_is_over() {
    let mut site = Site::new(2);
    let cluster = site.start().await;
    let mut pinned = spec("pinned");
    pinned.node = Some(node(0));
    let pinned = runs_on(&cluster, pinned, 0).await;
    let paused = runs_on(&cluster, spec("paused"), 0).await;
    paused.pause().await.unwrap().wait(soon()).await.unwrap();
    let web = runs_on(&cluster, spec("web"), 0).await;

    let options = RequestOptions {
        timeout: Duration::from_secs(120),
        ..RequestOptions::default()
    };
    let operation = evacuate(&cluster.with(options), 0, Returning::Stay).await;
    arrives(&cluster, &web, 1).await;
    let error = operation
        .wait(Deadline::after(Duration::from_secs(600)))
        .await
        .unwrap_err();
    for told in [
        "2 VM(s) left",
        "pinned stays: it may be on no other",
        "paused stays: it is held",
    ] {
        assert!(error.to_string().contains(told), "{error}");
    }
    assert_eq!(pinned.get().await.unwrap().phase, Phase::Running);
    assert_eq!(paused.get().await.unwrap().phase, Phase::Paused);
    // It is to be empty all the same: what can leave later does.
    paused.start().await.unwrap().wait(soon()).await.unwrap();
    arrives(&cluster, &paused, 1).await;
}

#[tokio::test(start_paused = true)]
async fn an_evacuation_can_be_cancelled_and_is_superseded() {
    let mut site = Site::new(2);
    let cluster = site.start().await;
    let mut stays = spec("stays");
    stays.node = Some(node(0));
    let stays = runs_on(&cluster, stays, 0).await;
    let operation = evacuate(&cluster, 0, Returning::Stay).await;
    tells(&operation, "stays: it may be on no other node").await;
    operation.cancel().await.unwrap();
    assert_eq!(
        operation.get().await.unwrap().state,
        OperationState::Cancelled
    );
    let view = cluster.nodes().get(&node(0)).await.unwrap();
    assert!(view.node.schedulable && view.node.evacuation.is_none());
    assert_eq!(stays.get().await.unwrap().phase, Phase::Running);

    let again = evacuate(&cluster, 0, Returning::Stay).await;
    tells(&again, "stays").await;
    cluster
        .nodes()
        .set_schedulable(&node(0), false)
        .await
        .unwrap();
    let mut changes = Changes::of(&cluster).await;
    while again.get().await.unwrap().state == OperationState::Running {
        changes.next().await;
    }
    assert_eq!(again.get().await.unwrap().state, OperationState::Superseded);
    let error = again.cancel().await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::FailedPrecondition);
}

/// The cluster with these hosts, of which the first `fenced` can be fenced.
async fn built(
    site: &Site,
    seed: u64,
    hosts: &[usize],
    fenced: usize,
    scheduler: FirstFit,
) -> Cluster {
    let pool = PoolId::new("shared").unwrap();
    let mut builder = Cluster::builder("test")
        .store(site.store.clone())
        .clock(site.clock)
        .ids(SeededIds::from_seed(seed))
        .scheduler(scheduler)
        .storage("shared", SimStorage::new(&site.world, pool));
    let all = site.world.hosts();
    for n in hosts {
        builder = builder.node(
            format!("node-{n}"),
            SimHypervisor::new(&site.world, all[*n]),
        );
    }
    for (n, host) in all.iter().enumerate().take(fenced) {
        builder = builder.fence(format!("node-{n}"), SimFence::new(&site.world, *host));
    }
    let cluster = builder.build().await.unwrap();
    cluster.nodes().wait_available(soon()).await.unwrap();
    cluster
}

#[tokio::test(start_paused = true)]
async fn a_host_that_is_down_is_evacuated_by_an_operators_word() {
    let mut site = Site::new(2);
    let cluster = site.start().await;
    let vm = runs_on(&cluster, spec("web"), 0).await;
    let nodes = cluster.nodes();
    let zero = node(0);
    let down = || nodes.evacuate(&zero, Evidence::HostDown, Returning::Stay);
    let refused = down().await.unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::FailedPrecondition);
    assert!(refused.message().contains("answers"), "{refused}");

    let host = site.world.hosts()[0];
    site.world.reboot(host);
    site.world.set_reachable(host, false);
    vm.wait_for(Phase::Unknown, soon()).await.unwrap();
    let operation = down().await.unwrap();
    operation.wait(soon()).await.unwrap();
    arrives(&cluster, &vm, 1).await;
    let claim = vm.get().await.unwrap().claim.unwrap();
    assert!(claim.recovery && claim.epoch.0 == 2);
    site.world.set_reachable(host, true);
    cluster.nodes().wait_available(soon()).await.unwrap();
    assert_eq!(site.world.running(vm.id()).len(), 1);
    assert!(site.world.violations().is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_host_that_comes_back_ends_its_copies_before_it_is_reported() {
    let mut site = Site::new(2);
    let cluster = site.start().await;
    let mut vms = Vec::new();
    for n in 0..4 {
        vms.push(runs_on(&cluster, spec(&format!("web-{n}")), 0).await);
    }
    let host = site.world.hosts()[0];
    site.world.set_reachable(host, false);
    for vm in &vms {
        vm.wait_for(Phase::Unknown, soon()).await.unwrap();
    }
    // The operator is wrong: they run on; and here no lock of an image keeps the second one out.
    site.world.set_image_locks(false);
    let (zero, nodes) = (node(0), cluster.nodes());
    let word = nodes.evacuate(&zero, Evidence::HostDown, Returning::Stay);
    word.await.unwrap().wait(soon()).await.unwrap();
    for vm in &vms {
        arrives(&cluster, vm, 1).await;
        assert_eq!(site.world.running(vm.id()).len(), 2, "the word was wrong");
    }
    let mut changes = Changes::of(&cluster).await;
    site.world.set_reachable(host, true);
    loop {
        let status = nodes.get(&zero).await.unwrap().status.unwrap();
        if status.state == NodeState::Available {
            break;
        }
        changes.next().await;
    }
    for vm in &vms {
        assert_eq!(site.world.running(vm.id()).len(), 1);
    }
}

/// The order in which the VMs were granted their second start.
fn granted(log: &BTreeMap<u64, VmId>) -> Vec<VmId> {
    log.values().copied().collect()
}

#[tokio::test(start_paused = true)]
async fn lost_vms_come_back_by_priority_a_few_at_a_time() {
    let site = Site::new(3);
    let cluster = built(&site, 1, &[0, 1, 2], 0, FirstFit::default()).await;
    let mut by_priority = Vec::new();
    for n in 0..20 {
        let priority = i32::from(n >= 10) * 100;
        let vm = runs_on(&cluster, spec(&format!("vm-{n}")).priority(priority), 0).await;
        by_priority.push((priority, vm));
    }
    let host = site.world.hosts()[0];
    let mut changes = Changes::of(&cluster).await;
    cluster
        .nodes()
        .set_schedulable(&node(0), false)
        .await
        .unwrap();
    site.world.reboot(host);
    let (mut order, mut most) = (BTreeMap::new(), 0);
    let mut seen = BTreeSet::new();
    while seen.len() < by_priority.len() {
        let mut starting = 0;
        for (_, vm) in &by_priority {
            let view = vm.get().await.unwrap();
            let claim = view.claim.unwrap();
            if claim.epoch.0 < 2 {
                continue;
            }
            assert_eq!(claim.epoch.0, 2);
            let Some(version) = view.run.as_ref().map(|_| claim.decision.view.0) else {
                continue;
            };
            if seen.insert(vm.id()) {
                order.insert((version << 8) + order.len() as u64, vm.id());
            }
            starting += usize::from(claim.recovery && view.phase == Phase::Starting);
        }
        most = most.max(starting);
        if seen.len() < by_priority.len() {
            changes.next().await;
        }
    }
    let high: BTreeSet<VmId> = by_priority
        .iter()
        .filter(|(p, _)| *p > 0)
        .map(|(_, vm)| vm.id())
        .collect();
    let first: BTreeSet<VmId> = granted(&order).into_iter().take(10).collect();
    assert_eq!(first, high, "the higher priority first");
    assert!(
        (1..=8).contains(&most),
        "{most} starts at once; 4 for each of 2 nodes"
    );
    for (_, vm) in &by_priority {
        vm.wait_for(Phase::Running, soon()).await.unwrap();
        assert_eq!(vm.get().await.unwrap().claim.unwrap().failures, 0);
    }
    assert!(site.world.violations().is_empty());
}

#[tokio::test(start_paused = true)]
async fn vms_of_a_group_are_apart_also_when_they_come_back() {
    let site = Site::new(3);
    let cluster = built(&site, 1, &[0, 1, 2], 0, FirstFit::default()).await;
    let apart = |name: &str| spec(name).anti_affinity("db");
    let mut vms = Vec::new();
    for n in 0..3 {
        vms.push(
            cluster
                .vms()
                .create(apart(&format!("db-{n}")))
                .await
                .unwrap(),
        );
    }
    let mut places = BTreeSet::new();
    for vm in &vms {
        vm.wait_for(Phase::Running, soon()).await.unwrap();
        places.insert(place(vm).await);
    }
    assert_eq!(places.len(), 3, "asked for in one go, and on three nodes");
    let fourth = cluster.vms().create(apart("db-3")).await.unwrap();
    let none = fourth
        .wait_for(Phase::Running, Deadline::after(Duration::from_secs(5)))
        .await
        .unwrap_err();
    assert!(
        none.to_string()
            .contains("3 node(s) run a VM of the same anti-affinity group"),
        "{none}"
    );
    fourth.delete().await.unwrap().wait(soon()).await.unwrap();

    // The node of one is lost: there is no other for it, until a VM of the group leaves.
    let at = 0;
    let mut lost = None;
    for vm in &vms {
        if place(vm).await == node(at).to_string() {
            lost = Some(vm);
        }
    }
    let lost = lost.unwrap();
    cluster
        .nodes()
        .set_schedulable(&node(at), false)
        .await
        .unwrap();
    site.world.reboot(site.world.hosts()[at]);
    let view = lost.wait_for(Phase::Pending, soon()).await.unwrap();
    let mut reason = view.reason;
    let mut changes = Changes::of(&cluster).await;
    while !reason.contains("anti-affinity") {
        changes.next().await;
        reason = lost.get().await.unwrap().reason;
    }
    let report = cluster.nodes().if_lost(&node(1)).await.unwrap();
    assert_eq!(
        (report.vms.len(), report.stranded().count(), report.fenced),
        (1, 1, false)
    );
    let other = vms.iter().find(|vm| vm.id() != lost.id()).unwrap();
    other.stop().await.unwrap().wait(soon()).await.unwrap();
    lost.wait_for(Phase::Running, soon()).await.unwrap();
    assert!(site.world.violations().is_empty());
}

#[tokio::test(start_paused = true)]
async fn the_loss_of_a_host_is_told_beforehand() {
    let site = Site::new(2);
    let cluster = built(&site, 1, &[0, 1], 1, FirstFit::default()).await;
    let big =
        |name: &str, gib: u64, priority: i32| spec(name).memory(MiB(gib * 1024)).priority(priority);
    runs_on(&cluster, big("there", 24, 0), 1).await;
    for (name, priority) in [("low", 0), ("high", 9)] {
        runs_on(&cluster, big(name, 30, priority), 0).await;
    }
    let mut pinned = spec("pinned").power(Power::On);
    pinned.node = Some(node(0));
    runs_on(&cluster, pinned, 0).await;
    let report = cluster.nodes().if_lost(&node(0)).await.unwrap();
    assert!(report.fenced);
    let told: Vec<_> = report
        .vms
        .iter()
        .map(|vm| (vm.name.to_string(), vm.place.clone()))
        .collect();
    assert_eq!(told[0], ("high".to_owned(), Ok(node(1))));
    assert!(
        told[1..].iter().any(|(name, why)| name == "low"
            && why
                .as_ref()
                .is_err_and(|why| why.contains("too little memory left"))),
        "{told:?}"
    );
    assert!(
        told.iter().any(|(name, why)| name == "pinned"
            && why
                .as_ref()
                .is_err_and(|why| why.contains("not the one asked for"))),
        "{told:?}"
    );
    let error = cluster.nodes().if_lost(&node(7)).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NotFound);

    // With room kept for it, what would strand somebody is not placed to begin with.
    let site = Site::new(2);
    let spare = FirstFit {
        spare_hosts: 1,
        ..FirstFit::default()
    };
    let cluster = built(&site, 1, &[0, 1], 0, spare).await;
    for n in 0..2 {
        let vm = cluster
            .vms()
            .create(big(&format!("vm-{n}"), 30, 0))
            .await
            .unwrap();
        vm.wait_for(Phase::Running, soon()).await.unwrap();
    }
    let more = cluster.vms().create(big("more", 30, 0)).await.unwrap();
    let error = more
        .wait_for(Phase::Running, Deadline::after(Duration::from_secs(5)))
        .await
        .unwrap_err();
    assert!(error.to_string().contains("room that is kept"), "{error}");
}

#[tokio::test(start_paused = true)]
async fn a_node_that_is_gone_can_be_forgotten() {
    let site = Site::new(2);
    let cluster = built(&site, 1, &[0, 1], 0, FirstFit::default()).await;
    let vm = runs_on(&cluster, spec("web"), 1).await;
    let id = vm.id();
    let refused = cluster.nodes().remove(&node(1)).await.unwrap_err();
    assert!(refused.message().contains("looks after it"), "{refused}");
    drop((cluster, vm));

    let cluster = built(&site, 2, &[0], 0, FirstFit::default()).await;
    let vm = cluster.vms().by_id(id);
    vm.wait_for(Phase::Unknown, soon()).await.unwrap();
    let refused = cluster.nodes().remove(&node(1)).await.unwrap_err();
    assert!(refused.message().contains("1 VM(s) left"), "{refused}");
    let (host, domain) = site.world.running(id)[0];
    site.world
        .end_guest(host, domain, novacron_core::model::Exit::Requested);
    let down = cluster
        .nodes()
        .evacuate(&node(1), Evidence::HostDown, Returning::Stay)
        .await
        .unwrap();
    down.wait(soon()).await.unwrap();
    arrives(&cluster, &vm, 0).await;
    cluster.nodes().remove(&node(1)).await.unwrap();
    assert_eq!(nodes(&cluster).await, [node(0)]);
    let proofs = vm.get().await.unwrap().claim.unwrap();
    assert!(
        !matches!(proofs.released, Some(StopProof::Operator { .. })),
        "it runs anew"
    );
}
