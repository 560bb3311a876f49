//! Operations: each ends, as done, failed, cancelled or superseded, and says why; ended ones are kept for a while.

use std::time::Duration;

use super::cache::Cache;
use super::evacuate;
use super::plan::{Draft, ObjectKey, Plan};
use super::resolve::{resolve, started_with};
use super::snapshot;
use super::vm::{Waiting, should_start};
use crate::error::Result;
use crate::lifecycle::{Phase, RunPhase};
use crate::model::{
    ActionStatus, Claim, Epoch, Meta, NodeId, ObjectRef, Operation, OperationId, OperationKind,
    OperationState, Power, StorageState, StorageStatus, Vm, VmId,
};
use crate::time::Timestamp;

/// A VM's phase as users see it, and why.
pub(crate) fn phase_of(vm: &Vm, cache: &Cache, now: Timestamp) -> (Phase, String) {
    if vm.meta.deleted_at.is_some() {
        return (Phase::Deleting, not_gone(vm, cache));
    }
    let claim: Option<&Claim> = cache.claims.get(&vm.id).map(|c| &c.value);
    let run = cache.run_of(vm.id).map(|r| &r.value);
    if let (Some(claim), Some(run)) = (claim, run)
        && claim.is_held()
    {
        let phase = match run.phase {
            RunPhase::Assigned | RunPhase::Starting => Phase::Starting,
            RunPhase::Running => Phase::Running,
            RunPhase::Paused => Phase::Paused,
            RunPhase::Stopping | RunPhase::Stopped => Phase::Stopping,
            RunPhase::Unknown => Phase::Unknown,
        };
        return (phase, run.message.clone());
    }
    match should_start(vm, claim, run, now) {
        Err(Waiting::Stopped) => (Phase::Stopped, String::new()),
        Err(Waiting::Failed(why)) => (Phase::Failed, why),
        Err(Waiting::Until(at)) => (
            Phase::Pending,
            format!("starts again in {} ms", at.since(now).as_millis()),
        ),
        Err(Waiting::For(why)) => (Phase::Pending, why),
        Ok(_) => match resolve(vm, Epoch(0), cache) {
            Err(Waiting::For(why)) => (Phase::Pending, why),
            Err(Waiting::Failed(why)) => (Phase::Failed, why),
            _ => {
                let why = cache.before(vm.id, 0, now);
                let why = why.or_else(|| cache.why_no_place(vm.id));
                (
                    Phase::Pending,
                    why.unwrap_or_else(|| "waiting for a place".to_owned()),
                )
            }
        },
    }
}

/// A phase, with its reason if there is one.
pub(crate) fn worded(phase: Phase, why: &str) -> String {
    if why.is_empty() {
        phase.to_string()
    } else {
        format!("{phase}: {why}")
    }
}

