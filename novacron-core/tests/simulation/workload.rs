//! Random requests by a user, and what the user was told about each. Every request has an idempotency key; one that got
//! no answer, because the process died, is sent again to the next process under the same key.

use std::collections::BTreeMap;

use novacron_core::cluster::VmView;
use novacron_core::model::{
    DiskBus, DiskOptions, DiskRole, DiskSource, Firmware, Hardware, ImageId, NetworkId, NicOptions,
    NicSpec, ObjectRef, OperationId, Power, Returning, SnapshotId, Tpm, VmId, VmSettings, VolumeId,
    VolumeSource,
};
use novacron_core::sim::SimWorld;
use novacron_core::{Bytes, Cluster, MiB, VmSpec};
use rand::Rng;
use rand::rngs::StdRng;
use rand::seq::IteratorRandom;

use crate::requests::{Answer, Request};
use crate::site::node;
use crate::stories::{limited, unplugged};

/// What the user knows of an object.
#[derive(Debug)]
pub(crate) struct Known {
    pub exists: bool,
    /// The label that was set last.
    pub label: Option<String>,
}

/// What a cancelled operation goes back to.
#[derive(Clone, Debug)]
enum Undo {
    Gone(ObjectRef),
    Power(VmId, Power),
    Nothing,
}

/// Everything the user was told.
#[derive(Debug, Default)]
pub(crate) struct Ledger {
    pub objects: BTreeMap<ObjectRef, Known>,
    /// The power asked for last.
    pub power: BTreeMap<VmId, Power>,
    /// How many requests were acknowledged, by verb.
    pub told: BTreeMap<String, u64>,
    /// Requests that got no answer, and were not sent again.
    pub unsure: u64,
    snapshots: BTreeMap<SnapshotId, VolumeId>,
    /// Their names, also of those that are gone.
    images: BTreeMap<ImageId, String>,
    undo: BTreeMap<OperationId, Undo>,
    /// What was sent and not answered, with its key.
    pending: Option<(String, Request)>,
    serial: u32,
}

impl Ledger {
    pub(crate) fn exists(&self, object: &ObjectRef) -> bool {
        self.objects.get(object).is_some_and(|known| known.exists)
    }

    pub(crate) fn acknowledged(&self) -> u64 {
        self.told.values().sum()
    }

    /// An object that should exist, of those that `of` picks.
    fn pick<T>(&self, rng: &mut StdRng, of: impl Fn(&ObjectRef) -> Option<T>) -> Option<T> {
        let alive = self.objects.iter().filter(|(_, known)| known.exists);
        alive.filter_map(|(object, _)| of(object)).choose(rng)
    }

    fn network(&self, rng: &mut StdRng) -> Option<NetworkId> {
        self.pick(rng, |o| match o {
            ObjectRef::Network(id) => Some(*id),
            _ => None,
        })
    }

    /// One of the user's volumes.
    fn volume(&self, rng: &mut StdRng) -> Option<VolumeId> {
        self.pick(rng, |o| match o {
            ObjectRef::Volume(id) => Some(*id),
            _ => None,
        })
    }

    /// Any object of a kind.
    fn any(&self, rng: &mut StdRng, kind: &str) -> Option<ObjectRef> {
        self.pick(rng, |o| (o.kind() == kind).then(|| o.clone()))
    }

    /// Any object.
    fn anything(&self, rng: &mut StdRng) -> Option<ObjectRef> {
        let kinds = ["vm", "volume", "image", "snapshot", "network"];
        let kind = kinds[rng.random_range(0..kinds.len())];
        self.any(rng, kind)
    }

    /// Sends again what got no answer.
    pub(crate) async fn resume(&mut self, cluster: &Cluster) {
        let Some((key, request)) = self.pending.clone() else {
            return;
        };
        // An operator's word is true for the moment when it is given.
        if matches!(request, Request::ConfirmStopped(_)) {
            self.pending = None;
            self.unsure += 1;
            return;
        }
        let answer = request.send(cluster, &key).await;
        self.pending = None;
        // Refused: nothing changed.
        if let Ok(answer) = answer {
            self.learn(&request, &answer);
        }
    }

    async fn ask(&mut self, cluster: &Cluster, request: Request) {
        let key = format!("request-{}", self.serial);
        self.pending = Some((key.clone(), request.clone()));
        let answer = request.send(cluster, &key).await;
        self.pending = None;
        if let Ok(answer) = answer {
            self.learn(&request, &answer);
        }
    }

