//! Which records there are: their keys, their one writer, and the envelope around their values.
//!
//! | key | writer | value |
//! |---|---|---|
//! | `cluster/self` `cluster/members` | builder | [`ClusterRecord`]; counts the processes built over these records |
//! | `cluster/level` | builder (the first one); API (raises it) | [`LevelRecord`]: the cluster's feature level |
//! | `member/<member>` | the process itself; leader (that it is lost, forgets) | a process of the cluster |
//! | `owner/node/<node>` `owner/pool/<pool>` | whoever takes it; leader (that its host is fenced) | which process looks after it |
//! | `node/<node>` `pool/<pool>` | builder; API (whether a node takes new VMs) | what should be |
//! | `vm/…` `volume/…` `image/…` `snapshot/…` `network/…` `port/…` `action/…` | API | what should be |
//! | `name/<project>/<kind>/<name>` | API | the object's id: uniqueness is the Store's |
//! | `claim/vm/<vm>` `claim/volume/<volume>` `assignment/<node>/<vm>` | leader | who may run, who may write, with what |
//! | `run/<node>/<vm>` | the node's owner, once the leader has created it | what is |
//! | `port-status/<port>` `node-status/<node>` `action-status/<action>` | the node's owner | what is |
//! | `volume-status/…` `image-status/…` `snapshot-status/…` `pool-status/<pool>` | the pool's owner | what is |
//! | `operation/…` | API (opens, cancels), leader (ends, forgets) | what became of a request |
//! | `grave/<kind>/<id>` | whoever removes the object; leader (forgets) | what was deleted, for the sweep |
//! | `event/…` `audit/…` | whoever commits the change; leader (forgets) | what happened |
//! | `reason/<object>/<member>` | the process that looks after it; leader (removes what a lost one said) | why it does not get on |
//! | `idempotency/<principal>/<key>` | API; leader (forgets) | the answer that the first call got |
//!
//! Beside the writer of its contents, a record has one who **removes** it, with its name, once everything that it named
//! is gone: the leader a VM with its ports, runs and actions, the pool's owner a volume, an image or a snapshot, the
//! node's owner a port that no VM names. Two marks are set by controllers: that a volume made with its VM is to be
//! deleted (by the leader), and a snapshot with its volume (by the pool's owner). A volume's claim that the leader marked
//! as orphaned is removed by the pool's owner, who lets go of the volume first. An operator's word
//! (`VmHandle::confirm_stopped`) writes into a run what its owner cannot. All of it is conditional on the record as it
//! was read, so that of two who write at once one reads again.
//!
//! A value is `{"v":1,"body":…}`: the lowest feature level that can read it ([`crate::cluster::FeatureLevel`]). A record of
//! a newer one is refused by name, never guessed at.

use bytes::Bytes;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::error::{Error, ErrorKind, Result};
use crate::model::{
    Action, ActionId, ActionStatus, Assignment, Audit, Claim, ClusterId, Epoch, Event, EventId,
    Image, ImageId, Member, MemberId, Name, Network, NetworkId, Node, NodeId, NodeStatus,
    Operation, OperationId, Ownership, Pool, PoolId, PoolStatus, Port, PortId, PortStatus, Run,
    Snapshot, SnapshotId, StorageStatus, Vm, VmId, Volume, VolumeClaim, VolumeId,
};
use crate::store::{Key, Op, Precondition, Record, Revision};
use crate::time::Timestamp;

/// The feature level of this build: the newest envelope that it reads. It writes each value at the lowest level that can
/// read it, and none above the cluster's.
pub(crate) const LEVEL: u32 = if cfg!(feature = "next-level") { 2 } else { 1 };

/// The lowest level that can read a value: what was added since the first level says so here.
fn level_for<T: std::any::Any>(value: &T) -> u32 {
    #[cfg(feature = "next-level")]
    if let Some(vm) = (value as &dyn std::any::Any).downcast_ref::<Vm>()
        && vm.meta.annotations.contains_key("next-level")
    {
        return 2;
    }
    let _ = value;
    1
}

/// The lowest level that can read all that is written.
pub(crate) fn level_of(ops: &[Op]) -> u32 {
    let of = |op: &Op| match op {
        Op::Put(_, value) => serde_json::from_slice::<EnvelopeVersion>(value).map_or(1, |e| e.v),
        Op::Delete(_) => 1,
    };
    ops.iter().map(of).max().unwrap_or(1)
}

