//! `start`, `resume`, `pause`, `reset`.

use super::subject::next_epoch;
use super::{HypervisorFixture, Subject};
use crate::ErrorKind;
use crate::conformance::refusal;
use crate::driver::{DomainState, GuestEvent};

/// A domain is started with its vCPUs held.
pub async fn start_holds_the_vcpus(fixture: &dyn HypervisorFixture) {
    let s = Subject::open(fixture).await;
    let id = s.defined().await.id;
    s.start(id).await;
    assert_eq!(s.state(id).await, DomainState::Paused);
    assert_eq!(s.listed().await, [id]);
}

/// A second start of a domain that is paused or runs changes nothing.
pub async fn start_again_changes_nothing(fixture: &dyn HypervisorFixture) {
    let s = Subject::open(fixture).await;
    let id = s.paused().await.id;
    s.start(id).await;
    assert_eq!(s.state(id).await, DomainState::Paused);
    s.resume(id).await;
    s.start(id).await;
    assert_eq!(s.state(id).await, DomainState::Running);
}

/// A domain that is not defined is not started.
pub async fn start_of_nothing_is_refused(fixture: &dyn HypervisorFixture) {
    let s = Subject::open(fixture).await;
    let id = s.fresh();
    refusal("start of nothing", s.hypervisor.start(s.call(), id).await);
    assert_eq!(s.inspect(id).await, None);
}

/// An epoch is started once: after it ended, by force or before its vCPUs ever ran, a start is refused.
pub async fn start_of_an_ended_domain_is_refused(fixture: &dyn HypervisorFixture) {
    let s = Subject::open(fixture).await;
    let (ran, never_ran) = (s.running().await.id, s.paused().await.id);
    for id in [ran, never_ran] {
        s.kill(id).await;
        let ended = s.state(id).await;
        let refused = s.hypervisor.start(s.call(), id).await;
        let kind = refusal("a second start of an epoch", refused);
        assert_eq!(kind, ErrorKind::FailedPrecondition);
        assert_eq!(s.state(id).await, ended);
    }
}

/// An epoch that has ended stays so when the driver is opened anew.
pub async fn start_of_an_ended_domain_is_refused_after_reopening(fixture: &dyn HypervisorFixture) {
    let s = Subject::open(fixture).await;
    let id = s.running().await.id;
    s.kill(id).await;
    let s = s.reopen().await;
    assert!(matches!(s.state(id).await, DomainState::Ended(_)));
    let kind = refusal("start", s.hypervisor.start(s.call(), id).await);
    assert_eq!(kind, ErrorKind::FailedPrecondition);
}

/// While one epoch of a VM is paused or runs, another one is not started on the host.
pub async fn start_is_refused_while_another_epoch_is_started(fixture: &dyn HypervisorFixture) {
    let s = Subject::open(fixture).await;
    let first = s.paused().await.id;
    let second = s.define(next_epoch(first)).await.id;
    for state in [DomainState::Paused, DomainState::Running] {
        if state == DomainState::Running {
            s.resume(first).await;
        }
        let kind = refusal("start", s.hypervisor.start(s.call(), second).await);
        assert_eq!(kind, ErrorKind::FailedPrecondition, "{state:?}");
        assert_eq!(s.state(first).await, state);
        let left = s.state(second).await;
        assert!(!is_started(&left), "{left:?}");
    }
}

/// The same, when the driver was opened anew: the lock is the host's, not the driver's.
pub async fn start_is_refused_while_another_epoch_runs_after_reopening(
    fixture: &dyn HypervisorFixture,
) {
    let s = Subject::open(fixture).await;
    let first = s.running().await.id;
    let s = s.reopen().await;
    let second = s.define(next_epoch(first)).await.id;
    let kind = refusal("start", s.hypervisor.start(s.call(), second).await);
    assert_eq!(kind, ErrorKind::FailedPrecondition);
}

/// When one epoch has ended, the next one can be started.
pub async fn start_follows_an_epoch_that_has_ended(fixture: &dyn HypervisorFixture) {
    let s = Subject::open(fixture).await;
    let first = s.running().await.id;
    let second = s.define(next_epoch(first)).await.id;
    s.kill(first).await;
    s.start(second).await;
    s.resume(second).await;
    assert_eq!(s.state(second).await, DomainState::Running);
    assert!(matches!(s.state(first).await, DomainState::Ended(_)));
}

