//! Numbers of a running domain: QEMU's for disks, the host's for CPUs, memory and taps.

use novacron_core::driver::{DiskStats, DomainStats, GuestMemory, NicStats};
use novacron_core::model::Bytes;
use novacron_core::{Result, Timestamp};
use serde_json::{Value, json};

use super::args::BALLOON;
use super::host::{device_counter, resident, thread_ns};
use super::monitor::{Monitor, volume_in};

/// Reads them.
pub(super) async fn read(monitor: Monitor<'_>, pid: u32) -> Result<DomainStats> {
    let cpus = monitor.ask("query-cpus-fast", json!({})).await?;
    let threads = cpus
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(|cpu| cpu.get("thread-id")?.as_u64());
    let blocks = monitor.ask("query-blockstats", json!({})).await?;
    let disks = blocks.as_array().into_iter().flatten().filter_map(disk);
    let (_, ports) = monitor.attached().await?;
    let links = monitor.links().await?;
    // The tap is the host's end: what it receives, the guest has sent. A user-mode network does not count.
    let nics = ports.into_iter().filter_map(|port| {
        let tap = links.tap(port)?;
        let (received_bytes, sent_bytes) = (
            device_counter(tap, "tx_bytes")?,
            device_counter(tap, "rx_bytes")?,
        );
        Some(NicStats {
            port,
            received_bytes,
            sent_bytes,
        })
    });
    let guest = json!({ "path": BALLOON, "property": "guest-stats" });
    let guest_memory = guest_memory(&monitor.ask("qom-get", guest).await?);
    Ok(DomainStats {
        vcpu_ns: threads.map(|thread| thread_ns(pid, thread)).collect(),
        resident: Bytes(resident(pid)),
        disks: disks.collect(),
        nics: nics.collect(),
        guest_memory,
    })
}

/// From `{"stats": {"stat-total-memory": …}, "last-update": …}`; what the guest does not tell is all ones.
fn guest_memory(told: &Value) -> Option<GuestMemory> {
    let at = told.get("last-update")?.as_u64().filter(|at| *at > 0)?;
    let stats = told.get("stats")?;
    let told = |name: &str| {
        let bytes = stats.get(name)?.as_u64()?;
        (bytes != u64::MAX).then_some(Bytes(bytes))
    };
    let number = |name: &str| told(name).unwrap_or_default();
    Some(GuestMemory {
        at: Timestamp::from_millis(at * 1000),
        total: told("stat-total-memory")?,
        usable: number("stat-available-memory"),
        unused: number("stat-free-memory"),
        caches: number("stat-disk-caches"),
        swapped_in: number("stat-swap-in"),
        swapped_out: number("stat-swap-out"),
    })
}

fn disk(entry: &Value) -> Option<DiskStats> {
    let volume = volume_in(entry)?;
    let number = |key: &str| {
        entry
            .get("stats")
            .and_then(|stats| stats.get(key))
            .and_then(Value::as_u64)
            .unwrap_or(0)
    };
    Some(DiskStats {
        volume,
        read_bytes: number("rd_bytes"),
        written_bytes: number("wr_bytes"),
        reads: number("rd_operations"),
        writes: number("wr_operations"),
    })
}
