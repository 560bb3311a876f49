//! The leader's part of a VM: place it, grant its claim, keep its assignment true, take the claim back, remove it.
//!
//! ```text
//!   no claim, or released ── wanted on, volumes ready, a place ──► GRANT   claim(epoch+1), volume claims, assignment, run
//!   held ── spec or power changed ─────────────────────────────► RESOLVE the assignment anew (and its volume claims)
//!   held ── run is stopped, with its proof ────────────────────► RELEASE the claim with that proof, and the volumes
//!   released ── to be deleted ─────────────────────────────────► REMOVE  assignment, run, ports, made volumes, the VM
//! ```
//! A VM that is to leave its node is moved by [`super::evacuate`], between these steps.
//!
//! Each is one commit, conditional on every record that it was decided from. A claim is granted only over nothing or
//! over a released one, and the commit says so.

use std::collections::BTreeSet;
use std::time::Duration;

use super::cache::Cache;
use super::evacuate;
use super::plan::{Draft, Plan};
use super::resolve::{resolve, within_start};
use crate::driver::{PlacementRequest, Rejected};
use crate::error::Result;
use crate::lifecycle::RunPhase;
use crate::model::{
    Assignment, Capability, Claim, Decision, Epoch, Exit, NetworkKind, NodeId, ObjectRef, PlaceId,
    PoolScope, Port, Power, RestartPolicy, Run, StopProof, Versioned, Vm, VmId, VolumeClaim,
    VolumeId,
};
use crate::records::{self, Grave, VolumeStatus};
use crate::time::Timestamp;

/// Failed starts in a row after which a VM is left alone until somebody asks again.
pub(crate) const START_BUDGET: u32 = 5;
/// The longest wait after a failed start.
const LONGEST_WAIT: Duration = Duration::from_secs(64);
/// A run that lasted this long was a success: the budget begins anew.
const STABLE: Duration = Duration::from_secs(60);
/// How soon a VM that waits for others asks again whether it is its turn, if nothing told it before.
const ASK_AGAIN: Duration = Duration::from_secs(1);

/// Asks the scheduler.
pub(crate) type Place<'a> = &'a mut dyn FnMut(&PlacementRequest) -> Result<Decision, Rejected>;

/// `granted` VMs that lost their host have a place that is not in the cache.
pub(crate) fn reconcile(
    id: VmId,
    cache: &Cache,
    granted: usize,
    now: Timestamp,
    place: Place<'_>,
) -> Result<Plan> {
    let Some(vm) = cache.vms.get(&id) else {
        return Ok(Plan::nothing());
    };
    let claim = cache.claims.get(&id);
    match claim {
        Some(claim) if claim.is_held() => held(vm, claim, cache, now, place),
        _ if vm.meta.deleted_at.is_some() => remove(vm, claim, cache, now),
        _ if cache.before(id, granted, now).is_some() => Ok(Plan::wake_in(now, ASK_AGAIN)),
        _ => free(vm, claim, cache, now, place),
    }
}

