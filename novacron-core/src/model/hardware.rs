//! What a machine has of its own: everything that the guest can see and that no other record stands behind.
//!
//! It is the same in what a caller asks for, in the VM's record, in its assignment and in what a driver is given, so that
//! a new device is described once.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::cpu::Cpu;
use super::disk::{DiskBus, DiskOptions};
use super::nic::NicOptions;
use super::node::Capability;
use super::secret::SecretRef;
use super::settings::{Effect, FieldChange};
use super::units::MiB;
use super::vm::{DiskRole, StateVolume};
use crate::error::Problem;

/// A machine's hardware, its disks and NICs aside.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Hardware {
    /// Virtual CPUs.
    #[serde(default = "one")]
    pub vcpus: u32,
    /// Memory.
    pub memory: MiB,
    /// The CPU that the guest sees.
    #[serde(default)]
    pub cpu: Cpu,
    /// Firmware.
    #[serde(default)]
    pub firmware: Firmware,
    /// A kernel to boot directly; as the boot order says if none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kernel: Option<KernelBoot>,
    /// What the firmware looks for something to boot on, and in which order.
    #[serde(default = "boot_order")]
    pub boot_order: Vec<BootDevice>,
    /// CD-ROM drives (SATA). A disk on [`DiskBus::Cdrom`] is the medium in one of them.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub cdroms: u8,
    /// Threads that read and write its virtio disks (and one of them those on SCSI), each disk by one of them in turn. With
    /// none, QEMU's main thread does it, which emulates the other devices.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub io_threads: u8,
    /// What its memory is made of.
    #[serde(default, skip_serializing_if = "MemoryBacking::is_default")]
    pub memory_backing: MemoryBacking,
    /// What its real-time clock shows when it is started.
    #[serde(default)]
    pub clock: ClockOffset,
    /// A watchdog (Intel 6300ESB) that the guest may arm and then has to feed, and what is done when it does not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub watchdog: Option<WatchdogAction>,
    /// Whether it has a USB tablet, which tells the guest where the pointer of who looks at its screen is. Without one, that
    /// pointer and the guest's own go apart.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub tablet: bool,
    /// What its SMBIOS tables say of the system.
    #[serde(default, skip_serializing_if = "Smbios::is_default")]
    pub smbios: Smbios,
    /// A TPM, if it has one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tpm: Option<Tpm>,
}

/// A TPM 2.0 (`tpm-crb`), emulated by swtpm. What it remembers stays with the VM, in a volume of its own. It has no
/// endorsement certificate: who attests a guest has to know its endorsement key.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Tpm {
    /// The secret by which what it remembers is encrypted; not encrypted if none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub passphrase: Option<SecretRef>,
}

/// What a guest's memory is made of.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct MemoryBacking {
    /// Of the host's huge pages, of the default size: faster, and taken from those that the host has set aside.
    pub hugepages: bool,
    /// Never swapped out.
    pub locked: bool,
    /// Shared with other processes of the host, as vhost-user and virtiofs need it.
    pub shared: bool,
}

impl MemoryBacking {
    fn is_default(&self) -> bool {
        *self == Self::default()
    }
}

/// What a guest's real-time clock shows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ClockOffset {
    /// Universal time, as Linux expects it.
    #[default]
    Utc,
    /// The host's local time, as Windows expects it.
    LocalTime,
}

/// What a machine boots from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum BootDevice {
    /// Its disks, in their order. A VM that is rescued boots from its rescue disk first, whatever the order is.
    Disk,
    /// What is in its CD-ROM drives.
    Cdrom,
    /// Its NICs, in their order: by PXE, or by HTTP where the firmware has it.
    Network,
}

/// What is done when a guest no longer feeds its watchdog. Each is told by
/// [`GuestEvent::Watchdog`](crate::driver::GuestEvent::Watchdog) first.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum WatchdogAction {
    /// The reset button.
    #[default]
    Reset,
    /// The power button: the guest may power itself off.
    Shutdown,
    /// A non-maskable interrupt: the guest may dump its memory.
    InjectNmi,
    /// Nothing more.
    None,
}

