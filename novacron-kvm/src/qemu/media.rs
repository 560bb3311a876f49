//! Media in CD-ROM drives.
//!
//! A drive's door is opened, the medium put in or taken out, and the door closed. A guest that uses a medium has locked the
//! door: it is asked to open it, as by the drive's button.

use std::time::Duration;

use novacron_core::driver::Call;
use novacron_core::model::VolumeId;
use novacron_core::{Error, ErrorKind, Result};
use serde_json::{Value, json};
use tokio::time::{Instant, interval, timeout_at};

use super::devices::{blockdev, volume_node};
use super::error;
use super::hot_plug::set_limits;
use super::live::Live;
use super::monitor::Monitor;
use super::spec::StoredDisk;
use super::state::Turn;
use crate::media::{LOCKED, NO_DRIVE};
use crate::process::{ProcessError, remove_file};

impl Live {
    /// Whether this volume is still being put into a drive.
    pub(super) fn is_inserting(&self, volume: VolumeId) -> Result<bool, ProcessError> {
        Ok(self.dir.read(INSERTING)? == Some(volume))
    }
}

/// How often a guest is asked to open the door.
const LOOK: Duration = Duration::from_secs(1);
/// How long it has to open it, as with libvirt: its other devices do not wait for it longer.
const PATIENCE: Duration = Duration::from_secs(5);
/// How long a failed insert may take to close what it opened.
const CLEANUP: Duration = Duration::from_secs(5);
/// The volume that is being put into a drive, in the start's folder.
const INSERTING: &str = "inserting.json";

/// The drive that a volume is in.
pub(super) async fn drive_of(monitor: Monitor<'_>, volume: VolumeId) -> Result<Option<String>> {
    let mut drives = monitor.drives().await?.into_iter();
    let drive = drives.find(|(_, medium)| *medium == Some(volume));
    Ok(drive.map(|(drive, _)| drive))
}

/// Puts a volume into a drive that is empty, unless it is in one, and closes the door. Until that is done, also over a crash,
/// the volume is not shown as attached ([`Live::is_inserting`]), so that it is asked for again.
pub(super) async fn insert(turn: &Turn, disk: &StoredDisk) -> Result<()> {
    let monitor = turn.monitor();
    let failed = |e| error::process(monitor.operation, e);
    let drives = monitor.drives().await?;
    let has = |wanted: Option<VolumeId>| {
        let drive = drives.iter().find(|(_, medium)| *medium == wanted);
        drive.map(|(drive, _)| drive)
    };
    let drive = match (has(Some(disk.volume)), has(None)) {
        (Some(_), _) if !turn.live.is_inserting(disk.volume).map_err(failed)? => {
            return set_limits(monitor, disk.volume, &disk.options.limits).await;
        }
        (Some(drive), _) => drive,
        (None, Some(drive)) => {
            let note = turn.live.dir.write(INSERTING, &disk.volume);
            note.map_err(failed)?;
            monitor.close_unused().await?;
            monitor.tell("blockdev-add", blockdev(disk)).await?;
            let insert = json!({ "id": drive, "node-name": volume_node(disk.volume) });
            let inserted = through_the_door(monitor, drive, "blockdev-insert-medium", insert).await;
            if let Err(error) = inserted {
                // Also when the deadline has passed: what is left open keeps the image from others.
                let call = Call::within(CLEANUP);
                let _ = Monitor { call, ..monitor }.close_unused().await;
                return Err(error);
            }
            drive
        }
        (None, None) => {
            let (kind, operation) = (ErrorKind::FailedPrecondition, monitor.operation);
            return Err(Error::new(kind, operation, NO_DRIVE));
        }
    };
    let close = json!({ "id": drive });
    monitor.tell("blockdev-close-tray", close).await?;
    set_limits(monitor, disk.volume, &disk.options.limits).await?;
    remove_file(&turn.live.dir.file(INSERTING)).map_err(failed)
}

/// Takes the medium out of a drive, and closes the door.
pub(super) async fn eject(monitor: Monitor<'_>, drive: &str) -> Result<()> {
    let id = || json!({ "id": drive });
    through_the_door(monitor, drive, "blockdev-remove-medium", id()).await?;
    monitor.tell("blockdev-close-tray", id()).await
}

/// Opens a drive's door and tells QEMU to do something through it, as soon as it is open. QEMU does not say that a guest has
/// locked it, but refuses what is to go through it.
async fn through_the_door(
    monitor: Monitor<'_>,
    drive: &str,
    command: &str,
    arguments: Value,
) -> Result<()> {
    let done = async {
        let mut look = interval(LOOK);
        loop {
            look.tick().await;
            let open = json!({ "id": drive });
            monitor.tell("blockdev-open-tray", open).await?;
            match monitor.tell(command, arguments.clone()).await {
                Err(refused) if refused.message().contains("is not open") => {}
                told => return told,
            }
        }
    };
    let until = monitor.call.deadline.instant();
    timeout_at(until.min(Instant::now() + PATIENCE), done)
        .await
        .unwrap_or_else(|_| {
            let error = Error::new(ErrorKind::DeadlineExceeded, monitor.operation, LOCKED);
            Err(error.with("drive", drive))
        })
}
