//! The world keeps its own promises.

use std::time::Duration;

use futures::{FutureExt, StreamExt};
use tokio::time::advance;
use uuid::Uuid;

use super::*;
use crate::driver::{Call, DomainId, DomainSpec, DomainState, Hypervisor, StopMode, StopReport};
use crate::model::{ClusterId, Epoch, Exit, Hardware, HostId, MiB, VmId};
use crate::{ErrorKind, SeededIds, Timestamp};

const SECOND: Duration = Duration::from_secs(1);

fn call() -> Call {
    Call::within(10 * SECOND)
}

fn spec(vm: u64, epoch: u64) -> DomainSpec {
    let ids = SeededIds::from_seed(vm);
    DomainSpec {
        id: DomainId {
            cluster: ClusterId::generate(Timestamp::from_millis(0), &ids),
            vm: VmId::generate(Timestamp::from_millis(0), &ids),
            epoch: Epoch(epoch),
        },
        name: format!("vm-{vm}"),
        hardware: Hardware::new(1, MiB(64)),
        disks: Vec::new(),
        nics: Vec::new(),
        nvram: None,
        generation_id: Uuid::nil(),
        tpm: None,
        seed: None,
    }
}

fn world(seed: u64, hosts: usize) -> (SimWorld, Vec<(HostId, SimHypervisor)>) {
    let world = SimWorld::new(seed);
    let hosts = (0..hosts).map(|_| {
        let host = world.add_host(8, MiB(16_384));
        (host, SimHypervisor::new(&world, host))
    });
    let hosts = hosts.collect();
    (world, hosts)
}

