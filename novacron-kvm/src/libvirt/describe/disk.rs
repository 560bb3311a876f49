//! A disk, or a CD-ROM drive, as libvirt's XML.

use std::path::Path;

use novacron_core::driver::{AttachmentSource, DiskAttachment};
use novacron_core::model::{
    Discard, DiskBus, DiskCache, DiskIo, DiskLimits, VolumeFormat, VolumeId,
};
use novacron_core::{Error, ErrorKind, Result};

use super::super::xml::{
    Address, Alias, Disk, DiskDriver, DiskSource, Empty, IoTune, SourceHost, Target,
};
use super::{SEED_ALIAS, path};

pub(in super::super) fn disk_alias(volume: VolumeId) -> String {
    format!("ua-disk-{volume}")
}

impl Disk {
    /// Whether it is a CD-ROM drive, with a medium or without.
    pub(in super::super) fn is_drive(&self) -> bool {
        self.device == "cdrom"
    }

    /// What tells its content from others on its host; none for an empty drive.
    pub(in super::super) fn place(&self) -> Option<String> {
        let source = self.source.as_ref()?;
        let socket = source.host.as_ref().and_then(|host| host.socket.as_ref());
        let export = socket.map(|socket| {
            let name = source.name.as_deref().unwrap_or_default();
            format!("{socket} {name}")
        });
        let place = source.file.as_ref().or(source.device.as_ref());
        place.cloned().or(export)
    }

    /// The volume, if it is one of ours.
    pub(in super::super) fn volume(&self) -> Option<VolumeId> {
        let alias = self.alias.as_ref()?;
        alias.name.strip_prefix("ua-disk-")?.parse().ok()
    }
}

/// A disk, beside these, in a machine with so many I/O threads.
pub(in super::super) fn describe_disk(
    disk: &DiskAttachment,
    others: &[Disk],
    io_threads: u32,
    operation: &'static str,
) -> Result<Disk> {
    let target = &free_target(others, disk.options.bus);
    let (kind, source) = match &disk.attachment.source {
        AttachmentSource::File(file) => (
            "file",
            DiskSource {
                file: Some(path(file, operation)?),
                ..DiskSource::default()
            },
        ),
        AttachmentSource::BlockDevice(device) => (
            "block",
            DiskSource {
                device: Some(path(device, operation)?),
                ..DiskSource::default()
            },
        ),
        AttachmentSource::Nbd { socket, export } => (
            "network",
            DiskSource {
                protocol: Some("nbd".to_owned()),
                name: Some(export.clone()),
                host: Some(SourceHost {
                    transport: Some("unix".to_owned()),
                    socket: Some(path(socket, operation)?),
                }),
                ..DiskSource::default()
            },
        ),
        other => {
            let message = format!("libvirt is not told how to reach a volume by {other:?}");
            return Err(Error::new(ErrorKind::Unsupported, operation, message));
        }
    };
    let format = match disk.attachment.format {
        VolumeFormat::Qcow2 => "qcow2",
        VolumeFormat::Raw => "raw",
    };
    let plain = virtio_disk(kind, format, target);
    let options = &disk.options;
    let word = |word: &str| Some(word.to_owned());
    Ok(Disk {
        source: Some(source),
        driver: plain.driver.map(|driver| DiskDriver {
            cache: match options.cache {
                // QEMU's own.
                DiskCache::WriteBack => None,
                DiskCache::None => word("none"),
                DiskCache::WriteThrough => word("writethrough"),
                DiskCache::DirectSync => word("directsync"),
                DiskCache::Unsafe => word("unsafe"),
            },
            io: match options.io {
                DiskIo::Threads => None,
                DiskIo::Native => word("native"),
                DiskIo::IoUring => word("io_uring"),
            },
            discard: match options.discard {
                Discard::Unmap => word("unmap"),
                Discard::Ignore => word("ignore"),
            },
            io_thread: on_thread(options.bus, others, io_threads),
            ..driver
        }),
        target: Target {
            bus: word(bus_name(options.bus)),
            ..plain.target
        },
        iotune: tune(&options.limits),
        readonly: options.read_only.then_some(Empty {}),
        serial: Some(serial(&disk.name)).filter(|serial| !serial.is_empty()),
        alias: Some(Alias {
            name: disk_alias(disk.volume),
        }),
        address: match options.bus {
            DiskBus::Scsi => Some(scsi_address(others)),
            DiskBus::Sata => Some(drive_address(on_bus(others, DiskBus::Sata).count())),
            DiskBus::Virtio | DiskBus::Nvme | DiskBus::Cdrom => None,
        },
        ..plain
    })
}

/// A CD-ROM drive, with its medium if it has one. It keeps its alias, so that is no medium's; which volume the medium is
/// stands in the domain's notes.
pub(in super::super) fn describe_drive(
    (n, port): (u8, u8),
    medium: Option<&DiskAttachment>,
    others: &[Disk],
    operation: &'static str,
) -> Result<Disk> {
    let name = free_target(others, DiskBus::Cdrom);
    let medium = match medium {
        Some(medium) => describe_disk(medium, &[], 0, operation)?,
        None => virtio_disk("file", "raw", &name),
    };
    Ok(Disk {
        device: "cdrom".to_owned(),
        target: Target {
            device: Some(name),
            bus: Some(bus_name(DiskBus::Cdrom).to_owned()),
            ..Target::default()
        },
        readonly: Some(Empty {}),
        serial: None,
        alias: Some(Alias {
            name: format!("ua-cd{n}"),
        }),
        address: Some(drive_address(port.into())),
        ..medium
    })
}

