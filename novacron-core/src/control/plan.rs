//! What a reconciler returns: a commit, a command, or a time to look again; and the keys it is asked about.

use std::time::Duration;

use super::retention::Cutoffs;
use crate::driver::{
    AttachRequest, CreateVolume, DomainId, FenceTarget, NicAttachment, PortRequest, Rejected,
    StopMode,
};
use crate::error::Result;
use crate::model::{
    ActionId, Assignment, Bytes, Epoch, FenceReceipt, HostBoot, ImageId, MemberId, Meta, Name,
    NetworkId, NodeId, ObjectRef, OperationId, PoolId, PortBinding, PortId, SnapshotId, Verb,
    Versioned, VmId, Volume, VolumeId,
};
use crate::records::{self, Stored};
use crate::store::{Op, Precondition, Revision};
use crate::time::Timestamp;

/// One object of one reconciler.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum ObjectKey {
    Node(NodeId),
    Pool(PoolId),
    Image(ImageId),
    Volume(VolumeId),
    Snapshot(SnapshotId),
    Network(NetworkId),
    Port(PortId),
    Vm(VmId),
    Run(NodeId, VmId),
    Action(ActionId),
    Operation(OperationId),
    Member(MemberId),
    /// What is forgotten, of the whole cluster.
    Retention,
    /// What this process tells the others.
    Reasons,
}

impl std::fmt::Display for ObjectKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Node(id) => write!(f, "node/{id}"),
            Self::Pool(id) => write!(f, "pool/{id}"),
            Self::Image(id) => write!(f, "image/{id}"),
            Self::Volume(id) => write!(f, "volume/{id}"),
            Self::Snapshot(id) => write!(f, "snapshot/{id}"),
            Self::Network(id) => write!(f, "network/{id}"),
            Self::Port(id) => write!(f, "port/{id}"),
            Self::Vm(id) => write!(f, "vm/{id}"),
            Self::Run(node, vm) => write!(f, "run/{node}/{vm}"),
            Self::Action(id) => write!(f, "action/{id}"),
            Self::Operation(id) => write!(f, "operation/{id}"),
            Self::Member(id) => write!(f, "member/{id}"),
            Self::Retention => f.write_str("retention"),
            Self::Reasons => f.write_str("reasons"),
        }
    }
}

impl ObjectKey {
    /// Whether it is what a pool keeps, or a port: made once, by commands whose failures in a row are timed.
    pub(crate) fn is_made(&self) -> bool {
        matches!(
            self,
            Self::Volume(_) | Self::Image(_) | Self::Snapshot(_) | Self::Port(_)
        )
    }
}

/// What a reconciler decided.
#[derive(Debug, Default)]
pub(crate) struct Plan {
    pub(crate) commit: Option<Draft>,
    pub(crate) command: Option<Command>,
    /// Look again at this time, whatever happens.
    pub(crate) wake: Option<Timestamp>,
    /// The VM waits for a place: look again when some host has more room.
    pub(crate) no_place: Option<Rejected>,
}

impl Plan {
    pub(crate) fn nothing() -> Self {
        Self::default()
    }

    pub(crate) fn commit(draft: Draft) -> Self {
        Self {
            commit: Some(draft),
            ..Self::default()
        }
    }

    pub(crate) fn command(command: Command) -> Self {
        Self {
            command: Some(command),
            ..Self::default()
        }
    }

    /// The same, its commit conditional on one thing more.
    pub(crate) fn requiring(mut self, precondition: Precondition) -> Self {
        if let Some(draft) = &mut self.commit {
            draft.requires.push(precondition);
        }
        self
    }

    pub(crate) fn wake_at(at: Timestamp) -> Self {
        Self {
            wake: Some(at),
            ..Self::default()
        }
    }

    pub(crate) fn wake_in(now: Timestamp, after: Duration) -> Self {
        Self::wake_at(now.plus(after))
    }
}

