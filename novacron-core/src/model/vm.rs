//! What a virtual machine should be. What it is stands in [`Run`](super::Run).

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::cpu::CpuModel;
use super::disk::{DiskBus, DiskOptions};
use super::hardware::{Hardware, KernelBoot};
use super::ids::{Name, NetworkId, NodeId, PoolId, PortId, VmId, VolumeId};
use super::meta::Meta;
use super::nic::NicOptions;
use super::node::Capability;
use super::secret::SecretRef;
use super::settings::{Effect, FieldChange};
use super::units::{Bytes, MiB};

/// A virtual machine's record.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Vm {
    /// Its id.
    pub id: VmId,
    /// Name and history.
    pub meta: Meta,
    /// The machine.
    pub machine: Machine,
    /// The power state that was asked for last.
    pub power: PowerRequest,
    /// What to do when the guest ends by itself.
    pub restart: RestartPolicy,
    /// The only node it may be on, if one was asked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub node: Option<NodeId>,
    /// Of VMs whose host was lost, those of a higher priority are started first.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub priority: i32,
    /// VMs of one group of a project are never on the same node.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub anti_affinity: Option<Name>,
    /// Whether it is kept from being deleted.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub delete_protection: bool,
}

fn is_zero(n: &i32) -> bool {
    *n == 0
}

/// The machine: everything the guest can see.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Machine {
    /// What it has of its own.
    pub hardware: Hardware,
    /// Disks, in the order of booting, and what else of it is kept in volumes.
    pub disks: Vec<Disk>,
    /// Network interfaces, in order.
    pub nics: Vec<Nic>,
    /// The cloud-init NoCloud seed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cloud_init: Option<CloudInit>,
    /// Another one after a disk of it went back in time: by it a guest knows that it has to draw new random numbers and
    /// leave its old identity in a domain (Microsoft's "Virtual Machine Generation ID").
    pub generation_id: Uuid,
    /// How long a guest has to power off when asked, seconds; then it is killed.
    pub stop_grace_secs: u32,
}

impl Machine {
    /// What a host has to be able to do for it, its networks aside.
    pub fn needs(&self) -> BTreeSet<Capability> {
        let disks = self.disks.iter().map(|disk| &disk.options);
        self.hardware
            .needs(disks, self.nics.iter().map(|nic| &nic.options))
    }

    /// What of hardware, devices and seed differs in `new`, by field, and when that takes effect for a guest that runs. Disks and
    /// NICs that come and go do so while it runs.
    pub fn changes(&self, new: &Self) -> Vec<FieldChange> {
        let mut changes = FieldChange::under("hardware", self.hardware.changes(&new.hardware));
        for disk in &self.disks {
            if let Some(other) = new.disks.iter().find(|other| other.volume == disk.volume) {
                let path = format!("disks[{}]", disk.name);
                let of_disk = disk.options.changes(&other.options);
                changes.extend(FieldChange::under(&path, of_disk));
            }
        }
        for nic in &self.nics {
            if let Some(other) = new.nics.iter().find(|other| other.port == nic.port) {
                let path = format!("nics[{}]", nic.port);
                let of_nic = nic.options.changes(&other.options);
                changes.extend(FieldChange::under(&path, of_nic));
            }
        }
        let seed = self.cloud_init != new.cloud_init;
        changes.extend(FieldChange::of([("cloud_init", seed, Effect::Restart)]));
        changes
    }

    /// How the guest is given a volume; `None` if the machine does not have it.
    pub(crate) fn disk(&self, volume: VolumeId) -> Option<&DiskOptions> {
        let disk = self.disks.iter().find(|disk| disk.volume == volume)?;
        Some(&disk.options)
    }

    /// The same of a NIC.
    pub(crate) fn nic(&self, port: PortId) -> Option<&NicOptions> {
        let nic = self.nics.iter().find(|nic| nic.port == port)?;
        Some(&nic.options)
    }

    /// The first volume that is this to it.
    pub fn volume(&self, role: DiskRole) -> Option<VolumeId> {
        let mut disks = self.disks.iter();
        disks.find(|disk| disk.role == role).map(|disk| disk.volume)
    }

