//! The domain model: what is stored, and what callers pass in and get back.

mod cpu;
mod decision;
mod disk;
mod hardware;
mod ids;
mod member;
mod meta;
mod network;
mod nic;
mod node;
mod object;
mod operation;
mod os;
mod revision;
mod run;
mod secret;
mod settings;
mod storage;
mod units;
mod vm;

pub use cpu::{Cpu, CpuBaseline, CpuModel, CpuTopology, newest_cpu_model};
pub use decision::Decision;
pub use disk::{Discard, DiskBus, DiskCache, DiskIo, DiskLimits, DiskOptions};
pub use hardware::{
    BootDevice, ClockOffset, Firmware, Hardware, KernelBoot, MemoryBacking, Smbios, Tpm,
    WatchdogAction,
};
pub(crate) use hardware::{is_path, path_rule};
pub use ids::{
    ActionId, CheckpointId, ClusterId, EventId, ExportId, HostId, ImageId, MAX_NAME, MemberId,
    Name, NetworkId, NodeId, OperationId, PlaceId, PoolId, PortId, RegionId, SnapshotId, VmId,
    VolumeId,
};
pub(crate) use ids::{name_problem, uuid_v7};
pub use member::{Endpoint, FenceReceipt, Member, MemberState, Ownership, PeerKey, Role};
pub use meta::{Meta, Versioned};
pub use network::{
    MacAddr, Network, NetworkKind, Port, PortBinding, PortForward, PortState, PortStatus, Protocol,
};
pub use nic::{LinkState, NicLimits, NicModel, NicOptions};
pub use node::{
    Capability, Evacuation, HostInfo, Node, NodeCapabilities, NodeState, NodeStatus, Returning,
    Unexplained,
};
pub use object::ObjectRef;
pub use operation::{
    Action, ActionStatus, Audit, Event, Operation, OperationKind, OperationState, Verb,
};
pub use os::OsProfile;
pub use revision::Revision;
pub use run::{
    AssignedDisk, AssignedPort, Assignment, Claim, Epoch, Exit, HostBoot, Run, StopProof,
    VolumeClaim,
};
pub use secret::SecretRef;
pub use settings::{Effect, FieldChange, VmSettings};
pub use storage::{
    Image, ImageSource, Pool, PoolScope, PoolState, PoolStatus, Snapshot, StorageState,
    StorageStatus, Volume, VolumeFormat, VolumeSource,
};
pub use units::{Bandwidth, Bytes, MiB, Money};
pub use vm::{
    CloudInit, Disk, DiskRole, DiskSource, DiskSpec, Machine, Nic, NicSpec, Power, PowerRequest,
    RestartPolicy, Vm, VmSpec,
};
