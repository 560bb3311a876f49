//! Attach and detach while the guest runs.
//!
//! An attach is two steps in QEMU (node or link, then device), a detach is the same backwards with the guest's consent in
//! between. Whichever step was the last, the next call finds out from QEMU by the ids and goes on from there.

use async_trait::async_trait;
use novacron_core::driver::{Call, DiskAttachment, DomainId, HotPlug, NicAttachment};
use novacron_core::model::{Bytes, DiskBus, DiskLimits, LinkState, NicLimits, PortId, VolumeId};
use novacron_core::{Error, ErrorKind, Result};
use serde_json::{Value, json};
use tokio::sync::broadcast::error::RecvError;
use tokio::time::{Duration, interval, timeout_at};

use super::devices::{
    SCSI, SCSI_BUS, arguments, blockdev, disk_device, disk_id, link_id, nic_device, nic_id,
    throttle, volume_node,
};
use super::monitor::Monitor;
use super::net::{Link, connect};
use super::spec::{StoredDisk, StoredNic};
use super::{QemuHypervisor, error, media, shaping};

#[async_trait]
impl HotPlug for QemuHypervisor {
    async fn attach_disk(&self, call: Call, id: DomainId, disk: &DiskAttachment) -> Result<()> {
        const OPERATION: &str = "qemu.attach_disk";
        let disk = StoredDisk::of(disk, OPERATION)?;
        let turn = self.state.turn(call, id, OPERATION).await?;
        let monitor = turn.monitor();
        let limits = &disk.options.limits;
        if monitor.devices().await?.contains(&disk_id(disk.volume)) {
            return set_limits(monitor, disk.volume, limits).await;
        }
        if disk.options.bus == DiskBus::Cdrom {
            return media::insert(&turn, &disk).await;
        }
        monitor.close_unused().await?;
        let port = place(monitor, disk.options.bus).await?;
        monitor.tell("blockdev-add", blockdev(&disk)).await?;
        let mut device = disk_device(&disk, &port);
        if disk.options.bus == DiskBus::Virtio {
            device.extend(monitor.next_thread().await?);
        }
        let plugged = monitor.tell("device_add", arguments(&device)).await;
        match plugged {
            Ok(()) if *limits != DiskLimits::default() => {
                set_limits(monitor, disk.volume, limits).await
            }
            Ok(()) => Ok(()),
            Err(error) => {
                monitor.close_unused().await?;
                Err(error)
            }
        }
    }

    async fn set_disk_limits(
        &self,
        call: Call,
        id: DomainId,
        volume: VolumeId,
        limits: &DiskLimits,
    ) -> Result<()> {
        const OPERATION: &str = "qemu.set_disk_limits";
        let turn = self.state.turn(call, id, OPERATION).await?;
        // Those of the start must not come after these.
        turn.prepare().await?;
        set_limits(turn.monitor(), volume, limits).await
    }

    async fn detach_disk(&self, call: Call, id: DomainId, volume: VolumeId) -> Result<()> {
        const OPERATION: &str = "qemu.detach_disk";
        let turn = self.state.turn(call, id, OPERATION).await?;
        let monitor = turn.monitor();
        match media::drive_of(monitor, volume).await? {
            Some(drive) => media::eject(monitor, &drive).await?,
            None => unplug(monitor, &disk_id(volume)).await?,
        }
        // QEMU lets go of the image a moment after it says that the device is gone.
        let mut look = interval(Duration::from_millis(20));
        while monitor.close_unused().await?.contains(&volume_node(volume)) {
            look.tick().await;
        }
        Ok(())
    }

    async fn attach_nic(&self, call: Call, id: DomainId, nic: &NicAttachment) -> Result<()> {
        const OPERATION: &str = "qemu.attach_nic";
        nic.check(OPERATION)?;
        let nic = StoredNic::of(nic);
        let turn = self.state.turn(call, id, OPERATION).await?;
        let monitor = turn.monitor();
        if monitor.devices().await?.contains(&nic_id(nic.port)) {
            return set_link(monitor, nic.port, nic.options.link).await;
        }
        drop_link(monitor, nic.port).await?;
        let link = Link::plan(&nic, OPERATION)?;
        let port = monitor.free_port().await?;
        monitor.tell("netdev_add", link.arguments(nic.port)).await?;
        let plugged = match connect(&nic, call, OPERATION).await {
            Ok(()) => {
                monitor
                    .tell("device_add", arguments(&nic_device(&nic, &port, None)))
                    .await
            }
            refused => refused,
        };
        if plugged.is_err() {
            drop_link(monitor, nic.port).await?;
        }
        plugged?;
        match nic.options.link {
            LinkState::Up => Ok(()),
            LinkState::Down => set_link(monitor, nic.port, LinkState::Down).await,
        }
    }

    async fn set_nic(
        &self,
        call: Call,
        id: DomainId,
        port: PortId,
        link: LinkState,
        limits: &NicLimits,
    ) -> Result<()> {
        const OPERATION: &str = "qemu.set_nic";
        let turn = self.state.turn(call, id, OPERATION).await?;
        // Those of the start must not come after these.
        turn.prepare().await?;
        let monitor = turn.monitor();
        set_link(monitor, port, link).await?;
        match monitor.links().await?.tap(port) {
            Some(device) => shaping::limit(device, limits, call, OPERATION).await,
            None if *limits == NicLimits::default() => Ok(()),
            None => {
                let message = "the NIC has no device on the host that could be limited";
                Err(Error::new(ErrorKind::Unsupported, OPERATION, message).with("port", port))
            }
        }
    }