    /// What a volume is to it.
    pub fn role(&self, volume: VolumeId) -> Option<DiskRole> {
        let mut disks = self.disks.iter();
        disks
            .find(|disk| disk.volume == volume)
            .map(|disk| disk.role)
    }

    /// The disks that the guest sees.
    pub fn guest_disks(&self) -> impl Iterator<Item = &Disk> + Clone {
        self.disks.iter().filter(|disk| !disk.role.is_state())
    }

    /// What a guest that was started as this has of `new` before its next start.
    #[must_use]
    pub fn with_live(&self, mut new: Self) -> Self {
        new.hardware = self.hardware.clone();
        new.cloud_init = self.cloud_init.clone();
        new.generation_id = self.generation_id;
        for disk in &mut new.disks {
            if let Some(has) = self.disk(disk.volume) {
                disk.options = has.clone().with_live(&disk.options);
            }
        }
        for nic in &mut new.nics {
            if let Some(has) = self.nic(nic.port) {
                nic.options = has.clone().with_live(&nic.options);
            }
        }
        new
    }
}

/// A disk of a VM: a volume under a name that is unique in the VM.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Disk {
    /// The disk's name; the guest sees it as the serial number.
    pub name: String,
    /// The volume.
    pub volume: VolumeId,
    /// Whether the volume was made with the VM and goes with it.
    pub delete_with_vm: bool,
    /// How the guest is given it.
    #[serde(default, skip_serializing_if = "DiskOptions::is_default")]
    pub options: DiskOptions,
    /// What it is to the machine.
    #[serde(default, skip_serializing_if = "DiskRole::is_disk")]
    pub role: DiskRole,
}

/// What a volume is to its VM's machine.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DiskRole {
    /// A disk of the guest.
    #[default]
    Disk,
    /// What its UEFI firmware remembers: boot entries and keys. The guest sees no disk.
    Nvram,
    /// What its TPM remembers: keys, counters and indices. The guest sees no disk.
    Tpm,
    /// A disk that it boots from while it is rescued.
    Rescue,
}

impl DiskRole {
    fn is_disk(&self) -> bool {
        *self == Self::Disk
    }

    /// Whether the host keeps the state of a device there, and the guest sees no disk.
    pub fn is_state(self) -> bool {
        self.state().is_some()
    }

    /// The name that no other disk can have; those of the guest have names of their own.
    pub fn name(self) -> Option<&'static str> {
        match self {
            Self::Rescue => Some(Disk::RESCUE),
            of_state => of_state.state().map(|state| state.name),
        }
    }

    /// The volume of a device's state, if it is one.
    pub(crate) fn state(self) -> Option<StateVolume> {
        let (name, size) = match self {
            Self::Disk | Self::Rescue => return None,
            // The variables of OVMF's builds of 4 MiB, the largest.
            Self::Nvram => ("nvram", Bytes(528 * 1024)),
            // swtpm keeps three states of up to 128 KiB each.
            Self::Tpm => ("tpm", Bytes(1024 * 1024)),
        };
        Some(StateVolume {
            role: self,
            name,
            size,
        })
    }
}

/// The volume that the state of a device is kept in.
#[derive(Clone, Copy, Debug)]
pub(crate) struct StateVolume {
    /// What it is to the machine.
    pub(crate) role: DiskRole,
    /// Its name, which no other disk has.
    pub(crate) name: &'static str,
    /// How much room it has.
    pub(crate) size: Bytes,
}

impl Disk {
    /// The name of the one that it boots from while it is rescued.
    pub const RESCUE: &str = "rescue";
}

/// A network interface.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Nic {
    /// Its port, which carries MAC, network and forwards.
    pub port: PortId,
    /// How the guest is given it.
    #[serde(default, skip_serializing_if = "NicOptions::is_default")]
    pub options: NicOptions,
}

/// The data of a cloud-init NoCloud seed.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CloudInit {
    /// `local-hostname` of the meta-data; the VM's name if none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hostname: Option<String>,
    /// `user-data`, as `#cloud-config`.
    #[serde(default)]
    pub user_data: String,
    /// `network-config`, version 2.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub network_config: Option<String>,
    /// Secrets that replace `${NAME}` in the user-data when the seed is made; the seed file is readable by its owner
    /// only.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub secrets: BTreeMap<String, SecretRef>,
}