/// What a guest's SMBIOS tables say of the system (type 1): what `dmidecode` and cloud-init read. The system's UUID is the
/// VM's id.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Smbios {
    /// Its manufacturer.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub manufacturer: Option<String>,
    /// Its name.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub product: Option<String>,
    /// Its version.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub version: Option<String>,
    /// Its serial number. cloud-init takes `ds=nocloud;…` from it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub serial: Option<String>,
    /// Its stock-keeping unit.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sku: Option<String>,
    /// Its family.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub family: Option<String>,
}

impl Smbios {
    fn is_default(&self) -> bool {
        *self == Self::default()
    }

    /// What is said, under the names that QEMU's `-smbios type=1` has for them.
    pub fn fields(&self) -> impl Iterator<Item = (&'static str, &str)> {
        let all = [
            ("manufacturer", &self.manufacturer),
            ("product", &self.product),
            ("version", &self.version),
            ("serial", &self.serial),
            ("sku", &self.sku),
            ("family", &self.family),
        ];
        let said = all.into_iter();
        said.filter_map(|(name, value)| Some((name, value.as_deref()?)))
    }
}

/// SATA ports of a q35 machine.
const SATA_PORTS: usize = 6;
const MAX_IO_THREADS: u8 = 64;
const MAX_VCPUS: u32 = 1024;
const MIN_MEMORY: MiB = MiB(16);
const MAX_MEMORY: MiB = MiB(16 << 20);
const MAX_CPU_FEATURES: usize = 256;
const MAX_PATH: usize = 4096;
const MAX_SMBIOS: usize = 255;
/// What Linux on x86 takes.
const MAX_CMDLINE: usize = 2048;
const WORD: &str = "1 to 64 of [a-zA-Z0-9._-]";

/// Whether it can stand in QEMU's `-cpu` and in libvirt's XML for nothing but a name.
fn is_word(text: &str) -> bool {
    let good = |b: u8| b.is_ascii_alphanumeric() || b"._-".contains(&b);
    (1..=64).contains(&text.len()) && text.bytes().all(good)
}

/// Whether it can be the path of a file on a node.
pub(crate) fn is_path(path: &Path) -> bool {
    let text = path.to_str();
    path.is_absolute()
        && path.as_os_str().len() <= MAX_PATH
        && text.is_some_and(|text| !text.chars().any(char::is_control))
}

pub(crate) fn path_rule() -> String {
    format!(
        "an absolute path, for it is read on the node: up to {MAX_PATH} bytes of UTF-8 without control characters"
    )
}

fn one() -> u32 {
    1
}

fn is_zero(n: &u8) -> bool {
    *n == 0
}

fn boot_order() -> Vec<BootDevice> {
    vec![BootDevice::Disk, BootDevice::Cdrom]
}

impl Hardware {
    /// A plain machine: the host's CPU, SeaBIOS, boot from its disks.
    pub fn new(vcpus: u32, memory: MiB) -> Self {
        Self {
            vcpus,
            memory,
            cpu: Cpu::default(),
            firmware: Firmware::default(),
            kernel: None,
            boot_order: boot_order(),
            cdroms: 0,
            io_threads: 0,
            memory_backing: MemoryBacking::default(),
            clock: ClockOffset::default(),
            watchdog: None,
            tablet: false,
            smbios: Smbios::default(),
            tpm: None,
        }
    }

    /// The volumes of the devices whose state stays with the VM.
    pub(crate) fn state_volumes(&self) -> impl Iterator<Item = StateVolume> {
        let variables = self.firmware.has_variables().then_some(DiskRole::Nvram);
        let tpm = self.tpm.as_ref().map(|_| DiskRole::Tpm);
        let roles = variables.into_iter().chain(tpm);
        roles.filter_map(DiskRole::state)
    }

