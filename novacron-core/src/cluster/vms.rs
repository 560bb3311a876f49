//! Virtual machines: create, change, follow, reach.

use std::sync::Arc;

use super::check::{self, disk_name};
use super::operations::OperationHandle;
use super::request::{Change, problem};
use super::volumes::pick_pool;
use super::{Cluster, Inner};
use crate::control::operation::phase_of;
use crate::control::plan::Draft;
use crate::driver::{
    AgentOutput, Call, ConsoleStart, ConsoleStream, DomainId, DomainStats, GuestAddress, Hypervisor,
};
use crate::error::{Error, ErrorKind, Problem, Result};
use crate::lifecycle::Phase;
use crate::model::{
    Action, ActionId, Bytes, Claim, Disk, DiskSource, ImageId, MacAddr, Machine, Meta, Name, Nic,
    NodeId, ObjectRef, OperationKind, PlaceId, Port, PortId, Power, PowerRequest, Run, SnapshotId,
    Verb, Versioned, Vm, VmId, VmSpec, Volume, VolumeFormat, VolumeId, VolumeSource,
};
use crate::records;
use crate::store::{Op, Precondition};
use crate::time::Deadline;

/// The cluster's VMs.
#[derive(Clone, Debug)]
pub struct Vms(pub(super) Cluster);

/// A VM as it is: what was asked for, and what is.
#[derive(Clone, Debug)]
pub struct VmView {
    /// What should be.
    pub vm: Versioned<Vm>,
    /// What is, in one word.
    pub phase: Phase,
    /// Why it is not (yet) what it should be.
    pub reason: String,
    /// Where it is, or was last.
    pub place: Option<PlaceId>,
    /// The claim, with the placement's explanation.
    pub claim: Option<Claim>,
    /// The present run.
    pub run: Option<Run>,
}

/// A handle on one VM. Dropping it changes nothing.
#[derive(Clone, Debug)]
pub struct VmHandle {
    cluster: Cluster,
    id: VmId,
}

impl Vms {
    /// Creates a VM, with the volumes and ports that its spec asks for.
    ///
    /// *Holds on return:* the request is committed; the control loop carries it out, also after a crash. A dry run
    /// checks everything and returns a handle on nothing.
    ///
    /// # Errors
    /// [`ErrorKind::Invalid`] with every problem of the spec; [`ErrorKind::AlreadyExists`] when the name is taken;
    /// [`ErrorKind::NotFound`] for an image, volume or network that does not exist.
    pub async fn create(&self, spec: VmSpec) -> Result<VmHandle> {
        let (inner, options) = (&self.0.inner, self.0.options());
        inner.authorize(options, "vm.create")?;
        let problems = check::vm(&spec);
        if !problems.is_empty() {
            return Err(Error::invalid("vm.create", problems));
        }
        let request = as_text(&spec)?;
        if let Some((ObjectRef::Vm(id), _)) = inner.recall(options, "vm.create", &request).await? {
            return Ok(self.by_id(id));
        }
        let (id, draft) = self.draft(spec).await?;
        let change = Change {
            verb: "vm.create",
            object: ObjectRef::Vm(id),
            kind: OperationKind::Create,
            draft,
            request,
        };
        inner.admit(options, change).await.map_err(name_taken)?;
        Ok(self.by_id(id))
    }

