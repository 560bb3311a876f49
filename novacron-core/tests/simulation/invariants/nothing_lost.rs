//! Nothing acknowledged is lost: what the user was told is what the records say.

use novacron_core::{Cluster, ErrorKind};

use crate::workload::{Ledger, Told};

pub(crate) async fn check(cluster: &Cluster, ledger: &Ledger) -> Result<(), String> {
    for (id, told) in &ledger.vms {
        let Told::Sure(wanted) = told else { continue };
        match (cluster.vms().by_id(*id).get().await, wanted) {
            (Ok(view), Some(power))
                if view.vm.power.state == *power && view.vm.meta.deleted_at.is_none() => {}
            (Ok(view), None) if view.vm.meta.deleted_at.is_some() => {}
            (Err(e), None) if e.kind() == ErrorKind::NotFound => {}
            (found, wanted) => {
                let found = found.map(|v| (v.vm.power, v.vm.meta.deleted_at));
                return Err(format!("VM {id}: acknowledged {wanted:?}, found {found:?}"));
            }
        }
    }
    for (id, told) in &ledger.volumes {
        let Told::Sure(wanted) = told else { continue };
        match (cluster.volumes().by_id(*id).get().await, wanted) {
            (Ok(view), wanted) if view.volume.meta.deleted_at.is_none() == *wanted => {}
            (Err(e), false) if e.kind() == ErrorKind::NotFound => {}
            (found, wanted) => {
                return Err(format!(
                    "volume {id}: acknowledged {wanted}, found {found:?}"
                ));
            }
        }
    }
    Ok(())
}
