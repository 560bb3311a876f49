//! What a machine is made of.

use super::{HypervisorFixture, Subject};
use crate::ErrorKind;
use crate::driver::{DiskAttachment, DomainSpec, DomainState};
use crate::model::{
    BootDevice, Capability, ClockOffset, Cpu, CpuModel, CpuTopology, Discard, DiskBus, DiskCache,
    DiskIo, DiskLimits, DiskOptions, Firmware, Hardware, LinkState, NicLimits, NicModel,
    PortBinding, Tpm, WatchdogAction, newest_cpu_model,
};

/// Hardware that no host can have is refused with its fields, and nothing is defined.
pub async fn hardware_that_cannot_be_is_refused_before_anything_is_made(
    fixture: &dyn HypervisorFixture,
) {
    let s = Subject::open(fixture).await;
    let mut spec = fixture.spec(s.fresh()).await;
    spec.hardware.cpu = Cpu {
        model: CpuModel::Named("qemu64,+vmx".to_owned()),
        features: [("</feature>".to_owned(), true)].into(),
        hyperv: false,
        topology: Some(CpuTopology {
            sockets: spec.hardware.vcpus,
            cores: 2,
            threads: 1,
        }),
    };
    let refused = s.hypervisor.define(s.call(), &spec).await.unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::Invalid, "{refused}");
    let fields: Vec<_> = refused
        .problems()
        .iter()
        .map(|p| p.field.as_str())
        .collect();
    let wanted = [
        "hardware.cpu.model",
        "hardware.cpu.features[\"</feature>\"]",
        "hardware.cpu.topology",
    ];
    assert_eq!(fields, wanted, "{refused}");
    assert_eq!(s.inspect(spec.id).await, None);
}

/// Hardware that the host does not tell of in its capabilities is refused by its name, and nothing is defined.
pub async fn hardware_that_the_host_lacks_is_refused_before_anything_is_made(
    fixture: &dyn HypervisorFixture,
) {
    let s = Subject::open(fixture).await;
    let can = s.hypervisor.probe(s.call()).await.unwrap().capabilities;
    let spec = fixture.spec(s.fresh()).await;
    let mut lacking: Vec<(&str, DomainSpec)> = Vec::new();
    let mut with = |word, change: &dyn Fn(&mut DomainSpec)| {
        let mut spec = spec.clone();
        change(&mut spec);
        lacking.push((word, spec));
    };
    with("NoSuchModel", &|spec| {
        spec.hardware.cpu.model = CpuModel::Named("NoSuchModel".to_owned());
    });
    with("no-such-feature", &|spec| {
        let features = &mut spec.hardware.cpu.features;
        features.insert("no-such-feature".to_owned(), true);
    });
    let most = can.max_vcpus.to_string();
    if can.max_vcpus < 1024 {
        with(&most, &|spec| spec.hardware.vcpus = can.max_vcpus + 1);
    }
    if !can.can.contains(&Capability::Uefi) {
        with("UEFI", &|spec| spec.hardware.firmware = Firmware::Uefi);
    }
    for (word, spec) in lacking {
        let refused = s.hypervisor.define(s.call(), &spec).await.unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::Unsupported, "{refused}");
        assert!(refused.to_string().contains(word), "{refused}");
        assert_eq!(s.inspect(spec.id).await, None);
    }
}

/// A guest starts on the newest CPU model that the host tells of, less a feature, with its vCPUs as threads of a core.
pub async fn cpu_of_a_named_model_and_topology_starts(fixture: &dyn HypervisorFixture) {
    let s = Subject::open(fixture).await;
    let can = s.hypervisor.probe(s.call()).await.unwrap().capabilities;
    let Some(model) = newest_cpu_model(&*can.cpu_models) else {
        return;
    };
    let mut spec = fixture.spec(s.fresh()).await;
    let features = can.cpu_features.iter().filter(|f| *f == "aes");
    spec.hardware.cpu = Cpu {
        model: CpuModel::Named(model.to_owned()),
        features: features.map(|f| (f.clone(), false)).collect(),
        hyperv: false,
        topology: Some(CpuTopology {
            sockets: 1,
            cores: 1,
            threads: spec.hardware.vcpus,
        }),
    };
    s.define_as(&spec).await;
    s.start(spec.id).await;
    assert_eq!(s.state(spec.id).await, DomainState::Paused);
    s.kill(spec.id).await;
}

