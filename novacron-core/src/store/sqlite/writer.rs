//! The thread that writes: group commit.
//!
//! ```text
//!   callers ──Request──► queue ──gather──► BEGIN; apply each; COMMIT (one sync) ──► watchers ──► every caller's answer
//!                                  ▲                                                       │
//!                                  └────────────── what was queued meanwhile ──────────────┘
//! ```
//! One durable commit costs one sync, so what waits is committed together: the slower the disk, the larger the groups.
//! A request is applied or refused by itself (its preconditions are checked before it writes), in the order of the
//! queue; nobody is answered before the sync. If SQLite fails, the group is rolled back and everybody in it gets that
//! error, also who was refused: the refusal was decided on data that is gone. Only a failure of COMMIT itself leaves the
//! outcome open (`OutcomeUnknown`); asking for it writes, which settles it on disk.
//!
//! The thread ends when the store is closed or its last handle is dropped, and it owns the lock file, so the database
//! is locked until the last write is over. If it dies, its queue dies with it: callers get an error, watches end.

use std::sync::Arc;
use std::sync::mpsc::{Receiver, TryRecvError};
use std::time::{Duration, Instant};

use rusqlite::Connection;

use super::Shared;
use super::apply::Group;
use super::beats::Unsaved;
use super::failure;
use super::lock::LockFile;
use super::request::{Deferred, Failure, Reply, Request};
use crate::error::{Error, ErrorKind};
use crate::store::watch::{Committed, Log};
use crate::store::{MAX_COMMIT_BYTES, Revision};

/// The most requests in one group: bounds the memory of a transaction and the wait of the first in it.
const GROUP: usize = 1024;
/// The most bytes in one group.
const GROUP_BYTES: usize = 16 * MAX_COMMIT_BYTES;
/// The longest wait for callers that were answered and commit again at once.
const GATHER: Duration = Duration::from_millis(2);
/// The most heartbeats saved along with a group.
const BEATS: usize = 256;

/// The writing side of a store, to be moved into its thread.
pub(super) struct Writer {
    connection: Connection,
    requests: Receiver<Request>,
    shared: Arc<Shared>,
    revision: Revision,
    /// Requests in the group before, and what it took: how many to wait for now, and how long at most.
    previous: (usize, Duration),
    /// Whether compaction has left something to delete, and up to which time it may forget outcomes: a sweep forgets
    /// what its compaction decided, not what has come of age since.
    sweeping: Option<i64>,
    /// Last, so that it is given back after the connection was closed.
    _lock: LockFile,
}

/// What the group was given to do beside its requests.
#[derive(Default)]
struct Done {
    answers: Vec<Deferred>,
    committed: Vec<Committed>,
    floor: Option<Revision>,
    sweep_on: Option<i64>,
}

impl Writer {
    pub(super) fn new(
        connection: Connection,
        requests: Receiver<Request>,
        shared: Arc<Shared>,
        revision: Revision,
        lock: LockFile,
    ) -> Self {
        // An earlier process may have ended in the middle of a sweep. The outcomes wait for the next compaction.
        let sweeping = Some(i64::MIN);
        Self {
            connection,
            requests,
            shared,
            revision,
            previous: (0, Duration::ZERO),
            sweeping,
            _lock: lock,
        }
    }

    /// Serves requests until the store is closed or dropped.
    pub(super) fn run(self) {
        // Dropped after the writer, also by a panic: when a watch ends, the queue and the lock are gone already.
        let _ends = EndsWatches(Arc::clone(&self.shared.log));
        let mut writer = self;
        while let Some((group, closing)) = writer.gather() {
            writer.write(group);
            if let Some(reply) = closing {
                let result = writer.finish();
                // Who came later learns that nothing happened. New ones cannot come: the store refuses them.
                for late in writer.requests.try_iter() {
                    late.refuse();
                }
                drop(writer);
                reply.send(result);
                return;
            }
        }
        if let Err(error) = writer.finish() {
            tracing::warn!(error = %error.report(), "the database was not closed cleanly; the next start recovers it");
        }
    }

    /// The next group, and the reply to a close that ends it; none when every handle is gone.
    fn gather(&mut self) -> Option<(Vec<Request>, Option<Reply<()>>)> {
        let mut next = if self.sweeping.is_some() {
            match self.requests.try_recv() {
                Ok(request) => Some(request),
                Err(TryRecvError::Empty) => None,
                Err(TryRecvError::Disconnected) => return None,
            }
        } else {
            Some(self.requests.recv().ok()?)
        };
        let (expected, took) = self.previous;
        let start = Instant::now();
        let (mut group, mut bytes) = (Vec::new(), 0);
        while let Some(request) = next {
            if let Request::Close(reply) = request {
                return Some((group, Some(reply)));
            }
            bytes += request.bytes();
            group.push(request);
            if group.len() >= GROUP || bytes >= GROUP_BYTES {
                break;
            }
            next = match self.requests.try_recv() {
                Ok(request) => Some(request),
                // With company in the group before, the same callers are about to come back. Alone, nobody waits.
                Err(_) if group.len() < expected => {
                    let left = (took / 2).min(GATHER).saturating_sub(start.elapsed());
                    self.requests.recv_timeout(left).ok()
                }
                Err(_) => None,
            };
        }
        Some((group, None))
    }

