//! One guest through its whole life, with the hypervisor replaced in the middle.
#![allow(clippy::unwrap_used, reason = "to panic is to fail the test")]

mod common;

use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use common::*;
use novacron_core::ErrorKind;
use novacron_core::driver::{
    ConsoleStart, DomainId, DomainOwner, DomainState, GuestEvent, Hypervisor, Seed, StopMode,
    StopReport,
};
use novacron_core::model::{Bytes, Epoch, Exit, SnapshotId};
use tokio::io::AsyncReadExt;
use tokio::net::{TcpStream, UnixStream};
use tokio::time::timeout;
use uuid::Uuid;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_guest_lives_through_hot_plug_snapshot_restart_of_its_host_application_and_an_orderly_end()
 {
    let bench = Bench::new();
    let hypervisor = bench.hypervisor();
    let port = free_port();
    let root = bench.disk("root", "16M");
    let mut spec = bench.guest();
    spec.hardware.io_threads = 2;
    spec.disks = vec![root.clone()];
    spec.nics = vec![bench.nic(Some(port))];
    spec.seed = Some(Seed {
        meta_data: "instance-id: i-1\nlocal-hostname: web-1\n".into(),
        user_data: "#cloud-config\nwrite_files:\n  - path: /run/from-seed\n    content: s3cret\n"
            .into(),
        network_config: None,
    });
    let id = spec.id;

    // Defined, started with its vCPUs held, and neither twice.
    hypervisor.define(call(), &spec).await.unwrap();
    hypervisor.define(call(), &spec).await.unwrap();
    let defined = domain(&hypervisor, id).await;
    assert_eq!(
        (defined.state, defined.disks),
        (DomainState::Defined, vec![root.volume])
    );
    let stored =
        std::fs::read_to_string(bench.state().join(id.vm.to_string()).join("1/spec.json")).unwrap();
    assert!(!stored.contains("s3cret"), "a secret is in the spec's file");
    let mut events = hypervisor.events();
    hypervisor.start(call(), id).await.unwrap();
    hypervisor.start(call(), id).await.unwrap();
    assert_eq!(state(&hypervisor, id).await, DomainState::Paused);
    assert_eq!(
        hypervisor.undefine(call(), id).await.unwrap_err().kind(),
        ErrorKind::FailedPrecondition
    );
    let mut second = spec.clone();
    second.id.epoch = Epoch(2);
    second.nics.clear();
    hypervisor.define(call(), &second).await.unwrap();
    let refused = hypervisor.start(call(), second.id).await.unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::FailedPrecondition);
    assert!(refused.message().contains("by start 1"), "{refused}");
    assert_eq!(state(&hypervisor, second.id).await, DomainState::Defined);
    hypervisor.undefine(call(), second.id).await.unwrap();
    let stranger = DomainId {
        cluster: bench.domain_id().cluster,
        ..id
    };
    assert!(
        hypervisor
            .inspect(call(), stranger)
            .await
            .unwrap()
            .is_none(),
        "it answers to its own cluster only"
    );

    // Its console, its agent.
    hypervisor.resume(call(), id).await.unwrap();
    let mut shell = Shell::open(&hypervisor, id).await;
    let boot_id = shell.ready().await;
    assert_eq!(state(&hypervisor, id).await, DomainState::Running);
    assert_eq!(
        shell.run("hostname; cat /run/from-seed").await,
        "web-1\ns3cret"
    );
    assert_eq!(
        shell
            .run("cat /sys/class/dmi/id/product_uuid")
            .await
            .to_lowercase(),
        id.vm.to_string()
    );
    wait_event(&mut events, id, GuestEvent::Agent { connected: true }).await;
    let agent = hypervisor.guest_agent().unwrap();
    agent.ping(call(), id).await.unwrap();
    let argv = ["/bin/sh", "-c", "cat; exit 3"].map(str::to_owned);
    let output = agent
        .exec(call(), id, &argv, Some("hello".into()))
        .await
        .unwrap();
    assert_eq!(
        (output.exit_code, &output.stdout[..]),
        (Some(3), &b"hello"[..])
    );
    let argv = ["/bin/sh", "-c", "kill -9 $$"].map(str::to_owned);
    let output = agent.exec(call(), id, &argv, None).await.unwrap();
    assert_eq!((output.exit_code, output.signal), (None, Some(9)));
    shell
        .run("for i in $(seq 100); do ip addr | grep -q 10.0.2.15 && break; sleep 0.1; done")
        .await;
    let addresses = agent.addresses(call(), id).await.unwrap();
    let outside = addresses
        .iter()
        .find(|a| a.address.to_string() == "10.0.2.15")
        .unwrap();
    assert_eq!((outside.prefix, outside.mac), (24, Some(spec.nics[0].mac)));

    // Its forwarded port, its screen, its random numbers; and nobody else's sockets.
    shell
        .run("(until echo through | nc -l -p 80; do :; done >/dev/null 2>&1 &)")
        .await;
    timeout(SOON, hears(port, "through")).await.unwrap();
    let mut screen = UnixStream::connect(bench.dir(id).join("vnc"))
        .await
        .unwrap();
    let mut banner = [0; 4];
    timeout(SOON, screen.read_exact(&mut banner))
        .await
        .unwrap()
        .unwrap();
    assert_eq!(&banner, b"RFB ");
    assert_eq!(
        shell
            .run("dd if=/dev/hwrng bs=16 count=1 2>/dev/null | wc -c")
            .await,
        "16"
    );
    let mode = |path: &Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode(&bench.dir(id)), 0o700);
    for socket in ["qmp", "con", "ga"] {
        assert_eq!(mode(&bench.dir(id).join(socket)), 0o600, "{socket}");
    }

    // A disk comes, is used, and grows.
    let plug = hypervisor.hot_plug().unwrap();
    let data = bench.disk("data", "64M");
    plug.attach_disk(call(), id, &data).await.unwrap();
    plug.attach_disk(call(), id, &data).await.unwrap();
    let found = "until d=$(grep -l '^data' /sys/block/vd*/serial); do sleep 0.1; done; \
        d=/dev/$(echo $d | cut -d/ -f4); mkfs.ext4 -q $d && mount $d /mnt && echo before >/mnt/a && sync";
    shell.run(found).await;
    plug.resize_disk(call(), id, data.volume, Bytes::mib(96))
        .await
        .unwrap();
    plug.resize_disk(call(), id, data.volume, Bytes::mib(96))
        .await
        .unwrap();
    assert_eq!(shell.run("cat /sys/block/${d##*/}/size").await, "196608");
    let shrunk = plug
        .resize_disk(call(), id, data.volume, Bytes::mib(32))
        .await
        .unwrap_err();
    assert_eq!(shrunk.kind(), ErrorKind::Invalid);
    let stats = hypervisor.stats(call(), id).await.unwrap();
    assert!(
        stats.vcpu_ns[0] > 0 && stats.resident.0 > 1 << 20,
        "{stats:?}"
    );
    let written = stats
        .disks
        .iter()
        .find(|disk| disk.volume == data.volume)
        .unwrap();
    assert!(written.written_bytes > 0 && written.writes > 0, "{stats:?}");

    // The host application is replaced; the guest does not notice.
    drop((shell, events, hypervisor));
    let hypervisor = bench.hypervisor();
    let listed = hypervisor.list(call()).await.unwrap();
    assert_eq!(listed.len(), 1);
    assert_eq!(
        (&listed[0].owner, &listed[0].state),
        (&DomainOwner::NovaCron(id), &DomainState::Running)
    );
    assert!(listed[0].disks.contains(&data.volume) && listed[0].nics == [spec.nics[0].port]);
    let (mut shell, first_boot) = Shell::again(&hypervisor, id, "one").await;
    assert_eq!(first_boot, boot_id, "the history is still there");
    assert_eq!(
        shell.run("cat /proc/sys/kernel/random/boot_id").await,
        boot_id,
        "the guest has run on"
    );

    // A live snapshot: the guest's writes go to the new layer.
    let overlay = bench.path().join("overlay.qcow2");
    let base = file_of(&data);
    let (overlay_text, base_text) = (overlay.to_str().unwrap(), base.to_str().unwrap());
    qemu_img(&[
        "create",
        "-q",
        "-f",
        "qcow2",
        "-F",
        "qcow2",
        "-u",
        "-b",
        base_text,
        overlay_text,
        "96M",
    ]);
    let snapshot = SnapshotId::from_uuid(Uuid::from_u128(7));
    let pivot = hypervisor.disk_pivot().unwrap();
    let nowhere = bench.path().join("nowhere.qcow2");
    pivot
        .pivot(call(), id, data.volume, snapshot, nowhere)
        .await
        .unwrap_err();
    pivot
        .pivot(call(), id, data.volume, snapshot, overlay.clone())
        .await
        .unwrap();
    pivot
        .pivot(call(), id, data.volume, snapshot, overlay.clone())
        .await
        .unwrap();
    assert_eq!(
        shell.run("echo after >/mnt/b && sync && cat /mnt/a").await,
        "before"
    );
    let agent = hypervisor.guest_agent().unwrap();
    assert!(agent.freeze(call(), id).await.unwrap() >= 1);
    assert!(agent.thaw(call(), id).await.unwrap() >= 1);

    // Once more replaced; the console's reader goes on where it was. Then the disk and a NIC go.
    let offset = shell.offset();
    drop((shell, hypervisor));
    let hypervisor = bench.hypervisor();
    let mut events = hypervisor.events();
    let mut shell = Shell::open_at(&hypervisor, id, ConsoleStart::Offset(offset)).await;
    assert_eq!(shell.offset(), offset);
    assert_eq!(shell.run("umount /mnt").await, "");
    let plug = hypervisor.hot_plug().unwrap();
    plug.detach_disk(call(), id, data.volume).await.unwrap();
    plug.detach_disk(call(), id, data.volume).await.unwrap();
    assert_eq!(domain(&hypervisor, id).await.disks, [root.volume]);
    qemu_img(&["check", "-q", overlay_text]);
    qemu_img(&["check", "-q", base_text]);
    plug.attach_disk(call(), id, &data)
        .await
        .expect("its images are closed");
    plug.detach_disk(call(), id, data.volume).await.unwrap();
    let nic = bench.nic(None);
    plug.attach_nic(call(), id, &nic).await.unwrap();
    plug.attach_nic(call(), id, &nic).await.unwrap();
    shell
        .run("until [ -e /sys/class/net/eth1 ]; do sleep 0.1; done")
        .await;
    plug.detach_nic(call(), id, nic.port).await.unwrap();
    plug.detach_nic(call(), id, nic.port).await.unwrap();
    assert_eq!(
        shell.run("ls -d /sys/class/net/eth*").await,
        "/sys/class/net/eth0"
    );

    // Held, let go, and ended by the power button.
    hypervisor.pause(call(), id).await.unwrap();
    assert_eq!(state(&hypervisor, id).await, DomainState::Paused);
    hypervisor.resume(call(), id).await.unwrap();
    assert_eq!(
        hypervisor
            .stop(call(), id, StopMode::Shutdown)
            .await
            .unwrap(),
        StopReport::Asked
    );
    assert_eq!(
        wait_end(&hypervisor, &mut events, id).await,
        DomainState::Ended(Exit::Requested)
    );
    shell.ended().await;
    assert_eq!(
        hypervisor
            .stop(call(), id, StopMode::Shutdown)
            .await
            .unwrap(),
        StopReport::Ended
    );
    assert_eq!(
        hypervisor.start(call(), id).await.unwrap_err().kind(),
        ErrorKind::FailedPrecondition
    );
    assert_eq!(
        hypervisor.list(call()).await.unwrap().len(),
        1,
        "an end stays until it is undefined"
    );
    hypervisor.undefine(call(), id).await.unwrap();
    hypervisor.undefine(call(), id).await.unwrap();
    assert!(hypervisor.list(call()).await.unwrap().is_empty());
    assert_eq!(bench.left(), [""; 0]);
    let free = TcpListener::bind(("127.0.0.1", port));
    assert!(free.is_ok(), "the port is free again");
}

/// Connects until the guest says this. QEMU takes connections before anybody in the guest listens.
async fn hears(port: u16, wanted: &str) {
    let mut heard = String::new();
    while !heard.contains(wanted) {
        if let Ok(mut stream) = TcpStream::connect(("127.0.0.1", port)).await {
            let _ = stream.read_to_string(&mut heard).await;
        }
    }
}
