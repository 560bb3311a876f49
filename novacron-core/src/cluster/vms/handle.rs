//! Changing what a VM should be.

use std::collections::BTreeSet;

use super::super::check;
use super::super::object::find;
use super::super::operations::OperationHandle;
use super::super::request::{problem, refuse};
use super::create::resolved;
use super::{VmHandle, attachable};
use crate::control::cache::Cache;
use crate::control::operation::phase_of;
use crate::control::part::{self, Part};
use crate::control::plan::Draft;
use crate::control::resolve::started_with;
use crate::error::{Error, ErrorKind, Result};
use crate::lifecycle::{Phase, RunEvent, RunPhase};
use crate::model::{
    Action, ActionId, Capability, Claim, Disk, DiskBus, DiskOptions, DiskRole, Effect, Exit,
    Machine, Name, NodeId, OperationKind, Power, PowerRequest, Run, Snapshot, SnapshotId,
    StopProof, Verb, Vm, VmId, VmSettings, Volume, VolumeId,
};

/// The next generation of the spec, for an operation to follow.
pub(super) fn next_generation(vm: &mut Vm) -> OperationKind {
    vm.meta.generation += 1;
    OperationKind::Update {
        generation: vm.meta.generation,
    }
}

/// Where a VM is started, and as what.
pub(super) struct Place<'c> {
    node: &'c NodeId,
    can: &'c BTreeSet<Capability>,
    machine: &'c Machine,
}

pub(super) fn running_on(vm: VmId, cache: &Cache) -> Option<Place<'_>> {
    let machine = started_with(vm, cache)?;
    let node = cache.claims.get(&vm)?.place.node()?;
    let host = cache.node_status.get(node)?.host.as_ref()?;
    Some(Place {
        node,
        can: &host.capabilities.can,
        machine,
    })
}

impl Place<'_> {
    pub(super) fn lacking(&self, needs: impl IntoIterator<Item = Capability>) -> Option<String> {
        let mut needs = needs.into_iter();
        let lacking = needs.find(|need| !self.can.contains(need))?;
        Some(format!(
            "the VM is started on {}, which lacks {lacking}",
            self.node
        ))
    }

    /// Whether there is none for another medium, once it has the others of the machine that is wanted.
    fn has_no_free_drive(&self, wanted: &Machine) -> bool {
        // One that is given to it differently with its next start is what it was started as.
        let media = wanted.guest_disks().filter(|disk| {
            let started = self.machine.disk(disk.volume);
            started.unwrap_or(&disk.options).bus == DiskBus::Cdrom
        });
        media.count() >= usize::from(self.machine.hardware.cdroms)
    }

    /// Why the started VM, which is to be this machine, can be given no such disk.
    fn no_disk(&self, options: &DiskOptions, wanted: &Machine) -> Option<String> {
        let on_scsi = |disk: &Disk| disk.options.bus == DiskBus::Scsi;
        let has_scsi_disk = self.machine.guest_disks().any(on_scsi);
        if let Some(why) = options.bus.takes_none_now(has_scsi_disk) {
            return Some(why.to_owned());
        }
        match options.bus {
            DiskBus::Cdrom if self.has_no_free_drive(wanted) => Some(format!(
                "the VM was started with {} CD-ROM drives, and each has a medium",
                self.machine.hardware.cdroms
            )),
            _ => self.lacking(options.needs()),
        }
    }
}

/// The draft of a change that needs this of the host: only made where the VM is started now, for the look was at that host.
pub(super) fn needing(
    needs: impl IntoIterator<Item = Capability>,
    vm: VmId,
    draft: Draft,
    cache: &Cache,
) -> Draft {
    match needs.into_iter().next() {
        Some(_) => started_as_seen(vm, draft, cache),
        None => draft,
    }
}

