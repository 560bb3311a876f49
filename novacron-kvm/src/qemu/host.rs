//! The host: who it is, and what it has.

use std::fs;
use std::num::NonZero;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use novacron_core::model::{Capability, Firmware, HostId, MiB, NodeCapabilities};
use novacron_core::{Error, ErrorKind, Result};
use uuid::Uuid;

use super::state::State;
use super::{MAX_VCPUS, error, net, shaping};
use crate::accel::Accel;
use crate::firmware::Ovmf;
use crate::privilege;
use crate::probe::{self, Offer};

/// The host's id unless one was given: from the machine's id and the state folder, so that it needs no file, survives
/// restarts, and differs for two hypervisors on one machine. A machine without an id gets one in the state folder.
pub(super) fn host_id(state: &Path, operation: &'static str) -> Result<HostId> {
    let machine = fs::read_to_string("/etc/machine-id").unwrap_or_default();
    if machine.trim().len() >= 32 {
        let state = state.canonicalize().unwrap_or_else(|_| state.to_owned());
        let text = format!("{}\0{}", machine.trim(), state.display());
        return Ok(HostId::from_uuid(derived(text.as_bytes())));
    }
    let path = state.join("host-id");
    if let Some(id) = fs::read_to_string(&path)
        .ok()
        .and_then(|text| text.trim().parse().ok())
    {
        return Ok(id);
    }
    let fresh = fs::read_to_string("/proc/sys/kernel/random/uuid");
    let written = fresh.and_then(|text| fs::write(&path, &text).map(|()| text));
    let text = written.map_err(|error| {
        let message = "/etc/machine-id holds no id, and none can be kept in the state folder";
        Error::new(ErrorKind::PermissionDenied, operation, message)
            .with("path", path.display())
            .caused_by(error)
    })?;
    text.trim().parse()
}

/// A UUID of version 8 (RFC 9562) from a hash (FNV-1a, 128 bits) that is the same in every build.
fn derived(bytes: &[u8]) -> Uuid {
    let offset = 0x6c62_272e_07bb_0142_62b8_2175_6295_c58d_u128;
    let hash = bytes.iter().fold(offset, |hash, &byte| {
        (hash ^ u128::from(byte)).wrapping_mul(0x0000_0000_0100_0000_0000_0000_0000_013b)
    });
    let hash = (hash & !(0xf << 76)) | (0x8 << 76);
    Uuid::from_u128((hash & !(0x3 << 62)) | (0x2 << 62))
}

/// The host's memory.
pub(super) fn memory() -> MiB {
    MiB(kib_of(
        &fs::read_to_string("/proc/meminfo").unwrap_or_default(),
        "MemTotal:",
    ) / 1024)
}

/// How many huge pages the host has set aside.
pub(crate) fn huge_pages() -> u64 {
    let file = fs::read_to_string("/proc/meminfo").unwrap_or_default();
    kib_of(&file, "HugePages_Total:")
}

/// Memory that a process holds, in bytes.
pub(super) fn resident(pid: u32) -> u64 {
    kib_of(
        &fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default(),
        "VmRSS:",
    ) * 1024
}

fn kib_of(text: &str, field: &str) -> u64 {
    let line = text.lines().find_map(|line| line.strip_prefix(field));
    line.and_then(|line| line.split_ascii_whitespace().next()?.parse().ok())
        .unwrap_or(0)
}

/// CPU time of a thread, ns.
pub(super) fn thread_ns(pid: u32, thread: u64) -> u64 {
    let text =
        fs::read_to_string(format!("/proc/{pid}/task/{thread}/schedstat")).unwrap_or_default();
    text.split_ascii_whitespace()
        .next()
        .and_then(|ns| ns.parse().ok())
        .unwrap_or(0)
}

/// A counter of a network device of the host.
pub(super) fn device_counter(device: &str, counter: &str) -> Option<u64> {
    fs::read_to_string(format!("/sys/class/net/{device}/statistics/{counter}"))
        .ok()?
        .trim()
        .parse()
        .ok()
}

