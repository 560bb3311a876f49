//! A running guest kept whole: its memory and device state in a volume, and a domain that goes on from there.
//!
//! ```text
//!   Running | Paused ── save(sink) ──► Paused ── the caller snapshots the disks ──► resume, or stop
//!   Defined ── start_from(source) ──► Paused, as it was saved ── resume
//! ```
//! The sink is a raw volume like any other: a committed record named it, a backend made and attached it, `delete` removes
//! it. So a crash leaves nothing that no record names. Memory belongs to one state of the disks: since `save` returns
//! with the guest held, the caller snapshots them at the same instant, and restores both or neither.

use async_trait::async_trait;

use super::{Attachment, Call, DomainId};
use crate::error::Result;
use crate::model::Bytes;

/// Saving a guest's memory and device state, and starting from it.
#[async_trait]
pub trait MemorySnapshots: Send + Sync {
    /// The most bytes that a save of this domain can take now: the size of the sink to make. Needs a started domain.
    async fn room(&self, call: Call, id: DomainId) -> Result<Bytes>;

    /// Writes the domain's memory and device state to `sink`.
    ///
    /// *Needs:* a started domain, and a sink of at least [`MemorySnapshots::room`] that nobody else writes. *Holds on
    /// return:* the guest is held, nothing of it ran since the last byte was taken, its writes to disks are complete, and
    /// the sink is durable; the answer is how much of it is used. *A second identical call* writes it again from the
    /// state that the guest has by then. *Left behind on failure:* the domain in the state it had; the sink's bytes mean
    /// nothing. *Errors:* `Unsupported`, naming the device, for a machine whose state cannot be taken; `Exhausted` for a
    /// sink that is too small.
    async fn save(&self, call: Call, id: DomainId, sink: &Attachment) -> Result<Bytes>;

    /// Ends a save that is under way, or whose outcome is not known.
    ///
    /// *Holds on return:* no save is under way, and the domain is in the state that it had before. *A second identical
    /// call* changes nothing.
    async fn cancel_save(&self, call: Call, id: DomainId) -> Result<()>;

    /// Starts a defined domain from what was saved, with its vCPUs held: in place of
    /// [`Hypervisor::start`](super::Hypervisor::start), and under the same rules of run lock and epoch.
    ///
    /// *Needs:* the same machine as when it was saved (CPUs, memory, devices in their order), and its disks in the state
    /// of that instant. *Holds on return:* as for `start`; once resumed, the guest goes on where it was held. `source` is
    /// not needed any more. *A second identical call*, while it is paused or running, changes nothing. *Errors:* `Invalid`
    /// for a source that is damaged or of another machine, with the difference. *Left behind on failure:* only what
    /// `undefine` removes; the source is as it was.
    async fn start_from(&self, call: Call, id: DomainId, source: &Attachment) -> Result<()>;
}
