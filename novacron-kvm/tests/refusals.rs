//! What cannot work is refused with a reason, and leaves nothing that `undefine` does not remove. No guest boots here.
#![allow(clippy::unwrap_used, reason = "to panic is to fail the test")]

mod common;

use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::time::Duration;

use common::*;
use novacron_core::driver::{
    Attachment, AttachmentSource, Call, DomainState, Hypervisor, StopMode, StopReport,
};
use novacron_core::model::{Epoch, Exit, HostId, PortBinding};
use novacron_core::{Error, ErrorKind};
use novacron_kvm::QemuHypervisor;
use uuid::Uuid;

/// A QEMU of our own making, which tells right what it is and has.
fn script(bench: &Bench, name: &str, body: &str) -> PathBuf {
    let path = bench.path().join(name);
    let text = format!(
        "#!/bin/sh\ncase \"$*\" in -version | \"-machine help\" | \"-netdev help\" | *\" -qmp stdio\")\n\
         exec qemu-system-x86_64 \"$@\";; esac\n{body}\n"
    );
    std::fs::write(&path, text).unwrap();
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
    path
}

/// Starts a small guest that is expected not to come up.
async fn failing(hypervisor: &QemuHypervisor, bench: &Bench) -> (Error, DomainState) {
    let spec = bench.guest();
    hypervisor.define(call(), &spec).await.unwrap();
    let error = hypervisor
        .start(Call::within(Duration::from_secs(40)), spec.id)
        .await
        .unwrap_err();
    let state = state(hypervisor, spec.id).await;
    hypervisor.undefine(call(), spec.id).await.unwrap();
    assert_eq!(bench.left(), [""; 0]);
    (error, state)
}

#[tokio::test]
async fn a_qemu_that_is_missing_old_broken_or_hangs() {
    let bench = Bench::new();
    let with = |path: PathBuf| bench.hypervisor().qemu(path);

    let missing = with("/no/such/qemu".into());
    let error = missing.define(call(), &bench.guest()).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unsupported);
    assert!(error.message().contains("apt-get install"), "{error}");
    assert_eq!(bench.left(), [""; 0]);

    let old = bench.path().join("old");
    std::fs::write(&old, "#!/bin/sh\necho QEMU emulator version 4.2.1\n").unwrap();
    std::fs::set_permissions(&old, std::fs::Permissions::from_mode(0o755)).unwrap();
    let error = with(old).probe(call()).await.unwrap_err();
    assert!(error.message().contains("4.2.1; at least"), "{error}");

    let (error, state) = failing(
        &with(script(&bench, "dies", "echo 'no luck today' >&2; exit 1")),
        &bench,
    )
    .await;
    assert!(
        error.message().contains("status 1") && error.message().contains("no luck today"),
        "{error}"
    );
    assert!(
        matches!(state, DomainState::Ended(Exit::StartFailed { .. })),
        "{state:?}"
    );

    let refuses = script(
        &bench,
        "refuses",
        "exec qemu-system-x86_64 \"$@\" -frobnicate",
    );
    let (error, _) = failing(&with(refuses), &bench).await;
    assert!(
        error.message().contains("-frobnicate: invalid option"),
        "{error}"
    );

    let (error, state) = failing(&with(script(&bench, "hangs", "exec sleep 1000")), &bench).await;
    assert!(
        error.message().contains("greeting") && error.message().contains("was killed"),
        "{error}"
    );
    assert!(
        matches!(state, DomainState::Ended(Exit::StartFailed { .. })),
        "{state:?}"
    );
}

