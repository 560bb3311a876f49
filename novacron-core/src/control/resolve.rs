//! A VM's machine with every reference resolved: what its owner is told.

use super::cache::Cache;
use super::vm::Waiting;
use crate::model::{
    AssignedDisk, AssignedPort, Assignment, Epoch, Machine, StorageState, Versioned, Vm, VmId,
};
use crate::records::VolumeStatus;

/// The machine as the VM's present run has it.
pub(crate) fn started_with(vm: VmId, cache: &Cache) -> Option<&Machine> {
    let claim = cache.claims.get(&vm).filter(|claim| claim.is_held())?;
    let at = (claim.place.node()?.clone(), vm);
    let assignment = cache.assignments.get(&at)?;
    (assignment.epoch == claim.epoch).then_some(&assignment.value.machine)
}

/// The machine with every reference resolved, or what is not ready.
pub(crate) fn resolve(vm: &Vm, epoch: Epoch, cache: &Cache) -> Result<Assignment, Waiting> {
    let mut disks = Vec::with_capacity(vm.machine.disks.len());
    for disk in &vm.machine.disks {
        let ready = cache
            .volume_status
            .get(&disk.volume)
            .map(|s: &Versioned<VolumeStatus>| &s.value.0.state);
        match cache.volume_claims.get(&disk.volume) {
            Some(writer) if writer.vm != vm.id => {
                return Err(Waiting::For(format!(
                    "VM {} has not let go of the volume of disk {}",
                    writer.vm, disk.name
                )));
            }
            Some(writer) if writer.orphaned => {
                return Err(Waiting::For(format!(
                    "the volume of disk {} is being taken back from a start that is over",
                    disk.name
                )));
            }
            Some(_) => {}
            // Nobody may begin to write now. What has the volume already is known to the snapshot.
            None => {
                if let Some(what) = cache.under_way(disk.volume) {
                    return Err(Waiting::For(format!(
                        "{what} of the volume of disk {} is under way",
                        disk.name
                    )));
                }
            }
        }
        match (cache.volumes.get(&disk.volume), ready) {
            (Some(volume), Some(StorageState::Available)) if volume.meta.deleted_at.is_none() => {
                disks.push(AssignedDisk {
                    name: disk.name.clone(),
                    volume: disk.volume,
                    pool: volume.pool.clone(),
                    format: volume.format,
                    live_generation: 0,
                });
            }
            (Some(_), Some(StorageState::Failed { reason })) => {
                return Err(Waiting::Failed(format!(
                    "volume of disk {} failed: {reason}",
                    disk.name
                )));
            }
            (Some(_), _) => {
                return Err(Waiting::For(format!(
                    "volume of disk {} is being made",
                    disk.name
                )));
            }
            (None, _) => {
                return Err(Waiting::Failed(format!(
                    "disk {} names a volume that is gone",
                    disk.name
                )));
            }
        }
    }
    let mut ports = Vec::with_capacity(vm.machine.nics.len());
    for (i, nic) in vm.machine.nics.iter().enumerate() {
        let port = cache.ports.get(&nic.port);
        let network = port.and_then(|p| cache.networks.get(&p.network));
        let (Some(port), Some(network)) = (port, network) else {
            return Err(Waiting::Failed(format!("the network of NIC {i} is gone")));
        };
        ports.push(AssignedPort {
            port: port.id,
            mac: port.mac,
            network: network.kind.clone(),
            forwards: port.forwards.clone(),
            live_generation: 0,
        });
    }
    Ok(Assignment {
        vm: vm.id,
        name: vm.meta.name.to_string(),
        epoch,
        generation: vm.meta.generation,
        machine: vm.machine.clone(),
        disks,
        ports,
        power: vm.power,
    })
}

/// What of a newly resolved assignment a start that has begun can be told: an epoch keeps what it was granted room for, and
/// what it was started with.
pub(crate) fn within_start(mut resolved: Assignment, has: &Assignment) -> Assignment {
    let generation = resolved.generation;
    // A device that is new, too, for attaching it may take more than one try.
    let live = |before: Option<u64>, is_same: bool| match before {
        Some(before) if is_same => before,
        _ => generation,
    };
    for disk in &mut resolved.disks {
        let before = has.disks.iter().find(|before| before.volume == disk.volume);
        let limits = |machine: &Machine| machine.disk(disk.volume).map(|disk| disk.limits);
        let is_same = limits(&has.machine) == limits(&resolved.machine);
        disk.live_generation = live(before.map(|before| before.live_generation), is_same);
    }
    for port in &mut resolved.ports {
        let before = has.ports.iter().find(|before| before.port == port.port);
        let options = |machine: &Machine| machine.nic(port.port).map(|nic| (nic.link, nic.limits));
        let is_same = options(&has.machine) == options(&resolved.machine);
        port.live_generation = live(before.map(|before| before.live_generation), is_same);
    }
    resolved.machine = has.machine.with_live(resolved.machine);
    resolved
}
