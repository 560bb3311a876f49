//! The recent commits of a store and the watch streams that read them.
//!
//! ```text
//!   store ──publish(commits)──► Log ◄──read_after(cursor)── stream of a watcher
//!                                │                            │ too far behind for the log
//!                                └─ wakes every watcher       └──► Backlog (the database), or Compacted
//! ```
//! Watchers pull: each keeps a cursor, nothing is queued for it, so a slow one costs no memory. The log holds every
//! commit after its floor; a watcher below the floor reads on from the [`Backlog`] until it is above it again. A
//! bookmark follows whenever a watcher has caught up, so that its reader can resume from there and can tell that it has
//! seen all there is. Wake-ups are in the order of waiting (a simulation depends on it).

use std::collections::VecDeque;
use std::fmt;
use std::pin::pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use async_trait::async_trait;
use futures::stream;
use tokio::sync::Notify;

use super::{Change, Revision, WatchEvent, WatchStream, check};
use crate::error::{Error, ErrorKind, Result};

/// The most commits that are copied out of the log at once.
pub(super) const BATCH: usize = 256;

/// A commit as watchers see it. Changes are in key order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Committed {
    /// Its revision.
    pub(super) revision: Revision,
    /// What it changed; may be nothing (deletes of absent keys).
    pub(super) changes: Arc<[Change]>,
}

/// Where commits can be read that the log has dropped.
#[async_trait]
pub(super) trait Backlog: fmt::Debug + Send + Sync {
    /// About [`BATCH`] commits after `after` in order, and the revision up to which they are complete.
    async fn read_after(&self, after: Revision) -> Result<(Vec<Committed>, Revision)>;
}

/// The recent commits.
#[derive(Debug)]
pub(super) struct Log {
    state: Mutex<State>,
    published: Notify,
}

#[derive(Debug)]
struct State {
    /// Consecutive commits, all after `floor`.
    commits: VecDeque<Committed>,
    bytes: usize,
    max_bytes: usize,
    floor: Revision,
    tip: Revision,
    ended: Option<Ended>,
}

/// Why no commit follows any more.
#[derive(Clone, Copy, Debug)]
enum Ended {
    Closed,
    #[cfg_attr(
        not(feature = "postgres"),
        expect(dead_code, reason = "a store of one process sees every commit")
    )]
    CutOff,
}

enum Read {
    /// Commits after the cursor, and the new cursor.
    Commits(Vec<Committed>, Revision),
    /// The cursor is at the tip.
    CaughtUp,
    /// The cursor is below the floor.
    Behind(Revision),
    Ended(Ended),
}

impl Log {
    /// An empty log of a store at `tip` that holds about `max_bytes`.
    pub(super) fn new(tip: Revision, max_bytes: usize) -> Self {
        let state = State {
            commits: VecDeque::new(),
            bytes: 0,
            max_bytes,
            floor: tip,
            tip,
            ended: None,
        };
        Self {
            state: Mutex::new(state),
            published: Notify::new(),
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The latest revision published.
    pub(super) fn tip(&self) -> Revision {
        self.state().tip
    }

    /// Appends commits that are durable, in order, and wakes the watchers.
    pub(super) fn publish(&self, commits: impl IntoIterator<Item = Committed>) {
        let mut state = self.state();
        for commit in commits {
            state.tip = commit.revision;
            state.bytes += commit.bytes();
            state.commits.push_back(commit);
        }
        while state.bytes > state.max_bytes {
            let Some(oldest) = state.commits.pop_front() else {
                break;
            };
            state.bytes -= oldest.bytes();
            state.floor = oldest.revision;
        }
        drop(state);
        self.published.notify_waiters();
    }

    /// Drops the commits up to `floor`.
    pub(super) fn trim(&self, floor: Revision) {
        let mut state = self.state();
        let dropped = state.commits.partition_point(|c| c.revision <= floor);
        state.bytes -= state
            .commits
            .drain(..dropped)
            .map(|c| c.bytes())
            .sum::<usize>();
        state.floor = state.floor.max(floor);
    }

    /// Begins anew at `tip`, after a gap: who is behind it cannot go on from here, but may from the [`Backlog`].
    #[cfg(any(feature = "etcd", feature = "postgres"))]
    pub(super) fn restart(&self, tip: Revision) {
        let mut state = self.state();
        state.commits.clear();
        state.bytes = 0;
        (state.floor, state.tip) = (tip, tip);
        drop(state);
        self.published.notify_waiters();
    }

    /// Ends every stream with an error, once it has told what there is.
    #[cfg_attr(
        not(any(feature = "sqlite", feature = "postgres", feature = "etcd")),
        expect(dead_code, reason = "memory cannot be closed")
    )]
    pub(super) fn close(&self) {
        self.end(Ended::Closed);
    }