/// Where an operation on a VM stands.
fn on_vm(
    id: VmId,
    kind: &OperationKind,
    cache: &Cache,
    now: Timestamp,
) -> (OperationState, String) {
    use OperationState as S;
    let Some(vm) = cache.vms.get(&id) else {
        let state = if *kind == OperationKind::Delete {
            S::Done
        } else {
            S::Superseded
        };
        return (state, "the VM is gone".to_owned());
    };
    if vm.meta.deleted_at.is_some() && *kind != OperationKind::Delete {
        return (S::Superseded, "the VM is being deleted".to_owned());
    }
    let (phase, why) = phase_of(vm, cache, now);
    let progress = worded(phase, &why);
    let serial = match kind {
        OperationKind::Delete => return (S::Running, progress),
        OperationKind::Record | OperationKind::Evacuate { .. } => return (S::Done, progress),
        OperationKind::Update { generation } => {
            let run = cache
                .run_of(id)
                .filter(|_| cache.claims.get(&id).is_some_and(|c| c.is_held()));
            return match run {
                Some(run) if run.generation >= *generation => match waits(vm, cache) {
                    Some(waits) => (S::Done, waits),
                    None => (S::Done, progress),
                },
                Some(run) if !run.message.is_empty() => (S::Running, run.message.clone()),
                Some(_) => (S::Running, progress),
                None => (S::Done, "takes effect with the next start".to_owned()),
            };
        }
        OperationKind::Action { action } => {
            return match cache.action_status.get(action).map(|s| &s.value) {
                Some(ActionStatus::Done { .. }) => (S::Done, String::new()),
                Some(ActionStatus::Failed { reason, .. }) => (
                    S::Failed {
                        reason: reason.clone(),
                    },
                    String::new(),
                ),
                Some(ActionStatus::Unknown { .. }) => (
                    S::Failed {
                        reason: "its outcome is unknown: it may have happened".to_owned(),
                    },
                    String::new(),
                ),
                Some(ActionStatus::Started { .. }) => (S::Running, "started".to_owned()),
                None => (S::Running, "waiting".to_owned()),
            };
        }
        OperationKind::Create => 1,
        OperationKind::Power { serial, .. } => *serial,
    };
    if vm.power.serial > serial {
        return (S::Superseded, "another power request came".to_owned());
    }
    let reached = match vm.power.state {
        Power::On => phase == Phase::Running,
        Power::Paused => phase == Phase::Paused,
        Power::Off => phase == Phase::Stopped,
    };
    // A VM that is created off has its disks; whether a start finds them is the start's business.
    if *kind == OperationKind::Create && vm.power.state == Power::Off {
        for disk in &vm.machine.disks {
            let name = &disk.name;
            match cache.volume_status.get(&disk.volume).map(|s| &s.0.state) {
                Some(StorageState::Available) => {}
                Some(StorageState::Failed { reason }) => {
                    let reason = format!("volume of disk {name} failed: {reason}");
                    return (S::Failed { reason }, progress);
                }
                _ => return (S::Running, format!("volume of disk {name} is being made")),
            }
        }
    }
    match phase {
        _ if reached => (S::Done, progress),
        Phase::Failed => (S::Failed { reason: why }, progress),
        _ => (S::Running, progress),
    }
}

/// What of the machine waits for the next start, in words.
fn waits(vm: &Vm, cache: &Cache) -> Option<String> {
    let changes = started_with(vm.id, cache)?.changes(&vm.machine);
    let fields: Vec<_> = changes.into_iter().map(|change| change.field).collect();
    (!fields.is_empty()).then(|| format!("{}: with the next start", fields.join(", ")))
}

/// A word for what goes on, with why it does not get on if that is known.
fn progress(word: &str, why: Option<&str>) -> String {
    why.map_or_else(|| word.to_owned(), |why| format!("{word}: {why}"))
}

/// Why a VM that is being deleted is still there: what the removal of its parts last failed with.
fn not_gone(vm: &Vm, cache: &Cache) -> String {
    let made = vm.machine.disks.iter().filter(|d| d.delete_with_vm);
    let volumes = made.map(|d| ObjectKey::Volume(d.volume));
    let mut parts = volumes.chain(cache.ports_of(vm.id).map(ObjectKey::Port));
    parts
        .find_map(|part| cache.why(&part).map(str::to_owned))
        .unwrap_or_default()
}

fn on_storage(
    spec: Option<&Meta>,
    generation: u64,
    status: Option<&StorageStatus>,
    kind: &OperationKind,
    trouble: Option<&str>,
) -> (OperationState, String) {
    use OperationState as S;
    let exists = spec.is_some();
    let deleted = spec.is_some_and(|meta| meta.deleted_at.is_some());
    match (kind, exists) {
        (OperationKind::Record, _) => (S::Done, String::new()),
        (OperationKind::Delete, false) => (S::Done, String::new()),
        (OperationKind::Delete, true) => (S::Running, progress("deleting", trouble)),
        (_, false) => (S::Superseded, "it is gone".to_owned()),
        (_, true) if deleted => (S::Superseded, "it is being deleted".to_owned()),
        (_, true) => match status {
            Some(s) if s.state == StorageState::Available && s.generation >= generation => {
                match (&s.problem, kind) {
                    (Some(reason), OperationKind::Update { .. }) => (
                        S::Failed {
                            reason: reason.clone(),
                        },
                        String::new(),
                    ),
                    _ => (S::Done, String::new()),
                }
            }
            Some(StorageStatus {
                state: StorageState::Failed { reason },
                ..
            }) => (
                S::Failed {
                    reason: reason.clone(),
                },
                String::new(),
            ),
            Some(s) if s.state == StorageState::Available => {
                (S::Running, progress("being changed", trouble))
            }
            _ => (S::Running, progress("being made", trouble)),
        },
    }
}

