//! A guest that boots from its own disk: by BIOS, and by UEFI with variables of its own.
#![allow(clippy::unwrap_used, reason = "to panic is to fail the test")]

mod common;
#[path = "common/firmware.rs"]
mod variables;

use std::os::unix::fs::PermissionsExt;

use common::*;
use novacron_core::driver::{DomainState, Hypervisor, StopMode, StopReport};
use novacron_core::model::{Capability, Exit, Firmware, MiB};
use novacron_kvm::QemuHypervisor;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bios_boots_from_the_disk() {
    from_its_disk(Firmware::Bios).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn uefi_boots_from_the_disk() {
    from_its_disk(Firmware::Uefi).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn secure_boot_is_on_and_variables_stay_with_the_vm() {
    let bench = Bench::new();
    variables::variables_stay(&bench, &bench.hypervisor()).await;
}

async fn from_its_disk(firmware: Firmware) {
    let bench = Bench::new();
    let hypervisor: QemuHypervisor = bench.hypervisor();
    let uefi = firmware == Firmware::Uefi;
    let capabilities = hypervisor.probe(call()).await.unwrap().capabilities;
    let can = &capabilities.can;
    assert!(
        can.contains(&Capability::Uefi),
        "no OVMF: apt-get install ovmf"
    );
    let mut spec = bench.guest();
    spec.hardware.firmware = firmware;
    spec.hardware.kernel = None;
    spec.hardware.memory = MiB(384);
    spec.disks = vec![bench.boot_disk("root")];
    let mut events = hypervisor.events();

    let (mut shell, _) = boot(&hypervisor, &spec).await;
    let by = shell
        .run("[ -d /sys/firmware/efi ] && echo uefi || echo bios")
        .await;
    assert_eq!(by, if uefi { "uefi" } else { "bios" });
    let variables = bench.dir(spec.id).join("variables.fd");
    assert_eq!(variables.exists(), uefi);
    if uefi {
        let file = std::fs::metadata(&variables).unwrap();
        assert_eq!(file.permissions().mode() & 0o777, 0o600);
    }

    let stop = hypervisor.stop(call(), spec.id, StopMode::Shutdown).await;
    assert_eq!(stop.unwrap(), StopReport::Asked);
    let ended = wait_end(&hypervisor, &mut events, spec.id).await;
    assert_eq!(ended, DomainState::Ended(Exit::Requested));
    hypervisor.undefine(call(), spec.id).await.unwrap();
    assert!(hypervisor.list(call()).await.unwrap().is_empty());
    assert_eq!(bench.left(), [""; 0], "the variables too are gone");
}
