//! A real guest that another process looks after: its console to the last byte, its agent and its screen, over the socket
//! between the two processes.
#![allow(clippy::unwrap_used, reason = "to panic is to fail the test")]

mod common;

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;

use novacron_core::cluster::{Cluster, Peers};
use novacron_core::driver::ConsoleStart;
use novacron_core::model::{MiB, Role};
use novacron_core::store::MemoryStore;
use novacron_core::{Deadline, ErrorKind, Phase, SystemClock, VmSpec};
use tokio::io::{AsyncReadExt, AsyncWriteExt, split};
use tokio::time::timeout;

use common::*;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_guest_is_reached_through_the_process_that_looks_after_it() {
    let bench = Bench::new();
    let store = MemoryStore::shared(Arc::new(SystemClock));
    let process = |role, peers| {
        let builder = Cluster::builder("peers").store(store.clone());
        builder.role(role).peers(peers)
    };
    let listening = Peers::listening(SocketAddr::from((Ipv4Addr::LOCALHOST, 0)));
    let owner = process(Role::Owner, listening).node("alpha", bench.hypervisor());
    let controller = process(Role::Controller, Peers::asking_only()).build();
    let (controller, owner) = (controller.await.unwrap(), owner.build().await.unwrap());
    let spec = VmSpec::new("web").memory(MiB(192));
    let spec = spec.kernel(bench.guest().hardware.kernel.unwrap());
    let vm = controller.vms().create(spec).await.unwrap();
    vm.wait_for(Phase::Running, Deadline::after(SOON))
        .await
        .unwrap();

    let console = vm.console(call(), ConsoleStart::Last(u64::MAX)).await;
    let mut shell = Shell::on(console.unwrap());
    shell.ready().await;
    assert_eq!(shell.run("echo typed").await, "typed");

    // A reader that comes back goes on where it was.
    let offset = shell.offset();
    shell.send("echo more\n").await;
    drop(shell);
    let console = vm.console(call(), ConsoleStart::Offset(offset)).await;
    let console = console.unwrap();
    assert_eq!(console.offset, offset);
    let mut shell = Shell::on(console);
    shell.wait("more\r\n", SOON).await;
    shell.wait("# ", SOON).await;

    let argv = |script: &str| ["/bin/sh", "-c", script].map(str::to_owned);
    // The agent of a guest that has just booted may be on its way.
    let answers = async { while vm.ping(call()).await.is_err() {} };
    timeout(BOOT, answers).await.unwrap();
    let big = argv("head -c 3000000 /dev/zero; echo told >&2; exit 3");
    let output = vm.exec(call(), &big).await.unwrap();
    assert_eq!(output.exit_code, Some(3));
    assert_eq!(
        (output.stdout.len(), &output.stderr[..]),
        (3_000_000, &b"told\n"[..])
    );
    let nothing = vm.exec(call(), &[]).await.unwrap_err();
    assert_eq!(nothing.kind(), ErrorKind::Invalid);
    assert_eq!(nothing.problems()[0].field, "argv", "{nothing}");
    assert_eq!(
        vm.freeze(call()).await.unwrap(),
        vm.thaw(call()).await.unwrap()
    );

    // Its screen.
    let mut screen = vm.vnc(call()).await.unwrap();
    let mut version = [0; 12];
    screen.read_exact(&mut version).await.unwrap();
    assert!(version.starts_with(b"RFB 003."), "{version:?}");
    // A viewer that ends its side ends the connection, although the screen stands still.
    screen.shutdown().await.unwrap();
    let over = timeout(SOON, screen.read_to_end(&mut Vec::new())).await;
    over.unwrap().unwrap();

    // What is done to one that hangs: its kernel counts the interrupts.
    vm.inject_nmi(call()).await.unwrap();
    let count = argv("awk '/NMI:/ { print $2 }' /proc/interrupts");
    let counted = async || {
        let output = vm.exec(call(), &count).await.unwrap().stdout;
        String::from_utf8_lossy(&output)
            .trim()
            .parse::<u32>()
            .unwrap()
    };
    timeout(SOON, async { while counted().await == 0 {} })
        .await
        .unwrap();
    let core = bench.path().join("core");
    vm.dump_memory(call(), &core).await.unwrap();
    assert!(core.metadata().unwrap().len() > 192 << 20);
    let again = vm.dump_memory(call(), &core).await.unwrap_err();
    assert_eq!(again.kind(), ErrorKind::AlreadyExists, "{again}");

    // The end of a guest, while more is typed.
    shell.send("echo l\"\"ast words; poweroff -f\n").await;
    let (mut output, mut input) = split(shell.into_inner().stream);
    let typist = tokio::spawn(async move { while input.write_all(b"\n").await.is_ok() {} });
    let mut rest = Vec::new();
    let ended = timeout(SOON, output.read_to_end(&mut rest)).await;
    ended.unwrap().unwrap();
    let rest = String::from_utf8_lossy(&rest);
    assert!(rest.contains("last words"), "{rest}");
    typist.abort();
    vm.wait_for(Phase::Stopped, Deadline::after(SOON))
        .await
        .unwrap();
    let stopped = vm.console(call(), ConsoleStart::Last(0)).await.unwrap_err();
    assert_eq!(stopped.kind(), ErrorKind::FailedPrecondition);
    for process in [controller, owner] {
        process.shutdown(Deadline::after(SOON)).await.unwrap();
    }
}
