//! VMs whose settings are changed.

use std::time::Duration;

use novacron_core::cluster::{OperationHandle, VmHandle, VmView, VolumeSpec};
use novacron_core::driver::DomainId;
use novacron_core::model::{
    BootDevice, CpuModel, DiskBus, DiskIo, DiskLimits, DiskOptions, DiskSource, Effect,
    FieldChange, Firmware, Hardware, LinkState, NetworkKind, NicLimits, NicModel, NicOptions,
    NicSpec, OperationState, PortId, RestartPolicy, VmSettings,
};
use novacron_core::{Bytes, Cluster, Deadline, ErrorKind, MiB, Phase, VmSpec};

use crate::ground::node;
use crate::{Site, soon, spec};

async fn running(cluster: &Cluster, spec: VmSpec) -> VmHandle {
    let vm = cluster.vms().create(spec).await.unwrap();
    vm.wait_for(Phase::Running, soon()).await.unwrap();
    vm
}

/// Its domain, which has been started.
fn domain_of(view: &VmView, cluster: &Cluster) -> DomainId {
    DomainId {
        cluster: cluster.id(),
        vm: view.vm.id,
        epoch: view.run.as_ref().unwrap().epoch,
    }
}

/// Changes its settings, and waits for the end of that; what the operation says.
async fn update(vm: &VmHandle, change: impl FnOnce(&mut VmSettings)) -> String {
    let mut settings = VmSettings::of(&vm.get().await.unwrap().vm);
    change(&mut settings);
    let operation = vm.update(settings).await.unwrap();
    let ended = operation.wait(soon()).await.unwrap();
    assert_eq!(ended.state, OperationState::Done);
    ended.progress.clone()
}

/// Why it does not run, also after a while.
async fn waits(vm: &VmHandle) -> String {
    let a_while = Deadline::after(Duration::from_secs(10));
    let late = vm.wait_for(Phase::Running, a_while).await;
    late.unwrap_err().to_string()
}

