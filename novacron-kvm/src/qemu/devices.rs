//! Disks and NICs as QEMU's objects: their ids, and the JSON and `key=value` that make them.
//!
//! | object | id | made by |
//! |---|---|---|
//! | disk device | `disk-<volume>` | `-device`, `device_add` |
//! | I/O thread | `io0…` | `-object` |
//! | CD-ROM drive | `cd0…cd5` | `-device`; the node of its medium says which volume that is |
//! | a disk's first layer | `v<volume in base 32>` | `-blockdev`, `blockdev-add` |
//! | a layer on top | `s<snapshot in base 32>` | `blockdev-add` before a pivot |
//! | NIC device, its link | `nic-<port>`, `net-<port>` | `-device`/`device_add`, `-netdev`/`netdev_add` |
//!
//! QEMU's state is the only record of what is attached now; the ids make it readable after a restart. A node's name has
//! at most 31 characters, hence the base 32.

use std::path::Path;

use novacron_core::model::{
    Discard, DiskBus, DiskCache, DiskIo, DiskLimits, DiskOptions, NicModel, NicOptions, PortId,
    SnapshotId, VolumeFormat, VolumeId,
};
use serde_json::{Value, json};
use uuid::Uuid;

use super::spec::{StoredDisk, StoredNic, StoredSource};

/// The id of a volume's device.
pub(super) fn disk_id(volume: VolumeId) -> String {
    format!("disk-{volume}")
}

/// The id of a port's device.
pub(super) fn nic_id(port: PortId) -> String {
    format!("nic-{port}")
}

/// The id of a port's link to the host.
pub(super) fn link_id(port: PortId) -> String {
    format!("net-{port}")
}

/// The volume of a device, if it is a disk.
pub(super) fn volume_of(device: &str) -> Option<VolumeId> {
    device.strip_prefix("disk-")?.parse().ok()
}

/// The id of a CD-ROM drive.
pub(super) fn drive_id(drive: u8) -> String {
    format!("cd{drive}")
}

/// Whether a device is a CD-ROM drive.
pub(super) fn is_drive(device: &str) -> bool {
    device
        .strip_prefix("cd")
        .is_some_and(|drive| drive.parse::<u8>().is_ok())
}

/// The port of a device, if it is a NIC.
pub(super) fn port_of(device: &str) -> Option<PortId> {
    device.strip_prefix("nic-")?.parse().ok()
}

/// The node of a volume's first layer.
pub(super) fn volume_node(volume: VolumeId) -> String {
    format!("v{}", base32(volume.uuid().as_u128()))
}

/// The volume of a first layer's node.
pub(super) fn volume_of_node(node: &str) -> Option<VolumeId> {
    let digits = is_our_node(node).then(|| node.strip_prefix('v'))??;
    let digit = |b: u8| match b {
        b'a'..=b'z' => u128::from(b - b'a'),
        _ => u128::from(b - b'2') + 26,
    };
    let bits = digits.bytes().fold(0, |bits, b| bits << 5 | digit(b));
    Some(VolumeId::from_uuid(Uuid::from_u128(bits)))
}

/// The node of the layer that was put on top at a snapshot.
pub(super) fn layer_node(snapshot: SnapshotId) -> String {
    format!("s{}", base32(snapshot.uuid().as_u128()))
}

/// Whether a node is one that we made.
pub(super) fn is_our_node(node: &str) -> bool {
    node.len() == 27
        && node.starts_with(['v', 's'])
        && node[1..]
            .bytes()
            .all(|b| matches!(b, b'a'..=b'z' | b'2'..=b'7'))
}

/// The 26 digits of a number in base 32.
pub(super) fn base32(bits: u128) -> String {
    const DIGITS: &[u8; 32] = b"abcdefghijklmnopqrstuvwxyz234567";
    (0..26)
        .rev()
        .map(|i| char::from(DIGITS[(bits >> (i * 5)) as usize & 31]))
        .collect()
}

