//! A QEMU that stops answering: every call still ends, says so, and a kill works. No guest boots here.
#![allow(clippy::unwrap_used, reason = "to panic is to fail the test")]

mod common;

use std::time::{Duration, Instant};

use common::*;
use novacron_core::ErrorKind;
use novacron_core::driver::{Call, DomainState, Hypervisor, StopMode, StopReport};
use novacron_core::model::Exit;
use rustix::process::Signal;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_qemu_that_hangs_is_unknown_until_it_answers_or_is_killed() {
    let bench = Bench::new();
    let hypervisor = bench.hypervisor();
    let spec = bench.guest();
    hypervisor.define(call(), &spec).await.unwrap();
    hypervisor.start(call(), spec.id).await.unwrap();
    signal(bench.pid(spec.id), Signal::STOP);

    let unknown = |state: DomainState| match state {
        DomainState::Unknown(reason) => assert!(reason.contains("did not answer"), "{reason}"),
        other => panic!("{other:?}"),
    };
    unknown(state(&hypervisor, spec.id).await);
    let refused = hypervisor.resume(call(), spec.id).await.unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::Unavailable, "{refused}");
    let refused = hypervisor.undefine(call(), spec.id).await.unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::FailedPrecondition, "{refused}");
    assert!(refused.message().contains("may run"), "{refused}");
    let begun = Instant::now();
    let brief = Call::within(Duration::from_millis(200));
    let late = hypervisor.inspect(brief, spec.id).await.unwrap_err();
    assert_eq!(late.kind(), ErrorKind::DeadlineExceeded, "{late}");
    assert!(begun.elapsed() < Duration::from_secs(2));

    // A new host application finds it hanging, and goes on once it answers.
    drop(hypervisor);
    let hypervisor = bench.hypervisor();
    let listed = hypervisor.list(call()).await.unwrap();
    assert_eq!(listed.len(), 1);
    unknown(listed[0].state.clone());
    signal(bench.pid(spec.id), Signal::CONT);
    assert_eq!(state(&hypervisor, spec.id).await, DomainState::Paused);

    signal(bench.pid(spec.id), Signal::STOP);
    let killed = hypervisor.stop(call(), spec.id, StopMode::Kill).await;
    assert_eq!(killed.unwrap(), StopReport::Ended);
    let ended = state(&hypervisor, spec.id).await;
    assert_eq!(ended, DomainState::Ended(Exit::Requested));
    hypervisor.undefine(call(), spec.id).await.unwrap();
    assert_eq!(bench.left(), [""; 0]);
}
