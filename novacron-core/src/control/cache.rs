//! The informer's cache: every record that the reconcilers read, decoded, as of one revision, with the indexes they
//! need. A record that cannot be decoded is kept out and reported; it hurts no other object.

use std::collections::{BTreeMap, BTreeSet};

use uuid::Uuid;

use super::index::Index;
use super::plan::ObjectKey;
use super::resolve::started_with;
use crate::driver::Rejected;
use crate::error::Error;
use crate::model::{
    Action, ActionId, ActionStatus, Assignment, Claim, Disk, Image, ImageId, Member, MemberId,
    Network, NetworkId, Node, NodeId, NodeStatus, ObjectRef, Operation, OperationId,
    OperationState, Pool, PoolId, PoolStatus, Port, PortId, PortStatus, Run, Snapshot, SnapshotId,
    StorageState, Verb, Versioned, Vm, VmId, Volume, VolumeClaim, VolumeId, VolumeSource,
};
use crate::records::{
    self, Grave, ImageStatus, LevelRecord, NodeOwner, PoolOwner, Reason, SnapshotStatus, Stored,
    VolumeStatus,
};
use crate::store::{Change, Key, Revision};

/// The kinds that are cached; the others (names, events, audit, idempotency) are read from the store when asked for.
pub(crate) const PREFIXES: [&str; 25] = [
    "vm/",
    "claim/",
    "assignment/",
    "run/",
    "volume/",
    "volume-status/",
    "image/",
    "image-status/",
    "snapshot/",
    "snapshot-status/",
    "network/",
    "port/",
    "port-status/",
    "node/",
    "node-status/",
    "pool/",
    "pool-status/",
    "operation/",
    "action/",
    "action-status/",
    "grave/",
    "member/",
    "owner/",
    "reason/",
    "cluster/level",
];

pub(crate) type Table<K, V> = BTreeMap<K, Versioned<V>>;

#[derive(Clone, Debug, Default)]
pub(crate) struct Cache {
    pub(crate) revision: Revision,
    pub(crate) vms: Table<VmId, Vm>,
    pub(crate) claims: Table<VmId, Claim>,
    pub(crate) assignments: Table<(NodeId, VmId), Assignment>,
    pub(crate) runs: Table<(NodeId, VmId), Run>,
    pub(crate) volumes: Table<VolumeId, Volume>,
    pub(crate) volume_status: Table<VolumeId, VolumeStatus>,
    pub(crate) volume_claims: Table<VolumeId, VolumeClaim>,
    pub(crate) images: Table<ImageId, Image>,
    pub(crate) image_status: Table<ImageId, ImageStatus>,
    pub(crate) snapshots: Table<SnapshotId, Snapshot>,
    pub(crate) snapshot_status: Table<SnapshotId, SnapshotStatus>,
    pub(crate) networks: Table<NetworkId, Network>,
    pub(crate) ports: Table<PortId, Port>,
    pub(crate) port_status: Table<PortId, PortStatus>,
    pub(crate) nodes: Table<NodeId, Node>,
    pub(crate) node_status: Table<NodeId, NodeStatus>,
    pub(crate) pools: Table<PoolId, Pool>,
    pub(crate) pool_status: Table<PoolId, PoolStatus>,
    pub(crate) operations: Table<OperationId, Operation>,
    pub(crate) actions: Table<ActionId, Action>,
    pub(crate) action_status: Table<ActionId, ActionStatus>,
    pub(crate) graves: Table<String, Grave>,
    pub(crate) members: Table<MemberId, Member>,
    pub(crate) node_owners: Table<NodeId, NodeOwner>,
    pub(crate) pool_owners: Table<PoolId, PoolOwner>,
    pub(crate) reasons: Table<(String, MemberId), Reason>,
    /// What is in the store and cannot be read, and why.
    pub(crate) damaged: BTreeMap<Key, String>,
    /// What the scheduler last said to a VM that waits for a place. No record: it is asked again by every process.
    pub(crate) no_place: BTreeMap<VmId, Rejected>,
    /// Why the last command of an object failed. No record: it is tried again by every process.
    pub(crate) trouble: BTreeMap<ObjectKey, String>,
    pub(crate) index: Index,
    /// The cluster's feature level.
    pub(crate) level: u32,
    /// Operations that have not ended, by what they change.
    open_operations: BTreeSet<(ObjectRef, OperationId)>,
    actions_of: BTreeSet<(VmId, ActionId)>,
    users_of_volume: BTreeSet<(VolumeId, VmId)>,
    claimed_by: BTreeSet<(VmId, VolumeId)>,
    clones_of_image: BTreeSet<(ImageId, VolumeId)>,
    copies_of_snapshot: BTreeSet<(SnapshotId, VolumeId)>,
    restores_of: BTreeSet<(VolumeId, ActionId)>,
    snapshots_of: BTreeSet<(VolumeId, SnapshotId)>,
    ports_of: BTreeSet<(VmId, PortId)>,
    /// What a node's owner bound there, or is about to.
    ports_on: BTreeSet<(NodeId, PortId)>,
}

