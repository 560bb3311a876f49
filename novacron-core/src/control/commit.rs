//! From a draft to a commit that is known to have happened or not.

use super::plan::Draft;
use crate::error::{Error, ErrorKind, Result};
use crate::model::{Event, EventId, uuid_v7};
use crate::records;
use crate::store::{Commit, Revision, Store, TxnId, TxnOutcome};
use crate::time::{IdSource, Timestamp};

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
pub(crate) async fn commit_known(store: &dyn Store, commit: Commit) -> Result<Revision> {
    let txn = commit.txn;
    match store.commit(commit).await {
        Err(error) if error.kind() == ErrorKind::OutcomeUnknown => {
            match store.outcome(txn).await? {
                TxnOutcome::Committed(revision) => Ok(revision),
                TxnOutcome::NotCommitted => Err(Error::new(
                    ErrorKind::Unavailable,
                    "store.commit",
                    "the commit was lost and did not happen",
                )
                .caused_by(error)),
            }
        }
        result => result,
    }
}