/// The draft of a change that is only made if the VM is started where, and as what, the cache shows it.
pub(super) fn started_as_seen(vm: VmId, draft: Draft, cache: &Cache) -> Draft {
    let claim = cache.claims.get(&vm).map(|claim| claim.version);
    draft.unchanged::<Claim>(&vm, claim)
}

pub(super) fn no_such_disk(verb: &'static str, disk: &str) -> Error {
    Error::new(ErrorKind::NotFound, verb, "the VM has no such disk").with("disk", disk)
}

impl VmHandle {
    async fn power(
        &self,
        verb: &'static str,
        state: Power,
        force: bool,
    ) -> Result<OperationHandle> {
        self.cluster
            .change::<Vm>(verb, self.id, &(), |vm, draft, _| {
                let (serial, before) = (vm.power.serial + 1, vm.power.state);
                vm.power = PowerRequest {
                    state,
                    serial,
                    force,
                };
                Ok((draft, OperationKind::Power { serial, before }))
            })
            .await
    }

    /// Starts it, or lets its vCPUs run again.
    ///
    /// # Errors
    /// [`ErrorKind::NotFound`]; [`ErrorKind::FailedPrecondition`] when it is being deleted.
    pub async fn start(&self) -> Result<OperationHandle> {
        self.power("vm.start", Power::On, false).await
    }

    /// Asks the guest to power off; kills it after its grace (`stop_grace_secs` of its spec).
    ///
    /// # Errors
    /// As [`VmHandle::start`].
    pub async fn stop(&self) -> Result<OperationHandle> {
        self.power("vm.stop", Power::Off, false).await
    }

    /// Ends it at once.
    ///
    /// # Errors
    /// As [`VmHandle::start`].
    pub async fn kill(&self) -> Result<OperationHandle> {
        self.power("vm.kill", Power::Off, true).await
    }

    /// Holds its vCPUs; its memory stays. [`VmHandle::start`] lets them run again.
    ///
    /// # Errors
    /// As [`VmHandle::start`].
    pub async fn pause(&self) -> Result<OperationHandle> {
        self.power("vm.pause", Power::Paused, false).await
    }

    /// Gives it a volume under a name that the guest sees as the disk's serial number, while it runs if it runs.
    /// A VM that is started takes no disk on SATA, one on SCSI only if it was started with one, and a medium only if it was
    /// started with a CD-ROM drive that has none.
    ///
    /// # Errors
    /// As [`VmHandle::start`]; [`ErrorKind::Invalid`] when the disk's name is taken or wrong, the VM has too many disks,
    /// or the volume cannot be attached.
    pub async fn attach(
        &self,
        disk: &str,
        volume: VolumeId,
        options: DiskOptions,
    ) -> Result<OperationHandle> {
        const VERB: &str = "vm.attach";
        let project = &self.cluster.options().project;
        let change = |vm: &mut Vm, draft: Draft, cache: &Cache| {
            let mut problems = Vec::new();
            if let Some(message) = check::disk_name(disk) {
                problems.push(problem("disk", message));
            } else if vm.machine.disks.iter().any(|d| d.name == disk) {
                problems.push(problem("disk", format!("the VM has a disk {disk:?}")));
            }
            if vm.machine.guest_disks().count() >= check::MAX_DISKS {
                let message = format!("the VM has {} disks, the most it can", check::MAX_DISKS);
                problems.push(problem("disk", message));
            }
            let found = if vm.machine.disks.iter().any(|d| d.volume == volume) {
                Err(format!("volume {volume} is attached to this VM"))
            } else if cache
                .volume_claims
                .get(&volume)
                .is_some_and(|c| c.vm == self.id)
            {
                Err(format!(
                    "volume {volume} is still being taken back from this VM"
                ))
            } else {
                attachable(cache, project, volume, Some(self.id))
            };
            let draft = match found {
                Ok(found) => draft.touch::<Volume>(&volume, found)?,
                Err(message) => {
                    problems.push(problem("volume", message));
                    draft
                }
            };
            problems.extend(options.problems().into_iter().map(|p| p.under("options")));
            let all = vm.machine.disks.iter().map(|d| &d.options);
            let too_many = vm.machine.hardware.too_many(all.chain([&options]));
            problems.extend(too_many.map(|why| problem("options.bus", why)));
            let place = running_on(vm.id, cache);
            let not_now = place.and_then(|place| place.no_disk(&options, &vm.machine));
            problems.extend(not_now.map(|why| problem("options", why)));
            refuse(VERB, problems)?;
            let draft = match options.bus {
                DiskBus::Virtio | DiskBus::Nvme => draft,
                // Between this look and the commit no start may begin that knows nothing of the disk.
                DiskBus::Scsi | DiskBus::Sata | DiskBus::Cdrom => {
                    started_as_seen(vm.id, draft, cache)
                }
            };
            vm.machine.disks.push(Disk {
                name: disk.to_owned(),
                volume,
                delete_with_vm: false,
                options: options.clone(),
                role: DiskRole::Disk,
            });
            Ok((draft, next_generation(vm)))
        };
        let request = (disk, volume, &options);
        self.cluster
            .change::<Vm>(VERB, self.id, &request, change)
            .await
    }

