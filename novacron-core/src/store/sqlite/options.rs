//! How the store is opened, and what its group commit counts.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

#[cfg(doc)]
use super::SqliteStore;
#[cfg(doc)]
use crate::error::ErrorKind;
use crate::time::{Clock, SystemClock};

/// How a [`SqliteStore`] is opened.
#[derive(Clone, Debug)]
pub struct SqliteOptions {
    /// The clock by which leases expire.
    pub clock: Arc<dyn Clock>,
    /// Connections that read at the same time.
    pub readers: usize,
    /// About how many bytes of recent commits are kept in memory for watches; slower ones read the file.
    pub watch_bytes: usize,
    /// Whether to look for damage when opening: reads the whole file, about four seconds per gigabyte.
    pub check: bool,
    /// The size beyond which the database does not grow; then commits fail with [`ErrorKind::Exhausted`].
    pub max_bytes: Option<u64>,
}

impl Default for SqliteOptions {
    fn default() -> Self {
        Self {
            clock: Arc::new(SystemClock),
            readers: 4,
            watch_bytes: 16 << 20,
            check: true,
            max_bytes: None,
        }
    }
}

/// What the group commit has done since the store was opened.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SqliteStats {
    /// Transactions written, each with one sync (and now and then two more to fold the WAL into the database).
    pub groups: u64,
    /// Commits in them.
    pub commits: u64,
    /// The most commits in one.
    pub largest_group: u64,
}

#[derive(Debug, Default)]
pub(super) struct Counters {
    groups: AtomicU64,
    commits: AtomicU64,
    largest: AtomicU64,
}

impl Counters {
    pub(super) fn count(&self, commits: usize) {
        let commits = commits as u64;
        self.groups.fetch_add(1, Ordering::Relaxed);
        self.commits.fetch_add(commits, Ordering::Relaxed);
        self.largest.fetch_max(commits, Ordering::Relaxed);
    }

    pub(super) fn read(&self) -> SqliteStats {
        SqliteStats {
            groups: self.groups.load(Ordering::Relaxed),
            commits: self.commits.load(Ordering::Relaxed),
            largest_group: self.largest.load(Ordering::Relaxed),
        }
    }
}
