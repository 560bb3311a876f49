//! A libvirtd that dies, hangs, or is not there: guests go on, and what NovaCron then says is so.

use std::time::Duration;

use novacron_core::driver::{Call, DomainId, DomainState, Hypervisor, StopMode, StopReport};
use novacron_core::model::{Bytes, Epoch, Exit};
use novacron_core::{ErrorKind, Result};
use novacron_kvm::LibvirtHypervisor;
use tokio::task::block_in_place;
use tokio::time::timeout;

use crate::common::*;
use crate::daemon::Daemon;

/// How long into a call the daemon is killed.
const MOMENTS: [Duration; 4] = [
    Duration::ZERO,
    Duration::from_millis(2),
    Duration::from_millis(20),
    Duration::from_millis(200),
];

/// Kills the daemon a moment into a call, starts it again, and calls until there is an answer.
async fn through<T>(
    daemon: &Daemon,
    hypervisor: &LibvirtHypervisor,
    moment: Duration,
    what: &str,
    call: impl AsyncFn() -> Result<T>,
) -> Result<T> {
    let mut first = Box::pin(call());
    let early = timeout(moment, &mut first).await;
    block_in_place(|| daemon.kill());
    let answer = match early {
        Ok(answer) => answer,
        Err(_) => (timeout(SOON, first).await)
            .unwrap_or_else(|_| panic!("{what} outlived the daemon that it was asked of")),
    };
    block_in_place(|| daemon.start());
    let again = async { while hypervisor.probe(Call::within(SOON)).await.is_err() {} };
    timeout(SOON, again).await.expect("a connection");
    match answer {
        Err(error) if is_open(error.kind()) => {}
        answer => return answer,
    }
    let answered = async || {
        loop {
            match call().await {
                Err(error) if is_open(error.kind()) => {}
                answer => return answer,
            }
        }
    };
    if let Ok(answer) = timeout(SOON, answered()).await {
        return answer;
    }
    // A libvirt 9.0 that died over a start before it had a QEMU: the way out that the guide tells.
    block_in_place(|| daemon.kill());
    for folder in ["run/qemu", "run/libvirt/qemu/run"] {
        for file in std::fs::read_dir(daemon.file(folder)).into_iter().flatten() {
            let file = file.unwrap().path();
            if file.extension().is_some_and(|extension| extension == "xml") {
                std::fs::remove_file(file).unwrap();
            }
        }
    }
    block_in_place(|| daemon.start());
    timeout(SOON, answered()).await.expect(what)
}

/// Whether a call may be made again.
fn is_open(kind: ErrorKind) -> bool {
    matches!(kind, ErrorKind::Unavailable | ErrorKind::OutcomeUnknown)
}

