//! Attach and detach while the guest runs, and the pivot of a disk.
//!
//! What is attached is what libvirt's description of the running domain shows, by our aliases. A detach asks the guest
//! and then waits for libvirt's event, looking again whenever it comes, until the deadline.

use std::path::PathBuf;
use std::time::Duration;

use async_trait::async_trait;
use novacron_core::driver::{Call, DiskAttachment, DiskPivot, DomainId, HotPlug, NicAttachment};
use novacron_core::model::{
    Bytes, DiskBus, DiskLimits, LinkState, NicLimits, PortId, SnapshotId, VolumeId,
};
use novacron_core::{Error, ErrorKind, Result};
use tokio::time::timeout;

use super::LibvirtHypervisor;
use super::describe::{
    bandwidth, describe_disk, describe_nic, disk_alias, nic_alias, path as xml_path, uuid_of,
};
use super::error::{precondition, remaining};
use super::look::{Found, Task};
use super::pool::Effect;
use super::state::Right;
use super::sys::code;
use super::xml::{
    Bandwidth, Devices, Disk, DiskSource, DomainXml, Link, SnapshotDisk, SnapshotDisks,
    SnapshotDriver, SnapshotXml,
};
use crate::media::NO_SNAPSHOT;

/// How long a detach waits for an event before it looks again.
const LOOK: Duration = Duration::from_millis(500);

#[async_trait]
impl HotPlug for LibvirtHypervisor {
    async fn attach_disk(&self, call: Call, id: DomainId, disk: &DiskAttachment) -> Result<()> {
        const OPERATION: &str = "libvirt.attach_disk";
        if disk.options.bus == DiskBus::Cdrom {
            return self.insert(call, id, disk.clone(), OPERATION).await;
        }
        let disk = disk.clone();
        let attach = move |task: &Task| {
            let (found, running) = attached(task, id)?;
            if running.disk(disk.volume).is_some() {
                return Ok(());
            }
            let io_threads = running.io_threads.map_or(0, |threads| threads.value);
            let devices = running.devices;
            place(&devices, disk.options.bus, OPERATION)?;
            let xml = describe_disk(&disk, &devices.disks, io_threads, OPERATION)?;
            attach(task, &found, quick_xml::se::to_string(&xml))
        };
        self.state
            .change(call, id, Right::Devices, OPERATION, attach)
            .await
    }

    async fn detach_disk(&self, call: Call, id: DomainId, volume: VolumeId) -> Result<()> {
        const OPERATION: &str = "libvirt.detach_disk";
        if self.eject(call, id, volume, OPERATION).await? {
            return Ok(());
        }
        let has = move |running: &DomainXml| running.disk(volume).is_some();
        self.detach(call, id, disk_alias(volume), has, OPERATION)
            .await
    }

    async fn set_disk_limits(
        &self,
        call: Call,
        id: DomainId,
        volume: VolumeId,
        limits: &DiskLimits,
    ) -> Result<()> {
        const OPERATION: &str = "libvirt.set_disk_limits";
        let limits = *limits;
        let set = move |task: &Task| {
            let (found, running) = attached(task, id)?;
            let target = target_of(task, &running, volume)?;
            task.in_time()?;
            task.ok(found.dom.set_disk_limits(&target, &limits))
        };
        self.state
            .change(call, id, Right::Devices, OPERATION, set)
            .await
    }

    async fn attach_nic(&self, call: Call, id: DomainId, nic: &NicAttachment) -> Result<()> {
        const OPERATION: &str = "libvirt.attach_nic";
        nic.check(OPERATION)?;
        let nic = nic.clone();
        let attach = move |task: &Task| {
            let (found, running) = attached(task, id)?;
            if has_nic(&running, nic.port) {
                return Ok(());
            }
            let xml = describe_nic(&nic, None, OPERATION)?;
            attach(task, &found, quick_xml::se::to_string(&xml))
        };
        self.state
            .change(call, id, Right::Devices, OPERATION, attach)
            .await
    }

