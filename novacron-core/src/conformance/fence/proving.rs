//! What a receipt proves.

use std::time::Duration;

use super::{FenceFixture, HostCondition, Subject};
use crate::ErrorKind;
use crate::driver::Call;

/// After it, nothing runs on the host and nothing that was begun can start; the receipt says how.
pub async fn host_that_runs_is_fenced(fixture: &dyn FenceFixture) {
    Subject::up(fixture, HostCondition::Runs)
        .await
        .fenced()
        .await;
}

/// A host that answers nobody is no harder: what stood still does not go on afterwards.
pub async fn host_that_stands_still_is_fenced(fixture: &dyn FenceFixture) {
    let s = Subject::up(fixture, HostCondition::StandsStill).await;
    s.fenced().await;
}

/// Nor is one where what starts guests is gone already.
pub async fn host_that_died_is_fenced(fixture: &dyn FenceFixture) {
    let s = Subject::up(fixture, HostCondition::Died).await;
    s.fenced().await;
}

/// A second identical call proves the same in the same way.
pub async fn second_call_answers_the_same(fixture: &dyn FenceFixture) {
    let s = Subject::up(fixture, HostCondition::Runs).await;
    let first = s.fenced().await;
    let second = s.fenced().await;
    assert_eq!(first.method, second.method);
}

/// Two processes that fence one host do not stand in each other's way.
pub async fn calls_at_the_same_time_prove_the_same(fixture: &dyn FenceFixture) {
    let s = Subject::up(fixture, HostCondition::Runs).await;
    let call = Call::within(fixture.patience());
    let both = futures::future::join(
        s.fence(fixture.fence(), call),
        s.fence(fixture.fence(), call),
    );
    let (one, other) = both.await;
    s.assert_proved(&one.unwrap()).await;
    s.assert_proved(&other.unwrap()).await;
}

/// Its caller may leave at any time; whoever asks again gets the proof.
pub async fn call_that_was_dropped_can_be_made_again(fixture: &dyn FenceFixture) {
    let s = Subject::up(fixture, HostCondition::Runs).await;
    let fence = fixture.fence();
    let call = Call::within(fixture.patience());
    for millis in [0, 10, 100] {
        let fenced = fence.fence(call, &s.target);
        // Whether it was faster does not matter.
        let _ = tokio::time::timeout(Duration::from_millis(millis), fenced).await;
    }
    s.fenced().await;
}

/// A deadline that is too short is kept all the same, and what may have been begun is proved by the next call.
pub async fn short_deadline_is_kept(fixture: &dyn FenceFixture) {
    let s = Subject::up(fixture, HostCondition::Runs).await;
    let call = Call::within(Duration::from_millis(2));
    match s.fence(fixture.fence(), call).await {
        Ok(receipt) => s.assert_proved(&receipt).await,
        Err(error) => {
            let allowed = [ErrorKind::DeadlineExceeded, ErrorKind::OutcomeUnknown];
            assert!(allowed.contains(&error.kind()), "{error}");
        }
    }
    s.fenced().await;
}