/// Sets or removes a record; returns the value before.
fn set<T: Stored>(table: &mut Table<T::Id, T>, id: &T::Id, new: Option<Versioned<T>>) -> Option<T>
where
    T::Id: Ord + Clone,
{
    let old = match new {
        Some(value) => table.insert(id.clone(), value),
        None => table.remove(id),
    };
    old.map(|o| o.value)
}

impl Cache {
    /// Takes in one change and names the objects that must be looked at.
    ///
    /// # Errors
    /// When the record cannot be decoded: the cache then has no such record.
    pub(crate) fn apply(
        &mut self,
        change: &Change,
        revision: Revision,
        wake: &mut Vec<ObjectKey>,
    ) -> Result<(), Error> {
        let key = &change.key;
        let result = self.apply_known(key, change, revision, wake);
        self.damaged.remove(key);
        if let (Err(error), true) = (&result, change.value.is_some()) {
            self.damaged.insert(key.clone(), error.report());
            // What is damaged is treated as absent, so that nothing acts on an old value of it.
            let gone = Change {
                key: key.clone(),
                value: None,
            };
            let _ = self.apply_known(key, &gone, revision, wake);
        }
        result
    }

    fn apply_known(
        &mut self,
        key: &Key,
        change: &Change,
        revision: Revision,
        wake: &mut Vec<ObjectKey>,
    ) -> Result<(), Error> {
        fn read<T: Stored>(
            key: &Key,
            change: &Change,
            version: Revision,
        ) -> Result<Option<Versioned<T>>, Error> {
            change
                .value
                .as_ref()
                .map(|v| {
                    Ok(Versioned {
                        version,
                        value: records::decode(key, v)?,
                    })
                })
                .transpose()
        }
        macro_rules! take {
            ($table:ident, $kind:ty) => {{
                let Some(id) = <$kind>::parse(key) else {
                    return Err(bad_key(key));
                };
                let new = read::<$kind>(key, change, revision)?;
                let old = set(&mut self.$table, &id, new);
                (id, old)
            }};
        }
        match key.kind() {
            "vm" => {
                let (id, old) = take!(vms, Vm);
                for disk in old.iter().flat_map(|vm| &vm.machine.disks) {
                    self.users_of_volume.remove(&(disk.volume, id));
                    wake.push(ObjectKey::Volume(disk.volume));
                }
                if !self.vms.contains_key(&id) && self.no_place.remove(&id).is_some() {
                    wake.push(ObjectKey::Reasons);
                }
                if let Some(vm) = self.vms.get(&id) {
                    self.users_of_volume
                        .extend(vm.machine.disks.iter().map(|d| (d.volume, id)));
                }
                self.reindex(id, wake);
                self.wake_vm(id, wake);
            }
            "claim" if key.as_str().starts_with("claim/vm/") => {
                let (id, old) = take!(claims, Claim);
                if self.no_place.remove(&id).is_some() {
                    wake.push(ObjectKey::Reasons);
                }
                for place in [
                    old.map(|c| c.place),
                    self.claims.get(&id).map(|c| c.place.clone()),
                ]
                .into_iter()
                .flatten()
                {
                    if let Some(node) = place.node() {
                        wake.push(ObjectKey::Run(node.clone(), id));
                        self.wake_operations(&ObjectRef::Node(node.clone()), wake);
                    }
                }
                self.reindex(id, wake);
                self.wake_vm(id, wake);
            }
            "claim" => {
                let (id, old) = take!(volume_claims, VolumeClaim);
                if let Some(old) = old {
                    self.claimed_by.remove(&(old.vm, id));
                }
                if let Some(new) = self.volume_claims.get(&id) {
                    self.claimed_by.insert((new.vm, id));
                }
                self.wake_volume(id, wake);
            }
            "assignment" => {
                let ((node, vm), _) = take!(assignments, Assignment);
                wake.push(ObjectKey::Run(node, vm));
                wake.push(ObjectKey::Vm(vm));
                wake.extend(self.ports_of(vm).map(ObjectKey::Port));
            }
            "run" => {
                let ((node, vm), _) = take!(runs, Run);
                wake.push(ObjectKey::Run(node, vm));
                self.reindex(vm, wake);
                self.wake_vm(vm, wake);
                for disk in self.vms.get(&vm).iter().flat_map(|vm| &vm.machine.disks) {
                    wake.push(ObjectKey::Volume(disk.volume));
                    wake.extend(self.snapshots_of(disk.volume).map(ObjectKey::Snapshot));
                }
            }
            "volume" => {
                let (id, old) = take!(volumes, Volume);
                match old.map(|v| v.source) {
                    Some(VolumeSource::Image(image)) => {
                        self.clones_of_image.remove(&(image, id));
                        wake.push(ObjectKey::Image(image));
                    }
                    Some(VolumeSource::Snapshot(snapshot)) => {
                        self.copies_of_snapshot.remove(&(snapshot, id));
                        wake.push(ObjectKey::Snapshot(snapshot));
                    }
                    Some(VolumeSource::Blank) | None => {}
                }
                match self.volumes.get(&id).map(|v| v.source) {
                    Some(VolumeSource::Image(image)) => {
                        self.clones_of_image.insert((image, id));
                    }
                    Some(VolumeSource::Snapshot(snapshot)) => {
                        self.copies_of_snapshot.insert((snapshot, id));
                    }
                    Some(VolumeSource::Blank) | None => {}
                }
                self.wake_volume(id, wake);
            }
            "volume-status" => {
                let (id, _) = take!(volume_status, VolumeStatus);
                if let Some(VolumeSource::Snapshot(of)) = self.volumes.get(&id).map(|v| v.source) {
                    wake.push(ObjectKey::Snapshot(of));
                }
                self.wake_volume(id, wake);
            }
            "image" => {
                let (id, _) = take!(images, Image);
                self.wake_image(id, wake);
            }
            "image-status" => {
                let (id, _) = take!(image_status, ImageStatus);
                self.wake_image(id, wake);
            }
            "snapshot" => {
                let (id, old) = take!(snapshots, Snapshot);
                if let Some(old) = old {
                    self.snapshots_of.remove(&(old.volume, id));
                    self.wake_volume(old.volume, wake);
                }
                if let Some(new) = self.snapshots.get(&id) {
                    self.snapshots_of.insert((new.volume, id));
                }
                self.wake_snapshot(id, wake);
            }
            "snapshot-status" => {
                let (id, _) = take!(snapshot_status, SnapshotStatus);
                self.wake_snapshot(id, wake);
            }
            "network" => {
                let (id, _) = take!(networks, Network);
                wake.push(ObjectKey::Network(id));
                self.wake_operations(&ObjectRef::Network(id), wake);
            }
            "port" => {
                let (id, old) = take!(ports, Port);
                if let Some(old) = old {
                    self.ports_of.remove(&(old.vm, id));
                    wake.push(ObjectKey::Network(old.network));
                }
                if let Some(vm) = self.ports.get(&id).map(|p| p.vm) {
                    self.ports_of.insert((vm, id));
                    wake.push(ObjectKey::Vm(vm));
                }
                wake.push(ObjectKey::Port(id));
            }
            "port-status" => {
                let (id, old) = take!(port_status, PortStatus);
                if let Some(old) = &old {
                    self.ports_on.remove(&(old.node.clone(), id));
                }
                if let Some(new) = self.port_status.get(&id) {
                    self.ports_on.insert((new.node.clone(), id));
                }
                for status in [old.as_ref(), self.port_status.get(&id).map(|s| &s.value)]
                    .into_iter()
                    .flatten()
                {
                    wake.push(ObjectKey::Run(status.node.clone(), status.vm));
                    wake.push(ObjectKey::Vm(status.vm));
                }
                wake.push(ObjectKey::Port(id));
            }
            "node" => {
                let (id, _) = take!(nodes, Node);
                self.wake_placed(&id, wake);
                wake.push(ObjectKey::Node(id));
            }
            "node-status" => {
                let (id, old) = take!(node_status, NodeStatus);
                let new = self.node_status.get(&id);
                let open = |s: &NodeStatus| (s.state, s.member, s.watchdog_secs);
                if old.as_ref().map(open) != new.map(|s| open(s)) {
                    self.wake_placed(&id, wake);
                }
                wake.push(ObjectKey::Node(id));
            }
            "pool" => wake.push(ObjectKey::Pool(take!(pools, Pool).0)),
            // Nothing is decided by it.
            "pool-status" => drop(take!(pool_status, PoolStatus)),
            "operation" => {
                let (id, old) = take!(operations, Operation);
                if let Some(old) = old {
                    self.open_operations.remove(&(old.target, id));
                }
                if let Some(new) = self.operations.get(&id)
                    && new.state == OperationState::Running
                {
                    self.open_operations.insert((new.target.clone(), id));
                }
                wake.push(ObjectKey::Operation(id));
            }
            "action" => {
                let (id, old) = take!(actions, Action);
                let old_verb = old.as_ref().map(|a| a.verb.clone());
                if let Some(old) = old {
                    self.actions_of.remove(&(old.vm, id));
                }
                self.note_restore(id, old_verb.as_ref(), wake);
                if let Some(new) = self.actions.get(&id) {
                    self.actions_of.insert((new.vm, id));
                    let target = ObjectRef::Vm(new.vm);
                    self.wake_operations(&target, wake);
                }
                wake.push(ObjectKey::Action(id));
            }
            "action-status" => {
                let (id, _) = take!(action_status, ActionStatus);
                if let Some(action) = self.actions.get(&id) {
                    let (vm, verb) = (action.vm, action.verb.clone());
                    self.wake_vm(vm, wake);
                    self.note_restore(id, Some(&verb), wake);
                }
                wake.push(ObjectKey::Action(id));
            }
            "grave" => drop(take!(graves, Grave)),
            "cluster" => {
                let read = |v| records::decode::<LevelRecord>(key, v).map(|r| r.level);
                self.level = change.value.as_deref().map(read).transpose()?.unwrap_or(1);
            }
            "reason" => drop(take!(reasons, Reason)),
            "member" => {
                let (id, old) = take!(members, Member);
                wake.push(ObjectKey::Member(id));
                let is_alive = self.members.get(&id).is_some_and(|m| m.is_alive());
                if old.is_some_and(|old| old.is_alive()) != is_alive {
                    for (node, _) in self.node_owners.iter().filter(|(_, o)| o.member == id) {
                        self.wake_node(node, wake);
                    }
                    for (pool, _) in self.pool_owners.iter().filter(|(_, o)| o.member == id) {
                        self.wake_pool(pool, wake);
                    }
                }
            }
            "owner" if key.as_str().starts_with("owner/node/") => {
                let (id, _) = take!(node_owners, NodeOwner);
                let there: Vec<VmId> = self.runs_on(&id).map(|(vm, _)| vm).collect();
                for vm in there {
                    self.reindex(vm, wake);
                }
                self.wake_node(&id, wake);
            }
            "owner" => {
                let (id, _) = take!(pool_owners, PoolOwner);
                self.wake_pool(&id, wake);
            }
            _ => {}
        }
        Ok(())
    }