    /// Applies a group in one transaction and answers it.
    fn write(&mut self, group: Vec<Request>) {
        let (size, start) = (group.len(), Instant::now());
        let now = self.shared.clock.now();
        let beats = self.shared.beats().take_unsaved(BEATS);
        let mut done = Done::default();
        let changes = self.connection.total_changes();
        let mut transaction = Group {
            connection: &self.connection,
            revision: self.revision,
            now,
        };

        let applied = Self::apply(&mut transaction, group, &beats, self.sweeping, &mut done);
        let revision = transaction.revision;
        let failure = match applied {
            Ok(()) => self.commit(),
            Err((error, rest)) => {
                done.answers.extend(rest.into_iter().map(Request::defer));
                Some(Failure::before_commit(&error))
            }
        };
        if let Some(failure) = failure {
            tracing::error!(kind = %failure.kind(), requests = size, "a group of commits was not written");
            self.roll_back();
            self.shared.beats().not_saved(beats);
            // What could not be swept waits for the next compaction or start.
            self.sweeping = None;
            for answer in done.answers {
                answer(Some(&failure));
            }
            return;
        }

        self.revision = revision;
        self.sweeping = done.sweep_on;
        if self.connection.total_changes() != changes {
            self.shared.stats.count(done.committed.len());
        }
        self.shared.log.publish(done.committed);
        if let Some(floor) = done.floor {
            self.shared.log.trim(floor);
        }
        for answer in done.answers {
            answer(None);
        }
        self.previous = (size, start.elapsed());
    }

    /// Everything of a transaction but its COMMIT; on failure also the requests that were not looked at.
    fn apply(
        group: &mut Group<'_>,
        requests: Vec<Request>,
        beats: &[Unsaved],
        sweep: Option<i64>,
        done: &mut Done,
    ) -> Result<(), (rusqlite::Error, Vec<Request>)> {
        let before = group.revision;
        if let Err(error) = group.connection.execute_batch("BEGIN IMMEDIATE") {
            return Err((error, requests));
        }
        let mut rest = requests.into_iter();
        while let Some(request) = rest.next() {
            let answer = request.apply(group, &mut done.committed, &mut done.floor);
            done.answers.push(answer.deferred);
            if let Some(error) = answer.error {
                return Err((error, rest.collect()));
            }
        }
        let finish = || {
            if group.revision != before {
                group.save_revision()?;
            }
            group.save_beats(beats)?;
            let forget = if done.floor.is_some() {
                Some(group.forgettable())
            } else {
                sweep
            };
            match forget {
                Some(time) if group.sweep(time)? => Ok(forget),
                _ => Ok(None),
            }
        };
        done.sweep_on = finish().map_err(|error| (error, Vec::new()))?;
        Ok(())
    }

    fn commit(&self) -> Option<Failure> {
        self.connection
            .execute_batch("COMMIT")
            .err()
            .map(|error| Failure::in_commit(&error))
    }

    fn roll_back(&self) {
        // Some errors make SQLite roll back by itself.
        if !self.connection.is_autocommit()
            && let Err(error) = self.connection.execute_batch("ROLLBACK")
        {
            tracing::error!(%error, "a failed group of commits could not be rolled back");
        }
    }

    /// Saves what is left in memory and folds the WAL into the database.
    fn finish(&mut self) -> Result<(), Error> {
        let saved = loop {
            let beats = self.shared.beats().take_unsaved(usize::MAX);
            if beats.is_empty() {
                break Ok(());
            }
            let group = Group {
                connection: &self.connection,
                revision: self.revision,
                now: self.shared.clock.now(),
            };
            let save = || {
                self.connection.execute_batch("BEGIN IMMEDIATE")?;
                group.save_beats(&beats)?;
                self.connection.execute_batch("COMMIT")
            };
            if let Err(error) = save() {
                self.roll_back();
                break Err(error);
            }
        };
        let folded = self
            .connection
            .query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |_| Ok(()));
        saved.and(folded).map_err(failure::sql("store.close"))
    }
}

/// Ends the watch streams when the writer ends, also by a panic.
struct EndsWatches(Arc<Log>);

impl Drop for EndsWatches {
    fn drop(&mut self) {
        self.0.close();
    }
}

/// The error of a request that reached no writer: nothing happened.
pub(super) fn gone(operation: &'static str) -> Error {
    Error::new(
        ErrorKind::Unavailable,
        operation,
        "the store was closed, or its writer died",
    )
}
