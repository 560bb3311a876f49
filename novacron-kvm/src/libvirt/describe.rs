//! A domain's description from its spec.
//!
//! A q35 machine with virtio devices, as `QemuHypervisor` makes it, and described for people who look at it with
//! `virsh` or virt-manager. Devices carry aliases of ours (`ua-disk-<volume>`, `ua-nic-<port>`): they say which volume
//! and port each is, in the definition and while the guest runs, and a device is taken back by its alias.

mod disk;
mod nic;
mod tpm;

use std::path::{Path, PathBuf};

use novacron_core::driver::{DomainId, DomainSpec};
use novacron_core::model::{
    self, BootDevice, ClockOffset, CpuModel, DiskBus, Hardware, MemoryBacking, Smbios, VmId,
};
use novacron_core::{Error, ErrorKind, Problem, Result};
use uuid::Uuid;

use super::host::MACHINE;
use super::notes::{Identity, Media, Metadata};
use super::xml::{
    Access, Amount, Backend, Backing, Balloon, Boot, Character, Clock, Controller,
    ControllerDriver, Count, Cpu, CpuFeature, CpuModelXml, Devices, Disk, DomainXml, Empty,
    Features, Graphics, HyperV, Input, Loader, Log, Model, Os, OsType, Period, QEMU_NAMESPACE,
    QemuArgument, QemuArguments, Rng, Spinlocks, Switch, Target, Timer, TopologyXml, Typed, Video,
    WatchdogXml,
};
use crate::accel::Accel;
use crate::boot;
use crate::firmware::Ovmf;
use crate::qemu::{BALLOON_STATS_SECS, reports_free_pages, smbios, watchdog_action};

pub(super) use disk::{bus_name, describe_disk, disk_alias, free_target, tune};
use disk::{describe_drive, describe_seed};
pub(super) use nic::{bandwidth, describe_nic, kib, nic_alias};
use tpm::describe_tpm;

/// Root ports that stay empty for what is plugged in later.
const SPARE_PORTS: usize = 8;
/// The most disks and NICs that a machine is given at its start.
const MAX_DEVICES: usize = 100;
/// The most bytes of a VM's name in the domain's name.
const NAME: usize = 60;

/// The names, in a domain's folder, of what is kept there.
pub(super) const SEED: &str = "seed.iso";
pub(super) const CONSOLE_LOG: &str = "console.log";
pub(super) const VARIABLES: &str = "variables.fd";
const SEED_ALIAS: &str = "ua-seed";

/// What is not in the spec and decides the description.
#[derive(Clone, Debug)]
pub(super) struct Place {
    /// How guests run on the host.
    pub(super) accel: Accel,
    /// The domain's own folder on the host, if this process can reach it.
    pub(super) folder: Option<PathBuf>,
    /// Its UEFI firmware, if it has one, and where the variables are.
    pub(super) flash: Option<(Ovmf, PathBuf)>,
}

/// The domain's UUID for libvirt: another one for each start, which the guest does not see.
pub(super) fn uuid_of(id: DomainId) -> Uuid {
    let name = format!("{}/{}/{}", id.cluster, id.vm, id.epoch);
    Uuid::new_v5(&Uuid::NAMESPACE_URL, name.as_bytes())
}