    /// Whether the action is a restore that has begun and not ended.
    fn note_restore(&mut self, id: ActionId, verb: Option<&Verb>, wake: &mut Vec<ObjectKey>) {
        let Some(&Verb::Restore { volume, .. }) = verb else {
            return;
        };
        let begun = self.action_status.get(&id).is_some_and(|s| !s.is_ended());
        if begun && self.actions.contains_key(&id) {
            self.restores_of.insert((volume, id));
        } else {
            self.restores_of.remove(&(volume, id));
        }
        self.wake_volume(volume, wake);
    }

    /// Whether the object is in the records.
    pub(crate) fn has(&self, key: &ObjectKey) -> bool {
        match key {
            ObjectKey::Node(_) | ObjectKey::Pool(_) | ObjectKey::Retention | ObjectKey::Reasons => {
                true
            }
            ObjectKey::Network(id) => self.networks.contains_key(id),
            ObjectKey::Image(id) => self.images.contains_key(id),
            ObjectKey::Volume(id) => self.volumes.contains_key(id),
            ObjectKey::Snapshot(id) => self.snapshots.contains_key(id),
            ObjectKey::Port(id) => self.ports.contains_key(id) || self.port_status.contains_key(id),
            ObjectKey::Vm(id) => self.vms.contains_key(id),
            ObjectKey::Member(id) => self.members.contains_key(id),
            ObjectKey::Run(node, vm) => self.runs.contains_key(&(node.clone(), *vm)),
            ObjectKey::Action(id) => self.actions.contains_key(id),
            ObjectKey::Operation(id) => self.operations.contains_key(id),
        }
    }

