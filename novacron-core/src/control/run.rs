//! The owner's part of a VM: one run on one node. Its states and edges are [`crate::lifecycle`]'s.
//!
//! Each look takes the run, its assignment and what was last seen of the domain, and either writes the run's next phase
//! or issues one command. The phase is written **before** the command that it announces: `starting` before the first
//! start, `stopping` before the first stop, and with it how the guest ended if that was seen, for the domain that tells
//! it is removed next. [`StopProof`] is written only from what the driver confirmed, or from a changed boot id.

use std::time::Duration;

use super::cache::Cache;
use super::node::ownerless;
use super::plan::{Command, Draft, Plan};
use super::port::{self, Unbound};
use super::world::{RunError, SeenRun, World};
use crate::driver::{Domain, DomainId, DomainState, StopMode};
use crate::error::Result;
use crate::lifecycle::{RunEvent, RunPhase};
use crate::model::{
    Assignment, ClusterId, Exit, HostBoot, HostInfo, NodeId, ObjectRef, PoolId, Power, Run,
    StopProof, Versioned, VmId, VolumeId,
};
use crate::records::{self, NodeOwner, Stored};
use crate::store::{Precondition, Revision};
use crate::time::{Timestamp, lasts};

/// Tries at a start whose outcome was unknown, before the run is given up.
const START_TRIES: u32 = 3;
/// How long a guest that was asked to power off is left before it is asked again: the first press may come before its
/// kernel listens.
const ASK_AGAIN: Duration = Duration::from_secs(5);

/// A run on a node that no living process owns: after a while, one that never began is given up, and of any other nobody
/// can tell whether it runs.
pub(crate) fn unowned(
    node: &NodeId,
    vm: VmId,
    cache: &Cache,
    grace: Duration,
    now: Timestamp,
) -> Result<Plan> {
    let at = (node.clone(), vm);
    let Some(run) = cache.runs.get(&at) else {
        return Ok(Plan::nothing());
    };
    // What was begun before the host was fenced is over.
    if let Some(receipt) = cache.node_owners.get(node).and_then(|o| o.fenced.clone())
        && run.phase.may_be_confirmed_stopped()
    {
        return advance(run, RunEvent::Ended, cache, now, |run| {
            let detail = format!("its host was lost, and fenced by {}", receipt.method);
            run.exit.get_or_insert(Exit::Crashed { detail });
            run.proof = Some(StopProof::Fenced { receipt, at: now });
        })
        .map(|plan| plan.requiring(owner_unchanged(node, cache)));
    }
    let event = match run.phase {
        RunPhase::Stopped | RunPhase::Unknown => return Ok(Plan::nothing()),
        RunPhase::Assigned => RunEvent::Abandon,
        _ => RunEvent::LoseSight,
    };
    let (why, since) = ownerless(node, cache);
    if let Some(end) = lasts(since, grace, now) {
        return Ok(Plan::wake_at(end));
    }
    advance(run, event, cache, now, |run| {
        run.message = format!("nobody looks after node {node}: {why}");
        if event == RunEvent::Abandon {
            run.proof = Some(StopProof::NeverStarted);
            run.exit = Some(Exit::Requested);
        }
    })
}

/// Nobody has taken the node.
fn owner_unchanged(node: &NodeId, cache: &Cache) -> Precondition {
    records::unchanged::<NodeOwner>(node, cache.node_owners.get(node).map(|o| o.version))
}

/// What a look at a run is made of.
struct Look<'a> {
    cluster: ClusterId,
    cache: &'a Cache,
    run: &'a Versioned<Run>,
    assignment: Option<&'a Versioned<Assignment>>,
    domain: Option<&'a Domain>,
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
    // What cannot be read says nothing, above all not that the guest should be off.
    if cache.damaged.contains_key(&Assignment::key(&at)) {
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
        domain: seen_node.domain(vm, run.epoch),
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
    if let Some(began) = run.began.as_ref().filter(|_| run.phase.may_run()) {
        if began.host != host.host {
            return look.elsewhere(began, host);
        }
        if began.boot_id != host.boot_id {
            return look.rebooted(began, host);
        }
    }
    let begins = matches!(run.phase, RunPhase::Assigned | RunPhase::Starting);
    let recorded = || cache.node_status.get(node).and_then(|s| s.watchdog_secs);
    if begins
        && world.self_fencing.contains(node)
        && (seen_node.watchdog.is_none() || recorded().is_none())
    {
        return Ok(Plan::nothing());
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
        RunPhase::Assigned => look.assigned(host),
        RunPhase::Starting => look.starting(),
        RunPhase::Running | RunPhase::Paused | RunPhase::Unknown => look.up(),
        RunPhase::Stopping => look.stopping(),
        RunPhase::Stopped => Ok(Plan::nothing()),
    }
}

