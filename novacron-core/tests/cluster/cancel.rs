//! Cancelling operations, each by asking for its opposite.

use std::time::Duration;

use novacron_core::cluster::{OperationHandle, VolumeSpec};
use novacron_core::model::{OperationId, OperationState, Power};
use novacron_core::sim::{FaultPlan, Latency};
use novacron_core::{Bytes, ErrorKind, MiB, Phase};

use crate::{Site, soon, spec, tells};

async fn state(operation: &OperationHandle) -> OperationState {
    operation.get().await.unwrap().state
}

#[tokio::test(start_paused = true)]
async fn a_creation_is_cancelled_by_a_deletion() {
    let mut site = Site::new(1);
    let cluster = site.start().await;
    // It waits for a place that no node has.
    let big = spec("big").memory(MiB(1024 * 1024));
    let vm = cluster.vms().create(big).await.unwrap();
    let create = vm.operation().unwrap();
    tells(create, "too little memory").await;

    let back = create.cancel().await.unwrap();
    let ended = create.wait(soon()).await.unwrap_err();
    assert_eq!(ended.kind(), ErrorKind::Cancelled);
    assert!(ended.message().contains("cancelled by host"), "{ended}");
    back.wait(soon()).await.unwrap();
    assert_eq!(vm.get().await.unwrap_err().kind(), ErrorKind::NotFound);
    let left = site.world.artefacts();
    assert!(left.domains.is_empty() && left.volumes.is_empty());

    // A volume whose making hangs.
    site.world.faults(FaultPlan {
        hang: 1.0,
        hang_effect: 0.0,
        ..FaultPlan::default()
    });
    let spec = VolumeSpec::new("data", Bytes::gib(1));
    let volume = cluster.volumes().create(spec).await.unwrap();
    let create = volume.operation().unwrap();
    let back = create.cancel().await.unwrap();
    assert_eq!(state(create).await, OperationState::Cancelled);
    site.world.heal();
    back.wait(soon()).await.unwrap();
    assert!(site.world.artefacts().volumes.is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_power_request_is_cancelled_by_the_state_before() {
    let mut site = Site::new(1);
    let cluster = site.start().await;
    let vm = cluster.vms().create(spec("web")).await.unwrap();
    vm.wait_for(Phase::Running, soon()).await.unwrap();
    let minute = Duration::from_secs(50);
    site.world.set_latency(Latency {
        shutdown: minute..=minute,
        ..Latency::default()
    });
    let stop = vm.stop().await.unwrap();
    vm.wait_for(Phase::Stopping, soon()).await.unwrap();
    let back = stop.cancel().await.unwrap();
    assert_eq!(state(&stop).await, OperationState::Cancelled);
    // The guest had been asked already: it goes down, and comes up again.
    back.wait(soon()).await.unwrap();
    let view = vm.get().await.unwrap();
    assert_eq!(
        (view.phase, view.vm.power.state),
        (Phase::Running, Power::On)
    );

    let first = vm.stop().await.unwrap();
    let second = vm.kill().await.unwrap();
    let late = first.cancel().await.unwrap_err();
    assert_eq!(late.kind(), ErrorKind::FailedPrecondition, "{late}");
    second.wait(soon()).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn what_has_begun_or_ended_cannot_be_taken_back() {
    let mut site = Site::new(1);
    let cluster = site.start().await;
    let vm = cluster.vms().create(spec("web")).await.unwrap();
    vm.wait_for(Phase::Running, soon()).await.unwrap();
    let refused = async |operation: &OperationHandle, why: &str| {
        let error = operation.cancel().await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::FailedPrecondition, "{error}");
        assert!(error.message().contains(why), "{error}");
    };
    let reset = vm.reset().await.unwrap();
    reset.wait(soon()).await.unwrap();
    refused(&reset, "has ended").await;

    site.world.faults(FaultPlan {
        hang: 1.0,
        hang_effect: 0.0,
        ..FaultPlan::default()
    });
    let begun = vm.reset().await.unwrap();
    let waiting = vm.reset().await.unwrap();
    while begun.get().await.unwrap().progress != "started" {
        tokio::task::yield_now().await;
    }
    refused(&begun, "may have begun").await;
    let back = waiting.cancel().await.unwrap();
    assert_eq!(state(&waiting).await, OperationState::Cancelled);
    assert_eq!(state(&back).await, OperationState::Done);
    let delete = vm.delete().await.unwrap();
    refused(&delete, "being deleted").await;
    site.world.heal();
    delete.wait(soon()).await.unwrap();
    let unknown = cluster.operation(OperationId::from_uuid(vm.id().uuid()));
    assert_eq!(
        unknown.cancel().await.unwrap_err().kind(),
        ErrorKind::NotFound
    );
}
