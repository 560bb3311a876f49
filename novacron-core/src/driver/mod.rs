//! The traits that a host application can implement.
//!
//! Every method's doc says, in this order: what it needs, what *holds on return*, what *a second identical call* does,
//! and what may be *left behind* on failure or cancellation. Each is held as `Arc<dyn …>`. A driver decides nothing and
//! retries nothing but reads; the controllers own backoff and budget. An accessor (`Option<&dyn …>`) says that a driver
//! has an API; [`NodeCapabilities`](crate::model::NodeCapabilities) says what a host can do now, and only that is
//! scheduled on.
//!
//! Every call takes a [`Call`]. [`DeadlineExceeded`](crate::ErrorKind::DeadlineExceeded) says that the deadline passed
//! and nothing happened: nothing was sent, or what was done is taken back. When the driver does not know that, the error
//! is [`OutcomeUnknown`](crate::ErrorKind::OutcomeUnknown), and the world is looked at before anything is repeated.

mod authorizer;
mod changed_blocks;
mod hypervisor;
mod network;
mod scheduler;
mod secrets;
mod storage;

pub use authorizer::{AllowAll, Authorizer};
pub use changed_blocks::{ChangedBlocks, Extent};
pub use hypervisor::{
    AgentOutput, Console, ConsoleStart, ConsoleStream, Consoles, DiskAttachment, DiskPivot,
    DiskStats, Domain, DomainId, DomainOwner, DomainSpec, DomainState, DomainStats, GuestAddress,
    GuestAgent, GuestEvent, HotPlug, Hypervisor, HypervisorEvent, NicAttachment, NicStats, Seed,
    StopMode, StopReport,
};
pub use network::{HypervisorNetworks, NetworkDriver, PortArtefact, PortRequest};
pub use scheduler::{FirstFit, Host, HostChange, PlacementRequest, Placer, Rejected, Scheduler};
pub use secrets::{NoSecrets, SecretSource};
pub use storage::{
    Artefact, ArtefactId, AttachRequest, Attachment, AttachmentSource, CreateSource, CreateVolume,
    PoolInfo, StorageBackend, VolumeInfo, VolumeTransfer,
};

use crate::time::Deadline;

/// What goes with every call to a driver.
#[derive(Clone, Copy, Debug)]
pub struct Call {
    /// When it must have ended.
    pub deadline: Deadline,
}

impl Call {
    /// A call that may take this long.
    pub fn within(timeout: std::time::Duration) -> Self {
        Self {
            deadline: Deadline::after(timeout),
        }
    }
}