#[derive(Serialize)]
struct EnvelopeOut<'a, T> {
    v: u32,
    body: &'a T,
}

#[derive(Deserialize)]
struct EnvelopeVersion {
    v: u32,
}

#[derive(Deserialize)]
struct EnvelopeIn<T> {
    body: T,
}

/// A value as it is stored.
pub(crate) fn encode<T: Serialize + std::any::Any>(value: &T) -> Result<Bytes> {
    serde_json::to_vec(&EnvelopeOut {
        v: level_for(value),
        body: value,
    })
    .map(Bytes::from)
    .map_err(|e| {
        Error::new(
            ErrorKind::Internal,
            "record.encode",
            "a value cannot be written as JSON",
        )
        .caused_by(e)
    })
}

/// A stored value.
pub(crate) fn decode<T: DeserializeOwned>(key: &Key, value: &[u8]) -> Result<T> {
    let corrupt = |message: String, e: serde_json::Error| {
        Error::new(ErrorKind::Corrupt, "record.decode", message)
            .with("key", key)
            .caused_by(e)
    };
    let version: EnvelopeVersion = serde_json::from_slice(value)
        .map_err(|e| corrupt("the record is not an envelope {v, body}".to_owned(), e))?;
    if version.v > LEVEL {
        let message = format!(
            "the record has version {}, this build reads up to {LEVEL}: upgrade it",
            version.v
        );
        return Err(Error::new(ErrorKind::Corrupt, "record.decode", message).with("key", key));
    }
    let envelope: EnvelopeIn<T> = serde_json::from_slice(value)
        .map_err(|e| corrupt("the record's body is damaged".to_owned(), e))?;
    Ok(envelope.body)
}

/// What is kept of the cluster itself.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct ClusterRecord {
    pub(crate) id: ClusterId,
    pub(crate) name: Name,
}

/// The feature level of what is written, and who raised it to that.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct LevelRecord {
    pub(crate) level: u32,
    pub(crate) by: String,
    pub(crate) at: Timestamp,
}

pub(crate) fn level_key() -> Key {
    Key::of_parts(&[&"cluster", &"level"])
}

/// Of the number of processes that ever joined.
pub(crate) fn members_key() -> Key {
    Key::of_parts(&[&"cluster", &"members"])
}

/// Why an object does not get on: for people.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Reason {
    pub(crate) text: String,
}

/// Something that was deleted: an artefact of it that turns up late is swept; one without a grave is only reported.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Grave {
    pub(crate) at: Timestamp,
    /// A VM's last epoch.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) epoch: Option<Epoch>,
}

/// Ties a kind of record to its key.
pub(crate) trait Stored: Serialize + DeserializeOwned + std::any::Any {
    type Id;
    fn key(id: &Self::Id) -> Key;
    fn parse(key: &Key) -> Option<Self::Id>;
}

macro_rules! stored {
    ($($value:ty, $kind:literal, $id:ty;)*) => {$(
        impl Stored for $value {
            type Id = $id;
            fn key(id: &$id) -> Key {
                Key::of_parts(&[&$kind, id])
            }
            fn parse(key: &Key) -> Option<$id> {
                key.as_str().strip_prefix(concat!($kind, "/"))?.parse().ok()
            }
        }
    )*};
}

