//! Devices of a started domain: attach, detach, grow, and the pivot of a live snapshot.

use std::path::PathBuf;

use async_trait::async_trait;

use super::guests::refused;
use super::hypervisor::{SimHypervisor, started};
use super::state::{SimDisk, SimNic};
use super::world::pool_of;
use crate::driver::{
    AttachmentSource, Call, DiskAttachment, DiskPivot, DomainId, HotPlug, NicAttachment,
};
use crate::error::{Error, ErrorKind, Result};
use crate::model::{
    Bytes, DiskBus, DiskLimits, LinkState, NicLimits, PortBinding, PortId, SnapshotId, VolumeId,
};

/// What has to be known of a disk.
pub(super) fn disk(attachment: &DiskAttachment) -> SimDisk {
    let pool = match &attachment.attachment.source {
        AttachmentSource::File(path) => pool_of(path, attachment.volume),
        _ => None,
    };
    SimDisk {
        volume: attachment.volume,
        pool,
        pivoted: None,
        limits: attachment.options.limits,
        bus: attachment.options.bus,
        is_state: false,
    }
}

pub(super) fn nic(attachment: &NicAttachment) -> SimNic {
    SimNic {
        port: attachment.port,
        needs_device: matches!(attachment.binding, PortBinding::Tap { .. }),
        link: attachment.options.link,
        limits: attachment.options.limits,
    }
}

#[async_trait]
impl HotPlug for SimHypervisor {
    async fn attach_disk(
        &self,
        call: Call,
        id: DomainId,
        attachment: &DiskAttachment,
    ) -> Result<()> {
        const OP: &str = "sim.attach_disk";
        let (host, disk) = (self.host, disk(attachment));
        self.run(OP, Some(id), call, move |state| {
            let domain = started(state, OP, host, id)?;
            if domain.disks.iter().any(|d| d.volume == disk.volume) {
                return Ok(());
            }
            let has_scsi = domain.disks.iter().any(|disk| disk.bus == DiskBus::Scsi);
            if let Some(why) = disk.bus.takes_none_now(has_scsi) {
                return Err(Error::new(ErrorKind::Unsupported, OP, why));
            }
            if disk.bus == DiskBus::Cdrom && domain.drives_are_full() {
                let message = "every CD-ROM drive of the machine has a medium";
                return Err(refused(OP, id, message));
            }
            let (volume, runs) = (disk.volume, domain.since.is_some());
            state.may_open(OP, volume, (host, id))?;
            started(state, OP, host, id)?.disks.push(disk);
            state.open.insert((volume, host, id));
            if runs {
                state.begin_writing(host, id, volume);
            }
            Ok(())
        })
        .await
    }

    async fn detach_disk(&self, call: Call, id: DomainId, volume: VolumeId) -> Result<()> {
        const OP: &str = "sim.detach_disk";
        let host = self.host;
        self.run(OP, Some(id), call, move |state| {
            let locked = state.doors_locked;
            let domain = started(state, OP, host, id)?;
            let in_drive = |d: &SimDisk| d.volume == volume && d.bus == DiskBus::Cdrom;
            if locked && domain.disks.iter().any(in_drive) {
                let message = "the guest keeps the drive's door locked";
                return Err(Error::new(ErrorKind::DeadlineExceeded, OP, message));
            }
            domain.disks.retain(|d| d.volume != volume);
            state.writing.remove(&(volume, host, id));
            state.open.remove(&(volume, host, id));
            Ok(())
        })
        .await
    }

    async fn set_disk_limits(
        &self,
        call: Call,
        id: DomainId,
        volume: VolumeId,
        limits: &DiskLimits,
    ) -> Result<()> {
        const OP: &str = "sim.set_disk_limits";
        let (host, limits) = (self.host, *limits);
        self.run(OP, Some(id), call, move |state| {
            let domain = started(state, OP, host, id)?;
            match domain.disks.iter_mut().find(|d| d.volume == volume) {
                Some(disk) => disk.limits = limits,
                None => return Err(refused(OP, id, "the volume is not attached")),
            }
            Ok(())
        })
        .await
    }

    async fn attach_nic(&self, call: Call, id: DomainId, nic: &NicAttachment) -> Result<()> {
        const OP: &str = "sim.attach_nic";
        nic.check(OP)?;
        let (host, nic) = (self.host, self::nic(nic));
        self.run(OP, Some(id), call, move |state| {
            let port = nic.port;
            if nic.needs_device && !state.host(OP, host)?.ports.contains_key(&port) {
                let message = format!("port {port} has no device on this host");
                return Err(Error::new(ErrorKind::FailedPrecondition, OP, message));
            }
            let domain = started(state, OP, host, id)?;
            if domain.nics.iter().all(|nic| nic.port != port) {
                domain.nics.push(nic);
            }
            Ok(())
        })
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
        const OP: &str = "sim.set_nic";
        let (host, limits) = (self.host, *limits);
        self.run(OP, Some(id), call, move |state| {
            let domain = started(state, OP, host, id)?;
            match domain.nics.iter_mut().find(|nic| nic.port == port) {
                Some(nic) => (nic.link, nic.limits) = (link, limits),
                None => return Err(refused(OP, id, "the NIC is not attached")),
            }
            Ok(())
        })
        .await
    }

    async fn detach_nic(&self, call: Call, id: DomainId, port: PortId) -> Result<()> {
        const OP: &str = "sim.detach_nic";
        let host = self.host;
        self.run(OP, Some(id), call, move |state| {
            started(state, OP, host, id)?
                .nics
                .retain(|nic| nic.port != port);
            Ok(())
        })
        .await
    }

    async fn resize_disk(
        &self,
        call: Call,
        id: DomainId,
        volume: VolumeId,
        size: Bytes,
    ) -> Result<()> {
        const OP: &str = "sim.resize_disk";
        let host = self.host;
        self.run(OP, Some(id), call, move |state| {
            let domain = started(state, OP, host, id)?;
            let Some(disk) = domain.disks.iter().find(|d| d.volume == volume) else {
                return Err(not_attached(OP, id, volume));
            };
            if let Some(pool) = disk.pool.clone().and_then(|p| state.pools.get_mut(&p)) {
                pool.grow(volume, size);
            }
            Ok(())
        })
        .await
    }
}

#[async_trait]
impl DiskPivot for SimHypervisor {
    async fn pivot(
        &self,
        call: Call,
        id: DomainId,
        volume: VolumeId,
        snapshot: SnapshotId,
        path: PathBuf,
    ) -> Result<()> {
        const OP: &str = "sim.pivot";
        let host = self.host;
        self.run(OP, Some(id), call, move |state| {
            let domain = started(state, OP, host, id)?;
            let Some(disk) = domain.disks.iter_mut().find(|d| d.volume == volume) else {
                return Err(not_attached(OP, id, volume));
            };
            if disk.pivoted == Some(snapshot) {
                return Ok(());
            }
            if pool_of(&path, volume) != disk.pool {
                let message = "the new layer is not one of this disk";
                return Err(Error::new(ErrorKind::Invalid, OP, message).with("domain", id));
            }
            disk.pivoted = Some(snapshot);
            if let Some(pool) = disk.pool.clone().and_then(|p| state.pools.get_mut(&p)) {
                pool.pivoted(volume, snapshot);
            }
            Ok(())
        })
        .await
    }
}

fn not_attached(op: &'static str, id: DomainId, volume: VolumeId) -> Error {
    Error::new(ErrorKind::NotFound, op, "the disk is not attached")
        .with("domain", id)
        .with("volume", volume)
}
