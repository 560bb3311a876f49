//! What a guest sees of the hardware that it was asked for, whoever runs it.

use std::time::{Duration, Instant};

use novacron_core::driver::{Hypervisor, StopMode};
use novacron_core::model::{
    Capability, Cpu, CpuModel, CpuTopology, DiskBus, DiskCache, DiskLimits, DiskOptions,
};

use crate::common::*;

pub(crate) async fn is_seen(bench: &Bench, hypervisor: &dyn Hypervisor) {
    let can = hypervisor.probe(call()).await.unwrap().capabilities.can;
    let mut spec = bench.guest();
    spec.hardware.vcpus = 2;
    spec.hardware.cpu = Cpu {
        model: CpuModel::Named("Nehalem".to_owned()),
        features: [("sse4.2".to_owned(), false)].into(),
        topology: Some(CpuTopology {
            sockets: 2,
            cores: 1,
            threads: 1,
        }),
    };
    let limits = DiskLimits {
        bytes_sec: Some(1 << 20),
        ..DiskLimits::default()
    };
    let mut slow = bench.disk("slow", "16M");
    slow.options.limits = limits;
    slow.options.cache = DiskCache::None;
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

    let serial = shell.run("cat /sys/block/vda/serial").await;
    assert_eq!(serial, "slow");
    let scsi = "grep -c on-scsi /sys/block/sda/device/vpd_pg80; cat /sys/block/sda/ro";
    assert_eq!(shell.run(scsi).await, "1\n1");
    if has_nvme {
        let serial = shell.run("cat /sys/block/nvme0n1/device/serial").await;
        assert_eq!(serial, "on-nvme");
    }

    // A mebibyte a second: three take at least two seconds, whatever was saved up before.
    let read = "dd if=/dev/vda of=/dev/null bs=64k count=48 2>/dev/null";
    let before = Instant::now();
    shell.run(read).await;
    let took = before.elapsed();
    assert!(took >= Duration::from_secs(2), "{took:?}");
    let plug = hypervisor.hot_plug().unwrap();
    let free = DiskLimits::default();
    let set = plug.set_disk_limits(call(), spec.id, slow.volume, &free);
    set.await.unwrap();
    shell.run(&format!("{read} skip=48")).await;

    hypervisor
        .stop(call(), spec.id, StopMode::Kill)
        .await
        .unwrap();
    hypervisor.undefine(call(), spec.id).await.unwrap();
}