/// The buses that not every host has.
const BUSES: [(DiskBus, Capability); 3] = [
    (DiskBus::Scsi, Capability::ScsiDisks),
    (DiskBus::Sata, Capability::SataDisks),
    (DiskBus::Nvme, Capability::NvmeDisks),
];

/// A disk starts on every bus that the host tells of, and is refused by its name on every other; its options with it.
pub async fn disk_starts_on_every_bus_of_the_host(fixture: &dyn HypervisorFixture) {
    let s = Subject::open(fixture).await;
    let can = s.hypervisor.probe(s.call()).await.unwrap().capabilities.can;
    for (bus, capability) in BUSES {
        let mut spec = fixture.spec(s.fresh()).await;
        let mut disk = fixture.disk("more").await;
        disk.options = DiskOptions {
            bus,
            cache: DiskCache::None,
            io: DiskIo::Native,
            discard: Discard::Ignore,
            ..DiskOptions::default()
        };
        spec.disks.push(disk);
        if can.contains(&capability) {
            s.define_as(&spec).await;
            s.start(spec.id).await;
            assert_eq!(s.state(spec.id).await, DomainState::Paused);
            let disks = s.inspect(spec.id).await.unwrap().disks;
            let wanted: Vec<_> = spec.disks.iter().map(|disk| disk.volume).collect();
            assert_eq!(disks, wanted, "{bus:?}");
            s.kill(spec.id).await;
        } else {
            let refused = s.hypervisor.define(s.call(), &spec).await.unwrap_err();
            assert_eq!(refused.kind(), ErrorKind::Unsupported, "{refused}");
            let word = capability.to_string();
            assert!(refused.to_string().contains(&word), "{refused}");
        }
    }
}

/// Options of a disk that do not go together are refused with their fields.
pub async fn disk_options_that_cannot_be_are_refused(fixture: &dyn HypervisorFixture) {
    let s = Subject::open(fixture).await;
    let mut spec = fixture.spec(s.fresh()).await;
    let mut disk = fixture.disk("more").await;
    disk.options.io = DiskIo::Native;
    disk.options.limits.iops = Some(0);
    let at = spec.disks.len();
    spec.disks.push(disk);
    let refused = s.hypervisor.define(s.call(), &spec).await.unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::Invalid, "{refused}");
    let fields: Vec<_> = refused.problems().iter().map(|p| p.field.clone()).collect();
    let wanted = ["io", "limits"].map(|field| format!("disks[{at}].options.{field}"));
    assert_eq!(fields, wanted, "{refused}");
    assert_eq!(s.inspect(spec.id).await, None);
}

/// A domain starts with limits of its disk, which are set anew, again and away while it runs, also for a disk that was
/// attached later.
pub async fn disk_limits_are_set_while_it_runs(fixture: &dyn HypervisorFixture) {
    let s = Subject::open(fixture).await;
    let can = s.hypervisor.probe(s.call()).await.unwrap().capabilities.can;
    let Some(plug) = s
        .hot_plug()
        .filter(|_| can.contains(&Capability::DiskLimits))
    else {
        return;
    };
    let mut spec = fixture.spec(s.fresh()).await;
    let limits = DiskLimits {
        bytes_sec: Some(1 << 20),
        read_iops: Some(100),
        ..DiskLimits::default()
    };
    spec.disks[0].options.limits = limits;
    s.define_as(&spec).await;
    s.start(spec.id).await;
    s.resume(spec.id).await;
    fixture.booted(spec.id).await;
    let mut more = fixture.disk("more").await;
    more.options.limits = limits;
    plug.attach_disk(s.call(), spec.id, &more).await.unwrap();
    let other = DiskLimits {
        write_bytes_sec: Some(2 << 20),
        ..DiskLimits::default()
    };
    for volume in [spec.disks[0].volume, more.volume] {
        for limits in [other, other, DiskLimits::default()] {
            let set = plug.set_disk_limits(s.call(), spec.id, volume, &limits);
            set.await.unwrap();
        }
    }
    plug.detach_disk(s.call(), spec.id, more.volume)
        .await
        .unwrap();
    let set = plug.set_disk_limits(s.call(), spec.id, more.volume, &limits);
    let refused = set.await.unwrap_err().kind();
    let kinds = [ErrorKind::NotFound, ErrorKind::FailedPrecondition];
    assert!(kinds.contains(&refused), "{refused:?}");
    assert_eq!(s.state(spec.id).await, DomainState::Running);
}

