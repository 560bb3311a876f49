//! Every operation ends: none is running once everything has settled.

use novacron_core::Cluster;
use novacron_core::cluster::{ListRequest, MAX_PAGE};
use novacron_core::model::OperationState;

pub(crate) async fn check(cluster: &Cluster) -> Result<(), String> {
    let mut request = ListRequest::new().limit(MAX_PAGE);
    loop {
        let page = cluster.operations(&request).await;
        let page = page.map_err(|e| e.to_string())?;
        for operation in page.items {
            if operation.state == OperationState::Running {
                return Err(format!("an operation has not ended: {operation:?}"));
            }
        }
        match page.next {
            Some(token) => request = request.after(token),
            None => return Ok(()),
        }
    }
}