/// The state, as soon as libvirt can be asked.
async fn seen(hypervisor: &LibvirtHypervisor, id: DomainId) -> Option<DomainState> {
    loop {
        match hypervisor.inspect(call(), id).await {
            Ok(domain) => return domain.map(|domain| domain.state),
            Err(error) => assert!(is_open(error.kind()), "{error}"),
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_guests_life_survives_a_daemon_that_is_killed_in_any_of_its_calls() {
    let (bench, daemon) = (Bench::new(), Daemon::up());
    let hypervisor = daemon.hypervisor();
    let h = &hypervisor;
    let mut spec = bench.guest();
    spec.disks = vec![bench.disk("root", "8M")];
    let mut begun = 0;
    for (epoch, moment) in (1..).zip(MOMENTS) {
        spec.id.epoch = Epoch(epoch);
        let id = spec.id;
        let define = async || h.define(call(), &spec).await;
        through(&daemon, h, moment, "define", define).await.unwrap();
        assert_eq!(seen(h, id).await, Some(DomainState::Defined));

        let started = through(&daemon, h, moment, "start", async || {
            h.start(call(), id).await
        })
        .await;
        let state = seen(h, id).await;
        if started.is_ok() {
            assert_eq!(state, Some(DomainState::Paused));
            let pid = daemon.guest(id);
            for _ in 0..2 {
                let resume = async || h.resume(call(), id).await;
                through(&daemon, h, moment, "resume", resume).await.unwrap();
                assert_eq!(seen(h, id).await, Some(DomainState::Running));
                let pause = async || h.pause(call(), id).await;
                through(&daemon, h, moment, "pause", pause).await.unwrap();
                assert_eq!(seen(h, id).await, Some(DomainState::Paused));
            }
            let reset = async || h.reset(call(), id).await;
            through(&daemon, h, moment, "reset", reset).await.unwrap();
            assert_eq!(daemon.guest(id), pid, "it is the same process");
            begun += 1;
        } else {
            // QEMU died with its daemon: the start has ended, and is not begun again.
            let ended = matches!(state, Some(DomainState::Ended(_)));
            assert!(ended, "{moment:?}: {started:?}, {state:?}");
        }

        let stop = async || h.stop(call(), id, StopMode::Kill).await;
        let stopped = through(&daemon, h, moment, "stop", stop).await.unwrap();
        assert_eq!(stopped, StopReport::Ended);
        assert!(daemon.guests().is_empty(), "{moment:?}");
        let ended = seen(h, id).await.unwrap();
        if started.is_ok() {
            assert_eq!(ended, DomainState::Ended(Exit::Requested));
        }
        let undefine = async || h.undefine(call(), id).await;
        through(&daemon, h, moment, "undefine", undefine)
            .await
            .unwrap();
        assert_eq!(seen(h, id).await, None);
    }
    assert!(begun > 0, "no start came through");
    assert_eq!(
        daemon.virsh(&["list", "--all", "--name"]).unwrap().trim(),
        ""
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_guest_and_its_devices_survive_a_daemon_that_is_killed_in_any_of_their_calls() {
    let (bench, daemon) = (Bench::new(), Daemon::up());
    let hypervisor = daemon.hypervisor();
    let (h, plug) = (&hypervisor, hypervisor.hot_plug().unwrap());
    let spec = bench.guest();
    let id = spec.id;
    let (shell, boot_id) = boot(h, &spec).await;
    drop(shell);
    let pid = daemon.guest(id);
    let mut whole = 0;
    for (i, moment) in MOMENTS.into_iter().enumerate() {
        let (disk, nic) = (bench.disk(&format!("data-{i}"), "16M"), bench.nic(None));
        let attach = async || plug.attach_disk(call(), id, &disk).await;
        let disk_there = through(&daemon, h, moment, "attach", attach).await;
        let attach = async || plug.attach_nic(call(), id, &nic).await;
        let nic_there = through(&daemon, h, moment, "attach a NIC", attach).await;
        if let Some(error) = disk_there.err().or(nic_there.err()) {
            // libvirt does not know any more what of it QEMU has got already.
            let words = error.report();
            let lost = words.contains("uplicate") || words.contains("in use by");
            assert!(lost, "{words}");
            continue;
        }
        whole += 1;
        let (volume, port, size) = (disk.volume, nic.port, Bytes::mib(32));
        let resize = async || plug.resize_disk(call(), id, volume, size).await;
        through(&daemon, h, moment, "resize", resize).await.unwrap();
        let there = domain(h, id).await;
        assert!(there.disks.contains(&volume) && there.nics.contains(&port));

        let (mut shell, same) = Shell::again(h, id, &i.to_string()).await;
        assert_eq!(same, boot_id, "the guest has gone on");
        let sizes = shell.run("cat /sys/block/vd*/size").await;
        assert!(sizes.contains("65536"), "{sizes}");
        drop(shell);

        let detach = async || plug.detach_disk(call(), id, volume).await;
        through(&daemon, h, moment, "detach", detach).await.unwrap();
        let detach = async || plug.detach_nic(call(), id, port).await;
        through(&daemon, h, moment, "detach a NIC", detach)
            .await
            .unwrap();
    }
    assert!(whole > 0, "nothing came through");
    assert_eq!(daemon.guest(id), pid);
    h.stop(call(), id, StopMode::Kill).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_end_of_a_guest_whose_daemon_is_dead_is_told_afterwards() {
    let (bench, daemon) = (Bench::new(), Daemon::up());
    let hypervisor = daemon.hypervisor();
    let mut spec = bench.guest();
    hypervisor.define(call(), &spec).await.unwrap();
    hypervisor.start(call(), spec.id).await.unwrap();
    let pid = daemon.guest(spec.id);
    block_in_place(|| {
        daemon.kill();
        kill(pid);
        daemon.start();
    });
    let end = seen(&hypervisor, spec.id).await;
    let Some(DomainState::Ended(Exit::Crashed { detail })) = &end else {
        panic!("{end:?}");
    };
    assert!(detail.contains("was killed"), "{detail}");

    // It powers itself off: QEMU waits for libvirt with its end.
    spec.id.epoch = Epoch(2);
    let (mut shell, _) = boot(&hypervisor, &spec).await;
    shell.send("(sleep 2; poweroff) &\n").await;
    shell.wait("# ", SOON).await;
    block_in_place(|| daemon.kill());
    shell.wait("Power down", SOON).await;
    block_in_place(|| daemon.start());
    loop {
        match seen(&hypervisor, spec.id).await {
            Some(DomainState::Running) => {}
            end => {
                assert_eq!(end, Some(DomainState::Ended(Exit::GuestShutdown)));
                break;
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_daemon_that_hangs_holds_up_its_own_calls_to_their_deadline_and_no_others() {
    let (bench, daemon, other) = (Bench::new(), Daemon::up(), Daemon::up());
    let (hypervisor, good) = (daemon.hypervisor(), other.hypervisor());
    let spec = bench.guest();
    let (shell, boot_id) = boot(&hypervisor, &spec).await;
    drop(shell);
    good.list(call()).await.unwrap();
    block_in_place(|| daemon.hang(true));

    let waits = hypervisor.inspect(call(), spec.id);
    let meanwhile = async {
        let briefly = || Call::within(Duration::from_millis(500));
        let read = hypervisor.inspect(briefly(), spec.id).await.unwrap_err();
        assert_eq!(read.kind(), ErrorKind::DeadlineExceeded, "{read}");
        let change = hypervisor.pause(briefly(), spec.id).await.unwrap_err();
        assert_eq!(change.kind(), ErrorKind::OutcomeUnknown, "{change}");
        // Until that is settled nobody is told that the list is whole.
        let list = hypervisor.list(briefly()).await.unwrap_err();
        assert!(is_open(list.kind()) || list.kind() == ErrorKind::DeadlineExceeded);
        // The process's other hypervisors go on.
        assert!(good.list(call()).await.unwrap().is_empty());
    };
    // The first one is on a thread that has a connection. Keepalive ends a connection that is not answered, and so the
    // call that waits in it.
    let (ended, ()) = tokio::join!(waits, meanwhile);
    let ended = ended.unwrap_err();
    assert_eq!(ended.kind(), ErrorKind::Unavailable, "{ended}");

    block_in_place(|| daemon.hang(false));
    let state = seen(&hypervisor, spec.id).await.unwrap();
    assert!(
        [DomainState::Running, DomainState::Paused].contains(&state),
        "{state:?}"
    );
    hypervisor.resume(call(), spec.id).await.unwrap();
    let (_, same) = Shell::again(&hypervisor, spec.id, "after").await;
    assert_eq!(same, boot_id);
    hypervisor
        .stop(call(), spec.id, StopMode::Kill)
        .await
        .unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_daemon_is_told_with_its_address_and_comes_back_by_itself() {
    let daemon = Daemon::up();
    block_in_place(|| daemon.kill());
    let hypervisor = daemon.hypervisor();
    let error = hypervisor.probe(call()).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unavailable);
    let words = error.report();
    assert!(words.contains("no connection to libvirt"), "{words}");
    assert!(words.contains(&daemon.uri()), "{words}");
    block_in_place(|| daemon.start());
    loop {
        match hypervisor.probe(call()).await {
            Ok(host) => {
                assert!(
                    host.capabilities.hypervisor.starts_with("QEMU "),
                    "{host:?}"
                );
                break;
            }
            Err(error) => assert_eq!(error.kind(), ErrorKind::Unavailable),
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_wrong_address_is_refused_in_libvirts_words() {
    for uri in ["nonsense:///", "qemu+nonsense:///system", ""] {
        let hypervisor = LibvirtHypervisor::new(uri);
        let error = hypervisor.probe(call()).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Unavailable, "{uri}: {error}");
    }
}
