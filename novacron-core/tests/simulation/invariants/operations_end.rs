//! Every operation ends: none is running once everything has settled.

use novacron_core::Cluster;
use novacron_core::model::OperationState;

pub(crate) async fn check(cluster: &Cluster) -> Result<(), String> {
    let operations = cluster
        .operations(None, usize::MAX)
        .await
        .map_err(|e| e.to_string())?;
    match operations
        .iter()
        .find(|o| o.state == OperationState::Running)
    {
        Some(open) => Err(format!("an operation has not ended: {open:?}")),
        None => Ok(()),
    }
}
