//! What becomes of VMs, volumes and ports.

use std::time::Duration;

use novacron_core::cluster::{ImageSpec, ListRequest, Verdict, VolumeSpec};
use novacron_core::driver::Call;
use novacron_core::model::{
    DiskOptions, Epoch, Exit, ImageSource, NetworkKind, NicSpec, NodeId, Power,
};
use novacron_core::{Bytes, ErrorKind, MiB, Phase, RequestOptions, VmSpec};

use crate::{Changes, Site, soon, spec};

#[tokio::test(start_paused = true)]
async fn a_vm_is_created_stopped_started_and_deleted() {
    let mut site = Site::new(2);
    let cluster = site.start().await;
    let vm = cluster.vms().create(spec("web-1")).await.unwrap();
    let view = vm.wait_for(Phase::Running, soon()).await.unwrap();
    assert_eq!(site.world.running(vm.id()).len(), 1);
    assert!(
        view.claim
            .unwrap()
            .decision
            .scheduler
            .starts_with("first-fit/")
    );

    vm.stop().await.unwrap().wait(soon()).await.unwrap();
    assert_eq!(vm.get().await.unwrap().phase, Phase::Stopped);
    assert_eq!(site.world.running(vm.id()).len(), 0);

    vm.move_to(NodeId::new("node-1").unwrap())
        .await
        .unwrap()
        .wait(soon())
        .await
        .unwrap();
    vm.start().await.unwrap().wait(soon()).await.unwrap();
    assert_eq!(vm.get().await.unwrap().place.unwrap().to_string(), "node-1");

    vm.pause().await.unwrap().wait(soon()).await.unwrap();
    assert_eq!(site.world.running(vm.id()).len(), 0);
    vm.start().await.unwrap().wait(soon()).await.unwrap();

    vm.delete().await.unwrap().wait(soon()).await.unwrap();
    assert_eq!(vm.get().await.unwrap_err().kind(), ErrorKind::NotFound);
    let left = site.world.artefacts();
    assert!(
        left.domains.is_empty() && left.volumes.is_empty(),
        "{left:?}"
    );
    assert!(site.world.violations().is_empty());
}

#[tokio::test(start_paused = true)]
async fn volumes_are_attached_snapshotted_restored_and_detached() {
    let mut site = Site::new(1);
    let cluster = site.start().await;
    let vm = cluster.vms().create(spec("db")).await.unwrap();
    vm.wait_for(Phase::Running, soon()).await.unwrap();
    let volume = cluster
        .volumes()
        .create(VolumeSpec::new("data", Bytes::gib(2)))
        .await
        .unwrap();
    volume.operation().unwrap().wait(soon()).await.unwrap();
    vm.attach("data", volume.id(), DiskOptions::default())
        .await
        .unwrap()
        .wait(soon())
        .await
        .unwrap();
    assert_eq!(site.world.writers(volume.id()).len(), 1);

    let other = cluster.vms().create(spec("other")).await.unwrap();
    let refused = other
        .attach("data", volume.id(), DiskOptions::default())
        .await
        .unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::Invalid);
    assert!(refused.message().contains("is attached to VM"), "{refused}");

    assert!(site.world.write(&site.layer(volume.id()).await, 7));
    let snapshot = cluster
        .snapshots()
        .create("before", volume.id())
        .await
        .unwrap();
    snapshot.operation().unwrap().wait(soon()).await.unwrap();
    assert!(site.world.write(&site.layer(volume.id()).await, 9));

    let in_use = vm
        .restore(volume.id(), snapshot.id())
        .await
        .unwrap()
        .wait(soon())
        .await
        .unwrap_err();
    assert!(in_use.message().contains("stop the VM first"), "{in_use}");
    vm.stop().await.unwrap().wait(soon()).await.unwrap();
    let generation = async || vm.get().await.unwrap().vm.machine.generation_id;
    let before = generation().await;
    vm.restore(volume.id(), snapshot.id())
        .await
        .unwrap()
        .wait(soon())
        .await
        .unwrap();
    assert_eq!(site.world.read(&site.layer(volume.id()).await), Some(7));
    let restored = generation().await;
    assert_ne!(restored, before);

    volume
        .grow(Bytes::gib(3))
        .await
        .unwrap()
        .wait(soon())
        .await
        .unwrap();
    vm.start().await.unwrap().wait(soon()).await.unwrap();
    volume
        .grow(Bytes::gib(4))
        .await
        .unwrap()
        .wait(soon())
        .await
        .unwrap();
    vm.detach("data").await.unwrap().wait(soon()).await.unwrap();
    volume.delete().await.unwrap().wait(soon()).await.unwrap();
    assert!(site.world.writers(volume.id()).is_empty());
}

