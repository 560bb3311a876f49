//! The owner's part of a port: bound on the node for each start of its VM, released when that start is over.
//!
//! ```text
//!   (none) ── its VM's start names it ──► binding ── the driver made it ──► bound ──┐
//!                                            └────── it could not ──► failed ───────┴── no longer used ──► (none)
//! ```
//! `binding` is committed before the driver is called: name, then make. A start takes its NICs from bound ports only. A
//! port is used until its run has its proof, or until the running domain has let go of it. Where a newer start of the
//! VM wants the port before the old binding was released, the new binding takes its place; what that leaves on another
//! node is swept there ([`super::node`]).

use std::collections::BTreeSet;
use std::time::Duration;

use super::cache::Cache;
use super::plan::{BUDGET, Command, Draft, Outcome, Plan};
use crate::driver::{NicAttachment, PortRequest};
use crate::error::Result;
use crate::lifecycle::RunPhase;
use crate::model::{
    AssignedPort, Assignment, ClusterId, Epoch, NodeId, ObjectRef, Port, PortId, PortState,
    PortStatus, VmId,
};

/// The start that a port should be bound for.
struct User<'a> {
    vm: VmId,
    node: &'a NodeId,
    epoch: Epoch,
    port: &'a AssignedPort,
}

/// The VM's present start, if it names the port and is not over.
fn user(id: PortId, vm: VmId, cache: &Cache) -> Option<User<'_>> {
    let claim = cache.claims.get(&vm).filter(|c| c.is_held())?;
    let node = claim.place.node()?;
    let at = (node.clone(), vm);
    let run = cache.runs.get(&at).filter(|r| r.epoch == claim.epoch)?;
    let assignment = cache
        .assignments
        .get(&at)
        .filter(|a| a.epoch == claim.epoch)?;
    let port = assignment.value.ports.iter().find(|p| p.port == id)?;
    (run.phase != RunPhase::Stopped).then_some(User {
        vm,
        node,
        epoch: claim.epoch,
        port,
    })
}

/// Whether the domain that the port was bound for may still use it.
fn in_use(id: PortId, status: &PortStatus, cache: &Cache) -> bool {
    let at = (status.node.clone(), status.vm);
    let Some(run) = cache.runs.get(&at).filter(|r| r.epoch == status.epoch) else {
        return false;
    };
    let let_go = cache.assignments.get(&at).is_some_and(|a| {
        a.epoch == run.epoch
            && run.generation >= a.generation
            && a.ports.iter().all(|p| p.port != id)
    });
    run.phase.may_run() && !let_go
}

pub(crate) fn reconcile(
    id: PortId,
    cluster: ClusterId,
    cache: &Cache,
    outcome: Option<&Outcome>,
    failing: Duration,
    owned: &BTreeSet<NodeId>,
) -> Result<Plan> {
    let spec = cache.ports.get(&id);
    let status = cache.port_status.get(&id);
    let vm = spec.map(|p| p.vm).or(status.map(|s| s.vm));
    let Some(vm) = vm else {
        return Ok(Plan::nothing());
    };
    let user = user(id, vm, cache);
    let version = status.map(|s| s.version);
    let write = |user: &User<'_>, state: PortState| {
        let next = PortStatus {
            vm: user.vm,
            node: user.node.clone(),
            epoch: user.epoch,
            state,
        };
        Draft::new()
            // It goes with its VM, and then nobody would remove the status.
            .unchanged::<Port>(&id, spec.map(|p| p.version))
            .unchanged::<PortStatus>(&id, version)
            .put(&id, &next)
    };
    match (status, user) {
        (None, None) => Ok(match spec {
            Some(port) if !is_named(id, vm, cache) => Plan::commit(
                Draft::new()
                    .unchanged::<Port>(&id, Some(port.version))
                    .delete::<Port>(&id),
            ),
            _ => Plan::nothing(),
        }),
        (Some(status), Some(user)) if status.node == *user.node && status.epoch == user.epoch => {
            if status.state != PortState::Binding {
                return Ok(Plan::nothing());
            }
            match outcome {
                Some(Outcome::Bound(binding)) => Ok(Plan::commit(write(
                    &user,
                    PortState::Bound(binding.clone()),
                )?)),
                Some(Outcome::Failed { reason, retryable }) if !retryable || failing >= BUDGET => {
                    let reason = reason.clone();
                    let message = format!("port {id}: {reason}");
                    let draft = write(&user, PortState::Failed { reason })?;
                    let project = cache.vms.get(&vm).map(|vm| &vm.meta.project);
                    Ok(Plan::commit(draft.event(
                        ObjectRef::Vm(vm),
                        project,
                        "port-failed",
                        message,
                    )))
                }
                _ => Ok(Plan::command(Command::BindPort {
                    node: user.node.clone(),
                    request: Box::new(PortRequest {
                        cluster,
                        port: id,
                        vm,
                        epoch: user.epoch,
                        mac: user.port.mac,
                        network: user.port.network.clone(),
                    }),
                })),
            }
        }
        (Some(status), _) if in_use(id, status, cache) => Ok(Plan::nothing()),
        (_, Some(user)) => Ok(Plan::commit(write(&user, PortState::Binding)?)),
        (Some(status), None) => Ok(match outcome {
            // What it leaves on a node that nobody looks after is swept when somebody does.
            outcome if matches!(outcome, Some(Outcome::Gone)) || !owned.contains(&status.node) => {
                Plan::commit(
                    Draft::new()
                        .unchanged::<PortStatus>(&id, version)
                        .delete::<PortStatus>(&id),
                )
            }
            _ => Plan::command(Command::ReleasePort {
                node: status.node.clone(),
                port: id,
                epoch: status.epoch,
            }),
        }),
    }
}

/// Whether the VM's spec has the port.
fn is_named(id: PortId, vm: VmId, cache: &Cache) -> bool {
    cache
        .vms
        .get(&vm)
        .is_some_and(|vm| vm.machine.nics.iter().any(|nic| nic.port == id))
}

/// Why a start has not got its NICs.
pub(crate) enum Unbound {
    /// They are being made.
    Yet,
    /// One could not be made.
    Failed(String),
}

/// The NICs of a start, from its bound ports.
pub(crate) fn nics(
    node: &NodeId,
    assignment: &Assignment,
    cache: &Cache,
) -> Result<Vec<NicAttachment>, Unbound> {
    let nic = |port: &AssignedPort| {
        let status = cache
            .port_status
            .get(&port.port)
            .filter(|s| s.node == *node && s.epoch == assignment.epoch);
        match status.map(|s| &s.state) {
            Some(PortState::Bound(binding)) => Ok(NicAttachment {
                port: port.port,
                mac: port.mac,
                binding: binding.clone(),
                forwards: port.forwards.clone(),
                options: assignment
                    .machine
                    .nic(port.port)
                    .cloned()
                    .unwrap_or_default(),
            }),
            Some(PortState::Failed { reason }) => {
                Err(Unbound::Failed(format!("port {}: {reason}", port.port)))
            }
            _ => Err(Unbound::Yet),
        }
    };
    assignment.ports.iter().map(nic).collect()
}
