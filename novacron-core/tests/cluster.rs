//! The control loop from the outside, on simulated drivers and a paused clock.

#![allow(
    clippy::unwrap_used,
    unreachable_pub,
    missing_docs,
    reason = "a test program: a panic is its way to fail"
)]
#![cfg(feature = "sim")]

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use novacron_core::cluster::{ListRequest, VolumeSpec};
use novacron_core::driver::{AttachRequest, AttachmentSource, Call, StorageBackend};
use novacron_core::model::{
    DiskSource, Epoch, Exit, NetworkKind, NicSpec, NodeId, PoolId, Power, VmId, VolumeId,
};
use novacron_core::sim::{SimHypervisor, SimNetwork, SimStorage, SimWorld};
use novacron_core::store::MemoryStore;
use novacron_core::{
    Bytes, Cluster, Deadline, ErrorKind, MiB, Phase, RequestOptions, SeededIds, TimerClock,
    Timestamp, VmSpec,
};

struct Site {
    world: SimWorld,
    store: MemoryStore,
    clock: TimerClock,
    seed: u64,
}

impl Site {
    fn new(hosts: usize) -> Self {
        let world = SimWorld::new(1);
        for _ in 0..hosts {
            world.add_host(16, MiB(64 * 1024));
        }
        world.add_pool(PoolId::new("shared").unwrap(), Bytes::gib(1000));
        let clock = TimerClock::starting_at(Timestamp::from_millis(1_700_000_000_000));
        Self {
            world,
            store: MemoryStore::new(Arc::new(clock)),
            clock,
            seed: 0,
        }
    }

    /// The file that the volume's writes go to now.
    async fn layer(&self, volume: VolumeId) -> PathBuf {
        let storage = SimStorage::new(&self.world, PoolId::new("shared").unwrap());
        let request = AttachRequest {
            node: NodeId::new("node-0").unwrap(),
            vm: VmId::from_uuid(volume.uuid()),
            epoch: Epoch(1),
        };
        let call = Call::within(Duration::from_secs(5));
        let attachment = storage.attach(call, volume, &request).await.unwrap();
        storage.detach(call, volume, &request).await.unwrap();
        match attachment.source {
            AttachmentSource::File(path) => path,
            other => panic!("not a file: {other:?}"),
        }
    }

    async fn start(&mut self) -> Cluster {
        self.seed += 1;
        let mut builder = Cluster::builder("test")
            .store(self.store.clone())
            .clock(self.clock)
            .ids(SeededIds::from_seed(self.seed))
            .storage(
                "shared",
                SimStorage::new(&self.world, PoolId::new("shared").unwrap()),
            );
        for (i, host) in self.world.hosts().into_iter().enumerate() {
            let name = format!("node-{i}");
            builder = builder
                .node(name.clone(), SimHypervisor::new(&self.world, host))
                .network(name, SimNetwork::new(&self.world, host));
        }
        let cluster = builder.build().await.unwrap();
        cluster.nodes().wait_available(soon()).await.unwrap();
        cluster
    }
}

fn soon() -> Deadline {
    Deadline::after(Duration::from_secs(120))
}

fn spec(name: &str) -> VmSpec {
    VmSpec::new(name).disk(
        "root",
        DiskSource::Blank {
            size: Bytes::gib(1),
            pool: None,
        },
    )
}

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
    vm.attach("data", volume.id())
        .await
        .unwrap()
        .wait(soon())
        .await
        .unwrap();
    assert_eq!(site.world.writers(volume.id()).len(), 1);

    let other = cluster.vms().create(spec("other")).await.unwrap();
    let refused = other.attach("data", volume.id()).await.unwrap_err();
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
    vm.restore(volume.id(), snapshot.id())
        .await
        .unwrap()
        .wait(soon())
        .await
        .unwrap();
    assert_eq!(site.world.read(&site.layer(volume.id()).await), Some(7));

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
    let view = second.wait_for(Phase::Pending, soon()).await.unwrap();
    assert!(!view.reason.is_empty());
    big.delete().await.unwrap().wait(soon()).await.unwrap();
    second.wait_for(Phase::Running, soon()).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn ports_are_bound_for_a_start_follow_the_vm_and_are_released() {
    let mut site = Site::new(2);
    let cluster = site.start().await;
    let network = cluster.networks();
    let network = network.create("lan", NetworkKind::User).await.unwrap().id();
    let nic = NicSpec {
        network,
        mac: None,
        forwards: Vec::new(),
    };
    let vm = cluster.vms().create(spec("web").nic(nic)).await.unwrap();
    vm.wait_for(Phase::Running, soon()).await.unwrap();
    let port = vm.get().await.unwrap().vm.machine.nics[0].port;
    let bound = |site: &Site| site.world.artefacts().ports;
    let first = bound(&site);
    assert_eq!(first.len(), 1);
    assert_eq!((first[0].1.port, first[0].1.epoch), (port, Epoch(1)));

    vm.stop().await.unwrap().wait(soon()).await.unwrap();
    vm.move_to(NodeId::new("node-1").unwrap())
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