    async fn set_nic(
        &self,
        call: Call,
        id: DomainId,
        port: PortId,
        link: LinkState,
        limits: &NicLimits,
    ) -> Result<()> {
        const OPERATION: &str = "libvirt.set_nic";
        let limits = *limits;
        let set = move |task: &Task| {
            let (found, running) = attached(task, id)?;
            let mut interfaces = running.devices.interfaces.into_iter();
            let nic = interfaces.find(|nic| nic.port() == Some(port));
            let Some(mut nic) = nic else {
                let message = "the NIC is not attached";
                let error = Error::new(ErrorKind::FailedPrecondition, OPERATION, message);
                return Err(error.with("port", port));
            };
            let device = nic.target.as_ref().and_then(|target| target.device.clone());
            let shown = nic.bandwidth.take();
            let (wanted, shown) = (bandwidth(&limits), shown.unwrap_or_default());
            let link = Link::of(link);
            if nic.link.as_ref().unwrap_or(&Link::of(LinkState::Up)) != &link {
                nic.link = Some(link);
                nic.bandwidth = Some(shown.clone()).filter(|shown| *shown != Bandwidth::default());
                let xml = quick_xml::se::to_string(&nic).map_err(|e| not_xml(OPERATION, e))?;
                task.in_time()?;
                task.ok(found.dom.update(&xml))?;
            }
            match device {
                _ if wanted.unwrap_or_default() == shown => Ok(()),
                Some(device) => {
                    task.in_time()?;
                    task.ok(found.dom.set_nic_limits(&device, &limits))
                }
                None => {
                    let message = "the NIC has no device on the host that could be limited";
                    Err(Error::new(ErrorKind::Unsupported, OPERATION, message).with("port", port))
                }
            }
        };
        self.state
            .change(call, id, Right::Devices, OPERATION, set)
            .await
    }

    async fn detach_nic(&self, call: Call, id: DomainId, port: PortId) -> Result<()> {
        const OPERATION: &str = "libvirt.detach_nic";
        let has = move |running: &DomainXml| has_nic(running, port);
        self.detach(call, id, nic_alias(port), has, OPERATION).await
    }

    async fn resize_disk(
        &self,
        call: Call,
        id: DomainId,
        volume: VolumeId,
        size: Bytes,
    ) -> Result<()> {
        const OPERATION: &str = "libvirt.resize_disk";
        let resize = move |task: &Task| {
            let (found, running) = attached(task, id)?;
            let target = target_of(task, &running, volume)?;
            let present = task.ok(found.dom.disk_size(&target))?;
            if present == size.0 {
                return Ok(());
            }
            if present > size.0 {
                let message = format!("a disk only grows, and this one has {}", Bytes(present));
                let error = Error::new(ErrorKind::Invalid, OPERATION, message);
                return Err(error.with("volume", volume));
            }
            task.in_time()?;
            task.ok(found.dom.resize_disk(&target, size.0))
        };
        self.state
            .change(call, id, Right::Devices, OPERATION, resize)
            .await
    }
}

#[async_trait]
impl DiskPivot for LibvirtHypervisor {
    async fn pivot(
        &self,
        call: Call,
        id: DomainId,
        volume: VolumeId,
        _snapshot: SnapshotId,
        path: PathBuf,
    ) -> Result<()> {
        const OPERATION: &str = "libvirt.pivot";
        let pivot = move |task: &Task| {
            let layer = xml_path(&path, OPERATION)?;
            let (found, running) = attached(task, id)?;
            let target = target_of(task, &running, volume)?;
            let on_top = |disk: &Disk| {
                let source = disk.source.as_ref();
                source.and_then(|source| source.file.as_ref()) == Some(&layer)
            };
            let disk = running.disk(volume);
            if disk.is_some_and(on_top) {
                return Ok(());
            }
            if disk.is_some_and(Disk::is_drive) {
                return Err(precondition(OPERATION, id, NO_SNAPSHOT.to_owned()));
            }
            task.in_time()?;
            let xml = snapshot(&running.devices, &target, &layer);
            let xml = quick_xml::se::to_string(&xml).map_err(|e| not_xml(OPERATION, e))?;
            task.ok(found.dom.pivot(&xml))
        };
        self.state
            .change(call, id, Right::Devices, OPERATION, pivot)
            .await
    }
}

