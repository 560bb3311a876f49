//! After healing, desired equals observed.

use novacron_core::model::Power;
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
        let running = world.running(view.vm.id).len();
        if running != usize::from(wanted == Phase::Running) {
            return Err(format!(
                "VM {} is {wanted} by the records, and runs {running} times",
                view.vm.id
            ));
        }
    }
    Ok(())
}