/// The status of a volume, an image, a snapshot: one type per kind of record, so that a key cannot name another's.
macro_rules! status_of {
    ($($(#[$doc:meta])* $name:ident, $kind:literal, $id:ty;)*) => {$(
        $(#[$doc])*
        #[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
        #[serde(transparent)]
        pub(crate) struct $name(pub(crate) StorageStatus);
        stored! { $name, $kind, $id; }
    )*};
}

stored! {
    Vm, "vm", VmId;
    Claim, "claim/vm", VmId;
    Volume, "volume", VolumeId;
    VolumeClaim, "claim/volume", VolumeId;
    Image, "image", ImageId;
    Snapshot, "snapshot", SnapshotId;
    Network, "network", NetworkId;
    Port, "port", PortId;
    PortStatus, "port-status", PortId;
    Node, "node", NodeId;
    NodeStatus, "node-status", NodeId;
    Pool, "pool", PoolId;
    PoolStatus, "pool-status", PoolId;
    Operation, "operation", OperationId;
    Action, "action", ActionId;
    ActionStatus, "action-status", ActionId;
    Event, "event", EventId;
    Audit, "audit", EventId;
    Member, "member", MemberId;
    NodeOwner, "owner/node", NodeId;
    PoolOwner, "owner/pool", PoolId;
}

status_of! {
    /// A volume's.
    VolumeStatus, "volume-status", VolumeId;
    /// An image's.
    ImageStatus, "image-status", ImageId;
    /// A snapshot's.
    SnapshotStatus, "snapshot-status", SnapshotId;
}

macro_rules! owner_of {
    ($($(#[$doc:meta])* $name:ident;)*) => {$(
        $(#[$doc])*
        #[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
        #[serde(transparent)]
        pub(crate) struct $name(pub(crate) Ownership);

        impl From<Ownership> for $name {
            fn from(owner: Ownership) -> Self {
                Self(owner)
            }
        }

        impl std::ops::Deref for $name {
            type Target = Ownership;
            fn deref(&self) -> &Ownership {
                &self.0
            }
        }
    )*};
}

owner_of! {
    /// A node's.
    NodeOwner;
    /// A pool's.
    PoolOwner;
}

macro_rules! per_node {
    ($($value:ty, $kind:literal;)*) => {$(
        impl Stored for $value {
            type Id = (NodeId, VmId);
            fn key((node, vm): &(NodeId, VmId)) -> Key {
                Key::of_parts(&[&$kind, node, vm])
            }
            fn parse(key: &Key) -> Option<(NodeId, VmId)> {
                let (node, vm) = key.as_str().strip_prefix(concat!($kind, "/"))?.split_once('/')?;
                Some((node.parse().ok()?, vm.parse().ok()?))
            }
        }
    )*};
}

per_node! {
    Assignment, "assignment";
    Run, "run";
}

impl Stored for Grave {
    type Id = String;
    fn key(id: &String) -> Key {
        Key::of_parts(&[&"grave", id])
    }
    fn parse(key: &Key) -> Option<String> {
        key.as_str().strip_prefix("grave/").map(str::to_owned)
    }
}

impl Stored for Reason {
    type Id = (String, MemberId);
    fn key((object, member): &(String, MemberId)) -> Key {
        Key::of_parts(&[&"reason", object, member])
    }
    fn parse(key: &Key) -> Option<(String, MemberId)> {
        let (object, member) = key.as_str().strip_prefix("reason/")?.rsplit_once('/')?;
        Some((object.to_owned(), member.parse().ok()?))
    }
}

/// The key of a name.
pub(crate) fn name_key(project: &Name, kind: &str, name: &Name) -> Key {
    Key::of_parts(&[&"name", project, &kind, name])
}

/// Writes a record.
pub(crate) fn put<T: Stored>(id: &T::Id, value: &T) -> Result<Op> {
    Ok(Op::Put(T::key(id), encode(value)?))
}

/// Removes a record.
pub(crate) fn delete<T: Stored>(id: &T::Id) -> Op {
    Op::Delete(T::key(id))
}

/// The record is as it was read, or still absent.
pub(crate) fn unchanged<T: Stored>(id: &T::Id, version: Option<Revision>) -> Precondition {
    match version {
        Some(version) => Precondition::At(T::key(id), version),
        None => Precondition::Absent(T::key(id)),
    }
}

/// Decodes a record of a known kind.
pub(crate) fn from_record<T: Stored>(record: &Record) -> Result<T> {
    decode(&record.key, &record.value)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_newer_envelope_is_refused_by_name() {
        let key = Key::new("pool/a").unwrap();
        let error = decode::<Pool>(&key, br#"{"v":7,"body":{"new":true}}"#).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Corrupt);
        assert!(error.message().contains("version 7"), "{error}");
    }

    #[test]
    fn a_damaged_record_names_its_key() {
        let key = Key::new("pool/a").unwrap();
        for bytes in [
            &b"{"[..],
            b"null",
            br#"{"v":1}"#,
            br#"{"v":1,"body":{"id":"a/b"}}"#,
            &[0xff; 64],
        ] {
            let error = decode::<Pool>(&key, bytes).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Corrupt);
            assert!(error.to_string().contains("key=pool/a"), "{error}");
        }
    }
}
