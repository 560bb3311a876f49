//! Carries out commands: one task each, owned by the runtime, bounded by the command's deadline.
//!
//! A task that passes its deadline by more than [`GRACE`] is dropped, so that no later step of it can follow, and its outcome is unknown;
//! what a driver had already been asked for may still happen. After every command on a domain the domain is looked at,
//! and the result goes back with what was seen.

use std::collections::BTreeMap;
use std::sync::{Arc, RwLock};
use std::time::Duration;

use tokio::time::Instant;

use super::cache::Cache;
use super::panics::caught;
use super::plan::{Command, ObjectKey};
use super::session::{self, Holder};
use super::start::Right;
use super::{retention, start, watchdog};
use crate::driver::{
    Artefact, AttachRequest, Call, Domain, DomainId, Fence, FenceTarget, Hypervisor,
    HypervisorNetworks, NetworkDriver, PoolInfo, PortArtefact, SecretSource, StorageBackend,
    Watchdog,
};
use crate::error::{Error, ErrorKind, Result};
use crate::model::{
    Bytes, FenceReceipt, HostInfo, MemberId, NodeId, ObjectRef, PoolId, PortBinding, SnapshotId,
    StopProof, Verb,
};
use crate::records::{NodeOwner, Stored};
use crate::store::{Key, LeaseAnswer, Revision, Store};
use crate::time::{Clock, Deadline, IdSource, Timestamp};

/// What commands are carried out with.
#[derive(Debug)]
pub(crate) struct Drivers {
    pub(crate) store: Arc<dyn Store>,
    pub(crate) clock: Arc<dyn Clock>,
    pub(crate) ids: Arc<dyn IdSource>,
    pub(crate) secrets: Arc<dyn SecretSource>,
    pub(crate) nodes: BTreeMap<NodeId, Arc<dyn Hypervisor>>,
    /// Those nodes' networks; a node that is not named has [`HypervisorNetworks`].
    pub(crate) networks: BTreeMap<NodeId, Arc<dyn NetworkDriver>>,
    pub(crate) pools: BTreeMap<PoolId, Arc<dyn StorageBackend>>,
    /// How nodes are fenced, also those that this process does not drive.
    pub(crate) fences: BTreeMap<NodeId, Arc<dyn Fence>>,
    /// The nodes whose hosts end themselves when this process is lost.
    pub(crate) watchdogs: BTreeMap<NodeId, Arc<dyn Watchdog>>,
    pub(crate) cache: Arc<RwLock<Cache>>,
    /// As whom this process asks for leases.
    pub(crate) holder: Holder,
}

impl Drivers {
    pub(crate) fn node(&self, node: &NodeId) -> Result<&Arc<dyn Hypervisor>> {
        self.nodes.get(node).ok_or_else(|| {
            Error::new(
                ErrorKind::Unavailable,
                "cluster.node",
                "this process does not own the node",
            )
            .with("node", node)
        })
    }

    pub(crate) fn network(&self, node: &NodeId) -> &dyn NetworkDriver {
        match self.networks.get(node) {
            Some(driver) => &**driver,
            None => &HypervisorNetworks,
        }
    }

    pub(crate) fn pool(&self, pool: &PoolId) -> Result<&Arc<dyn StorageBackend>> {
        self.pools.get(pool).ok_or_else(|| {
            Error::new(
                ErrorKind::Unavailable,
                "cluster.pool",
                "this process does not reach the pool",
            )
            .with("pool", pool)
        })
    }
}

impl Drivers {
    /// The prepared snapshot that is in the way of another one, if it was deleted: it was prepared late, behind its
    /// deletion's back.
    fn stray(&self, error: &Error) -> Option<SnapshotId> {
        let mut context = error.context();
        let (_, text) = context.find(|(name, _)| *name == "snapshot")?;
        let stray: SnapshotId = text.parse().ok()?;
        let cache = self
            .cache
            .read()
            .unwrap_or_else(std::sync::PoisonError::into_inner);
        let is_over = cache
            .graves
            .contains_key(&ObjectRef::Snapshot(stray).to_string());
        (error.kind() == ErrorKind::FailedPrecondition && is_over).then_some(stray)
    }
}

