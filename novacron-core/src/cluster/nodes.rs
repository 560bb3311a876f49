//! Nodes: the hosts, as they were given to the builder. They belong to no project.

use std::ops::ControlFlow;

use super::page::{ListRequest, Page};
use super::request::{Change, check_version};
use super::{Cluster, OperationHandle};
use crate::control::cache::Cache;
use crate::control::part::{self, Part};
use crate::control::plan::{Draft, ObjectKey};
use crate::error::{Error, ErrorKind, Result};
use crate::model::{
    MemberId, Node, NodeId, NodeState, NodeStatus, ObjectRef, OperationKind, Versioned,
};
use crate::time::Deadline;

/// The cluster's nodes.
#[derive(Clone, Debug)]
pub struct Nodes(pub(super) Cluster);

/// A node as it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeView {
    /// What should be.
    pub node: Versioned<Node>,
    /// What is; none before it was first looked at.
    pub status: Option<NodeStatus>,
    /// The living process that looks after it.
    pub owner: Option<MemberId>,
}

fn view(node: &Versioned<Node>, cache: &Cache) -> NodeView {
    let status = cache.node_status.get(&node.id);
    NodeView {
        node: node.clone(),
        status: status.map(|s| s.value.clone()),
        owner: part::owner(&Part::Node(node.id.clone()), cache),
    }
}

fn not_found(verb: &'static str, id: &NodeId) -> Error {
    Error::new(ErrorKind::NotFound, verb, format!("there is no node {id}"))
}

impl Nodes {
    /// One page of the nodes, by name.
    ///
    /// # Errors
    /// [`ErrorKind::Invalid`] for a limit or a token that cannot be; those of the store.
    pub async fn list(&self, request: &ListRequest) -> Result<Page<NodeView>> {
        const VERB: &str = "node.list";
        let inner = &self.0.inner;
        inner.authorize(self.0.options(), VERB)?;
        let walk = request.walk_unlabelled(VERB, "")?;
        inner
            .read(|cache| walk.page(cache, &cache.nodes, |_| true, |node| view(node, cache)))
            .await?
    }

    /// A node as it is now.
    ///
    /// # Errors
    /// [`ErrorKind::NotFound`].
    pub async fn get(&self, id: &NodeId) -> Result<NodeView> {
        const VERB: &str = "node.get";
        let inner = &self.0.inner;
        inner.authorize(self.0.options(), VERB)?;
        let found = inner
            .read(|cache| cache.nodes.get(id).map(|node| view(node, cache)))
            .await?;
        found.ok_or_else(|| not_found(VERB, id))
    }

    /// Waits until every node has answered.
    ///
    /// # Errors
    /// [`ErrorKind::DeadlineExceeded`].
    pub async fn wait_available(&self, deadline: Deadline) -> Result<()> {
        self.0.inner.authorize(self.0.options(), "node.get")?;
        let inner = &self.0.inner;
        for node in inner.drivers.nodes.keys() {
            let key = ObjectKey::Node(node.clone());
            let up = |cache: &Cache| {
                // What an earlier process saw says nothing about now.
                let status = cache.node_status.get(node);
                match status
                    .filter(|s| part::owner(&Part::Node(node.clone()), cache) == Some(s.member))
                {
                    Some(status) if status.state == NodeState::Available => {
                        ControlFlow::Break(Ok(()))
                    }
                    Some(status) => {
                        ControlFlow::Continue(format!("node {node}: {}", status.message))
                    }
                    None => ControlFlow::Continue(format!("node {node} has not answered yet")),
                }
            };
            inner.wait(&key, deadline, up).await?;
        }
        Ok(())
    }

    /// Says whether new VMs may be placed on a node (cordon, uncordon). What runs there stays. True when it returns; the
    /// operation has ended.
    ///
    /// # Errors
    /// [`ErrorKind::NotFound`].
    pub async fn set_schedulable(&self, id: &NodeId, schedulable: bool) -> Result<OperationHandle> {
        const VERB: &str = "node.set-schedulable";
        let (inner, options) = (&self.0.inner, self.0.options());
        let draft = async {
            inner
                .read(|cache| {
                    let node = cache.nodes.get(id).ok_or_else(|| not_found(VERB, id))?;
                    check_version(options, VERB, node.version)?;
                    let next = Node {
                        schedulable,
                        ..node.value.clone()
                    };
                    let draft = Draft::new().unchanged::<Node>(id, Some(node.version));
                    Ok(Change {
                        object: ObjectRef::Node(id.clone()),
                        kind: OperationKind::Record,
                        draft: draft.put(id, &next)?,
                    })
                })
                .await?
        };
        let request = format!("{id}:{schedulable}");
        Ok(inner.admit(options, VERB, &request, draft).await?.1)
    }
}
