//! The runtime's intake of ended tasks: commits, and what commands told of the world.

use std::collections::BTreeMap;

use super::executor::{Completion, Report, domain_of};
use super::plan::{Command, ObjectKey};
use super::runtime::{Ended, Runtime};
use super::storage::Outcome;
use super::world::SeenPool;
use crate::driver::DomainOwner;
use crate::error::{ErrorKind, Result};
use crate::model::{NodeId, VmId};
use crate::time::Timestamp;

impl Runtime {
    pub(super) fn take_ended(&mut self, ended: Result<Ended, tokio::task::JoinError>) {
        let now = self.parts.clock.now();
        match ended {
            Ok(Ended::Command(completion)) => self.take_completion(*completion, now),
            Ok(Ended::Commit { key, result }) => {
                if let ObjectKey::Vm(vm) = key {
                    self.placing.give_back(vm);
                }
                match result {
                    Ok(revision) => {
                        self.queue.succeeded(&key);
                        self.outcomes.remove(&key);
                        let has = *self.parts.progress.borrow();
                        if has >= revision {
                            self.queue.release(&key);
                        } else {
                            self.settling.insert((revision, key));
                        }
                    }
                    // A conflict means that a newer view is on its way.
                    Err(error) => {
                        if error.kind() != ErrorKind::Conflict {
                            tracing::warn!(%error, ?key, "a commit failed");
                        }
                        self.queue.release_later(&key, now);
                    }
                }
            }
            Err(error) if error.is_panic() => tracing::error!(%error, "a task panicked"),
            Err(_) => {}
        }
    }

    fn take_completion(&mut self, completion: Completion, now: Timestamp) {
        let Completion {
            key,
            command,
            result,
            seen,
        } = completion;
        if let Err(error) = &result {
            tracing::debug!(%error, ?key, "a command failed");
        }
        if let Some((node, id)) = domain_of(&command) {
            let run = self.world.runs.entry((node.clone(), id.vm)).or_default();
            run.touched += 1;
            if let Some(seen) = seen {
                if let Some(host) = self.world.nodes.get_mut(node) {
                    host.set(id, seen);
                }
            } else if let Some(host) = self.world.nodes.get_mut(node) {
                host.stale = true;
                self.queue.push(ObjectKey::Node(node.clone()));
            }
            match (&result, &command) {
                (Err(error), Command::Start { .. } | Command::Adapt { .. }) => {
                    run.error = Some((
                        id.epoch,
                        error.report(),
                        error.is_retryable() || error.kind() == ErrorKind::OutcomeUnknown,
                    ));
                }
                (Ok(_), Command::Start { assignment, .. } | Command::Adapt { assignment, .. }) => {
                    run.error = None;
                    run.adapted = Some((id.epoch, assignment.generation));
                }
                (Ok(Report::Retired(proof)), Command::Retire { .. }) => {
                    run.retired = Some((id.epoch, proof.clone()));
                }
                (_, Command::Stop { .. }) => run.asked_at = Some(now),
                _ => {}
            }
        }
        let failed = result.is_err();
        match (&command, result) {
            (Command::Observe { node }, result) => self.take_observation(node, result, now),
            (Command::Inventory { pool }, Ok(Report::Inventory(list))) => {
                let ours = list
                    .into_iter()
                    .filter(|a| a.cluster == self.parts.cluster)
                    .map(|a| a.id)
                    .collect();
                self.world.pools.insert(
                    pool.clone(),
                    SeenPool {
                        artefacts: ours,
                        at: now,
                        listed: true,
                    },
                );
            }
            (Command::Delete { pool, id }, Ok(_)) => {
                if let Some(seen) = self.world.pools.get_mut(pool) {
                    seen.artefacts.remove(id);
                }
                self.outcomes.insert(key.clone(), Outcome::Gone);
            }
            (_, Ok(Report::Sized(size))) => {
                drop(self.outcomes.insert(key.clone(), Outcome::Done(Some(size))));
            }
            (Command::TakeSnapshot { .. } | Command::Act { .. }, Ok(_)) => {
                self.outcomes.insert(key.clone(), Outcome::Done(None));
            }
            (Command::DropSnapshot { .. }, Ok(_)) => {
                drop(self.outcomes.insert(key.clone(), Outcome::Gone));
            }
            (
                Command::Create { .. }
                | Command::Grow { .. }
                | Command::TakeSnapshot { .. }
                | Command::Act { .. },
                Err(error),
            ) => {
                let retryable = error.is_retryable()
                    || matches!(
                        error.kind(),
                        ErrorKind::OutcomeUnknown
                            | ErrorKind::DeadlineExceeded
                            | ErrorKind::Internal
                    );
                self.outcomes.insert(
                    key.clone(),
                    Outcome::Failed {
                        reason: error.report(),
                        retryable,
                    },
                );
            }
            _ => {}
        }
        if failed {
            self.queue.release_later(&key, now);
        } else {
            self.queue.succeeded(&key);
            self.queue.release(&key);
        }
    }

    fn take_observation(&mut self, node: &NodeId, result: Result<Report>, now: Timestamp) {
        let seen = self.world.nodes.entry(node.clone()).or_default();
        seen.at = now;
        seen.stale = false;
        match result {
            Ok(Report::Observed(host, domains)) => {
                seen.host = Some(host);
                seen.error = None;
                seen.foreign.clear();
                let mut listed = BTreeMap::new();
                for domain in domains {
                    match &domain.owner {
                        DomainOwner::NovaCron(id) if id.cluster == self.parts.cluster => {
                            listed.insert((id.vm, id.epoch), domain);
                        }
                        DomainOwner::NovaCron(id) => drop(
                            seen.foreign
                                .insert(format!("{id} of cluster {}", id.cluster)),
                        ),
                        DomainOwner::Foreign(name) => drop(seen.foreign.insert(name.clone())),
                    }
                }
                // What a command touches at this moment is known better by that command.
                let busy = |vm: VmId| self.queue.is_busy(&ObjectKey::Run(node.clone(), vm));
                let mut keep: BTreeMap<_, _> = std::mem::take(&mut seen.domains)
                    .into_iter()
                    .filter(|((vm, _), _)| busy(*vm))
                    .collect();
                keep.extend(listed.into_iter().filter(|((vm, _), _)| !busy(*vm)));
                seen.domains = keep;
                seen.listed = true;
            }
            Err(error) => {
                seen.host = None;
                seen.listed = false;
                seen.error = Some(error.report());
            }
            Ok(_) => {}
        }
        let cache = self
            .parts
            .cache
            .read()
            .unwrap_or_else(std::sync::PoisonError::into_inner);
        for (vm, _) in cache.runs_on(node) {
            self.queue.push(ObjectKey::Run(node.clone(), vm));
        }
    }
}
