//! One QEMU process: started detached, found again, told dead from alive.
//!
//! QEMU is a plain child in a session of its own (`setsid`), so that neither a closing terminal nor the end of the host
//! application touches it; while we live, we alone reap it (by pidfd, never by `wait(-1)`), and after our end init does.
//! Its stdio goes to files in its run directory, `<vm>/<epoch>`; the lock is the
//! VM's, so that no two of its starts run at once:
//!
//! | file | written by | says |
//! |---|---|---|
//! | `../run.lock` | the child, before exec | held (flock) for as long as QEMU lives, on a descriptor that it inherited; holds the epoch and its pid |
//! | `started.json` | us, before the spawn | this start was used up; the host's boot id |
//! | `run.json` | us, after the spawn | pid, start time, host boot id |
//! | `inserting.json` | us, while a medium is put into a drive | which volume: it is not attached before that is over |
//! | `exit.json` | whoever learns the end | how it ended, when that was seen |
//! | `qemu.log` | QEMU, swtpm | stdout and stderr of this start: its last words |
//!
//! **The lock is the truth.** If it is held, QEMU lives, and the pid in it is QEMU's (a second start of the same VM
//! fails on it, whatever any database says). If it is free, QEMU is gone: a reused pid or a zombie cannot mislead us.
//! Our own copy of the descriptor is closed as soon as the child runs.
//!
//! **A poweroff that nobody saw.** QEMU runs with `-action shutdown=pause,panic=pause`: a guest that powers off while
//! no host application is there leaves a paused QEMU with status `shutdown`, which the next owner finds, notes in
//! `exit.json`, and quits. So a free lock without `exit.json` always means that QEMU itself died: a crash, a `kill -9`,
//! or a host reboot (told by the boot id). The price: until an owner returns, such a guest keeps its memory. Turned
//! down: a second monitor that logs events to a file, since a guest can make QEMU emit events without bound; and
//! letting QEMU exit on its own, since then an exit code of nobody's child would have to tell the difference.
//!
//! Needs Linux 5.4 (pidfd). Does not know QMP, arguments or domains.

mod end;
mod error;
mod folder;
mod identity;
mod lock;
mod rundir;
mod spawn;
mod watch;

pub(crate) use end::{End, EndCause};
pub(crate) use error::ProcessError;
pub(crate) use folder::{FolderLock, Owner, owner};
pub(crate) use identity::{Identity, boot_id};
pub(crate) use lock::Holder;
pub(crate) use rundir::{Found, Hold, RunDir, fits, hold, holder, remove_file};
pub(crate) use spawn::{LOG, Launch, Listener, launch};
pub(crate) use watch::Process;

#[cfg(test)]
mod tests;
