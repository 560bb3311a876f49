//! Changing the devices of a guest that runs.

use async_trait::async_trait;

use super::{Call, DiskAttachment, DomainId, NicAttachment};
use crate::error::Result;
use crate::model::{self, DiskLimits, LinkState, NicLimits, PortId, VolumeId};

/// Attach and detach while the guest runs.
#[async_trait]
pub trait HotPlug: Send + Sync {
    /// Gives a disk to a started domain; one on [`DiskBus::Cdrom`](model::DiskBus) is put into a drive of it that is empty.
    /// *A second identical call* changes nothing. *Left behind on failure:* nothing.
    /// *Errors:* `Unavailable` while another domain has the image open: unless the attachment says that its backend keeps a
    /// second writer out, the image's lock does; `Unsupported` for a bus on which a started domain takes no disk;
    /// `FailedPrecondition` when no drive is empty.
    async fn attach_disk(&self, call: Call, id: DomainId, disk: &DiskAttachment) -> Result<()>;

    /// Takes a disk back: returns when the guest has let go and the image is closed. *Errors:* `DeadlineExceeded` with
    /// the disk still attached when the guest does not answer, and, well before the deadline, when it keeps the door of a
    /// medium's drive locked. A disk that is not attached is no error.
    async fn detach_disk(&self, call: Call, id: DomainId, volume: VolumeId) -> Result<()>;

    /// Gives a NIC to a started domain. *A second identical call* changes nothing.
    async fn attach_nic(&self, call: Call, id: DomainId, nic: &NicAttachment) -> Result<()>;

    /// Takes a NIC back, as [`HotPlug::detach_disk`].
    async fn detach_nic(&self, call: Call, id: DomainId, port: PortId) -> Result<()>;

    /// Sets how much the guest may read and write of an attached disk, in place of the limits of before. *A second
    /// identical call* changes nothing. Where the host cannot limit ([`Capability::DiskLimits`](model::Capability)), it is
    /// called without limits only, which changes nothing.
    /// *Errors:* `NotFound` or `FailedPrecondition` when it is not attached.
    async fn set_disk_limits(
        &self,
        call: Call,
        id: DomainId,
        volume: VolumeId,
        limits: &DiskLimits,
    ) -> Result<()>;

    /// Sets whether an attached NIC's cable is plugged in and how much the guest may send and receive, in place of what was
    /// set before. *A second identical call* changes nothing. Where the host cannot limit
    /// ([`Capability::NicLimits`](model::Capability)), it is called without limits only.
    /// *Errors:* as [`HotPlug::set_disk_limits`]; `Unsupported` when the host's kernel cannot limit so.
    async fn set_nic(
        &self,
        call: Call,
        id: DomainId,
        port: PortId,
        link: LinkState,
        limits: &NicLimits,
    ) -> Result<()>;

    /// Grows an attached disk and tells the guest. A disk that already has this size is no error.
    async fn resize_disk(
        &self,
        call: Call,
        id: DomainId,
        volume: VolumeId,
        size: model::Bytes,
    ) -> Result<()>;
}