/// The claim is held: follow the spec, or take the claim back.
fn held(
    vm: &Versioned<Vm>,
    claim: &Versioned<Claim>,
    cache: &Cache,
    now: Timestamp,
    place: Place<'_>,
) -> Result<Plan> {
    let Some(node) = claim.place.node() else {
        return Ok(Plan::nothing());
    };
    let at = (node.clone(), vm.id);
    let Some(run) = cache.runs.get(&at) else {
        return Ok(Plan::nothing());
    };
    if let (RunPhase::Stopped, Some(proof)) = (run.phase, &run.proof) {
        let mut released = claim.value.clone().release(proof.clone());
        // What this start was asked while it lasted is answered with it: only a later request starts the VM again.
        if let Some(assignment) = cache.assignments.get(&at) {
            released.power_serial = released.power_serial.max(assignment.power.serial);
        }
        let lasted = run
            .started_at
            .map(|at| run.since.since(at))
            .unwrap_or_default();
        // A guest that is always started again and powers off at once goes round in circles too.
        let unwanted = |exit: &Exit| {
            exit.is_failure()
                || (vm.restart == RestartPolicy::Always && *exit == Exit::GuestShutdown)
        };
        // That its host was lost is nothing that the VM did: it is started again at once.
        released.failures = match &run.exit {
            _ if proof.is_host_lost() => 0,
            Some(exit) if unwanted(exit) && lasted < STABLE => claim.failures + 1,
            Some(exit) if exit.is_failure() => 1,
            _ => 0,
        };
        if released.failures > 0 {
            released.not_before = Some(
                run.since
                    .plus(Duration::from_secs(1 << (released.failures - 1).min(6))),
            );
        }
        // One that stays off needs no room anywhere.
        if let Err(Waiting::Stopped | Waiting::Failed(_)) =
            should_start(vm, Some(&released), Some(run), now)
        {
            released.moving_to = None;
        }
        let mut draft = Draft::new()
            .unchanged::<Claim>(&vm.id, Some(claim.version))
            .unchanged::<Run>(&at, Some(run.version))
            .put(&vm.id, &released)?;
        let orphaned = proof.leaves_volumes();
        draft = release_volumes(draft, vm.id, claim.epoch, &BTreeSet::new(), orphaned, cache)?;
        return Ok(Plan::commit(draft));
    }
    let Some(assignment) = cache.assignments.get(&at) else {
        return Ok(Plan::nothing());
    };
    if let Some(plan) = evacuate::step(vm, claim, run, assignment, cache, place)? {
        return Ok(plan);
    }
    let mut power = vm.power;
    if claim.moving_to.is_some() {
        power.state = Power::Off;
    }
    if vm.meta.deleted_at.is_some() {
        power = crate::model::PowerRequest {
            state: Power::Off,
            serial: vm.power.serial,
            force: true,
        };
    }
    if assignment.generation == vm.meta.generation && assignment.power == power {
        // The owner has let go of what the spec no longer names: those volumes are free.
        if run.generation == assignment.generation {
            let named = vm.machine.disks.iter().map(|d| d.volume).collect();
            let draft = release_volumes(Draft::new(), vm.id, claim.epoch, &named, false, cache)?;
            if !draft.ops.is_empty() {
                return Ok(Plan::commit(
                    draft
                        .unchanged::<Vm>(&vm.id, Some(vm.version))
                        .unchanged::<Run>(&at, Some(run.version)),
                ));
            }
        }
        return Ok(Plan::nothing());
    }
    let draft = || {
        Draft::new()
            .unchanged::<Vm>(&vm.id, Some(vm.version))
            .unchanged::<Claim>(&vm.id, Some(claim.version))
            .unchanged::<Assignment>(&at, Some(assignment.version))
    };
    if let Ok(resolved) = resolve(vm, claim.epoch, cache) {
        let resolved = Assignment {
            power,
            ..within_start(resolved, assignment)
        };
        if let Some(draft) = claim_volumes(draft(), &resolved, &claim.place, cache)? {
            return Ok(Plan::commit(draft.put(&at, &resolved)?));
        }
    }
    // What the new spec names is not ready: the power follows, the devices wait.
    if assignment.power == power {
        return Ok(Plan::nothing());
    }
    let next = Assignment {
        power,
        ..assignment.value.clone()
    };
    Ok(Plan::commit(draft().put(&at, &next)?))
}

/// Why a VM without a held claim is not started.
#[derive(Debug)]
pub(crate) enum Waiting {
    /// It should be off, or it powered itself off.
    Stopped,
    /// Its budget is used up, or what it needs failed or is gone.
    Failed(String),
    /// Not yet.
    Until(Timestamp),
    /// Something that it needs is not there.
    For(String),
}

/// Whether a free VM should be started now: the failures to carry over, or why not.
pub(crate) fn should_start(
    vm: &Vm,
    claim: Option<&Claim>,
    run: Option<&Run>,
    now: Timestamp,
) -> Result<u32, Waiting> {
    if vm.power.state == Power::Off || vm.meta.deleted_at.is_some() {
        return Err(Waiting::Stopped);
    }
    let Some(claim) = claim else { return Ok(0) };
    if vm.power.serial > claim.power_serial {
        return Ok(0);
    }
    let exit = run
        .filter(|r| r.epoch == claim.epoch)
        .and_then(|r| r.exit.clone());
    let again = match (&exit, vm.restart) {
        (_, RestartPolicy::Always) => true,
        (Some(Exit::GuestShutdown), _) => false,
        (Some(exit), RestartPolicy::Never) if exit.is_failure() => false,
        _ => true,
    };
    if !again {
        return match exit {
            Some(exit) if exit.is_failure() => Err(Waiting::Failed(format!(
                "{exit}; its restart policy is never"
            ))),
            _ => Err(Waiting::Stopped),
        };
    }
    if claim.failures >= START_BUDGET {
        let last = exit.map_or_else(String::new, |e| format!(", the last: {e}"));
        return Err(Waiting::Failed(format!(
            "{} starts failed in a row{last}",
            claim.failures
        )));
    }
    // A longer wait than any is that of a wrong clock.
    match claim.not_before {
        Some(at) if at > now && at.since(now) <= LONGEST_WAIT => Err(Waiting::Until(at)),
        _ => Ok(claim.failures),
    }
}

