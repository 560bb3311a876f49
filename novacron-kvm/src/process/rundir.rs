//! The run directory of one VM: where its files are, and what they say about it.

use std::fs::{self, DirBuilder, File};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use serde::Serialize;
use serde::de::DeserializeOwned;

use super::end::{End, EndCause};
use super::error::ProcessError;
use super::identity::{Identity, boot_id};
use super::lock::{LockState, RunLock, look};
use super::watch::{Process, reap};

/// Bytes of a unix socket's path that the kernel takes, without the closing zero.
const SOCKET_PATH_LIMIT: usize = 107;
/// The longest socket name in a run directory.
const LONGEST_SOCKET: &str = "console.sock";
/// How much of QEMU's stderr is kept in an error.
const LAST_WORDS: u64 = 2048;

/// What a look into a run directory shows.
#[derive(Debug)]
pub(crate) enum Found {
    /// It was never started, or its last run was forgotten.
    Never,
    /// It runs.
    Running(Process),
    /// It ran and is gone.
    Gone(End),
}

/// The run directory of one VM.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct RunDir {
    path: PathBuf,
}

impl RunDir {
    /// Names a directory; an error when its sockets could not be bound. Touches nothing.
    pub(crate) fn new(path: impl Into<PathBuf>) -> Result<Self, ProcessError> {
        let dir = Self { path: path.into() };
        let longest = dir.file(LONGEST_SOCKET);
        if longest.as_os_str().len() > SOCKET_PATH_LIMIT {
            return Err(ProcessError::PathTooLong { path: longest, limit: SOCKET_PATH_LIMIT });
        }
        Ok(dir)
    }

    /// The directory itself.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// A file in it.
    pub(crate) fn file(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }

    /// Makes it, and its parents, for the owner only.
    pub(crate) fn create(&self) -> Result<(), ProcessError> {
        let made = DirBuilder::new().recursive(true).mode(0o700).create(&self.path);
        made.map_err(ProcessError::io("make the folder", &self.path))
    }

    /// Takes the run lock; [`ProcessError::AlreadyRuns`] when QEMU has it.
    pub(crate) fn lock(&self) -> Result<RunLock, ProcessError> {
        RunLock::acquire(&self.file("run.lock"))
    }

    /// Deletes the directory with everything in it; an error when it runs, nothing when it is not there.
    pub(crate) fn remove(&self) -> Result<(), ProcessError> {
        if !self.path.exists() {
            return Ok(());
        }
        let _held_to_the_end = self.lock()?;
        match fs::remove_dir_all(&self.path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(ProcessError::io("delete", &self.path)(error)),
            _ => Ok(()),
        }
    }

    /// Tells whether it runs, and how it ended if it does not.
    pub(crate) fn inspect(&self) -> Result<Found, ProcessError> {
        loop {
            match look(&self.file("run.lock"))? {
                LockState::Absent => return Ok(Found::Never),
                LockState::Free => return self.how_it_ended(None).map(|end| end.map_or(Found::Never, Found::Gone)),
                LockState::Held(None) => {
                    // Somebody is between taking the lock and running QEMU.
                    let path = self.file("run.lock");
                    return Err(ProcessError::AlreadyRuns { path, pid: None });
                }
                LockState::Held(Some(pid)) => {
                    let process = Process::open(pid);
                    // If the lock is still held by that pid, the descriptor that was opened between is its holder's.
                    if look(&self.file("run.lock"))? == LockState::Held(Some(pid)) {
                        return process.map(Found::Running).map_err(ProcessError::io("watch", Path::new("/proc")));
                    }
                }
            }
        }
    }