/// The whole description.
pub(super) fn describe(
    spec: &DomainSpec,
    place: &Place,
    operation: &'static str,
) -> Result<DomainXml> {
    check(spec, operation)?;
    let (id, hardware) = (spec.id, &spec.hardware);
    let io_threads = u32::from(hardware.io_threads);
    let mut devices = basic_devices(place, hardware.tablet);
    if spec
        .disks
        .iter()
        .any(|disk| disk.options.bus == DiskBus::Scsi)
    {
        devices.controllers.push(Controller {
            kind: "scsi".to_owned(),
            index: Some(0),
            model: Some("virtio-scsi".to_owned()),
            driver: (io_threads > 0).then_some(ControllerDriver { io_thread: Some(1) }),
        });
    }
    let (media, disks): (Vec<_>, Vec<_>) =
        (spec.disks.iter()).partition(|disk| disk.options.bus == DiskBus::Cdrom);
    let order = |device, n| {
        let place = boot::place(hardware, device, n, |device| match device {
            BootDevice::Disk => disks.len(),
            BootDevice::Cdrom => hardware.cdroms.into(),
            BootDevice::Network => spec.nics.len(),
        });
        place.map(|place| Boot {
            order: u32::try_from(place + 1).unwrap_or(u32::MAX),
        })
    };
    for (n, disk) in disks.iter().enumerate() {
        let disk = describe_disk(disk, &devices.disks, io_threads, operation)?;
        devices.disks.push(Disk {
            boot: order(BootDevice::Disk, n),
            ..disk
        });
    }
    for n in 0..hardware.cdroms {
        let medium = media.get(usize::from(n)).copied();
        let port = boot::drive_port(hardware, n);
        let drive = describe_drive((n, port), medium, &devices.disks, operation)?;
        devices.disks.push(Disk {
            boot: order(BootDevice::Cdrom, n.into()),
            ..drive
        });
    }
    let drives = devices.disks.iter().filter(|disk| disk.is_drive());
    let media = Media::of(media.iter().map(|medium| medium.volume).zip(drives));
    if spec.seed.is_some() {
        let Some(folder) = &place.folder else {
            let message = "a seed's CD cannot be put onto a host that is reached by libvirt alone; \
                           on a local libvirt, give the hypervisor a state folder";
            return Err(Error::new(ErrorKind::Unsupported, operation, message).with("domain", id));
        };
        let seed = &folder.join(SEED);
        let name = free_target(&devices.disks, DiskBus::Virtio);
        devices.disks.push(describe_seed(seed, &name, operation)?);
    }
    let reports = reports_free_pages(hardware.memory_backing);
    devices.balloon = Some(Balloon {
        model: "virtio".to_owned(),
        deflates: Some("on".to_owned()),
        reports: reports.then(|| "on".to_owned()),
        stats: Some(Period {
            period: BALLOON_STATS_SECS,
        }),
    });
    devices.watchdogs = (hardware.watchdog.into_iter())
        .map(|action| WatchdogXml {
            model: "i6300esb".to_owned(),
            action: Some(watchdog_action(action).to_owned()),
        })
        .collect();
    if hardware.tpm.is_some() {
        devices.tpms = vec![describe_tpm(id, place.folder.as_deref(), operation)?];
    }
    for (n, nic) in spec.nics.iter().enumerate() {
        let boot = order(BootDevice::Network, n);
        devices.interfaces.push(describe_nic(nic, boot, operation)?);
    }
    let describe = format!(
        "NovaCron's VM {}, start {}, of cluster {}. To be changed through NovaCron only.",
        id.vm, id.epoch, id.cluster
    );
    let word = |word: &str| Some(word.to_owned());
    let is_secure = place.flash.as_ref().is_some_and(|(ovmf, _)| ovmf.is_secure);
    Ok(DomainXml {
        kind: kind_of(place.accel).to_owned(),
        name: name_of(spec),
        uuid: Some(uuid_of(id)),
        generation_id: Some(spec.generation_id.to_string()),
        qemu_namespace: Some(QEMU_NAMESPACE),
        title: Some(spec.name.clone()),
        description: Some(describe),
        metadata: Metadata {
            domain: Some(Identity::of(id)),
            media,
            ..Metadata::default()
        },
        memory: Some(Amount {
            unit: "MiB".to_owned(),
            value: hardware.memory.0,
        }),
        memory_backing: backing(hardware.memory_backing),
        vcpu: Some(Count {
            value: hardware.vcpus,
        }),
        io_threads: (io_threads > 0).then_some(Count { value: io_threads }),
        os: Some(boot(spec, place, operation)?),
        features: Some(Features {
            acpi: Some(Empty {}),
            apic: Some(Empty {}),
            hyperv: hardware.cpu.hyperv.then(hyperv),
            smm: is_secure.then(|| Switch {
                state: "on".to_owned(),
            }),
        }),
        cpu: Some(cpu(&hardware.cpu, hardware.vcpus, place.accel)),
        clock: Some(clock(hardware)),
        on_poweroff: word("destroy"),
        on_reboot: word("restart"),
        // Kept until its end is noted: libvirt itself forgets why a domain crashed when it is restarted.
        on_crash: word("preserve"),
        devices,
        qemu: Some(identity(id, &hardware.smbios)),
    })
}

/// libvirt's word for how guests run.
pub(super) fn kind_of(accel: Accel) -> &'static str {
    match accel {
        Accel::Kvm => "kvm",
        Accel::Tcg => "qemu",
    }
}