    async fn draft(&self, spec: VmSpec) -> Result<(VmId, Draft)> {
        let (inner, options) = (&self.0.inner, self.0.options());
        let now = inner.clock.now();
        let id = VmId::generate(now, &*inner.ids);
        let meta = |name: Name| Meta {
            name,
            project: options.project.clone(),
            labels: spec.labels.clone(),
            annotations: spec.annotations.clone(),
            created_at: now,
            generation: 1,
            deleted_at: None,
        };
        let mut draft = Draft::new();
        let mut problems: Vec<Problem> = Vec::new();
        let mut disks = Vec::new();
        for (i, disk) in spec.disks.iter().enumerate() {
            let mut make = |volume: Volume, draft: Draft| -> Result<Draft> {
                disks.push(Disk {
                    name: disk.name.clone(),
                    volume: volume.id,
                    delete_with_vm: true,
                });
                draft.put(&volume.id, &volume)
            };
            // A volume that is made with a VM is reached through the VM: it has the disk's name, and takes none of its own.
            let made = |pool, source, size| -> Result<Volume> {
                let id = VolumeId::generate(now, &*inner.ids);
                Ok(Volume {
                    id,
                    meta: meta(Name::new(&disk.name)?),
                    pool,
                    source,
                    size,
                    format: VolumeFormat::Qcow2,
                })
            };
            match &disk.source {
                DiskSource::Blank { size, pool } => {
                    match inner.peek(|cache| pick_pool(cache, pool.as_ref())) {
                        Ok(pool) => draft = make(made(pool, VolumeSource::Blank, *size)?, draft)?,
                        Err(message) => {
                            problems.push(problem(format!("disks[{i}].source.pool"), message));
                        }
                    }
                }
                DiskSource::Image { image, size, pool } => {
                    let image_id: ImageId = inner.resolve(&options.project, "image", image).await?;
                    let found = inner
                        .read(|cache| {
                            cache
                                .images
                                .get(&image_id)
                                .map(|i| (i.pool.clone(), i.meta.deleted_at))
                        })
                        .await?;
                    match found {
                        Some((at, None)) if pool.as_ref().is_none_or(|p| *p == at) => {
                            let source = VolumeSource::Image(image_id);
                            draft.requires.push(Precondition::Present(
                                <crate::model::Image as records::Stored>::key(&image_id),
                            ));
                            draft = make(made(at, source, size.unwrap_or(Bytes(0)))?, draft)?;
                        }
                        Some((at, None)) => {
                            let message = format!("a linked clone lies in its image's pool, {at}");
                            problems.push(problem(format!("disks[{i}].source.pool"), message));
                        }
                        _ => problems.push(problem(
                            format!("disks[{i}].source.image"),
                            format!("image {image:?} is gone"),
                        )),
                    }
                }
                DiskSource::Volume { volume } => {
                    match inner.read(|cache| attachable(cache, *volume, None)).await? {
                        Ok(()) => {}
                        Err(message) => {
                            problems.push(problem(format!("disks[{i}].source.volume"), message));
                        }
                    }
                    draft
                        .requires
                        .push(Precondition::Present(<Volume as records::Stored>::key(
                            volume,
                        )));
                    disks.push(Disk {
                        name: disk.name.clone(),
                        volume: *volume,
                        delete_with_vm: false,
                    });
                }
            }
        }
        let mut nics = Vec::new();
        for (i, nic) in spec.nics.iter().enumerate() {
            if !inner
                .read(|cache| cache.networks.contains_key(&nic.network))
                .await?
            {
                problems.push(problem(
                    format!("nics[{i}].network"),
                    format!("there is no network {}", nic.network),
                ));
            }
            draft.requires.push(Precondition::Present(
                <crate::model::Network as records::Stored>::key(&nic.network),
            ));
            let port = Port {
                id: PortId::generate(now, &*inner.ids),
                vm: id,
                network: nic.network,
                mac: nic
                    .mac
                    .unwrap_or_else(|| MacAddr::from_bits(inner.ids.bits())),
                forwards: nic.forwards.clone(),
            };
            draft = draft.put(&port.id, &port)?;
            nics.push(Nic { port: port.id });
        }
        if let Some(node) = &spec.node
            && !inner.peek(|cache| cache.nodes.contains_key(node))
        {
            problems.push(problem("node", format!("there is no node {node}")));
        }
        if !problems.is_empty() {
            return Err(Error::invalid("vm.create", problems));
        }
        let name = Name::new(&spec.name)?;
        let key = records::name_key(&options.project, "vm", &name);
        draft.requires.push(Precondition::Absent(key.clone()));
        draft = draft.op(Op::Put(key, records::encode(&id.to_string())?));
        let vm = Vm {
            id,
            meta: meta(name),
            machine: Machine {
                vcpus: spec.vcpus,
                memory: spec.memory,
                firmware: spec.firmware,
                kernel: spec.kernel,
                disks,
                nics,
                cloud_init: spec.cloud_init,
                stop_grace_secs: spec.stop_grace_secs,
            },
            power: PowerRequest {
                state: spec.power,
                serial: 1,
                force: false,
            },
            restart: spec.restart,
            node: spec.node,
        };
        Ok((id, draft.put(&id, &vm)?))
    }

