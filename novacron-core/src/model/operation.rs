//! Operations, actions and events: what a caller can follow.

use serde::{Deserialize, Serialize};

use super::ids::{ActionId, EventId, Name, OperationId, SnapshotId, VmId, VolumeId};
use super::object::ObjectRef;
use super::vm::Power;
use crate::time::Timestamp;

/// A caller's handle on a change: it outlives the caller and the process.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Operation {
    /// Its id.
    pub id: OperationId,
    /// What it changes.
    pub target: ObjectRef,
    /// Whose.
    pub project: Name,
    /// Who asked.
    pub principal: String,
    /// What was asked.
    pub kind: OperationKind,
    /// Where it stands.
    pub state: OperationState,
    /// What is going on, for people.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub progress: String,
    /// When it was asked.
    pub created_at: Timestamp,
    /// When it must have ended; it fails then.
    pub deadline: Timestamp,
    /// When it ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ended_at: Option<Timestamp>,
}

/// What was asked.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum OperationKind {
    /// Make the object, as far as its wanted state.
    Create,
    /// Remove it and everything it named.
    Delete,
    /// Reach the power state of this request.
    Power {
        /// The request's number.
        serial: u64,
        /// The power state that was asked for before: what a cancel goes back to.
        before: Power,
    },
    /// Follow this generation of the spec.
    Update {
        /// The generation.
        generation: u64,
    },
    /// A change of the record alone: true with its commit.
    Record,
    /// Make the node's VMs leave it.
    Evacuate {
        /// The generation of the node that asked for it.
        generation: u64,
        /// Whether it took new VMs before: what a cancel goes back to.
        schedulable: bool,
    },
    /// End this action.
    Action {
        /// The action.
        action: ActionId,
    },
}

/// Where an operation stands.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum OperationState {
    /// Not ended.
    Running,
    /// What was asked is true.
    Done,
    /// It cannot become true.
    Failed {
        /// Why.
        reason: String,
    },
    /// It was cancelled.
    Cancelled,
    /// A later request made it pointless.
    Superseded,
}

/// A verb without a desired state. Marked started before the effect and never repeated after a crash.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Action {
    /// Its id.
    pub id: ActionId,
    /// The VM it is about.
    pub vm: VmId,
    /// What to do.
    pub verb: Verb,
    /// When it was asked.
    pub created_at: Timestamp,
    /// When it must have begun; it is refused then, for its operation has ended.
    pub deadline: Timestamp,
}

/// What an action does.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Verb {
    /// The reset button.
    Reset,
    /// A volume of a stopped VM goes back to a snapshot.
    Restore {
        /// The volume.
        volume: VolumeId,
        /// The snapshot.
        snapshot: SnapshotId,
    },
}

/// The status record of an action, written by whoever carries it out.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ActionStatus {
    /// Its effect may have begun.
    Started {
        /// When.
        at: Timestamp,
    },
    /// Done.
    Done {
        /// When.
        at: Timestamp,
    },
    /// Refused or failed, with no effect.
    Failed {
        /// Why.
        reason: String,
        /// When.
        at: Timestamp,
    },
    /// A crash or a timeout hid the outcome.
    Unknown {
        /// When that was found.
        at: Timestamp,
    },
}

impl ActionStatus {
    /// Whether nothing more will happen.
    pub fn is_ended(&self) -> bool {
        self.ended_at().is_some()
    }

    /// When it ended, if it did.
    pub fn ended_at(&self) -> Option<Timestamp> {
        match self {
            Self::Started { .. } => None,
            Self::Done { at } | Self::Failed { at, .. } | Self::Unknown { at } => Some(*at),
        }
    }
}

/// Something that happened to an object, for people and for the host application.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Event {
    /// Its id; ordered by time.
    pub id: EventId,
    /// When.
    pub at: Timestamp,
    /// To what.
    pub object: ObjectRef,
    /// Whose; none for a node or a pool.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub project: Option<Name>,
    /// A stable word, as `started`.
    pub reason: String,
    /// For people.
    pub message: String,
}

/// Who asked for what: written in the same commit as the change.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Audit {
    /// Its id; ordered by time.
    pub id: EventId,
    /// When.
    pub at: Timestamp,
    /// Who.
    pub principal: String,
    /// In which project.
    pub project: Name,
    /// What, as `vm.create`.
    pub verb: String,
    /// On what.
    pub object: ObjectRef,
}
