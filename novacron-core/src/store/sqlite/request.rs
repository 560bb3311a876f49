//! What callers ask of the writer, and how each gets its answer.

use std::time::Duration;

use rusqlite::ErrorCode;
use tokio::sync::{OwnedSemaphorePermit, oneshot};

use super::apply::Group;
use super::failure;
use super::writer::gone;
use crate::error::{Error, ErrorKind, Result};
use crate::store::watch::Committed;
use crate::store::{Commit, Lease, LeaseAnswer, Revision, TxnId, TxnOutcome};

/// Where one answer goes. The caller may have gone away; its place in the queue is taken until the answer all the same.
pub(super) struct Reply<T> {
    operation: &'static str,
    to: oneshot::Sender<Result<T>>,
    _place: Option<OwnedSemaphorePermit>,
}

impl<T> Reply<T> {
    pub(super) fn new(
        operation: &'static str,
        place: Option<OwnedSemaphorePermit>,
    ) -> (Self, oneshot::Receiver<Result<T>>) {
        let (to, answer) = oneshot::channel();
        (
            Self {
                operation,
                to,
                _place: place,
            },
            answer,
        )
    }

    pub(super) fn send(self, result: Result<T>) {
        // An error means that nobody waits any more, which is the caller's right.
        let _ = self.to.send(result);
    }
}

impl<T: Send + 'static> Reply<T> {
    /// Keeps an answer back until the group is on disk.
    fn defer(self, result: Option<Result<T>>) -> Deferred {
        Box::new(move |failure| {
            let answer = match (failure, result) {
                (None, Some(result)) => result,
                (Some(failure), _) => Err(failure.error(self.operation)),
                (None, None) => Err(gone(self.operation)),
            };
            self.send(answer);
        })
    }
}

/// An answer that waits for its group: called with why the group failed, if it did.
pub(super) type Deferred = Box<dyn FnOnce(Option<&Failure>)>;

/// Why a group was not written.
#[derive(Debug)]
pub(super) struct Failure {
    kind: ErrorKind,
    message: &'static str,
    detail: String,
}

impl Failure {
    /// A failure after which nothing of the group can be on disk.
    pub(super) fn before_commit(error: &rusqlite::Error) -> Self {
        let (kind, message) = failure::describe(error);
        Self {
            kind,
            message,
            detail: error.to_string(),
        }
    }

    /// A failure of COMMIT. Without space, or with the lock held by another program, the mark that ends a transaction
    /// was not written; after an error of the disk it may have been.
    pub(super) fn in_commit(error: &rusqlite::Error) -> Self {
        match error.sqlite_error_code() {
            Some(ErrorCode::DiskFull | ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked) => {
                Self::before_commit(error)
            }
            _ => Self {
                kind: ErrorKind::OutcomeUnknown,
                ..Self::before_commit(error)
            },
        }
    }

    pub(super) fn kind(&self) -> ErrorKind {
        self.kind
    }

    fn error(&self, operation: &'static str) -> Error {
        Error::new(
            self.kind,
            operation,
            format!("{}: {}", self.message, self.detail),
        )
    }
}

/// What callers ask.
pub(super) enum Request {
    Commit(Commit, Reply<Revision>),
    Outcome(TxnId, Reply<TxnOutcome>),
    Compact(Revision, Reply<()>),
    Acquire {
        name: String,
        holder: String,
        ttl: Duration,
        reply: Reply<LeaseAnswer>,
    },
    Renew(Lease, Reply<()>),
    Release(Lease, Reply<()>),
    Close(Reply<()>),
    /// Lets the writer die, to see that nobody hangs.
    #[cfg(test)]
    Panic,
}

/// What applying a request came to: its answer, and SQLite's error if that fails the whole group.
pub(super) struct Applied {
    pub(super) deferred: Deferred,
    pub(super) error: Option<rusqlite::Error>,
}

fn applied<T: Send + 'static>(reply: Reply<T>, answer: rusqlite::Result<Result<T>>) -> Applied {
    match answer {
        Ok(result) => Applied {
            deferred: reply.defer(Some(result)),
            error: None,
        },
        Err(error) => Applied {
            deferred: reply.defer(None),
            error: Some(error),
        },
    }
}

impl Request {
    /// About how many bytes it will write.
    pub(super) fn bytes(&self) -> usize {
        match self {
            Self::Commit(commit, _) => commit.bytes(),
            _ => 0,
        }
    }

    /// Applies it within the group's transaction.
    pub(super) fn apply(
        self,
        group: &mut Group<'_>,
        committed: &mut Vec<Committed>,
        floor: &mut Option<Revision>,
    ) -> Applied {
        let now = group.now;
        match self {
            Self::Commit(commit, reply) => {
                let answer = group.commit(&commit).map(|result| {
                    result.map(|(revision, new)| {
                        committed.extend(new);
                        revision
                    })
                });
                applied(reply, answer)
            }
            Self::Outcome(txn, reply) => applied(reply, group.outcome(txn).map(Ok)),
            Self::Compact(before, reply) => {
                let answer = group
                    .compact(before)
                    .map(|compacted| *floor = Some(compacted));
                applied(reply, answer.map(Ok))
            }
            Self::Acquire {
                name,
                holder,
                ttl,
                reply,
            } => {
                let answer = group.lease(&name, |row| row.acquire(&name, &holder, ttl, now));
                applied(reply, answer.map(Ok))
            }
            Self::Renew(lease, reply) => applied(
                reply,
                group.lease(&lease.name, |row| row.renew(&lease, now)),
            ),
            Self::Release(lease, reply) => applied(
                reply,
                group.lease(&lease.name, |row| row.release(&lease)).map(Ok),
            ),
            // Gathering ends a group at a close.
            Self::Close(reply) => applied(reply, Ok(Err(gone("store.close")))),
            #[cfg(test)]
            Self::Panic => panic!("the writer was told to die"),
        }
    }

    /// The answer of one that was not looked at because its group had failed.
    pub(super) fn defer(self) -> Deferred {
        match self {
            Self::Commit(_, reply) => reply.defer(None),
            Self::Outcome(_, reply) => reply.defer(None),
            Self::Acquire { reply, .. } => reply.defer(None),
            Self::Compact(_, reply)
            | Self::Renew(_, reply)
            | Self::Release(_, reply)
            | Self::Close(reply) => reply.defer(None),
            #[cfg(test)]
            Self::Panic => Box::new(|_| ()),
        }
    }

    /// Answers that nothing happened.
    pub(super) fn refuse(self) {
        self.defer()(None);
    }
}
