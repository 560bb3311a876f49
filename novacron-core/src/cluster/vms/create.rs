//! Making a VM: its spec is checked and its references are looked up, with every problem at once; then the records of
//! everything that will be made with it are drafted, so that each has a name before it is made.

use std::collections::BTreeMap;

use super::super::nodes::cpu_baseline;
use super::super::request::{problem, refuse};
use super::super::volumes::pick_pool;
use super::super::{Cluster, RequestOptions, check};
use super::nics::{joinable, new_port};
use super::{VmHandle, Vms, attachable};
use crate::control::cache::Cache;
use crate::control::plan::Draft;
use crate::error::{Problem, Result};
use crate::model::{
    Bytes, CpuModel, Disk, DiskBus, DiskOptions, DiskRole, DiskSource, Hardware, Image, ImageId,
    Machine, Meta, Name, NodeId, PoolId, PowerRequest, Versioned, Vm, VmId, VmSpec, Volume,
    VolumeFormat, VolumeId, VolumeSource,
};
use crate::store::Revision;
use crate::time::Timestamp;

const VERB: &str = "vm.create";

/// A disk whose references have been looked up.
enum Resolved {
    Made {
        pool: PoolId,
        source: VolumeSource,
        size: Bytes,
        /// The image, as it was read, of a clone.
        image: Option<Revision>,
    },
    Existing(Box<Versioned<Volume>>),
}

impl Vms {
    /// Creates a VM, with the volumes and ports that its spec asks for, and starts it unless the spec says otherwise.
    ///
    /// *Holds on return:* the request is committed; the control loop carries it out, also after a crash. A dry run
    /// checks everything and returns a handle on nothing.
    ///
    /// ```
    /// use novacron_core::model::{DiskSource, PoolId};
    /// use novacron_core::{Bytes, Cluster, Deadline, MiB, Phase, Result, VmSpec};
    /// use std::time::Duration;
    ///
    /// # async fn example(cluster: &Cluster) -> Result<()> {
    /// let data = DiskSource::Blank { size: Bytes::gib(20), pool: None };
    /// let spec = VmSpec::new("web-1").vcpus(2).memory(MiB(2048)).image("debian-12").disk("data", data);
    /// match cluster.vms().create(spec).await {
    ///     Ok(vm) => {
    ///         let view = vm.wait_for(Phase::Running, Deadline::after(Duration::from_secs(60))).await?;
    ///         println!("{} runs on {:?}", view.vm.meta.name, view.place);
    ///     }
    ///     Err(error) => {
    ///         for problem in error.problems() {
    ///             eprintln!("{}: {}", problem.field, problem.message);
    ///         }
    ///     }
    /// }
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// [`ErrorKind::Invalid`](crate::ErrorKind::Invalid) with every problem of the spec, also an image, a volume, a
    /// network, a pool or a node that does not exist; [`ErrorKind::AlreadyExists`](crate::ErrorKind::AlreadyExists)
    /// when the name is taken.
    pub async fn create(&self, spec: VmSpec) -> Result<VmHandle> {
        let inner = &self.0.inner;
        let draft = async {
            let mut problems = check::vm(&spec);
            let images = images(&self.0, &spec).await?;
            inner
                .read(|cache| {
                    let look = Look {
                        cache,
                        options: self.0.options(),
                        spec: &spec,
                        images: &images,
                    };
                    let disks = look.disks(&mut problems);
                    let state = look.state_pool(&disks, &mut problems);
                    let networks = look.networks(&mut problems);
                    let node = spec.node.as_ref();
                    let hardware = resolved(&spec.hardware, node, cache, &mut problems);
                    refuse(VERB, problems)?;
                    draft(&self.0, &spec, hardware, (disks, state), networks)
                })
                .await?
        };
        let made = self.0.create::<Vm>(VERB, &spec, draft);
        Ok(self.created(made.await?))
    }
}

/// The hardware, its CPU's baseline replaced by the name of a model: that of the node, if the VM is to be on one. One that
/// is not there is a problem.
pub(super) fn resolved(
    hardware: &Hardware,
    node: Option<&NodeId>,
    cache: &Cache,
    problems: &mut Vec<Problem>,
) -> Hardware {
    if let Some(node) = node.filter(|node| !cache.nodes.contains_key(*node)) {
        problems.push(problem("node", format!("there is no node {node}")));
    }
    let mut hardware = hardware.clone();
    if hardware.cpu.model == CpuModel::Baseline {
        match cpu_baseline(cache, |of| node.is_none_or(|node| node == of)).model {
            Some(model) => hardware.cpu.model = CpuModel::Named(model),
            None => problems.push(problem(
                "hardware.cpu.model",
                "the nodes have told no CPU model that all of them have".to_owned(),
            )),
        }
    }
    hardware
}