async fn restart(vm: &VmHandle) {
    vm.stop().await.unwrap().wait(soon()).await.unwrap();
    vm.start().await.unwrap().wait(soon()).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_guest_that_runs_keeps_its_hardware_until_the_next_start() {
    let mut site = Site::new(1);
    let cluster = site.start().await;
    let vm = running(&cluster, spec("web")).await;
    let before = vm.get().await.unwrap();
    let said = update(&vm, |settings| {
        settings.hardware = Hardware::new(4, MiB(2048));
    })
    .await;
    assert_eq!(said, "hardware.vcpus, hardware.memory: with the next start");
    let view = vm.get().await.unwrap();
    assert_eq!(view.machine, before.machine);
    assert_eq!(
        view.run,
        Some(novacron_core::model::Run {
            generation: view.vm.meta.generation,
            ..before.run.unwrap()
        })
    );
    let pending = ["hardware.vcpus", "hardware.memory"].map(|field| FieldChange {
        field: field.to_owned(),
        effect: Effect::Restart,
    });
    assert_eq!(view.pending(), pending);
    restart(&vm).await;
    let view = vm.get().await.unwrap();
    assert_eq!(
        view.machine.as_ref().unwrap().hardware,
        Hardware::new(4, MiB(2048))
    );
    assert_eq!(view.pending(), []);
    // It stays so over a restart of the process.
    drop((vm, cluster));
    let cluster = site.start().await;
    let again = cluster.vms().by_id(view.vm.id).get().await.unwrap();
    assert_eq!(again.machine, view.machine);
}

#[tokio::test(start_paused = true)]
async fn room_is_counted_by_what_runs_and_given_by_what_is_asked_for() {
    let mut site = Site::new(1);
    let cluster = site.start().await;
    let large = running(&cluster, spec("large").memory(MiB(60 * 1024))).await;
    update(&large, |settings| settings.hardware.memory = MiB(1024)).await;
    // It still has what it was started with.
    let other = spec("other").memory(MiB(30 * 1024));
    let other = cluster.vms().create(other).await.unwrap();
    assert!(waits(&other).await.contains("too little memory"));
    restart(&large).await;
    other.wait_for(Phase::Running, soon()).await.unwrap();
    // And a start that finds no room waits for it, instead of being what it was before.
    update(&large, |settings| settings.hardware.memory = MiB(60 * 1024)).await;
    large.stop().await.unwrap().wait(soon()).await.unwrap();
    large.start().await.unwrap();
    assert!(waits(&large).await.contains("too little memory"));
    update(&large, |settings| settings.hardware.memory = MiB(2048)).await;
    large.wait_for(Phase::Running, soon()).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn what_no_start_can_give_is_refused_with_everything_that_is_wrong() {
    let cluster = Site::new(1).start().await;
    let vm = running(&cluster, spec("web")).await;
    let before = vm.get().await.unwrap().vm;
    let mut settings = VmSettings::of(&before);
    settings.hardware.firmware = Firmware::Uefi;
    settings.hardware.vcpus = 0;
    settings.node = Some(node(7));
    settings.anti_affinity = Some("a/b".to_owned());
    let refused = vm.update(settings).await.unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::Invalid);
    let fields: Vec<_> = refused
        .problems()
        .iter()
        .map(|p| p.field.as_str())
        .collect();
    let wanted = [
        "hardware.vcpus",
        "anti_affinity",
        "hardware.firmware",
        "node",
    ];
    assert_eq!(fields, wanted);
    assert_eq!(vm.get().await.unwrap().vm, before);
}

#[tokio::test(start_paused = true)]
async fn other_settings_are_in_effect_at_once() {
    let cluster = Site::new(1).start().await;
    let vm = running(&cluster, spec("web").delete_protection(true)).await;
    let refused = vm.delete().await.unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::FailedPrecondition);
    assert!(
        refused.to_string().contains("delete protection"),
        "{refused}"
    );
    update(&vm, |settings| {
        settings.restart = RestartPolicy::Always;
        settings.priority = 3;
        settings.hardware.cpu.model = CpuModel::Baseline;
        settings.delete_protection = false;
    })
    .await;
    let changed = vm.get().await.unwrap().vm.value;
    assert_eq!(
        (changed.restart, changed.priority),
        (RestartPolicy::Always, 3)
    );
    let haswell = CpuModel::Named("Haswell".to_owned());
    assert_eq!(changed.machine.hardware.cpu.model, haswell);
    vm.delete().await.unwrap().wait(soon()).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn limits_of_a_disk_are_live_and_its_bus_waits() {
    let mut site = Site::new(1);
    let cluster = site.start().await;
    let vm = running(&cluster, spec("web")).await;
    let has = async || {
        let view = vm.get().await.unwrap();
        let id = domain_of(&view, &cluster);
        let volume = view.vm.machine.disks[0].volume;
        let host = site.world.hosts()[0];
        (
            site.world.disk_limits(host, id, volume).unwrap(),
            view.pending(),
        )
    };
    assert_eq!(has().await, (DiskLimits::default(), vec![]));
    let limits = DiskLimits {
        iops: Some(500),
        ..DiskLimits::default()
    };
    let options = DiskOptions {
        bus: DiskBus::Scsi,
        limits,
        ..DiskOptions::default()
    };
    let set = vm.set_disk("root", options.clone()).await.unwrap();
    let ended = set.wait(soon()).await.unwrap();
    assert_eq!(ended.progress, "disks[root].bus: with the next start");
    let waiting = FieldChange {
        field: "disks[root].bus".to_owned(),
        effect: Effect::Restart,
    };
    assert_eq!(has().await, (limits, vec![waiting]));
    restart(&vm).await;
    assert_eq!(has().await, (limits, vec![]));
    let unlimited = vm.set_disk(
        "root",
        DiskOptions {
            limits: DiskLimits::default(),
            ..options
        },
    );
    unlimited.await.unwrap().wait(soon()).await.unwrap();
    assert_eq!(has().await.0, DiskLimits::default());
    let none = vm
        .set_disk("data", DiskOptions::default())
        .await
        .unwrap_err();
    assert_eq!(none.kind(), ErrorKind::NotFound);
    let wrong = DiskOptions {
        io: DiskIo::Native,
        ..DiskOptions::default()
    };
    let refused = vm.set_disk("root", wrong).await.unwrap_err();
    assert_eq!(refused.problems()[0].field, "options.io");
}

#[tokio::test(start_paused = true)]
async fn link_and_limits_of_a_nic_are_live_and_its_model_waits() {
    let mut site = Site::new(1);
    let cluster = site.start().await;
    let bridge = NetworkKind::Bridge {
        bridge: "br0".to_owned(),
    };
    let networks = cluster.networks();
    let lan = networks.create("lan", bridge).await.unwrap().id();
    let nat = networks.create("nat", NetworkKind::User).await.unwrap();
    let vm = running(&cluster, spec("web").nic(NicSpec::new(lan))).await;
    let has = async |n: usize| {
        let view = vm.get().await.unwrap();
        let id = domain_of(&view, &cluster);
        let port = view.vm.machine.nics[n].port;
        let state = site.world.nic_state(site.world.hosts()[0], id, port);
        (port, state.unwrap(), view.pending())
    };
    let limits = NicLimits {
        inbound_bytes_sec: Some(1 << 20),
        ..NicLimits::default()
    };
    let options = NicOptions {
        model: NicModel::E1000e,
        link: LinkState::Down,
        limits,
        ..NicOptions::default()
    };
    let (port, before, _) = has(0).await;
    assert_eq!(before, (LinkState::Up, NicLimits::default()));
    let set = vm.set_nic(port, options.clone()).await.unwrap();
    set.wait(soon()).await.unwrap();
    let waiting = FieldChange {
        field: format!("nics[{port}].model"),
        effect: Effect::Restart,
    };
    let wanted = (LinkState::Down, limits);
    assert_eq!(has(0).await, (port, wanted, vec![waiting]));
    restart(&vm).await;
    assert_eq!(has(0).await, (port, wanted, vec![]));
    let plain = vm.set_nic(port, NicOptions::default()).await.unwrap();
    plain.wait(soon()).await.unwrap();
    assert_eq!(has(0).await.1, before);

    // One that comes while it runs has its options from the start.
    let spec = NicSpec {
        options: options.clone(),
        ..NicSpec::new(lan)
    };
    let attached = vm.attach_nic(spec).await.unwrap();
    attached.wait(soon()).await.unwrap();
    assert_eq!(has(1).await.1, wanted);

    let refused = vm.set_nic(PortId::from_uuid(vm.id().uuid()), options.clone());
    assert_eq!(refused.await.unwrap_err().kind(), ErrorKind::NotFound);
    let wrong = NicOptions {
        queues: 0,
        ..NicOptions::default()
    };
    let refused = vm.set_nic(port, wrong).await.unwrap_err();
    assert_eq!(refused.problems()[0].field, "options.queues");
    let spec = NicSpec {
        options,
        ..NicSpec::new(nat.id())
    };
    let refused = vm.attach_nic(spec).await.unwrap_err();
    assert_eq!(refused.problems()[0].field, "nics[2].options.limits");
}

#[tokio::test(start_paused = true)]
async fn a_disk_that_a_started_vm_cannot_be_given_is_refused() {
    let cluster = Site::new(1).start().await;
    let vm = running(&cluster, spec("web")).await;
    let volume = VolumeSpec::new("more", Bytes::gib(1));
    let volume = cluster.volumes().create(volume).await.unwrap().id();
    let attach = async |bus| {
        let options = DiskOptions {
            bus,
            ..DiskOptions::default()
        };
        vm.attach("more", volume, options).await
    };
    for (bus, why) in [(DiskBus::Sata, "SATA"), (DiskBus::Scsi, "controller")] {
        let refused = attach(bus).await.unwrap_err();
        assert_eq!(refused.problems()[0].field, "options");
        assert!(refused.to_string().contains(why), "{refused}");
    }
    let refused = attach(DiskBus::Cdrom).await.unwrap_err();
    assert_eq!(refused.problems()[0].field, "options.bus");
    vm.stop().await.unwrap().wait(soon()).await.unwrap();
    attach(DiskBus::Sata)
        .await
        .unwrap()
        .wait(soon())
        .await
        .unwrap();
    vm.start().await.unwrap().wait(soon()).await.unwrap();
    assert_eq!(vm.get().await.unwrap().machine.unwrap().disks.len(), 2);
}

/// Media are disks: they are attached and detached, as far as the VM was started with drives for them.
#[tokio::test(start_paused = true)]
async fn media_come_and_go_in_the_drives_that_the_vm_was_started_with() {
    let cluster = Site::new(1).start().await;
    let mut wanted = spec("web");
    wanted.hardware.cdroms = 1;
    let vm = running(&cluster, wanted).await;
    let volume = async |name: &str| {
        let volume = VolumeSpec::new(name, Bytes::gib(1));
        cluster.volumes().create(volume).await.unwrap()
    };
    let (one, two) = (volume("one").await, volume("two").await);
    let medium = || DiskOptions {
        bus: DiskBus::Cdrom,
        ..DiskOptions::default()
    };
    let done = async |operation: OperationHandle| operation.wait(soon()).await.unwrap();
    done(vm.attach("cd", one.id(), medium()).await.unwrap()).await;

    // A second drive is there with the next start.
    let refused = vm.attach("cd-2", two.id(), medium()).await.unwrap_err();
    assert_eq!(refused.problems()[0].field, "options.bus", "{refused}");
    let mut settings = VmSettings::of(&vm.get().await.unwrap().vm);
    settings.hardware.cdroms = 2;
    done(vm.update(settings.clone()).await.unwrap()).await;
    let refused = vm.attach("cd-2", two.id(), medium()).await.unwrap_err();
    assert_eq!(refused.problems()[0].field, "options", "{refused}");
    assert!(
        refused.to_string().contains("each has a medium"),
        "{refused}"
    );

    let snapshots = cluster.snapshots();
    let refused = snapshots.create("of-a-medium", one.id()).await.unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::FailedPrecondition, "{refused}");
    let refused = one.grow(Bytes::gib(2)).await.unwrap_err();
    assert_eq!(refused.problems()[0].field, "size", "{refused}");

    // It stays in its drive until the next start, whatever it is to be then.
    let otherwise = vm.set_disk("cd", DiskOptions::default()).await.unwrap();
    done(otherwise).await;
    let refused = snapshots.create("of-a-medium", one.id()).await.unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::FailedPrecondition, "{refused}");
    let refused = vm.attach("cd-2", two.id(), medium()).await.unwrap_err();
    assert_eq!(refused.problems()[0].field, "options", "{refused}");
    done(vm.detach("cd").await.unwrap()).await;
    done(vm.attach("cd-2", two.id(), medium()).await.unwrap()).await;
    let disks = vm.get().await.unwrap().machine.unwrap().disks;
    assert_eq!(disks.last().unwrap().volume, two.id());

    settings.hardware.cdroms = 0;
    let refused = vm.update(settings).await.unwrap_err();
    assert_eq!(refused.problems()[0].field, "disks", "{refused}");
    snapshots.create("free", one.id()).await.unwrap();
}

