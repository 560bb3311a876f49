//! A process by its pidfd: wait for its end, end it, reap it if it is ours.

use std::io;
use std::os::fd::{AsFd, OwnedFd};

use rustix::io::Errno;
use rustix::process::{
    Pid, PidfdFlags, Signal, WaitId, WaitIdOptions, WaitIdStatus, pidfd_open, pidfd_send_signal,
    waitid,
};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use super::end::EndCause;
use super::identity::Identity;

/// A process, held by a descriptor that no reused pid can take over. Dropping it does nothing to the process.
#[derive(Debug)]
pub(crate) struct Process {
    pid: u32,
    /// `None` when the process had been reaped before it could be opened.
    pidfd: Option<OwnedFd>,
}

impl Process {
    /// Opens the process that has this pid now.
    pub(crate) fn open(pid: u32) -> io::Result<Self> {
        let raw = i32::try_from(pid)
            .ok()
            .and_then(Pid::from_raw)
            .ok_or(io::ErrorKind::InvalidInput)?;
        match pidfd_open(raw, PidfdFlags::empty()) {
            Ok(pidfd) => Ok(Self {
                pid,
                pidfd: Some(pidfd),
            }),
            Err(Errno::SRCH) => Ok(Self { pid, pidfd: None }),
            Err(error) => Err(error.into()),
        }
    }

    /// Its pid.
    pub(crate) fn pid(&self) -> u32 {
        self.pid
    }

    /// Resolves when the process has ended (then it holds no lock any more), with its status if it was our child.
    pub(crate) async fn ended(&self) -> io::Result<Option<EndCause>> {
        self.gone().await?;
        let pidfd = self.pidfd.as_ref();
        Ok(pidfd.and_then(|pidfd| wait_now(WaitId::PidFd(pidfd.as_fd()))))
    }

    /// The same of a process that somebody else reaps.
    #[allow(
        deprecated,
        reason = "a borrowed descriptor stays the same one; the replacement is unsafe and needs a newer tokio"
    )]
    pub(crate) async fn gone(&self) -> io::Result<()> {
        if let Some(pidfd) = &self.pidfd {
            let watched = AsyncFd::with_interest(pidfd.as_fd(), Interest::READABLE)?;
            watched.readable().await?.retain_ready();
        }
        Ok(())
    }

    /// Kills it; nothing if it is gone.
    pub(crate) fn kill(&self) -> io::Result<()> {
        let Some(pidfd) = &self.pidfd else {
            return Ok(());
        };
        match pidfd_send_signal(pidfd, Signal::KILL) {
            Ok(()) | Err(Errno::SRCH) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }
}

/// Reaps the dead process of an earlier run, if it was our own child; its status if so.
pub(crate) fn reap(identity: &Identity) -> Option<EndCause> {
    let still_it = Identity::of(identity.pid).ok().flatten()? == *identity;
    let pid = Pid::from_raw(i32::try_from(identity.pid).ok()?)?;
    if still_it {
        wait_now(WaitId::Pid(pid))
    } else {
        None
    }
}

fn wait_now(which: WaitId<'_>) -> Option<EndCause> {
    match waitid(which, WaitIdOptions::EXITED | WaitIdOptions::NOHANG) {
        Ok(Some(status)) => Some(cause(&status)),
        Ok(None) => None,
        Err(error) => {
            // ECHILD: not our child, or the host application ignores SIGCHLD and the kernel reaped it.
            tracing::trace!(%error, "no exit status");
            None
        }
    }
}

fn cause(status: &WaitIdStatus) -> EndCause {
    match (status.exit_status(), status.terminating_signal()) {
        (Some(code), _) => EndCause::Exited(code),
        (_, Some(signal)) => EndCause::Killed(signal),
        _ => EndCause::Vanished,
    }
}
