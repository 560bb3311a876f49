//! Nothing is left that no record names: after everything is deleted, the world is empty, and the records are those of
//! the cluster itself and those that retention keeps for a while.

use novacron_core::sim::SimWorld;

use crate::crash_store::Disk;

/// The kinds of records that are the cluster's own.
const LASTING: [&str; 7] = [
    "cluster/",
    "member/",
    "node/",
    "node-status/",
    "owner/",
    "pool/",
    "pool-status/",
];
/// The kinds that retention forgets.
const KEPT: [&str; 5] = ["audit/", "event/", "grave/", "idempotency/", "operation/"];

pub(crate) fn in_the_world(world: &SimWorld) -> Result<(), String> {
    let left = world.artefacts();
    if left.domains.is_empty() && left.volumes.is_empty() && left.ports.is_empty() {
        return Ok(());
    }
    Err(format!("left behind: {left:?}"))
}

pub(crate) async fn in_the_records(disk: &Disk) -> Result<(), String> {
    records(disk, &[&LASTING[..], &KEPT].concat()).await
}

/// When everything has been kept for long enough.
pub(crate) async fn forgotten(disk: &Disk) -> Result<(), String> {
    records(disk, &LASTING).await
}

async fn records(disk: &Disk, allowed: &[&str]) -> Result<(), String> {
    let mut keys = disk.keys().await;
    keys.retain(|key| !allowed.iter().any(|kind| key.starts_with(kind)));
    if keys.is_empty() {
        return Ok(());
    }
    Err(format!("records are left: {keys:?}"))
}
