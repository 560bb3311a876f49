//! A guest's UEFI variables, whoever runs it.

use std::fs::File;

use novacron_core::driver::{AttachmentSource, Hypervisor, StopMode};
use novacron_core::model::{Epoch, Firmware, MiB, VolumeFormat};

use crate::common::*;

/// Secure Boot is on for what is signed, and what one start wrote into its variables the next one reads.
pub(crate) async fn variables_stay(bench: &Bench, hypervisor: &dyn Hypervisor) {
    const VARIABLES: &str = "/sys/firmware/efi/efivars";
    const KEPT: &str = "NovaCron-5aa3a7c1-58b5-4b5c-9d0b-6e1c2f0f6a11";
    let path = bench.path().join("nvram.raw");
    File::create(&path).unwrap().set_len(528 * 1024).unwrap();
    let mut nvram = bench.disk("nvram", "1M");
    nvram.attachment.source = AttachmentSource::File(path.clone());
    nvram.attachment.format = VolumeFormat::Raw;

    let mut spec = bench.guest();
    spec.hardware.firmware = Firmware::UefiSecureBoot;
    spec.hardware.kernel = None;
    spec.hardware.memory = MiB(384);
    spec.disks = vec![bench.boot_disk("root")];
    spec.nvram = Some(nvram);
    for epoch in [1, 2] {
        spec.id.epoch = Epoch(epoch);
        let (mut shell, _) = boot(hypervisor, &spec).await;
        let mount = format!("mount -t efivarfs efivarfs {VARIABLES}; cd {VARIABLES}");
        shell.run(&mount).await;
        // Four bytes of attributes, then the value.
        let secure = shell
            .run("tail -c 1 SecureBoot-* | hexdump -e '\"%d\"'")
            .await;
        assert_eq!(secure, "1");
        if epoch == 1 {
            let write = format!("printf '\\007\\000\\000\\000as it was' >{KEPT}");
            shell.run(&write).await;
        }
        let kept = shell.run(&format!("tail -c +5 {KEPT}; echo")).await;
        assert_eq!(kept, "as it was", "start {epoch}");
        hypervisor
            .stop(call(), spec.id, StopMode::Kill)
            .await
            .unwrap();
        hypervisor.undefine(call(), spec.id).await.unwrap();
        assert!(path.exists(), "the volume is not the driver's to remove");
    }
}
