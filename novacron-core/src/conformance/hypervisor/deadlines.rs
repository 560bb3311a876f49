//! Deadlines, of every call.

use std::time::Duration;

use super::subject::too_late;
use super::{HypervisorFixture, Subject};
use crate::ErrorKind;
use crate::conformance::refusal;
use crate::driver::{Call, DomainState, StopMode};

fn passed<T: std::fmt::Debug>(what: &str, result: crate::Result<T>) {
    assert_eq!(refusal(what, result), ErrorKind::DeadlineExceeded, "{what}");
}

/// A read whose deadline has passed is not made.
pub async fn reads_after_their_deadline_are_refused(fixture: &dyn HypervisorFixture) {
    let s = Subject::open(fixture).await;
    let id = s.running().await.id;
    passed("probe", s.hypervisor.probe(too_late()).await);
    passed("list", s.hypervisor.list(too_late()).await);
    passed("inspect", s.hypervisor.inspect(too_late(), id).await);
    passed("stats", s.hypervisor.stats(too_late(), id).await);
}

/// A change whose deadline has passed does not happen.
pub async fn changes_after_their_deadline_do_not_happen(fixture: &dyn HypervisorFixture) {
    let s = Subject::open(fixture).await;
    let hypervisor = &s.hypervisor;
    let spec = fixture.spec(s.fresh()).await;
    let id = spec.id;
    passed("define", hypervisor.define(too_late(), &spec).await);
    assert_eq!(s.inspect(id).await, None);
    s.define_as(&spec).await;
    passed("undefine", hypervisor.undefine(too_late(), id).await);
    passed("start", hypervisor.start(too_late(), id).await);
    assert_eq!(s.state(id).await, DomainState::Defined);
    s.start(id).await;
    passed("resume", hypervisor.resume(too_late(), id).await);
    assert_eq!(s.state(id).await, DomainState::Paused);
    s.resume(id).await;
    passed("pause", hypervisor.pause(too_late(), id).await);
    passed("reset", hypervisor.reset(too_late(), id).await);
    for mode in [StopMode::Shutdown, StopMode::Kill] {
        passed("stop", hypervisor.stop(too_late(), id, mode).await);
    }
    assert_eq!(s.state(id).await, DomainState::Running);
}

/// The same of what is attached while the guest runs.
pub async fn hot_plug_after_its_deadline_does_not_happen(fixture: &dyn HypervisorFixture) {
    let s = Subject::open(fixture).await;
    let Some(hot_plug) = s.hot_plug() else { return };
    let (id, disk, nic) = (
        s.running().await.id,
        fixture.disk("plugged").await,
        fixture.nic().await,
    );
    let before = s.inspect(id).await;
    passed("attach", hot_plug.attach_disk(too_late(), id, &disk).await);
    passed("attach", hot_plug.attach_nic(too_late(), id, &nic).await);
    assert_eq!(s.inspect(id).await, before);
}

/// A call that cannot end in time ends all the same, with one of the two errors for that; looked at again, the world
/// can be brought where it should be.
pub async fn calls_end_about_their_deadline(fixture: &dyn HypervisorFixture) {
    let s = Subject::open(fixture).await;
    let spec = fixture.spec(s.fresh()).await;
    let soon = || Call::within(Duration::from_millis(1));
    let in_time = |what: &str, result: crate::Result<()>| {
        if let Err(error) = result {
            let kind = error.kind();
            let allowed = [ErrorKind::DeadlineExceeded, ErrorKind::OutcomeUnknown];
            assert!(allowed.contains(&kind), "{what}: {error}");
        }
    };
    let hypervisor = &s.hypervisor;
    let define = s.soon("define", hypervisor.define(soon(), &spec)).await;
    in_time("define", define);
    s.define_as(&spec).await;
    let start = s.soon("start", hypervisor.start(soon(), spec.id)).await;
    in_time("start", start);
    // What began may still end by itself: a list and the same call again settle it.
    s.list().await;
    s.start(spec.id).await;
    assert_eq!(s.state(spec.id).await, DomainState::Paused);
}