/// Names every disk: one that is not named would get a layer of libvirt's own making.
fn snapshot(devices: &Devices, target: &str, layer: &str) -> SnapshotXml {
    let disk = |name: &String| {
        let name = name.clone();
        if name != target {
            return SnapshotDisk {
                name,
                snapshot: "no".to_owned(),
                ..SnapshotDisk::default()
            };
        }
        SnapshotDisk {
            name,
            snapshot: "external".to_owned(),
            kind: Some("file".to_owned()),
            driver: Some(SnapshotDriver {
                format: "qcow2".to_owned(),
            }),
            source: Some(DiskSource {
                file: Some(layer.to_owned()),
                ..DiskSource::default()
            }),
        }
    };
    let names = devices
        .disks
        .iter()
        .filter_map(|d| d.target.device.as_ref());
    SnapshotXml {
        disks: SnapshotDisks {
            disk: names.map(disk).collect(),
        },
    }
}

impl LibvirtHypervisor {
    async fn detach(
        &self,
        call: Call,
        id: DomainId,
        alias: String,
        has: impl Fn(&DomainXml) -> bool + Clone + Send + Sync + 'static,
        operation: &'static str,
    ) -> Result<()> {
        let mut removed = self.state.removed.subscribe();
        let (ask, asked) = (has.clone(), alias.clone());
        let detach = move |task: &Task| {
            let (found, running) = attached(task, id)?;
            if !ask(&running) {
                return Ok(true);
            }
            task.in_time()?;
            match found.dom.detach(&asked) {
                // The guest was faster.
                Err(_) if !task.is_lost() && !ask(&attached(task, id)?.1) => Ok(true),
                // Asked before, and the guest has not answered yet.
                Err(error)
                    if error.is(code::VIR_ERR_OPERATION_FAILED)
                        && error.message.contains("unplug") =>
                {
                    Ok(false)
                }
                detached => task.ok(detached).map(|()| false),
            }
        };
        let gone = self
            .state
            .change(call, id, Right::Devices, operation, detach)
            .await?;
        if gone {
            return Ok(());
        }
        loop {
            let has = has.clone();
            let look = move |task: &Task| Ok(has(&attached(task, id)?.1));
            let late = || {
                let message = "the guest has not let go of it; it stays attached";
                Error::new(ErrorKind::DeadlineExceeded, operation, message).with("device", &alias)
            };
            let limit = remaining(call, operation).map_err(|_| late())?;
            let here = self.state.run(call, operation, Effect::None, look).await?;
            if !here {
                return Ok(());
            }
            // An event that was missed shows at the next look.
            let event = async {
                while removed
                    .recv()
                    .await
                    .is_ok_and(|(domain, device)| domain != uuid_of(id) || device != alias)
                {
                }
            };
            let _ = timeout(LOOK.min(limit), event).await;
        }
    }
}

/// A started domain, and what it is now.
pub(super) fn attached(task: &Task, id: DomainId) -> Result<(Found, DomainXml)> {
    let (found, _) = task.started(id)?;
    let running = task.running_xml(&found)?;
    Ok((found, running))
}

/// Whether a disk on this bus can be plugged in: libvirt would make a controller of its own choice.
fn place(devices: &Devices, bus: DiskBus, operation: &'static str) -> Result<()> {
    let has_scsi = devices.controllers.iter().any(|c| c.kind == "scsi");
    match bus.takes_none_now(has_scsi) {
        Some(why) => Err(Error::new(ErrorKind::Unsupported, operation, why)),
        None => Ok(()),
    }
}

fn has_nic(running: &DomainXml, port: PortId) -> bool {
    let mut nics = running.devices.interfaces.iter();
    nics.any(|nic| nic.port() == Some(port))
}

fn target_of(task: &Task, running: &DomainXml, volume: VolumeId) -> Result<String> {
    let disk = running.disk(volume);
    disk.and_then(|disk| disk.target.device.clone())
        .ok_or_else(|| {
            let message = "the volume is not attached";
            Error::new(ErrorKind::FailedPrecondition, task.operation, message)
                .with("volume", volume)
        })
}

fn attach(
    task: &Task,
    found: &Found,
    device: std::result::Result<String, quick_xml::SeError>,
) -> Result<()> {
    let device = device.map_err(|error| not_xml(task.operation, error))?;
    task.in_time()?;
    match found.dom.attach(&device) {
        Err(error) if !task.is_lost() => {
            Err(super::error::refused(task.operation, found.id, &error))
        }
        attached => task.ok(attached),
    }
}

pub(super) fn not_xml(operation: &'static str, error: quick_xml::SeError) -> Error {
    let message = "a device cannot be described in XML";
    Error::new(ErrorKind::Internal, operation, message).caused_by(error)
}
