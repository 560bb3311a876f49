//! How guests end, and how that is told.
#![allow(clippy::unwrap_used, reason = "to panic is to fail the test")]

mod common;

use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};
use std::time::Duration;

use common::*;
use novacron_core::driver::{
    ConsoleStart, DomainId, DomainState, GuestEvent, Hypervisor, StopMode, StopReport,
};
use novacron_core::model::{Epoch, Exit};
use novacron_kvm::QemuHypervisor;
use rustix::process::{Pid, Signal, WaitId, WaitIdOptions, waitid};
use tokio::time::{interval, timeout};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_end_is_told_from_the_others() {
    let bench = Bench::new();
    let mut hypervisor = bench.hypervisor();
    let mut events = hypervisor.events();
    let mut spec = bench.guest();

    // It ignores the power button.
    let (mut shell, first_boot) = boot(&hypervisor, &spec).await;
    shell.run("kill $(cat /run/acpid.pid)").await;
    assert_eq!(
        hypervisor
            .stop(call(), spec.id, StopMode::Shutdown)
            .await
            .unwrap(),
        StopReport::Asked
    );
    shell.run("sleep 1").await;
    assert_eq!(state(&hypervisor, spec.id).await, DomainState::Running);

    // Reset, it boots anew in the same start; then it is killed.
    hypervisor.reset(call(), spec.id).await.unwrap();
    wait_event(&mut events, spec.id, GuestEvent::Reset).await;
    assert_ne!(shell.ready().await, first_boot);
    assert_eq!(
        hypervisor
            .stop(call(), spec.id, StopMode::Kill)
            .await
            .unwrap(),
        StopReport::Ended
    );
    assert_eq!(
        hypervisor
            .stop(call(), spec.id, StopMode::Kill)
            .await
            .unwrap(),
        StopReport::Ended
    );
    assert_eq!(
        state(&hypervisor, spec.id).await,
        DomainState::Ended(Exit::Requested)
    );
    let history = hypervisor
        .consoles()
        .unwrap()
        .open(call(), spec.id, ConsoleStart::Last(u64::MAX))
        .await;
    assert!(history.is_ok(), "an ended domain's console can be read");

    // The next start: QEMU is killed behind our back.
    spec.id.epoch = Epoch(2);
    hypervisor.define(call(), &spec).await.unwrap();
    hypervisor.start(call(), spec.id).await.unwrap();
    kill(bench.pid(spec.id));
    let DomainState::Ended(Exit::Crashed { detail }) =
        wait_end(&hypervisor, &mut events, spec.id).await
    else {
        panic!("no crash")
    };
    assert!(detail.contains("signal 9"), "{detail}");

    // The start after it: somebody on the host ends QEMU in an orderly way, seen and unseen.
    for epoch in [3, 4] {
        spec.id.epoch = Epoch(epoch);
        hypervisor.define(call(), &spec).await.unwrap();
        hypervisor.start(call(), spec.id).await.unwrap();
        let pid = bench.pid(spec.id);
        let ended = if epoch == 3 {
            let end = wait_end(&hypervisor, &mut events, spec.id);
            tokio::select! {
                end = end => end,
                never = asked_to_end(pid) => match never {},
            }
        } else {
            drop((events, hypervisor));
            tokio::select! {
                () = child_ended(pid) => {}
                never = asked_to_end(pid) => match never {},
            }
            hypervisor = bench.hypervisor();
            events = hypervisor.events();
            state(&hypervisor, spec.id).await
        };
        let DomainState::Ended(exit @ Exit::Terminated { .. }) = &ended else {
            panic!("start {epoch}: {ended:?}")
        };
        assert!(exit.is_failure());
    }

    // The last: the guest powers off while nobody is there.
    spec.id.epoch = Epoch(5);
    let (mut shell, _) = boot(&hypervisor, &spec).await;
    shell.send("(sleep 1; poweroff) &\n").await;
    shell.wait("# ", SOON).await;
    drop((shell, events, hypervisor));
    halted(&bench.dir(spec.id).join("qmp")).await;
    let hypervisor = bench.hypervisor();
    let ends: Vec<_> = hypervisor
        .list(call())
        .await
        .unwrap()
        .into_iter()
        .map(|domain| domain.state)
        .collect();
    assert_eq!(
        ends.iter()
            .filter(|end| **end == DomainState::Ended(Exit::GuestShutdown))
            .count(),
        1,
        "{ends:?}"
    );
    assert_eq!(ends.len(), 5);
    for epoch in 1..=5 {
        hypervisor
            .undefine(
                call(),
                DomainId {
                    epoch: Epoch(epoch),
                    ..spec.id
                },
            )
            .await
            .unwrap();
    }
    assert_eq!(bench.left(), [""; 0]);
}

/// Asks QEMU to end, and again: it loses a signal that comes too early.
async fn asked_to_end(pid: u32) -> std::convert::Infallible {
    let mut again = interval(Duration::from_secs(2));
    loop {
        again.tick().await;
        signal(pid, Signal::TERM);
    }
}

/// Returns when a child has ended; reaping it is the hypervisor's.
async fn child_ended(pid: u32) {
    let pid = Pid::from_raw(pid.try_into().unwrap()).unwrap();
    let unreaped = WaitIdOptions::EXITED | WaitIdOptions::NOWAIT;
    let wait = move || waitid(WaitId::Pid(pid), unreaped);
    let ended = timeout(SOON, tokio::task::spawn_blocking(wait)).await;
    ended.expect("QEMU ends").unwrap().unwrap();
}

const HOST_STATE: &str = "NOVACRON_TEST_HOST_STATE";
const HOST_VM: &str = "NOVACRON_TEST_HOST_VM";

/// The host application that the test below kills: this test binary, run again with the variables set.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn host_application() {
    let (Ok(folder), Ok(vm)) = (std::env::var(HOST_STATE), std::env::var(HOST_VM)) else {
        return;
    };
    let bench = Bench::new();
    let mut spec = bench.guest();
    spec.id = serde_json::from_str(&vm).unwrap();
    let hypervisor = QemuHypervisor::new(folder);
    let (_shell, boot_id) = boot(&hypervisor, &spec).await;
    println!("\nBOOT={boot_id}");
    std::future::pending::<()>().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_guest_outlives_a_host_application_that_is_killed() {
    let bench = Bench::new();
    let id = bench.domain_id();
    guest_dir();
    let mut host = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "host_application", "--nocapture"])
        .env(HOST_STATE, bench.state())
        .env(HOST_VM, serde_json::to_string(&id).unwrap())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let output = BufReader::new(host.stdout.take().unwrap());
    let find = move || {
        output
            .lines()
            .find_map(|line| Some(line.unwrap().strip_prefix("BOOT=")?.to_owned()))
    };
    let boot_id = timeout(BOOT, tokio::task::spawn_blocking(find)).await;
    host.kill().unwrap();
    host.wait().unwrap();
    let boot_id = boot_id
        .unwrap()
        .unwrap()
        .expect("the host application came up");

    let hypervisor = bench.hypervisor();
    assert_eq!(state(&hypervisor, id).await, DomainState::Running);
    let (mut shell, same) = Shell::again(&hypervisor, id, "one").await;
    assert_eq!(same, boot_id);
    let mut events = hypervisor.events();
    shell.run("echo alive").await;
    shell.send("poweroff\n").await;
    assert_eq!(
        wait_end(&hypervisor, &mut events, id).await,
        DomainState::Ended(Exit::GuestShutdown)
    );
    hypervisor.undefine(call(), id).await.unwrap();
}
