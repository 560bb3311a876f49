//! What every [`Fence`] does, one function per sentence of its contract.
//!
//! ```text
//!   fixture ──host(condition)──► something runs there ──fence──► proving: nothing runs, nothing can start
//!                                                            └─► refusing: an error, and what ran still runs
//! ```
//! An implementer writes a [`FenceFixture`] around a host that is really there, with something that runs on it, and calls
//! [`fence_conformance!`](crate::fence_conformance) in a test file. What cannot be looked at is declared in
//! [`FenceFixture::lacks`]: a behaviour that needs it then holds without a look.

mod proving;
mod refusing;

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;

pub use proving::*;
pub use refusing::*;

use crate::conformance::within;
use crate::driver::{Call, Fence, FenceTarget};
use crate::error::Result;
use crate::model::FenceReceipt;

/// How a host is when it is fenced.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HostCondition {
    /// It runs, and guests on it.
    Runs,
    /// It stands still, with its guests, and could go on at any time.
    StandsStill,
    /// What starts guests is gone by itself: the guests run on, or the host is off.
    Died,
}

/// What a fixture may lack.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[non_exhaustive]
pub enum FenceAbility {
    /// A fence for another host than the one at its other end can be told: [`FenceFixture::wrong`].
    WrongHost,
    /// The fence is led to its host by something that can fail: [`FenceFixture::broken`].
    Broken,
    /// The fence holds a secret: [`FenceFixture::secrets`].
    Secrets,
}

/// How the suite gets a fence, and a host to be fenced.
///
/// What a behaviour leaves, also by a panic, is the fixture's to remove when it is dropped.
#[async_trait]
pub trait FenceFixture: Send + Sync {
    /// What cannot be looked at here.
    fn lacks(&self) -> BTreeSet<FenceAbility>;

    /// How long a call may take.
    fn patience(&self) -> Duration;

    /// Brings up the host, with something that runs on it, and then into this condition. Called once.
    async fn host(&self, condition: HostCondition) -> FenceTarget;

    /// The host's fence.
    fn fence(&self) -> Arc<dyn Fence>;

    /// Whether something runs on the host that ran, or was begun, before it was fenced.
    async fn runs(&self) -> bool;

    /// Lets go on what stood still, and does what else could make something run that was begun before.
    async fn provoke(&self);

    /// A fence and a target that do not belong together. Not called without [`FenceAbility::WrongHost`].
    fn wrong(&self, target: &FenceTarget) -> (Arc<dyn Fence>, FenceTarget);

    /// The host's fence, which cannot do its work: its credentials are wrong, or it is cut off. Not called without
    /// [`FenceAbility::Broken`].
    fn broken(&self) -> Vec<Arc<dyn Fence>>;

    /// What must not be seen. Not called without [`FenceAbility::Secrets`].
    fn secrets(&self) -> Vec<String>;
}

/// Makes one `#[tokio::test]` of every behaviour. The argument is an expression for a fresh
/// [`FenceFixture`](crate::conformance::fence::FenceFixture); it is evaluated in each test and may `.await`.
#[macro_export]
macro_rules! fence_conformance {
    ($fixture:expr) => {
        $crate::fence_conformance! { @each $fixture;
            host_that_runs_is_fenced
            host_that_stands_still_is_fenced
            host_that_died_is_fenced
            second_call_answers_the_same
            calls_at_the_same_time_prove_the_same
            call_that_was_dropped_can_be_made_again
            short_deadline_is_kept
            passed_deadline_does_nothing
            wrong_host_is_refused
            broken_fence_proves_nothing
            secrets_are_not_shown
        }
    };
    (@each $fixture:expr; $($behaviour:ident)*) => {
        $(
            #[tokio::test]
            async fn $behaviour() {
                $crate::conformance::fence::$behaviour(&$fixture).await;
            }
        )*
    };
}

/// A host under test.
struct Subject<'f> {
    fixture: &'f dyn FenceFixture,
    target: FenceTarget,
}

impl<'f> Subject<'f> {
    /// A host in this condition; something runs on it unless it died.
    async fn up(fixture: &'f dyn FenceFixture, condition: HostCondition) -> Self {
        let host = fixture.host(condition);
        // Many times what a call takes: a host may have to boot.
        let target = within(fixture.patience() * 4, "the host to come up", host).await;
        let subject = Self { fixture, target };
        if condition != HostCondition::Died {
            subject.assert_runs("before it is fenced").await;
        }
        subject
    }

    fn can(&self, ability: FenceAbility) -> bool {
        !self.fixture.lacks().contains(&ability)
    }

    async fn fence(&self, fence: Arc<dyn Fence>, call: Call) -> Result<FenceReceipt> {
        let fenced = fence.fence(call, &self.target);
        within(self.fixture.patience() * 2, "fence", fenced).await
    }

    /// Fences it, and sees that it is.
    async fn fenced(&self) -> FenceReceipt {
        let call = Call::within(self.fixture.patience());
        let receipt = self.fence(self.fixture.fence(), call).await.unwrap();
        self.assert_proved(&receipt).await;
        receipt
    }

    async fn assert_proved(&self, receipt: &FenceReceipt) {
        assert!(!self.fixture.runs().await, "it runs: {receipt:?}");
        self.fixture.provoke().await;
        assert!(!self.fixture.runs().await, "it goes on: {receipt:?}");
        let word = |c: char| c.is_ascii_lowercase() || c == '-';
        assert!(
            !receipt.method.is_empty() && receipt.method.chars().all(word),
            "the method is one word: {receipt:?}"
        );
        let detail = receipt.detail.trim();
        assert!(
            !detail.is_empty() && !detail.contains('\n'),
            "the detail is one line: {receipt:?}"
        );
    }

    async fn assert_runs(&self, when: &str) {
        assert!(self.fixture.runs().await, "nothing runs {when}");
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_macro_lists_every_behaviour() {
        let files = [include_str!("proving.rs"), include_str!("refusing.rs")];
        crate::conformance::assert_lists(include_str!("mod.rs"), "pub async fn ", &files);
    }
}