/// No claim, or a released one: start it if it should be on.
fn free(
    vm: &Versioned<Vm>,
    claim: Option<&Versioned<Claim>>,
    cache: &Cache,
    now: Timestamp,
    place: Place<'_>,
) -> Result<Plan> {
    let failures = match should_start(
        vm,
        claim.map(|c| &c.value),
        cache.run_of(vm.id).map(|r| &r.value),
        now,
    ) {
        Ok(failures) => failures,
        Err(Waiting::Until(at)) => return Ok(Plan::wake_at(at)),
        Err(_) => return Ok(Plan::nothing()),
    };
    let epoch = Epoch(claim.map_or(0, |c| c.epoch.0) + 1);
    let Ok(assignment) = resolve(vm, epoch, cache) else {
        return Ok(Plan::nothing());
    };
    let request = placement_request(vm, &assignment, claim.map(|c| &c.value), cache);
    let decision = match place(&request) {
        Ok(decision) => decision,
        Err(rejected) => {
            return Ok(Plan {
                no_place: Some(rejected),
                ..Plan::nothing()
            });
        }
    };
    let Some(node) = decision.winner.node().cloned() else {
        return Ok(Plan::nothing());
    };
    let at = (node.clone(), vm.id);
    let run = Run {
        vm: vm.id,
        node: node.clone(),
        epoch,
        phase: RunPhase::Assigned,
        began: None,
        message: String::new(),
        exit: None,
        proof: None,
        since: now,
        started_at: None,
        generation: assignment.generation,
    };
    let message = format!("placed on {node} (epoch {epoch})");
    let granted = Claim {
        epoch,
        place: decision.winner.clone(),
        released: None,
        power_serial: vm.power.serial,
        failures,
        not_before: None,
        decision,
        recovery: request.recovery,
        moving_to: None,
        home: evacuate::home(claim.map(|c| &c.value), &node, cache),
    };
    let mut draft = Draft::new()
        .unchanged::<Vm>(&vm.id, Some(vm.version))
        .unchanged::<Claim>(&vm.id, claim.map(|c| c.version))
        .unchanged::<Run>(&at, cache.runs.get(&at).map(|r| r.version))
        .put(&vm.id, &granted)?
        .put(&at, &run)?
        .event(
            ObjectRef::Vm(vm.id),
            Some(&vm.meta.project),
            "placed",
            message,
        );
    // A former place keeps nothing.
    if let Some(old) = claim
        .and_then(|c| c.place.node())
        .filter(|old| **old != node)
    {
        let old = (old.clone(), vm.id);
        draft = draft.delete::<Assignment>(&old).delete::<Run>(&old);
    }
    match claim_volumes(draft, &assignment, &granted.place, cache)? {
        Some(draft) => Ok(Plan::commit(draft.put(&at, &assignment)?)),
        None => Ok(Plan::nothing()),
    }
}

/// The VM is to be deleted and nothing of it runs: remove it with everything that it named.
fn remove(
    vm: &Versioned<Vm>,
    claim: Option<&Versioned<Claim>>,
    cache: &Cache,
    now: Timestamp,
) -> Result<Plan> {
    let made: Vec<_> = vm
        .machine
        .disks
        .iter()
        .filter(|d| d.delete_with_vm)
        .filter_map(|d| cache.volumes.get(&d.volume))
        .collect();
    let unmarked: Vec<_> = made
        .iter()
        .filter(|v| v.meta.deleted_at.is_none())
        .collect();
    if !unmarked.is_empty() {
        let mut draft = Draft::new()
            .unchanged::<Vm>(&vm.id, Some(vm.version))
            .unchanged::<Claim>(&vm.id, claim.map(|c| c.version));
        for volume in unmarked.into_iter().take(crate::store::MAX_OPS / 2) {
            draft = draft.delete_volume(volume, now)?;
        }
        return Ok(Plan::commit(draft));
    }
    let bound = |port| cache.port_status.contains_key(&port);
    let acting = |action| {
        cache
            .action_status
            .get(&action)
            .is_some_and(|s| !s.is_ended())
    };
    if !made.is_empty() || cache.actions_of(vm.id).any(acting) || cache.ports_of(vm.id).any(bound) {
        return Ok(Plan::nothing());
    }
    let mut draft = Draft::new()
        .unchanged::<Vm>(&vm.id, Some(vm.version))
        .unchanged::<Claim>(&vm.id, claim.map(|c| c.version))
        .delete::<Vm>(&vm.id)
        .delete::<Claim>(&vm.id)
        .op(crate::store::Op::Delete(records::name_key(
            &vm.meta.project,
            "vm",
            &vm.meta.name,
        )))
        .put(
            &format!("vm/{}", vm.id),
            &Grave {
                at: now,
                epoch: claim.map(|c| c.epoch),
            },
        )?
        .event(
            ObjectRef::Vm(vm.id),
            Some(&vm.meta.project),
            "deleted",
            format!("{} is gone", vm.meta.name),
        );
    for port in cache.ports_of(vm.id) {
        draft = draft.delete::<Port>(&port);
    }
    if let Some(node) = claim.and_then(|c| c.place.node()) {
        let at = (node.clone(), vm.id);
        draft = draft.delete::<Assignment>(&at).delete::<Run>(&at);
    }
    for action in cache.actions_of(vm.id).take(30) {
        draft = draft
            .delete::<crate::model::Action>(&action)
            .delete::<crate::model::ActionStatus>(&action);
    }
    Ok(Plan::commit(draft))
}