    fn learn(&mut self, request: &Request, answer: &Answer) {
        *self.told.entry(request.verb()).or_default() += 1;
        if let Some(made) = &answer.made {
            self.make(made.clone());
        }
        let mut undo = match &answer.made {
            Some(made) => Undo::Gone(made.clone()),
            None => Undo::Nothing,
        };
        let mut power = |id: &VmId, power| {
            if let Some(before) = self.power.insert(*id, power) {
                undo = Undo::Power(*id, before);
            }
        };
        match request {
            Request::CreateVm(spec) => {
                if let Some(ObjectRef::Vm(id)) = answer.made {
                    power(&id, spec.power);
                }
            }
            Request::CreateImage(name) => {
                if let Some(ObjectRef::Image(id)) = answer.made {
                    self.images.insert(id, name.clone());
                }
            }
            Request::CreateSnapshot(_, volume) => {
                if let Some(ObjectRef::Snapshot(id)) = answer.made {
                    self.snapshots.insert(id, *volume);
                    // It goes with a volume that the user has no word on: one that was made with a VM.
                    if !self.exists(&ObjectRef::Volume(*volume)) {
                        self.objects.remove(&ObjectRef::Snapshot(id));
                    }
                }
            }
            Request::Start(id) => power(id, Power::On),
            Request::Stop(id) | Request::Kill(id) => power(id, Power::Off),
            Request::Pause(id) => power(id, Power::Paused),
            Request::Label(object, text) => {
                if let Some(known) = self.objects.get_mut(object) {
                    known.label = Some(text.clone());
                }
            }
            Request::Delete(object) => self.gone(object),
            // It stays when the VM goes, also if it was made with it.
            Request::Detach(_, _, volume) => self.make(ObjectRef::Volume(*volume)),
            Request::Cancel(operation) => match self.undo.get(operation).cloned() {
                Some(Undo::Gone(object)) => self.gone(&object),
                // A cancel is a power request too, and can be cancelled.
                Some(Undo::Power(id, before)) => power(&id, before),
                _ => {}
            },
            _ => {}
        }
        self.undo.insert(answer.operation, undo);
    }

    fn make(&mut self, object: ObjectRef) {
        self.objects.entry(object).or_insert(Known {
            exists: true,
            label: None,
        });
    }

    /// The user has deleted an object.
    pub(crate) fn gone(&mut self, object: &ObjectRef) {
        if let Some(known) = self.objects.get_mut(object) {
            known.exists = false;
        }
        // Its snapshots go with it, a little later.
        if let ObjectRef::Volume(volume) = object {
            let snapshots = self.snapshots.iter().filter(|(_, of)| *of == volume);
            for (id, _) in snapshots {
                self.objects.remove(&ObjectRef::Snapshot(*id));
            }
        }
    }

    /// What a new volume begins as; what is gone by now is refused.
    fn source(&self, rng: &mut StdRng) -> VolumeSource {
        let image = || self.images.keys().copied().map(VolumeSource::Image);
        let snapshot = || self.snapshots.keys().copied().map(VolumeSource::Snapshot);
        let source = match rng.random_range(0..3) {
            0 => image().choose(rng),
            1 => snapshot().choose(rng),
            _ => None,
        };
        source.unwrap_or(VolumeSource::Blank)
    }

    fn vm_spec(&self, rng: &mut StdRng) -> VmSpec {
        let power = match rng.random_range(0..20) {
            0 => Power::Paused,
            1 | 2 => Power::Off,
            _ => Power::On,
        };
        let mut spec = VmSpec::new(format!("vm-{}", self.serial))
            .memory(MiB(1024 * rng.random_range(1..8)))
            .priority(rng.random_range(0..3))
            .power(power);
        let image = self.images.values().choose(rng);
        if let Some(image) = image.filter(|_| rng.random_bool(0.4)) {
            spec = spec.image(image);
        } else {
            let blank = DiskSource::Blank {
                size: Bytes::gib(1),
                pool: None,
            };
            spec = spec.disk("root", blank);
        }
        match self.volume(rng) {
            Some(volume) if rng.random_bool(0.1) => {
                spec = spec.disk("more", DiskSource::Volume { volume });
            }
            _ => {}
        }
        if rng.random_bool(0.1) {
            spec.hardware.firmware = Firmware::Uefi;
        }
        if rng.random_bool(0.1) {
            spec.hardware.tpm = Some(Tpm::default());
        }
        if rng.random_bool(0.2) {
            spec.hardware.cdroms = 1;
        }
        match self.network(rng) {
            Some(network) if rng.random_bool(0.6) => spec.nic(NicSpec::new(network)),
            _ => spec,
        }
    }

    /// One random request.
    pub(crate) async fn step(&mut self, cluster: &Cluster, world: &SimWorld, rng: &mut StdRng) {
        self.serial += 1;
        if let Some(request) = self.choose(cluster, world, rng).await {
            self.ask(cluster, request).await;
        }
    }

