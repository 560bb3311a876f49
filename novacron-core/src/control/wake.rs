//! What must be looked at when something changed: each object with what waits for it.

use super::cache::Cache;
use super::plan::ObjectKey;
use crate::model::{ImageId, NodeId, ObjectRef, PoolId, SnapshotId, VmId, VolumeId};

impl Cache {
    /// Everything that the node's owner looks after.
    pub(super) fn wake_node(&self, id: &NodeId, wake: &mut Vec<ObjectKey>) {
        wake.push(ObjectKey::Node(id.clone()));
        wake.extend(self.ports_on(id).map(ObjectKey::Port));
        for (vm, _) in self.runs_on(id) {
            wake.push(ObjectKey::Run(id.clone(), vm));
            wake.extend(self.ports_of(vm).map(ObjectKey::Port));
            wake.extend(self.actions_of(vm).map(ObjectKey::Action));
            for volume in self.volumes_claimed_by(vm) {
                wake.push(ObjectKey::Volume(volume));
                wake.extend(self.snapshots_of(volume).map(ObjectKey::Snapshot));
            }
        }
    }

    /// Everything that the pool's owner looks after.
    pub(super) fn wake_pool(&self, id: &PoolId, wake: &mut Vec<ObjectKey>) {
        wake.push(ObjectKey::Pool(id.clone()));
        let images = self.images.iter().filter(|(_, i)| i.pool == *id);
        wake.extend(images.map(|(image, _)| ObjectKey::Image(*image)));
        for (volume, _) in self.volumes.iter().filter(|(_, v)| v.pool == *id) {
            wake.push(ObjectKey::Volume(*volume));
            wake.extend(self.snapshots_of(*volume).map(ObjectKey::Snapshot));
            for vm in self.users_of(*volume) {
                wake.extend(self.actions_of(vm).map(ObjectKey::Action));
            }
        }
    }

    /// Everything that the leader looks after.
    pub(super) fn wake_leader(&self, wake: &mut Vec<ObjectKey>) {
        wake.push(ObjectKey::Retention);
        wake.extend(self.members.keys().map(|id| ObjectKey::Member(*id)));
        wake.extend(self.nodes.keys().map(|id| ObjectKey::Node(id.clone())));
        wake.extend(self.vms.keys().map(|id| ObjectKey::Vm(*id)));
        wake.extend(self.networks.keys().map(|id| ObjectKey::Network(*id)));
        wake.extend(self.operations.keys().map(|id| ObjectKey::Operation(*id)));
        wake.extend(self.actions.keys().map(|id| ObjectKey::Action(*id)));
        wake.extend(self.ports.keys().map(|id| ObjectKey::Port(*id)));
        // For those on nodes that nobody looks after.
        let runs = self.runs.keys();
        wake.extend(runs.map(|(node, vm)| ObjectKey::Run(node.clone(), *vm)));
        let bound = self.port_status.keys();
        wake.extend(bound.map(|id| ObjectKey::Port(*id)));
    }

    pub(super) fn wake_vm(&self, vm: VmId, wake: &mut Vec<ObjectKey>) {
        wake.push(ObjectKey::Vm(vm));
        wake.extend(self.ports_of(vm).map(ObjectKey::Port));
        wake.extend(self.actions_of(vm).map(ObjectKey::Action));
        self.wake_operations(&ObjectRef::Vm(vm), wake);
    }

    pub(super) fn wake_volume(&self, id: VolumeId, wake: &mut Vec<ObjectKey>) {
        wake.push(ObjectKey::Volume(id));
        for vm in self.users_of(id) {
            self.wake_vm(vm, wake);
        }
        wake.extend(self.snapshots_of(id).map(ObjectKey::Snapshot));
        self.wake_operations(&ObjectRef::Volume(id), wake);
    }

    pub(super) fn wake_image(&self, id: ImageId, wake: &mut Vec<ObjectKey>) {
        wake.push(ObjectKey::Image(id));
        wake.extend(self.clones_of(id).map(ObjectKey::Volume));
        self.wake_operations(&ObjectRef::Image(id), wake);
    }

    pub(super) fn wake_snapshot(&self, id: SnapshotId, wake: &mut Vec<ObjectKey>) {
        wake.push(ObjectKey::Snapshot(id));
        wake.extend(self.copies_of(id).map(ObjectKey::Volume));
        // Its users may wait for it to be taken, and so may the next snapshot.
        if let Some(volume) = self.snapshots.get(&id).map(|s| s.volume) {
            self.wake_volume(volume, wake);
        }
        self.wake_operations(&ObjectRef::Snapshot(id), wake);
    }

    pub(super) fn wake_operations(&self, target: &ObjectRef, wake: &mut Vec<ObjectKey>) {
        wake.extend(self.open_operations_of(target).map(ObjectKey::Operation));
    }
}