    /// A handle on a VM by its id, whether it exists or not.
    pub fn by_id(&self, id: VmId) -> VmHandle {
        VmHandle {
            cluster: self.0.clone(),
            id,
        }
    }

    /// A handle on a VM by its name in the project.
    ///
    /// # Errors
    /// [`ErrorKind::NotFound`].
    pub async fn by_name(&self, name: &str) -> Result<VmHandle> {
        let id = self
            .0
            .inner
            .resolve(&self.0.options().project, "vm", name)
            .await?;
        Ok(self.by_id(id))
    }

    /// The project's VMs after `after`, in the order of their ids, at most `limit`: all of one revision.
    ///
    /// # Errors
    /// Those of the store.
    pub async fn list(&self, after: Option<VmId>, limit: usize) -> Result<Vec<VmView>> {
        let (inner, options) = (&self.0.inner, self.0.options());
        inner.authorize(options, "vm.list")?;
        let now = inner.clock.now();
        inner
            .read(|cache| {
                let from = after.map_or(std::ops::Bound::Unbounded, std::ops::Bound::Excluded);
                let mine = cache
                    .vms
                    .range((from, std::ops::Bound::Unbounded))
                    .filter(|(_, vm)| vm.meta.project == options.project);
                mine.take(limit)
                    .map(|(_, vm)| view(vm, cache, now))
                    .collect()
            })
            .await
    }
}

/// Whether a VM can have the volume: why not.
fn attachable(
    cache: &crate::control::cache::Cache,
    volume: VolumeId,
    vm: Option<VmId>,
) -> Result<(), String> {
    match cache.volumes.get(&volume) {
        None => return Err(format!("there is no volume {volume}")),
        Some(v) if v.meta.deleted_at.is_some() => {
            return Err(format!("volume {volume} is being deleted"));
        }
        Some(_) => {}
    }
    match cache.users_of(volume).find(|user| Some(*user) != vm) {
        Some(user) => Err(format!("volume {volume} is attached to VM {user}")),
        None => Ok(()),
    }
}

fn view(vm: &Versioned<Vm>, cache: &crate::control::cache::Cache, now: crate::Timestamp) -> VmView {
    let (phase, reason) = phase_of(vm, cache, now);
    let claim = cache.claims.get(&vm.id).map(|c| c.value.clone());
    VmView {
        vm: vm.clone(),
        phase,
        reason,
        place: claim.as_ref().map(|c| c.place.clone()),
        claim,
        run: cache.run_of(vm.id).map(|r| r.value.clone()),
    }
}

/// A request as text, for its idempotency key.
pub(super) fn as_text<T: serde::Serialize>(request: &T) -> Result<String> {
    serde_json::to_string(request).map_err(|e| {
        Error::new(
            ErrorKind::Internal,
            "request",
            "the request cannot be written as JSON",
        )
        .caused_by(e)
    })
}

/// A failed precondition on a name is a taken name.
pub(super) fn name_taken(error: Error) -> Error {
    let taken = error.kind() == ErrorKind::Conflict
        && error
            .context()
            .any(|(k, v)| k == "key" && v.starts_with("name/"));
    if taken {
        return Error::new(
            ErrorKind::AlreadyExists,
            "create",
            "the name is taken in this project",
        )
        .caused_by(error);
    }
    error
}

impl VmHandle {
    /// Its id.
    pub fn id(&self) -> VmId {
        self.id
    }

    fn inner(&self) -> &Arc<Inner> {
        &self.cluster.inner
    }

    fn not_found(&self) -> Error {
        Error::new(ErrorKind::NotFound, "vm", "there is no such VM").with("vm", self.id)
    }

    /// The VM as it is now.
    ///
    /// # Errors
    /// [`ErrorKind::NotFound`].
    pub async fn get(&self) -> Result<VmView> {
        self.inner().authorize(self.cluster.options(), "vm.get")?;
        let now = self.inner().clock.now();
        let found = self
            .inner()
            .read(|cache| cache.vms.get(&self.id).map(|vm| view(vm, cache, now)))
            .await?;
        found.ok_or_else(|| self.not_found())
    }

