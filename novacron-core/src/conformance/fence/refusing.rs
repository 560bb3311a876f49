//! Where there is no proof, there is an error.

use std::time::Duration;

use super::{FenceAbility, FenceFixture, HostCondition, Subject};
use crate::ErrorKind;
use crate::conformance::{refusal, within};
use crate::driver::Call;

/// A call whose deadline has passed does nothing.
pub async fn passed_deadline_does_nothing(fixture: &dyn FenceFixture) {
    let s = Subject::up(fixture, HostCondition::Runs).await;
    let late = s.fence(fixture.fence(), Call::within(Duration::ZERO)).await;
    assert_eq!(refusal("fence", late), ErrorKind::DeadlineExceeded);
    s.assert_runs("after a call that came too late").await;
}

/// A host that the fence can tell not to be its own is left alone.
pub async fn wrong_host_is_refused(fixture: &dyn FenceFixture) {
    let s = Subject::up(fixture, HostCondition::Runs).await;
    if !s.can(FenceAbility::WrongHost) {
        return;
    }
    let (fence, target) = fixture.wrong(&s.target);
    let fenced = fence.fence(Call::within(fixture.patience()), &target);
    let fenced = within(fixture.patience() * 2, "fence", fenced).await;
    let kind = refusal("the wrong host", fenced);
    let allowed = [ErrorKind::NotFound, ErrorKind::FailedPrecondition];
    assert!(allowed.contains(&kind), "{kind}");
    s.assert_runs("though the fence was refused").await;
}

/// A fence that cannot do its work says so before its deadline, and proves nothing.
pub async fn broken_fence_proves_nothing(fixture: &dyn FenceFixture) {
    let s = Subject::up(fixture, HostCondition::Runs).await;
    if !s.can(FenceAbility::Broken) {
        return;
    }
    for fence in fixture.broken() {
        let call = Call::within(fixture.patience() / 4);
        let kind = refusal("a broken fence", s.fence(fence, call).await);
        assert_ne!(kind, ErrorKind::Internal);
        s.assert_runs("though the fence failed").await;
    }
    s.fenced().await;
}

/// No secret is in what the fence shows of itself, in its errors or in its receipt.
pub async fn secrets_are_not_shown(fixture: &dyn FenceFixture) {
    let s = Subject::up(fixture, HostCondition::Runs).await;
    if !s.can(FenceAbility::Secrets) {
        return;
    }
    let mut shown = vec![format!("{:?}", fixture.fence())];
    if s.can(FenceAbility::Broken) {
        for fence in fixture.broken() {
            let call = Call::within(fixture.patience() / 4);
            let error = s.fence(fence, call).await.unwrap_err();
            shown.push(format!("{error} {error:?} {}", error.report()));
        }
    }
    shown.push(format!("{:?}", s.fenced().await));
    for secret in fixture.secrets() {
        for text in &shown {
            assert!(!text.contains(&secret), "it shows a secret: {text}");
        }
    }
}
