//! Nodes: the hosts, as they were given to the builder. They belong to no project.

use std::ops::ControlFlow;

use super::page::{ListRequest, Page};
use super::request::{Change, check_version};
use super::{Cluster, OperationHandle, RequestOptions};
use crate::control::cache::Cache;
use crate::control::evacuate;
use crate::control::part::{self, Part};
use crate::control::plan::{Draft, ObjectKey};
use crate::error::{Error, ErrorKind, Result};
use crate::model::{
    CpuBaseline, Evacuation, MemberId, Node, NodeId, NodeState, NodeStatus, ObjectRef,
    OperationKind, Returning, Versioned,
};
use crate::records::NodeOwner;
use crate::time::Deadline;

/// The cluster's nodes.
#[derive(Clone, Debug)]
pub struct Nodes(pub(super) Cluster);

/// What is known of the host whose VMs are to leave it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Evidence {
    /// What NovaCron sees of it.
    #[default]
    Observed,
    /// An operator's word that the host is off, or has booted anew since it was last seen.
    ///
    /// **A wrong word can let a VM run twice.**
    HostDown,
}

/// A node as it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeView {
    /// What should be.
    pub node: Versioned<Node>,
    /// What is; none before it was first looked at.
    pub status: Option<NodeStatus>,
    /// The living process that looks after it.
    pub owner: Option<MemberId>,
    /// Why it does not get on: a fence that failed, a watchdog that cannot be armed.
    pub reason: Option<String>,
}

fn view(node: &Versioned<Node>, cache: &Cache) -> NodeView {
    let status = cache.node_status.get(&node.id);
    NodeView {
        node: node.clone(),
        status: status.map(|s| s.value.clone()),
        owner: part::owner(&Part::Node(node.id.clone()), cache),
        reason: cache
            .why(&ObjectKey::Node(node.id.clone()))
            .map(str::to_owned),
    }
}

/// What these nodes' CPUs have in common.
pub(super) fn cpu_baseline(cache: &Cache, of: impl Fn(&NodeId) -> bool) -> CpuBaseline {
    let nodes = cache.nodes.keys().filter(|node| of(node));
    let told = nodes.filter_map(|node| cache.node_status.get(node)?.host.as_ref());
    CpuBaseline::of(told.map(|host| {
        let can = &host.capabilities;
        (&*can.cpu_models, &*can.cpu_features)
    }))
}

