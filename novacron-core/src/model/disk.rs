//! How a disk is given to its guest. Names and meanings are libvirt's.

use serde::{Deserialize, Serialize};

use super::node::Capability;
use super::settings::{Effect, FieldChange};
use crate::error::Problem;

/// How a disk is given to its guest.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct DiskOptions {
    /// The bus it is on.
    pub bus: DiskBus,
    /// How writes are cached.
    pub cache: DiskCache,
    /// How the hypervisor reads and writes.
    pub io: DiskIo,
    /// What becomes of what the guest discards.
    pub discard: Discard,
    /// Whether the guest can only read it, as it is with any medium of a CD-ROM drive.
    pub read_only: bool,
    /// How much the guest may read and write, changed while it runs.
    pub limits: DiskLimits,
}

impl DiskOptions {
    /// Whether nothing was asked for.
    pub fn is_default(&self) -> bool {
        *self == Self::default()
    }

    /// Whether the guest can only read it.
    pub fn is_read_only(&self) -> bool {
        self.read_only || self.bus == DiskBus::Cdrom
    }

    /// What is wrong with them, wherever the disk is to be, by their fields.
    pub fn problems(&self) -> Vec<Problem> {
        let direct = matches!(self.cache, DiskCache::None | DiskCache::DirectSync);
        let bounded = |bus| matches!(bus, DiskBus::Virtio | DiskBus::Scsi | DiskBus::Cdrom);
        let limits = &self.limits;
        let both = |total: Option<u64>, one: [Option<u64>; 2]| {
            total.is_some() && one.iter().any(Option::is_some)
        };
        let checks = [
            (
                self.io == DiskIo::Native && !direct,
                "io",
                "`native` goes past the host's cache: it needs the cache `none` or `direct_sync`",
            ),
            (
                self.read_only && !bounded(self.bus),
                "read_only",
                "only disks on `virtio` and `scsi` can be read-only",
            ),
            (
                self.bus == DiskBus::Cdrom
                    && (self.cache, self.io, self.discard) != Default::default(),
                "bus",
                "a medium in a CD-ROM drive is only read: it has no `cache`, `io` or `discard` of its own",
            ),
            (
                limits
                    .numbers()
                    .any(|limit| !DiskLimits::RANGE.contains(&limit)),
                "limits",
                "each is 1 to 10^15; without one there is no limit",
            ),
            (
                both(
                    limits.bytes_sec,
                    [limits.read_bytes_sec, limits.write_bytes_sec],
                ) || both(limits.iops, [limits.read_iops, limits.write_iops]),
                "limits",
                "either one of reads and writes together, or for each",
            ),
        ];
        Problem::those(checks)
    }

    /// What a host has to be able to do for it.
    pub fn needs(&self) -> impl Iterator<Item = Capability> {
        let bus = match self.bus {
            DiskBus::Virtio => None,
            DiskBus::Scsi => Some(Capability::ScsiDisks),
            DiskBus::Sata | DiskBus::Cdrom => Some(Capability::SataDisks),
            DiskBus::Nvme => Some(Capability::NvmeDisks),
        };
        let io = (self.io == DiskIo::IoUring).then_some(Capability::IoUring);
        bus.into_iter().chain(io).chain(self.live_needs())
    }

    /// What of it a host has to be able to do while the guest runs.
    pub(crate) fn live_needs(&self) -> Option<Capability> {
        let limited = self.limits != DiskLimits::default();
        limited.then_some(Capability::DiskLimits)
    }

    /// What differs in `new`, by field, and when that takes effect for a guest that runs.
    pub fn changes(&self, new: &Self) -> Vec<FieldChange> {
        let Self {
            bus,
            cache,
            io,
            discard,
            read_only,
            limits,
        } = self;
        let fields = [
            ("bus", *bus != new.bus, Effect::Restart),
            ("cache", *cache != new.cache, Effect::Restart),
            ("io", *io != new.io, Effect::Restart),
            ("discard", *discard != new.discard, Effect::Restart),
            ("read_only", *read_only != new.read_only, Effect::Restart),
            ("limits", *limits != new.limits, Effect::Live),
        ];
        FieldChange::of(fields).collect()
    }

    /// These, with what of `new` can be had while the guest runs.
    #[must_use]
    pub fn with_live(self, new: &Self) -> Self {
        Self {
            limits: new.limits,
            ..self
        }
    }
}

