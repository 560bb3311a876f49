//! The run directory of one start of a VM: where its files are, and what they say about it. The lock lies beside it and
//! is the VM's.

use std::fs::{self, DirBuilder, File};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use serde::Serialize;
use serde::de::DeserializeOwned;

use super::end::{End, EndCause};
use super::error::ProcessError;
use super::identity::{Identity, boot_id};
use super::lock::{Holder, LockState, RunLock, look};
use super::watch::{Process, reap};

/// Bytes of a unix socket's path that the kernel takes, without the closing zero.
const SOCKET_PATH_LIMIT: usize = 107;
/// The VM's lock, beside the directories of its starts.
const LOCK: &str = "run.lock";
/// Bytes that a socket's path has behind the state folder: `/<vm>/<epoch>/qmp`, with a UUID and ten digits.
const BELOW_STATE: usize = 1 + 36 + 1 + 10 + 1 + 3;
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

/// Who holds the lock of the VM with this folder.
pub(crate) fn holder(vm: &Path) -> Result<Option<Holder>, ProcessError> {
    Ok(match look(&vm.join(LOCK))? {
        LockState::Held(holder) => holder,
        LockState::Absent | LockState::Free => None,
    })
}

/// What holds the lock of a VM.
#[derive(Debug)]
pub(crate) enum Hold {
    /// Nothing.
    Free,
    /// This process.
    By(Process),
    /// Something else than the process that the lock names: it is on its way to be one, or to its end.
    Unclear,
}

/// The process that holds the lock of the VM with this folder.
pub(crate) fn hold(vm: &Path) -> Result<Hold, ProcessError> {
    let lock = vm.join(LOCK);
    let holder = match look(&lock)? {
        LockState::Absent | LockState::Free => return Ok(Hold::Free),
        LockState::Held(None) => return Ok(Hold::Unclear),
        LockState::Held(Some(holder)) => holder,
    };
    // Looked at after it was opened: a process that took over the pid has no reason to have the lock open.
    let process =
        Process::open(holder.pid).map_err(ProcessError::io("watch", Path::new("/proc")))?;
    let has_it = has_open(holder.pid, &lock).map_err(ProcessError::io("look at", &lock))?;
    Ok(if has_it {
        Hold::By(process)
    } else {
        Hold::Unclear
    })
}

/// Whether a process has this file open.
fn has_open(pid: u32, path: &Path) -> io::Result<bool> {
    let file = fs::metadata(path)?;
    let Ok(descriptors) = fs::read_dir(format!("/proc/{pid}/fd")) else {
        return Ok(false);
    };
    // One that was closed meanwhile is not the file.
    let mut open = descriptors
        .flatten()
        .filter_map(|descriptor| fs::metadata(descriptor.path()).ok());
    Ok(open.any(|open| (open.dev(), open.ino()) == (file.dev(), file.ino())))
}

/// Fails when the sockets of the VMs in this state folder could not be bound.
pub(crate) fn fits(state: &Path) -> Result<(), ProcessError> {
    let limit = SOCKET_PATH_LIMIT - BELOW_STATE;
    if state.as_os_str().len() <= limit {
        return Ok(());
    }
    Err(ProcessError::PathTooLong {
        path: state.to_owned(),
        limit,
    })
}

/// The run directory of one start.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct RunDir {
    path: PathBuf,
    lock: PathBuf,
    epoch: u64,
}

