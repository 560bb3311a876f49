//! Locks on an artefact: an async lock among the tasks of this process, then `flock` among processes and hosts.
//!
//! The lock files live in the artefact's directory and go with it, so whoever got a lock looks again whether the file
//! still has its name. The kernel gives a lock back when the last descriptor of its open file is closed: also when a
//! process is killed, and not before a child that inherited it has ended.

use std::collections::HashMap;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

use novacron_core::{Deadline, Error, ErrorKind, Result};
use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;
use tokio::sync::{OwnedRwLockReadGuard, OwnedRwLockWriteGuard, RwLock};

use super::layout::{DATA_LOCK, LOCK};
use crate::failure::of_io;
use crate::task::blocking;

/// How long to wait before looking again whether another process gave a lock back.
const POLL: Duration = Duration::from_millis(20);

/// Which lock of an artefact, and how.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Want {
    /// To change the artefact.
    Change,
    /// To read its layers.
    Read,
    /// To remove a layer.
    Remove,
}

impl Want {
    fn file(self) -> &'static str {
        match self {
            Self::Change => LOCK,
            Self::Read | Self::Remove => DATA_LOCK,
        }
    }
}

/// The async locks of this process.
#[derive(Debug, Default)]
pub(super) struct Locks(Mutex<HashMap<PathBuf, Weak<RwLock<()>>>>);

/// A held lock; dropping it gives it back.
#[derive(Debug)]
pub(crate) struct Held {
    // Given back in this order.
    file: File,
    _local: Local,
}

#[derive(Debug)]
enum Local {
    Shared { _guard: OwnedRwLockReadGuard<()> },
    Exclusive { _guard: OwnedRwLockWriteGuard<()> },
}

impl Held {
    /// The lock as a child's standard input, so that the lock lives as long as the child.
    pub(crate) fn stdio(&self, operation: &'static str) -> Result<Stdio> {
        match self.file.try_clone() {
            Ok(file) => Ok(file.into()),
            Err(e) => Err(of_io(
                operation,
                "cannot hand the lock on",
                Path::new(LOCK),
                e,
            )),
        }
    }
}

impl Locks {
    fn local(&self, path: &Path) -> Arc<RwLock<()>> {
        let mut locks = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(lock) = locks.get(path).and_then(Weak::upgrade) {
            return lock;
        }
        locks.retain(|_, lock| lock.strong_count() > 0);
        let lock = Arc::new(RwLock::new(()));
        locks.insert(path.to_owned(), Arc::downgrade(&lock));
        lock
    }

    /// A lock of the artefact in `dir`; none if the artefact is not there.
    pub(super) async fn acquire(
        &self,
        op: &'static str,
        dir: &Path,
        want: Want,
        deadline: Deadline,
    ) -> Result<Option<Arc<Held>>> {
        let path = dir.join(want.file());
        let local = self.local(&path);
        let waited = || {
            Error::new(
                ErrorKind::DeadlineExceeded,
                op,
                "the deadline passed while another call was at work on it",
            )
            .with("lock", path.display())
        };
        let local = tokio::time::timeout_at(deadline.instant(), async {
            match want {
                Want::Read => Local::Shared {
                    _guard: local.read_owned().await,
                },
                Want::Change | Want::Remove => Local::Exclusive {
                    _guard: local.write_owned().await,
                },
            }
        })
        .await
        .map_err(|_| waited())?;
        loop {
            let at = path.clone();
            match blocking(op, move || try_lock(op, &at, want)).await? {
                Tried::Locked(file) => {
                    return Ok(Some(Arc::new(Held {
                        file,
                        _local: local,
                    })));
                }
                Tried::Missing => return Ok(None),
                Tried::Held if deadline.remaining().is_zero() => return Err(waited()),
                Tried::Held => {
                    #[expect(
                        clippy::disallowed_methods,
                        reason = "nothing tells when another process gives a flock back"
                    )]
                    tokio::time::sleep(POLL.min(deadline.remaining())).await;
                }
            }
        }
    }
}

enum Tried {
    Locked(File),
    Held,
    Missing,
}

fn try_lock(op: &'static str, path: &Path, want: Want) -> Result<Tried> {
    let fail = |what: &'static str| move |e| of_io(op, what, path, e);
    let gone = |e: &io::Error| e.kind() == io::ErrorKind::NotFound;
    // A shared lock needs no right to write, so that a pool on a read-only file system can still be exported.
    let (opened, how) = match want {
        Want::Read => (File::open(path), FlockOperation::NonBlockingLockShared),
        Want::Change | Want::Remove => (
            OpenOptions::new()
                .read(true)
                .write(true)
                .create(true)
                .truncate(false)
                .mode(0o600)
                .open(path),
            FlockOperation::NonBlockingLockExclusive,
        ),
    };
    let file = match opened {
        Ok(file) => file,
        Err(e) if gone(&e) => return Ok(Tried::Missing),
        Err(e) => return Err(fail("cannot open the lock file")(e)),
    };
    match flock(&file, how) {
        Ok(()) => {}
        Err(Errno::WOULDBLOCK) => return Ok(Tried::Held),
        Err(e) => return Err(fail("cannot lock")(e.into())),
    }
    let mine = file
        .metadata()
        .map_err(fail("cannot look at the lock file"))?;
    match std::fs::metadata(path) {
        Ok(named) if (named.dev(), named.ino()) == (mine.dev(), mine.ino()) => {
            Ok(Tried::Locked(file))
        }
        // Another artefact of the same name has taken its place: once more.
        Ok(_) => Ok(Tried::Held),
        Err(e) if gone(&e) => Ok(Tried::Missing),
        Err(e) => Err(fail("cannot look at the lock file")(e)),
    }
}
