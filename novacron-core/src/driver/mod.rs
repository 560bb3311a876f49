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
mod block_export;
mod changed_blocks;
pub mod cloud;
mod fence;
mod hot_plug;
mod hypervisor;
mod memory_snapshots;
mod migration;
mod network;
mod power;
mod scheduler;
mod secrets;
mod stats;
mod storage;
mod strategy;
mod watchdog;

pub use authorizer::{AllowAll, Authorizer};
pub use block_export::{BlockExport, ExportDisk, ExportRequest, ExportedDisk};
pub use changed_blocks::{ChangedBlocks, Extent};
pub use fence::{Fence, FenceTarget};
pub use hot_plug::HotPlug;
pub use hypervisor::{
    AgentOutput, ByteStream, ConsoleStart, ConsoleStream, Consoles, Diagnostics, DiskAttachment,
    DiskPivot, Domain, DomainId, DomainOwner, DomainSpec, DomainState, GuestAddress, GuestAgent,
    GuestEvent, Hypervisor, HypervisorEvent, NicAttachment, Screens, Seed, StopMode, StopReport,
    TpmState,
};
pub use memory_snapshots::MemorySnapshots;
pub use migration::{
    AbortReport, MigrationEndpoint, MigrationLimits, MigrationOptions, MigrationPhase,
    MigrationProgress, MigrationTicket, StreamSecurity, SwitchMode, TlsIdentity,
};
pub use network::{HypervisorNetworks, NetworkDriver, PortArtefact, PortRequest};
pub use power::{Power, PowerSwitch, ensure_off};
pub use scheduler::{FirstFit, Host, HostChange, PlacementRequest, Placer, Rejected, Scheduler};
pub use secrets::{NoSecrets, SecretSource};
pub use stats::{DiskStats, DomainStats, GuestMemory, NicStats};
pub use storage::{
    Artefact, ArtefactId, AttachRequest, Attachment, AttachmentSource, CreateSource, CreateVolume,
    PoolInfo, StorageBackend, VolumeInfo, VolumeTransfer,
};
pub use watchdog::Watchdog;

pub use strategy::{
    Link, MigrationDisk, MigrationInput, MigrationPlan, MigrationPolicy, MigrationSide,
    MigrationStep, MigrationStrategy, Obstacle, Prediction,
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

#[cfg(test)]
mod tests {
    //! Every trait can be held as `dyn`: it compiles.

    use super::cloud::{
        CloudCatalog, CloudDisks, CloudImages, CloudInstances, CloudNetworks, CloudProvider,
    };
    use super::*;

    type _Held = (
        Box<dyn Hypervisor>,
        Box<dyn HotPlug>,
        Box<dyn Consoles>,
        Box<dyn Screens>,
        Box<dyn Diagnostics>,
        Box<dyn GuestAgent>,
        Box<dyn DiskPivot>,
        Box<dyn MemorySnapshots>,
        Box<dyn MigrationEndpoint>,
        Box<dyn BlockExport>,
        Box<dyn StorageBackend>,
        Box<dyn VolumeTransfer>,
        Box<dyn ChangedBlocks>,
        Box<dyn NetworkDriver>,
        Box<dyn Scheduler>,
        Box<dyn Placer>,
        Box<dyn MigrationStrategy>,
        (
            Box<dyn CloudProvider>,
            Box<dyn CloudInstances>,
            Box<dyn CloudCatalog>,
            Box<dyn CloudDisks>,
            Box<dyn CloudImages>,
            Box<dyn CloudNetworks>,
        ),
        Box<dyn SecretSource>,
        Box<dyn Authorizer>,
        Box<dyn Fence>,
    );

    fn _object_safe(_: &_Held) {}

    #[test]
    fn debug_shows_no_secret() {
        let ticket = MigrationTicket {
            address: "tcp:alpha:4444".to_owned(),
            secret: "hidden".to_owned().into(),
            expires: crate::Timestamp::from_millis(0),
        };
        let tls = StreamSecurity::Certificates(TlsIdentity {
            authorities: String::new(),
            certificate: String::new(),
            key: "hidden".to_owned().into(),
            peer: String::new(),
        });
        let shown = format!("{ticket:?} {tls:?}");
        assert!(
            shown.contains("alpha") && !shown.contains("hidden"),
            "{shown}"
        );
    }
}