/// What a command came to.
#[derive(Debug)]
pub(crate) struct Completion {
    pub(crate) key: ObjectKey,
    pub(crate) command: Command,
    pub(crate) result: Result<Report>,
    /// The domain that the command was about, as it was seen afterwards; none if that was not possible.
    pub(crate) seen: Option<Option<Domain>>,
}

/// What a command that succeeded tells.
#[derive(Debug)]
pub(crate) enum Report {
    Done,
    Sized(Bytes),
    Retired(StopProof),
    /// The host, its domains, and what its network holds, if that answers.
    Observed(HostInfo, Vec<Domain>, Option<Vec<PortArtefact>>),
    Bound(PortBinding),
    Fenced(FenceReceipt),
    Armed(Duration),
    /// Another process's lease; none if it has run out.
    Lease(Option<HeldLease>),
    Inventory(PoolInfo, Vec<Artefact>),
    /// Where the next round of forgetting goes on.
    Forgotten(Option<Key>),
}

#[derive(Clone, Copy, Debug)]
pub(crate) struct HeldLease {
    pub(crate) remaining: Duration,
    /// As of [`SeenLease`](super::world::SeenLease).
    pub(crate) clock_off_secs: Option<i64>,
}

/// The domain that a command is about.
pub(crate) fn domain_of(command: &Command) -> Option<(&NodeId, DomainId)> {
    match command {
        Command::Inspect { node, id }
        | Command::Start { node, id, .. }
        | Command::Resume { node, id, .. }
        | Command::Pause { node, id }
        | Command::Stop { node, id, .. }
        | Command::Retire { node, id, .. }
        | Command::Adapt { node, id, .. }
        | Command::Sweep { node, id } => Some((node, *id)),
        _ => None,
    }
}

/// How long after its deadline a driver may still answer: it takes back what it began, and says what it knows.
const GRACE: Duration = Duration::from_secs(6);

pub(crate) async fn execute(drivers: Arc<Drivers>, key: ObjectKey, command: Command) -> Completion {
    let deadline = Deadline::after(command.timeout());
    let call = Call { deadline };
    let end = deadline.instant() + GRACE;
    let work = caught("command", carry_out(&drivers, call, &command));
    let result = match tokio::time::timeout_at(end, work).await {
        Ok(result) => result,
        Err(_) => Err(Error::new(
            ErrorKind::OutcomeUnknown,
            "command",
            "the deadline passed without an answer",
        )),
    };
    let seen = match domain_of(&command) {
        None => None,
        Some((node, id)) => {
            let call = Call::within(Duration::from_secs(10));
            let look = async { drivers.node(node)?.inspect(call, id).await };
            tokio::time::timeout_at(call.deadline.instant(), caught("domain.inspect", look))
                .await
                .ok()
                .and_then(Result::ok)
        }
    };
    Completion {
        key,
        command,
        result,
        seen,
    }
}

