//! Nodes.

use super::Cluster;
use super::request::Change;
use crate::control::plan::Draft;
use crate::error::{Error, ErrorKind, Result};
use crate::model::{Node, NodeId, NodeState, NodeStatus, ObjectRef, OperationKind, Versioned};
use crate::time::Deadline;

/// The cluster's nodes.
#[derive(Clone, Debug)]
pub struct Nodes(pub(super) Cluster);

/// A node as it is.
#[derive(Clone, Debug)]
pub struct NodeView {
    /// What should be.
    pub node: Versioned<Node>,
    /// What is; none before it was first looked at.
    pub status: Option<NodeStatus>,
}

impl Nodes {
    /// Every node, by name.
    ///
    /// # Errors
    /// Those of the store.
    pub async fn list(&self) -> Result<Vec<NodeView>> {
        self.0.inner.authorize(self.0.options(), "node.list")?;
        let view = |n: &Versioned<Node>, status: Option<&Versioned<NodeStatus>>| NodeView {
            node: n.clone(),
            status: status.map(|s| s.value.clone()),
        };
        self.0
            .inner
            .read(|cache| {
                cache
                    .nodes
                    .values()
                    .map(|n| view(n, cache.node_status.get(&n.id)))
                    .collect()
            })
            .await
    }

    /// Waits until every node has answered.
    ///
    /// # Errors
    /// [`ErrorKind::DeadlineExceeded`].
    pub async fn wait_available(&self, deadline: Deadline) -> Result<()> {
        self.0
            .inner
            .wait(deadline, |cache| {
                let up = |n: &NodeId| {
                    cache
                        .node_status
                        .get(n)
                        .is_some_and(|s| s.state == NodeState::Available)
                };
                cache.nodes.keys().all(up).then_some(Ok(()))
            })
            .await
    }

    /// Says whether new VMs may be placed on a node (cordon, uncordon).
    ///
    /// # Errors
    /// [`ErrorKind::NotFound`].
    pub async fn set_schedulable(&self, id: &NodeId, schedulable: bool) -> Result<()> {
        let (inner, options) = (&self.0.inner, self.0.options());
        inner.authorize(options, "node.cordon")?;
        let node = inner.read(|cache| cache.nodes.get(id).cloned()).await?;
        let node = node.ok_or_else(|| {
            Error::new(
                ErrorKind::NotFound,
                "node.cordon",
                format!("there is no node {id}"),
            )
        })?;
        let next = Node {
            schedulable,
            ..node.value
        };
        let draft = Draft::new()
            .unchanged::<Node>(id, Some(node.version))
            .put(id, &next)?;
        let change = Change {
            verb: "node.cordon",
            object: ObjectRef::Node(id.clone()),
            kind: OperationKind::Update { generation: 0 },
            draft,
            request: format!("{id}:{schedulable}"),
        };
        inner.admit(options, change).await.map(drop)
    }
}
