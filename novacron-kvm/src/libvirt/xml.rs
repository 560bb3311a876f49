//! A domain's description in libvirt's XML, by types: written from a spec, and read back from libvirt.
//!
//! Only what NovaCron writes or looks at has a type; when it is read, everything else is left out, so that nothing here
//! is ever written back in place of what libvirt has. Foreign domains of any driver can be read.

mod disk;
mod interface;

use novacron_core::model::VolumeId;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

pub(super) use disk::{Address, Disk, DiskDriver, DiskSource, IoTune, SourceHost};
pub(super) use interface::{
    Average, Bandwidth, Interface, InterfaceDriver, InterfaceModel, InterfaceSource, Link, Mac,
    Mtu, Rom,
};

use super::notes::Metadata;

/// `<domain>`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, rename = "domain")]
pub(super) struct DomainXml {
    #[serde(rename = "@type")]
    pub(super) kind: String,
    #[serde(
        rename = "@xmlns:qemu",
        skip_deserializing,
        skip_serializing_if = "Option::is_none"
    )]
    pub(super) qemu_namespace: Option<&'static str>,
    pub(super) name: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) uuid: Option<Uuid>,
    #[serde(rename = "genid", skip_serializing_if = "Option::is_none")]
    pub(super) generation_id: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) title: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) description: Option<String>,
    pub(super) metadata: Metadata,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) memory: Option<Amount>,
    #[serde(rename = "memoryBacking", skip_serializing_if = "Option::is_none")]
    pub(super) memory_backing: Option<Backing>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) vcpu: Option<Count>,
    #[serde(rename = "iothreads", skip_serializing_if = "Option::is_none")]
    pub(super) io_threads: Option<Count>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) os: Option<Os>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) features: Option<Features>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) cpu: Option<Cpu>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) clock: Option<Clock>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) on_poweroff: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) on_reboot: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) on_crash: Option<String>,
    pub(super) devices: Devices,
    /// What libvirt itself has no words for.
    #[serde(
        rename(serialize = "qemu:commandline", deserialize = "commandline"),
        skip_serializing_if = "Option::is_none"
    )]
    pub(super) qemu: Option<QemuArguments>,
}

impl DomainXml {
    /// Its disks and media that are volumes of ours.
    pub(super) fn volumes(&self) -> impl Iterator<Item = (VolumeId, &Disk)> {
        let disks = self.devices.disks.iter();
        disks.filter_map(|disk| Some((self.metadata.volume(disk)?, disk)))
    }

    /// The disk, or the drive, that a volume is behind.
    pub(super) fn disk(&self, volume: VolumeId) -> Option<&Disk> {
        let mut disks = self.volumes();
        disks.find(|(of, _)| *of == volume).map(|(_, disk)| disk)
    }
}

/// Namespace of [`QemuArguments`].
pub(super) const QEMU_NAMESPACE: &str = "http://libvirt.org/schemas/domain/qemu/1.0";

/// `<qemu:commandline>`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub(super) struct QemuArguments {
    #[serde(rename(serialize = "qemu:arg", deserialize = "arg"))]
    pub(super) arguments: Vec<QemuArgument>,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub(super) struct QemuArgument {
    #[serde(rename = "@value")]
    pub(super) value: String,
}

impl DomainXml {
    /// As libvirt takes it.
    pub(super) fn to_text(&self) -> Result<String, quick_xml::SeError> {
        quick_xml::se::to_string(self)
    }

    /// As libvirt gives it.
    pub(super) fn of_text(text: &str) -> Result<Self, quick_xml::DeError> {
        quick_xml::de::from_str(text)
    }
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub(super) struct Amount {
    #[serde(rename = "@unit")]
    pub(super) unit: String,
    #[serde(rename = "$text")]
    pub(super) value: u64,
}

/// `<memoryBacking>`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub(super) struct Backing {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) hugepages: Option<Empty>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) locked: Option<Empty>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) source: Option<Typed>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) access: Option<Access>,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub(super) struct Access {
    #[serde(rename = "@mode")]
    pub(super) mode: String,
}

/// `<watchdog>`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub(super) struct WatchdogXml {
    #[serde(rename = "@model")]
    pub(super) model: String,
    #[serde(rename = "@action", skip_serializing_if = "Option::is_none")]
    pub(super) action: Option<String>,
}

/// `<memballoon>`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub(super) struct Balloon {
    #[serde(rename = "@model")]
    pub(super) model: String,
    #[serde(rename = "@autodeflate", skip_serializing_if = "Option::is_none")]
    pub(super) deflates: Option<String>,
    #[serde(rename = "@freePageReporting", skip_serializing_if = "Option::is_none")]
    pub(super) reports: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) stats: Option<Period>,
}

/// `<stats period="5"/>`, seconds.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub(super) struct Period {
    #[serde(rename = "@period")]
    pub(super) period: u32,
}