impl State {
    /// How guests are run.
    pub(super) fn accel(&self, operation: &'static str) -> Result<Accel> {
        let accel = self.config.accel.resolve();
        accel.map_err(|e| error::accel(operation, e))
    }

    /// What guests can be given, asked once.
    pub(super) async fn offer(&self, operation: &'static str) -> Result<&Offer> {
        let accel = self.accel(operation)?;
        let path = &self.binary(operation).await?.path;
        let asked = self
            .offer
            .get_or_try_init(|| probe::offer(path, accel))
            .await;
        asked.map_err(|e| error::probe(operation, e))
    }

    /// The program that emulates TPMs.
    pub(super) async fn swtpm(&self, operation: &'static str) -> Result<PathBuf> {
        let swtpm = Arc::clone(&self.swtpm);
        let found = tokio::task::spawn_blocking(move || swtpm.find(operation)).await;
        found.unwrap_or_else(|panicked| {
            let message = "the look for swtpm did not end";
            Err(Error::new(ErrorKind::Internal, operation, message).caused_by(panicked))
        })
    }

    /// What the host can do now.
    pub(super) async fn capabilities(&self, operation: &'static str) -> Result<NodeCapabilities> {
        let qemu = self.binary(operation).await?;
        let Offer {
            cpus,
            devices,
            io_uring,
        } = self.offer(operation).await?;
        let accel = self.accel(operation)?;
        let count = std::thread::available_parallelism().map_or(1, NonZero::get);
        let has = |types: &[&str]| types.iter().all(|name| devices.contains(*name));
        let can = [
            (Capability::Uefi, Ovmf::find(Firmware::Uefi).is_some()),
            (
                Capability::SecureBoot,
                Ovmf::find(Firmware::UefiSecureBoot).is_some(),
            ),
            (Capability::Bridge, net::bridges_work()),
            (Capability::UserNetwork, qemu.user_network),
            (Capability::HotPlug, true),
            (Capability::LiveSnapshot, true),
            (Capability::ScsiDisks, has(&["virtio-scsi-pci", "scsi-hd"])),
            (Capability::SataDisks, has(&["ide-hd", "ide-cd"])),
            (Capability::NvmeDisks, has(&["nvme"])),
            (Capability::DiskLimits, true),
            (Capability::IoUring, *io_uring),
            (Capability::IoThreads, true),
            (Capability::E1000eNics, has(&["e1000e"])),
            (
                Capability::NicLimits,
                privilege::is_effective(privilege::NET_ADMIN) && shaping::is_there(),
            ),
            (Capability::HyperV, accel == Accel::Kvm),
            (Capability::HugePages, huge_pages() > 0),
            (Capability::LockedMemory, privilege::may_lock_memory()),
            (Capability::SharedMemory, true),
            (Capability::Tablet, has(&["qemu-xhci", "usb-tablet"])),
            (Capability::Watchdog, has(&["i6300esb"])),
            (
                Capability::Tpm,
                has(&["tpm-crb"]) && self.swtpm(operation).await.is_ok(),
            ),
        ];
        Ok(NodeCapabilities {
            hypervisor: format!("QEMU {}", qemu.version),
            arch: "x86_64".to_owned(),
            acceleration: accel.to_string(),
            cpus: u32::try_from(count).unwrap_or(u32::MAX),
            memory: memory(),
            max_vcpus: MAX_VCPUS,
            cpu_models: Arc::clone(&cpus.models),
            cpu_features: Arc::clone(&cpus.features),
            can: Capability::those(can),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn derived_ids_are_stable_and_differ() {
        assert_eq!(derived(b"a"), derived(b"a"));
        assert_ne!(derived(b"a"), derived(b"b"));
        assert_eq!(derived(b"a").get_version_num(), 8);
    }
}
