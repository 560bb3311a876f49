//! The lock file: one process per database, for the life of the process.
//!
//! An advisory `flock` on `<database>.lock`: the kernel drops it when its holder dies, however it dies, so a lock is
//! never stale. The pid inside is for people and for the message. The file stays when the lock is given back: to unlink
//! it would let two processes lock two files of one name.

use std::fs::{File, OpenOptions};
use std::io::{Read as _, Seek as _, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;

use super::failure::of_io;
use crate::error::{Error, ErrorKind, Result};

/// A held lock; dropping it gives it back.
#[derive(Debug)]
pub(super) struct LockFile {
    _file: File,
}

impl LockFile {
    /// Locks `database`.
    pub(super) fn acquire(database: &Path) -> Result<Self> {
        let mut name = database.as_os_str().to_owned();
        name.push(".lock");
        let path = PathBuf::from(name);
        let mut options = OpenOptions::new();
        options
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600);
        let mut file = options
            .open(&path)
            .map_err(|e| of_io("cannot open the lock file", &path, e))?;

        match flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {}
            Err(Errno::WOULDBLOCK) => return Err(held(&mut file, &path)),
            Err(errno) => return Err(of_io("cannot lock", &path, errno.into())),
        }
        let pid = std::process::id();
        let written = file
            .set_len(0)
            .and_then(|()| file.rewind())
            .and_then(|()| writeln!(file, "{pid}"));
        written.map_err(|e| of_io("cannot write the lock file", &path, e))?;
        Ok(Self { _file: file })
    }
}

fn held(file: &mut File, path: &Path) -> Error {
    let mut text = String::new();
    let pid = match file.read_to_string(&mut text) {
        Ok(_) if !text.trim().is_empty() => text.trim().to_owned(),
        _ => "unknown".to_owned(),
    };
    let message = if pid == std::process::id().to_string() {
        format!(
            "this process ({pid}) has the database open already; call `close` on that store, or on a clone of it, first"
        )
    } else {
        format!("process {pid} has the database open; only one may at a time")
    };
    Error::new(ErrorKind::FailedPrecondition, "store.open", message)
        .with("pid", pid)
        .with("lock", path.display())
}