/// `<tpm>`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub(super) struct TpmXml {
    #[serde(rename = "@model")]
    pub(super) model: String,
    pub(super) backend: TpmBackend,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub(super) struct TpmBackend {
    #[serde(rename = "@type")]
    pub(super) kind: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) source: Option<TpmSource>,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub(super) struct TpmSource {
    #[serde(rename = "@type")]
    pub(super) kind: String,
    #[serde(rename = "@mode")]
    pub(super) mode: String,
    #[serde(rename = "@path")]
    pub(super) path: String,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub(super) struct Count {
    #[serde(rename = "$text")]
    pub(super) value: u32,
}

/// `<os>`: what is booted, and by which firmware.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub(super) struct Os {
    #[serde(rename = "type")]
    pub(super) kind: OsType,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) loader: Option<Loader>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) nvram: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) kernel: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) initrd: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) cmdline: Option<String>,
}

/// The firmware's code.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub(super) struct Loader {
    #[serde(rename = "@readonly")]
    pub(super) readonly: String,
    #[serde(rename = "@secure")]
    pub(super) secure: String,
    #[serde(rename = "@type")]
    pub(super) kind: String,
    #[serde(rename = "$text")]
    pub(super) path: String,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub(super) struct OsType {
    #[serde(rename = "@arch")]
    pub(super) arch: String,
    #[serde(rename = "@machine", skip_serializing_if = "Option::is_none")]
    pub(super) machine: Option<String>,
    #[serde(rename = "$text")]
    pub(super) value: String,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub(super) struct Features {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) acpi: Option<Empty>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) apic: Option<Empty>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) hyperv: Option<HyperV>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) smm: Option<Switch>,
}

