//! What a guest sees of the hardware that it was asked for, whoever runs it.

use std::time::{Duration, Instant};

use novacron_core::driver::{GuestEvent, Hypervisor, StopMode};
use novacron_core::model::{
    Capability, ClockOffset, Cpu, CpuModel, CpuTopology, DiskBus, DiskCache, DiskIo, DiskLimits,
    DiskOptions, Smbios, WatchdogAction,
};

use crate::common::*;
use crate::initramfs::with_modules;

pub(crate) async fn is_seen(bench: &Bench, hypervisor: &dyn Hypervisor) {
    let can = hypervisor.probe(call()).await.unwrap().capabilities.can;
    let mut spec = bench.guest();
    spec.hardware.vcpus = 2;
    spec.hardware.cpu = Cpu {
        model: CpuModel::Named("Nehalem".to_owned()),
        features: [("sse4.2".to_owned(), false)].into(),
        hyperv: false,
        topology: Some(CpuTopology {
            sockets: 2,
            cores: 1,
            threads: 1,
        }),
    };
    spec.hardware.io_threads = 1;
    spec.hardware.memory_backing.shared = true;
    spec.hardware.memory_backing.locked = can.contains(&Capability::LockedMemory);
    spec.hardware.clock = ClockOffset::LocalTime;
    spec.hardware.smbios = Smbios {
        manufacturer: Some("Shop, Inc.".to_owned()),
        serial: Some("ds=nocloud;h=web-1".to_owned()),
        ..Smbios::default()
    };
    let limits = DiskLimits {
        bytes_sec: Some(1 << 20),
        ..DiskLimits::default()
    };
    let mut slow = bench.disk("slow", "256M");
    slow.options.limits = limits;
    slow.options.cache = DiskCache::None;
    if can.contains(&Capability::IoUring) {
        slow.options.io = DiskIo::IoUring;
    }
    let mut scsi = bench.disk("on-scsi", "8M");
    scsi.options = DiskOptions {
        bus: DiskBus::Scsi,
        read_only: true,
        ..DiskOptions::default()
    };
    spec.disks = vec![slow.clone(), scsi];
    let has_nvme = can.contains(&Capability::NvmeDisks);
    if has_nvme {
        let mut nvme = bench.disk("on-nvme", "8M");
        nvme.options.bus = DiskBus::Nvme;
        spec.disks.push(nvme);
    }
    let (mut shell, _) = boot(hypervisor, &spec).await;

    let cpu = shell.run("grep -m1 'model name' /proc/cpuinfo").await;
    assert!(cpu.contains("Nehalem"), "{cpu}");
    let flags = shell.run("grep -m1 flags /proc/cpuinfo").await;
    assert!(flags.contains(" sse4_1"), "{flags}");
    assert!(!flags.contains(" sse4_2"), "{flags}");
    let sockets = "grep 'physical id' /proc/cpuinfo | sort -u | grep -c .";
    assert_eq!(shell.run(sockets).await, "2");

    let dmi = "cd /sys/class/dmi/id; cat sys_vendor product_serial product_uuid; cd /";
    let uuid = spec.id.vm;
    let wanted = format!("Shop, Inc.\nds=nocloud;h=web-1\n{uuid}");
    assert_eq!(shell.run(dmi).await, wanted);

    let generation = "ls -d /sys/bus/acpi/devices/QEMUVGID* | grep -c .";
    assert_eq!(shell.run(generation).await, "1");

    let serial = shell.run("cat /sys/block/vda/serial").await;
    assert_eq!(serial, "slow");
    let scsi = "grep -c on-scsi /sys/block/sda/device/vpd_pg80; cat /sys/block/sda/ro";
    assert_eq!(shell.run(scsi).await, "1\n1");
    if has_nvme {
        let serial = shell.run("cat /sys/block/nvme0n1/device/serial").await;
        assert_eq!(serial, "on-nvme");
    }

    // It is asked every few seconds.
    let told = async {
        loop {
            let stats = hypervisor.stats(call(), spec.id).await.unwrap();
            if let Some(memory) = stats.guest_memory {
                break memory;
            }
            shell.run("true").await;
        }
    };
    let memory = tokio::time::timeout(SOON, told).await.unwrap();
    let kib: u64 = shell
        .run("sed -n 's/MemTotal: *\\([0-9]*\\).*/\\1/p' /proc/meminfo")
        .await
        .parse()
        .unwrap();
    assert_eq!(memory.total.0, kib * 1024);
    assert!(
        memory.usable.0 > memory.unused.0 / 2 && memory.usable < memory.total,
        "{memory:?}"
    );

    // A mebibyte a second: three take at least two seconds, whatever was saved up before.
    let read = "dd if=/dev/vda of=/dev/null bs=64k 2>/dev/null";
    let before = Instant::now();
    shell.run(&format!("{read} count=48")).await;
    let took = before.elapsed();
    assert!(took >= Duration::from_secs(2), "{took:?}");
    let plug = hypervisor.hot_plug().unwrap();
    let free = DiskLimits::default();
    let set = plug.set_disk_limits(call(), spec.id, slow.volume, &free);
    set.await.unwrap();
    // At the rate of before that takes minutes, for which nobody waits.
    shell.run(&format!("{read} skip=48 count=3072")).await;

    hypervisor
        .stop(call(), spec.id, StopMode::Kill)
        .await
        .unwrap();
    hypervisor.undefine(call(), spec.id).await.unwrap();
}

pub(crate) async fn watchdog_resets(bench: &Bench, hypervisor: &dyn Hypervisor) {
    let mut spec = bench.guest();
    spec.hardware.watchdog = Some(WatchdogAction::Reset);
    // Its driver is in another kernel, whose modules are added to what the guest boots.
    let kernel = spec.hardware.kernel.as_mut().unwrap();
    let load = with_modules(kernel, &["watchdog", "i6300esb"], bench.path());
    let mut events = hypervisor.events();
    let (mut shell, first) = boot(hypervisor, &spec).await;
    shell.run(&load).await;
    // Armed for three seconds, and fed in a thousand.
    shell.run("watchdog -T 3 -t 1000 /dev/watchdog").await;
    for event in [GuestEvent::Watchdog, GuestEvent::Reset] {
        wait_event(&mut events, spec.id, event).await;
    }
    assert_ne!(shell.ready().await, first);
    hypervisor
        .stop(call(), spec.id, StopMode::Kill)
        .await
        .unwrap();
    hypervisor.undefine(call(), spec.id).await.unwrap();
}
