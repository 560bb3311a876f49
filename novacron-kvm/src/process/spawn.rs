//! Starting QEMU detached, with the run lock and its listening sockets inherited.
//!
//! The sockets of the monitor, the console and the agent are bound here and handed to QEMU listening. So they can be
//! connected as soon as the child exists, without waiting for a file to appear; the greeting comes when QEMU is ready,
//! and a QEMU that dies at once closes them.

use std::ffi::OsString;
use std::fs::File;
use std::os::fd::{AsRawFd, BorrowedFd, RawFd};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::os::unix::net::UnixListener;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Stdio};

use rustix::io::{FdFlags, fcntl_setfd};

use super::error::ProcessError;
use super::identity::Identity;
use super::lock::RunLock;
use super::rundir::{RunDir, remove_file};
use super::watch::Process;

/// Variables of our own environment that QEMU gets; the rest may hold secrets of the host application.
const ENVIRONMENT: [&str; 4] = ["PATH", "TMPDIR", "HOME", "XDG_RUNTIME_DIR"];

/// Where the stdout and stderr of a start go, and what its swtpm says.
pub(crate) const LOG: &str = "qemu.log";

/// A listening unix socket that QEMU inherits.
#[derive(Debug)]
pub(crate) struct Listener {
    socket: UnixListener,
}

impl Listener {
    /// Binds a socket in the run directory, replacing one that a former run left. The run lock must be held.
    pub(crate) fn bind(dir: &RunDir, name: &str) -> Result<Self, ProcessError> {
        let path = dir.file(name);
        remove_file(&path)?;
        let socket = UnixListener::bind(&path).map_err(ProcessError::io("bind", &path))?;
        let owner_only = std::fs::Permissions::from_mode(0o600);
        std::fs::set_permissions(&path, owner_only).map_err(ProcessError::io("protect", &path))?;
        Ok(Self { socket })
    }

    /// The descriptor's number, the same in QEMU.
    pub(crate) fn number(&self) -> RawFd {
        self.socket.as_raw_fd()
    }
}

/// What to start.
#[derive(Debug)]
pub(crate) struct Launch<'a> {
    /// The binary.
    pub(crate) binary: &'a Path,
    /// Its arguments.
    pub(crate) arguments: &'a [OsString],
    /// Sockets to be inherited.
    pub(crate) listeners: Vec<Listener>,
}

/// Starts the process. When this returns, the child holds the lock and we do not; an error leaves no child behind.
pub(crate) fn launch(
    dir: &RunDir,
    mut lock: RunLock,
    launch: Launch<'_>,
) -> Result<Process, ProcessError> {
    lock.name(dir.epoch())?;
    dir.note_start()?;
    let log_path = dir.file(LOG);
    let log = File::options()
        .append(true)
        .create(true)
        .mode(0o600)
        .open(&log_path);
    let log = log.map_err(ProcessError::io("open", &log_path))?;
    let also_log = log
        .try_clone()
        .map_err(ProcessError::io("open", &log_path))?;

    let mut command = Command::new(launch.binary);
    command
        .args(launch.arguments)
        .current_dir(dir.path())
        .env_clear();
    command.envs(
        ENVIRONMENT
            .iter()
            .filter_map(|name| std::env::var_os(name).map(|value| (name, value))),
    );
    command.stdin(Stdio::null()).stdout(log).stderr(also_log);

    let lock_fd = lock.file().as_raw_fd();
    let inherited: Vec<RawFd> = launch
        .listeners
        .iter()
        .map(Listener::number)
        .chain([lock_fd])
        .collect();
    // SAFETY: the closure runs in the child between fork and exec. It makes system calls only: no allocation, no lock.
    // The borrowed descriptors are open there, since `lock` and `launch.listeners` outlive the call to `spawn`.
    unsafe {
        command.pre_exec(move || {
            rustix::process::setsid()?;
            for &number in &inherited {
                fcntl_setfd(BorrowedFd::borrow_raw(number), FdFlags::empty())?;
            }
            let mut digits = [0; 10];
            let pid = decimal(
                rustix::process::getpid()
                    .as_raw_nonzero()
                    .get()
                    .unsigned_abs(),
                &mut digits,
            );
            rustix::io::write(BorrowedFd::borrow_raw(lock_fd), pid)?;
            Ok(())
        });
    }
    let spawned = command.spawn();
    let child = match spawned {
        Ok(child) => child,
        Err(source) => {
            dir.forget_start()?;
            return Err(ProcessError::Spawn {
                binary: launch.binary.to_owned(),
                source,
            });
        }
    };
    drop((lock, launch.listeners));

    // The child stays unreaped until the process below is waited for, so its pid cannot be another's.
    let pid = child.id();
    let recorded = (|| {
        let identity = Identity::of(pid).map_err(ProcessError::io("read", Path::new("/proc")))?;
        if let Some(identity) = identity {
            dir.write("run.json", &identity)?;
        }
        Process::open(pid).map_err(ProcessError::io("watch", Path::new("/proc")))
    })();
    if recorded.is_err() {
        end_child(child);
    }
    recorded
}

/// Takes back a child that cannot be recorded.
fn end_child(mut child: std::process::Child) {
    if let Err(error) = child.kill().and_then(|()| child.wait()) {
        tracing::error!(%error, pid = child.id(), "cannot end a QEMU that could not be recorded");
    }
}

/// Writes a number in decimal without allocating.
fn decimal(mut number: u32, digits: &mut [u8; 10]) -> &[u8] {
    let mut start = digits.len();
    loop {
        start -= 1;
        digits[start] = b'0' + (number % 10) as u8;
        number /= 10;
        if number == 0 {
            return &digits[start..];
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn decimal_numbers() {
        for number in [0, 7, 10, 4711, u32::MAX] {
            assert_eq!(decimal(number, &mut [0; 10]), number.to_string().as_bytes());
        }
    }
}