async fn run(hypervisor: &SimHypervisor, spec: &DomainSpec) {
    hypervisor.define(call(), spec).await.unwrap();
    hypervisor.start(call(), spec.id).await.unwrap();
    hypervisor.resume(call(), spec.id).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_vm_that_runs_twice_is_written_down() {
    let (world, hosts) = world(1, 2);
    run(&hosts[0].1, &spec(1, 1)).await;
    assert_eq!(
        world.running(spec(1, 1).id.vm),
        [(hosts[0].0, spec(1, 1).id)]
    );
    assert!(world.violations().is_empty());
    run(&hosts[1].1, &spec(1, 2)).await;
    let violations = world.violations();
    assert_eq!(violations.len(), 1);
    let second = (hosts[1].0, spec(1, 2).id);
    assert!(
        matches!(violations[0].kind, ViolationKind::RunsTwice { second: s, .. } if s == second),
        "{}",
        violations[0]
    );
}

#[tokio::test(start_paused = true)]
async fn without_faults_a_call_does_not_wait() {
    let (_, hosts) = world(1, 1);
    let answer = hosts[0].1.define(call(), &spec(1, 1)).now_or_never();
    answer.expect("no waiting").unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_dropped_call_still_takes_effect() {
    let (world, hosts) = world(1, 1);
    world.set_latency(Latency {
        call: SECOND..=SECOND,
        ..Latency::default()
    });
    let spec = spec(1, 1);
    assert!(hosts[0].1.define(call(), &spec).now_or_never().is_none());
    assert!(world.artefacts().domains.is_empty());
    while world.calls_under_way() > 0 {
        advance(SECOND).await;
    }
    assert_eq!(world.artefacts().domains.len(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_late_call_answers_at_its_deadline_and_takes_effect_later() {
    let (world, hosts) = world(1, 1);
    let spec = spec(1, 1);
    world.faults(FaultPlan {
        lie_late: 1.0,
        late_by: SECOND..=SECOND,
        ..FaultPlan::default()
    });
    let error = hosts[0].1.define(call(), &spec).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::OutcomeUnknown);
    world.heal();
    assert_eq!(hosts[0].1.inspect(call(), spec.id).await.unwrap(), None);
    // A list is complete, so it settles what has answered.
    assert_eq!(hosts[0].1.list(call()).await.unwrap().len(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_hanging_call_answers_when_healed() {
    let (world, hosts) = world(1, 1);
    world.faults(FaultPlan {
        hang: 1.0,
        hang_effect: 1.0,
        late_by: SECOND..=SECOND,
        ..FaultPlan::default()
    });
    let hypervisor = hosts[0].1.clone();
    let hung = tokio::spawn(async move { hypervisor.define(call(), &spec(1, 1)).await });
    for _ in 0..100 {
        advance(SECOND).await;
    }
    assert!(!hung.is_finished());
    assert_eq!(world.artefacts().domains.len(), 1);
    world.heal();
    hung.await.unwrap().unwrap();
}

#[tokio::test(start_paused = true)]
async fn an_unreachable_host_does_not_answer_and_its_guests_go_on() {
    let (world, hosts) = world(1, 1);
    let (host, hypervisor) = &hosts[0];
    run(hypervisor, &spec(1, 1)).await;
    world.set_reachable(*host, false);
    let error = hypervisor.list(call()).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unavailable);
    assert_eq!(world.running_count(), 1);
    world.heal();
    assert_eq!(hypervisor.list(call()).await.unwrap().len(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_reboot_ends_all_and_changes_the_boot_id() {
    let (world, hosts) = world(1, 1);
    let (host, hypervisor) = &hosts[0];
    run(hypervisor, &spec(1, 1)).await;
    let (mut events, before) = (hypervisor.events(), world.boot_id(*host));
    world.reboot(*host);
    assert_ne!(world.boot_id(*host), before);
    assert_eq!(world.running_count(), 0);
    assert_eq!(hypervisor.list(call()).await.unwrap(), []);
    assert_eq!(events.next().await, None);
}

#[tokio::test(start_paused = true)]
async fn a_guest_that_ignores_its_power_button_can_be_killed() {
    let (world, hosts) = world(1, 1);
    let hypervisor = &hosts[0].1;
    let id = spec(1, 1).id;
    run(hypervisor, &spec(1, 1)).await;
    world.faults(FaultPlan {
        ignore_acpi: 1.0,
        ..FaultPlan::default()
    });
    let report = hypervisor.stop(call(), id, StopMode::Shutdown).await;
    assert_eq!(report.unwrap(), StopReport::Asked);
    assert_eq!(world.running_count(), 1);
    let report = hypervisor.stop(call(), id, StopMode::Kill).await;
    assert_eq!(report.unwrap(), StopReport::Ended);
    let domain = hypervisor.inspect(call(), id).await.unwrap().unwrap();
    assert_eq!(domain.state, DomainState::Ended(Exit::Requested));
}

/// One run of many calls under every fault: the log, in full.
async fn chaos(seed: u64) -> Vec<LogEntry> {
    let (world, hosts) = world(seed, 3);
    world.keep_log();
    world.set_latency(Latency {
        call: Duration::ZERO..=Duration::from_millis(50),
        shutdown: Duration::ZERO..=SECOND,
    });
    world.faults(FaultPlan {
        guest_crash: 0.1,
        host_reboot: 0.05,
        unreachable: 0.05,
        ..FaultPlan::everything()
    });
    for round in 0..60 {
        for (n, (_, hypervisor)) in hosts.iter().enumerate() {
            let spec = spec(n as u64, round / 2);
            let (id, call) = (spec.id, || Call::within(SECOND));
            let steps = async {
                drop(hypervisor.define(call(), &spec).await);
                drop(hypervisor.start(call(), id).await);
                drop(hypervisor.resume(call(), id).await);
                drop(hypervisor.stop(call(), id, StopMode::Shutdown).await);
                drop(hypervisor.stop(call(), id, StopMode::Kill).await);
                drop(hypervisor.undefine(call(), id).await);
            };
            drop(tokio::time::timeout(3 * SECOND, steps).await);
        }
    }
    world.heal();
    while world.calls_under_way() > 0 {
        advance(SECOND).await;
    }
    world.log()
}

#[tokio::test(start_paused = true)]
async fn a_seed_repeats_exactly() {
    let first = chaos(7).await;
    assert!(first.len() > 200, "{}", first.len());
    assert_eq!(first, chaos(7).await);
    assert_ne!(first, chaos(8).await);
}

#[tokio::test(start_paused = true)]
async fn many_guests_cost_little() {
    let (world, hosts) = world(1, 100);
    for n in 0..10_000_u64 {
        run(&hosts[(n % 100) as usize].1, &spec(n, 1)).await;
    }
    assert_eq!(world.running_count(), 10_000);
}