/// A commit to be: the runtime adds the transaction id and the events' ids.
#[derive(Debug, Default)]
pub(crate) struct Draft {
    pub(crate) requires: Vec<Precondition>,
    pub(crate) ops: Vec<Op>,
    pub(crate) events: Vec<(ObjectRef, Option<Name>, &'static str, String)>,
}

impl Draft {
    pub(crate) fn new() -> Self {
        Self::default()
    }

    /// The record is as it was read, or absent if it was.
    pub(crate) fn unchanged<T: Stored>(mut self, id: &T::Id, version: Option<Revision>) -> Self {
        self.requires.push(records::unchanged::<T>(id, version));
        self
    }

    /// As [`Draft::unchanged`]; and writes the record again as it is, so that of two commits that depend on its version
    /// and know nothing of each other the second one fails.
    pub(crate) fn touch<T: Stored>(self, id: &T::Id, current: &Versioned<T>) -> Result<Self> {
        self.unchanged::<T>(id, Some(current.version))
            .put(id, &current.value)
    }

    pub(crate) fn put<T: Stored>(mut self, id: &T::Id, value: &T) -> Result<Self> {
        self.ops.push(records::put(id, value)?);
        Ok(self)
    }

    /// Marks a volume as deleted.
    pub(crate) fn delete_volume(self, volume: &Versioned<Volume>, now: Timestamp) -> Result<Self> {
        let mut marked = volume.value.clone();
        marked.meta.deleted_at = Some(now);
        self.unchanged::<Volume>(&volume.id, Some(volume.version))
            .put(&volume.id, &marked)
    }

    pub(crate) fn delete<T: Stored>(mut self, id: &T::Id) -> Self {
        self.ops.push(records::delete::<T>(id));
        self
    }

    /// Takes a name for a new object; the commit fails if it is taken.
    pub(crate) fn name(
        mut self,
        meta: &Meta,
        kind: &str,
        id: impl std::fmt::Display,
    ) -> Result<Self> {
        let key = records::name_key(&meta.project, kind, &meta.name);
        self.requires.push(Precondition::Absent(key.clone()));
        self.ops
            .push(Op::Put(key, records::encode(&id.to_string())?));
        Ok(self)
    }

    pub(crate) fn op(mut self, op: Op) -> Self {
        self.ops.push(op);
        self
    }