    /// How the last run ended; `status` is what the process' own exit said. Notes it, so that it is told only once.
    pub(crate) fn how_it_ended(&self, status: Option<EndCause>) -> Result<Option<End>, ProcessError> {
        if let Some(end) = self.read::<End>("exit.json")? {
            return Ok(Some(end));
        }
        let last_words = self.last_words();
        let run = self.read::<Identity>("run.json")?;
        let status = match (status, &run) {
            (Some(status), _) => Some(status),
            (None, Some(run)) => reap(run),
            (None, None) => None,
        };
        let same_boot = match (&run, boot_id()) {
            (Some(run), Ok(now)) => run.boot_id == now,
            _ => true,
        };
        let cause = match status {
            _ if !same_boot => EndCause::HostRebooted,
            Some(EndCause::Exited(0)) => EndCause::Terminated,
            None if last_words.contains("terminating on signal") => EndCause::Terminated,
            Some(status) => status,
            None if run.is_none() && last_words.is_empty() => return Ok(None),
            None => EndCause::Vanished,
        };
        let end = End { cause, last_words };
        self.write("exit.json", &end)?;
        Ok(Some(end))
    }

    /// Notes how the run ends, before it is ended; the first note stays.
    pub(crate) fn note_end(&self, cause: EndCause) -> Result<(), ProcessError> {
        if self.read::<End>("exit.json")?.is_none() {
            self.write("exit.json", &End { cause, last_words: self.last_words() })?;
        }
        Ok(())
    }

    /// Forgets the last run, before a new one.
    pub(crate) fn forget_run(&self) -> Result<(), ProcessError> {
        for name in ["run.json", "exit.json"] {
            remove_file(&self.file(name))?;
        }
        Ok(())
    }

    /// The last lines of QEMU's stderr, on one line.
    pub(crate) fn last_words(&self) -> String {
        tail(&self.file("qemu.log")).unwrap_or_default()
    }

    /// Reads a JSON file; `None` when it is absent or was cut short by a crash of the host.
    pub(crate) fn read<T: DeserializeOwned>(&self, name: &str) -> Result<Option<T>, ProcessError> {
        match fs::read(self.file(name)) {
            Ok(bytes) => Ok(serde_json::from_slice(&bytes).ok()),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(ProcessError::io("read", &self.file(name))(error)),
        }
    }

    /// Writes a JSON file for the owner only: whole or not at all, and durable.
    pub(crate) fn write<T: Serialize>(&self, name: &str, value: &T) -> Result<(), ProcessError> {
        let path = self.file(name);
        let json = serde_json::to_vec_pretty(value).map_err(io::Error::other);
        json.and_then(|bytes| replace_file(&path, &bytes)).map_err(ProcessError::io("write", &path))
    }

    /// Writes a file for the owner only: whole or not at all, and durable.
    pub(crate) fn write_bytes(&self, name: &str, bytes: &[u8]) -> Result<(), ProcessError> {
        replace_file(&self.file(name), bytes).map_err(ProcessError::io("write", &self.file(name)))
    }
}

/// Deletes a file; none there is no error.
pub(crate) fn remove_file(path: &Path) -> Result<(), ProcessError> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(ProcessError::io("delete", path)(error)),
        _ => Ok(()),
    }
}

fn replace_file(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let mut temporary = path.as_os_str().to_owned();
    temporary.push(".new");
    let mut file = File::options().write(true).create(true).truncate(true).mode(0o600).open(&temporary)?;
    file.write_all(bytes)?;
    file.sync_all()?;
    fs::rename(&temporary, path)
}

fn tail(path: &Path) -> io::Result<String> {
    let mut file = File::open(path)?;
    let length = file.metadata()?.len();
    file.seek(SeekFrom::Start(length.saturating_sub(LAST_WORDS)))?;
    let mut bytes = Vec::new();
    file.take(LAST_WORDS).read_to_end(&mut bytes)?;
    let text = String::from_utf8_lossy(&bytes);
    let lines = text.lines().map(str::trim).filter(|line| !line.is_empty());
    let words: Vec<String> = lines.map(|line| line.chars().filter(|c| !c.is_control()).collect()).collect();
    Ok(words[words.len().saturating_sub(8)..].join(" | "))
}
