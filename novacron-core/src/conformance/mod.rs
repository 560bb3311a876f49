//! One suite per trait: what its contract says, as functions that panic when an implementation does otherwise.
//!
//! Each behaviour is one named public function that takes a fixture; a macro per suite makes one test of each, so that
//! a failure names the sentence that does not hold. This crate's own implementations run the same suites as a third
//! party's:
//!
//! ```text
//! novacron_core::store_conformance!(MyFixture::new().await);
//! ```
#![allow(
    clippy::unwrap_used,
    clippy::missing_panics_doc,
    reason = "a suite of assertions: to panic is to report"
)]

pub mod fence;
pub mod hypervisor;
pub mod scheduler;
pub mod storage;
pub mod store;

use std::fmt::Debug;
use std::future::Future;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use crate::error::{ErrorKind, Result};
use crate::time::{Clock, Timestamp};

/// A clock that stands until it is told to go on.
#[derive(Debug)]
pub struct ManualClock(AtomicU64);

impl ManualClock {
    /// A clock that shows `start`.
    pub fn starting_at(start: Timestamp) -> Self {
        Self(AtomicU64::new(start.as_millis()))
    }

    /// Moves it on.
    pub fn advance(&self, by: Duration) {
        self.0.fetch_add(
            u64::try_from(by.as_millis()).unwrap_or(u64::MAX),
            Ordering::SeqCst,
        );
    }
}

impl Default for ManualClock {
    fn default() -> Self {
        Self::starting_at(Timestamp::from_millis(1_700_000_000_000))
    }
}

impl Clock for ManualClock {
    fn now(&self) -> Timestamp {
        Timestamp::from_millis(self.0.load(Ordering::SeqCst))
    }
}

/// The future's output; panics when there is none in time.
pub(crate) async fn within<T>(
    patience: Duration,
    what: &str,
    future: impl Future<Output = T>,
) -> T {
    match tokio::time::timeout(patience, future).await {
        Ok(output) => output,
        Err(_) => panic!("no answer within {patience:?}: {what}"),
    }
}

/// The kind of the error that a call must end with.
pub(crate) fn refusal<T: Debug>(what: &str, result: Result<T>) -> ErrorKind {
    match result {
        Ok(output) => panic!("{what}: not refused, but {output:?}"),
        Err(error) => error.kind(),
    }
}

/// The macro in `suite` names each function of `files` once.
#[cfg(test)]
fn assert_lists(suite: &str, signature: &str, files: &[&str]) {
    let defined = files
        .iter()
        .flat_map(|file| file.lines())
        .filter_map(|line| line.strip_prefix(signature));
    let mut defined: Vec<_> = defined
        .map(|rest| rest.split('(').next().unwrap())
        .collect();
    let (_, list) = suite.split_once("@each $fixture;\n").unwrap();
    let mut listed: Vec<_> = list.split('}').next().unwrap().split_whitespace().collect();
    defined.sort_unstable();
    listed.sort_unstable();
    assert_eq!(defined, listed);
}
