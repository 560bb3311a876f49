//! From a draft to a commit that is known to have happened or not.

use std::time::Duration;

use super::panics::caught;
use super::plan::Draft;
use super::runtime::wait;
use crate::error::{Error, ErrorKind, Result};
use crate::model::{Event, EventId, uuid_v7};
use crate::records;
use crate::store::{Commit, OUTCOMES_KEPT, Revision, Store, TxnId, TxnOutcome};
use crate::time::{Deadline, IdSource, Timestamp};

/// A draft as a commit, with its events.
pub(crate) fn finish(draft: Draft, now: Timestamp, ids: &dyn IdSource) -> Result<Commit> {
    let mut commit = Commit::new(TxnId(uuid_v7(now, ids)));
    commit.preconditions = draft.requires;
    commit.ops = draft.ops;
    for (object, project, reason, message) in draft.events {
        let id = EventId::generate(now, ids);
        let event = Event {
            id,
            at: now,
            object,
            project,
            reason: reason.to_owned(),
            message,
        };
        commit.ops.push(records::put(&id, &event)?);
    }
    Ok(commit)
}

/// Commits, and finds out what became of a commit whose answer was lost.
///
/// # Errors
/// [`ErrorKind::OutcomeUnknown`] when the store does not tell that either: the change may have been made.
pub(crate) async fn commit_known(store: &dyn Store, commit: Commit) -> Result<Revision> {
    let txn = commit.txn;
    match caught("store.commit", store.commit(commit)).await {
        Err(lost) if lost.kind() == ErrorKind::OutcomeUnknown => outcome_of(store, txn, lost).await,
        result => result,
    }
}

/// As [`commit_known`], for the control loop: what is not known is asked again, for nothing may be decided about the
/// object, and its booking given back, while the change may have been made.
pub(super) async fn commit_settled(store: &dyn Store, commit: Commit) -> Result<Revision> {
    let txn = commit.txn;
    let mut result = commit_known(store, commit).await;
    // A store does not remember for longer; by then the watch has told.
    let limit = Deadline::after(OUTCOMES_KEPT);
    let mut after = Duration::from_millis(100);
    loop {
        match result {
            Err(lost)
                if lost.kind() == ErrorKind::OutcomeUnknown && !limit.remaining().is_zero() =>
            {
                tracing::warn!(error = %lost.report(), "a commit's outcome is asked for again");
                wait(Some(after)).await;
                after = (after * 2).min(Duration::from_secs(10));
                result = outcome_of(store, txn, lost).await;
            }
            result => return result,
        }
    }
}

/// What became of a commit that answered `lost`.
async fn outcome_of(store: &dyn Store, txn: TxnId, lost: Error) -> Result<Revision> {
    match caught("store.outcome", store.outcome(txn)).await {
        Ok(TxnOutcome::Committed(revision)) => Ok(revision),
        Ok(TxnOutcome::NotCommitted) => Err(Error::new(
            ErrorKind::Unavailable,
            "store.commit",
            "the commit was lost and did not happen",
        )
        .caused_by(lost)),
        Err(error) => Err(Error::new(
            ErrorKind::OutcomeUnknown,
            "store.commit",
            "the change may have been made: the store does not tell",
        )
        .with("txn", txn.0)
        .caused_by(error)),
    }
}