    /// Why it has no place for all of these disks.
    pub(crate) fn too_many<'a>(
        &self,
        disks: impl Iterator<Item = &'a DiskOptions>,
    ) -> Option<String> {
        let (mut sata, mut media) = (0, 0);
        for options in disks {
            match options.bus {
                DiskBus::Sata => sata += 1,
                DiskBus::Cdrom => media += 1,
                DiskBus::Virtio | DiskBus::Scsi | DiskBus::Nvme => {}
            }
        }
        let drives = usize::from(self.cdroms);
        if media > drives {
            return Some(format!(
                "{media} media; the machine has {drives} CD-ROM drives (`hardware.cdroms`)"
            ));
        }
        (sata + drives > SATA_PORTS).then(|| {
            format!(
                "{sata} SATA disks and {drives} CD-ROM drives; a machine has {SATA_PORTS} ports for them"
            )
        })
    }

    /// What is wrong with it, wherever it is to run, by its fields.
    pub fn problems(&self) -> Vec<Problem> {
        let mut problems = Vec::new();
        let mut check = |good: bool, field: &str, message: String| {
            if !good {
                let field = field.to_owned();
                problems.push(Problem { field, message });
            }
        };
        let (vcpus, memory) = (self.vcpus, self.memory);
        check(
            (1..=MAX_VCPUS).contains(&vcpus),
            "vcpus",
            format!("{vcpus} vCPUs; must be 1 to {MAX_VCPUS}"),
        );
        check(
            (MIN_MEMORY..=MAX_MEMORY).contains(&memory),
            "memory",
            format!("{memory}; must be {MIN_MEMORY} to {MAX_MEMORY}"),
        );
        if let Some(model) = self.cpu.named() {
            check(is_word(model), "cpu.model", WORD.to_owned());
        }
        let count = self.cpu.features.len();
        check(
            count <= MAX_CPU_FEATURES,
            "cpu.features",
            format!("{count} features; at most {MAX_CPU_FEATURES}"),
        );
        for name in self.cpu.features.keys() {
            let shown: String = name.chars().take(32).collect();
            check(
                is_word(name),
                &format!("cpu.features[{shown:?}]"),
                WORD.to_owned(),
            );
        }
        if let Some(topology) = self.cpu.topology {
            let made = topology.vcpus();
            check(
                made == Some(vcpus),
                "cpu.topology",
                format!("its sockets, cores and threads have to make {vcpus} vCPUs"),
            );
        }
        let order = &self.boot_order;
        let different: BTreeSet<_> = order.iter().collect();
        check(
            !order.is_empty() && different.len() == order.len(),
            "boot_order",
            "one or more of `disk`, `cdrom`, `network`, each once".to_owned(),
        );
        check(
            usize::from(self.cdroms) <= SATA_PORTS,
            "cdroms",
            format!("{} drives; at most {SATA_PORTS}", self.cdroms),
        );
        check(
            self.io_threads <= MAX_IO_THREADS,
            "io_threads",
            format!("{} threads; at most {MAX_IO_THREADS}", self.io_threads),
        );
        if let Some(boot) = &self.kernel {
            let initrd = boot.initrd.as_deref();
            check(is_path(&boot.kernel), "kernel.kernel", path_rule());
            check(initrd.is_none_or(is_path), "kernel.initrd", path_rule());
            let line = &boot.cmdline;
            let good = line.len() <= MAX_CMDLINE && !line.chars().any(char::is_control);
            check(
                good,
                "kernel.cmdline",
                format!("one line of up to {MAX_CMDLINE} bytes"),
            );
        }
        if let Some(Tpm {
            passphrase: Some(secret),
        }) = &self.tpm
        {
            let good = secret.is_named();
            check(good, "tpm.passphrase", SecretRef::RULE.to_owned());
        }
        for (name, value) in self.smbios.fields() {
            let good = (1..=MAX_SMBIOS).contains(&value.len())
                && value.bytes().all(|b| b == b' ' || b.is_ascii_graphic());
            let message = format!("1 to {MAX_SMBIOS} printable ASCII characters");
            check(good, &format!("smbios.{name}"), message);
        }
        problems
    }

    /// What differs in `new`, by field, and when that takes effect for a guest that runs.
    pub fn changes(&self, new: &Self) -> Vec<FieldChange> {
        let Self {
            vcpus,
            memory,
            cpu,
            firmware,
            kernel,
            boot_order,
            cdroms,
            io_threads,
            memory_backing,
            clock,
            watchdog,
            tablet,
            smbios,
            tpm,
        } = self;
        let fields = [
            ("vcpus", *vcpus != new.vcpus, Effect::Restart),
            ("memory", *memory != new.memory, Effect::Restart),
            ("cpu", *cpu != new.cpu, Effect::Restart),
            // What is installed boots by one of them.
            ("firmware", *firmware != new.firmware, Effect::Replacement),
            ("kernel", *kernel != new.kernel, Effect::Restart),
            ("boot_order", *boot_order != new.boot_order, Effect::Restart),
            ("io_threads", *io_threads != new.io_threads, Effect::Restart),
            ("cdroms", *cdroms != new.cdroms, Effect::Restart),
            (
                "memory_backing",
                *memory_backing != new.memory_backing,
                Effect::Restart,
            ),
            ("clock", *clock != new.clock, Effect::Restart),
            ("watchdog", *watchdog != new.watchdog, Effect::Restart),
            ("tablet", *tablet != new.tablet, Effect::Restart),
            ("smbios", *smbios != new.smbios, Effect::Restart),
            // What it remembers is in a volume that is made with the VM, and encrypted or not from the first start on.
            ("tpm", *tpm != new.tpm, Effect::Replacement),
        ];
        FieldChange::of(fields).collect()
    }

    /// What a host has to be able to do for it, with these disks and NICs, their networks aside.
    pub fn needs<'a>(
        &self,
        disks: impl Iterator<Item = &'a DiskOptions>,
        nics: impl Iterator<Item = &'a NicOptions>,
    ) -> BTreeSet<Capability> {
        let backing = self.memory_backing;
        let needs = [
            (Capability::Uefi, self.firmware == Firmware::Uefi),
            (
                Capability::SecureBoot,
                self.firmware == Firmware::UefiSecureBoot,
            ),
            (Capability::HugePages, backing.hugepages),
            (Capability::LockedMemory, backing.locked),
            (Capability::SharedMemory, backing.shared),
            (Capability::Watchdog, self.watchdog.is_some()),
            (Capability::SataDisks, self.cdroms > 0),
            (Capability::Tablet, self.tablet),
            (Capability::IoThreads, self.io_threads > 0),
            (Capability::HyperV, self.cpu.hyperv),
            (Capability::Tpm, self.tpm.is_some()),
        ];
        let mut needs = Capability::those(needs);
        needs.extend(disks.flat_map(DiskOptions::needs));
        needs.extend(nics.flat_map(NicOptions::needs));
        needs
    }
}

