//! Nothing acknowledged is lost: what the user was told is what the records say.

use novacron_core::model::{Meta, ObjectRef};
use novacron_core::{Cluster, ErrorKind, Result};

use crate::requests::text;
use crate::workload::Ledger;

/// What the records say of an object; none if it is gone, or going.
async fn found(cluster: &Cluster, object: &ObjectRef) -> Result<Option<Meta>> {
    let found = match object {
        ObjectRef::Vm(id) => cluster
            .vms()
            .by_id(*id)
            .get()
            .await
            .map(|v| v.vm.value.meta),
        ObjectRef::Volume(id) => {
            let view = cluster.volumes().by_id(*id).get().await;
            view.map(|v| v.volume.value.meta)
        }
        ObjectRef::Image(id) => {
            let view = cluster.images().by_id(*id).get().await;
            view.map(|v| v.image.value.meta)
        }
        ObjectRef::Snapshot(id) => {
            let view = cluster.snapshots().by_id(*id).get().await;
            view.map(|v| v.snapshot.value.meta)
        }
        ObjectRef::Network(id) => cluster
            .networks()
            .by_id(*id)
            .get()
            .await
            .map(|n| n.value.meta),
        other => panic!("{other} is nothing that users make"),
    };
    match found {
        Ok(meta) => Ok(Some(meta).filter(|m| m.deleted_at.is_none())),
        Err(e) if e.kind() == ErrorKind::NotFound => Ok(None),
        Err(e) => Err(e),
    }
}

pub(crate) async fn check(cluster: &Cluster, ledger: &Ledger) -> Result<(), String> {
    for (object, known) in &ledger.objects {
        let found = found(cluster, object).await.map_err(|e| e.to_string())?;
        let labels = found.as_ref().map(|meta| &meta.labels);
        let wrong = match (labels, &known.label) {
            (Some(labels), Some(label)) => *labels != text(label),
            _ => false,
        };
        if found.is_some() != known.exists || wrong {
            return Err(format!("{object}: acknowledged {known:?}, found {found:?}"));
        }
    }
    for (id, power) in &ledger.power {
        if !ledger.exists(&ObjectRef::Vm(*id)) {
            continue;
        }
        let view = cluster.vms().by_id(*id).get().await;
        let found = view.map_err(|e| e.to_string())?.vm.power;
        if found.state != *power {
            return Err(format!("VM {id}: acknowledged {power:?}, found {found:?}"));
        }
    }
    Ok(())
}