    async fn detach_nic(&self, call: Call, id: DomainId, port: PortId) -> Result<()> {
        const OPERATION: &str = "qemu.detach_nic";
        let turn = self.state.turn(call, id, OPERATION).await?;
        let monitor = turn.monitor();
        unplug(monitor, &nic_id(port)).await?;
        drop_link(monitor, port).await
    }

    async fn resize_disk(
        &self,
        call: Call,
        id: DomainId,
        volume: VolumeId,
        size: Bytes,
    ) -> Result<()> {
        const OPERATION: &str = "qemu.resize_disk";
        let turn = self.state.turn(call, id, OPERATION).await?;
        let monitor = turn.monitor();
        let top = monitor.top_layer(volume).await?;
        let top = top.ok_or_else(|| not_attached(OPERATION, volume))?;
        match top.size {
            Some(present) if present == size.0 => Ok(()),
            Some(present) if present > size.0 => {
                let message = format!("a disk only grows, and this one has {}", Bytes(present));
                Err(Error::new(ErrorKind::Invalid, OPERATION, message).with("volume", volume))
            }
            _ => {
                monitor
                    .tell(
                        "block_resize",
                        json!({ "node-name": top.node, "size": size.0 }),
                    )
                    .await
            }
        }
    }
}

/// Where a disk on this bus is plugged in.
async fn place(monitor: Monitor<'_>, bus: DiskBus) -> Result<String> {
    let has_scsi = bus == DiskBus::Scsi && monitor.devices().await?.iter().any(|id| id == SCSI);
    match bus.takes_none_now(has_scsi) {
        Some(why) => Err(Error::new(ErrorKind::Unsupported, monitor.operation, why)),
        None if bus == DiskBus::Scsi => Ok(SCSI_BUS.to_owned()),
        None => monitor.free_port().await,
    }
}

/// Sets what may be read and written of a volume.
pub(super) async fn set_limits(
    monitor: Monitor<'_>,
    volume: VolumeId,
    limits: &DiskLimits,
) -> Result<()> {
    let device = monitor.block_device(volume).await?;
    let device = device.ok_or_else(|| not_attached(monitor.operation, volume))?;
    let throttle = throttle(&device, limits);
    monitor.tell("block_set_io_throttle", throttle).await
}

/// Plugs a NIC's cable in, or pulls it.
pub(super) async fn set_link(monitor: Monitor<'_>, port: PortId, link: LinkState) -> Result<()> {
    let up = link == LinkState::Up;
    let limit = error::remaining(monitor.call, monitor.operation)?;
    let arguments = json!({ "name": nic_id(port), "up": up });
    match monitor.qmp.execute("set_link", arguments, limit).await {
        Ok(_) => Ok(()),
        Err(e) if e.class() == Some("DeviceNotFound") => {
            let message = "the NIC is not attached to the domain";
            Err(Error::new(ErrorKind::NotFound, monitor.operation, message).with("port", port))
        }
        Err(e) => Err(error::qmp(monitor.operation, e, true)),
    }
}

pub(super) fn not_attached(operation: &'static str, volume: VolumeId) -> Error {
    Error::new(
        ErrorKind::NotFound,
        operation,
        "the volume is not attached to the domain",
    )
    .with("volume", volume)
}

/// Asks the guest to let go of a device, and waits until it has.
async fn unplug(monitor: Monitor<'_>, device: &str) -> Result<()> {
    let mut events = monitor.qmp.events();
    if !monitor
        .devices()
        .await?
        .iter()
        .any(|present| present == device)
    {
        return Ok(());
    }
    match monitor.tell("device_del", json!({ "id": device })).await {
        // It was asked before and has not answered yet; to ask again now would take the request back on some buses.
        Err(refused) if refused.message().contains("unplug") => {}
        told => told?,
    }
    let operation = monitor.operation;
    let wait = async {
        loop {
            match events.recv().await {
                Ok(event) if event.data.get("device").and_then(Value::as_str) != Some(device) => {}
                Ok(event) if event.name == "DEVICE_DELETED" => return Ok(()),
                Ok(event) if event.name == "DEVICE_UNPLUG_GUEST_ERROR" => {
                    let message = "the guest refused to let go of it";
                    return Err(Error::new(
                        ErrorKind::FailedPrecondition,
                        operation,
                        message,
                    ));
                }
                Ok(_) => {}
                Err(RecvError::Lagged(_)) => {
                    if !monitor
                        .devices()
                        .await?
                        .iter()
                        .any(|present| present == device)
                    {
                        return Ok(());
                    }
                }
                Err(RecvError::Closed) => {
                    return Err(Error::new(
                        ErrorKind::Unavailable,
                        operation,
                        "the domain has ended",
                    ));
                }
            }
        }
    };
    timeout_at(monitor.call.deadline.instant(), wait)
        .await
        .unwrap_or_else(|_| {
            let message = "the guest has not let go of it; it stays attached";
            Err(Error::new(ErrorKind::DeadlineExceeded, operation, message).with("device", device))
        })
}

async fn drop_link(monitor: Monitor<'_>, port: PortId) -> Result<()> {
    let limit = error::remaining(monitor.call, monitor.operation)?;
    match monitor
        .qmp
        .execute("netdev_del", json!({ "id": link_id(port) }), limit)
        .await
    {
        Ok(_) => Ok(()),
        Err(e) if e.class() == Some("DeviceNotFound") => Ok(()),
        Err(e) => Err(error::qmp(monitor.operation, e, true)),
    }
}
