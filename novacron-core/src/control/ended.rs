//! The runtime's intake of ended tasks: commits, and what commands told of the world.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::PoisonError;

use super::executor::{Completion, Report, domain_of};
use super::plan::{Command, ObjectKey, Outcome};
use super::runtime::{Ended, Runtime};
use super::session::SLACK;
use super::world::{Leftover, RunError, SeenLease};
use crate::driver::{ArtefactId, DomainOwner};
use crate::error::{Error, ErrorKind, Result};
use crate::model::{NodeId, PoolId, VmId};
use crate::time::{Clock as _, Timestamp};

impl Runtime {
    pub(super) fn take_ended(&mut self, ended: Result<Ended, tokio::task::JoinError>) {
        let now = self.parts.clock.now();
        match ended {
            Ok(Ended::Command(completion)) => self.take_completion(*completion, now),
            Ok(Ended::Commit { key, result }) => match result {
                Ok(revision) => {
                    // What was made, or given up, is settled: what is asked of it next begins anew.
                    if key.is_made() {
                        self.queue.succeeded(&key);
                    }
                    self.outcomes.remove(&key);
                    self.settling.insert((revision, key));
                    let has = *self.parts.progress.borrow();
                    self.settle(has);
                }
                Err(error) => {
                    if let ObjectKey::Vm(vm) = key {
                        self.placing.give_back(vm);
                    }
                    if error.kind() == ErrorKind::Conflict {
                        self.queue.release_outdated(&key, now);
                    } else {
                        tracing::warn!(%error, ?key, "a commit failed");
                        self.queue.release_later(&key, now);
                    }
                }
            },
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
        self.note(&key, result.as_ref().err());
        if let Some((node, id)) = domain_of(&command) {
            let run = self.world.runs.entry((node.clone(), id.vm)).or_default();
            let host = self.world.nodes.entry(node.clone()).or_default();
            host.active = true;
            let observations = host.observations;
            run.touched = observations;
            if let Err(error) = &result
                && let Some(host) = self.world.nodes.get_mut(node)
            {
                let unknown = error.kind() == ErrorKind::OutcomeUnknown;
                if unknown {
                    // What may still happen shows in a list that begins after this.
                    run.unsettled = Some(observations + 1);
                }
                // A start may have failed over what the host is by now: it may have booted anew.
                if unknown || matches!(command, Command::Start { .. }) {
                    host.stale = true;
                    self.queue.push(ObjectKey::Node(node.clone()));
                }
            }
            if let Some(seen) = seen {
                if let Some(host) = self.world.nodes.get_mut(node) {
                    host.set(id, seen);
                }
            } else if let Some(host) = self.world.nodes.get_mut(node) {
                host.stale = true;
                self.queue.push(ObjectKey::Node(node.clone()));
            }
            match (&result, &command) {
                (
                    Err(error),
                    Command::Start { assignment, .. } | Command::Adapt { assignment, .. },
                ) => {
                    run.error = Some(RunError {
                        epoch: id.epoch,
                        generation: assignment.generation,
                        detail: error.report(),
                        retryable: error.is_retryable()
                            || matches!(
                                error.kind(),
                                ErrorKind::OutcomeUnknown | ErrorKind::DeadlineExceeded
                            ),
                    });
                }
                (Ok(_), Command::Start { assignment, .. } | Command::Adapt { assignment, .. }) => {
                    run.error = None;
                    run.adapted = Some((id.epoch, assignment.generation));
                    run.adapted_at = matches!(command, Command::Adapt { .. }).then_some(now);
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
            (Command::Inventory { pool }, result) => self.take_inventory(pool, result, now),
            (Command::Fence { of, .. }, Ok(Report::Fenced(receipt))) => {
                let fenced = Outcome::Fenced(receipt, *of);
                self.outcomes.insert(key.clone(), fenced);
            }
            (Command::ArmWatchdog { node }, Ok(Report::Armed(timeout))) => {
                let seen = self.world.nodes.entry(node.clone()).or_default();
                seen.watchdog = Some(timeout);
            }
            (Command::CheckMember { of, .. }, Ok(Report::Lease(None))) => {
                self.outcomes.insert(key.clone(), Outcome::Lapsed(*of));
            }
            (Command::CheckMember { member, .. }, Ok(Report::Lease(Some(held)))) => {
                let lease = SeenLease {
                    runs_out: now.plus(held.remaining + SLACK),
                    clock_off_secs: held.clock_off_secs,
                };
                self.world.leases.insert(*member, lease);
            }
            (Command::Forget(_), Ok(Report::Forgotten(at))) => self.world.rounds.go_on_at(at),
            (Command::Sweep { node, id }, _) => {
                if let Some(seen) = self.world.nodes.get_mut(node) {
                    seen.tried.now(Leftover::Domain(id.vm, id.epoch), now);
                }
            }
            (Command::Delete { pool, id }, result) => {
                if let Some(seen) = self.world.pools.get_mut(pool) {
                    seen.tried.now(*id, now);
                    if result.is_ok() {
                        seen.strays.remove(id);
                    }
                }
                if result.is_ok() && !matches!(key, ObjectKey::Pool(_)) {
                    self.outcomes.insert(key.clone(), Outcome::Gone);
                }
            }
            (Command::Detach { by, .. }, Ok(_)) => {
                self.outcomes
                    .insert(key.clone(), Outcome::Detached(by.epoch));
            }
            (Command::BindPort { .. }, Ok(Report::Bound(binding))) => {
                drop(self.outcomes.insert(key.clone(), Outcome::Bound(binding)));
            }
            (Command::ReleasePort { node, port, epoch }, result) => {
                if let Some(seen) = self.world.nodes.get_mut(node) {
                    seen.tried.now(Leftover::Port(*port, *epoch), now);
                    if result.is_ok() {
                        seen.ports
                            .retain(|held| held.port != *port || held.epoch != *epoch);
                    }
                }
                if result.is_ok() && matches!(key, ObjectKey::Port(_)) {
                    self.outcomes.insert(key.clone(), Outcome::Gone);
                }
            }
            (_, Ok(Report::Sized(size))) => {
                drop(self.outcomes.insert(key.clone(), Outcome::Done(Some(size))));
            }
            (Command::TakeSnapshot { .. } | Command::Act { .. }, Ok(_)) => {
                self.outcomes.insert(key.clone(), Outcome::Done(None));
            }
            (Command::DropSnapshot { because, .. }, Ok(_)) => {
                let undone = because.clone().map(Outcome::Undone);
                self.outcomes
                    .insert(key.clone(), undone.unwrap_or(Outcome::Gone));
            }
            (
                Command::Create { .. }
                | Command::Grow { .. }
                | Command::TakeSnapshot { .. }
                | Command::BindPort { .. }
                | Command::Act { .. },
                Err(error),
            ) => {
                // Its guest went, or came, between the look and the command: it is planned anew.
                let outdated =
                    matches!(command, Command::Grow { .. } | Command::TakeSnapshot { .. })
                        && matches!(
                            error.kind(),
                            ErrorKind::FailedPrecondition | ErrorKind::NotFound
                        );
                let retryable = error.is_retryable()
                    || outdated
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
        // A host or a pool has its own rhythm, so that no failure there delays the next look at it.
        let own_rhythm = matches!(key, ObjectKey::Node(_) | ObjectKey::Pool(_))
            && !matches!(command, Command::Fence { .. } | Command::ArmWatchdog { .. });
        if failed && !own_rhythm {
            self.queue.release_later(&key, now);
        } else {
            self.queue.succeeded(&key);
            self.queue.release(&key);
        }
    }

    /// Remembers why an object's last command failed, for whoever asks how its operation goes.
    pub(super) fn note(&mut self, key: &ObjectKey, error: Option<&Error>) {
        let cache = &self.parts.cache;
        let read = cache.read().unwrap_or_else(PoisonError::into_inner);
        if error.is_none() && !read.trouble.contains_key(key) {
            return;
        }
        drop(read);
        let mut cache = cache.write().unwrap_or_else(PoisonError::into_inner);
        match error {
            Some(error) => drop(cache.trouble.insert(key.clone(), error.report())),
            None => drop(cache.trouble.remove(key)),
        }
        drop(cache);
        self.tell_soon();
    }

    /// Takes in what a pool holds.
    fn take_inventory(&mut self, pool: &PoolId, result: Result<Report>, now: Timestamp) {
        let cache = self
            .parts
            .cache
            .read()
            .unwrap_or_else(PoisonError::into_inner);
        let seen = self.world.pools.entry(pool.clone()).or_default();
        seen.at = now;
        seen.tried.prune(self.parts.resync, now);
        match result {
            Ok(Report::Inventory(info, list)) => {
                seen.info = Some(info);
                let ours = list.into_iter().filter(|a| a.cluster == self.parts.cluster);
                let strays = ours.map(|a| a.id).filter(|id| match id {
                    ArtefactId::Volume(volume) => !cache.volumes.contains_key(volume),
                    ArtefactId::Image(image) => !cache.images.contains_key(image),
                });
                seen.strays = strays.collect();
                seen.error = None;
            }
            Ok(_) => {}
            Err(error) => seen.error = Some(error.report()),
        }
    }

    /// Takes in what a host holds, and has the runs looked at for which that is news.
    fn take_observation(&mut self, node: &NodeId, result: Result<Report>, now: Timestamp) {
        let cache = self
            .parts
            .cache
            .read()
            .unwrap_or_else(PoisonError::into_inner);
        let seen = self.world.nodes.entry(node.clone()).or_default();
        seen.at = now;
        seen.tried.prune(self.parts.resync, now);
        let mut news = BTreeSet::new();
        let all_are_news;
        match result {
            Ok(Report::Observed(host, domains, ports)) => {
                all_are_news = seen.host.as_ref() != Some(&host) || !seen.listed;
                seen.host = Some(host);
                if let Some(ports) = ports {
                    seen.ports = ports
                        .into_iter()
                        .filter(|p| p.cluster == self.parts.cluster)
                        .collect();
                }
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
                let mut over = Vec::new();
                let mut touched = BTreeSet::new();
                if std::mem::take(&mut seen.active) {
                    let first = (node.clone(), VmId::from_uuid(uuid::Uuid::nil()));
                    let runs = self.world.runs.range_mut(first..);
                    for (at, run) in runs.take_while(|((n, _), _)| n == node) {
                        if run.unsettled.is_some_and(|at| at <= seen.observations) {
                            run.unsettled = None;
                            news.insert(at.1);
                        }
                        if run.touched >= seen.observations {
                            touched.insert(at.1);
                        } else if run.unsettled.is_none() && !cache.runs.contains_key(at) {
                            // No record names it, and no list that is still to come is older than its last command.
                            over.push(at.1);
                        }
                        seen.active |= run.touched >= seen.observations || run.unsettled.is_some();
                    }
                }
                // What a command touches at this moment, or has since the list was asked for, it knows better.
                let queue = &self.queue;
                let busy = |vm: VmId| {
                    touched.contains(&vm) || queue.is_busy(&ObjectKey::Run(node.clone(), vm))
                };
                for vm in over {
                    if busy(vm) {
                        seen.active = true;
                    } else {
                        self.world.runs.remove(&(node.clone(), vm));
                    }
                }
                let before = std::mem::take(&mut seen.domains);
                let known = before.iter().filter(|((vm, _), _)| busy(*vm));
                let known: Vec<_> = known.map(|(id, d)| (*id, d.clone())).collect();
                listed.retain(|(vm, _), _| !busy(*vm));
                listed.extend(known);
                let changed = listed
                    .iter()
                    .filter(|(id, domain)| before.get(id) != Some(domain));
                news.extend(changed.map(|((vm, _), _)| *vm));
                let gone = before.keys().filter(|id| !listed.contains_key(id));
                news.extend(gone.map(|(vm, _)| *vm));
                seen.domains = listed;
                seen.listed = true;
            }
            Err(error) => {
                let report = error.report();
                all_are_news = seen.host.is_some() || seen.error.as_ref() != Some(&report);
                seen.host = None;
                seen.listed = false;
                seen.error = Some(report);
            }
            Ok(_) => return,
        }
        if all_are_news {
            news.extend(cache.runs_on(node).map(|(vm, _)| vm));
        }
        for vm in news {
            self.queue.push(ObjectKey::Run(node.clone(), vm));
        }
    }
}
