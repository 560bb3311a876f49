//! What this process, and what it starts, is allowed to do.

use rustix::process::{Resource, getrlimit};

/// `CAP_NET_ADMIN`, by its bit.
pub(crate) const NET_ADMIN: u32 = 12;
const IPC_LOCK: u32 = 14;
#[cfg(feature = "libvirt")]
pub(crate) const SYS_RESOURCE: u32 = 24;

/// Whether this process has a capability.
pub(crate) fn is_effective(bit: u32) -> bool {
    has("CapEff:", bit)
}

/// Whether any process in this container may have it.
#[cfg(feature = "libvirt")]
pub(crate) fn is_within_bounds(bit: u32) -> bool {
    has("CapBnd:", bit)
}

fn has(mask: &str, bit: u32) -> bool {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let mask = status.lines().find_map(|line| line.strip_prefix(mask));
    mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok())
        .is_some_and(|mask| mask & (1 << bit) != 0)
}

/// Whether the kernel lets processes use io_uring; containers may forbid it besides.
#[cfg(feature = "libvirt")]
pub(crate) fn may_use_io_uring() -> bool {
    let disabled = std::fs::read_to_string("/proc/sys/kernel/io_uring_disabled");
    disabled.map_or(true, |word| word.trim() == "0")
}

/// Whether it may keep any amount of memory from being swapped out: by its capability, or because nobody limits it.
pub(crate) fn may_lock_memory() -> bool {
    getrlimit(Resource::Memlock).current.is_none() || is_effective(IPC_LOCK)
}
