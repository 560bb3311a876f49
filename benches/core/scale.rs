//! 100,000 VMs on 10,000 simulated nodes, in one process, records in SQLite: memory, the time of one change, idle CPU.
//!
//! A change is a pause or a resume. Its time runs from the commit of the request (the call has returned) to the
//! hypervisor's event that the guest's vCPUs are held or run; the commit of the assignment in between, with its sync, is
//! in it. The simulation's own share of the memory is that of a second process, which holds the same world without
//! NovaCron.

use std::process::Command;
use std::time::{Duration, Instant};

use futures::StreamExt;
use novacron_core::cluster::{ListRequest, MAX_PAGE, VmView};
use novacron_core::driver::{
    ArtefactId, AttachRequest, Call, CreateSource, CreateVolume, DiskAttachment, DomainId,
    DomainSpec, GuestEvent, Hypervisor, StorageBackend,
};
use novacron_core::model::{
    ClusterId, DiskOptions, Epoch, Hardware, NodeId, VmId, VolumeFormat, VolumeId,
};
use novacron_core::sim::{SimHypervisor, SimStorage};
use novacron_core::{Bytes, IdSource, MiB, Phase, SeededIds};
use uuid::Uuid;

use crate::Result;
use crate::figure::{Samples, millis, promised, remark, reported};
use crate::site::{cpu_time, folder, pass, probe_sync, resident, store};
use novacron_benches::sim::{cluster, create, pool, within, world};

const NODES: usize = 10_000;
const VMS: usize = 100_000;
const CALLERS: usize = 256;
const CHANGES: usize = 2_000;
const IDLE: Duration = Duration::from_secs(90);
/// The name under which this program runs itself to hold only the simulated world.
pub(crate) const SIM_ALONE: &str = "scale-sim";

pub(crate) async fn run() -> Result<()> {
    let folder = folder()?;
    probe_sync(folder.path())?;
    let (world, store) = (world(NODES)?, store(folder.path()).await?);
    let start = Instant::now();
    let cluster = cluster(&world, store.clone()).await?;
    reported("scale-nodes-available", start.elapsed().as_secs_f64(), "s");
    let (start, cpu) = (Instant::now(), cpu_time()?);
    create(&cluster, VMS, CALLERS).await?;
    reported(
        "scale-create",
        VMS as f64 / start.elapsed().as_secs_f64(),
        "VM/s",
    );
    remark(&format!(
        "CPU of creating them: {:.1} s",
        (cpu_time()? - cpu).as_secs_f64()
    ));
    if world.running_count() != VMS {
        return Err(format!("{} of {VMS} guests run", world.running_count()).into());
    }
    calm().await?;
    promised("scale-resident", resident()?, "MiB", "< 2048");
    sim_share()?;

    // Every 47th VM, so that the changes are spread over the nodes.
    let mut vms: Vec<VmView> = Vec::new();
    let mut request = ListRequest::new().limit(MAX_PAGE);
    loop {
        let page = cluster.vms().list(&request).await?;
        vms.extend(page.items);
        match page.next {
            Some(token) => request = request.after(token),
            None => break,
        }
    }
    let hosts = world.hosts();
    let (mut reconciled, mut whole) = (Vec::new(), Vec::new());
    for i in 0..CHANGES {
        let vm = &vms[(i / 2 * 47) % vms.len()];
        let place = vm
            .place
            .as_ref()
            .and_then(|p| p.node())
            .ok_or("a VM has no place")?;
        let number: usize = place.as_str().trim_start_matches("node-").parse()?;
        let mut events = SimHypervisor::new(&world, hosts[number]).events();
        let handle = cluster.vms().by_id(vm.vm.id);
        let start = Instant::now();
        let (operation, phase) = if i % 2 == 0 {
            (handle.pause().await?, Phase::Paused)
        } else {
            (handle.start().await?, Phase::Running)
        };
        let committed = Instant::now();
        let done = tokio::time::timeout(Duration::from_secs(30), async {
            while let Some(event) = events.next().await {
                if event.domain.vm == vm.vm.id && event.event == GuestEvent::StateChanged {
                    return Some(Instant::now());
                }
            }
            None
        });
        let done = done.await?.ok_or("the host's events ended")?;
        reconciled.push(millis(done.saturating_duration_since(committed)));
        whole.push(millis(done - start));
        operation.wait(within(30)).await?;
        handle.wait_for(phase, within(30)).await?;
    }
    let (reconciled, whole) = (Samples::new(reconciled), Samples::new(whole));
    promised("scale-change-p99", reconciled.percentile(99), "ms", "< 10");
    reported("scale-change-median", reconciled.median(), "ms");
    reported("scale-change-from-request-p99", whole.percentile(99), "ms");
    remark(&format!("changes, ms: {}", reconciled.spread()));

    drop(vms);
    calm().await?;
    let (start, before) = (Instant::now(), cpu_time()?);
    pass(IDLE).await;
    let share = (cpu_time()? - before).as_secs_f64() / start.elapsed().as_secs_f64();
    promised("scale-idle-cpu", share * 100.0, "%", "< 1");
    reported("scale-resident-at-the-end", resident()?, "MiB");
    cluster.shutdown(within(60)).await?;
    Ok(())
}

