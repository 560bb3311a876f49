//! Verbs without a desired state: marked started before the effect, never repeated after a crash.
//!
//! One that has not begun by its operation's deadline never will. A restore begins only while nobody has the volume, and
//! no start may begin with it before the restore has ended: both depend on the volume's claim and status records, so
//! that of two commits that know nothing of each other the second fails.

use super::cache::Cache;
use super::plan::{Command, Draft, Outcome, Plan};
use crate::driver::DomainId;
use crate::error::Result;
use crate::lifecycle::RunPhase;
use crate::model::{Action, ActionId, ActionStatus, ClusterId, StorageState, Verb, VolumeClaim};
use crate::records::VolumeStatus;
use crate::time::Timestamp;

/// `mine` says whether this process marked the action started.
pub(crate) fn reconcile(
    id: ActionId,
    cluster: ClusterId,
    cache: &Cache,
    mine: bool,
    outcome: Option<&Outcome>,
    now: Timestamp,
) -> Result<Plan> {
    let Some(action) = cache.actions.get(&id) else {
        return Ok(Plan::nothing());
    };
    let status = cache.action_status.get(&id);
    let write = |next: ActionStatus| -> Result<Plan> {
        Ok(Plan::commit(
            Draft::new()
                // It goes with its VM, and then nobody would remove the status.
                .unchanged::<Action>(&id, Some(action.version))
                .unchanged::<ActionStatus>(&id, status.map(|s| s.version))
                .put(&id, &next)?,
        ))
    };
    let refuse = |reason: &str| {
        write(ActionStatus::Failed {
            reason: reason.to_owned(),
            at: now,
        })
    };
    match status.map(|s| &s.value) {
        Some(status) if status.is_ended() => Ok(Plan::nothing()),
        Some(_) if !mine => write(ActionStatus::Unknown { at: now }),
        Some(_) => match outcome {
            Some(Outcome::Done(_) | Outcome::Gone) => write(ActionStatus::Done { at: now }),
            Some(Outcome::Failed {
                reason,
                retryable: false,
            }) => refuse(reason),
            Some(Outcome::Failed { .. }) => write(ActionStatus::Unknown { at: now }),
            Some(
                Outcome::Bound(_)
                | Outcome::Fenced(..)
                | Outcome::Lapsed(_)
                | Outcome::Detached(_)
                | Outcome::Undone(_),
            )
            | None => {
                let claim = cache.claims.get(&action.vm);
                let at = claim.and_then(|c| {
                    let node = c.place.node()?.clone();
                    Some((
                        node,
                        DomainId {
                            cluster,
                            vm: action.vm,
                            epoch: c.epoch,
                        },
                    ))
                });
                let pool = match &action.verb {
                    Verb::Restore { volume, .. } => {
                        cache.volumes.get(volume).map(|v| v.pool.clone())
                    }
                    Verb::Reset => None,
                };
                Ok(Plan::command(Command::Act {
                    pool,
                    at,
                    verb: action.verb.clone(),
                }))
            }
        },
        None => {
            let wait = Ok(Plan::wake_at(action.deadline));
            if cache
                .vms
                .get(&action.vm)
                .is_none_or(|vm| vm.meta.deleted_at.is_some())
            {
                return refuse("the VM is being deleted");
            }
            if now >= action.deadline {
                return refuse("its deadline passed before it could begin");
            }
            // One action of a VM at a time, in the order they were asked for.
            let first = cache
                .actions_of(action.vm)
                .find(|a| cache.action_status.get(a).is_none_or(|s| !s.is_ended()));
            if first != Some(id) {
                return wait;
            }
            let mut draft = Draft::new()
                .unchanged::<Action>(&id, Some(action.version))
                .unchanged::<ActionStatus>(&id, None);
            match &action.verb {
                Verb::Reset => match cache.run_of(action.vm).map(|r| r.phase) {
                    Some(RunPhase::Running) => {}
                    Some(RunPhase::Assigned | RunPhase::Starting) => return wait,
                    _ => return refuse("the VM does not run"),
                },
                Verb::Restore { volume, snapshot } => {
                    let of = cache.volume_status.get(volume);
                    let Some(of) = of.filter(|s| s.0.state == StorageState::Available) else {
                        return refuse("there is no such volume");
                    };
                    if cache.volume_claims.contains_key(volume) {
                        return refuse("the volume is in use: stop the VM first");
                    }
                    if cache
                        .snapshots
                        .get(snapshot)
                        .is_none_or(|s| s.meta.deleted_at.is_some())
                    {
                        return refuse("there is no such snapshot");
                    }
                    match cache.snapshot_status.get(snapshot).map(|s| &s.0.state) {
                        Some(StorageState::Available) => {}
                        Some(StorageState::Failed { .. }) => {
                            return refuse("the snapshot was not taken");
                        }
                        Some(StorageState::Creating) | None => return wait,
                    }
                    // Another VM's restore, or another snapshot.
                    if cache.under_way(*volume).is_some() {
                        return wait;
                    }
                    draft = draft
                        .unchanged::<VolumeClaim>(volume, None)
                        .touch::<VolumeStatus>(volume, of)?;
                }
            }
            let started = ActionStatus::Started { at: now };
            Ok(Plan::commit(draft.put(&id, &started)?))
        }
    }
}