/// `<hyperv>`: each enlightenment by its name.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub(super) struct HyperV {
    pub(super) relaxed: Switch,
    pub(super) vapic: Switch,
    pub(super) spinlocks: Spinlocks,
    pub(super) vpindex: Switch,
    pub(super) runtime: Switch,
    pub(super) synic: Switch,
    pub(super) stimer: Switch,
    pub(super) frequencies: Switch,
    pub(super) tlbflush: Switch,
    pub(super) ipi: Switch,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub(super) struct Spinlocks {
    #[serde(rename = "@state")]
    pub(super) state: String,
    #[serde(rename = "@retries")]
    pub(super) retries: u32,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub(super) struct Switch {
    #[serde(rename = "@state")]
    pub(super) state: String,
}

/// An element that says something by being there.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(super) struct Empty {}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub(super) struct Cpu {
    #[serde(rename = "@mode", skip_serializing_if = "Option::is_none")]
    pub(super) mode: Option<String>,
    #[serde(rename = "@match", skip_serializing_if = "Option::is_none")]
    pub(super) matching: Option<String>,
    #[serde(rename = "@check", skip_serializing_if = "Option::is_none")]
    pub(super) check: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) model: Option<CpuModelXml>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) topology: Option<TopologyXml>,
    #[serde(rename = "feature", skip_serializing_if = "Vec::is_empty")]
    pub(super) features: Vec<CpuFeature>,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub(super) struct CpuModelXml {
    #[serde(rename = "@fallback", skip_serializing_if = "Option::is_none")]
    pub(super) fallback: Option<String>,
    #[serde(rename = "$text")]
    pub(super) name: String,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub(super) struct TopologyXml {
    #[serde(rename = "@sockets")]
    pub(super) sockets: u32,
    #[serde(rename = "@cores")]
    pub(super) cores: u32,
    #[serde(rename = "@threads")]
    pub(super) threads: u32,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub(super) struct CpuFeature {
    #[serde(rename = "@policy", skip_serializing_if = "Option::is_none")]
    pub(super) policy: Option<String>,
    #[serde(rename = "@name")]
    pub(super) name: String,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub(super) struct Clock {
    #[serde(rename = "@offset")]
    pub(super) offset: String,
    #[serde(rename = "timer", skip_serializing_if = "Vec::is_empty")]
    pub(super) timers: Vec<Timer>,
}

/// `<timer>`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub(super) struct Timer {
    #[serde(rename = "@name")]
    pub(super) name: String,
    #[serde(rename = "@present", skip_serializing_if = "Option::is_none")]
    pub(super) present: Option<String>,
    #[serde(rename = "@tickpolicy", skip_serializing_if = "Option::is_none")]
    pub(super) tick_policy: Option<String>,
}

/// `<devices>`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub(super) struct Devices {
    #[serde(rename = "controller", skip_serializing_if = "Vec::is_empty")]
    pub(super) controllers: Vec<Controller>,
    #[serde(rename = "disk", skip_serializing_if = "Vec::is_empty")]
    pub(super) disks: Vec<Disk>,
    #[serde(rename = "interface", skip_serializing_if = "Vec::is_empty")]
    pub(super) interfaces: Vec<Interface>,
    #[serde(rename = "serial", skip_serializing_if = "Vec::is_empty")]
    pub(super) serials: Vec<Character>,
    #[serde(rename = "console", skip_serializing_if = "Vec::is_empty")]
    pub(super) consoles: Vec<Character>,
    #[serde(rename = "channel", skip_serializing_if = "Vec::is_empty")]
    pub(super) channels: Vec<Character>,
    #[serde(rename = "input", skip_serializing_if = "Vec::is_empty")]
    pub(super) inputs: Vec<Input>,
    #[serde(rename = "graphics", skip_serializing_if = "Vec::is_empty")]
    pub(super) graphics: Vec<Graphics>,
    #[serde(rename = "video", skip_serializing_if = "Vec::is_empty")]
    pub(super) videos: Vec<Video>,
    #[serde(rename = "watchdog", skip_serializing_if = "Vec::is_empty")]
    pub(super) watchdogs: Vec<WatchdogXml>,
    #[serde(rename = "tpm", skip_serializing_if = "Vec::is_empty")]
    pub(super) tpms: Vec<TpmXml>,
    #[serde(rename = "memballoon", skip_serializing_if = "Option::is_none")]
    pub(super) balloon: Option<Balloon>,
    #[serde(rename = "rng", skip_serializing_if = "Vec::is_empty")]
    pub(super) rngs: Vec<Rng>,
    #[serde(rename = "panic", skip_serializing_if = "Vec::is_empty")]
    pub(super) panics: Vec<Model>,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub(super) struct Controller {
    #[serde(rename = "@type")]
    pub(super) kind: String,
    #[serde(rename = "@index", skip_serializing_if = "Option::is_none")]
    pub(super) index: Option<u32>,
    #[serde(rename = "@model", skip_serializing_if = "Option::is_none")]
    pub(super) model: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) driver: Option<ControllerDriver>,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub(super) struct ControllerDriver {
    #[serde(rename = "@iothread", skip_serializing_if = "Option::is_none")]
    pub(super) io_thread: Option<u32>,
}

/// `<input>`: libvirt adds a keyboard and a mouse to every machine.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub(super) struct Input {
    #[serde(rename = "@type")]
    pub(super) kind: String,
    #[serde(rename = "@bus")]
    pub(super) bus: String,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub(super) struct Target {
    #[serde(rename = "@dev", skip_serializing_if = "Option::is_none")]
    pub(super) device: Option<String>,
    #[serde(rename = "@bus", skip_serializing_if = "Option::is_none")]
    pub(super) bus: Option<String>,
    #[serde(rename = "@managed", skip_serializing_if = "Option::is_none")]
    pub(super) managed: Option<String>,
    #[serde(rename = "@type", skip_serializing_if = "Option::is_none")]
    pub(super) kind: Option<String>,
    #[serde(rename = "@name", skip_serializing_if = "Option::is_none")]
    pub(super) name: Option<String>,
    #[serde(rename = "@port", skip_serializing_if = "Option::is_none")]
    pub(super) port: Option<u32>,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub(super) struct Boot {
    #[serde(rename = "@order")]
    pub(super) order: u32,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub(super) struct Alias {
    #[serde(rename = "@name")]
    pub(super) name: String,
}

/// `<serial>`, `<console>` and `<channel>`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub(super) struct Character {
    #[serde(rename = "@type")]
    pub(super) kind: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) log: Option<Log>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) target: Option<Target>,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub(super) struct Log {
    #[serde(rename = "@file")]
    pub(super) file: String,
    #[serde(rename = "@append", skip_serializing_if = "Option::is_none")]
    pub(super) append: Option<String>,
}

/// `<graphics>`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub(super) struct Graphics {
    #[serde(rename = "@type")]
    pub(super) kind: String,
    #[serde(rename = "listen", skip_serializing_if = "Vec::is_empty")]
    pub(super) listens: Vec<Typed>,
}

/// An element that says its type alone.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub(super) struct Typed {
    #[serde(rename = "@type")]
    pub(super) kind: String,
}

/// `<video>`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub(super) struct Video {
    pub(super) model: Typed,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub(super) struct Rng {
    #[serde(rename = "@model")]
    pub(super) model: String,
    pub(super) backend: Backend,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub(super) struct Backend {
    #[serde(rename = "@model")]
    pub(super) model: String,
    #[serde(rename = "$text")]
    pub(super) value: String,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub(super) struct Model {
    #[serde(rename = "@model", skip_serializing_if = "Option::is_none")]
    pub(super) model: Option<String>,
}

/// `<domainsnapshot>` of one disk, the others left as they are.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename = "domainsnapshot")]
pub(super) struct SnapshotXml {
    pub(super) disks: SnapshotDisks,
}

#[derive(Clone, Debug, PartialEq, Serialize)]
pub(super) struct SnapshotDisks {
    pub(super) disk: Vec<SnapshotDisk>,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub(super) struct SnapshotDisk {
    #[serde(rename = "@name")]
    pub(super) name: String,
    #[serde(rename = "@snapshot")]
    pub(super) snapshot: String,
    #[serde(rename = "@type", skip_serializing_if = "Option::is_none")]
    pub(super) kind: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) driver: Option<SnapshotDriver>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) source: Option<DiskSource>,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub(super) struct SnapshotDriver {
    #[serde(rename = "@type")]
    pub(super) format: String,
}
