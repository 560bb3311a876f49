//! Media in CD-ROM drives.
//!
//! A drive's door is opened, the medium put in or taken out, and the door closed. A guest that uses a medium has locked the
//! door: it is asked to open it, as by the drive's button.

use std::time::Duration;

use novacron_core::model::VolumeId;
use novacron_core::{Error, ErrorKind, Result};
use serde_json::{Value, json};
use tokio::time::{interval, timeout_at};

use super::devices::{blockdev, volume_node};
use super::hot_plug::set_limits;
use super::monitor::Monitor;
use super::spec::StoredDisk;

/// How long a guest has between two looks at whether it has opened the door.
const LOOK: Duration = Duration::from_millis(200);

/// The drive that a volume is in.
pub(super) async fn drive_of(monitor: Monitor<'_>, volume: VolumeId) -> Result<Option<String>> {
    let mut drives = monitor.drives().await?.into_iter();
    let drive = drives.find(|(_, medium)| *medium == Some(volume));
    Ok(drive.map(|(drive, _)| drive))
}

/// Puts a volume into a drive that is empty, unless it is in one.
pub(super) async fn insert(monitor: Monitor<'_>, disk: &StoredDisk) -> Result<()> {
    let drives = monitor.drives().await?;
    let has = |wanted: Option<VolumeId>| {
        let drive = drives.iter().find(|(_, medium)| *medium == wanted);
        drive.map(|(drive, _)| drive)
    };
    let drive = match (has(Some(disk.volume)), has(None)) {
        (Some(drive), _) => drive,
        (None, Some(drive)) => {
            monitor.close_unused().await?;
            monitor.tell("blockdev-add", blockdev(disk)).await?;
            let insert = json!({ "id": drive, "node-name": volume_node(disk.volume) });
            let inserted = through_the_door(monitor, drive, "blockdev-insert-medium", insert).await;
            if inserted.is_err() {
                monitor.close_unused().await?;
            }
            inserted?;
            drive
        }
        (None, None) => {
            let message = "every CD-ROM drive of the machine has a medium, or it has no drive";
            return Err(Error::new(
                ErrorKind::FailedPrecondition,
                monitor.operation,
                message,
            ));
        }
    };
    let close = json!({ "id": drive });
    monitor.tell("blockdev-close-tray", close).await?;
    set_limits(monitor, disk.volume, &disk.options.limits).await
}

/// Takes the medium out of a drive.
pub(super) async fn eject(monitor: Monitor<'_>, drive: &str) -> Result<()> {
    let remove = json!({ "id": drive });
    through_the_door(monitor, drive, "blockdev-remove-medium", remove).await
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
    timeout_at(monitor.call.deadline.instant(), done)
        .await
        .unwrap_or_else(|_| {
            let message = "the guest keeps the drive's door locked; the medium stays in it";
            let error = Error::new(ErrorKind::DeadlineExceeded, monitor.operation, message);
            Err(error.with("drive", drive))
        })
}