/// A VM without a disk boots from its network, if it has one.
#[tokio::test(start_paused = true)]
async fn a_vm_boots_from_a_network_that_it_has() {
    let cluster = Site::new(1).start().await;
    let networks = cluster.networks();
    let nat = networks.create("nat", NetworkKind::User).await.unwrap();
    let mut wanted = VmSpec::new("web");
    wanted.hardware.boot_order = vec![BootDevice::Network];
    let refused = cluster.vms().create(wanted.clone()).await.unwrap_err();
    assert_eq!(refused.problems()[0].field, "disks", "{refused}");
    running(&cluster, wanted.nic(NicSpec::new(nat.id()))).await;
}

/// What else was asked for is done while a guest keeps a medium.
#[tokio::test(start_paused = true)]
async fn a_locked_door_keeps_no_other_device_away() {
    let mut site = Site::new(1);
    let cluster = site.start().await;
    let volume = async |name: &str| {
        let volume = VolumeSpec::new(name, Bytes::gib(1));
        cluster.volumes().create(volume).await.unwrap().id()
    };
    let (medium, data) = (volume("medium").await, volume("data").await);
    let mut wanted = spec("web").cdrom("cd", "none");
    wanted.disks.last_mut().unwrap().source = DiskSource::Volume { volume: medium };
    let vm = running(&cluster, wanted).await;
    site.world.lock_doors(true);
    let ejected = vm.detach("cd").await.unwrap();
    let attached = vm.attach("data", data, DiskOptions::default()).await;
    let attached = attached.unwrap();
    attached.wait(soon()).await.unwrap_err();
    let id = domain_of(&vm.get().await.unwrap(), &cluster);
    let has = |volume| {
        site.world
            .disk_limits(site.world.hosts()[0], id, volume)
            .is_some()
    };
    assert!(has(medium) && has(data));
    site.world.lock_doors(false);
    ejected.wait(soon()).await.unwrap();
    attached.wait(soon()).await.unwrap();
    assert!(!has(medium) && has(data));
}