/// A power state that can be asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Power {
    /// Its vCPUs run.
    On,
    /// In memory, its vCPUs held.
    Paused,
    /// Off.
    Off,
}

/// The power state that was asked for last. The serial grows with every request, so that "start" after the guest has
/// powered itself off is told from a start that was served long ago.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PowerRequest {
    /// The state.
    pub state: Power,
    /// Number of the request.
    pub serial: u64,
    /// Off without asking the guest first.
    #[serde(default)]
    pub force: bool,
}

/// What to do when a guest that should be on ends by itself.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RestartPolicy {
    /// It stays off.
    Never,
    /// Started again after a failure (a crash, a panic, an end from outside), not after its own poweroff.
    #[default]
    OnFailure,
    /// Started again in any case.
    Always,
}

/// What a caller asks for: the input of `cluster.vms().create`.
///
/// ```
/// use novacron_core::{VmSpec, MiB};
/// let spec = VmSpec::new("web-1").vcpus(2).memory(MiB(1024)).image("debian-12");
/// assert_eq!(spec.name, "web-1");
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VmSpec {
    /// Unique per project.
    pub name: String,
    /// Labels.
    #[serde(default)]
    pub labels: BTreeMap<String, String>,
    /// Annotations.
    #[serde(default)]
    pub annotations: BTreeMap<String, String>,
    /// vCPUs, memory, and what else the machine has of its own.
    pub hardware: Hardware,
    /// Disks; the first boots, if `hardware.boot_order` says nothing else.
    #[serde(default)]
    pub disks: Vec<DiskSpec>,
    /// Network interfaces.
    #[serde(default)]
    pub nics: Vec<NicSpec>,
    /// The NoCloud seed.
    #[serde(default)]
    pub cloud_init: Option<CloudInit>,
    /// The power state after creation.
    #[serde(default = "on")]
    pub power: Power,
    /// What to do when the guest ends by itself.
    #[serde(default)]
    pub restart: RestartPolicy,
    /// The only node it may be on.
    #[serde(default)]
    pub node: Option<NodeId>,
    /// Seconds that a guest has to power off.
    #[serde(default = "grace")]
    pub stop_grace_secs: u32,
    /// Of VMs whose host was lost, those of a higher priority are started first.
    #[serde(default)]
    pub priority: i32,
    /// VMs of one group of a project are never on the same node.
    #[serde(default)]
    pub anti_affinity: Option<String>,
    /// Whether it is kept from being deleted.
    #[serde(default)]
    pub delete_protection: bool,
}

fn on() -> Power {
    Power::On
}
fn grace() -> u32 {
    60
}

/// A disk that a caller asks for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DiskSpec {
    /// Unique in the VM: `root`, `data`.
    pub name: String,
    /// What is on it.
    pub source: DiskSource,
    /// How the guest is given it.
    #[serde(default)]
    pub options: DiskOptions,
}

impl DiskSpec {
    /// A disk with the usual options.
    pub fn new(name: impl Into<String>, source: DiskSource) -> Self {
        Self {
            name: name.into(),
            source,
            options: DiskOptions::default(),
        }
    }
}

/// What a disk begins as.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum DiskSource {
    /// A new volume, a linked clone of an image, by the image's name; made and deleted with the VM.
    Image {
        /// The image's name in the project.
        image: String,
        /// Its size; the image's if none.
        #[serde(default)]
        size: Option<Bytes>,
        /// Its pool; the image's if none.
        #[serde(default)]
        pool: Option<PoolId>,
    },
    /// A new, empty volume, made and deleted with the VM.
    Blank {
        /// Its size.
        size: Bytes,
        /// Its pool; the only one of the cluster if none.
        #[serde(default)]
        pool: Option<PoolId>,
    },
    /// An existing volume, which stays when the VM goes.
    Volume {
        /// The volume.
        volume: VolumeId,
    },
}