    /// Something happened to an object; `project` says whose it is, if anybody's.
    pub(crate) fn event(
        mut self,
        object: ObjectRef,
        project: Option<&Name>,
        reason: &'static str,
        message: impl Into<String>,
    ) -> Self {
        self.events
            .push((object, project.cloned(), reason, message.into()));
        self
    }
}

/// How long attempts may fail in a row before making something is given up: longer than a short outage of a pool.
pub(crate) const BUDGET: Duration = Duration::from_secs(300);

/// How an object's last command ended, for the look that follows.
#[derive(Clone, Debug)]
pub(crate) enum Outcome {
    /// It did, with this size if it has one.
    Done(Option<Bytes>),
    /// It fenced a host, of which this was the ownership.
    Fenced(FenceReceipt, Revision),
    /// The lease of a process had run out, of which this was the record.
    Lapsed(Revision),
    /// It bound a port.
    Bound(PortBinding),
    /// It removed the object.
    Gone,
    /// It let go of a volume for an epoch that is over.
    Detached(Epoch),
    /// It took back what an attempt had begun that failed for this reason.
    Undone(String),
    /// It did not.
    Failed {
        /// Why.
        reason: String,
        /// Whether another try may help.
        retryable: bool,
    },
}

/// An effect on the world. Every one but [`Command::Act`] is "ensure": a second one changes nothing.
#[derive(Clone, Debug)]
pub(crate) enum Command {
    /// Probe the host and list its domains.
    Observe {
        node: NodeId,
    },
    /// Look at one domain.
    Inspect {
        node: NodeId,
        id: DomainId,
    },
    /// Attach, define, start held, read boot, owner and claim again, resume (unless it should be paused).
    Start {
        node: NodeId,
        id: DomainId,
        /// The version of the node's ownership under which this was decided.
        owned: Revision,
        began: Option<HostBoot>,
        assignment: Box<Assignment>,
        nics: Vec<NicAttachment>,
    },
    /// Read owner and claim again and resume.
    Resume {
        node: NodeId,
        id: DomainId,
        owned: Revision,
    },
    Pause {
        node: NodeId,
        id: DomainId,
    },
    Stop {
        node: NodeId,
        id: DomainId,
        mode: StopMode,
    },
    /// Undefine a domain that ended, detach its volumes: afterwards there is a proof.
    Retire {
        node: NodeId,
        id: DomainId,
        kill: bool,
        disks: Vec<(PoolId, VolumeId)>,
    },
    /// Make a running domain's disks and NICs those of the assignment.
    Adapt {
        node: NodeId,
        id: DomainId,
        owned: Revision,
        assignment: Box<Assignment>,
        /// The generation that the domain follows already.
        since: u64,
        nics: Vec<NicAttachment>,
        /// What the epoch has claimed and the assignment does not name any more.
        leaving: Vec<(PoolId, VolumeId)>,
    },
    /// Make what a port needs on its node.
    BindPort {
        node: NodeId,
        request: Box<PortRequest>,
    },
    ReleasePort {
        node: NodeId,
        port: PortId,
        epoch: Epoch,
    },
    /// Kill and undefine a domain whose epoch is proved to be over.
    Sweep {
        node: NodeId,
        id: DomainId,
    },
    Create {
        pool: PoolId,
        request: Box<CreateVolume>,
    },
    Grow {
        pool: PoolId,
        volume: VolumeId,
        size: Bytes,
        attached: Option<(NodeId, DomainId)>,
    },
    Delete {
        pool: PoolId,
        id: crate::driver::ArtefactId,
    },
    /// Let go of a volume for an epoch that is over, and whose owner cannot.
    Detach {
        pool: PoolId,
        volume: VolumeId,
        by: AttachRequest,
    },
    TakeSnapshot {
        pool: PoolId,
        volume: VolumeId,
        snapshot: SnapshotId,
        attached: Option<(NodeId, DomainId)>,
    },
    DropSnapshot {
        pool: PoolId,
        volume: VolumeId,
        snapshot: SnapshotId,
        /// Why it was given up; none if it is deleted.
        because: Option<String>,
    },
    /// Probe a pool and list its artefacts.
    Inventory {
        pool: PoolId,
    },
    /// Make certain that a host whose owner was lost runs nothing.
    Fence {
        target: FenceTarget,
        /// The ownership under which that was decided.
        of: Revision,
    },
    /// Arm the host's watchdog.
    ArmWatchdog {
        node: NodeId,
    },
    /// Ask whether a process's lease has run out.
    CheckMember {
        member: MemberId,
        /// Its record when that was decided.
        of: Revision,
    },
    /// Forget what was kept long enough.
    Forget(Cutoffs),
    /// Carry out a verb, once.
    Act {
        pool: Option<PoolId>,
        at: Option<(NodeId, DomainId)>,
        verb: Verb,
    },
}

impl Command {
    /// How long it may take before its outcome is called unknown.
    pub(crate) fn timeout(&self) -> Duration {
        Duration::from_secs(match self {
            Self::Inspect { .. }
            | Self::Observe { .. }
            | Self::Inventory { .. }
            | Self::ArmWatchdog { .. }
            | Self::CheckMember { .. } => 15,
            // A guest that does not let go of a device is asked again later; a kill must not wait for it.
            Self::Adapt { .. } => 15,
            Self::Resume { .. }
            | Self::Pause { .. }
            | Self::Stop { .. }
            | Self::Sweep { .. }
            | Self::BindPort { .. }
            | Self::ReleasePort { .. } => 30,
            Self::Start { .. } | Self::Retire { .. } | Self::Act { .. } => 60,
            Self::Grow { .. }
            | Self::TakeSnapshot { .. }
            | Self::DropSnapshot { .. }
            | Self::Delete { .. }
            | Self::Detach { .. }
            | Self::Fence { .. }
            | Self::Forget(_) => 120,
            Self::Create { .. } => 3600,
        })
    }
}
