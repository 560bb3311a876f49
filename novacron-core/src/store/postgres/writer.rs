//! The task that writes: group commit.
//!
//! ```text
//!   callers ──Pending──► queue ──what waits──► commit_group(…), one statement ──► every caller's answer
//!                                   ▲                  │ connection lost: the same group again
//!                                   └──────────────────┘
//! ```
//! One statement is one transaction, so no lock outlives it, whatever becomes of this process. While it is under way
//! others queue up and make the next group: the slower the server, the larger the groups.
//!
//! **An answer that is lost.** The same group is sent again: a commit that was applied answers with its first revision,
//! since its transaction id is known; one that was not is applied now, while its caller still waits. Only a caller whose
//! deadline passes gets `OutcomeUnknown`, and only if its commit had been sent; one that was still queued is withdrawn
//! and gets `Unavailable`. A statement still running for the lost connection holds the lock of the revision or comes
//! after the second one; either way the transaction id is found.

use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};

use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;

use super::Shared;
use super::failure::{self, Fate};
use super::group::{self, Group};
use super::server::{self, Backoff};
use crate::error::{Error, ErrorKind, Result};
use crate::store::{Commit, Revision};

/// The most commits in one group.
const GROUP: usize = 128;
/// The bytes of keys and values after which a group ends.
const GROUP_BYTES: usize = 4 << 20;

/// A commit on its way.
#[derive(Debug)]
pub(super) struct Pending {
    pub(super) commit: Commit,
    pub(super) sending: Arc<Sending>,
    pub(super) reply: oneshot::Sender<Result<Revision>>,
    /// An earlier attempt was sent and never answered.
    pub(super) lost: bool,
}

impl Pending {
    fn fail(self, error: Error) {
        let error = if self.lost {
            unknown("an attempt was not answered, and then the database refused").caused_by(error)
        } else {
            error
        };
        let _ = self.reply.send(Err(error));
    }
}

/// Whether a commit was sent: decides what its caller is told when it has waited long enough.
#[derive(Debug, Default)]
pub(super) struct Sending(AtomicU8);

const QUEUED: u8 = 0;
const SENT: u8 = 1;
const WITHDRAWN: u8 = 2;

impl Sending {
    /// Withdraws the commit; false if it has been sent.
    pub(super) fn withdraw(&self) -> bool {
        self.change(QUEUED, WITHDRAWN) || self.0.load(Ordering::Acquire) == WITHDRAWN
    }

    /// False if it has been withdrawn.
    fn send(&self) -> bool {
        self.change(QUEUED, SENT) || self.0.load(Ordering::Acquire) == SENT
    }

    /// The server said that nothing of it happened.
    fn take_back(&self) {
        self.change(SENT, QUEUED);
    }

    fn change(&self, from: u8, to: u8) -> bool {
        let order = Ordering::AcqRel;
        self.0
            .compare_exchange(from, to, order, Ordering::Acquire)
            .is_ok()
    }
}

/// Serves commits until every handle of the store is gone, or it was closed.
pub(super) async fn run(mut queue: mpsc::Receiver<Pending>, shared: Arc<Shared>) {
    let mut waiting = Vec::new();
    while queue.recv_many(&mut waiting, GROUP).await > 0 {
        while !waiting.is_empty() {
            let rest = waiting.split_off(within(&waiting));
            write(&shared, std::mem::replace(&mut waiting, rest)).await;
            // Its followers see what it wrote as soon as its callers.
            shared.wake.notify_one();
        }
    }
}

/// How many of the commits make a group: at least one.
fn within(waiting: &[Pending]) -> usize {
    let mut bytes = 0;
    let fits = waiting.iter().take_while(|pending| {
        let before = bytes;
        bytes += pending.commit.bytes();
        before < GROUP_BYTES
    });
    fits.count().max(1)
}

/// Applies a group and answers it.
async fn write(shared: &Shared, mut group: Vec<Pending>) {
    let mut backoff = Backoff::default();
    loop {
        // Whoever has gone away will ask for the outcome, if at all.
        group.retain(|pending| !pending.reply.is_closed());
        if group.is_empty() {
            return;
        }
        let until = Instant::now() + shared.server.deadline();
        match shared.server.writer("store.commit", until).await {
            Err((error, true)) => shared.trouble(&error),
            Err((error, false)) => {
                let text = error.report();
                for pending in group {
                    pending.fail(again(&error, &text));
                }
                return;
            }
            Ok(client) => {
                group.retain(|pending| pending.sending.send());
                let mut sent = Group::default();
                for pending in &group {
                    sent.push(&pending.commit);
                }
                let arguments = sent.arguments();
                let result =
                    server::attempt(client, &shared.sql.commit_group, &arguments, until).await;
                let (error, fate) = match result {
                    Ok(rows) if rows.len() == group.len() => {
                        for (pending, row) in group.into_iter().zip(&rows) {
                            let answer = group::answer(&pending.commit, row);
                            let _ = pending.reply.send(answer);
                        }
                        shared.well();
                        return;
                    }
                    Ok(_) => {
                        let message = "the database did not answer for every commit";
                        let error = Error::new(ErrorKind::Internal, "store.commit", message);
                        (error, Fate::Lost)
                    }
                    Err(None) => (server::late("store.commit"), Fate::Lost),
                    Err(Some(error)) => {
                        let fate = failure::fate(&error);
                        (failure::of_statement("store.commit", error), fate)
                    }
                };
                match fate {
                    Fate::Lost => group.iter_mut().for_each(|pending| pending.lost = true),
                    Fate::Again | Fate::Refused => {
                        let fresh = group.iter().filter(|pending| !pending.lost);
                        fresh.for_each(|pending| pending.sending.take_back());
                    }
                }
                match (fate, group.len()) {
                    (Fate::Refused, 1) => {
                        if let Some(pending) = group.pop() {
                            pending.fail(error);
                        }
                        return;
                    }
                    // One of them is to blame, and the others are not to suffer for it.
                    (Fate::Refused, _) => {
                        for pending in group {
                            Box::pin(write(shared, vec![pending])).await;
                        }
                        return;
                    }
                    _ => shared.trouble(&error),
                }
            }
        }
        backoff.wait().await;
    }
}

/// One error for several callers.
fn again(error: &Error, text: &str) -> Error {
    Error::new(error.kind(), "store.commit", error.message().to_owned())
        .caused_by(text.to_owned())
        .retryable(error.is_retryable())
}

/// The error of a commit that may have been applied.
pub(super) fn unknown(message: &'static str) -> Error {
    Error::new(ErrorKind::OutcomeUnknown, "store.commit", message)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Either side is first, never both: a commit that is withdrawn is not sent, and one that is sent not withdrawn.
    #[test]
    fn a_commit_is_sent_or_withdrawn() {
        let sending = Sending::default();
        assert!(sending.send() && sending.send());
        assert!(!sending.withdraw());
        sending.take_back();
        assert!(sending.withdraw() && sending.withdraw());
        assert!(!sending.send());
    }
}
