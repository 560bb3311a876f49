//! Every operation ends: none is running once everything has settled.

use novacron_core::Cluster;

pub(crate) async fn check(cluster: &Cluster) -> Result<(), String> {
    match crate::site::running_operations(cluster).await?.first() {
        Some(operation) => Err(format!("an operation has not ended: {operation}")),
        None => Ok(()),
    }
}
