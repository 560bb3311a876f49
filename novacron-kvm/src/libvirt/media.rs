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
use crate::media::{LOCKED, NO_DRIVE};

/// How long libvirt waits for the guest to open the door (`CHANGE_MEDIA_TIMEOUT`), and a little more.
const TRY: Duration = Duration::from_secs(6);

/// What a try came to.
#[derive(Clone, Copy)]
enum Tried {
    Done,
    /// There is nothing to take out.
    NoMedium,
    /// The guest has locked the door, or too little time is left to find out.
    Locked,
}

impl LibvirtHypervisor {
    /// Puts a volume into a drive that is empty, unless it is in one.
    pub(super) async fn insert(
        &self,
        call: Call,
        id: DomainId,
        medium: DiskAttachment,
        operation: &'static str,
    ) -> Result<()> {
        let insert = move |task: &Task| {
            let (found, running) = attached(task, id)?;
            if running.disk(medium.volume).is_some() {
                return Ok(Tried::Done);
            }
            insert(task, &found, &running, &medium)
        };
        let inserted = self.through_the_door(call, id, operation, insert);
        inserted.await.map(drop)
    }

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
            update(task, &found, &empty)
        };
        let ejected = self.through_the_door(call, id, operation, eject).await?;
        Ok(matches!(ejected, Tried::Done))
    }

    async fn through_the_door(
        &self,
        call: Call,
        id: DomainId,
        operation: &'static str,
        try_it: impl Fn(&Task) -> Result<Tried> + Send + 'static,
    ) -> Result<Tried> {
        let tried = self
            .state
            .change(call, id, Right::Devices, operation, try_it);
        match tried.await? {
            Tried::Locked => {
                let error = Error::new(ErrorKind::DeadlineExceeded, operation, LOCKED);
                Err(error.with("domain", id))
            }
            tried => Ok(tried),
        }
    }
}

fn insert(
    task: &Task,
    found: &Found,
    running: &DomainXml,
    medium: &DiskAttachment,
) -> Result<Tried> {
    let mut drives = running.devices.disks.iter();
    let Some(drive) = drives.find(|disk| disk.is_drive() && disk.place().is_none()) else {
        return Err(precondition(task.operation, found.id, NO_DRIVE.to_owned()));
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
    let limits = &medium.options.limits;
    match (update(task, found, &full)?, &drive.target.device) {
        (Tried::Done, Some(target)) if drive.iotune != tune(limits) => {
            task.in_time()?;
            task.ok(found.dom.set_disk_limits(target, limits))?;
            Ok(Tried::Done)
        }
        (tried, _) => Ok(tried),
    }
}

fn update(task: &Task, found: &Found, drive: &Disk) -> Result<Tried> {
    let xml = quick_xml::se::to_string(drive).map_err(|e| not_xml(task.operation, e))?;
    // A try that is cut short by the deadline would have an outcome that nobody knows.
    if remaining(task.call, task.operation)? < TRY {
        return Ok(Tried::Locked);
    }
    match found.dom.update(&xml) {
        Err(refused) if !task.is_lost() && refused.message.contains("open tray") => {
            Ok(Tried::Locked)
        }
        updated => task.ok(updated).map(|()| Tried::Done),
    }
}
