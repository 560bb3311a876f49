//! Numbers of a running domain, as libvirt counts them.

use std::collections::HashMap;

use novacron_core::driver::{DiskStats, DomainId, DomainStats, GuestMemory, NicStats};
use novacron_core::model::Bytes;
use novacron_core::{Result, Timestamp};

use super::error::not_found;
use super::look::Task;
use super::sys::Stats;

/// Reads them.
pub(super) fn read(task: &Task, id: DomainId) -> Result<DomainStats> {
    let found = task
        .find(id)?
        .ok_or_else(|| not_found(task.operation, id))?;
    let starting = task.state.starting();
    let counted = task.ok(Stats::of([&found.dom]))?;
    let (_, stats) = counted.into_iter().next().unwrap_or_default();
    let state = stats.state().map_or_else(|| found.dom.state(), Ok);
    let seen = task.seen(&found, &starting, task.ok(state)?)?;
    task.live(id, seen)?;
    let running = task.running_xml(&found)?;

    let vcpus = found.defined.vcpu.map_or(1, |count| count.value).max(1);
    let each_vcpu = (0..vcpus).map(|n| stats.number(&format!("vcpu.{n}.time")));
    let vcpu_ns = match each_vcpu.collect() {
        Some(times) => times,
        None => {
            // Under TCG libvirt tells the process's time only: it is shared out evenly.
            let total = stats.number("cpu.time");
            let total = task.ok(total.map_or_else(|| found.dom.cpu_ns(), Ok))?;
            vec![total / u64::from(vcpus); vcpus as usize]
        }
    };

    let volumes: HashMap<_, _> = (running.volumes())
        .filter_map(|(volume, disk)| Some((disk.target.device.as_deref()?, volume)))
        .collect();
    let disks = each(&stats, "block").filter_map(|prefix| {
        let volume = volumes.get(stats.word(&format!("{prefix}.name"))?)?;
        let number = |name: &str| stats.number(&format!("{prefix}.{name}")).unwrap_or(0);
        Some(DiskStats {
            volume: *volume,
            read_bytes: number("rd.bytes"),
            written_bytes: number("wr.bytes"),
            reads: number("rd.reqs"),
            writes: number("wr.reqs"),
        })
    });
    let ports: HashMap<_, _> = (running.devices.interfaces.iter())
        .filter_map(|nic| Some((nic.target.as_ref()?.device.as_deref()?, nic.port()?)))
        .collect();
    // libvirt turns a tap's numbers round: these are the guest's. A user-mode network has no device and does not count.
    let nics = each(&stats, "net").filter_map(|prefix| {
        let port = ports.get(stats.word(&format!("{prefix}.name"))?)?;
        let number = |name: &str| stats.number(&format!("{prefix}.{name}"));
        Some(NicStats {
            port: *port,
            received_bytes: number("rx.bytes")?,
            sent_bytes: number("tx.bytes")?,
        })
    });
    Ok(DomainStats {
        vcpu_ns,
        resident: Bytes(stats.number("balloon.rss").unwrap_or(0) * 1024),
        disks: disks.collect(),
        nics: nics.collect(),
        guest_memory: guest_memory(&stats),
    })
}

fn guest_memory(stats: &Stats) -> Option<GuestMemory> {
    let at = stats.number("balloon.last-update").filter(|at| *at > 0)?;
    let told = |name: &str| Some(Bytes(stats.number(&format!("balloon.{name}"))? * 1024));
    let number = |name: &str| told(name).unwrap_or_default();
    Some(GuestMemory {
        at: Timestamp::from_millis(at * 1000),
        total: told("available")?,
        usable: number("usable"),
        unused: number("unused"),
        caches: number("disk_caches"),
        swapped_in: number("swap_in"),
        swapped_out: number("swap_out"),
    })
}

/// The prefixes of the things of a kind.
fn each(stats: &Stats, kind: &'static str) -> impl Iterator<Item = String> {
    let count = stats.number(&format!("{kind}.count")).unwrap_or(0);
    (0..count).map(move |n| format!("{kind}.{n}"))
}