/// The images that the spec names, as far as there are such.
async fn images(cluster: &Cluster, spec: &VmSpec) -> Result<BTreeMap<String, ImageId>> {
    let mut found = BTreeMap::new();
    for disk in &spec.disks {
        let DiskSource::Image { image, .. } = &disk.source else {
            continue;
        };
        // What cannot be a name is the check's to report.
        if let Some(id) = image_named(cluster, image).await? {
            found.insert(image.clone(), id);
        }
    }
    Ok(found)
}

/// The project's image of this name, if there is one.
pub(super) async fn image_named(cluster: &Cluster, name: &str) -> Result<Option<ImageId>> {
    let Ok(name) = Name::new(name) else {
        return Ok(None);
    };
    let project = &cluster.options().project;
    cluster.inner.lookup(project, "image", &name).await
}

/// What the spec refers to.
struct Look<'a> {
    cache: &'a Cache,
    options: &'a RequestOptions,
    spec: &'a VmSpec,
    images: &'a BTreeMap<String, ImageId>,
}

impl Look<'_> {
    /// The disks whose references are right; the others are problems.
    fn disks(&self, problems: &mut Vec<Problem>) -> Vec<Resolved> {
        let mut disks = Vec::with_capacity(self.spec.disks.len());
        for (i, disk) in self.spec.disks.iter().enumerate() {
            let resolved = match &disk.source {
                DiskSource::Blank { size, pool } => pick_pool(self.cache, pool.as_ref())
                    .map(|pool| Resolved::Made {
                        pool,
                        source: VolumeSource::Blank,
                        size: *size,
                        image: None,
                    })
                    .map_err(|why| ("pool", why)),
                DiskSource::Image { image, size, pool } => {
                    self.clone_of(image, *size, pool.as_ref())
                }
                DiskSource::Volume { volume } => {
                    attachable(self.cache, &self.options.project, *volume, None)
                        .map_err(|why| ("volume", why))
                        .map(|volume| Resolved::Existing(Box::new(volume.clone())))
                }
            };
            match resolved {
                Ok(resolved) => disks.push(resolved),
                Err((field, why)) => {
                    problems.push(problem(format!("disks[{i}].source.{field}"), why));
                }
            }
        }
        disks
    }

    /// The pool of what its firmware and its TPM remember, if it has such: that of the first disk that is no medium, if it
    /// has one.
    fn state_pool(&self, disks: &[Resolved], problems: &mut Vec<Problem>) -> Option<PoolId> {
        self.spec.hardware.state_volumes().next()?;
        let disks = disks.iter().zip(&self.spec.disks);
        let first = disks.min_by_key(|(_, disk)| disk.options.bus == DiskBus::Cdrom);
        let pool = match first.map(|(disk, _)| disk) {
            Some(Resolved::Made { pool, .. }) => Ok(pool.clone()),
            Some(Resolved::Existing(volume)) => Ok(volume.pool.clone()),
            None => pick_pool(self.cache, None),
        };
        let pool = pool.map_err(|why| {
            let message =
                "what its firmware or its TPM remembers is kept in the pool of the first disk";
            problems.push(problem("hardware", format!("{message}; {why}")));
        });
        pool.ok()
    }

    fn clone_of(
        &self,
        name: &str,
        size: Option<Bytes>,
        pool: Option<&PoolId>,
    ) -> Result<Resolved, (&'static str, String)> {
        let id = self.images.get(name).copied();
        let image = cloned(self.cache, (name, id), pool)?;
        Ok(Resolved::Made {
            pool: image.pool.clone(),
            source: VolumeSource::Image(image.id),
            size: size.unwrap_or(Bytes(0)),
            image: Some(image.version),
        })
    }

    /// The versions of the NICs' networks.
    fn networks(&self, problems: &mut Vec<Problem>) -> Vec<Revision> {
        let mut versions = Vec::with_capacity(self.spec.nics.len());
        for (i, nic) in self.spec.nics.iter().enumerate() {
            match joinable(self.cache, self.options, nic) {
                Ok(version) => versions.push(version),
                Err(wrong) => {
                    problems.extend(wrong.into_iter().map(|p| p.under(&format!("nics[{i}]"))));
                }
            }
        }
        versions
    }
}