/// The bus that a disk is on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DiskBus {
    /// virtio-blk: the fastest, for guests that have its driver.
    #[default]
    Virtio,
    /// virtio-scsi: for guests that want SCSI, or more disks than a machine has places.
    Scsi,
    /// SATA: for guests that have no virtio driver; up to six, and none while the guest runs.
    Sata,
    /// NVMe: for guests that have no virtio driver and are newer.
    Nvme,
    /// A medium in one of the machine's CD-ROM drives
    /// ([`Hardware::cdroms`](super::Hardware::cdroms)), which the guest can only read. It is put in and taken out as any
    /// other disk is attached and detached.
    Cdrom,
}

impl DiskBus {
    /// Why a machine that is started takes no disk on it; one on [`DiskBus::Cdrom`] wants an empty drive instead.
    pub fn takes_none_now(self, has_scsi_disk: bool) -> Option<&'static str> {
        match self {
            Self::Virtio | Self::Nvme | Self::Cdrom => None,
            Self::Scsi if has_scsi_disk => None,
            Self::Scsi => {
                Some("the machine was started without a SCSI disk, so it has no controller for one")
            }
            Self::Sata => Some("SATA disks are given to a machine at its start only"),
        }
    }
}

/// How a guest's writes are cached. All but [`DiskCache::Unsafe`] keep what the guest flushed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DiskCache {
    /// By the host, until the guest flushes.
    #[default]
    WriteBack,
    /// Not by the host; by the device, until the guest flushes.
    None,
    /// By the host, which writes each through.
    WriteThrough,
    /// By nobody.
    DirectSync,
    /// By the host, which forgets that the guest flushed: **a crash of the host loses what was written.**
    Unsafe,
}

/// How the hypervisor reads and writes a disk.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DiskIo {
    /// By a pool of threads.
    #[default]
    Threads,
    /// By the kernel's asynchronous I/O.
    Native,
    /// By the kernel's io_uring: the fewest system calls, with any cache. Containers often forbid it.
    IoUring,
}

/// What becomes of what a guest discards (TRIM).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Discard {
    /// It is given back to the storage.
    #[default]
    Unmap,
    /// It stays allocated.
    Ignore,
}

/// How much a guest may read and write of a disk; no limit where there is none.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct DiskLimits {
    /// Bytes per second, reads and writes together.
    pub bytes_sec: Option<u64>,
    /// Bytes read per second.
    pub read_bytes_sec: Option<u64>,
    /// Bytes written per second.
    pub write_bytes_sec: Option<u64>,
    /// Operations per second, reads and writes together.
    pub iops: Option<u64>,
    /// Reads per second.
    pub read_iops: Option<u64>,
    /// Writes per second.
    pub write_iops: Option<u64>,
}

impl DiskLimits {
    /// What QEMU takes for one of them (`THROTTLE_VALUE_MAX`).
    const RANGE: std::ops::RangeInclusive<u64> = 1..=1_000_000_000_000_000;

    fn numbers(&self) -> impl Iterator<Item = u64> {
        let all = [
            self.bytes_sec,
            self.read_bytes_sec,
            self.write_bytes_sec,
            self.iops,
            self.read_iops,
            self.write_iops,
        ];
        all.into_iter().flatten()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_that_do_not_go_together_are_named() {
        let options = DiskOptions {
            bus: DiskBus::Nvme,
            io: DiskIo::Native,
            read_only: true,
            limits: DiskLimits {
                bytes_sec: Some(0),
                write_bytes_sec: Some(1),
                ..DiskLimits::default()
            },
            ..DiskOptions::default()
        };
        let problems = options.problems();
        let fields: Vec<_> = problems.iter().map(|p| p.field.as_str()).collect();
        assert_eq!(fields, ["io", "read_only", "limits", "limits"]);
        let medium = DiskOptions {
            bus: DiskBus::Cdrom,
            cache: DiskCache::Unsafe,
            ..DiskOptions::default()
        };
        assert_eq!(medium.problems()[0].field, "bus");
        let good = DiskOptions {
            bus: DiskBus::Scsi,
            io: DiskIo::Native,
            cache: DiskCache::None,
            read_only: true,
            ..DiskOptions::default()
        };
        assert_eq!(good.problems(), []);
    }

    #[test]
    fn only_limits_are_live() {
        let old = DiskOptions::default();
        let new = DiskOptions {
            bus: DiskBus::Scsi,
            cache: DiskCache::None,
            limits: DiskLimits {
                iops: Some(100),
                ..DiskLimits::default()
            },
            ..old.clone()
        };
        let kept = old.with_live(&new);
        let waiting = kept.changes(&new).into_iter();
        let waiting: Vec<_> = waiting.map(|c| (c.field, c.effect)).collect();
        let restart = |field: &str| (field.to_owned(), Effect::Restart);
        assert_eq!(waiting, [restart("bus"), restart("cache")]);
        assert_eq!(kept.limits.iops, Some(100));
    }
}
