//! Hosts that reboot, change or go, and guests that nobody can tell of.

use novacron_core::cluster::VolumeSpec;
use novacron_core::model::{DiskOptions, Exit, NodeId, NodeState, StopProof};
use novacron_core::sim::{SimHypervisor, SimStorage};
use novacron_core::{Bytes, Cluster, ErrorKind, Phase, SeededIds};

use crate::{Changes, Site, soon, spec};

/// The same records and pool, with these hosts under these names.
async fn rebuilt(site: &Site, seed: u64, nodes: &[(&str, usize)]) -> Cluster {
    let pool = novacron_core::model::PoolId::new("shared").unwrap();
    let mut builder = Cluster::builder("test")
        .store(site.store.clone())
        .clock(site.clock)
        .ids(SeededIds::from_seed(seed))
        .storage("shared", SimStorage::new(&site.world, pool));
    for (name, host) in nodes {
        let host = site.world.hosts()[*host];
        builder = builder.node(*name, SimHypervisor::new(&site.world, host));
    }
    let cluster = builder.build().await.unwrap();
    cluster.nodes().wait_available(soon()).await.unwrap();
    cluster
}

#[tokio::test(start_paused = true)]
async fn another_machine_under_a_nodes_name_is_no_reboot() {
    let site = Site::new(2);
    let cluster = rebuilt(&site, 1, &[("alpha", 0)]).await;
    let id = {
        let vm = cluster.vms().create(spec("web")).await.unwrap();
        vm.wait_for(Phase::Running, soon()).await.unwrap();
        vm.id()
    };
    drop(cluster);
    let cluster = rebuilt(&site, 2, &[("alpha", 1)]).await;
    let vm = cluster.vms().by_id(id);
    let view = vm.wait_for(Phase::Unknown, soon()).await.unwrap();
    assert!(
        view.reason.contains("bring that host back"),
        "{}",
        view.reason
    );
    assert!(view.claim.unwrap().is_held());
    assert_eq!(
        site.world.running(id).len(),
        1,
        "it runs where it did, and nowhere else"
    );

    drop((cluster, vm));
    let cluster = rebuilt(&site, 3, &[("alpha", 0)]).await;
    let vm = cluster.vms().by_id(id);
    vm.wait_for(Phase::Running, soon()).await.unwrap();
    assert_eq!(vm.get().await.unwrap().run.unwrap().epoch.0, 1);
    assert!(site.world.violations().is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_node_that_is_built_no_more_gets_nothing_and_its_vms_can_be_confirmed() {
    let site = Site::new(2);
    let cluster = rebuilt(&site, 1, &[("alpha", 0), ("beta", 1)]).await;
    let data = VolumeSpec::new("data", Bytes::gib(1));
    let data = cluster.volumes().create(data).await.unwrap().id();
    let id = {
        let mut spec = spec("web");
        spec.node = Some(NodeId::new("beta").unwrap());
        let vm = cluster.vms().create(spec).await.unwrap();
        vm.wait_for(Phase::Running, soon()).await.unwrap();
        let attach = vm
            .attach("data", data, DiskOptions::default())
            .await
            .unwrap();
        attach.wait(soon()).await.unwrap();
        vm.id()
    };
    drop(cluster);
    let cluster = rebuilt(&site, 2, &[("alpha", 0)]).await;
    let vm = cluster.vms().by_id(id);
    let view = vm.wait_for(Phase::Unknown, soon()).await.unwrap();
    assert!(view.reason.contains("is lost"), "{}", view.reason);
    let beta = cluster
        .nodes()
        .get(&NodeId::new("beta").unwrap())
        .await
        .unwrap();
    assert_eq!(beta.status.unwrap().state, NodeState::Unreachable);
    // The operator has looked: it is off.
    let (host, domain) = site.world.running(id)[0];
    site.world.end_guest(host, domain, Exit::Requested);
    vm.confirm_stopped().await.unwrap();
    // Nobody on beta can let go of the volumes: their pool's owner does.
    let data = cluster.volumes().by_id(data);
    let grow = data.grow(Bytes::gib(2)).await.unwrap();
    grow.wait(soon()).await.unwrap();
    let left = site.world.artefacts().volumes;
    assert!(left.iter().all(|v| v.attachments == 0), "{left:?}");
    vm.delete().await.unwrap().wait(soon()).await.unwrap();
    let next = cluster.vms().create(spec("next")).await.unwrap();
    let view = next.wait_for(Phase::Running, soon()).await.unwrap();
    assert_eq!(view.place.unwrap().to_string(), "alpha");
}

#[tokio::test(start_paused = true)]
async fn after_a_reboot_the_volumes_are_free() {
    let mut site = Site::new(1);
    let cluster = site.start().await;
    let data = VolumeSpec::new("data", Bytes::gib(1));
    let data = cluster.volumes().create(data).await.unwrap();
    let vm = cluster.vms().create(spec("web")).await.unwrap();
    vm.wait_for(Phase::Running, soon()).await.unwrap();
    let attach = vm
        .attach("data", data.id(), DiskOptions::default())
        .await
        .unwrap();
    attach.wait(soon()).await.unwrap();
    let (host, _) = site.world.running(vm.id())[0];
    vm.detach("data").await.unwrap();
    let mut changes = Changes::of(&cluster).await;
    site.world.reboot(host);
    let rebooted = async || {
        let view = vm.get().await.unwrap();
        view.run.is_some_and(|r| r.epoch.0 > 1) && view.phase == Phase::Running
    };
    while !rebooted().await {
        changes.next().await;
    }
    // Neither the record nor the backend holds on to it.
    let grow = data.grow(Bytes::gib(2)).await.unwrap();
    grow.wait(soon()).await.unwrap();
    data.delete().await.unwrap().wait(soon()).await.unwrap();
    vm.kill().await.unwrap().wait(soon()).await.unwrap();
    let left = site.world.artefacts().volumes;
    assert!(left.iter().all(|v| v.attachments == 0), "{left:?}");
}

#[tokio::test(start_paused = true)]
async fn a_guest_that_nobody_can_tell_of_can_be_killed() {
    let mut site = Site::new(1);
    let cluster = site.start().await;
    let vm = cluster.vms().create(spec("web")).await.unwrap();
    vm.wait_for(Phase::Running, soon()).await.unwrap();
    let (host, domain) = site.world.running(vm.id())[0];
    site.world
        .lose_sight(host, domain, "its monitor does not answer");
    let view = vm.wait_for(Phase::Unknown, soon()).await.unwrap();
    assert!(view.reason.contains("monitor"), "{}", view.reason);
    vm.kill().await.unwrap().wait(soon()).await.unwrap();
    let view = vm.get().await.unwrap();
    assert_eq!(view.phase, Phase::Stopped);
    let proof = view.claim.unwrap().released.unwrap();
    assert!(matches!(proof, StopProof::DriverConfirmed { .. }));
}

#[tokio::test(start_paused = true)]
async fn a_guest_that_was_paused_once_may_still_power_itself_off() {
    let mut site = Site::new(1);
    let cluster = site.start().await;
    let vm = cluster.vms().create(spec("web")).await.unwrap();
    vm.wait_for(Phase::Running, soon()).await.unwrap();
    vm.pause().await.unwrap().wait(soon()).await.unwrap();
    vm.start().await.unwrap().wait(soon()).await.unwrap();
    let (host, domain) = site.world.running(vm.id())[0];
    site.world.end_guest(host, domain, Exit::GuestShutdown);
    vm.wait_for(Phase::Stopped, soon()).await.unwrap();
    assert_eq!(vm.get().await.unwrap().run.unwrap().epoch.0, 1);
    let refused = vm.confirm_stopped().await.unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::FailedPrecondition);
    vm.start().await.unwrap().wait(soon()).await.unwrap();
}