/// A domain starts with CD-ROM drives, whose media are put in and taken out while it is in memory; for one more than there are
/// drives there is no room, and for a SATA disk there is none.
pub async fn medium_is_put_into_a_drive_and_taken_out(fixture: &dyn HypervisorFixture) {
    let s = Subject::open(fixture).await;
    let can = s.hypervisor.probe(s.call()).await.unwrap().capabilities.can;
    let mut spec = fixture.spec(s.fresh()).await;
    spec.hardware.cdroms = 2;
    spec.hardware.boot_order = vec![BootDevice::Network, BootDevice::Cdrom, BootDevice::Disk];
    let mut media = Vec::new();
    for name in ["one", "two", "three"] {
        let mut medium = fixture.disk(name).await;
        medium.options.bus = DiskBus::Cdrom;
        media.push(medium);
    }
    let disks: Vec<_> = spec.disks.iter().map(|disk| disk.volume).collect();
    spec.disks.push(media[0].clone());
    if !can.contains(&Capability::SataDisks) {
        let refused = s.hypervisor.define(s.call(), &spec).await.unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::Unsupported, "{refused}");
        return;
    }
    s.define_as(&spec).await;
    s.start(spec.id).await;
    let present = async |media: &[&DiskAttachment]| {
        let mut wanted: Vec<_> = media.iter().map(|medium| medium.volume).collect();
        wanted.splice(0..0, disks.iter().copied());
        assert_eq!(s.inspect(spec.id).await.unwrap().disks, wanted);
    };
    let [one, two, three] = [&media[0], &media[1], &media[2]];
    present(&[one]).await;
    let Some(plug) = s.hot_plug() else { return };
    for _ in 0..2 {
        plug.attach_disk(s.call(), spec.id, two).await.unwrap();
        present(&[one, two]).await;
    }
    let refused = plug.attach_disk(s.call(), spec.id, three).await;
    let refused = refused.unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::FailedPrecondition, "{refused}");
    for _ in 0..2 {
        let detach = plug.detach_disk(s.call(), spec.id, one.volume);
        detach.await.unwrap();
        present(&[two]).await;
    }
    let mut sata = three.clone();
    sata.options.bus = DiskBus::Sata;
    let refused = plug.attach_disk(s.call(), spec.id, &sata).await;
    let refused = refused.unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::Unsupported, "{refused}");
    plug.attach_disk(s.call(), spec.id, three).await.unwrap();
    let disks = s.inspect(spec.id).await.unwrap().disks;
    assert!(disks.contains(&three.volume), "{disks:?}");
    s.kill(spec.id).await;
}

/// A domain starts with every NIC that the host tells of, and is refused those that it has not; what cannot be is refused
/// with its fields.
pub async fn nics_start_as_far_as_the_host_has_them(fixture: &dyn HypervisorFixture) {
    let s = Subject::open(fixture).await;
    let can = s.hypervisor.probe(s.call()).await.unwrap().capabilities.can;
    let mut spec = fixture.spec(s.fresh()).await;
    let mut nic = fixture.nic().await;
    nic.options.model = NicModel::E1000e;
    spec.nics.push(nic);
    if can.contains(&Capability::E1000eNics) {
        s.define_as(&spec).await;
        s.start(spec.id).await;
        let nics = s.inspect(spec.id).await.unwrap().nics;
        let wanted: Vec<_> = spec.nics.iter().map(|nic| nic.port).collect();
        assert_eq!(nics, wanted);
        s.kill(spec.id).await;
    } else {
        let refused = s.hypervisor.define(s.call(), &spec).await.unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::Unsupported, "{refused}");
        let word = Capability::E1000eNics.to_string();
        assert!(refused.to_string().contains(&word), "{refused}");
    }
    let mut spec = fixture.spec(s.fresh()).await;
    let mut nic = fixture.nic().await;
    nic.binding = PortBinding::User;
    nic.options.limits.inbound_bytes_sec = Some(1 << 20);
    nic.options.queues = 0;
    let at = spec.nics.len();
    spec.nics.push(nic);
    let refused = s.hypervisor.define(s.call(), &spec).await.unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::Invalid, "{refused}");
    let fields: Vec<_> = refused.problems().iter().map(|p| p.field.clone()).collect();
    let wanted = ["queues", "limits"].map(|field| format!("nics[{at}].options.{field}"));
    assert_eq!(fields, wanted, "{refused}");
    assert_eq!(s.inspect(spec.id).await, None);
}