#[tokio::test(start_paused = true)]
async fn guests_outlive_the_process_and_are_adopted() {
    let mut site = Site::new(2);
    let cluster = site.start().await;
    let vm = cluster.vms().create(spec("web-1")).await.unwrap();
    vm.wait_for(Phase::Running, soon()).await.unwrap();
    let before = site.world.running(vm.id());
    drop((cluster, vm));
    let cluster = site.start().await;
    let vm = cluster.vms().by_name("web-1").await.unwrap();
    vm.wait_for(Phase::Running, soon()).await.unwrap();
    assert_eq!(
        site.world.running(vm.id()),
        before,
        "the same domain, not a new one"
    );
}

#[tokio::test(start_paused = true)]
async fn a_failure_is_restarted_and_a_poweroff_is_not() {
    let mut site = Site::new(1);
    let cluster = site.start().await;
    let vm = cluster.vms().create(spec("web-1")).await.unwrap();
    vm.wait_for(Phase::Running, soon()).await.unwrap();
    let detail = || "test".to_owned();
    for failure in [
        Exit::Crashed { detail: detail() },
        Exit::Terminated { detail: detail() },
        Exit::Panicked,
    ] {
        let (host, first) = site.world.running(vm.id())[0];
        assert!(site.world.end_guest(host, first, failure));
        vm.wait_for(Phase::Pending, soon()).await.unwrap();
        vm.wait_for(Phase::Running, soon()).await.unwrap();
        let (_, second) = site.world.running(vm.id())[0];
        assert!(second.epoch > first.epoch);
    }
    let (host, last) = site.world.running(vm.id())[0];
    assert!(site.world.end_guest(host, last, Exit::GuestShutdown));
    vm.wait_for(Phase::Stopped, soon()).await.unwrap();
    vm.start().await.unwrap().wait(soon()).await.unwrap();
    assert_eq!(vm.get().await.unwrap().phase, Phase::Running);
}

#[tokio::test(start_paused = true)]
async fn one_door_idempotency_versions_dry_runs_and_names() {
    let mut site = Site::new(1);
    let cluster = site.start().await;
    let keyed = cluster.with(RequestOptions {
        idempotency_key: Some("k1".to_owned()),
        ..RequestOptions::default()
    });
    let first = keyed
        .vms()
        .create(spec("a").power(Power::Off))
        .await
        .unwrap();
    let again = keyed
        .vms()
        .create(spec("a").power(Power::Off))
        .await
        .unwrap();
    assert_eq!(first.id(), again.id());
    let other = keyed.vms().create(spec("b")).await.unwrap_err();
    assert_eq!(other.kind(), ErrorKind::Invalid);
    let taken = cluster.vms().create(spec("a")).await.unwrap_err();
    assert_eq!(taken.kind(), ErrorKind::AlreadyExists, "{taken}");
    let first = cluster.vms().by_id(first.id());
    first.wait_for(Phase::Stopped, soon()).await.unwrap();

    let old = first.get().await.unwrap().vm.version;
    first.start().await.unwrap().wait(soon()).await.unwrap();
    let expects = cluster.with(RequestOptions {
        expected_version: Some(old),
        ..RequestOptions::default()
    });
    let conflict = expects.vms().by_id(first.id()).stop().await.unwrap_err();
    assert_eq!(conflict.kind(), ErrorKind::Conflict);

    let dry = cluster.with(RequestOptions {
        dry_run: true,
        ..RequestOptions::default()
    });
    dry.vms().create(spec("c")).await.unwrap();
    assert_eq!(
        cluster
            .vms()
            .list(&ListRequest::new())
            .await
            .unwrap()
            .items
            .len(),
        1
    );
    let refused = dry
        .vms()
        .create(VmSpec::new("../c").vcpus(0))
        .await
        .unwrap_err();
    assert!(refused.problems().len() >= 3, "{:?}", refused.problems());
}