/// The block node of a disk.
pub(super) fn blockdev(disk: &StoredDisk) -> Value {
    let file = match &disk.source {
        StoredSource::File(path) => file(path),
        StoredSource::BlockDevice(path) => {
            json!({ "driver": "host_device", "filename": path, "locking": "on" })
        }
        StoredSource::Nbd { socket, export } => {
            json!({ "driver": "nbd", "server": { "type": "unix", "path": socket }, "export": export })
        }
    };
    let mut node = opened(file, &disk.options);
    node["driver"] = driver(disk.format).into();
    node["node-name"] = volume_node(disk.volume).into();
    node["read-only"] = disk.options.is_read_only().into();
    node
}

/// Whether the guest is told that it has to flush.
fn has_write_cache(disk: &StoredDisk) -> bool {
    match disk.options.cache {
        DiskCache::WriteBack | DiskCache::None | DiskCache::Unsafe => true,
        DiskCache::WriteThrough | DiskCache::DirectSync => false,
    }
}

/// The block node of a layer that a pivot puts on top.
pub(super) fn layer(snapshot: SnapshotId, path: &Path, options: &DiskOptions) -> Value {
    let mut layer = opened(file(path), options);
    layer["driver"] = "qcow2".into();
    layer["node-name"] = layer_node(snapshot).into();
    layer["backing"] = Value::Null;
    layer
}

/// A format's node on top of a file's, both opened as the options say.
fn opened(mut file: Value, options: &DiskOptions) -> Value {
    let discard = match options.discard {
        Discard::Unmap => "unmap",
        Discard::Ignore => "ignore",
    };
    let direct = matches!(options.cache, DiskCache::None | DiskCache::DirectSync);
    let no_flush = options.cache == DiskCache::Unsafe;
    let cache = json!({ "direct": direct, "no-flush": no_flush });
    if file["driver"] != "nbd" {
        file["aio"] = match options.io {
            DiskIo::Threads => "threads",
            DiskIo::Native => "native",
            DiskIo::IoUring => "io_uring",
        }
        .into();
    }
    file["cache"] = cache.clone();
    file["discard"] = discard.into();
    json!({ "discard": discard, "cache": cache, "file": file })
}

fn file(path: &Path) -> Value {
    json!({ "driver": "file", "filename": path, "locking": "on", "discard": "unmap" })
}

fn driver(format: VolumeFormat) -> &'static str {
    match format {
        VolumeFormat::Qcow2 => "qcow2",
        VolumeFormat::Raw => "raw",
    }
}