/// A NIC's link is pulled and plugged in while the domain runs, also of one that was attached later without.
pub async fn link_is_set_while_it_runs(fixture: &dyn HypervisorFixture) {
    let s = Subject::open(fixture).await;
    let Some(plug) = s.hot_plug() else { return };
    let mut spec = fixture.spec(s.fresh()).await;
    let first = fixture.nic().await;
    spec.nics.push(first.clone());
    s.define_as(&spec).await;
    s.start(spec.id).await;
    s.resume(spec.id).await;
    fixture.booted(spec.id).await;
    let mut more = fixture.nic().await;
    more.options.link = LinkState::Down;
    plug.attach_nic(s.call(), spec.id, &more).await.unwrap();
    let none = NicLimits::default();
    for port in [first.port, more.port] {
        for link in [LinkState::Down, LinkState::Down, LinkState::Up] {
            let set = plug.set_nic(s.call(), spec.id, port, link, &none);
            set.await.unwrap();
        }
    }
    plug.detach_nic(s.call(), spec.id, more.port).await.unwrap();
    let set = plug.set_nic(s.call(), spec.id, more.port, LinkState::Up, &none);
    let refused = set.await.unwrap_err().kind();
    let kinds = [ErrorKind::NotFound, ErrorKind::FailedPrecondition];
    assert!(kinds.contains(&refused), "{refused:?}");
    assert_eq!(s.state(spec.id).await, DomainState::Running);
}

/// The rest of a machine's hardware that not every host has.
type Change = fn(&mut Hardware);
const OTHERS: [(Capability, Change); 8] = [
    (Capability::Tablet, |hardware| hardware.tablet = true),
    (Capability::IoThreads, |hardware| hardware.io_threads = 2),
    (Capability::HyperV, |hardware| hardware.cpu.hyperv = true),
    (Capability::HugePages, |hardware| {
        hardware.memory_backing.hugepages = true;
    }),
    (Capability::LockedMemory, |hardware| {
        hardware.memory_backing.locked = true;
    }),
    (Capability::SharedMemory, |hardware| {
        hardware.memory_backing.shared = true;
    }),
    (Capability::Watchdog, |hardware| {
        hardware.watchdog = Some(WatchdogAction::InjectNmi);
    }),
    (Capability::Tpm, |hardware| {
        hardware.tpm = Some(Tpm::default());
    }),
];

/// A machine of everything that the host tells of starts, and each thing that it does not is refused by its name.
pub async fn hardware_starts_as_far_as_the_host_has_it(fixture: &dyn HypervisorFixture) {
    let s = Subject::open(fixture).await;
    let can = s.hypervisor.probe(s.call()).await.unwrap().capabilities.can;
    let spec = fixture.spec(s.fresh()).await;
    let mut all = spec.clone();
    all.hardware.clock = ClockOffset::LocalTime;
    all.hardware.smbios.serial = Some("a, \"b\" <c>".to_owned());
    for (capability, change) in OTHERS {
        if can.contains(&capability) {
            // Whether enough of them are free is another question.
            if capability != Capability::HugePages {
                change(&mut all.hardware);
            }
            continue;
        }
        let mut spec = spec.clone();
        change(&mut spec.hardware);
        let refused = s.hypervisor.define(s.call(), &spec).await.unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::Unsupported, "{refused}");
        let word = capability.to_string();
        assert!(refused.to_string().contains(&word), "{refused}");
    }
    s.define_as(&all).await;
    s.start(all.id).await;
    assert_eq!(s.state(all.id).await, DomainState::Paused);
    s.kill(all.id).await;
}
