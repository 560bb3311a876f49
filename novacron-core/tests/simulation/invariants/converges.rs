//! After healing, desired equals observed: what runs, and what of its devices is changed while it runs.

use novacron_core::model::{Machine, Power, StorageState};
use novacron_core::sim::SimWorld;
use novacron_core::{Cluster, Phase};

use crate::site::every;

pub(crate) async fn check(cluster: &Cluster, world: &SimWorld) -> Result<(), String> {
    for view in every!(cluster.vms()) {
        let wanted = match view.vm.power.state {
            Power::On => Phase::Running,
            Power::Paused => Phase::Paused,
            Power::Off => Phase::Stopped,
        };
        if view.phase != wanted {
            return Err(format!(
                "VM {} is {} ({}), not {wanted}; run {:?}",
                view.vm.id, view.phase, view.reason, view.run
            ));
        }
        let running = world.running(view.vm.id);
        if running.len() != usize::from(wanted == Phase::Running) {
            return Err(format!(
                "VM {} is {wanted} by the records, and runs {} times",
                view.vm.id,
                running.len()
            ));
        }
        let machine = &view.vm.machine;
        if !running.is_empty() && !are_available(cluster, machine).await {
            continue;
        }
        for (host, id) in running {
            for disk in &machine.disks {
                let limits = world.disk_limits(host, id, disk.volume);
                if limits != Some(disk.options.limits) {
                    return Err(format!("{id}: {disk:?} has the limits {limits:?}"));
                }
            }
            for nic in &machine.nics {
                let state = world.nic_state(host, id, nic.port);
                if state != Some((nic.options.link, nic.options.limits)) {
                    return Err(format!("{id}: {nic:?} is {state:?}"));
                }
            }
        }
    }
    Ok(())
}

/// Whether its volumes are there: what its machine is changed to waits for one that could not be made, and says so.
async fn are_available(cluster: &Cluster, machine: &Machine) -> bool {
    for disk in &machine.disks {
        let view = cluster.volumes().by_id(disk.volume).get().await;
        let status = view.ok().and_then(|view| view.status);
        if status.is_none_or(|status| status.state != StorageState::Available) {
            return false;
        }
    }
    true
}