    /// Waits until the VM is in `phase`.
    ///
    /// # Errors
    /// [`ErrorKind::FailedPrecondition`] with the reason when it failed instead, [`ErrorKind::NotFound`] when it is
    /// gone, [`ErrorKind::DeadlineExceeded`].
    pub async fn wait_for(&self, phase: Phase, deadline: Deadline) -> Result<VmView> {
        self.get().await?;
        let clock = Arc::clone(&self.inner().clock);
        self.inner()
            .wait(deadline, |cache| {
                let Some(vm) = cache.vms.get(&self.id) else {
                    return Some(Err(self.not_found()));
                };
                let view = view(vm, cache, clock.now());
                if view.phase == phase {
                    return Some(Ok(view));
                }
                (view.phase == Phase::Failed).then(|| {
                    Err(
                        Error::new(ErrorKind::FailedPrecondition, "vm.wait", view.reason)
                            .with("vm", self.id),
                    )
                })
            })
            .await
    }

    /// Changes the spec: `change` says what is wrong instead, if it is. With `kind` from the new spec.
    async fn update(
        &self,
        verb: &'static str,
        request: String,
        change: impl FnOnce(
            &mut Vm,
            Draft,
            &crate::control::cache::Cache,
        ) -> Result<(Draft, OperationKind)>,
    ) -> Result<OperationHandle> {
        let (inner, options) = (self.inner(), self.cluster.options());
        inner.authorize(options, verb)?;
        let request = format!("{}:{request}", self.id);
        if let Some((_, admitted)) = inner.recall(options, verb, &request).await? {
            return Ok(OperationHandle::new(inner, admitted.operation));
        }
        let (draft, kind) = inner
            .read(|cache| {
                let Some(current) = cache.vms.get(&self.id) else {
                    return Err(self.not_found());
                };
                if options
                    .expected_version
                    .is_some_and(|v| v != current.version)
                {
                    let message = format!(
                        "the VM has version {}, not the expected one",
                        current.version
                    );
                    return Err(Error::new(ErrorKind::Conflict, verb, message).retryable(false));
                }
                if current.meta.deleted_at.is_some() && verb != "vm.delete" {
                    return Err(Error::new(
                        ErrorKind::FailedPrecondition,
                        verb,
                        "the VM is being deleted",
                    ));
                }
                let mut vm = current.value.clone();
                let draft = Draft::new().unchanged::<Vm>(&self.id, Some(current.version));
                let (draft, kind) = change(&mut vm, draft, cache)?;
                Ok((draft.put(&self.id, &vm)?, kind))
            })
            .await??;
        let change = Change {
            verb,
            object: ObjectRef::Vm(self.id),
            kind,
            draft,
            request,
        };
        Ok(OperationHandle::new(
            inner,
            inner.admit(options, change).await?.operation,
        ))
    }