pub(super) fn not_found(verb: &'static str, id: &NodeId) -> Error {
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

    /// What the CPUs of all nodes have in common, as each node told it last; nodes that never answered are not counted.
    /// A guest with [`CpuModel::Baseline`](crate::model::CpuModel::Baseline) gets its model.
    ///
    /// # Errors
    /// Those of the store.
    pub async fn cpu_baseline(&self) -> Result<CpuBaseline> {
        let inner = &self.0.inner;
        inner.authorize(self.0.options(), "node.list")?;
        inner.read(|cache| cpu_baseline(cache, |_| true)).await
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

    /// Says whether new VMs may be placed on a node (uncordon, cordon). What runs there stays; an evacuation is over. True
    /// when it returns; the operation has ended.
    ///
    /// # Errors
    /// [`ErrorKind::NotFound`].
    pub async fn set_schedulable(&self, id: &NodeId, schedulable: bool) -> Result<OperationHandle> {
        let request = format!("{id}:{schedulable}");
        self.change("node.set-schedulable", id, &request, |node, draft, _| {
            node.schedulable = schedulable;
            node.evacuation = None;
            Ok((draft, OperationKind::Record))
        })
        .await
    }

    /// Makes a node's VMs leave it, and keeps it empty until it is schedulable again: drain, and maintenance mode. The
    /// operation ends when nothing runs there; when its time is over it fails, with what is left and why, and the node is
    /// to be empty all the same. Cancelled, the node is as it was before, and what has left stays where it is.
    ///
    /// The moves are cold: each guest is asked to power off, and boots elsewhere; none is stopped before there is room for
    /// it. A guest that is paused, one that may be on no other node, and one that finds no place stays, and the
    /// operation says so. As many leave at a time as [`Limits::moves_per_node`](super::Limits::moves_per_node) says.
    ///
    /// The VMs of a host that does not answer leave it once it is certain that they do not run there: by a fence, by the
    /// host's next boot, or by an operator's word for the whole host, [`Evidence::HostDown`].
    ///
    /// # Errors
    /// [`ErrorKind::NotFound`]; [`ErrorKind::FailedPrecondition`] for [`Evidence::HostDown`] of a host that answers, or
    /// whose process is not known to be lost yet.
    pub async fn evacuate(
        &self,
        id: &NodeId,
        evidence: Evidence,
        returning: Returning,
    ) -> Result<OperationHandle> {
        const VERB: &str = "node.evacuate";
        let request = format!("{id}:{evidence:?}:{returning:?}");
        let operation = self
            .change(VERB, id, &request, |node, draft, cache| {
                let status = cache.node_status.get(id);
                let answers = status.is_none_or(|s| s.state == NodeState::Available);
                if evidence == Evidence::HostDown && answers {
                    let message = format!(
                        "node {id} answers, or did a moment ago: its VMs are not taken for stopped"
                    );
                    return Err(Error::new(ErrorKind::FailedPrecondition, VERB, message));
                }
                let kind = OperationKind::Evacuate {
                    generation: node.generation,
                    schedulable: node.schedulable,
                };
                node.schedulable = false;
                node.evacuation = Some(Evacuation { returning });
                Ok((draft, kind))
            })
            .await?;
        if evidence == Evidence::HostDown && !self.0.options().dry_run {
            self.confirm_all(id).await?;
        }
        Ok(operation)
    }

    /// An operator's word for every VM on the node that nobody can tell about.
    async fn confirm_all(&self, id: &NodeId) -> Result<()> {
        let there = |cache: &Cache| -> Vec<_> {
            let runs = cache.runs_on(id).filter(|(_, run)| run.phase.may_run());
            let vm = |vm| cache.vms.get(&vm).map(|v| (vm, v.meta.project.clone()));
            runs.filter_map(|(id, _)| vm(id)).collect()
        };
        for (vm, project) in self.0.inner.read(there).await? {
            let options = RequestOptions {
                project,
                expected_version: None,
                idempotency_key: None,
                ..self.0.options().clone()
            };
            match self.0.with(options).vms().by_id(vm).confirm_stopped().await {
                Ok(_) => {}
                // It is gone, has stopped, or was fenced meanwhile.
                Err(e)
                    if matches!(
                        e.kind(),
                        ErrorKind::NotFound | ErrorKind::FailedPrecondition | ErrorKind::Conflict
                    ) =>
                {
                    tracing::info!(%vm, error = %e, "nothing to confirm");
                }
                Err(e) => return Err(e),
            }
        }
        Ok(())
    }

    /// Forgets a node that is not coming back.
    ///
    /// # Errors
    /// [`ErrorKind::NotFound`]; [`ErrorKind::FailedPrecondition`] while a living process looks after it, or while a VM has
    /// its place there.
    pub async fn remove(&self, id: &NodeId) -> Result<OperationHandle> {
        const VERB: &str = "node.remove";
        let refused = |why: String| Error::new(ErrorKind::FailedPrecondition, VERB, why);
        self.admit(VERB, id, id.as_str(), |_, draft, cache| {
            if let Some(owner) = part::owner(&Part::Node(id.clone()), cache) {
                let why = format!("process {owner} looks after it: shut that down first");
                return Err(refused(why));
            }
            if let Some(left) = evacuate::remaining(id, cache) {
                return Err(refused(format!("{left}: evacuate it first")));
            }
            let status = cache.node_status.get(id).map(|s| s.version);
            let owner = cache.node_owners.get(id).map(|o| o.version);
            let draft = draft
                .unchanged::<NodeStatus>(id, status)
                .unchanged::<NodeOwner>(id, owner)
                .delete::<Node>(id)
                .delete::<NodeStatus>(id)
                .delete::<NodeOwner>(id);
            Ok((draft, OperationKind::Record))
        })
        .await
    }

    /// A change of a node's record, together with what else is in the draft.
    pub(super) async fn change(
        &self,
        verb: &'static str,
        id: &NodeId,
        request: &str,
        change: impl FnOnce(&mut Node, Draft, &Cache) -> Result<(Draft, OperationKind)>,
    ) -> Result<OperationHandle> {
        self.admit(verb, id, request, |node, draft, cache| {
            let mut next = node.value.clone();
            next.generation += 1;
            let (draft, kind) = change(&mut next, draft, cache)?;
            Ok((draft.put(id, &next)?, kind))
        })
        .await
    }

    /// Lets something in that is drafted from a node as it is.
    async fn admit(
        &self,
        verb: &'static str,
        id: &NodeId,
        request: &str,
        draft: impl FnOnce(&Versioned<Node>, Draft, &Cache) -> Result<(Draft, OperationKind)>,
    ) -> Result<OperationHandle> {
        let (inner, options) = (&self.0.inner, self.0.options());
        let change = async {
            inner
                .read(|cache| {
                    let node = cache.nodes.get(id).ok_or_else(|| not_found(verb, id))?;
                    check_version(options, verb, node.version)?;
                    let unchanged = Draft::new().unchanged::<Node>(id, Some(node.version));
                    let (draft, kind) = draft(node, unchanged, cache)?;
                    Ok(Change {
                        object: ObjectRef::Node(id.clone()),
                        kind,
                        draft,
                    })
                })
                .await?
        };
        Ok(inner.admit(options, verb, request, change).await?.1)
    }
}