async fn carry_out(drivers: &Drivers, call: Call, command: &Command) -> Result<Report> {
    match command {
        Command::Observe { node } => {
            let hypervisor = drivers.node(node)?;
            let host = hypervisor.probe(call).await?;
            let domains = hypervisor.list(call).await?;
            // A network that does not answer says nothing about the guests.
            let ports = drivers.network(node).list(call).await.ok();
            Ok(Report::Observed(host, domains, ports))
        }
        // The look that follows every command on a domain is the command.
        Command::Inspect { .. } => Ok(Report::Done),
        Command::Start {
            node,
            id,
            owned,
            began,
            assignment,
            nics,
        } => {
            let right = Right::new(drivers, node, *id, *owned);
            start::start(&right, call, began.as_ref(), assignment, nics)
                .await
                .map(|()| Report::Done)
        }
        Command::Resume { node, id, owned } => {
            start::resume(&Right::new(drivers, node, *id, *owned), call)
                .await
                .map(|()| Report::Done)
        }
        Command::Pause { node, id } => drivers
            .node(node)?
            .pause(call, *id)
            .await
            .map(|()| Report::Done),
        Command::Stop { node, id, mode } => drivers
            .node(node)?
            .stop(call, *id, *mode)
            .await
            .map(|_| Report::Done),
        Command::Retire {
            node,
            id,
            kill,
            disks,
        } => start::retire(drivers, call, node, *id, *kill, disks)
            .await
            .map(Report::Retired),
        Command::Adapt {
            node,
            id,
            owned,
            assignment,
            since,
            nics,
            leaving,
        } => {
            let right = Right::new(drivers, node, *id, *owned);
            start::adapt(&right, call, assignment, *since, nics, leaving)
                .await
                .map(|()| Report::Done)
        }
        Command::BindPort { node, request } => drivers
            .network(node)
            .ensure_port(call, request)
            .await
            .map(Report::Bound),
        Command::ReleasePort { node, port, epoch } => drivers
            .network(node)
            .release_port(call, *port, *epoch)
            .await
            .map(|()| Report::Done),
        Command::Sweep { node, id } => start::retire(drivers, call, node, *id, true, &[])
            .await
            .map(|_| Report::Done),
        Command::Create { pool, request } => drivers
            .pool(pool)?
            .create(call, request)
            .await
            .map(|v| Report::Sized(v.size)),
        Command::Grow {
            pool,
            volume,
            size,
            attached,
        } => {
            match attached {
                Some((node, id)) => {
                    let hypervisor = drivers.node(node)?;
                    let plug = hypervisor.hot_plug().ok_or_else(|| {
                        Error::new(
                            ErrorKind::Unsupported,
                            "volume.grow",
                            "this hypervisor cannot grow an attached disk",
                        )
                    })?;
                    plug.resize_disk(call, *id, *volume, *size).await?;
                }
                None => drop(drivers.pool(pool)?.resize(call, *volume, *size).await?),
            }
            Ok(Report::Sized(*size))
        }
        Command::Delete { pool, id } => drivers
            .pool(pool)?
            .delete(call, *id)
            .await
            .map(|()| Report::Done),
        Command::Detach { pool, volume, by } => start::detach(drivers, call, pool, *volume, by)
            .await
            .map(|()| Report::Done),
        Command::TakeSnapshot {
            pool,
            volume,
            snapshot,
            attached,
        } => {
            let backend = drivers.pool(pool)?;
            let writer = attached.as_ref().map(|(node, id)| AttachRequest {
                node: node.clone(),
                vm: id.vm,
                epoch: id.epoch,
            });
            let prepare = || backend.snapshot_prepare(call, *volume, *snapshot, writer.as_ref());
            let layer = match prepare().await {
                Err(error) => match drivers.stray(&error) {
                    Some(stray) => {
                        backend.snapshot_delete(call, *volume, stray).await?;
                        prepare().await?
                    }
                    None => return Err(error),
                },
                Ok(layer) => layer,
            };
            if let Some(((node, id), layer)) = attached.as_ref().zip(layer) {
                let hypervisor = drivers.node(node)?;
                let pivot = hypervisor.disk_pivot().ok_or_else(|| {
                    Error::new(
                        ErrorKind::Unsupported,
                        "snapshot.take",
                        "this hypervisor cannot snapshot an attached disk",
                    )
                })?;
                let crate::driver::AttachmentSource::File(path) = layer.source else {
                    return Err(Error::new(
                        ErrorKind::Unsupported,
                        "snapshot.take",
                        "the layer is not a file",
                    ));
                };
                pivot.pivot(call, *id, *volume, *snapshot, path).await?;
            }
            backend.snapshot_commit(call, *volume, *snapshot).await?;
            Ok(Report::Done)
        }
        Command::DropSnapshot {
            pool,
            volume,
            snapshot,
            ..
        } => drivers
            .pool(pool)?
            .snapshot_delete(call, *volume, *snapshot)
            .await
            .map(|()| Report::Done),
        Command::Inventory { pool } => {
            let backend = drivers.pool(pool)?;
            let (info, list) = tokio::try_join!(backend.probe(call), backend.list(call))?;
            Ok(Report::Inventory(info, list))
        }
        Command::Fence { target, of } => {
            still_marked(drivers, target, *of).await?;
            let fence = drivers.fences.get(&target.node).ok_or_else(|| {
                let message = "this process does not know how to fence the node";
                Error::new(ErrorKind::Unavailable, "node.fence", message)
            })?;
            tracing::warn!(node = %target.node, host = %target.host, "a host is being fenced");
            fence.fence(call, target).await.map(Report::Fenced)
        }
        Command::ArmWatchdog { node } => {
            let dog = drivers.watchdogs.get(node).ok_or_else(|| {
                let message = "the node has no watchdog";
                Error::new(ErrorKind::Unavailable, "node.watchdog", message)
            })?;
            let armed = watchdog::arm(&**dog, call, drivers.holder.ttl).await;
            armed.map(Report::Armed)
        }
        Command::CheckMember { member, .. } => {
            let Holder { name, ttl } = &drivers.holder;
            let lease = session::member_lease(*member);
            let (asked, began) = (Instant::now(), drivers.clock.now());
            let answer = drivers.store.lease_acquire(&lease, name, *ttl).await?;
            Ok(Report::Lease(match answer {
                // The store did not answer for a while: the process could not ask, either.
                LeaseAnswer::Granted(lease) if asked.elapsed() > *ttl / 4 => {
                    drivers.store.lease_release(&lease).await?;
                    Some(HeldLease {
                        remaining: *ttl,
                        clock_off_secs: None,
                    })
                }
                LeaseAnswer::Granted(_) => None,
                LeaseAnswer::HeldBy { remaining, .. } => Some(HeldLease {
                    remaining,
                    clock_off_secs: clock_off(drivers, *member, began, remaining).await?,
                }),
            }))
        }
        Command::Forget(cutoffs) => retention::forget(drivers, call, cutoffs)
            .await
            .map(Report::Forgotten),
        Command::Act { pool, at, verb } => act(drivers, call, pool.as_ref(), at.as_ref(), verb)
            .await
            .map(|()| Report::Done),
    }
}