    async fn choose(
        &self,
        cluster: &Cluster,
        world: &SimWorld,
        rng: &mut StdRng,
    ) -> Option<Request> {
        let name = |kind: &str| format!("{kind}-{}", self.serial);
        let vm = self.pick(rng, |o| match o {
            ObjectRef::Vm(id) => Some(*id),
            _ => None,
        });
        let Some(vm) = vm.filter(|_| rng.random_bool(0.82)) else {
            return Some(match rng.random_range(0..4) {
                0 => self.any(rng, "image").map_or_else(
                    || Request::CreateImage(name("image")),
                    |_| Request::CreateVolume(name("volume"), self.source(rng)),
                ),
                1 if self.serial < 40 => Request::CreateNetwork(name("network")),
                _ => Request::CreateVm(Box::new(self.vm_spec(rng))),
            });
        };
        let view = cluster.vms().by_id(vm).get().await.ok();
        // Also those that were made with a VM.
        let volume = match disk(view.as_ref(), rng) {
            Some((_, volume)) if rng.random_bool(0.3) => Some(volume),
            _ => self.volume(rng),
        };
        let text = format!("text-{}", self.serial);
        let is_rescued = |view: &VmView| view.vm.machine.volume(DiskRole::Rescue).is_some();
        if view.as_ref().is_some_and(is_rescued) && rng.random_bool(0.2) {
            return Some(Request::Unrescue(vm));
        }
        Some(match rng.random_range(0..100) {
            0..14 => Request::Start(vm),
            14..24 => Request::Stop(vm),
            24..28 => Request::Kill(vm),
            28..31 => Request::Pause(vm),
            31..38 => Request::Delete(ObjectRef::Vm(vm)),
            38..43 => Request::Move(vm, node(rng.random_range(0..3))),
            43..49 => {
                let hardware = view.map(|view| view.vm.value.machine.hardware);
                let has_drive = hardware.is_some_and(|hardware| hardware.cdroms > 0);
                let mut options = DiskOptions::default();
                if has_drive && rng.random_bool(0.7) {
                    options.bus = DiskBus::Cdrom;
                }
                Request::Attach(vm, name("disk"), volume?, options)
            }
            49..53 => {
                let (disk, volume) = disk(view.as_ref(), rng)?;
                Request::Detach(vm, disk, volume)
            }
            53..57 => Request::AttachNic(vm, NicSpec::new(self.network(rng)?)),
            57..60 => {
                let view = view?;
                let nic = view.vm.machine.nics.iter().choose(rng)?;
                Request::DetachNic(vm, nic.port)
            }
            60..65 => Request::CreateSnapshot(name("snapshot"), volume?),
            65..68 => {
                let (snapshot, volume) = self.snapshots.iter().choose(rng)?;
                Request::Restore(vm, *volume, *snapshot)
            }
            68..69 if rng.random_bool(0.5) => {
                let (name, _) = disk(view.as_ref(), rng)?;
                Request::SetDisk(vm, name, limited(rng.random_range(1..1000)))
            }
            68..69 if rng.random_bool(0.3) => {
                let image = self.images.values().choose(rng)?.clone();
                if rng.random_bool(0.3) {
                    Request::Rebuild(vm, "root".to_owned(), image)
                } else {
                    Request::Rescue(vm, image)
                }
            }
            68..69 if rng.random_bool(0.5) => {
                let view = view?;
                let nic = view.vm.machine.nics.iter().choose(rng)?;
                let pulled = nic.options == unplugged();
                let options = if pulled {
                    NicOptions::default()
                } else {
                    unplugged()
                };
                Request::SetNic(vm, nic.port, options)
            }
            68..69 => Request::Reset(vm),
            69..70 => {
                let mut settings = VmSettings::of(&view?.vm);
                let memory = MiB(rng.random_range(1..5) * 256);
                settings.hardware = Hardware::new(rng.random_range(1..3), memory);
                Request::Update(vm, Box::new(settings))
            }
            70..73 => Request::Grow(volume?, Bytes::gib(rng.random_range(2..5))),
            73..75 => Request::Delete(ObjectRef::Volume(self.volume(rng)?)),
            75..76 => Request::Delete(self.any(rng, "image")?),
            76..78 => Request::Delete(self.any(rng, "snapshot")?),
            78..79 => Request::Delete(self.any(rng, "network")?),
            79..80 => Request::CreateImage(name("image")),
            80..84 => Request::Label(self.anything(rng)?, text),
            84..87 => Request::Annotate(self.anything(rng)?, text),
            87..89 => Request::Schedulable(node(rng.random_range(0..3)), rng.random_bool(0.6)),
            89..90 => {
                let returning = [Returning::Stay, Returning::Return];
                let returning = returning[rng.random_range(0..2)];
                Request::Evacuate(node(rng.random_range(0..3)), returning)
            }
            90..94 => Request::Cancel(*self.undo.keys().rev().take(5).choose(rng)?),
            // An operator who has looked: no domain of the VM exists anywhere at this moment.
            _ => {
                if world.artefacts().domains.iter().any(|d| d.id.vm == vm) {
                    return None;
                }
                Request::ConfirmStopped(vm)
            }
        })
    }
}

/// A disk of the VM.
fn disk(view: Option<&VmView>, rng: &mut StdRng) -> Option<(String, VolumeId)> {
    let disk = view?.vm.machine.disks.iter().choose(rng)?;
    Some((disk.name.clone(), disk.volume))
}