/// What may be read and written of a disk.
pub(in super::super) fn tune(limits: &DiskLimits) -> Option<IoTune> {
    let tune = IoTune {
        bytes: limits.bytes_sec,
        read_bytes: limits.read_bytes_sec,
        write_bytes: limits.write_bytes_sec,
        iops: limits.iops,
        read_iops: limits.read_iops,
        write_iops: limits.write_iops,
    };
    (tune != IoTune::default()).then_some(tune)
}

/// The thread of the next disk on a bus: those on virtio have them in turn.
fn on_thread(bus: DiskBus, others: &[Disk], io_threads: u32) -> Option<u32> {
    let before = u32::try_from(on_bus(others, bus).count()).ok()?;
    let thread = before.checked_rem(io_threads)? + 1;
    (bus == DiskBus::Virtio).then_some(thread)
}

/// The disks on a bus, drives aside.
fn on_bus(disks: &[Disk], bus: DiskBus) -> impl Iterator<Item = &Disk> + Clone {
    let is_on =
        move |disk: &&Disk| disk.target.bus.as_deref() == Some(bus_name(bus)) && !disk.is_drive();
    disks.iter().filter(is_on)
}

/// A place on the first controller.
fn drive_address(unit: usize) -> Address {
    let zero = || Some("0".to_owned());
    Address {
        kind: "drive".to_owned(),
        controller: zero(),
        bus: zero(),
        target: zero(),
        unit: Some(unit.to_string()),
    }
}

/// The first place on our controller that none of these disks has. libvirt itself would put the eighth disk on a
/// controller of another model.
fn scsi_address(others: &[Disk]) -> Address {
    let taken = on_bus(others, DiskBus::Scsi).filter_map(|disk| disk.address.as_ref());
    let free = |address: &Address| taken.clone().all(|taken| taken.unit != address.unit);
    let mut addresses = (0..).map(drive_address);
    addresses.find(free).unwrap_or_default()
}

/// libvirt's word for a bus.
pub(in super::super) fn bus_name(bus: DiskBus) -> &'static str {
    match bus {
        DiskBus::Virtio => "virtio",
        DiskBus::Scsi => "scsi",
        DiskBus::Sata | DiskBus::Cdrom => "sata",
        DiskBus::Nvme => "nvme",
    }
}

pub(super) fn describe_seed(file: &Path, target: &str, operation: &'static str) -> Result<Disk> {
    Ok(Disk {
        source: Some(DiskSource {
            file: Some(path(file, operation)?),
            ..DiskSource::default()
        }),
        readonly: Some(Empty {}),
        serial: Some("cidata".to_owned()),
        alias: Some(Alias {
            name: SEED_ALIAS.to_owned(),
        }),
        ..virtio_disk("file", "raw", target)
    })
}

fn virtio_disk(kind: &str, format: &str, target: &str) -> Disk {
    Disk {
        kind: kind.to_owned(),
        device: "disk".to_owned(),
        driver: Some(DiskDriver {
            name: "qemu".to_owned(),
            format: format.to_owned(),
            discard: Some("unmap".to_owned()),
            ..DiskDriver::default()
        }),
        target: Target {
            device: Some(target.to_owned()),
            bus: Some("virtio".to_owned()),
            ..Target::default()
        },
        ..Disk::default()
    }
}

/// The name of the n-th disk on a bus: `vda`, …, `vdz`, `vdaa`, … on virtio, `sda`, … on the others.
fn target(bus: DiskBus, n: usize) -> String {
    let mut letters = Vec::new();
    let mut rest = n + 1;
    while rest > 0 {
        rest -= 1;
        letters.push(b'a' + (rest % 26) as u8);
        rest /= 26;
    }
    let letters = letters.into_iter().rev().map(char::from);
    let prefix = if bus == DiskBus::Virtio { "vd" } else { "sd" };
    prefix.chars().chain(letters).collect()
}

/// The first name that none of these disks has.
pub(in super::super) fn free_target(disks: &[Disk], bus: DiskBus) -> String {
    let taken = |name: &String| {
        let mut names = disks.iter().filter_map(|disk| disk.target.device.as_ref());
        names.any(|taken| taken == name)
    };
    (0..=disks.len())
        .map(|n| target(bus, n))
        .find(|name| !taken(name))
        .unwrap_or_else(|| target(bus, disks.len()))
}

/// The first 20 bytes of a name, cut between characters, of those that libvirt takes in a serial.
fn serial(name: &str) -> String {
    let clean = name.chars().map(|c| {
        if c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | '.' | '+' | ' ') {
            c
        } else {
            '_'
        }
    });
    clean.take(20).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn targets_go_on_after_z_and_fill_gaps() {
        let names = [0, 25, 26, 27, 701, 702].into_iter();
        let names: Vec<_> = names.map(|n| target(DiskBus::Virtio, n)).collect();
        assert_eq!(names, ["vda", "vdz", "vdaa", "vdab", "vdzz", "vdaaa"]);
        let taken = |name: &str| virtio_disk("file", "raw", name);
        assert_eq!(
            free_target(&[taken("vda"), taken("vdc")], DiskBus::Virtio),
            "vdb"
        );
        assert_eq!(free_target(&[taken("vda")], DiskBus::Sata), "sda");
    }
}
