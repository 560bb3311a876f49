//! The run lock of a VM: an exclusive flock on `run.lock`, held by QEMU through a descriptor that it inherited.
//!
//! A starter takes it exclusively. Somebody who only wants to know takes it shared for a moment. So that such a look
//! never fails a start, a starter that is refused tries the shared mode: if that works, only lookers were there.

use std::fs::{File, OpenOptions};
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;

use super::error::ProcessError;

/// How often a starter tries again when lookers, or a deleted file, were in its way.
const TRIES: usize = 1000;

/// The lock, held exclusively by us until it is dropped or a child inherited it.
#[derive(Debug)]
pub(crate) struct RunLock {
    file: File,
    path: PathBuf,
}

impl RunLock {
    /// Takes the lock, making the file if need be.
    pub(crate) fn acquire(path: &Path) -> Result<Self, ProcessError> {
        for _ in 0..TRIES {
            let mut options = OpenOptions::new();
            options
                .read(true)
                .write(true)
                .create(true)
                .truncate(false)
                .mode(0o600);
            let mut file = options.open(path).map_err(ProcessError::io("open", path))?;
            if try_lock(&file, FlockOperation::NonBlockingLockExclusive, path)? {
                // Whoever deletes a run directory holds this lock: a lock on a file that is no longer there is void.
                if is_at(&file, path) {
                    return Ok(Self {
                        file,
                        path: path.to_owned(),
                    });
                }
            } else if !try_lock(&file, FlockOperation::NonBlockingLockShared, path)? {
                return Err(ProcessError::AlreadyRuns {
                    path: path.to_owned(),
                    holder: read_holder(&mut file),
                });
            }
            std::thread::yield_now();
        }
        Err(ProcessError::AlreadyRuns {
            path: path.to_owned(),
            holder: None,
        })
    }

    /// The locked file, to be inherited.
    pub(crate) fn file(&self) -> &File {
        &self.file
    }

    /// Names the epoch that is about to run; the child writes its pid behind it.
    pub(crate) fn name(&mut self, epoch: u64) -> Result<(), ProcessError> {
        let emptied = self
            .file
            .set_len(0)
            .and_then(|()| self.file.seek(SeekFrom::Start(0)));
        let named = emptied.and_then(|_| self.file.write_all(format!("{epoch} ").as_bytes()));
        named.map_err(ProcessError::io("write", &self.path))
    }
}

/// What a look at the lock shows.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum LockState {
    /// No such file: never started.
    Absent,
    /// Nobody holds it.
    Free,
    /// Somebody holds it: this one, if it came so far as to write down who it is.
    Held(Option<Holder>),
}

/// Who holds the lock.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Holder {
    /// Which start of the VM it is.
    pub(crate) epoch: u64,
    /// QEMU's pid.
    pub(crate) pid: u32,
}

/// Looks without disturbing a starter.
pub(crate) fn look(path: &Path) -> Result<LockState, ProcessError> {
    let mut file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(LockState::Absent),
        Err(error) => return Err(ProcessError::io("open", path)(error)),
    };
    if try_lock(&file, FlockOperation::NonBlockingLockShared, path)? {
        return Ok(LockState::Free);
    }
    Ok(LockState::Held(read_holder(&mut file)))
}

fn try_lock(file: &File, operation: FlockOperation, path: &Path) -> Result<bool, ProcessError> {
    match flock(file, operation) {
        Ok(()) => Ok(true),
        Err(Errno::WOULDBLOCK) => Ok(false),
        Err(error) => Err(ProcessError::io("lock", path)(error)),
    }
}

fn is_at(file: &File, path: &Path) -> bool {
    let (Ok(ours), Ok(there)) = (file.metadata(), std::fs::metadata(path)) else {
        return false;
    };
    (ours.dev(), ours.ino()) == (there.dev(), there.ino())
}

fn read_holder(file: &mut File) -> Option<Holder> {
    let mut text = String::new();
    file.take(64).read_to_string(&mut text).ok()?;
    let (epoch, pid) = text.split_once(' ')?;
    Some(Holder {
        epoch: epoch.parse().ok()?,
        pid: pid.parse().ok()?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_holder_and_lookers_do_not_count() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("run.lock");
        assert_eq!(look(&path).unwrap(), LockState::Absent);
        let lock = RunLock::acquire(&path).unwrap();
        assert_eq!(look(&path).unwrap(), LockState::Held(None));
        let error = RunLock::acquire(&path).unwrap_err();
        assert!(matches!(error, ProcessError::AlreadyRuns { .. }), "{error}");
        drop(lock);
        assert_eq!(look(&path).unwrap(), LockState::Free);

        let stop = std::sync::atomic::AtomicBool::new(false);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                while !stop.load(std::sync::atomic::Ordering::Relaxed) {
                    look(&path).unwrap();
                }
            });
            for _ in 0..500 {
                RunLock::acquire(&path).unwrap();
            }
            stop.store(true, std::sync::atomic::Ordering::Relaxed);
        });
    }
}