/// What the scheduler is asked for a VM.
pub(crate) fn placement_request(
    vm: &Vm,
    assignment: &Assignment,
    claim: Option<&Claim>,
    cache: &Cache,
) -> PlacementRequest {
    let mut reachable: Option<BTreeSet<NodeId>> = None;
    for disk in &assignment.disks {
        match cache.pools.get(&disk.pool).map(|p| &p.scope) {
            Some(PoolScope::All) => {}
            Some(PoolScope::Nodes(nodes)) => {
                reachable = Some(match reachable {
                    Some(so_far) => so_far.intersection(nodes).cloned().collect(),
                    None => nodes.clone(),
                });
            }
            None => reachable = Some(BTreeSet::new()),
        }
    }
    let mut needs = vm.machine.needs();
    needs.extend(assignment.ports.iter().map(|port| match port.network {
        NetworkKind::Bridge { .. } => Capability::Bridge,
        NetworkKind::User => Capability::UserNetwork,
    }));
    PlacementRequest {
        vcpus: vm.machine.hardware.vcpus,
        memory: vm.machine.hardware.memory,
        only: vm.node.clone(),
        reachable,
        avoid: evacuate::apart(vm, cache),
        recovery: claim.is_some_and(|c| c.released.as_ref().is_some_and(StopProof::is_host_lost)),
        prefer: claim.and_then(|c| c.moving_to.as_ref().or(c.place.node()).cloned()),
        cpu: vm.machine.hardware.cpu.clone(),
        needs,
        seed: u64::try_from(vm.id.uuid().as_u128() & u128::from(u64::MAX)).unwrap_or_default(),
    }
}

/// Claims the assignment's volumes for its epoch; none when another VM has one.
fn claim_volumes(
    mut draft: Draft,
    assignment: &Assignment,
    place: &PlaceId,
    cache: &Cache,
) -> Result<Option<Draft>> {
    for disk in &assignment.disks {
        match cache.volume_claims.get(&disk.volume) {
            Some(claim) if claim.vm == assignment.vm && claim.epoch == assignment.epoch => {}
            Some(_) => return Ok(None),
            None => {
                let claim = VolumeClaim {
                    vm: assignment.vm,
                    epoch: assignment.epoch,
                    place: place.clone(),
                    orphaned: false,
                };
                let status = cache.volume_status.get(&disk.volume);
                draft = draft
                    .unchanged::<VolumeClaim>(&disk.volume, None)
                    .unchanged::<VolumeStatus>(&disk.volume, status.map(|s| s.version))
                    .put(&disk.volume, &claim)?;
            }
        }
    }
    Ok(Some(draft))
}

/// Gives back the epoch's volumes that are not in `keep`: at once, or, if nobody has let go of them yet, by way of their
/// pool's owner.
fn release_volumes(
    mut draft: Draft,
    vm: VmId,
    epoch: Epoch,
    keep: &BTreeSet<VolumeId>,
    orphaned: bool,
    cache: &Cache,
) -> Result<Draft> {
    for volume in cache.volumes_claimed_by(vm) {
        if let Some(claim) = cache.volume_claims.get(&volume)
            && claim.vm == vm
            && claim.epoch == epoch
            && !keep.contains(&volume)
        {
            draft = draft.unchanged::<VolumeClaim>(&volume, Some(claim.version));
            draft = if orphaned {
                let claim = VolumeClaim {
                    orphaned,
                    ..claim.value.clone()
                };
                draft.put(&volume, &claim)?
            } else {
                draft.delete::<VolumeClaim>(&volume)
            };
        }
    }
    Ok(draft)
}