/// Writes the phase after `event`, and what `change` adds.
fn advance(
    old: &Versioned<Run>,
    event: RunEvent,
    cache: &Cache,
    now: Timestamp,
    change: impl FnOnce(&mut Run),
) -> Result<Plan> {
    let mut run = old.value.clone();
    let before = run.phase;
    run.phase = run.phase.on(event)?;
    if run.phase != before {
        run.since = now;
        run.message.clear();
    }
    change(&mut run);
    let at = (run.node.clone(), run.vm);
    let mut draft = Draft::new()
        .unchanged::<Run>(&at, Some(old.version))
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
            .map(|e| format!(": {e}"))
            .unwrap_or_default();
        let message = format!("{} on {} (epoch {}){exit}", run.phase, run.node, run.epoch);
        let project = cache.vms.get(&run.vm).map(|vm| &vm.meta.project);
        draft = draft.event(ObjectRef::Vm(run.vm), project, reason, message);
    }
    Ok(Plan::commit(draft))
}

impl Look<'_> {
    fn id(&self) -> DomainId {
        DomainId {
            cluster: self.cluster,
            vm: self.run.vm,
            epoch: self.run.epoch,
        }
    }

    /// Under which ownership of the node this look is.
    fn owned(&self) -> Revision {
        let owner = self.cache.node_owners.get(&self.run.node);
        owner.map(|owner| owner.version).unwrap_or_default()
    }

    fn state(&self) -> Option<&DomainState> {
        self.domain.map(|d| &d.state)
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
        advance(self.run, event, self.cache, self.now, change)
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

    /// The node's name stands for another machine now: nothing that it says is about this run.
    fn elsewhere(&self, began: &HostBoot, now: &HostInfo) -> Result<Plan> {
        if self.run.phase == RunPhase::Unknown {
            return Ok(Plan::nothing());
        }
        self.write(RunEvent::LoseSight, |run| {
            run.message = format!(
                "it began on host {}, and {} is host {} now: bring that host back, or confirm that the VM has stopped",
                began.host, run.node, now.host
            );
        })
    }

    /// The guest went with the host's last boot. Its volumes are still attached; a start that outlived the boot may even
    /// have left a held domain.
    fn rebooted(&self, began: &HostBoot, now: &HostInfo) -> Result<Plan> {
        let retired = self.seen.and_then(|s| s.retired.as_ref());
        if retired.is_none_or(|(epoch, _)| *epoch != self.run.epoch) {
            return Ok(self.retire(true));
        }
        let proof = StopProof::HostRebooted {
            was: began.boot_id.clone(),
            now: now.boot_id.clone(),
        };
        let detail = "the host rebooted".to_owned();
        self.ended(proof, Exit::Crashed { detail })
    }

    fn abandoned(&self) -> Result<Plan> {
        self.write(RunEvent::Abandon, |run| {
            run.proof = Some(StopProof::NeverStarted);
            run.exit = Some(Exit::Requested);
        })
    }

    fn assigned(&self, host: &HostInfo) -> Result<Plan> {
        self.write(RunEvent::Begin, |run| {
            run.began = Some(HostBoot {
                host: host.host,
                boot_id: host.boot_id.clone(),
            });
        })
    }

    fn starting(&self) -> Result<Plan> {
        let Some(assignment) = self.assignment.filter(|a| a.power.state != Power::Off) else {
            return self.stop(Exit::Requested);
        };
        match self.state() {
            Some(DomainState::Running) => return self.ran(),
            Some(DomainState::Paused)
                if self.wanted() == Power::Paused && self.was_started_here() =>
            {
                // The start's last step has been done: it stays held because that was asked for.
                return self.write(RunEvent::Ran, |run| run.started_at = Some(self.now));
            }
            Some(DomainState::Ended(exit)) => return self.stop(exit.clone()),
            Some(DomainState::Unknown(why)) => {
                return self.write(RunEvent::LoseSight, |run| run.message = why.clone());
            }
            _ => {}
        }
        if let Some(error) = self.error()
            && (!error.retryable || self.failures >= START_TRIES)
        {
            return self.stop(Exit::StartFailed {
                detail: error.detail.clone(),
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
            owned: self.owned(),
            began: self.run.began.clone(),
            assignment: Box::new(assignment.value.clone()),
            nics,
        }))
    }

    /// Why the last start or adaptation of this epoch failed.
    fn error(&self) -> Option<&RunError> {
        let error = self.seen.and_then(|s| s.error.as_ref());
        error.filter(|e| e.epoch == self.run.epoch)
    }

    /// Whether a start of this epoch has gone to its end.
    fn was_started_here(&self) -> bool {
        let adapted = self.seen.and_then(|s| s.adapted);
        adapted.is_some_and(|(epoch, _)| epoch == self.run.epoch)
    }

    fn ran(&self) -> Result<Plan> {
        self.write(RunEvent::Ran, |run| {
            run.started_at.get_or_insert(self.now);
        })
    }

    /// Running, paused, or just seen again.
    fn up(&self) -> Result<Plan> {
        let phase = self.run.phase;
        let (node, id) = (self.run.node.clone(), self.id());
        match self.state() {
            None => return Ok(self.retire(false)),
            Some(DomainState::Ended(exit)) => return self.stop(exit.clone()),
            Some(DomainState::Unknown(_)) if phase == RunPhase::Unknown => {
                return Ok(self.unknown());
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
                let owned = self.owned();
                return Ok(Plan::command(Command::Resume { node, id, owned }));
            }
            Power::Paused if phase == RunPhase::Running => {
                return Ok(Plan::command(Command::Pause { node, id }));
            }
            Power::On | Power::Paused => {}
        }
        self.adapt()
    }

    /// Nobody can tell what the domain does. One that should be off, and had its time, is killed all the same.
    fn unknown(&self) -> Plan {
        if self.wanted() != Power::Off {
            return Plan::wake_in(self.now, ASK_AGAIN);
        }
        match self.time_to_kill() {
            Some(at) if self.now < at => Plan::wake_at(at),
            _ => self.retire(true),
        }
    }

    /// When a guest that should be off is ended: at once if none.
    fn time_to_kill(&self) -> Option<Timestamp> {
        let requested = matches!(self.run.exit, Some(Exit::Requested) | None);
        let assignment = self.assignment.filter(|a| requested && !a.power.force)?;
        let grace = Duration::from_secs(assignment.machine.stop_grace_secs.into());
        let end = lasts(self.run.since, grace, self.now);
        Some(end.unwrap_or_else(|| self.run.since.plus(grace).min(self.now)))
    }

    /// Makes the devices those of the assignment: when that changed, and when the domain has others. An owner that stood
    /// still between its look at the store and what it does then, while another took the node, may give a device that was
    /// taken back meanwhile, and take one that was given.
    fn adapt(&self) -> Result<Plan> {
        let Some(assignment) = self.assignment else {
            return Ok(Plan::nothing());
        };
        let differs = self.differs(assignment);
        let settled = assignment.generation == self.run.generation && !differs;
        if settled && self.run.message.is_empty() {
            return Ok(Plan::nothing());
        }
        let adapted =
            self.seen.and_then(|s| s.adapted) == Some((self.run.epoch, assignment.generation));
        // A driver that says it has done so, and shows otherwise.
        if let Some(at) = self.seen.and_then(|s| s.adapted_at)
            && differs
            && adapted
            && self.now.since(at) < ASK_AGAIN
        {
            return Ok(Plan::wake_at(at.plus(ASK_AGAIN)));
        }
        let event = if self.run.phase == RunPhase::Paused {
            RunEvent::Held
        } else {
            RunEvent::Ran
        };
        if settled || (adapted && !differs) {
            return self.write(event, |run| {
                run.generation = assignment.generation;
                run.message.clear();
            });
        }
        let error = self.error();
        if let Some(error) = error.filter(|e| e.generation == assignment.generation) {
            if self.run.message != error.detail {
                return self.write(event, |run| run.message.clone_from(&error.detail));
            }
            // Only another spec can help.
            if !error.retryable {
                return Ok(Plan::nothing());
            }
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
            owned: self.owned(),
            assignment: Box::new(assignment.value.clone()),
            since: self.run.generation,
            nics,
            leaving: self.leaving(assignment),
        }))
    }

    /// Whether the domain's devices are others than those that the assignment names: also after a start, which may have
    /// found a domain that an earlier assignment made.
    fn differs(&self, assignment: &Assignment) -> bool {
        self.domain.is_some_and(|domain| {
            let (disks, ports) = (|| assignment.guest_disks(), &assignment.ports);
            domain.disks.len() != disks().count()
                || domain.nics.len() != ports.len()
                || !disks().all(|d| domain.disks.contains(&d.volume))
                || !ports.iter().all(|p| domain.nics.contains(&p.port))
        })
    }

    /// The volumes that the assignment does not name, and that this epoch may have attached or the domain has.
    fn leaving(&self, assignment: &Assignment) -> Vec<(PoolId, VolumeId)> {
        let mut all = self.disks();
        let shown = self.domain.iter().flat_map(|d| &d.disks);
        for volume in shown {
            if let Some(known) = self.cache.volumes.get(volume)
                && all.iter().all(|(_, v)| v != volume)
            {
                all.push((known.pool.clone(), *volume));
            }
        }
        all.retain(|(_, volume)| assignment.disks.iter().all(|d| d.volume != *volume));
        all
    }

    fn stopping(&self) -> Result<Plan> {
        let (node, id) = (self.run.node.clone(), self.id());
        match self.state() {
            Some(DomainState::Unknown(_)) if self.time_to_kill().is_none() => {
                return Ok(self.retire(true));
            }
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
        let Some(killed_at) = self.time_to_kill().filter(|at| self.now < *at) else {
            return Ok(self.retire(true));
        };
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