#[tokio::test]
async fn resources_that_are_not_to_be_had() {
    let bench = Bench::new();
    let hypervisor = bench.hypervisor();
    let start = async |spec: &novacron_core::driver::DomainSpec| {
        hypervisor.define(call(), spec).await.unwrap();
        let error = hypervisor.start(call(), spec.id).await.unwrap_err();
        hypervisor.undefine(call(), spec.id).await.unwrap();
        error
    };

    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port();
    let mut spec = bench.guest();
    spec.nics = vec![bench.nic(Some(port))];
    let error = start(&spec).await;
    assert_eq!(error.kind(), ErrorKind::Exhausted);
    assert!(
        error.message().contains(&format!("127.0.0.1:{port}")),
        "{error}"
    );

    spec.nics[0].forwards.clear();
    spec.nics[0].binding = PortBinding::Bridge {
        bridge: "no-such-br".into(),
    };
    let error = start(&spec).await;
    assert!(error.message().contains("no such bridge"), "{error}");

    spec.nics.clear();
    let mut disk = bench.disk("gone", "1M");
    std::fs::remove_file(file_of(&disk)).unwrap();
    spec.disks = vec![disk.clone()];
    let error = start(&spec).await;
    assert!(
        error.message().contains("gone.qcow2") && error.message().contains("No such file"),
        "{error}"
    );

    // A truncated image, and one of another format than was said.
    for (name, length) in [("truncated", 50), ("other", 1 << 20)] {
        let disk = bench.disk(name, "1M");
        let mut bytes = std::fs::read(file_of(&disk)).unwrap();
        bytes.truncate(length);
        if name == "other" {
            bytes.fill(b'x');
        }
        std::fs::write(file_of(&disk), bytes).unwrap();
        spec.disks = vec![disk];
        let error = start(&spec).await;
        assert_eq!(error.kind(), ErrorKind::FailedPrecondition, "{name}");
        assert!(
            error.message().contains(&format!("{name}.qcow2")),
            "{error}"
        );
    }

    // An image with a writer is not given to a second one.
    disk = bench.disk("shared", "1M");
    let mut holder = bench.guest();
    holder.disks = vec![disk.clone()];
    hypervisor.define(call(), &holder).await.unwrap();
    hypervisor.start(call(), holder.id).await.unwrap();
    spec.disks = vec![disk];
    let error = start(&spec).await;
    assert!(error.message().contains("lock"), "{error}");
    hypervisor
        .stop(call(), holder.id, StopMode::Kill)
        .await
        .unwrap();
    hypervisor.undefine(call(), holder.id).await.unwrap();
    assert_eq!(bench.left(), [""; 0]);
}

/// A node with a state folder that is too long is never available, and a VM that was to be there can be deleted.
#[tokio::test]
async fn state_folders_too_long_for_sockets() {
    let bench = Bench::new();
    let folder = |bytes: usize| {
        let rest = bytes - bench.path().as_os_str().len() - 1;
        bench.path().join("x".repeat(rest))
    };
    let (long, mut spec) = (QemuHypervisor::new(folder(56)), bench.guest());
    let refused = long.probe(call()).await.unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::Invalid);
    assert!(
        refused.message().contains("56 bytes and the limit is 55"),
        "{refused}"
    );
    assert!(!folder(56).exists(), "nothing was made");
    let refused = long.define(call(), &spec).await.unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::Invalid);
    assert!(long.inspect(call(), spec.id).await.unwrap().is_none());
    assert_eq!(long.list(call()).await.unwrap(), []);
    for mode in [StopMode::Shutdown, StopMode::Kill] {
        let stopped = long.stop(call(), spec.id, mode).await.unwrap();
        assert_eq!(stopped, StopReport::Ended);
    }
    long.undefine(call(), spec.id).await.unwrap();

    // At the limit, with an epoch of ten digits, the sockets can be bound.
    spec.id.epoch = Epoch(9_999_999_999);
    let longest = QemuHypervisor::new(folder(55));
    longest.probe(call()).await.unwrap();
    longest.define(call(), &spec).await.unwrap();
    longest.start(call(), spec.id).await.unwrap();
    let stopped = longest.stop(call(), spec.id, StopMode::Kill).await;
    assert_eq!(stopped.unwrap(), StopReport::Ended);
    longest.undefine(call(), spec.id).await.unwrap();
}

/// A guest that was never let run answers no request for a device, and takes devices all the same.
#[tokio::test]
async fn hot_plug_that_cannot_work() {
    let bench = Bench::new();
    let hypervisor = bench.hypervisor();
    let plug = hypervisor.hot_plug().unwrap();
    let mut specs = [bench.guest(), bench.guest()];
    specs[0].disks = vec![bench.disk("taken", "1M")];
    for spec in &specs {
        hypervisor.define(call(), spec).await.unwrap();
        hypervisor.start(call(), spec.id).await.unwrap();
    }
    let [holder, other] = &specs;

    let taken = plug.attach_disk(call(), other.id, &holder.disks[0]).await;
    let taken = taken.unwrap_err();
    assert!(taken.message().contains("lock"), "{taken}");
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let nic = bench.nic(Some(listener.local_addr().unwrap().port()));
    let taken = plug.attach_nic(call(), other.id, &nic).await.unwrap_err();
    assert_eq!(taken.kind(), ErrorKind::Exhausted, "{taken}");
    let domain = domain(&hypervisor, other.id).await;
    assert_eq!(
        (domain.disks, domain.nics),
        (vec![], vec![]),
        "nothing is left of it"
    );

    // There are eight places.
    let disks: Vec<_> = (0..9).map(|n| bench.disk(&format!("d{n}"), "1M")).collect();
    for disk in &disks[..8] {
        plug.attach_disk(call(), other.id, disk).await.unwrap();
    }
    let full = plug
        .attach_disk(call(), other.id, &disks[8])
        .await
        .unwrap_err();
    assert_eq!(full.kind(), ErrorKind::Exhausted, "{full}");

    // A guest that does not answer keeps its disk.
    let volume = disks[0].volume;
    let brief = Call::within(Duration::from_millis(500));
    let kept = plug.detach_disk(brief, other.id, volume).await.unwrap_err();
    assert_eq!(kept.kind(), ErrorKind::DeadlineExceeded, "{kept}");
    assert!(
        common::domain(&hypervisor, other.id)
            .await
            .disks
            .contains(&volume)
    );
    for spec in &specs {
        let killed = hypervisor.stop(call(), spec.id, StopMode::Kill).await;
        assert_eq!(killed.unwrap(), StopReport::Ended);
        hypervisor.undefine(call(), spec.id).await.unwrap();
    }
    assert_eq!(bench.left(), [""; 0]);
}

