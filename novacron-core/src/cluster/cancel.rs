//! Cancelling: the opposite is asked for, as a change of its own, in the commit that ends the operation.
//!
//! | operation | what is asked for instead | when not |
//! |---|---|---|
//! | create | the object's deletion | something uses it |
//! | power | the power state before | a later power request came |
//! | action | nothing: it is taken back | its effect may have begun |
//! | evacuation | that the node takes VMs, if it did before; what has left stays away | another request came |
//! | delete, change of a spec | | never: what is deleted is gone, and a change is undone by another change |
//!
//! What has happened in the world meanwhile is undone by the same controllers that did it.

use super::object::Object;
use super::{Cluster, OperationHandle};
use crate::control::cache::Cache;
use crate::control::plan::Draft;
use crate::error::{Error, ErrorKind, Result};
use crate::model::{
    Action, ActionStatus, Image, Network, NodeId, ObjectRef, Operation, OperationId, OperationKind,
    OperationState, PowerRequest, Snapshot, Versioned, Vm, Volume,
};
use crate::time::Timestamp;

const VERB: &str = "operation.cancel";

/// Asks for the opposite of what an operation asked for; the kind is that of the operation on the way back.
type Undo<T> = fn(&mut T, Draft, &Cache, &OperationKind) -> Result<(Draft, OperationKind)>;

/// What is not cancelled, and why.
fn refused(why: impl Into<std::borrow::Cow<'static, str>>) -> Error {
    Error::new(ErrorKind::FailedPrecondition, VERB, why)
}

impl OperationHandle {
    /// Cancels the operation, which must not have ended: it ends as [`OperationState::Cancelled`], and the operation that is
    /// returned follows the way back: the deletion of what was to be created, or the power state from before.
    ///
    /// # Errors
    /// [`ErrorKind::NotFound`]; [`ErrorKind::FailedPrecondition`] when it has ended, or is of a kind that cannot be
    /// cancelled (a deletion; a change of a spec, which another change undoes; an action that has begun).
    pub async fn cancel(&self) -> Result<OperationHandle> {
        let (cluster, id) = (&self.cluster, self.id());
        match self.get().await?.target {
            ObjectRef::Vm(vm) => cluster.cancel_on::<Vm>(vm, id, undo_on_vm).await,
            ObjectRef::Volume(volume) => {
                cluster.cancel_on::<Volume>(volume, id, undo_nothing).await
            }
            ObjectRef::Image(image) => cluster.cancel_on::<Image>(image, id, undo_nothing).await,
            ObjectRef::Snapshot(snapshot) => {
                cluster
                    .cancel_on::<Snapshot>(snapshot, id, undo_nothing)
                    .await
            }
            ObjectRef::Network(network) => {
                cluster
                    .cancel_on::<Network>(network, id, undo_nothing)
                    .await
            }
            ObjectRef::Node(node) => cluster.cancel_evacuation(&node, id).await,
            ObjectRef::Pool(_) => Err(refused("it has ended with its commit")),
        }
    }
}

impl Cluster {
    async fn cancel_on<T: Object>(
        &self,
        target: T::Id,
        id: OperationId,
        undo: Undo<T>,
    ) -> Result<OperationHandle> {
        let now = self.inner.clock.now();
        let principal = &self.options().principal;
        self.change::<T>(VERB, target, &id, |object, draft, cache| {
            let operation = running(cache, id)?;
            let (draft, kind) = match &operation.kind {
                OperationKind::Create => match object.in_use(cache) {
                    Some(why) => return Err(refused(why)),
                    None => (object.remove(draft, now), OperationKind::Delete),
                },
                kind => undo(object, draft, cache, kind)?,
            };
            Ok((ended(draft, operation, principal, now)?, kind))
        })
        .await
    }

    async fn cancel_evacuation(&self, node: &NodeId, id: OperationId) -> Result<OperationHandle> {
        let now = self.inner.clock.now();
        let principal = &self.options().principal;
        let request = id.to_string();
        self.nodes()
            .change(VERB, node, &request, |node, draft, cache| {
                let operation = running(cache, id)?;
                match operation.kind {
                    OperationKind::Evacuate {
                        generation,
                        schedulable,
                    } if node.generation == generation + 1 => {
                        node.schedulable = schedulable;
                        node.evacuation = None;
                    }
                    _ => return Err(refused("another request came")),
                }
                let draft = ended(draft, operation, principal, now)?;
                Ok((draft, OperationKind::Record))
            })
            .await
    }
}

/// Ends the operation in the same commit.
fn ended(
    draft: Draft,
    operation: &Versioned<Operation>,
    principal: &str,
    now: Timestamp,
) -> Result<Draft> {
    let cancelled = Operation {
        state: OperationState::Cancelled,
        progress: format!("cancelled by {principal}"),
        ended_at: Some(now),
        ..operation.value.clone()
    };
    let draft = draft.unchanged::<Operation>(&operation.id, Some(operation.version));
    draft.put(&operation.id, &cancelled)
}

fn running(cache: &Cache, id: OperationId) -> Result<&Versioned<Operation>> {
    let operation = cache.operations.get(&id);
    operation
        .filter(|o| o.state == OperationState::Running)
        .ok_or_else(|| refused("it has ended"))
}

fn undo_nothing<T>(
    _: &mut T,
    _: Draft,
    _: &Cache,
    kind: &OperationKind,
) -> Result<(Draft, OperationKind)> {
    Err(refused(match kind {
        OperationKind::Delete => "a deletion cannot be cancelled",
        _ => "a change of a spec is undone by another change",
    }))
}

fn undo_on_vm(
    vm: &mut Vm,
    draft: Draft,
    cache: &Cache,
    kind: &OperationKind,
) -> Result<(Draft, OperationKind)> {
    match kind {
        OperationKind::Power { serial, .. } if vm.power.serial > *serial => {
            Err(refused("a later power request came"))
        }
        OperationKind::Power { before, .. } => {
            let cancelled = vm.power.state;
            vm.power = PowerRequest {
                state: *before,
                serial: vm.power.serial + 1,
                force: false,
            };
            let kind = OperationKind::Power {
                serial: vm.power.serial,
                before: cancelled,
            };
            Ok((draft, kind))
        }
        OperationKind::Action { action } => {
            if cache.action_status.contains_key(action) {
                return Err(refused("its effect may have begun"));
            }
            let draft = draft
                .unchanged::<ActionStatus>(action, None)
                .delete::<Action>(action);
            Ok((draft, OperationKind::Record))
        }
        kind => undo_nothing(vm, draft, cache, kind),
    }
}