/// Waits until what the work before left to do is done: until the process uses next to no CPU for some seconds.
async fn calm() -> Result<()> {
    for _ in 0..120 {
        let before = cpu_time()?;
        pass(Duration::from_secs(2)).await;
        if cpu_time()? - before < Duration::from_millis(100) {
            return Ok(());
        }
    }
    remark("the process did not calm down in four minutes");
    Ok(())
}

/// Reports what the simulated world takes of the memory.
fn sim_share() -> Result<()> {
    let output = Command::new(std::env::current_exe()?)
        .arg(SIM_ALONE)
        .output()?;
    let text = String::from_utf8_lossy(&output.stdout);
    let value = text.lines().find_map(|l| l.strip_prefix("resident "));
    let value = value.ok_or_else(|| format!("the simulation alone did not tell: {text}"))?;
    reported(
        "scale-resident-of-the-simulation",
        value.trim().parse()?,
        "MiB",
    );
    Ok(())
}

/// The same world without NovaCron: every guest defined and running, each with its disk.
#[expect(clippy::print_stdout, reason = "the parent reads it")]
pub(crate) async fn sim_alone() -> Result<()> {
    let empty = resident()?;
    let world = world(NODES)?;
    let storage = SimStorage::new(&world, pool()?);
    let ids = SeededIds::from_seed(1);
    let uuid = || Uuid::from_u128(ids.bits());
    let cluster = ClusterId::from_uuid(uuid());
    let hosts = world.hosts();
    let mut hypervisors = Vec::new();
    let mut streams = Vec::new();
    for host in hosts {
        let hypervisor = SimHypervisor::new(&world, host);
        streams.push(hypervisor.events());
        hypervisors.push(hypervisor);
    }
    let node = NodeId::new("node")?;
    for i in 0..VMS {
        let call = Call::within(Duration::from_secs(30));
        let volume = VolumeId::from_uuid(uuid());
        let id = DomainId {
            cluster,
            vm: VmId::from_uuid(uuid()),
            epoch: Epoch(1),
        };
        let request = CreateVolume {
            cluster,
            id: ArtefactId::Volume(volume),
            size: Bytes::gib(1),
            format: VolumeFormat::Qcow2,
            source: CreateSource::Blank,
        };
        storage.create(call, &request).await?;
        let attach = AttachRequest {
            node: node.clone(),
            vm: id.vm,
            epoch: id.epoch,
        };
        let disk = DiskAttachment {
            name: "root".to_owned(),
            volume,
            attachment: storage.attach(call, volume, &attach).await?,
            options: DiskOptions::default(),
        };
        let spec = DomainSpec {
            id,
            name: format!("vm-{i}"),
            hardware: Hardware::new(1, MiB(512)),
            disks: vec![disk],
            nics: Vec::new(),
            nvram: None,
            generation_id: Uuid::nil(),
            tpm: None,
            seed: None,
        };
        let hypervisor = &hypervisors[i % hypervisors.len()];
        hypervisor.define(call, &spec).await?;
        hypervisor.start(call, id).await?;
        hypervisor.resume(call, id).await?;
        // Read at once, as NovaCron does.
        let stream = &mut streams[i % NODES];
        while futures::FutureExt::now_or_never(stream.next())
            .flatten()
            .is_some()
        {}
    }
    println!("resident {:.1}", resident()? - empty);
    Ok(())
}