    /// Takes a volume back; it stays, also one that was made with the VM.
    ///
    /// # Errors
    /// As [`VmHandle::start`]; [`ErrorKind::NotFound`] also when the VM has no such disk.
    pub async fn detach(&self, disk: &str) -> Result<OperationHandle> {
        const VERB: &str = "vm.detach";
        self.cluster
            .change::<Vm>(VERB, self.id, &disk, |vm, draft, _| {
                let before = vm.machine.disks.len();
                let is_it = |d: &Disk| d.name == disk && d.role == DiskRole::Disk;
                vm.machine.disks.retain(|d| !is_it(d));
                if vm.machine.disks.len() == before {
                    return Err(no_such_disk(VERB, disk));
                }
                Ok((draft, next_generation(vm)))
            })
            .await
    }

    /// Changes how it is given a disk. [`DiskOptions::changes`] says beforehand what a running guest is given at once (the
    /// limits) and what waits for the next start.
    ///
    /// # Errors
    /// As [`VmHandle::start`]; [`ErrorKind::NotFound`] also when the VM has no such disk; [`ErrorKind::Invalid`] with
    /// every problem.
    pub async fn set_disk(&self, disk: &str, options: DiskOptions) -> Result<OperationHandle> {
        const VERB: &str = "vm.set-disk";
        let request = (disk, options.clone());
        self.cluster
            .change::<Vm>(VERB, self.id, &request, |vm, draft, cache| {
                let wrong = options.problems().into_iter();
                let mut problems: Vec<_> = wrong.map(|p| p.under("options")).collect();
                let place = running_on(vm.id, cache);
                let lacking = place.and_then(|place| place.lacking(options.live_needs()));
                problems.extend(lacking.map(|why| problem("options.limits", why)));
                refuse(VERB, problems)?;
                let is_it = |d: &&mut Disk| d.name == disk && d.role == DiskRole::Disk;
                let found = vm.machine.disks.iter_mut().find(is_it);
                let Some(found) = found else {
                    return Err(no_such_disk(VERB, disk));
                };
                let draft = needing(options.live_needs(), vm.id, draft, cache);
                found.options = options;
                let all = vm.machine.disks.iter().map(|d| &d.options);
                let too_many = vm.machine.hardware.too_many(all).into_iter();
                refuse(
                    VERB,
                    too_many.map(|why| problem("options.bus", why)).collect(),
                )?;
                Ok((draft, next_generation(vm)))
            })
            .await
    }

