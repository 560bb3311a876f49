//! The healing phase of a story.

use std::time::Duration;

use novacron_core::model::{ObjectRef, Power};
use novacron_core::{Cluster, Phase};

use crate::invariants::converges;
use crate::site::{Site, every, node, pass};
use crate::workload::Ledger;

/// Gives the loop time until desired equals observed. A user starts again what failed or powered itself off
/// meanwhile, and gives up what cannot be: a VM whose volume failed, or for which its node has no room.
pub(crate) async fn settle(
    ledger: &mut Ledger,
    site: &Site,
    cluster: &Cluster,
    hosts: usize,
) -> Result<(), String> {
    for i in 0..hosts {
        let open = cluster.nodes().set_schedulable(&node(i), true).await;
        open.map_err(|e| e.to_string())?;
    }
    let mut last = Ok(());
    for _ in 0..60 {
        pass(Duration::from_secs(20)).await;
        for view in every!(cluster.vms()) {
            let vm = cluster.vms().by_id(view.vm.id);
            let wanted = view.vm.power.state;
            let hopeless = ["failed: ", "is gone", "too little memory"];
            if hopeless.iter().any(|why| view.reason.contains(why)) {
                ledger.gone(&ObjectRef::Vm(vm.id()));
                vm.delete().await.map_err(|e| e.to_string())?;
            } else if wanted != Power::Off && matches!(view.phase, Phase::Failed | Phase::Stopped) {
                let again = match wanted {
                    Power::On => vm.start().await,
                    _ => vm.pause().await,
                };
                again.map_err(|e| e.to_string())?;
            }
        }
        last = converges::check(cluster, &site.world).await;
        if last.is_ok() {
            break;
        }
    }
    last.map_err(|e| format!("after healing: {e}"))
}
