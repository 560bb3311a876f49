//! A guest's TPM, whoever runs it.

use std::fs::File;
use std::path::Path;

use novacron_core::driver::{AttachmentSource, Hypervisor, StopMode, TpmState};
use novacron_core::model::{Epoch, Tpm, VolumeFormat};
use secrecy::SecretString;

use crate::common::*;

/// How often it was started, of which a TPM keeps count: the reset count of TPM2_ReadClock's answer.
async fn resets(shell: &mut Shell) -> u32 {
    let ask =
        "printf '\\200\\001\\000\\000\\000\\012\\000\\000\\001\\201' >/tmp/ask; exec 3<>/dev/tpm0";
    shell.run(ask).await;
    let commands = "dd if=/tmp/ask bs=10 count=1 >&3 2>/dev/null; dd bs=4096 count=1 <&3 >/tmp/told 2>/dev/null";
    shell.run(commands).await;
    let count = shell
        .run("hexdump -s 26 -n 4 -e '4/1 \"%02x\"' /tmp/told; echo; exec 3>&-")
        .await;
    u32::from_str_radix(&count, 16).unwrap()
}

/// What it remembers stays from one start to the next, encrypted; another passphrase does not open it, and spoils nothing.
pub(crate) async fn state_stays(bench: &Bench, hypervisor: &dyn Hypervisor) {
    let path = bench.path().join("tpm.raw");
    File::create(&path).unwrap().set_len(1 << 20).unwrap();
    let mut disk = bench.disk("tpm", "1M");
    disk.attachment.source = AttachmentSource::File(path.clone());
    disk.attachment.format = VolumeFormat::Raw;
    let state = |passphrase: &str| TpmState {
        disk: disk.clone(),
        passphrase: Some(SecretString::from(passphrase)),
    };
    // Longer than a key, for every byte of it has to count.
    let right = "a passphrase of more than thirty-two bytes: yes";
    let wrong = "a passphrase of more than thirty-two bytes: no";

    let mut spec = bench.guest();
    spec.hardware.tpm = Some(Tpm::default());
    let mut before = 0;
    for (epoch, passphrase) in [(1, right), (2, wrong), (3, right)] {
        spec.id.epoch = Epoch(epoch);
        spec.tpm = Some(state(passphrase));
        hypervisor.define(call(), &spec).await.unwrap();
        let started = hypervisor.start(call(), spec.id).await;
        if passphrase == wrong {
            let error = started.unwrap_err();
            assert!(!error.report().contains(wrong), "{}", error.report());
        } else {
            started.unwrap();
            hypervisor.resume(call(), spec.id).await.unwrap();
            let mut shell = Shell::open(hypervisor, spec.id).await;
            shell.ready().await;
            let measured = shell.run("cat /sys/class/tpm/tpm0/pcr-sha256/0").await;
            assert_eq!(measured.len(), 64, "{measured}");
            let now = resets(&mut shell).await;
            assert!(now > before, "start {epoch}: {now} resets after {before}");
            before = now;
            let kill = hypervisor.stop(call(), spec.id, StopMode::Kill);
            kill.await.unwrap();
        }
        hypervisor.undefine(call(), spec.id).await.unwrap();
        assert_eq!(with_on_command_line(&path), [0_u32; 0], "start {epoch}");
    }
}

/// The processes that have a path on their command line.
fn with_on_command_line(path: &Path) -> Vec<u32> {
    let path = path.to_str().unwrap();
    let processes = std::fs::read_dir("/proc").unwrap().flatten();
    let pids = processes.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    let has = |pid: &u32| {
        let line = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        String::from_utf8_lossy(&line).contains(path)
    };
    pids.filter(has).collect()
}