    /// Moves a VM that is off: its next start is on `node`, and nowhere else.
    ///
    /// # Errors
    /// [`ErrorKind::NotFound`]; [`ErrorKind::FailedPrecondition`] unless it is off; [`ErrorKind::Invalid`] for a node
    /// that does not exist.
    pub async fn move_to(&self, node: NodeId) -> Result<OperationHandle> {
        const VERB: &str = "vm.move";
        let (now, request) = (self.inner().clock.now(), node.clone());
        self.cluster
            .change::<Vm>(VERB, self.id, &request, |vm, draft, cache| {
                if !cache.nodes.contains_key(&node) {
                    let message = format!("there is no node {node}");
                    return Err(Error::invalid(VERB, vec![problem("node", message)]));
                }
                let (phase, _) = phase_of(vm, cache, now);
                if phase != Phase::Stopped {
                    let message = format!("the VM is {phase}; only a stopped one can be moved");
                    return Err(Error::new(ErrorKind::FailedPrecondition, VERB, message));
                }
                vm.node = Some(node);
                Ok((draft, next_generation(vm)))
            })
            .await
    }

    /// Replaces its settings, all of them: with [`RequestOptions::expected_version`](crate::RequestOptions) that of the
    /// VM they were read from, nobody else's change in between is lost. [`VmSettings::changes`] says beforehand when each takes effect; nothing is powered off for
    /// one. A guest that runs keeps the hardware that it was started with ([`VmView::machine`](super::VmView)) until the
    /// VM's next start, for which a new place is looked for; a CPU's baseline is chosen anew.
    ///
    /// ```
    /// use novacron_core::cluster::VmHandle;
    /// use novacron_core::model::VmSettings;
    /// use novacron_core::{MiB, Result};
    ///
    /// # async fn example(vm: &VmHandle) -> Result<()> {
    /// let mut settings = VmSettings::of(&vm.get().await?.vm);
    /// settings.hardware.memory = MiB(4096);
    /// vm.update(settings).await?;
    /// for change in vm.get().await?.pending() {
    ///     println!("{} takes effect with the next start", change.field);
    /// }
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// As [`VmHandle::start`]; [`ErrorKind::Invalid`] with every problem, also a change that no start can give this VM
    /// ([`Effect::Replacement`]).
    pub async fn update(&self, settings: VmSettings) -> Result<OperationHandle> {
        const VERB: &str = "vm.update";
        let request = settings.clone();
        self.cluster
            .change::<Vm>(VERB, self.id, &request, |vm, draft, cache| {
                let disks = vm.machine.guest_disks().map(|disk| &disk.options);
                let mut problems = check::settings(&settings, disks, !vm.machine.nics.is_empty());
                let changes = VmSettings::of(vm).changes(&settings).into_iter();
                let never = changes.filter(|change| change.effect == Effect::Replacement);
                problems.extend(never.map(|change| {
                    let message = "cannot be changed for this VM: create another";
                    problem(change.field, message.to_owned())
                }));
                let hardware = resolved(
                    &settings.hardware,
                    settings.node.as_ref(),
                    cache,
                    &mut problems,
                );
                refuse(VERB, problems)?;
                vm.machine.hardware = hardware;
                vm.machine.cloud_init = settings.cloud_init;
                vm.machine.stop_grace_secs = settings.stop_grace_secs;
                vm.restart = settings.restart;
                vm.node = settings.node;
                vm.priority = settings.priority;
                vm.anti_affinity = settings.anti_affinity.map(Name::new).transpose()?;
                vm.delete_protection = settings.delete_protection;
                Ok((draft, next_generation(vm)))
            })
            .await
    }

    /// A verb without a desired state: carried out once, after the actions that were asked for before.
    async fn act(
        &self,
        verb: &'static str,
        what: Verb,
        check: impl FnOnce(&mut Vm, &Cache) -> Result<()>,
    ) -> Result<OperationHandle> {
        let now = self.inner().clock.now();
        let id = ActionId::generate(now, &*self.inner().ids);
        let request = what.clone();
        self.cluster
            .change::<Vm>(verb, self.id, &request, |vm, draft, cache| {
                check(vm, cache)?;
                let action = Action {
                    id,
                    vm: vm.id,
                    verb: what,
                    created_at: now,
                    deadline: now.plus(self.cluster.options().timeout),
                };
                let draft = draft.put(&id, &action)?;
                Ok((draft, OperationKind::Action { action: id }))
            })
            .await
    }

