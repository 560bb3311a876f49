//! What operating systems want of their machine.
//!
//! A profile is a starting point in a caller's hand, and nothing that a VM keeps: it fills in a [`VmSpec`], of which
//! everything can be changed afterwards.

use super::disk::DiskBus;
use super::hardware::{ClockOffset, Firmware, Tpm};
use super::nic::NicModel;
use super::units::MiB;
use super::vm::VmSpec;

/// What an operating system wants of its machine, by its short id in libosinfo (`osinfo-query os`).
///
/// ```
/// use novacron_core::model::{Firmware, OsProfile};
/// use novacron_core::{MiB, VmSpec};
///
/// let windows = OsProfile::of("win11").unwrap();
/// let spec = VmSpec::new("desktop-1").image("empty").cdrom("install", "win11-iso");
/// let spec = windows.furnish(spec).vcpus(4).memory(MiB(8192));
/// assert_eq!(spec.hardware.firmware, Firmware::UefiSecureBoot);
/// assert!(spec.hardware.tpm.is_some());
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OsProfile {
    id: &'static str,
    name: &'static str,
    family: Family,
    memory: MiB,
    has_virtio: bool,
}

/// What decides about devices.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Family {
    /// Linux and the BSDs, whose kernels have virtio's drivers.
    Unix,
    /// Windows that starts by UEFI and asks for no more.
    Windows,
    /// Windows that is only installed with Secure Boot and a TPM.
    SecureWindows,
}

const fn unix(id: &'static str, name: &'static str, mib: u64) -> OsProfile {
    OsProfile {
        id,
        name,
        family: Family::Unix,
        memory: MiB(mib),
        has_virtio: true,
    }
}

const fn windows(id: &'static str, name: &'static str, family: Family) -> OsProfile {
    OsProfile {
        id,
        name,
        family,
        memory: MiB(4096),
        has_virtio: false,
    }
}

/// Memory is what a server without a desktop gets along with; Windows with one.
const ALL: &[OsProfile] = &[
    unix("almalinux8", "AlmaLinux 8", 1536),
    unix("almalinux9", "AlmaLinux 9", 1536),
    unix("almalinux10", "AlmaLinux 10", 1536),
    unix("alpinelinux3.20", "Alpine Linux 3.20", 256),
    unix("alpinelinux3.21", "Alpine Linux 3.21", 256),
    unix("archlinux", "Arch Linux", 1024),
    unix("centos-stream9", "CentOS Stream 9", 1536),
    unix("centos-stream10", "CentOS Stream 10", 1536),
    unix("debian11", "Debian 11", 1024),
    unix("debian12", "Debian 12", 1024),
    unix("debian13", "Debian 13", 1024),
    unix("fedora41", "Fedora 41", 2048),
    unix("fedora42", "Fedora 42", 2048),
    unix("freebsd13.4", "FreeBSD 13.4", 512),
    unix("freebsd14.2", "FreeBSD 14.2", 512),
    unix("opensuse15.6", "openSUSE Leap 15.6", 1024),
    unix("rhel8.10", "Red Hat Enterprise Linux 8.10", 1536),
    unix("rhel9.5", "Red Hat Enterprise Linux 9.5", 1536),
    unix("rocky8", "Rocky Linux 8", 1536),
    unix("rocky9", "Rocky Linux 9", 1536),
    unix("sle15sp6", "SUSE Linux Enterprise 15 SP6", 1024),
    unix("ubuntu20.04", "Ubuntu 20.04", 1024),
    unix("ubuntu22.04", "Ubuntu 22.04", 1536),
    unix("ubuntu24.04", "Ubuntu 24.04", 1536),
    windows("win10", "Windows 10", Family::Windows),
    windows("win11", "Windows 11", Family::SecureWindows),
    windows("win2k16", "Windows Server 2016", Family::Windows),
    windows("win2k19", "Windows Server 2019", Family::Windows),
    windows("win2k22", "Windows Server 2022", Family::Windows),
    windows("win2k25", "Windows Server 2025", Family::Windows),
];

impl OsProfile {
    /// The profile of this short id, if there is one.
    pub fn of(id: &str) -> Option<Self> {
        ALL.iter().find(|profile| profile.id == id).copied()
    }