/// A device's properties, in order.
pub(super) type Properties = Vec<(&'static str, String)>;

/// A disk's device, on this bus.
pub(super) fn disk_device(disk: &StoredDisk, bus: &str) -> Properties {
    let driver = match disk.options.bus {
        DiskBus::Virtio => "virtio-blk-pci",
        DiskBus::Scsi => "scsi-hd",
        DiskBus::Sata => "ide-hd",
        DiskBus::Cdrom => "ide-cd",
        DiskBus::Nvme => "nvme",
    };
    let write_cache = if has_write_cache(disk) { "on" } else { "off" };
    vec![
        ("driver", driver.into()),
        ("id", disk_id(disk.volume)),
        ("bus", bus.into()),
        ("drive", volume_node(disk.volume)),
        ("serial", serial(&disk.name)),
        ("write-cache", write_cache.into()),
    ]
}

/// A CD-ROM drive, with its medium if it has one.
pub(super) fn cdrom_device(drive: u8, bus: String, medium: Option<&StoredDisk>) -> Properties {
    let mut properties = vec![
        ("driver", "ide-cd".to_owned()),
        ("id", drive_id(drive)),
        ("bus", bus),
    ];
    properties.extend(medium.map(|medium| ("drive", volume_node(medium.volume))));
    properties
}

/// A device at its place in the order of booting.
pub(super) fn booted(mut device: Properties, place: Option<usize>) -> Properties {
    device.extend(place.map(|place| ("bootindex", place.to_string())));
    device
}

/// The id of an I/O thread.
pub(super) fn io_thread(n: usize) -> String {
    format!("io{n}")
}

/// The thread of the n-th disk on virtio, of so many.
pub(super) fn on_thread(n: usize, threads: usize) -> Option<(&'static str, String)> {
    (threads > 0).then(|| ("iothread", io_thread(n % threads)))
}

/// The bus of the disks on virtio-scsi, if there are any at the start, and the controller's id.
pub(super) const SCSI_BUS: &str = "scsi.0";
pub(super) const SCSI: &str = "scsi";

/// A NIC's device, at its place in the order of booting. One that the guest does not boot from has no boot ROM.
pub(super) fn nic_device(nic: &StoredNic, bus: &str, place: Option<usize>) -> Properties {
    let NicOptions {
        model, queues, mtu, ..
    } = nic.options;
    let driver = match model {
        NicModel::Virtio => "virtio-net-pci",
        NicModel::E1000e => "e1000e",
    };
    let mut properties = vec![
        ("driver", driver.into()),
        ("id", nic_id(nic.port)),
        ("bus", bus.into()),
        ("netdev", link_id(nic.port)),
        ("mac", nic.mac.to_string()),
    ];
    match place {
        Some(place) => properties.push(("bootindex", place.to_string())),
        None => properties.push(("romfile", String::new())),
    }
    if queues > 1 {
        // Two of each pair, one for the configuration and one for the control queue.
        let vectors = 2 * u32::from(queues) + 2;
        properties.extend([("mq", "on".into()), ("vectors", vectors.to_string())]);
    }
    properties.extend(mtu.map(|mtu| ("host_mtu", mtu.to_string())));
    properties
}

/// The arguments of `block_set_io_throttle`, for the device of this name.
pub(super) fn throttle(device: &str, limits: &DiskLimits) -> Value {
    let none = |limit: Option<u64>| limit.unwrap_or(0);
    json!({
        "id": device,
        "bps": none(limits.bytes_sec),
        "bps_rd": none(limits.read_bytes_sec),
        "bps_wr": none(limits.write_bytes_sec),
        "iops": none(limits.iops),
        "iops_rd": none(limits.read_iops),
        "iops_wr": none(limits.write_iops),
    })
}

/// The first 20 bytes of a name, cut between characters.
fn serial(name: &str) -> String {
    let end = (0..=name.len().min(20))
        .rev()
        .find(|&i| name.is_char_boundary(i))
        .unwrap_or(0);
    name[..end].to_owned()
}

/// Properties as the command line takes them: a comma in a value is doubled.
pub(super) fn key_value(properties: &[(&str, String)]) -> String {
    let pairs = properties.iter().map(|(key, value)| match *key {
        "driver" => value.clone(),
        key => format!("{key}={}", value.replace(',', ",,")),
    });
    pairs.collect::<Vec<_>>().join(",")
}

/// Properties as the monitor takes them: each of its own type, since QEMU 9.2.
pub(super) fn arguments(properties: &[(&str, String)]) -> Value {
    let typed = |key: &str, value: &String| match key {
        "mq" => Value::from(value == "on"),
        "vectors" | "host_mtu" => Value::from(value.parse::<u32>().unwrap_or_default()),
        _ => Value::from(value.clone()),
    };
    let pairs = properties.iter();
    pairs
        .map(|(key, value)| ((*key).to_owned(), typed(key, value)))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_read_back_and_nodes_fit() {
        let uuid = Uuid::from_u128(0x0190_a5b4_0000_7000_8000_0000_0000_002a);
        let volume = VolumeId::from_uuid(uuid);
        assert_eq!(volume_of(&disk_id(volume)), Some(volume));
        assert_eq!(port_of(&disk_id(volume)), None);
        let node = volume_node(volume);
        assert!(node.len() <= 31 && is_our_node(&node), "{node}");
        assert_eq!(volume_of_node(&node), Some(volume));
        let layer = layer_node(SnapshotId::from_uuid(uuid));
        assert_eq!(volume_of_node(&layer), None);
        assert!(!is_our_node("#block123"));
        assert_ne!(base32(u128::MAX), base32(u128::MAX - 1));
    }

    #[test]
    fn names_are_cut_between_characters() {
        assert_eq!(serial(&"ä".repeat(30)).len(), 20);
        assert_eq!(serial("root"), "root");
        assert_eq!(
            key_value(&[("driver", "x".into()), ("serial", "a,b".into())]),
            "x,serial=a,,b"
        );
    }
}