    /// Presses the reset button, once.
    ///
    /// # Errors
    /// As [`VmHandle::start`]. That it does not run is the operation's failure.
    pub async fn reset(&self) -> Result<OperationHandle> {
        self.act("vm.reset", Verb::Reset, |_, _| Ok(())).await
    }

    /// A volume, which no running VM and no other one may have, goes back to one of its snapshots. If it is this VM's, the VM has
    /// another [`generation_id`](Machine::generation_id) from then on, also should the operation fail.
    ///
    /// # Errors
    /// As [`VmHandle::start`]; [`ErrorKind::NotFound`] also for the volume and the snapshot; [`ErrorKind::Invalid`]
    /// for a snapshot of another volume, and for a volume of another VM. That the volume is in use is the operation's failure.
    pub async fn restore(&self, volume: VolumeId, snapshot: SnapshotId) -> Result<OperationHandle> {
        const VERB: &str = "vm.restore";
        let options = self.cluster.options();
        self.act(VERB, Verb::Restore { volume, snapshot }, |vm, cache| {
            find::<Volume>(cache, options, VERB, volume)?;
            let of = find::<Snapshot>(cache, options, VERB, snapshot)?.volume;
            if of != volume {
                let message = format!("it is a snapshot of volume {of}");
                return Err(Error::invalid(VERB, vec![problem("snapshot", message)]));
            }
            if let Some(other) = cache.users_of(volume).find(|user| *user != vm.id) {
                let message = format!("it is VM {other}'s, which has to know: restore it there");
                return Err(Error::invalid(VERB, vec![problem("volume", message)]));
            }
            if vm.machine.role(volume).is_some() {
                vm.machine.generation_id = self.inner().ids.uuid();
            }
            Ok(())
        })
        .await
    }

    /// An operator's word that the VM does not run, wherever it was last: its claim is released by it. True when it
    /// returns; the operation has ended.
    ///
    /// **A wrong word can let the VM run twice.** It is for a host that is lost for good and cannot prove anything.
    ///
    /// # Errors
    /// [`ErrorKind::NotFound`]; [`ErrorKind::FailedPrecondition`] unless its run is unknown, in the middle of a stop, or in
    /// the middle of a start on a node that no process looks after.
    pub async fn confirm_stopped(&self) -> Result<OperationHandle> {
        const VERB: &str = "vm.confirm-stopped";
        let now = self.inner().clock.now();
        let principal = self.cluster.options().principal.clone();
        self.cluster
            .change::<Vm>(VERB, self.id, &(), |vm, draft, cache| {
                // A start that its owner carries out at this moment would overtake the word.
                let being_started = |run: &Run| {
                    run.phase == RunPhase::Starting
                        && part::owner(&Part::Node(run.node.clone()), cache).is_some()
                };
                let run = cache
                    .run_of(vm.id)
                    .filter(|r| r.phase.may_be_confirmed_stopped() && !being_started(r));
                let Some(run) = run else {
                    let message = "only a VM that is unknown or stopping, or whose start nobody carries out, can be confirmed as stopped";
                    return Err(Error::new(ErrorKind::FailedPrecondition, VERB, message));
                };
                let mut next = run.value.clone();
                next.phase = next.phase.on(RunEvent::Ended)?;
                next.since = now;
                next.exit.get_or_insert(Exit::Crashed {
                    detail: "by an operator's word".to_owned(),
                });
                next.proof = Some(StopProof::Operator { principal, at: now });
                let at = (run.node.clone(), vm.id);
                let draft = draft.unchanged::<Run>(&at, Some(run.version));
                Ok((draft.put(&at, &next)?, OperationKind::Record))
            })
            .await
    }
}
