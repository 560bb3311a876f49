//! Media in CD-ROM drives: a drive is updated to have one, or to have none.
//!
//! A guest that uses a medium has locked the drive's door. libvirt asks it to open it, as by the drive's button, waits some
//! seconds, and refuses then.

use std::time::Duration;

use novacron_core::driver::{Call, DiskAttachment, DomainId};
use novacron_core::model::VolumeId;
use novacron_core::{Error, ErrorKind, Result};

use super::LibvirtHypervisor;
use super::describe::{describe_disk, tune};
use super::error::{precondition, remaining};
use super::hot_plug::{attached, not_xml};
use super::look::{Found, Task};
use super::notes::Media;
use super::state::Right;
use super::xml::{Disk, DomainXml};

/// How long libvirt waits for the guest to open the door (`CHANGE_MEDIA_TIMEOUT`), and a little more.
const TRY: Duration = Duration::from_secs(6);

/// Puts a volume into a drive that is empty.
pub(super) fn insert(
    task: &Task,
    found: &Found,
    running: &DomainXml,
    medium: &DiskAttachment,
) -> Result<()> {
    let mut drives = running.devices.disks.iter();
    let Some(drive) = drives.find(|disk| disk.is_drive() && disk.place().is_none()) else {
        let message = "every CD-ROM drive of the machine has a medium, or it has no drive";
        return Err(precondition(task.operation, found.id, message.to_owned()));
    };
    let Disk {
        kind,
        driver,
        source,
        ..
    } = describe_disk(medium, &[], 0, task.operation)?;
    let full = Disk {
        kind,
        driver,
        source,
        ..drive.clone()
    };
    // Known before it is there.
    let others = running.volumes().filter(|(_, disk)| disk.is_drive());
    if let Some(media) = Media::of(others.chain([(medium.volume, &full)])) {
        task.in_time()?;
        task.note(&found.dom, &media)?;
    }
    update(task, found, &full)?;
    let limits = &medium.options.limits;
    match &drive.target.device {
        Some(target) if drive.iotune != tune(limits) => {
            task.in_time()?;
            task.ok(found.dom.set_disk_limits(target, limits))
        }
        _ => Ok(()),
    }
}

fn update(task: &Task, found: &Found, drive: &Disk) -> Result<()> {
    let xml = quick_xml::se::to_string(drive).map_err(|e| not_xml(task.operation, e))?;
    task.in_time()?;
    task.ok(found.dom.update(&xml))
}

/// What a try to take out a volume came to.
#[derive(Clone, Copy)]
enum Tried {
    /// It is in no drive.
    NoMedium,
    Out,
    /// The guest has locked the door.
    Locked,
}

impl LibvirtHypervisor {
    /// Takes a volume out of its drive; whether it was in one.
    pub(super) async fn eject(
        &self,
        call: Call,
        id: DomainId,
        volume: VolumeId,
        operation: &'static str,
    ) -> Result<bool> {
        let eject = move |task: &Task| {
            let (found, running) = attached(task, id)?;
            let Some(drive) = running.disk(volume).filter(|disk| disk.is_drive()) else {
                return Ok(Tried::NoMedium);
            };
            let empty = Disk {
                source: None,
                ..drive.clone()
            };
            match update(task, &found, &empty) {
                Err(refused) if refused.message().contains("open tray") => Ok(Tried::Locked),
                updated => updated.map(|()| Tried::Out),
            }
        };
        loop {
            let tried = self
                .state
                .change(call, id, Right::Devices, operation, eject);
            match tried.await? {
                Tried::NoMedium => return Ok(false),
                Tried::Out => return Ok(true),
                // One that is cut short by the deadline would have an outcome that nobody knows.
                Tried::Locked if remaining(call, operation).is_ok_and(|left| left > TRY) => {}
                Tried::Locked => {
                    let message = "the guest keeps the drive's door locked; the medium stays in it";
                    let error = Error::new(ErrorKind::DeadlineExceeded, operation, message);
                    return Err(error.with("volume", volume));
                }
            }
        }
    }
}