    /// The operations on `target` that have not ended, oldest first.
    pub(crate) fn open_operations_of(
        &self,
        target: &ObjectRef,
    ) -> impl Iterator<Item = OperationId> + '_ {
        let lowest = OperationId::from_uuid(Uuid::nil());
        seconds(&self.open_operations, target.clone(), lowest)
    }

    /// The actions on a VM, oldest first.
    pub(crate) fn actions_of(&self, vm: VmId) -> impl Iterator<Item = ActionId> + '_ {
        seconds(&self.actions_of, vm, ActionId::from_uuid(Uuid::nil()))
    }

    /// The VM's ports.
    pub(crate) fn ports_of(&self, vm: VmId) -> impl Iterator<Item = PortId> + '_ {
        seconds(&self.ports_of, vm, PortId::from_uuid(Uuid::nil()))
    }

    /// What the node's owner bound there, or is about to.
    pub(super) fn ports_on(&self, node: &NodeId) -> impl Iterator<Item = PortId> + '_ {
        seconds(&self.ports_on, node.clone(), PortId::from_uuid(Uuid::nil()))
    }

    /// The VMs whose spec names the volume.
    pub(crate) fn users_of(&self, volume: VolumeId) -> impl Iterator<Item = VmId> + '_ {
        seconds(&self.users_of_volume, volume, VmId::from_uuid(Uuid::nil()))
    }

    /// The volumes that an epoch of the VM has claimed.
    pub(crate) fn volumes_claimed_by(&self, vm: VmId) -> impl Iterator<Item = VolumeId> + '_ {
        seconds(&self.claimed_by, vm, VolumeId::from_uuid(Uuid::nil()))
    }

    /// The volumes that are clones of the image.
    pub(crate) fn clones_of(&self, image: ImageId) -> impl Iterator<Item = VolumeId> + '_ {
        seconds(
            &self.clones_of_image,
            image,
            VolumeId::from_uuid(Uuid::nil()),
        )
    }

    /// The volumes that begin as a copy of the snapshot.
    pub(crate) fn copies_of(&self, snapshot: SnapshotId) -> impl Iterator<Item = VolumeId> + '_ {
        seconds(
            &self.copies_of_snapshot,
            snapshot,
            VolumeId::from_uuid(Uuid::nil()),
        )
    }

    /// What a volume is to the VM that holds it, or that it was made with: as that was started, else as it is to be.
    pub(crate) fn disk_of(&self, volume: &Volume) -> Option<&Disk> {
        let holder = self.volume_claims.get(&volume.id).map(|claim| claim.vm);
        let vm = holder.or(volume.made_with)?;
        let wanted = self.vms.get(&vm).map(|vm| &vm.machine);
        let machines = [started_with(vm, self), wanted].into_iter().flatten();
        let mut disks = machines.flat_map(|machine| &machine.disks);
        disks.find(|disk| disk.volume == volume.id)
    }

    /// The snapshots of the volume, oldest first.
    pub(crate) fn snapshots_of(&self, volume: VolumeId) -> impl Iterator<Item = SnapshotId> + '_ {
        seconds(
            &self.snapshots_of,
            volume,
            SnapshotId::from_uuid(Uuid::nil()),
        )
    }

    /// The restores of the volume that have begun and not ended.
    pub(crate) fn restores_of(&self, volume: VolumeId) -> impl Iterator<Item = ActionId> + '_ {
        seconds(&self.restores_of, volume, ActionId::from_uuid(Uuid::nil()))
    }

    /// What is being done with the volume's data that no writer may come into.
    pub(crate) fn under_way(&self, volume: VolumeId) -> Option<&'static str> {
        let creating = |s: &SnapshotId| {
            let state = self.snapshot_status.get(s).map(|s| &s.0.state);
            matches!(state, Some(StorageState::Creating))
        };
        if self.snapshots_of(volume).any(|s| creating(&s)) {
            return Some("a snapshot");
        }
        self.restores_of(volume).next().map(|_| "a restore")
    }

    /// The VM's present run: that of its claim's place.
    pub(crate) fn run_of(&self, vm: VmId) -> Option<&Versioned<Run>> {
        let node = self.claims.get(&vm)?.place.node()?;
        self.runs.get(&(node.clone(), vm))
    }

    /// The assignments to a node.
    pub(crate) fn assignments_to(
        &self,
        node: &NodeId,
    ) -> impl Iterator<Item = (VmId, &Versioned<Assignment>)> + '_ {
        let node = node.clone();
        let lowest = VmId::from_uuid(Uuid::nil());
        self.assignments
            .range((node.clone(), lowest)..)
            .take_while(move |((n, _), _)| *n == node)
            .map(|((_, vm), a)| (*vm, a))
    }

    /// The runs on a node.
    pub(crate) fn runs_on(
        &self,
        node: &NodeId,
    ) -> impl Iterator<Item = (VmId, &Versioned<Run>)> + '_ {
        let node = node.clone();
        let lowest = VmId::from_uuid(Uuid::nil());
        self.runs
            .range((node.clone(), lowest)..)
            .take_while(move |((n, _), _)| *n == node)
            .map(|((_, vm), r)| (*vm, r))
    }
}

/// The second halves of an index's entries that begin with `first`.
fn seconds<A: Ord + Clone, B: Ord + Copy>(
    index: &BTreeSet<(A, B)>,
    first: A,
    lowest: B,
) -> impl Iterator<Item = B> + '_ {
    index
        .range((first.clone(), lowest)..)
        .take_while(move |(a, _)| *a == first)
        .map(|(_, b)| *b)
}

fn bad_key(key: &Key) -> Error {
    Error::new(
        crate::ErrorKind::Corrupt,
        "record.key",
        "no record of this kind has such a key",
    )
    .with("key", key)
}
