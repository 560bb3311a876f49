//! Ending an owner and its guests, on the machine that they run on.
//!
//! ```text
//!   <state>/lock: who? ── this host, this boot ──► kill its process ──► take the lock ──► kill who holds a run.lock ──► proof
//!                      └─ another: refused                                 │ until all are free
//! ```
//! **The ability to start is the folder's lock.** Only the hypervisor that holds it starts guests; it goes with its
//! process, and a child on its way to become a QEMU has a copy of it until it is one, and then holds its VM's
//! `run.lock`. So once the fence has the lock, no start is under way and none can begin, and each QEMU of the folder
//! holds a lock that can be seen. The fence keeps it until the last of those is free.
//!
//! A process is killed by its pidfd, the owner after its start time was compared, a guest after it was seen to have the
//! lock open: a pid that was reused is never hit. An owner that is stopped, or that died by itself, makes no difference.
//! Every QEMU of the folder is ended, also another cluster's: it is the host that is fenced. What emulates a guest's TPM
//! holds no lock, and is found by what it was started with, after the last QEMU.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::time::Duration;

use async_trait::async_trait;
use novacron_core::driver::{Call, Fence, FenceTarget};
use novacron_core::model::{FenceReceipt, VmId};
use novacron_core::{Error, ErrorKind, Result};
use tokio::time::timeout;

use crate::process::{FolderLock, Hold, Owner, Process, ProcessError, boot_id, hold, owner};
use crate::qemu::{error, names};
use crate::tpm;

const OPERATION: &str = "fence.process";
/// Between two looks at a lock.
const PAUSE: Duration = Duration::from_millis(20);

/// Ends the process that uses a [`QemuHypervisor`](crate::QemuHypervisor)'s state folder, and every QEMU of it.
///
/// For tests, and for clusters whose processes share one machine: it must run in the owner's pid namespace (its network
/// may be another one) with the right to signal it. It proves nothing about a machine that does not answer.
#[derive(Clone, Debug)]
pub struct ProcessFence {
    folder: PathBuf,
}

impl ProcessFence {
    /// A fence for the hypervisor with this state folder.
    pub fn new(state_dir: impl Into<PathBuf>) -> Self {
        Self {
            folder: state_dir.into(),
        }
    }

    /// Who uses the folder, or used it last, if that is the target.
    fn target(&self, target: &FenceTarget) -> Result<Owner> {
        let refused = |kind, message: String| {
            Err(Error::new(kind, OPERATION, message).with("path", self.folder.display()))
        };
        let owner = owner(&self.folder).map_err(failed)?;
        let now = boot_id()
            .map_err(|e| failed(ProcessError::io("read", "/proc/sys/kernel".as_ref())(e)))?;
        match owner {
            None => refused(
                ErrorKind::NotFound,
                "no hypervisor has used this state folder".to_owned(),
            ),
            Some(owner) if owner.host != target.host => refused(
                ErrorKind::FailedPrecondition,
                format!(
                    "the wrong host: the state folder is host {}'s, not {}'s",
                    owner.host, target.host
                ),
            ),
            Some(_) if now != target.boot_id => refused(
                ErrorKind::FailedPrecondition,
                format!(
                    "the wrong host: this machine runs under boot {now}, not {}; if it is the one and has booted anew, \
                     an owner that is started on it tells",
                    target.boot_id
                ),
            ),
            Some(owner) if owner.process.boot_id != target.boot_id => refused(
                ErrorKind::FailedPrecondition,
                format!(
                    "the wrong host: the state folder was last used under boot {}, not {}",
                    owner.process.boot_id, target.boot_id
                ),
            ),
            Some(owner) => Ok(owner),
        }
    }