/// Two VMs run beside each other.
pub async fn start_of_another_vm_is_apart(fixture: &dyn HypervisorFixture) {
    let s = Subject::open(fixture).await;
    let (first, second) = (s.running().await.id, s.running().await.id);
    s.kill(first).await;
    assert_eq!(s.state(second).await, DomainState::Running);
}

/// A start that fails says why and leaves only what undefine removes; nothing runs.
pub async fn start_that_fails_leaves_what_undefine_removes(fixture: &dyn HypervisorFixture) {
    let s = Subject::open(fixture).await;
    let spec = fixture.unstartable(s.fresh()).await;
    s.define_as(&spec).await;
    let error = s.hypervisor.start(s.call(), spec.id).await.unwrap_err();
    assert!(!error.message().is_empty(), "{error:?}");
    let left = s.state(spec.id).await;
    assert!(!is_started(&left), "{left:?}");
    s.undefine(spec.id).await;
    assert_eq!(s.listed().await, []);
}

/// Resume lets the vCPUs run; a second one changes nothing.
pub async fn resume_lets_it_run(fixture: &dyn HypervisorFixture) {
    let s = Subject::open(fixture).await;
    let id = s.paused().await.id;
    for _ in 0..2 {
        s.resume(id).await;
        assert_eq!(s.state(id).await, DomainState::Running);
    }
}

/// Pause holds the vCPUs; a second one changes nothing; resume lets them run again.
pub async fn pause_holds_the_vcpus(fixture: &dyn HypervisorFixture) {
    let s = Subject::open(fixture).await;
    let id = s.running().await.id;
    for _ in 0..2 {
        s.pause(id).await;
        assert_eq!(s.state(id).await, DomainState::Paused);
    }
    s.resume(id).await;
    assert_eq!(s.state(id).await, DomainState::Running);
}

/// Pause of a domain that was started and never ran changes nothing.
pub async fn pause_of_a_held_domain_changes_nothing(fixture: &dyn HypervisorFixture) {
    let s = Subject::open(fixture).await;
    let id = s.paused().await.id;
    s.pause(id).await;
    assert_eq!(s.state(id).await, DomainState::Paused);
}

/// A domain that is not started is neither let run, nor held, nor reset, and does not change.
pub async fn resume_pause_and_reset_need_a_started_domain(fixture: &dyn HypervisorFixture) {
    let s = Subject::open(fixture).await;
    let defined = s.defined().await.id;
    let ended = s.running().await.id;
    s.kill(ended).await;
    for id in [defined, ended, s.fresh()] {
        let before = s.inspect(id).await;
        refusal("resume", s.hypervisor.resume(s.call(), id).await);
        refusal("pause", s.hypervisor.pause(s.call(), id).await);
        refusal("reset", s.hypervisor.reset(s.call(), id).await);
        assert_eq!(s.inspect(id).await, before);
    }
}

/// A domain that was reset runs on, and an event tells.
pub async fn reset_tells_and_the_domain_runs_on(fixture: &dyn HypervisorFixture) {
    let s = Subject::open(fixture).await;
    let id = s.running().await.id;
    let mut events = s.hypervisor.events();
    let reset = s.hypervisor.reset(s.call(), id);
    s.soon("reset", reset).await.unwrap();
    super::events::wait_for(&s, &mut events, id, &GuestEvent::Reset).await;
    assert_eq!(s.state(id).await, DomainState::Running);
}

/// Guests outlive the driver: a new one finds them as they are, and commands them.
pub async fn reopened_driver_finds_what_is_started(fixture: &dyn HypervisorFixture) {
    let s = Subject::open(fixture).await;
    let (running, paused) = (s.running().await.id, s.paused().await.id);
    let s = s.reopen().await;
    assert_eq!(s.state(running).await, DomainState::Running);
    assert_eq!(s.state(paused).await, DomainState::Paused);
    s.resume(paused).await;
    s.pause(running).await;
    assert_eq!(s.state(running).await, DomainState::Paused);
    assert_eq!(s.state(paused).await, DomainState::Running);
    s.kill(running).await;
    s.kill(paused).await;
}

pub(super) fn is_started(state: &DomainState) -> bool {
    matches!(state, DomainState::Paused | DomainState::Running)
}
