//! The lock of a state folder: an exclusive flock on `lock`, held by the one hypervisor that uses the folder.
//!
//! Its first line says who that is, or who it was last. It is written in one go over the line before, so that whoever
//! reads it finds one of the two whole, also when a holder is killed in between.

use std::fs::{File, OpenOptions};
use std::io::{self, BufRead, BufReader};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use novacron_core::model::HostId;
use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;
use serde::{Deserialize, Serialize};

use super::error::ProcessError;
use super::identity::Identity;

/// Who uses a state folder, or used it last.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Owner {
    /// The host that it is.
    pub(crate) host: HostId,
    /// The process.
    pub(crate) process: Identity,
}

/// The folder's lock, held until it is dropped.
#[derive(Debug)]
pub(crate) struct FolderLock {
    file: File,
    path: PathBuf,
}

impl FolderLock {
    /// Takes the lock, making the file if need be; none when somebody else holds it.
    pub(crate) fn take(folder: &Path) -> Result<Option<Self>, ProcessError> {
        Self::take_with(folder, OpenOptions::new().create(true).mode(0o600))
    }

    /// Takes the lock of a folder that was used before; an error when there is none.
    pub(crate) fn take_present(folder: &Path) -> Result<Option<Self>, ProcessError> {
        Self::take_with(folder, &mut OpenOptions::new())
    }

    fn take_with(folder: &Path, options: &mut OpenOptions) -> Result<Option<Self>, ProcessError> {
        let path = folder.join("lock");
        let file = options
            .read(true)
            .write(true)
            .truncate(false)
            .open(&path)
            .map_err(ProcessError::io("open", &path))?;
        match flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => Ok(Some(Self { file, path })),
            Err(Errno::WOULDBLOCK) => Ok(None),
            Err(error) => Err(ProcessError::io("lock", &path)(error)),
        }
    }

    /// Says who holds it.
    pub(crate) fn name(&self, owner: &Owner) -> Result<(), ProcessError> {
        let write = || {
            let mut line = serde_json::to_vec(owner).map_err(io::Error::other)?;
            line.push(b'\n');
            self.file.write_all_at(&line, 0)?;
            self.file.set_len(line.len() as u64)
        };
        write().map_err(ProcessError::io("write", &self.path))
    }
}

/// Who uses the folder, or used it last; none if nobody ever did.
pub(crate) fn owner(folder: &Path) -> Result<Option<Owner>, ProcessError> {
    let path = folder.join("lock");
    let file = match File::open(&path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(ProcessError::io("open", &path)(error)),
    };
    let mut line = String::new();
    BufReader::new(file)
        .read_line(&mut line)
        .map_err(ProcessError::io("read", &path))?;
    Ok(serde_json::from_str(&line).ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn somebody(host: u128, pid: u32) -> Owner {
        Owner {
            host: HostId::from_uuid(uuid::Uuid::from_u128(host)),
            process: Identity {
                pid,
                start_time: 1,
                boot_id: "boot".to_owned(),
            },
        }
    }

    #[test]
    fn one_holder_whose_name_outlives_it() {
        let dir = tempfile::tempdir().unwrap();
        assert!(FolderLock::take_present(dir.path()).is_err());
        assert_eq!(owner(dir.path()).unwrap(), None);
        let lock = FolderLock::take(dir.path()).unwrap().expect("it is free");
        assert_eq!(owner(dir.path()).unwrap(), None);
        lock.name(&somebody(1, 4_000_000)).unwrap();
        assert!(FolderLock::take_present(dir.path()).unwrap().is_none());
        drop(lock);
        let lock = FolderLock::take_present(dir.path())
            .unwrap()
            .expect("it is free");
        assert_eq!(owner(dir.path()).unwrap(), Some(somebody(1, 4_000_000)));
        lock.name(&somebody(2, 7)).unwrap();
        assert_eq!(owner(dir.path()).unwrap(), Some(somebody(2, 7)));
    }

    #[test]
    fn what_a_killed_holder_leaves_behind_the_line_does_not_matter() {
        let dir = tempfile::tempdir().unwrap();
        let line = serde_json::to_string(&somebody(1, 7)).unwrap();
        std::fs::write(dir.path().join("lock"), format!("{line}\n0000\"}}")).unwrap();
        assert_eq!(owner(dir.path()).unwrap(), Some(somebody(1, 7)));
        std::fs::write(dir.path().join("lock"), "4711").unwrap();
        assert_eq!(owner(dir.path()).unwrap(), None);
    }
}