    /// Ends every stream with [`ErrorKind::Compacted`], once it has told what there is: commits are missing after it.
    #[cfg(feature = "postgres")]
    pub(super) fn cut_off(&self) {
        self.end(Ended::CutOff);
    }

    fn end(&self, why: Ended) {
        self.state().ended.get_or_insert(why);
        self.published.notify_waiters();
    }

    fn read_after(&self, cursor: Revision) -> Read {
        let state = self.state();
        if cursor < state.floor {
            return Read::Behind(state.floor);
        }
        let start = state.commits.partition_point(|c| c.revision <= cursor);
        let found: Vec<_> = state.commits.range(start..).take(BATCH).cloned().collect();
        match found.last() {
            Some(last) => {
                let cursor = last.revision;
                Read::Commits(found, cursor)
            }
            None => state.ended.map_or(Read::CaughtUp, Read::Ended),
        }
    }
}

impl Ended {
    fn error(self) -> Error {
        let (kind, message) = match self {
            Self::Closed => (ErrorKind::Unavailable, "the store was closed"),
            Self::CutOff => (
                ErrorKind::Compacted,
                "the database no longer has what followed; list again",
            ),
        };
        Error::new(kind, "store.watch", message)
    }
}

impl Committed {
    /// About how much memory it takes.
    pub(super) fn bytes(&self) -> usize {
        let of =
            |c: &Change| c.key.as_str().len() + c.value.as_ref().map_or(0, bytes::Bytes::len) + 64;
        64 + self.changes.iter().map(of).sum::<usize>()
    }

    /// The event for a watcher of `prefixes`, if any change lies under one.
    fn event(&self, prefixes: &[String]) -> Option<WatchEvent> {
        let under = |c: &&Change| {
            prefixes
                .iter()
                .any(|p| c.key.as_str().starts_with(p.as_str()))
        };
        let matching = self.changes.iter().filter(under).count();
        let changes = match matching {
            0 => return None,
            all if all == self.changes.len() => Arc::clone(&self.changes),
            _ => self.changes.iter().filter(under).cloned().collect(),
        };
        Some(WatchEvent::Commit {
            revision: self.revision,
            changes,
        })
    }
}

struct Watcher {
    log: Arc<Log>,
    backlog: Option<Arc<dyn Backlog>>,
    prefixes: Vec<String>,
    cursor: Revision,
    bookmark: Option<Revision>,
    ready: VecDeque<WatchEvent>,
}

/// The stream of the commits after `after` under `prefixes`. The caller has checked `after` against the tip and the
/// compaction floor.
pub(super) fn stream(
    log: Arc<Log>,
    backlog: Option<Arc<dyn Backlog>>,
    prefixes: Vec<String>,
    after: Revision,
) -> WatchStream {
    let watcher = Watcher {
        log,
        backlog,
        prefixes,
        cursor: after,
        bookmark: None,
        ready: VecDeque::new(),
    };
    Box::pin(stream::unfold(Some(watcher), |watcher| async {
        let mut watcher = watcher?;
        match watcher.next().await {
            Ok(event) => Some((Ok(event), Some(watcher))),
            Err(error) => Some((Err(error), None)),
        }
    }))
}

impl Watcher {
    async fn next(&mut self) -> Result<WatchEvent> {
        let log = Arc::clone(&self.log);
        loop {
            if let Some(event) = self.ready.pop_front() {
                return Ok(event);
            }
            // Registered before the log is read, so that no publication between the two is missed.
            let mut published = pin!(log.published.notified());
            published.as_mut().enable();
            match log.read_after(self.cursor) {
                Read::Commits(commits, cursor) => self.take(&commits, cursor),
                Read::CaughtUp if self.bookmark != Some(self.cursor) => {
                    self.bookmark = Some(self.cursor);
                    return Ok(WatchEvent::Bookmark(self.cursor));
                }
                Read::CaughtUp => published.await,
                Read::Behind(floor) => match &self.backlog {
                    Some(backlog) => {
                        let (commits, cursor) = backlog.read_after(self.cursor).await?;
                        self.take(&commits, cursor);
                    }
                    None => {
                        return Err(check::compacted(
                            "store.watch",
                            self.cursor,
                            floor,
                            log.tip(),
                        ));
                    }
                },
                Read::Ended(why) => return Err(why.error()),
            }
        }
    }

    fn take(&mut self, commits: &[Committed], cursor: Revision) {
        self.ready.extend(
            commits
                .iter()
                .filter_map(|commit| commit.event(&self.prefixes)),
        );
        self.cursor = cursor;
    }
}