    /// All of them, by their ids.
    pub fn all() -> impl Iterator<Item = Self> {
        ALL.iter().copied()
    }

    /// Its short id.
    pub fn id(self) -> &'static str {
        self.id
    }

    /// Its name for people.
    pub fn name(self) -> &'static str {
        self.name
    }

    /// The same, installed with virtio's drivers, as images of Windows for clouds are. Linux always has them.
    #[must_use]
    pub fn with_virtio(mut self) -> Self {
        self.has_virtio = true;
        self
    }

    /// The spec with the memory, the firmware, the clock and the devices that it wants, for the disks and NICs that the spec
    /// has by now; media stay in their drives. Change afterwards what is to be otherwise. Options of the spec that its devices
    /// have not (a read-only disk on SATA, queues of an e1000e) are told of when the VM is created.
    #[must_use]
    pub fn furnish(self, mut spec: VmSpec) -> VmSpec {
        let (bus, model) = match self.has_virtio {
            true => (DiskBus::Virtio, NicModel::Virtio),
            // Windows has a driver for it since Windows 8; for NVMe, hosts of libvirt have no device.
            false => (DiskBus::Sata, NicModel::E1000e),
        };
        let disks = spec.disks.iter_mut().map(|disk| &mut disk.options);
        for options in disks.filter(|options| options.bus != DiskBus::Cdrom) {
            options.bus = bus;
        }
        for nic in &mut spec.nics {
            nic.options.model = model;
        }
        let hardware = &mut spec.hardware;
        hardware.memory = self.memory;
        if self.family != Family::Unix {
            // Windows 11's set-up wants two.
            hardware.vcpus = hardware.vcpus.max(2);
        }
        // Reads and writes are not held up by the thread that emulates the other devices.
        hardware.io_threads = u8::from(self.has_virtio);
        let is_windows = self.family != Family::Unix;
        hardware.cpu.hyperv = is_windows;
        hardware.tablet = is_windows;
        (hardware.clock, hardware.firmware, hardware.tpm) = match self.family {
            Family::Unix => (ClockOffset::Utc, Firmware::Bios, None),
            Family::Windows => (ClockOffset::LocalTime, Firmware::Uefi, None),
            Family::SecureWindows => {
                let tpm = Some(Tpm::default());
                (ClockOffset::LocalTime, Firmware::UefiSecureBoot, tpm)
            }
        };
        spec
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_profile_makes_a_machine_that_can_be() {
        let mut ids = std::collections::BTreeSet::new();
        for profile in OsProfile::all() {
            let spec = VmSpec::new("guest").image("image").cdrom("cd", "iso");
            for profile in [profile, profile.with_virtio()] {
                let spec = profile.furnish(spec.clone());
                assert_eq!(spec.hardware.problems(), [], "{profile:?}");
                let options = spec.disks.iter().map(|disk| &disk.options);
                assert_eq!(spec.hardware.too_many(options), None, "{profile:?}");
                assert_eq!(spec.disks[1].options.bus, DiskBus::Cdrom);
            }
            assert_eq!(OsProfile::of(profile.id()), Some(profile));
            assert!(ids.insert(profile.id()), "{} is there twice", profile.id());
        }
        assert_eq!(OsProfile::of("win3.1"), None);
    }

    #[test]
    fn windows_without_drivers_gets_devices_that_it_knows() {
        let plain = || VmSpec::new("guest").image("image");
        let windows = OsProfile::of("win2k22").unwrap();
        let spec = windows.furnish(plain());
        assert_eq!(spec.disks[0].options.bus, DiskBus::Sata);
        assert!(spec.hardware.cpu.hyperv);
        assert_eq!(spec.hardware.clock, ClockOffset::LocalTime);
        let spec = windows.with_virtio().furnish(plain());
        assert_eq!(spec.disks[0].options.bus, DiskBus::Virtio);
        let spec = OsProfile::of("debian12").unwrap().furnish(plain());
        assert_eq!(spec.disks[0].options.bus, DiskBus::Virtio);
        assert!(!spec.hardware.cpu.hyperv && spec.hardware.tpm.is_none());
    }
}
