//! Following a change to its end.

use std::ops::ControlFlow;

use super::page::{ListRequest, Page};
use super::{Cluster, Inner};
use crate::control::cache::Cache;
use crate::control::operation::standing;
use crate::control::plan::ObjectKey;
use crate::error::{Error, ErrorKind, Result};
use crate::model::{Operation, OperationId, OperationState, Versioned};
use crate::time::{Deadline, Timestamp};

/// A handle on a change. Dropping it cancels nothing.
#[derive(Clone, Debug)]
pub struct OperationHandle {
    pub(super) cluster: Cluster,
    id: OperationId,
}

impl OperationHandle {
    pub(super) fn new(cluster: Cluster, id: OperationId) -> Self {
        Self { cluster, id }
    }

    fn inner(&self) -> &Inner {
        &self.cluster.inner
    }

    /// The record, if the request's project has it.
    fn find<'c>(&self, cache: &'c Cache) -> Option<&'c Versioned<Operation>> {
        let operation = cache.operations.get(&self.id);
        operation.filter(|o| o.project == self.cluster.options().project)
    }

    /// Its id, to be asked for later by [`Cluster::operation`].
    pub fn id(&self) -> OperationId {
        self.id
    }

    /// Its record.
    ///
    /// # Errors
    /// [`ErrorKind::NotFound`] once its retention is over, and for a dry run.
    pub async fn get(&self) -> Result<Operation> {
        self.inner()
            .authorize(self.cluster.options(), "operation.get")?;
        let now = self.inner().clock.now();
        let found = self
            .inner()
            .read(|cache| Some(view(self.find(cache)?, cache, now)))
            .await?;
        found.ok_or_else(|| not_found(self.id))
    }

    /// Waits for its end.
    ///
    /// # Errors
    /// [`ErrorKind::FailedPrecondition`] with the operation's reason when it failed; [`ErrorKind::Cancelled`] when it
    /// was cancelled or superseded; [`ErrorKind::DeadlineExceeded`] with what goes on when the waiting ended first.
    pub async fn wait(&self, deadline: Deadline) -> Result<Operation> {
        // What was admitted is in the cache, or soon will be; what is not there after a read is not there at all.
        self.get().await?;
        let clock = &self.inner().clock;
        let look = |cache: &Cache| match cache.operations.get(&self.id) {
            None => ControlFlow::Break(Err(not_found(self.id))),
            Some(o) if o.state == OperationState::Running => {
                ControlFlow::Continue(standing(o, cache, clock.now()).1)
            }
            Some(o) => ControlFlow::Break(Ok(o.value.clone())),
        };
        let key = ObjectKey::Operation(self.id);
        let operation = self.inner().wait(&key, deadline, look).await?;
        match &operation.state {
            OperationState::Done | OperationState::Running => Ok(operation),
            OperationState::Failed { reason } => {
                Err(
                    Error::new(ErrorKind::FailedPrecondition, "operation", reason.clone())
                        .with("object", &operation.target),
                )
            }
            OperationState::Cancelled | OperationState::Superseded => Err(Error::new(
                ErrorKind::Cancelled,
                "operation",
                operation.progress.clone(),
            )
            .with("object", &operation.target)),
        }
    }
}

/// The record, and while it runs what is going on: that is not written, for it follows from the other records.
fn view(operation: &Operation, cache: &Cache, now: Timestamp) -> Operation {
    let mut view = operation.clone();
    if view.state == OperationState::Running {
        view.progress = standing(operation, cache, now).1;
    }
    view
}

fn not_found(id: OperationId) -> Error {
    Error::new(
        ErrorKind::NotFound,
        "operation",
        "there is no such operation, or not any more",
    )
    .with("operation", id)
}

impl Cluster {
    /// A handle on an operation by its id.
    pub fn operation(&self, id: OperationId) -> OperationHandle {
        OperationHandle::new(self.clone(), id)
    }

    /// One page of the project's operations, ended ones too as long as they are kept
    /// ([`Retention`](super::Retention)), oldest first.
    ///
    /// # Errors
    /// [`ErrorKind::Invalid`] for a limit or a token that cannot be; those of the store.
    pub async fn operations(&self, request: &ListRequest) -> Result<Page<Operation>> {
        const VERB: &str = "operation.list";
        self.inner.authorize(self.options(), VERB)?;
        let (project, now) = (&self.options().project, self.inner.clock.now());
        let walk = request.walk_unlabelled(VERB, project.as_str())?;
        self.inner
            .read(|cache| {
                let ours = |o: &Versioned<Operation>| o.project == *project;
                walk.page(cache, &cache.operations, ours, |o| view(o, cache, now))
            })
            .await?
    }
}
