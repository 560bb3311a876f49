//! The owner's part of a VM: one run on one node. Its states and edges are [`crate::lifecycle`]'s.
//!
//! Each look takes the run, its assignment and what was last seen of the domain, and either writes the run's next phase
//! or issues one command. The phase is written **before** the command that it announces: `starting` before the first
//! start, `stopping` before the first stop, and with it how the guest ended if that was seen, for the domain that tells
//! it is removed next. [`StopProof`] is written only from what the driver confirmed, or from a changed boot id.

use std::time::Duration;

use super::cache::Cache;
use super::plan::{Command, Draft, Plan};
use super::port::{self, Unbound};
use super::world::{SeenRun, World};
use crate::driver::{DomainId, DomainState, StopMode};
use crate::error::Result;
use crate::lifecycle::{RunEvent, RunPhase};
use crate::model::{
    Assignment, ClusterId, Exit, NodeId, ObjectRef, PoolId, Power, Run, StopProof, Versioned, VmId,
    VolumeId,
};
use crate::time::Timestamp;

/// Tries at a start whose outcome was unknown, before the run is given up.
const START_TRIES: u32 = 3;
/// How long a guest that was asked to power off is left before it is asked again: the first press may come before its
/// kernel listens.
const ASK_AGAIN: Duration = Duration::from_secs(5);

/// What a look at a run is made of.
struct Look<'a> {
    cluster: ClusterId,
    cache: &'a Cache,
    run: &'a Versioned<Run>,
    assignment: Option<&'a Versioned<Assignment>>,
    state: Option<&'a DomainState>,
    seen: Option<&'a SeenRun>,
    failures: u32,
    now: Timestamp,
}

pub(crate) fn reconcile(
    node: &NodeId,
    vm: VmId,
    cluster: ClusterId,
    cache: &Cache,
    world: &World,
    failures: u32,
    now: Timestamp,
) -> Result<Plan> {
    let at = (node.clone(), vm);
    let Some(run) = cache.runs.get(&at) else {
        return Ok(Plan::nothing());
    };
    if run.phase == RunPhase::Stopped {
        return Ok(Plan::nothing());
    }
    let Some(seen_node) = world.nodes.get(node) else {
        return Ok(Plan::nothing());
    };
    let look = Look {
        cluster,
        cache,
        run,
        assignment: cache.assignments.get(&at).filter(|a| a.epoch == run.epoch),
        state: seen_node.state(vm, run.epoch),
        seen: world.runs.get(&at),
        failures,
        now,
    };
    // Nothing was begun there: to take it back, nobody has to answer.
    if run.phase == RunPhase::Assigned && look.wanted() == Power::Off {
        return look.abandoned();
    }
    let Some(host) = &seen_node.host else {
        return match (&seen_node.error, run.phase) {
            (Some(error), phase) if phase.may_run() && phase != RunPhase::Unknown => {
                look.write(RunEvent::LoseSight, |run| {
                    run.message = format!("the hypervisor does not answer: {error}");
                })
            }
            _ => Ok(Plan::nothing()),
        };
    };
    if let Some(was) = run.boot_id.as_ref().filter(|was| **was != host.boot_id)
        && run.phase.may_run()
    {
        let proof = StopProof::HostRebooted {
            was: was.clone(),
            now: host.boot_id.clone(),
        };
        return look.ended(
            proof,
            Exit::Crashed {
                detail: "the host rebooted".to_owned(),
            },
        );
    }
    if !seen_node.listed || world.runs.get(&at).is_some_and(|s| s.unsettled.is_some()) {
        return Ok(Plan::nothing());
    }
    if look.seen.is_some_and(|s| s.stale) {
        return Ok(Plan::command(Command::Inspect {
            node: node.clone(),
            id: look.id(),
        }));
    }
    if let Some((epoch, proof)) = look.seen.and_then(|s| s.retired.as_ref())
        && *epoch == run.epoch
        && run.phase.may_run()
    {
        let default = Exit::Crashed {
            detail: "the domain vanished".to_owned(),
        };
        return look.ended(proof.clone(), run.exit.clone().unwrap_or(default));
    }
    match run.phase {
        RunPhase::Assigned => look.assigned(&host.boot_id),
        RunPhase::Starting => look.starting(),
        RunPhase::Running | RunPhase::Paused | RunPhase::Unknown => look.up(),
        RunPhase::Stopping => look.stopping(),
        RunPhase::Stopped => Ok(Plan::nothing()),
    }
}