fn backing(backing: MemoryBacking) -> Option<Backing> {
    if backing == MemoryBacking::default() {
        return None;
    }
    Some(Backing {
        hugepages: backing.hugepages.then_some(Empty {}),
        locked: backing.locked.then_some(Empty {}),
        source: backing.shared.then(|| Typed {
            kind: "memfd".to_owned(),
        }),
        access: backing.shared.then(|| Access {
            mode: "shared".to_owned(),
        }),
    })
}

/// libvirt checks a CPU that has a name or features before the start (`partial`), and ends the start for want of any.
fn cpu(cpu: &model::Cpu, vcpus: u32, accel: Accel) -> Cpu {
    let mode = match (&cpu.model, accel) {
        (CpuModel::Named(_), _) => "custom",
        (CpuModel::HostModel, _) => "host-model",
        (CpuModel::Host | CpuModel::Baseline, Accel::Kvm) => "host-passthrough",
        (CpuModel::Host | CpuModel::Baseline, Accel::Tcg) => "maximum",
    };
    let is_custom = mode == "custom";
    let word = |word: &str| Some(word.to_owned());
    let topology = cpu.topology_of(vcpus);
    let features = cpu.features.iter().map(|(name, wanted)| CpuFeature {
        policy: word(if *wanted { "require" } else { "disable" }),
        name: name.clone(),
    });
    Cpu {
        mode: word(mode),
        matching: is_custom.then(|| "exact".to_owned()),
        check: is_custom.then(|| "partial".to_owned()),
        model: cpu.named().map(|name| CpuModelXml {
            fallback: word("forbid"),
            name: name.to_owned(),
        }),
        topology: Some(TopologyXml {
            sockets: topology.sockets,
            cores: topology.cores,
            threads: topology.threads,
        }),
        features: features.collect(),
    }
}

/// The enlightenments that Windows makes use of and that kernels since 4.20 have.
fn hyperv() -> HyperV {
    let on = || Switch {
        state: "on".to_owned(),
    };
    HyperV {
        relaxed: on(),
        vapic: on(),
        spinlocks: Spinlocks {
            state: "on".to_owned(),
            retries: 0x1fff,
        },
        vpindex: on(),
        runtime: on(),
        synic: on(),
        stimer: on(),
        frequencies: on(),
        tlbflush: on(),
        ipi: on(),
    }
}

/// Windows counts ticks: those that it missed are made up for.
fn clock(hardware: &Hardware) -> Clock {
    let timer = |name: &str, present: Option<&str>, policy: Option<&str>| Timer {
        name: name.to_owned(),
        present: present.map(str::to_owned),
        tick_policy: policy.map(str::to_owned),
    };
    let timers = [
        timer("rtc", None, Some("catchup")),
        timer("pit", None, Some("delay")),
        timer("hpet", Some("no"), None),
        timer("hypervclock", Some("yes"), None),
    ];
    Clock {
        offset: match hardware.clock {
            ClockOffset::Utc => "utc",
            ClockOffset::LocalTime => "localtime",
        }
        .to_owned(),
        timers: match hardware.cpu.hyperv {
            true => timers.into(),
            false => Vec::new(),
        },
    }
}

/// The guest sees the VM's id, at each of its starts, and not the start's own UUID. libvirt's `<hwuuid>` says that in
/// versions newer than 9.0; QEMU's argument says it to all, and marks the domain as tainted by it.
fn identity(id: DomainId, said: &Smbios) -> QemuArguments {
    let system = format!("{},uuid={}", smbios(said), id.vm);
    let arguments = ["-smbios".to_owned(), system];
    QemuArguments {
        arguments: arguments.map(|value| QemuArgument { value }).into(),
    }
}

fn check(spec: &DomainSpec, operation: &'static str) -> Result<()> {
    if spec.disks.len() + spec.nics.len() <= MAX_DEVICES {
        return Ok(());
    }
    let message = "more disks and NICs than the machine has places for";
    let problem = Problem {
        field: "disks".to_owned(),
        message: message.to_owned(),
    };
    Err(Error::invalid(operation, vec![problem]))
}

/// The domain's name on its host: readable, and nobody else's.
fn name_of(spec: &DomainSpec) -> String {
    let clean = spec.name.chars().map(|c| {
        if c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-') {
            c
        } else {
            '_'
        }
    });
    let name: String = clean.take(NAME).collect();
    format!("{name}-{}", spec.id)
}

