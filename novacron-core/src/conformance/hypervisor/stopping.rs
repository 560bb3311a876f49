//! `stop`, and guests that end by themselves.

use super::{Ability, GuestAct, HypervisorFixture, Subject};
use crate::ErrorKind;
use crate::conformance::refusal;
use crate::driver::{DomainState, StopMode, StopReport};
use crate::model::Exit;

/// A domain that does not exist has ended, however it is stopped.
pub async fn stop_of_nothing_has_ended(fixture: &dyn HypervisorFixture) {
    let s = Subject::open(fixture).await;
    let id = s.fresh();
    for mode in [StopMode::Shutdown, StopMode::Kill] {
        assert_eq!(s.stop(id, mode).await, StopReport::Ended);
        assert_eq!(s.inspect(id).await, None);
    }
}

/// A domain that was never started has ended for good: neither a start nor another define brings it back.
pub async fn stop_of_a_defined_domain_has_ended(fixture: &dyn HypervisorFixture) {
    let s = Subject::open(fixture).await;
    for mode in [StopMode::Shutdown, StopMode::Kill] {
        let spec = s.defined().await;
        let id = spec.id;
        assert_eq!(s.stop(id, mode).await, StopReport::Ended);
        s.define_as(&spec).await;
        let start = s.hypervisor.start(s.call(), id).await;
        let kind = refusal("a start after a stop", start);
        assert_eq!(kind, ErrorKind::FailedPrecondition);
        assert_eq!(s.state(id).await, DomainState::Ended(Exit::Requested));
        s.undefine(id).await;
    }
}

/// A killed domain has ended by request.
pub async fn kill_ends_a_running_domain(fixture: &dyn HypervisorFixture) {
    let s = Subject::open(fixture).await;
    let id = s.running().await.id;
    assert_eq!(s.stop(id, StopMode::Kill).await, StopReport::Ended);
    assert_eq!(s.state(id).await, DomainState::Ended(Exit::Requested));
}

/// So has one that was paused.
pub async fn kill_ends_a_paused_domain(fixture: &dyn HypervisorFixture) {
    let s = Subject::open(fixture).await;
    let id = s.paused().await.id;
    assert_eq!(s.stop(id, StopMode::Kill).await, StopReport::Ended);
    assert_eq!(s.state(id).await, DomainState::Ended(Exit::Requested));
}

/// A second stop, of either kind, answers that it has ended and changes nothing.
pub async fn stop_again_has_ended(fixture: &dyn HypervisorFixture) {
    let s = Subject::open(fixture).await;
    let id = s.running().await.id;
    s.kill(id).await;
    let ended = s.state(id).await;
    for mode in [StopMode::Kill, StopMode::Shutdown] {
        assert_eq!(s.stop(id, mode).await, StopReport::Ended);
        assert_eq!(s.state(id).await, ended);
    }
}

/// A killed domain's images are closed: the next epoch starts with the same disks at once.
pub async fn kill_closes_the_images(fixture: &dyn HypervisorFixture) {
    let s = Subject::open(fixture).await;
    let mut spec = s.running().await;
    for _ in 0..3 {
        s.kill(spec.id).await;
        spec.id = super::subject::next_epoch(spec.id);
        s.define_as(&spec).await;
        s.start(spec.id).await;
    }
    assert_eq!(s.state(spec.id).await, DomainState::Paused);
}

/// A guest that notices its power button is asked, and ends.
pub async fn shutdown_is_asked_and_the_guest_ends(fixture: &dyn HypervisorFixture) {
    let s = Subject::open(fixture).await;
    if !s.can(Ability::PowerButton) {
        return;
    }
    let id = s.booted().await.id;
    assert_eq!(s.stop(id, StopMode::Shutdown).await, StopReport::Asked);
    let exit = s.exit(id).await;
    assert!(
        matches!(exit, Exit::Requested | Exit::GuestShutdown),
        "{exit:?}"
    );
    assert_eq!(s.stop(id, StopMode::Shutdown).await, StopReport::Ended);
}

/// Asking again asks again, or answers that it has ended; a kill then ends what still goes down.
pub async fn shutdown_again_asks_again(fixture: &dyn HypervisorFixture) {
    let s = Subject::open(fixture).await;
    let id = s.running().await.id;
    for _ in 0..2 {
        let report = s.stop(id, StopMode::Shutdown).await;
        let state = s.state(id).await;
        if report == StopReport::Ended {
            assert!(matches!(state, DomainState::Ended(_)), "{state:?}");
        }
    }
    s.kill(id).await;
    assert!(matches!(s.state(id).await, DomainState::Ended(_)));
}

/// A guest that is held when it is asked does not end by that alone; it can be killed.
pub async fn shutdown_of_a_paused_domain_can_be_followed_by_a_kill(
    fixture: &dyn HypervisorFixture,
) {
    let s = Subject::open(fixture).await;
    let id = s.paused().await.id;
    s.stop(id, StopMode::Shutdown).await;
    s.kill(id).await;
    assert!(matches!(s.state(id).await, DomainState::Ended(_)));
}

/// A guest that powered itself off is told from one that was stopped.
pub async fn guest_that_powers_itself_off_has_ended(fixture: &dyn HypervisorFixture) {
    ends_as(fixture, GuestAct::PowerOff, |exit| {
        *exit == Exit::GuestShutdown
    })
    .await;
}

/// A guest whose kernel panicked is told from one that powered itself off.
pub async fn guest_that_panics_has_ended(fixture: &dyn HypervisorFixture) {
    ends_as(fixture, GuestAct::Panic, |exit| *exit == Exit::Panicked).await;
}

/// A guest whose hypervisor process went by itself has crashed.
pub async fn guest_whose_process_dies_has_ended(fixture: &dyn HypervisorFixture) {
    ends_as(fixture, GuestAct::Crash, |exit| {
        matches!(exit, Exit::Crashed { .. })
    })
    .await;
}

async fn ends_as(
    fixture: &dyn HypervisorFixture,
    act: GuestAct,
    wanted: impl Fn(&Exit) -> bool + Copy,
) {
    let s = Subject::open(fixture).await;
    if !s.can(Ability::Guest(act)) {
        return;
    }
    let id = s.booted().await.id;
    fixture.guest_does(id, act).await;
    let exit = s.exit(id).await;
    assert!(wanted(&exit), "after {act:?}: {exit:?}");
    assert_eq!(s.stop(id, StopMode::Shutdown).await, StopReport::Ended);

    // And when nobody looked.
    let id = s.booted().await.id;
    let s = s.reopen_after(fixture.guest_does(id, act)).await;
    let exit = s.exit(id).await;
    assert!(wanted(&exit), "after {act:?} that nobody saw: {exit:?}");
}

/// An end stays known, with its reason, until the domain is undefined.
pub async fn end_is_kept_until_undefined(fixture: &dyn HypervisorFixture) {
    let s = Subject::open(fixture).await;
    let id = s.running().await.id;
    s.kill(id).await;
    let ended = s.inspect(id).await;
    let s = s.reopen().await;
    assert_eq!(s.inspect(id).await, ended);
    assert_eq!(s.listed().await, [id]);
}