#[tokio::test(start_paused = true)]
async fn what_does_not_fit_waits_and_says_why() {
    let mut site = Site::new(1);
    let cluster = site.start().await;
    let big = cluster
        .vms()
        .create(spec("big").memory(MiB(60 * 1024)))
        .await
        .unwrap();
    big.wait_for(Phase::Running, soon()).await.unwrap();
    let second = cluster
        .vms()
        .create(spec("second").memory(MiB(60 * 1024)))
        .await
        .unwrap();
    second.wait_for(Phase::Pending, soon()).await.unwrap();
    // The third comes after the second in the queue, so the second has been tried when the third is there.
    let third = spec("third").memory(MiB(1024));
    let third = cluster.vms().create(third).await.unwrap();
    third.wait_for(Phase::Running, soon()).await.unwrap();
    let view = second.get().await.unwrap();
    assert_eq!(
        view.reason,
        "no place: 1 node(s) have too little memory left"
    );
    let waited = second.wait_for(Phase::Running, soon()).await.unwrap_err();
    assert_eq!(waited.kind(), ErrorKind::DeadlineExceeded);
    let last = "last: pending: no place: 1 node(s) have too little memory left;";
    assert!(waited.message().contains(last), "{waited}");
    let explained = second.explain().await.unwrap();
    assert_eq!(explained.decision, None);
    assert_eq!(
        explained.verdicts[&NodeId::new("node-0").unwrap()],
        Verdict::TurnedDown("have too little memory left".to_owned())
    );
    // What a VM takes up itself does not stand in its own way.
    let explained = big.explain().await.unwrap();
    assert!(explained.decision.is_some());
    let verdicts: Vec<_> = explained.verdicts.into_values().collect();
    assert_eq!(verdicts, [Verdict::Fits]);
    big.delete().await.unwrap().wait(soon()).await.unwrap();
    second.wait_for(Phase::Running, soon()).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn ports_are_bound_for_a_start_follow_the_vm_and_are_released() {
    let mut site = Site::new(2);
    let cluster = site.start().await;
    let network = cluster.networks();
    let network = network.create("lan", NetworkKind::User).await.unwrap();
    let nic = NicSpec::new(network.id());
    let vm = cluster.vms().create(spec("web").nic(nic)).await.unwrap();
    vm.wait_for(Phase::Running, soon()).await.unwrap();
    let port = vm.get().await.unwrap().vm.machine.nics[0].port;
    let bound = |site: &Site| site.world.artefacts().ports;
    let first = bound(&site);
    assert_eq!(first.len(), 1);
    assert_eq!((first[0].1.port, first[0].1.epoch), (port, Epoch(1)));

    vm.stop().await.unwrap().wait(soon()).await.unwrap();
    let there = match vm.get().await.unwrap().place.unwrap().to_string().as_str() {
        "node-0" => "node-1",
        _ => "node-0",
    };
    vm.move_to(NodeId::new(there).unwrap())
        .await
        .unwrap()
        .wait(soon())
        .await
        .unwrap();
    vm.start().await.unwrap().wait(soon()).await.unwrap();
    let second = bound(&site);
    assert_eq!(second.len(), 1, "{second:?}");
    assert_ne!(second[0].0, first[0].0);
    assert_eq!(second[0].1.epoch, Epoch(2));

    vm.delete().await.unwrap().wait(soon()).await.unwrap();
    assert!(bound(&site).is_empty());
    assert!(site.world.violations().is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_nic_is_attached_and_detached_while_its_vm_runs() {
    let mut site = Site::new(1);
    let cluster = site.start().await;
    let networks = cluster.networks();
    let network = networks.create("lan", NetworkKind::User).await.unwrap();
    let nic = |mac: Option<&str>| NicSpec {
        mac: mac.map(|mac| mac.parse().unwrap()),
        ..NicSpec::new(network.id())
    };
    let vm = cluster.vms().create(spec("web")).await.unwrap();
    vm.wait_for(Phase::Running, soon()).await.unwrap();
    let mac = Some("52:54:00:00:00:01");
    let attach = vm.attach_nic(nic(mac)).await.unwrap();
    attach.wait(soon()).await.unwrap();
    let bound = site.world.artefacts().ports;
    let port = vm.get().await.unwrap().vm.machine.nics[0].port;
    assert_eq!(bound.len(), 1);
    assert_eq!((bound[0].1.port, bound[0].1.epoch), (port, Epoch(1)));
    assert_eq!(
        vm.stats(Call::within(Duration::from_secs(5)))
            .await
            .unwrap()
            .nics
            .len(),
        1
    );

    let twice = vm.attach_nic(nic(mac)).await.unwrap_err();
    assert_eq!(twice.problems()[0].field, "nics[1].mac", "{twice}");
    let in_use = network.delete().await.unwrap_err();
    assert_eq!(in_use.kind(), ErrorKind::FailedPrecondition);

    let detach = vm.detach_nic(port).await.unwrap();
    detach.wait(soon()).await.unwrap();
    let gone = vm.detach_nic(port).await.unwrap_err();
    assert_eq!(gone.kind(), ErrorKind::NotFound);
    // The port is released after the guest let go of it, and then it goes itself.
    let mut changes = Changes::of(&cluster).await;
    while !site.records("port").await.is_empty() {
        changes.next().await;
    }
    assert!(site.world.artefacts().ports.is_empty());
    network.delete().await.unwrap();
    assert!(site.world.violations().is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_volume_that_another_vm_keeps_holds_up_the_disk_and_nothing_else() {
    let mut site = Site::new(2);
    let cluster = site.start().await;
    let data = VolumeSpec::new("data", Bytes::gib(1));
    let data = cluster.volumes().create(data).await.unwrap();
    let on = |name: &str, node: &str| {
        let mut spec = spec(name);
        spec.node = Some(NodeId::new(node).unwrap());
        spec
    };
    let first = cluster.vms().create(on("first", "node-0")).await.unwrap();
    let second = cluster.vms().create(on("second", "node-1")).await.unwrap();
    second.wait_for(Phase::Running, soon()).await.unwrap();
    let attach = first
        .attach("data", data.id(), DiskOptions::default())
        .await
        .unwrap();
    attach.wait(soon()).await.unwrap();

    let (host, _) = site.world.running(first.id())[0];
    site.world.set_reachable(host, false);
    first.wait_for(Phase::Unknown, soon()).await.unwrap();
    first.detach("data").await.unwrap();
    let waiting = second
        .attach("data", data.id(), DiskOptions::default())
        .await
        .unwrap();
    second.kill().await.unwrap().wait(soon()).await.unwrap();
    let start = second.start().await.unwrap();
    let view = second.wait_for(Phase::Pending, soon()).await.unwrap();
    assert!(view.reason.contains("has not let go"), "{}", view.reason);

    site.world.set_reachable(host, true);
    start.wait(soon()).await.unwrap();
    waiting.wait(soon()).await.unwrap();
    assert_eq!(site.world.writers(data.id()).len(), 1);
    assert!(site.world.violations().is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_vm_whose_volume_failed_says_so_and_cannot_be_explained() {
    let mut site = Site::new(1);
    let cluster = site.start().await;
    let nowhere = ImageSource::File("/nowhere".into());
    let image = ImageSpec::new("none", nowhere);
    cluster.images().create(image).await.unwrap();
    let vm = VmSpec::new("web").image("none");
    let vm = cluster.vms().create(vm).await.unwrap();
    let view = vm.wait_for(Phase::Failed, soon()).await.unwrap();
    assert!(view.reason.contains("disk root failed"), "{}", view.reason);
    let refused = vm.explain().await.unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::FailedPrecondition);
    assert!(refused.message().contains("disk root failed"), "{refused}");
}

#[tokio::test(start_paused = true)]
async fn after_its_shutdown_a_cluster_takes_no_change() {
    let mut site = Site::new(1);
    let cluster = site.start().await;
    cluster.shutdown(soon()).await.unwrap();
    let late = cluster.vms().create(spec("late")).await.unwrap_err();
    assert_eq!(late.kind(), ErrorKind::Cancelled, "{late}");
    let list = cluster.vms().list(&ListRequest::new()).await.unwrap_err();
    assert_eq!(list.kind(), ErrorKind::Cancelled, "{list}");
    assert!(site.records("vm/").await.is_empty());
}