/// Which firmware starts the guest.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Firmware {
    /// SeaBIOS.
    #[default]
    Bios,
    /// OVMF.
    Uefi,
    /// OVMF that starts what is signed only, by the keys that are enrolled in a new VM's variables (Microsoft's, who signs
    /// the distributions' loaders, too).
    UefiSecureBoot,
}

impl Firmware {
    /// Whether it has variables of its own: boot entries and keys, which stay with the VM.
    pub fn has_variables(self) -> bool {
        match self {
            Self::Bios => false,
            Self::Uefi | Self::UefiSecureBoot => true,
        }
    }
}

/// A kernel that the hypervisor loads by itself. The files lie on the node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct KernelBoot {
    /// The kernel's file.
    pub kernel: PathBuf,
    /// The initial RAM disk's file.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub initrd: Option<PathBuf>,
    /// The kernel's command line.
    #[serde(default)]
    pub cmdline: String,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn on(bus: DiskBus) -> DiskOptions {
        DiskOptions {
            bus,
            ..DiskOptions::default()
        }
    }

    #[test]
    fn drives_and_sata_disks_share_the_ports() {
        let mut hardware = Hardware::new(1, MiB(128));
        let sata = [on(DiskBus::Sata), on(DiskBus::Sata), on(DiskBus::Sata)];
        hardware.cdroms = 3;
        assert_eq!(hardware.too_many(sata.iter()), None);
        hardware.cdroms = 4;
        let why = hardware.too_many(sata.iter()).unwrap();
        assert!(why.contains("3 SATA disks and 4 CD-ROM drives"), "{why}");
        hardware.cdroms = 1;
        let media = [on(DiskBus::Cdrom), on(DiskBus::Cdrom)];
        let why = hardware.too_many(media.iter()).unwrap();
        assert!(why.contains("2 media"), "{why}");
        hardware.cdroms = 7;
        let problems = hardware.problems();
        assert_eq!(problems.len(), 1);
        assert_eq!(problems[0].field, "cdroms");
    }

    #[test]
    fn a_boot_order_names_something_and_nothing_twice() {
        let mut hardware = Hardware::new(1, MiB(128));
        for wrong in [vec![], vec![BootDevice::Disk, BootDevice::Disk]] {
            hardware.boot_order = wrong;
            assert_eq!(hardware.problems()[0].field, "boot_order");
        }
        hardware.boot_order = vec![BootDevice::Network];
        assert_eq!(hardware.problems(), []);
    }
}