/// Whether the node is still that of an owner who is to be fenced: this process may have stood still since it decided.
async fn still_marked(drivers: &Drivers, target: &FenceTarget, of: Revision) -> Result<()> {
    let key = NodeOwner::key(&target.node);
    let owner = drivers.store.get(&key).await?;
    if owner.is_some_and(|record| record.version == of) {
        return Ok(());
    }
    let message = "its owner is back: the host is not fenced";
    Err(Error::new(ErrorKind::Conflict, "node.fence", message).with("node", &target.node))
}

/// [`Member::clock_off_secs`](crate::model::Member::clock_off_secs) of a process whose lease was asked for at `began`.
async fn clock_off(
    drivers: &Drivers,
    member: MemberId,
    began: Timestamp,
    remaining: Duration,
) -> Result<Option<i64>> {
    let told = session::told_time(&*drivers.store, member).await?;
    let ttl = drivers.holder.ttl;
    // It renewed its lease so long before `began` at least, and before now at most.
    let renewed = ttl.saturating_sub(remaining);
    let between = (began.minus(renewed), drivers.clock.now().minus(renewed));
    Ok(told.and_then(|told| session::clock_off_secs(told, between, ttl * 2)))
}

async fn act(
    drivers: &Drivers,
    call: Call,
    pool: Option<&PoolId>,
    at: Option<&(NodeId, DomainId)>,
    verb: &Verb,
) -> Result<()> {
    let missing = |what: &'static str| Error::new(ErrorKind::FailedPrecondition, "action", what);
    match verb {
        Verb::Reset => {
            let (node, id) = at.ok_or_else(|| missing("the VM has no place"))?;
            drivers.node(node)?.reset(call, *id).await
        }
        Verb::Restore { volume, snapshot } => {
            let pool = pool.ok_or_else(|| missing("the volume is gone"))?;
            drivers.pool(pool)?.restore(call, *volume, *snapshot).await
        }
    }
}