/// Where a running operation stands by the records, and what is going on.
pub(crate) fn standing(
    operation: &Operation,
    cache: &Cache,
    now: Timestamp,
) -> (OperationState, String) {
    let kind = &operation.kind;
    let wanted = match kind {
        OperationKind::Update { generation } => *generation,
        _ => 1,
    };
    let trouble = |key| cache.why(&key);
    match &operation.target {
        ObjectRef::Vm(vm) => on_vm(*vm, kind, cache, now),
        ObjectRef::Volume(volume) => {
            let spec = cache.volumes.get(volume);
            let status = cache.volume_status.get(volume).map(|s| &s.0);
            let trouble = trouble(ObjectKey::Volume(*volume));
            on_storage(spec.map(|s| &s.meta), wanted, status, kind, trouble)
        }
        ObjectRef::Image(image) => {
            let spec = cache.images.get(image);
            let status = cache.image_status.get(image).map(|s| &s.0);
            let trouble = trouble(ObjectKey::Image(*image));
            on_storage(spec.map(|s| &s.meta), wanted, status, kind, trouble)
        }
        ObjectRef::Snapshot(snapshot) => {
            let spec = cache.snapshots.get(snapshot);
            let status = cache.snapshot_status.get(snapshot).map(|s| &s.0);
            let trouble = trouble(ObjectKey::Snapshot(*snapshot));
            let waiting = spec.and_then(|s| snapshot::waiting(*snapshot, s.volume, cache));
            let why = waiting.as_deref().or(trouble);
            on_storage(spec.map(|s| &s.meta), wanted, status, kind, why)
        }
        ObjectRef::Network(network) => match (kind, cache.networks.contains_key(network)) {
            (OperationKind::Delete, true) => {
                (OperationState::Running, "a port is on it".to_owned())
            }
            _ => (OperationState::Done, String::new()),
        },
        ObjectRef::Node(node) => on_node(node, kind, cache),
        ObjectRef::Pool(_) => (OperationState::Done, String::new()),
    }
}

fn on_node(id: &NodeId, kind: &OperationKind, cache: &Cache) -> (OperationState, String) {
    use OperationState as S;
    let OperationKind::Evacuate { generation, .. } = kind else {
        return (S::Done, String::new());
    };
    match cache.nodes.get(id) {
        None => (S::Superseded, "the node is gone".to_owned()),
        Some(node) if node.generation > *generation => {
            (S::Superseded, "another request came".to_owned())
        }
        Some(_) => match evacuate::remaining(id, cache) {
            Some(left) => (S::Running, left),
            None => (S::Done, "nothing runs there".to_owned()),
        },
    }
}

/// `kept` is how long an ended operation can be asked for.
pub(crate) fn reconcile(
    id: OperationId,
    cache: &Cache,
    kept: Duration,
    now: Timestamp,
) -> Result<Plan> {
    let Some(operation) = cache.operations.get(&id) else {
        return Ok(Plan::nothing());
    };
    if operation.state != OperationState::Running {
        let due = operation
            .ended_at
            .unwrap_or(operation.created_at)
            .plus(kept);
        if now < due {
            return Ok(Plan::wake_at(due));
        }
        return Ok(Plan::commit(
            Draft::new()
                .unchanged::<Operation>(&id, Some(operation.version))
                .delete::<Operation>(&id),
        ));
    }
    let (state, progress) = standing(operation, cache, now);
    let state = if state == OperationState::Running && now >= operation.deadline {
        OperationState::Failed {
            reason: format!("its deadline passed; last: {progress}"),
        }
    } else {
        state
    };
    if state == OperationState::Running {
        // Progress is not written for its own sake: the objects' own events tell it, and it can be derived.
        return Ok(Plan::wake_at(operation.deadline));
    }
    let ended = Operation {
        state,
        progress,
        ended_at: Some(now),
        ..operation.value.clone()
    };
    Ok(Plan::commit(
        Draft::new()
            .unchanged::<Operation>(&id, Some(operation.version))
            .put(&id, &ended)?,
    ))
}