    /// Ends the owner; the folder's lock, and the process if it had to be killed.
    async fn end_owner(
        &self,
        call: Call,
        target: &FenceTarget,
    ) -> Result<(FolderLock, Option<u32>)> {
        let mut killed = None;
        loop {
            let owner = self.target(target)?.process;
            if let Some(lock) = FolderLock::take_present(&self.folder).map_err(failed)? {
                // Nobody can have become the owner since: it is the last one that is named.
                self.target(target)?;
                return Ok((lock, killed));
            }
            if owner.pid == std::process::id() && owner.is_alive() {
                let message = "the owner is this process, which does not end itself";
                return Err(Error::new(
                    ErrorKind::FailedPrecondition,
                    OPERATION,
                    message,
                ));
            }
            let process = opened(owner.pid)?;
            // Looked at after it was opened: if it is the owner now, it was then.
            if owner.is_alive() {
                kill(&process)?;
                killed = Some(owner.pid);
                gone(call, &process, "the owner").await?;
            }
            pause(call, "the state folder's lock is held by a process unknown").await?;
        }
    }

    /// Ends every QEMU of the folder, whose lock must be held; how many there were.
    async fn end_guests(&self, call: Call) -> Result<usize> {
        let mut killed = BTreeSet::new();
        loop {
            let mut held = false;
            for vm in names::<VmId>(&self.folder).map_err(failed)? {
                match hold(&self.folder.join(vm.to_string())).map_err(failed)? {
                    Hold::Free => {}
                    Hold::Unclear => held = true,
                    Hold::By(process) => {
                        held = true;
                        kill(&process)?;
                        killed.insert(process.pid());
                        gone(call, &process, "a guest").await?;
                    }
                }
            }
            if !held {
                self.end_tpms().await?;
                return Ok(killed.len());
            }
            pause(call, "a VM's run.lock is held by a process unknown").await?;
        }
    }

    /// Ends what emulates the guests' TPMs, and may still write: it holds no lock.
    async fn end_tpms(&self) -> Result<()> {
        let folder = self.folder.clone();
        let ended = tokio::task::spawn_blocking(move || tpm::end_below(&folder)).await;
        let ended = ended.unwrap_or_else(|lost| Err(std::io::Error::other(lost)));
        ended.map_err(|error| failed(ProcessError::io("end the swtpms of", &self.folder)(error)))
    }
}

#[async_trait]
impl Fence for ProcessFence {
    async fn fence(&self, call: Call, target: &FenceTarget) -> Result<FenceReceipt> {
        error::remaining(call, OPERATION)?;
        let (lock, owner) = self.end_owner(call, target).await?;
        let guests = self.end_guests(call).await?;
        drop(lock);
        let owner = match owner {
            Some(pid) => format!("process {pid} was killed"),
            None => "no process used the state folder".to_owned(),
        };
        Ok(FenceReceipt {
            method: "process".to_owned(),
            detail: format!("{owner}, guests killed: {guests}; every run.lock is free"),
        })
    }
}

fn failed(cause: ProcessError) -> Error {
    error::process(OPERATION, cause)
}

fn opened(pid: u32) -> Result<Process> {
    Process::open(pid).map_err(|e| failed(ProcessError::io("watch", "/proc".as_ref())(e)))
}

fn kill(process: &Process) -> Result<()> {
    process.kill().map_err(|e| {
        let message = format!("process {} cannot be killed", process.pid());
        Error::new(ErrorKind::PermissionDenied, OPERATION, message).caused_by(e)
    })
}

/// Waits for the end of a process that was killed.
async fn gone(call: Call, process: &Process, who: &str) -> Result<()> {
    match timeout(call.deadline.remaining(), process.gone()).await {
        Ok(gone) => gone.map_err(|e| failed(ProcessError::io("watch", "/proc".as_ref())(e))),
        Err(_) => Err(unproved(&format!(
            "{who}, process {}, was killed and is not gone yet",
            process.pid()
        ))),
    }
}

async fn pause(call: Call, why: &str) -> Result<()> {
    if call.deadline.remaining().is_zero() {
        return Err(unproved(why));
    }
    #[expect(
        clippy::disallowed_methods,
        reason = "a lock that another process holds tells nobody when it is free"
    )]
    tokio::time::sleep(PAUSE.min(call.deadline.remaining())).await;
    Ok(())
}

fn unproved(why: &str) -> Error {
    Error::new(
        ErrorKind::OutcomeUnknown,
        OPERATION,
        format!("the host is not proved to be off within the deadline: {why}"),
    )
}
