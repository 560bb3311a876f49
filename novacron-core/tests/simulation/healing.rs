//! The end of a story: nothing goes wrong any more, and everything must come right.

use std::time::Duration;

use novacron_core::model::{ObjectRef, Power};
use novacron_core::{Cluster, MiB, Phase};

use crate::invariants::{
    converges, made_once, no_overcommit, nothing_lost, one_writer, operations_end, runs_once,
};
use crate::site::{Site, every, node, pass};
use crate::workload::Ledger;

/// What got no answer is sent again, the loop gets time, and the rules are checked; then everything is deleted, and nothing
/// may be left.
pub(crate) async fn heal(
    ledger: &mut Ledger,
    site: &Site,
    cluster: &Cluster,
    memory: MiB,
) -> Result<(), String> {
    ledger.resume(cluster).await;
    nothing_lost::check(cluster, ledger).await?;
    made_once::check(&site.disk, ledger)?;
    settle(ledger, site, cluster).await?;
    nothing_lost::check(cluster, ledger).await?;
    no_overcommit::check(cluster, memory).await?;
    site.delete_everything(cluster).await?;
    // The longest deadline of an operation.
    pass(Duration::from_secs(660)).await;
    operations_end::check(cluster).await?;
    runs_once::check(&site.world)?;
    one_writer::check(&site.world)
}

/// Gives the loop time until desired equals observed. A user starts again what failed or powered itself off
/// meanwhile, and gives up what cannot be: a VM whose volume failed, or for which its node has no room.
async fn settle(ledger: &mut Ledger, site: &Site, cluster: &Cluster) -> Result<(), String> {
    for i in 0..site.world.hosts().len() {
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