impl Look<'_> {
    fn id(&self) -> DomainId {
        DomainId {
            cluster: self.cluster,
            vm: self.run.vm,
            epoch: self.run.epoch,
        }
    }

    /// The wanted power: off when the assignment is gone.
    fn wanted(&self) -> Power {
        self.assignment.map_or(Power::Off, |a| a.power.state)
    }

    /// Every volume that this epoch may have attached: also one that the assignment names no more.
    fn disks(&self) -> Vec<(PoolId, VolumeId)> {
        let claimed = |volume: &VolumeId| {
            let claim = self.cache.volume_claims.get(volume);
            claim.is_some_and(|c| c.epoch == self.run.epoch)
        };
        self.cache
            .volumes_claimed_by(self.run.vm)
            .filter(claimed)
            .filter_map(|id| Some((self.cache.volumes.get(&id)?.pool.clone(), id)))
            .collect()
    }

    /// Writes the phase after `event`, and what `change` adds.
    fn write(&self, event: RunEvent, change: impl FnOnce(&mut Run)) -> Result<Plan> {
        let mut run = self.run.value.clone();
        let before = run.phase;
        run.phase = run.phase.on(event)?;
        if run.phase != before {
            run.since = self.now;
            run.message.clear();
        }
        change(&mut run);
        let at = (run.node.clone(), run.vm);
        let mut draft = Draft::new()
            .unchanged::<Run>(&at, Some(self.run.version))
            .put(&at, &run)?;
        if run.phase != before {
            let reason = match run.phase {
                RunPhase::Assigned => "assigned",
                RunPhase::Starting => "starting",
                RunPhase::Running => "running",
                RunPhase::Paused => "paused",
                RunPhase::Stopping => "stopping",
                RunPhase::Stopped => "stopped",
                RunPhase::Unknown => "unknown",
            };
            let exit = run
                .exit
                .as_ref()
                .map(|e| format!(": {e:?}"))
                .unwrap_or_default();
            let message = format!("{} on {} (epoch {}){exit}", run.phase, run.node, run.epoch);
            let project = self.cache.vms.get(&run.vm).map(|vm| &vm.meta.project);
            draft = draft.event(ObjectRef::Vm(run.vm), project, reason, message);
        }
        Ok(Plan::commit(draft))
    }

    fn ended(&self, proof: StopProof, exit: Exit) -> Result<Plan> {
        self.write(RunEvent::Ended, |run| {
            run.proof = Some(proof);
            run.exit.get_or_insert(exit);
        })
    }

    /// Announces the stop, with how the guest ended.
    fn stop(&self, exit: Exit) -> Result<Plan> {
        self.write(RunEvent::Stop, |run| run.exit = Some(exit))
    }

    fn retire(&self, kill: bool) -> Plan {
        let disks = self.disks();
        Plan::command(Command::Retire {
            node: self.run.node.clone(),
            id: self.id(),
            kill,
            disks,
        })
    }

    fn abandoned(&self) -> Result<Plan> {
        self.write(RunEvent::Abandon, |run| {
            run.proof = Some(StopProof::NeverStarted);
            run.exit = Some(Exit::Requested);
        })
    }

    fn assigned(&self, boot_id: &str) -> Result<Plan> {
        self.write(RunEvent::Begin, |run| {
            run.boot_id = Some(boot_id.to_owned());
        })
    }

    fn starting(&self) -> Result<Plan> {
        let Some(assignment) = self.assignment.filter(|a| a.power.state != Power::Off) else {
            return self.stop(Exit::Requested);
        };
        match self.state {
            Some(DomainState::Running) => return self.ran(),
            Some(DomainState::Paused)
                if self.wanted() == Power::Paused
                    && self.seen.is_some_and(|s| s.adapted.is_some()) =>
            {
                // The start's last step has been done: it stays held because that was asked for.
                return self.write(RunEvent::Ran, |run| run.started_at = Some(self.now));
            }
            Some(DomainState::Ended(exit)) => return self.stop(exit.clone()),
            _ => {}
        }
        if let Some((epoch, detail, retryable)) = self.seen.and_then(|s| s.error.as_ref())
            && *epoch == self.run.epoch
            && (!retryable || self.failures >= START_TRIES)
        {
            return self.stop(Exit::StartFailed {
                detail: detail.clone(),
            });
        }
        let nics = match port::nics(&self.run.node, assignment, self.cache) {
            Ok(nics) => nics,
            Err(Unbound::Yet) => return Ok(Plan::nothing()),
            Err(Unbound::Failed(detail)) => return self.stop(Exit::StartFailed { detail }),
        };
        Ok(Plan::command(Command::Start {
            node: self.run.node.clone(),
            id: self.id(),
            boot_id: self.run.boot_id.clone(),
            assignment: Box::new(assignment.value.clone()),
            nics,
        }))
    }

    fn ran(&self) -> Result<Plan> {
        self.write(RunEvent::Ran, |run| {
            run.started_at.get_or_insert(self.now);
            run.failures = 0;
        })
    }

    /// Running, paused, or just seen again.
    fn up(&self) -> Result<Plan> {
        let phase = self.run.phase;
        let (node, id) = (self.run.node.clone(), self.id());
        match self.state {
            None => return Ok(self.retire(false)),
            Some(DomainState::Ended(exit)) => return self.stop(exit.clone()),
            Some(DomainState::Unknown(_)) if phase == RunPhase::Unknown => {
                return Ok(Plan::wake_in(self.now, ASK_AGAIN));
            }
            Some(DomainState::Unknown(why)) => {
                return self.write(RunEvent::LoseSight, |run| run.message = why.clone());
            }
            // Sight was lost during a start: a held domain is then still the start's.
            Some(DomainState::Defined) => {
                return self.stop(Exit::StartFailed {
                    detail: "the start's outcome was lost".to_owned(),
                });
            }
            Some(DomainState::Running) if phase != RunPhase::Running => return self.ran(),
            Some(DomainState::Paused) if phase != RunPhase::Paused => {
                return self.write(RunEvent::Held, |run| {
                    run.started_at.get_or_insert(self.now);
                });
            }
            Some(DomainState::Running | DomainState::Paused) => {}
        }
        match self.wanted() {
            Power::Off => return self.stop(Exit::Requested),
            Power::On if phase == RunPhase::Paused => {
                return Ok(Plan::command(Command::Resume { node, id }));
            }
            Power::Paused if phase == RunPhase::Running => {
                return Ok(Plan::command(Command::Pause { node, id }));
            }
            Power::On | Power::Paused => {}
        }
        self.adapt()
    }

    /// Makes the devices those of the assignment.
    fn adapt(&self) -> Result<Plan> {
        let Some(assignment) = self
            .assignment
            .filter(|a| a.generation != self.run.generation)
        else {
            return Ok(Plan::nothing());
        };
        let adapted =
            self.seen.and_then(|s| s.adapted) == Some((self.run.epoch, assignment.generation));
        let event = if self.run.phase == RunPhase::Paused {
            RunEvent::Held
        } else {
            RunEvent::Ran
        };
        if adapted {
            return self.write(event, |run| {
                run.generation = assignment.generation;
                run.message.clear();
            });
        }
        if let Some((epoch, detail, _)) = self.seen.and_then(|s| s.error.as_ref())
            && *epoch == self.run.epoch
            && self.run.message != *detail
        {
            return self.write(event, |run| run.message.clone_from(detail));
        }
        let nics = match port::nics(&self.run.node, assignment, self.cache) {
            Ok(nics) => nics,
            Err(Unbound::Failed(detail)) if self.run.message != detail => {
                return self.write(event, |run| run.message = detail);
            }
            Err(_) => return Ok(Plan::nothing()),
        };
        Ok(Plan::command(Command::Adapt {
            node: self.run.node.clone(),
            id: self.id(),
            assignment: Box::new(assignment.value.clone()),
            nics,
        }))
    }

    fn stopping(&self) -> Result<Plan> {
        let (node, id) = (self.run.node.clone(), self.id());
        match self.state {
            Some(DomainState::Unknown(why)) => {
                let why = why.clone();
                return self.write(RunEvent::LoseSight, |run| run.message = why);
            }
            Some(DomainState::Running) => {}
            // A held guest cannot hear the button.
            Some(DomainState::Paused) => return Ok(self.retire(true)),
            Some(DomainState::Defined) | None => return Ok(self.retire(true)),
            Some(DomainState::Ended(_)) => return Ok(self.retire(false)),
        }
        let requested = matches!(self.run.exit, Some(Exit::Requested) | None);
        let force = self.assignment.is_none_or(|a| a.power.force) || !requested;
        let grace = Duration::from_secs(
            self.assignment
                .map_or(0, |a| u64::from(a.machine.stop_grace_secs)),
        );
        if force || self.now.since(self.run.since) >= grace {
            return Ok(self.retire(true));
        }
        let killed_at = self.run.since.plus(grace);
        match self.seen.and_then(|s| s.asked_at) {
            Some(at) if self.now.since(at) < ASK_AGAIN => {
                Ok(Plan::wake_at(killed_at.min(at.plus(ASK_AGAIN))))
            }
            _ => Ok(Plan::command(Command::Stop {
                node,
                id,
                mode: StopMode::Shutdown,
            })),
        }
    }
}
