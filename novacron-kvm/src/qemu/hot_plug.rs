//! Attach and detach while the guest runs.
//!
//! An attach is two steps in QEMU (node or link, then device), a detach is the same backwards with the guest's consent in
//! between. Whichever step was the last, the next call finds out from QEMU by the ids and goes on from there.

use async_trait::async_trait;
use novacron_core::driver::{Call, DiskAttachment, DomainId, HotPlug, NicAttachment};
use novacron_core::model::{Bytes, PortId, VolumeId};
use novacron_core::{Error, ErrorKind, Result};
use serde_json::{Value, json};
use tokio::sync::broadcast::error::RecvError;
use tokio::time::{Duration, interval, timeout_at};

use super::devices::{
    arguments, blockdev, disk_device, disk_id, link_id, nic_device, nic_id, volume_node,
};
use super::monitor::Monitor;
use super::net::Link;
use super::spec::{StoredDisk, StoredNic};
use super::{QemuHypervisor, error};

#[async_trait]
impl HotPlug for QemuHypervisor {
    async fn attach_disk(&self, call: Call, id: DomainId, disk: &DiskAttachment) -> Result<()> {
        const OPERATION: &str = "qemu.attach_disk";
        let disk = StoredDisk::of(disk, OPERATION)?;
        let turn = self.state.turn(call, id, OPERATION).await?;
        let monitor = turn.monitor();
        if monitor.devices().await?.contains(&disk_id(disk.volume)) {
            return Ok(());
        }
        monitor.close_unused().await?;
        let port = monitor.free_port().await?;
        monitor.tell("blockdev-add", blockdev(&disk)).await?;
        let plugged = monitor
            .tell("device_add", arguments(&disk_device(&disk, &port)))
            .await;
        if plugged.is_err() {
            monitor.close_unused().await?;
        }
        plugged
    }

    async fn detach_disk(&self, call: Call, id: DomainId, volume: VolumeId) -> Result<()> {
        const OPERATION: &str = "qemu.detach_disk";
        let turn = self.state.turn(call, id, OPERATION).await?;
        let monitor = turn.monitor();
        unplug(monitor, &disk_id(volume)).await?;
        // QEMU lets go of the image a moment after it says that the device is gone.
        let mut look = interval(Duration::from_millis(20));
        while monitor.close_unused().await?.contains(&volume_node(volume)) {
            look.tick().await;
        }
        Ok(())
    }

    async fn attach_nic(&self, call: Call, id: DomainId, nic: &NicAttachment) -> Result<()> {
        const OPERATION: &str = "qemu.attach_nic";
        let nic = StoredNic::of(nic);
        let turn = self.state.turn(call, id, OPERATION).await?;
        let monitor = turn.monitor();
        if monitor.devices().await?.contains(&nic_id(nic.port)) {
            return Ok(());
        }
        drop_link(monitor, nic.port).await?;
        let link = Link::plan(&nic, OPERATION)?;
        let port = monitor.free_port().await?;
        monitor.tell("netdev_add", link.arguments(nic.port)).await?;
        let plugged = match link.connect(OPERATION).await {
            Ok(()) => {
                monitor
                    .tell("device_add", arguments(&nic_device(&nic, &port)))
                    .await
            }
            refused => refused,
        };
        if plugged.is_err() {
            drop_link(monitor, nic.port).await?;
        }
        plugged
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
