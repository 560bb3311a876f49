//! Numbers of a running domain: QEMU's for disks, the host's for CPUs, memory and taps.

use novacron_core::Result;
use novacron_core::driver::{DiskStats, DomainStats, NicStats};
use novacron_core::model::Bytes;
use serde_json::{Value, json};

use super::devices::volume_of;
use super::host::{device_counter, resident, thread_ns};
use super::monitor::{Monitor, device_of};

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
    Ok(DomainStats {
        vcpu_ns: threads.map(|thread| thread_ns(pid, thread)).collect(),
        resident: Bytes(resident(pid)),
        disks: disks.collect(),
        nics: nics.collect(),
    })
}

fn disk(entry: &Value) -> Option<DiskStats> {
    let volume = volume_of(device_of(entry)?)?;
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