#[tokio::test]
async fn names_are_only_names() {
    let bench = Bench::new();
    let hypervisor = bench.hypervisor();
    let mut spec = bench.guest();
    spec.name = "../a,process=b,,\"{}\" $(reboot) \u{202e}\u{fc}".into();
    let mut disk = bench.disk("d", "1M");
    disk.name = "a,id=b\"{}\\".into();
    spec.disks = vec![disk];
    hypervisor.define(call(), &spec).await.unwrap();
    hypervisor.start(call(), spec.id).await.unwrap();
    assert_eq!(state(&hypervisor, spec.id).await, DomainState::Paused);
    let pid = bench.pid(spec.id);
    let line = std::fs::read_to_string(format!("/proc/{pid}/cmdline")).unwrap();
    assert!(line.contains("guest=../a,,process=b,,,,"), "{line}");
    let killed = hypervisor.stop(call(), spec.id, StopMode::Kill).await;
    assert_eq!(killed.unwrap(), StopReport::Ended);
    hypervisor.undefine(call(), spec.id).await.unwrap();
    assert_eq!(bench.left(), [""; 0]);

    spec.name = "x".repeat(10 << 10);
    let refused = hypervisor.define(call(), &spec).await.unwrap_err();
    assert_eq!(refused.problems()[0].field, "name");
}

#[tokio::test]
async fn specs_folders_and_hosts() {
    let bench = Bench::new();
    let hypervisor = bench
        .hypervisor()
        .host_id(HostId::from_uuid(Uuid::from_u128(9)));
    let info = hypervisor.probe(call()).await.unwrap();
    assert_eq!(info.host.uuid().as_u128(), 9);
    assert!(
        info.capabilities.hypervisor.starts_with("QEMU ") && info.capabilities.memory.0 > 0,
        "{info:?}"
    );

    let second = bench.hypervisor().list(call()).await.unwrap_err();
    assert_eq!(second.kind(), ErrorKind::FailedPrecondition);
    assert!(
        second.message().contains(&std::process::id().to_string()),
        "{second}"
    );
    let other = QemuHypervisor::new(bench.path().join("other"));
    let ours = QemuHypervisor::new(bench.path().join("ours"))
        .probe(call())
        .await
        .unwrap()
        .host;
    assert_ne!(other.probe(call()).await.unwrap().host, ours);

    let mut spec = bench.guest();
    let twice = bench.disk("d", "1M");
    spec.disks = vec![twice.clone(), twice];
    spec.hardware.vcpus = 0;
    spec.name = "a\nb".into();
    let error = hypervisor.define(call(), &spec).await.unwrap_err();
    let fields: Vec<_> = error
        .problems()
        .iter()
        .map(|problem| problem.field.as_str())
        .collect();
    assert_eq!(fields, ["hardware.vcpus", "name", "disks[1].volume"]);

    spec = bench.guest();
    let mut relative = bench.disk("r", "1M");
    relative.attachment = Attachment {
        source: AttachmentSource::File("r.qcow2".into()),
        ..relative.attachment
    };
    spec.disks = vec![relative];
    assert_eq!(
        hypervisor.define(call(), &spec).await.unwrap_err().kind(),
        ErrorKind::Invalid
    );

    let nobody = bench.domain_id();
    assert!(hypervisor.inspect(call(), nobody).await.unwrap().is_none());
    assert_eq!(
        hypervisor.start(call(), nobody).await.unwrap_err().kind(),
        ErrorKind::NotFound
    );
    assert_eq!(
        hypervisor.reset(call(), nobody).await.unwrap_err().kind(),
        ErrorKind::NotFound
    );
    hypervisor.undefine(call(), nobody).await.unwrap();
    let late = Call::within(Duration::ZERO);
    assert_eq!(
        hypervisor.inspect(late, nobody).await.unwrap_err().kind(),
        ErrorKind::DeadlineExceeded
    );
}