    async fn power(
        &self,
        verb: &'static str,
        state: Power,
        force: bool,
    ) -> Result<OperationHandle> {
        self.update(verb, String::new(), |vm, draft, _| {
            vm.power = PowerRequest {
                state,
                serial: vm.power.serial + 1,
                force,
            };
            Ok((
                draft,
                OperationKind::Power {
                    serial: vm.power.serial,
                },
            ))
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

    /// Asks the guest to power off; kills it after its grace.
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

    /// Holds its vCPUs.
    ///
    /// # Errors
    /// As [`VmHandle::start`].
    pub async fn pause(&self) -> Result<OperationHandle> {
        self.power("vm.pause", Power::Paused, false).await
    }

    /// Deletes it with everything that was made with it. A running guest is ended at once.
    ///
    /// # Errors
    /// [`ErrorKind::NotFound`].
    pub async fn delete(&self) -> Result<OperationHandle> {
        let now = self.inner().clock.now();
        self.update("vm.delete", String::new(), |vm, draft, _| {
            vm.meta.deleted_at.get_or_insert(now);
            Ok((draft, OperationKind::Delete))
        })
        .await
    }

    /// Gives it a volume, while it runs if it runs.
    ///
    /// # Errors
    /// [`ErrorKind::Invalid`] when the disk's name is taken or the volume cannot be attached.
    pub async fn attach(&self, disk: &str, volume: VolumeId) -> Result<OperationHandle> {
        self.update(
            "vm.attach",
            format!("{disk}:{volume}"),
            |vm, draft, cache| {
                let mut problems = Vec::new();
                if let Some(message) = disk_name(disk) {
                    problems.push(problem("disk", message));
                }
                if vm.machine.disks.iter().any(|d| d.name == disk) {
                    problems.push(problem("disk", format!("the VM has a disk {disk:?}")));
                }
                if vm.machine.disks.iter().any(|d| d.volume == volume) {
                    problems.push(problem(
                        "volume",
                        format!("volume {volume} is attached to this VM"),
                    ));
                } else if let Err(message) = attachable(cache, volume, Some(self.id)) {
                    problems.push(problem("volume", message));
                }
                if !problems.is_empty() {
                    return Err(Error::invalid("vm.attach", problems));
                }
                vm.machine.disks.push(Disk {
                    name: disk.to_owned(),
                    volume,
                    delete_with_vm: false,
                });
                vm.meta.generation += 1;
                let version = cache.volumes.get(&volume).map(|v| v.version);
                Ok((
                    draft.unchanged::<Volume>(&volume, version),
                    OperationKind::Update {
                        generation: vm.meta.generation,
                    },
                ))
            },
        )
        .await
    }

    /// Takes a volume back; it stays, also one that was made with the VM.
    ///
    /// # Errors
    /// [`ErrorKind::NotFound`] when the VM has no such disk.
    pub async fn detach(&self, disk: &str) -> Result<OperationHandle> {
        self.update("vm.detach", disk.to_owned(), |vm, draft, _| {
            let before = vm.machine.disks.len();
            vm.machine.disks.retain(|d| d.name != disk);
            if vm.machine.disks.len() == before {
                return Err(Error::new(
                    ErrorKind::NotFound,
                    "vm.detach",
                    format!("the VM has no disk {disk:?}"),
                ));
            }
            vm.meta.generation += 1;
            Ok((
                draft,
                OperationKind::Update {
                    generation: vm.meta.generation,
                },
            ))
        })
        .await
    }

    /// Moves a VM that is off: its next start is on `node`.
    ///
    /// # Errors
    /// [`ErrorKind::FailedPrecondition`] unless it is off; [`ErrorKind::Invalid`] for a node that does not exist.
    pub async fn move_to(&self, node: NodeId) -> Result<OperationHandle> {
        let now = self.inner().clock.now();
        self.update("vm.move", node.to_string(), |vm, draft, cache| {
            if !cache.nodes.contains_key(&node) {
                return Err(Error::invalid(
                    "vm.move",
                    vec![problem("node", format!("there is no node {node}"))],
                ));
            }
            let (phase, _) = phase_of(vm, cache, now);
            if phase != Phase::Stopped {
                let message = format!("the VM is {phase}; only one that is stopped can be moved");
                return Err(Error::new(
                    ErrorKind::FailedPrecondition,
                    "vm.move",
                    message,
                ));
            }
            vm.node = Some(node);
            vm.meta.generation += 1;
            Ok((
                draft,
                OperationKind::Update {
                    generation: vm.meta.generation,
                },
            ))
        })
        .await
    }

    async fn act(
        &self,
        verb: &'static str,
        request: String,
        what: Verb,
    ) -> Result<OperationHandle> {
        let now = self.inner().clock.now();
        let id = ActionId::generate(now, &*self.inner().ids);
        let vm = self.id;
        self.update(verb, request, move |_, draft, _| {
            let action = Action {
                id,
                vm,
                verb: what,
                created_at: now,
            };
            Ok((
                draft.put(&id, &action)?,
                OperationKind::Action { action: id },
            ))
        })
        .await
    }

    /// Presses the reset button, once.
    ///
    /// # Errors
    /// [`ErrorKind::NotFound`]. That it does not run is the operation's failure.
    pub async fn reset(&self) -> Result<OperationHandle> {
        self.act("vm.reset", String::new(), Verb::Reset).await
    }

    /// A volume of the VM, which must be off, goes back to a snapshot.
    ///
    /// # Errors
    /// [`ErrorKind::NotFound`]. That the volume is in use is the operation's failure.
    pub async fn restore(&self, volume: VolumeId, snapshot: SnapshotId) -> Result<OperationHandle> {
        self.act(
            "vm.restore",
            format!("{volume}:{snapshot}"),
            Verb::Restore { volume, snapshot },
        )
        .await
    }

    /// An operator's word that the VM does not run, wherever it was last: its claim is released by it.
    ///
    /// **A wrong word can let the VM run twice.** It is for a host that is lost for good and cannot prove anything.
    ///
    /// # Errors
    /// [`ErrorKind::FailedPrecondition`] unless its run is unknown, or in the middle of a start or a stop.
    pub async fn confirm_stopped(&self) -> Result<()> {
        let (inner, options) = (self.inner(), self.cluster.options());
        inner.authorize(options, "vm.confirm-stopped")?;
        let now = inner.clock.now();
        let draft = inner
            .read(|cache| {
                let run = cache
                    .run_of(self.id)
                    .filter(|r| r.phase.may_be_confirmed_stopped());
                let Some(run) = run else {
                    let message = "only a VM that is unknown, starting or stopping can be confirmed as stopped";
                    return Err(Error::new(
                        ErrorKind::FailedPrecondition,
                        "vm.confirm-stopped",
                        message,
                    ));
                };
                let mut next = run.value.clone();
                next.phase = next.phase.on(crate::lifecycle::RunEvent::Ended)?;
                next.since = now;
                next.exit.get_or_insert(crate::model::Exit::Crashed {
                    detail: "by an operator's word".to_owned(),
                });
                next.proof = Some(crate::model::StopProof::Operator {
                    principal: options.principal.clone(),
                    at: now,
                });
                let at = (run.node.clone(), self.id);
                Draft::new()
                    .unchanged::<Run>(&at, Some(run.version))
                    .put(&at, &next)
            })
            .await??;
        let change = Change {
            verb: "vm.confirm-stopped",
            object: ObjectRef::Vm(self.id),
            kind: OperationKind::Update { generation: 0 },
            draft,
            request: self.id.to_string(),
        };
        inner.admit(options, change).await.map(drop)
    }

    /// The hypervisor and the domain of the present run.
    async fn domain(&self, verb: &'static str) -> Result<(Arc<dyn Hypervisor>, DomainId)> {
        self.inner().authorize(self.cluster.options(), verb)?;
        let view = self.get().await?;
        let run = view.run.filter(|r| r.phase.may_run()).ok_or_else(|| {
            Error::new(
                ErrorKind::FailedPrecondition,
                verb,
                format!("the VM is {}", view.phase),
            )
            .with("vm", self.id)
        })?;
        let id = DomainId {
            cluster: self.inner().id,
            vm: self.id,
            epoch: run.epoch,
        };
        Ok((Arc::clone(self.inner().drivers.node(&run.node)?), id))
    }

    /// Numbers of the running guest.
    ///
    /// # Errors
    /// [`ErrorKind::FailedPrecondition`] when it does not run.
    pub async fn stats(&self, call: Call) -> Result<DomainStats> {
        let (hypervisor, id) = self.domain("vm.stats").await?;
        hypervisor.stats(call, id).await
    }

    /// The serial console, from `start` on. Offsets are of the present start of the VM: its next one counts from zero.
    ///
    /// # Errors
    /// [`ErrorKind::FailedPrecondition`] when it does not run; [`ErrorKind::Unsupported`].
    pub async fn console(&self, call: Call, start: ConsoleStart) -> Result<ConsoleStream> {
        let (hypervisor, id) = self.domain("vm.console").await?;
        hypervisor
            .consoles()
            .ok_or_else(|| unsupported("vm.console"))?
            .open(call, id, start)
            .await
    }

    /// Runs a program in the guest through its agent.
    ///
    /// # Errors
    /// As [`VmHandle::console`]; [`ErrorKind::Unavailable`] when no agent answers.
    pub async fn exec(&self, call: Call, argv: &[String]) -> Result<AgentOutput> {
        let (hypervisor, id) = self.domain("vm.exec").await?;
        hypervisor
            .guest_agent()
            .ok_or_else(|| unsupported("vm.exec"))?
            .exec(call, id, argv, None)
            .await
    }

    /// The guest's addresses, by its agent.
    ///
    /// # Errors
    /// As [`VmHandle::exec`].
    pub async fn addresses(&self, call: Call) -> Result<Vec<GuestAddress>> {
        let (hypervisor, id) = self.domain("vm.addresses").await?;
        hypervisor
            .guest_agent()
            .ok_or_else(|| unsupported("vm.addresses"))?
            .addresses(call, id)
            .await
    }
}

fn unsupported(verb: &'static str) -> Error {
    Error::new(
        ErrorKind::Unsupported,
        verb,
        "this node's hypervisor has no such interface",
    )
}