/// A network interface that a caller asks for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NicSpec {
    /// The network.
    pub network: NetworkId,
    /// Its MAC address; one is made if none.
    #[serde(default)]
    pub mac: Option<super::network::MacAddr>,
    /// Ports of the host that lead into the guest (user-mode networks only).
    #[serde(default)]
    pub forwards: Vec<super::network::PortForward>,
    /// How the guest is given it.
    #[serde(default)]
    pub options: NicOptions,
}

impl NicSpec {
    /// A plain NIC on this network.
    pub fn new(network: NetworkId) -> Self {
        Self {
            network,
            mac: None,
            forwards: Vec::new(),
            options: NicOptions::default(),
        }
    }
}

impl VmSpec {
    /// A machine of one vCPU and 512 MiB, without disk or network.
    pub fn new(name: impl Into<String>) -> Self {
        Self {
            name: name.into(),
            labels: BTreeMap::new(),
            annotations: BTreeMap::new(),
            hardware: Hardware::new(1, MiB(512)),
            disks: Vec::new(),
            nics: Vec::new(),
            cloud_init: None,
            power: Power::On,
            restart: RestartPolicy::OnFailure,
            node: None,
            stop_grace_secs: grace(),
            priority: 0,
            anti_affinity: None,
            delete_protection: false,
        }
    }

    /// Sets the number of vCPUs.
    #[must_use]
    pub fn vcpus(mut self, n: u32) -> Self {
        self.hardware.vcpus = n;
        self
    }

    /// Sets the memory.
    #[must_use]
    pub fn memory(mut self, memory: MiB) -> Self {
        self.hardware.memory = memory;
        self
    }

    /// Sets the CPU's model.
    #[must_use]
    pub fn cpu_model(mut self, model: CpuModel) -> Self {
        self.hardware.cpu.model = model;
        self
    }

    /// Adds a boot disk `root` made from an image.
    #[must_use]
    pub fn image(mut self, image: impl Into<String>) -> Self {
        let source = DiskSource::Image {
            image: image.into(),
            size: None,
            pool: None,
        };
        self.disks.insert(0, DiskSpec::new("root", source));
        self
    }

    /// Adds a disk.
    #[must_use]
    pub fn disk(mut self, name: impl Into<String>, source: DiskSource) -> Self {
        self.disks.push(DiskSpec::new(name, source));
        self
    }

    /// Adds a medium made from an image, and a CD-ROM drive for it.
    #[must_use]
    pub fn cdrom(mut self, name: impl Into<String>, image: impl Into<String>) -> Self {
        let source = DiskSource::Image {
            image: image.into(),
            size: None,
            pool: None,
        };
        let mut medium = DiskSpec::new(name, source);
        medium.options.bus = DiskBus::Cdrom;
        self.disks.push(medium);
        self.hardware.cdroms = self.hardware.cdroms.saturating_add(1);
        self
    }

    /// Adds a NIC.
    #[must_use]
    pub fn nic(mut self, nic: NicSpec) -> Self {
        self.nics.push(nic);
        self
    }

    /// Sets the NoCloud seed.
    #[must_use]
    pub fn cloud_init(mut self, seed: CloudInit) -> Self {
        self.cloud_init = Some(seed);
        self
    }

    /// Boots this kernel directly.
    #[must_use]
    pub fn kernel(mut self, kernel: KernelBoot) -> Self {
        self.hardware.kernel = Some(kernel);
        self
    }

    /// Sets the power state after creation.
    #[must_use]
    pub fn power(mut self, power: Power) -> Self {
        self.power = power;
        self
    }

    /// Sets the restart priority.
    #[must_use]
    pub fn priority(mut self, priority: i32) -> Self {
        self.priority = priority;
        self
    }

    /// Sets the group whose VMs are never on the same node.
    #[must_use]
    pub fn anti_affinity(mut self, group: impl Into<String>) -> Self {
        self.anti_affinity = Some(group.into());
        self
    }

    /// Keeps it from being deleted.
    #[must_use]
    pub fn delete_protection(mut self, protected: bool) -> Self {
        self.delete_protection = protected;
        self
    }

    /// Sets the only node it may be on.
    #[must_use]
    pub fn node(mut self, node: NodeId) -> Self {
        self.node = Some(node);
        self
    }
}
