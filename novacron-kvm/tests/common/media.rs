//! CD-ROM drives: what the guest reads in them, and what it boots from, whoever runs it.

use std::path::PathBuf;
use std::process::Command;

use novacron_core::ErrorKind;
use novacron_core::driver::{DiskAttachment, Hypervisor, StopMode};
use novacron_core::model::{BootDevice, DiskBus, VolumeFormat};

use crate::common::*;
use crate::initramfs::with_modules;

/// In the order in which the guest loads them.
const DRIVERS: [&str; 8] = [
    "scsi_common",
    "scsi_mod",
    "libata",
    "libahci",
    "ahci",
    "cdrom",
    "sr_mod",
    "isofs",
];
/// What a medium that boots tells the kernel.
const MARK: &str = "booted_from=cd";

fn run(program: &str, arguments: &[&str]) {
    let output = Command::new(program).args(arguments).output();
    let output = output.unwrap_or_else(|error| panic!("{program}: {error}"));
    let words = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{program} {arguments:?}: {words}");
}

/// A file as a medium.
fn medium(bench: &Bench, name: &str, image: PathBuf) -> DiskAttachment {
    let mut medium = bench.attachment(name, image);
    medium.attachment.format = VolumeFormat::Raw;
    medium.options.bus = DiskBus::Cdrom;
    medium
}

/// A medium with a file `word`, that has the medium's name in it.
fn readable(bench: &Bench, name: &str) -> DiskAttachment {
    let folder = bench.path().join(name);
    std::fs::create_dir(&folder).unwrap();
    std::fs::write(folder.join("word"), name).unwrap();
    let image = bench.path().join(format!("{name}.iso"));
    let (text, folder) = (image.to_str().unwrap(), folder.to_str().unwrap());
    run("genisoimage", &["-quiet", "-r", "-o", text, folder]);
    medium(bench, name, image)
}

/// A medium that the guest boots from, as if it were its disk.
fn bootable(bench: &Bench) -> DiskAttachment {
    let image = bench.path().join("install.iso");
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/../examples/guest/iso.sh");
    let disk = guest_disk();
    let (text, disk) = (image.to_str().unwrap(), disk.to_str().unwrap());
    run(script, &[disk, text, MARK]);
    medium(bench, "install", image)
}

/// Media come and go while the guest runs, but not while it uses them.
pub(crate) async fn come_and_go(bench: &Bench, hypervisor: &dyn Hypervisor) {
    let [one, two, three, four] = ["one", "two", "three", "four"].map(|name| readable(bench, name));
    let mut spec = bench.guest();
    let kernel = spec.hardware.kernel.as_mut().unwrap();
    let load = with_modules(kernel, &DRIVERS, bench.path());
    spec.hardware.cdroms = 2;
    spec.disks = vec![one.clone()];
    let (mut shell, _) = boot(hypervisor, &spec).await;
    let plug = hypervisor.hot_plug().unwrap();
    let present = async || domain(hypervisor, spec.id).await.disks;
    assert_eq!(present().await, [one.volume]);
    shell.run(&load).await;
    // A drive says for a moment that it has none, and that it has another, when a medium was put in.
    let mount = |n: u32| {
        let mount = format!("mount -t iso9660 -o ro /dev/sr{n} /{n} 2>/dev/null");
        format!("mkdir -p /{n}; until {mount}; do usleep 10000; done; cat /{n}/word")
    };
    // The drives are found one after the other.
    let found = "until [ -e /dev/sr1 ]; do usleep 10000; done";
    shell.run(found).await;
    assert_eq!(shell.run(&mount(0)).await, "one");

    // It has locked the door.
    let refused = plug.detach_disk(call(), spec.id, one.volume).await;
    let refused = refused.unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::DeadlineExceeded, "{refused}");
    assert_eq!(present().await, [one.volume]);
    assert_eq!(shell.run("cat /0/word").await, "one");

    shell.run("umount /0").await;
    for _ in 0..2 {
        let detach = plug.detach_disk(call(), spec.id, one.volume);
        detach.await.unwrap();
        assert_eq!(present().await, []);
    }
    for _ in 0..2 {
        plug.attach_disk(call(), spec.id, &two).await.unwrap();
        assert_eq!(present().await, [two.volume]);
    }
    plug.attach_disk(call(), spec.id, &three).await.unwrap();
    assert_eq!(present().await, [two.volume, three.volume]);
    let stats = hypervisor.stats(call(), spec.id).await.unwrap();
    let counted: Vec<_> = stats.disks.iter().map(|disk| disk.volume).collect();
    assert_eq!(counted, [two.volume, three.volume]);
    assert_eq!(shell.run(&mount(0)).await, "two");
    assert_eq!(shell.run(&mount(1)).await, "three");
    let full = plug.attach_disk(call(), spec.id, &four).await.unwrap_err();
    assert_eq!(full.kind(), ErrorKind::FailedPrecondition, "{full}");

    let stop = hypervisor.stop(call(), spec.id, StopMode::Kill);
    stop.await.unwrap();
    hypervisor.undefine(call(), spec.id).await.unwrap();
}

/// A guest boots from a medium when its disk has nothing to boot, or when its boot order says so.
pub(crate) async fn boots(bench: &Bench, hypervisor: &dyn Hypervisor) {
    let install = bootable(bench);
    let first = [BootDevice::Cdrom, BootDevice::Disk];
    for (root, order) in [
        (bench.disk("empty", "16M"), None),
        (bench.boot_disk("root"), Some(first)),
    ] {
        let mut spec = bench.guest();
        spec.hardware.kernel = None;
        spec.hardware.cdroms = 1;
        if let Some(order) = order {
            spec.hardware.boot_order = order.into();
        }
        spec.disks = vec![root, install.clone()];
        let (mut shell, _) = boot(hypervisor, &spec).await;
        let line = shell.run("cat /proc/cmdline").await;
        assert!(line.contains(MARK), "{order:?}: {line}");
        let stop = hypervisor.stop(call(), spec.id, StopMode::Kill);
        stop.await.unwrap();
        hypervisor.undefine(call(), spec.id).await.unwrap();
    }
}