/// The image of this name, if a clone of it can be made, in this pool; or which field is wrong, and why.
pub(super) fn cloned<'c>(
    cache: &'c Cache,
    (name, id): (&str, Option<ImageId>),
    pool: Option<&PoolId>,
) -> Result<&'c Versioned<Image>, (&'static str, String)> {
    // What is no name has been reported; what is none of the project's is told from it by this.
    let Some(image) = id.and_then(|id| cache.images.get(&id)) else {
        let shown: String = name.chars().take(63).collect();
        return Err(("image", format!("the project has no image {shown:?}")));
    };
    if image.meta.deleted_at.is_some() {
        return Err(("image", format!("image {name:?} is being deleted")));
    }
    if pool.is_some_and(|pool| *pool != image.pool) {
        let why = format!("a linked clone lies in its image's pool, {}", image.pool);
        return Err(("pool", why));
    }
    Ok(image)
}

/// The draft with a volume that is made with a VM, and labelled as it is.
pub(super) fn new_volume(
    draft: Draft,
    (id, name): (VolumeId, &str),
    (pool, source, size, format): (PoolId, VolumeSource, Bytes, VolumeFormat),
    (vm, like): (VmId, &Meta),
    now: Timestamp,
) -> Result<(Draft, VolumeId)> {
    let volume = Volume {
        id,
        meta: Meta {
            labels: like.labels.clone(),
            annotations: like.annotations.clone(),
            ..Meta::new(Name::new(name)?, like.project.clone(), now)
        },
        pool,
        source,
        size,
        format,
        made_with: Some(vm),
    };
    Ok((draft.put(&id, &volume)?, id))
}

/// The records of a VM whose spec is right.
fn draft(
    cluster: &Cluster,
    spec: &VmSpec,
    hardware: Hardware,
    (disks, state_pool): (Vec<Resolved>, Option<PoolId>),
    networks: Vec<Revision>,
) -> Result<(VmId, Draft)> {
    let (inner, options) = (&cluster.inner, cluster.options());
    let now = inner.clock.now();
    let vm = VmId::generate(now, &*inner.ids);
    let meta = Meta {
        labels: spec.labels.clone(),
        annotations: spec.annotations.clone(),
        ..Meta::new(Name::new(&spec.name)?, options.project.clone(), now)
    };
    let new_volume = |draft, name: &str, volume| {
        let id = VolumeId::generate(now, &*inner.ids);
        new_volume(draft, (id, name), volume, (vm, &meta), now)
    };
    let mut draft = Draft::new();
    let mut machine_disks = Vec::with_capacity(disks.len());
    for (disk, resolved) in spec.disks.iter().zip(disks) {
        let (volume, delete_with_vm) = match resolved {
            Resolved::Existing(volume) => {
                draft = draft.touch::<Volume>(&volume.id, &volume)?;
                (volume.id, false)
            }
            Resolved::Made {
                pool,
                source,
                size,
                image,
            } => {
                if let VolumeSource::Image(id) = source {
                    draft = draft.unchanged::<Image>(&id, image);
                }
                let made = (pool, source, size, VolumeFormat::Qcow2);
                let volume;
                (draft, volume) = new_volume(draft, &disk.name, made)?;
                (volume, true)
            }
        };
        machine_disks.push(Disk {
            name: disk.name.clone(),
            volume,
            delete_with_vm,
            options: disk.options.clone(),
            role: DiskRole::Disk,
        });
    }
    let pools = state_pool.into_iter().cycle();
    for (pool, state) in pools.zip(hardware.state_volumes()) {
        // libvirt takes nothing else for NVRAM before 9.2, and swtpm never.
        let made = (pool, VolumeSource::Blank, state.size, VolumeFormat::Raw);
        let volume;
        (draft, volume) = new_volume(draft, state.name, made)?;
        machine_disks.push(Disk {
            name: state.name.to_owned(),
            volume,
            delete_with_vm: true,
            options: DiskOptions::default(),
            role: state.role,
        });
    }
    let mut nics = Vec::with_capacity(networks.len());
    for (nic, version) in spec.nics.iter().zip(networks) {
        let (with_port, nic) = new_port(draft, vm, nic, version, now, &*inner.ids)?;
        draft = with_port;
        nics.push(nic);
    }
    let record = Vm {
        id: vm,
        meta,
        machine: Machine {
            hardware,
            disks: machine_disks,
            nics,
            cloud_init: spec.cloud_init.clone(),
            generation_id: inner.ids.uuid(),
            stop_grace_secs: spec.stop_grace_secs,
        },
        power: PowerRequest {
            state: spec.power,
            serial: 1,
            force: false,
        },
        restart: spec.restart,
        node: spec.node.clone(),
        priority: spec.priority,
        anti_affinity: spec.anti_affinity.as_ref().map(Name::new).transpose()?,
        delete_protection: spec.delete_protection,
    };
    Ok((vm, draft.name(&record.meta, "vm", vm)?.put(&vm, &record)?))
}