/// The VM that a domain's name is of, if it is one of ours.
pub(super) fn named(name: &str) -> Option<VmId> {
    let (vm, epoch) = name.rsplit_once('.')?;
    epoch.parse::<u64>().ok()?;
    let id = vm.len().checked_sub(uuid::fmt::Hyphenated::LENGTH)?;
    vm.get(id..)?.parse().ok()
}

fn boot(spec: &DomainSpec, place: &Place, operation: &'static str) -> Result<Os> {
    let mut os = Os {
        kind: OsType {
            arch: "x86_64".to_owned(),
            machine: Some(MACHINE.to_owned()),
            value: "hvm".to_owned(),
        },
        ..Os::default()
    };
    if let Some((ovmf, variables)) = &place.flash {
        let yes = |is| if is { "yes" } else { "no" }.to_owned();
        os.loader = Some(Loader {
            readonly: yes(true),
            secure: yes(ovmf.is_secure),
            kind: "pflash".to_owned(),
            path: path(&ovmf.code, operation)?,
        });
        os.nvram = Some(path(variables, operation)?);
    }
    if let Some(kernel) = &spec.hardware.kernel {
        os.kernel = Some(path(&kernel.kernel, operation)?);
        let initrd = kernel.initrd.as_ref();
        os.initrd = initrd.map(|file| path(file, operation)).transpose()?;
        os.cmdline = Some(kernel.cmdline.clone());
    }
    Ok(os)
}

fn basic_devices(place: &Place, has_tablet: bool) -> Devices {
    let controller = |kind: &str, index, model: &str| Controller {
        kind: kind.to_owned(),
        index,
        model: Some(model.to_owned()),
        driver: None,
    };
    let mut controllers = vec![
        controller("pci", Some(0), "pcie-root"),
        match has_tablet {
            true => controller("usb", Some(0), "qemu-xhci"),
            false => controller("usb", None, "none"),
        },
    ];
    controllers.extend((0..SPARE_PORTS).map(|_| controller("pci", None, "pcie-root-port")));
    let log = place.folder.as_ref().and_then(|folder| {
        Some(Log {
            file: folder.join(CONSOLE_LOG).to_str()?.to_owned(),
            append: Some("on".to_owned()),
        })
    });
    let port = |kind: Option<&str>| Target {
        port: Some(0),
        kind: kind.map(str::to_owned),
        ..Target::default()
    };
    Devices {
        controllers,
        serials: vec![Character {
            kind: "pty".to_owned(),
            log: log.clone(),
            target: Some(port(None)),
        }],
        consoles: vec![Character {
            kind: "pty".to_owned(),
            log,
            target: Some(port(Some("serial"))),
        }],
        channels: vec![Character {
            kind: "unix".to_owned(),
            log: None,
            target: Some(Target {
                kind: Some("virtio".to_owned()),
                name: Some("org.qemu.guest_agent.0".to_owned()),
                ..Target::default()
            }),
        }],
        inputs: has_tablet
            .then(|| Input {
                kind: "tablet".to_owned(),
                bus: "usb".to_owned(),
            })
            .into_iter()
            .collect(),
        graphics: vec![Graphics {
            kind: "vnc".to_owned(),
            listens: vec![Typed {
                kind: "none".to_owned(),
            }],
        }],
        videos: vec![Video {
            model: Typed {
                kind: "vga".to_owned(),
            },
        }],
        rngs: vec![Rng {
            model: "virtio".to_owned(),
            backend: Backend {
                model: "random".to_owned(),
                value: "/dev/urandom".to_owned(),
            },
        }],
        panics: vec![Model {
            model: Some("isa".to_owned()),
        }],
        ..Devices::default()
    }
}

/// XML is text, so a path must be; and it must not depend on who reads it.
pub(super) fn path(path: &Path, operation: &'static str) -> Result<String> {
    match path.to_str() {
        Some(text) if path.is_absolute() && !text.chars().any(char::is_control) => {
            Ok(text.to_owned())
        }
        _ => {
            let message = format!("{} is not an absolute path in UTF-8", path.display());
            Err(Error::new(ErrorKind::Invalid, operation, message))
        }
    }
}

#[cfg(test)]
mod tests;