impl RunDir {
    /// Names the directory of a start in the VM's. Touches nothing.
    pub(crate) fn new(vm: &Path, epoch: u64) -> Self {
        Self {
            path: vm.join(epoch.to_string()),
            lock: vm.join(LOCK),
            epoch,
        }
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
        let made = DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&self.path);
        made.map_err(ProcessError::io("make the folder", &self.path))
    }

    /// Takes the run lock; [`ProcessError::AlreadyRuns`] when QEMU has it.
    pub(crate) fn lock(&self) -> Result<RunLock, ProcessError> {
        RunLock::acquire(&self.lock)
    }

    /// Which start it is.
    pub(crate) fn epoch(&self) -> u64 {
        self.epoch
    }

    /// Deletes the directory with everything in it, and the VM's when it was the last; an error when it runs, nothing
    /// when it is not there.
    pub(crate) fn remove(&self) -> Result<(), ProcessError> {
        let Some(vm) = self.lock.parent().filter(|vm| vm.exists()) else {
            return Ok(());
        };
        let held_to_the_end = match self.lock() {
            // Another start of the VM runs: this one does not, and its folder stays nobody's.
            Err(ProcessError::AlreadyRuns {
                holder: Some(holder),
                ..
            }) if holder.epoch != self.epoch => None,
            taken => Some(taken?),
        };
        absent_is_fine(fs::remove_dir_all(&self.path))
            .map_err(ProcessError::io("delete", &self.path))?;
        if held_to_the_end.is_some() && only_the_lock_is_left(vm) {
            absent_is_fine(fs::remove_dir_all(vm)).map_err(ProcessError::io("delete", vm))?;
        }
        Ok(())
    }

    /// Tells whether it runs, and how it ended if it does not.
    pub(crate) fn inspect(&self) -> Result<Found, ProcessError> {
        loop {
            match look(&self.lock)? {
                LockState::Absent | LockState::Free => {
                    return self
                        .how_it_ended(None)
                        .map(|end| end.map_or(Found::Never, Found::Gone));
                }
                LockState::Held(Some(holder)) if holder.epoch != self.epoch => {
                    return self
                        .how_it_ended(None)
                        .map(|end| end.map_or(Found::Never, Found::Gone));
                }
                LockState::Held(None) => {
                    // Somebody is between taking the lock and running QEMU.
                    return Err(ProcessError::AlreadyRuns {
                        path: self.lock.clone(),
                        holder: None,
                    });
                }
                LockState::Held(Some(holder)) => {
                    let process = Process::open(holder.pid);
                    // If the lock is still held by that pid, the descriptor that was opened between is its holder's.
                    if look(&self.lock)? == LockState::Held(Some(holder)) {
                        return process
                            .map(Found::Running)
                            .map_err(ProcessError::io("watch", Path::new("/proc")));
                    }
                }
            }
        }
    }

    /// How the last run ended; `status` is what the process' own exit said. Notes it, so that it is told only once.
    pub(crate) fn how_it_ended(
        &self,
        status: Option<EndCause>,
    ) -> Result<Option<End>, ProcessError> {
        if let Some(end) = self.read::<End>("exit.json")? {
            return Ok(Some(end));
        }
        let Some(started) = self.read::<String>("started.json")? else {
            return Ok(None);
        };
        let last_words = self.last_words();
        let run = self.read::<Identity>("run.json")?;
        let status = match (status, &run) {
            (Some(status), _) => Some(status),
            (None, Some(run)) => reap(run),
            (None, None) => None,
        };
        let same_boot = boot_id().map_or(true, |now| now == started);
        let cause = match status {
            _ if !same_boot => EndCause::HostRebooted,
            Some(EndCause::Exited(0)) => EndCause::Terminated,
            None if last_words.contains("terminating on signal") => EndCause::Terminated,
            Some(status) => status,
            None => EndCause::Vanished,
        };
        let end = End { cause, last_words };
        self.write("exit.json", &end)?;
        Ok(Some(end))
    }

    /// Notes how the run ends, before it is ended; the first note stays.
    pub(crate) fn note_end(&self, cause: EndCause) -> Result<(), ProcessError> {
        if self.read::<End>("exit.json")?.is_none() {
            self.write(
                "exit.json",
                &End {
                    cause,
                    last_words: self.last_words(),
                },
            )?;
        }
        Ok(())
    }

    /// Notes that a process is about to be started: from here on it runs or has ended.
    pub(super) fn note_start(&self) -> Result<(), ProcessError> {
        let boot_id = boot_id().map_err(ProcessError::io("read", Path::new("/proc")))?;
        self.write("started.json", &boot_id)
    }

    /// Takes that back: there was no process.
    pub(super) fn forget_start(&self) -> Result<(), ProcessError> {
        remove_file(&self.file("started.json"))
    }

    /// The last lines of QEMU's stderr, on one line.
    pub(crate) fn last_words(&self) -> String {
        tail(&self.file(super::spawn::LOG)).unwrap_or_default()
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
        json.and_then(|bytes| replace_file(&path, &bytes))
            .map_err(ProcessError::io("write", &path))
    }

    /// Writes a file for the owner only: whole or not at all, and durable.
    pub(crate) fn write_bytes(&self, name: &str, bytes: &[u8]) -> Result<(), ProcessError> {
        replace_file(&self.file(name), bytes).map_err(ProcessError::io("write", &self.file(name)))
    }
}

/// Deletes a file; none there is no error.
pub(crate) fn remove_file(path: &Path) -> Result<(), ProcessError> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(ProcessError::io("delete", path)(error))
        }
        _ => Ok(()),
    }
}

fn absent_is_fine(deleted: io::Result<()>) -> io::Result<()> {
    deleted.or_else(|error| {
        if error.kind() == io::ErrorKind::NotFound {
            Ok(())
        } else {
            Err(error)
        }
    })
}

fn only_the_lock_is_left(vm: &Path) -> bool {
    fs::read_dir(vm).is_ok_and(|entries| entries.flatten().all(|entry| entry.file_name() == LOCK))
}

fn replace_file(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let mut temporary = path.as_os_str().to_owned();
    temporary.push(".new");
    let mut file = File::options()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(&temporary)?;
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
    let words: Vec<String> = lines
        .map(|line| line.chars().filter(|c| !c.is_control()).collect())
        .collect();
    Ok(words[words.len().saturating_sub(8)..].join(" | "))
}
