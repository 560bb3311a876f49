//! Everything that can be seen of a cluster and its world, by names: the same for two stories that came to the same.

use std::collections::BTreeMap;
use std::time::Duration;

use novacron_core::Cluster;
use novacron_core::driver::{ArtefactId, Call, DomainOwner, Hypervisor};
use novacron_core::model::{Meta, ObjectRef, StorageStatus, VmId};
use novacron_core::sim::SimHypervisor;

use crate::site::{Site, every};

fn told(meta: &Meta) -> String {
    let deleted = meta.deleted_at.is_some();
    format!(
        "generation {} labels {:?} annotations {:?} deleted {deleted}",
        meta.generation, meta.labels, meta.annotations
    )
}

fn stands(status: Option<&StorageStatus>) -> String {
    match status {
        Some(s) => format!("{:?} {} answers {}", s.state, s.size, s.generation),
        None => "nowhere".to_owned(),
    }
}

pub(crate) async fn seen(site: &Site, cluster: &Cluster) -> Result<Vec<String>, String> {
    let mut lines = Vec::new();
    let mut names: BTreeMap<ObjectRef, String> = BTreeMap::new();
    let (vms, volumes) = (every!(cluster.vms()), every!(cluster.volumes()));
    for view in &vms {
        names.insert(ObjectRef::Vm(view.vm.id), view.vm.meta.name.to_string());
    }
    for view in &volumes {
        let (id, meta) = (view.volume.id, &view.volume.meta);
        names.insert(ObjectRef::Volume(id), meta.name.to_string());
        lines.push(format!(
            "volume {} of {}: {} {}",
            meta.name,
            view.volume.size,
            told(meta),
            stands(view.status.as_ref())
        ));
    }
    for view in every!(cluster.images()) {
        let meta = &view.image.meta;
        names.insert(ObjectRef::Image(view.image.id), meta.name.to_string());
        let stands = stands(view.status.as_ref());
        lines.push(format!("image {}: {} {stands}", meta.name, told(meta)));
    }
    for view in every!(cluster.snapshots()) {
        let meta = &view.snapshot.meta;
        names.insert(ObjectRef::Snapshot(view.snapshot.id), meta.name.to_string());
        let stands = stands(view.status.as_ref());
        lines.push(format!("snapshot {}: {} {stands}", meta.name, told(meta)));
    }
    for network in every!(cluster.networks()) {
        let meta = &network.meta;
        lines.push(format!("network {}: {}", meta.name, told(meta)));
    }
    for view in every!(cluster.nodes()) {
        lines.push(format!(
            "node {}: schedulable {}",
            view.node.id, view.node.schedulable
        ));
    }
    let name = |object: ObjectRef| names.get(&object).cloned().unwrap_or("nobody's".to_owned());
    let sorted = |mut names: Vec<String>| {
        names.sort();
        names.join(" ")
    };
    for view in &vms {
        let disks = view.vm.machine.disks.iter();
        let disks = disks.map(|d| format!("{}={}", d.name, name(ObjectRef::Volume(d.volume))));
        let claim = view.claim.as_ref();
        lines.push(format!(
            "vm {}: wanted {:?}, is {} {} at {:?}, claim {:?} held {:?}, bound to {:?}, disks {}, {} nics, {}",
            view.vm.meta.name,
            view.vm.power.state,
            view.phase,
            view.reason,
            view.place.as_ref().map(ToString::to_string),
            claim.map(|c| c.epoch),
            claim.map(novacron_core::model::Claim::is_held),
            view.vm.node,
            sorted(disks.collect()),
            view.vm.machine.nics.len(),
            told(&view.vm.meta),
        ));
    }
    let vm_name = |vm: VmId| name(ObjectRef::Vm(vm));
    for (i, host) in site.world.hosts().into_iter().enumerate() {
        let call = Call::within(Duration::from_secs(5));
        // One that does not answer is told by its VMs.
        let domains = SimHypervisor::new(&site.world, host).list(call).await;
        for domain in domains.unwrap_or_default() {
            let DomainOwner::NovaCron(id) = domain.owner else {
                continue;
            };
            let disks = domain.disks.iter().map(|v| name(ObjectRef::Volume(*v)));
            lines.push(format!(
                "domain of {} {:?} on {i}: {:?}, disks {}, {} nics",
                vm_name(id.vm),
                id.epoch,
                domain.state,
                sorted(disks.collect()),
                domain.nics.len()
            ));
        }
    }
    let artefacts = site.world.artefacts();
    for (host, port) in artefacts.ports {
        let i = site.world.hosts().iter().position(|h| *h == host);
        lines.push(format!("port of {} on {i:?}", vm_name(port.vm)));
    }
    for volume in artefacts.volumes {
        let object = match volume.id {
            ArtefactId::Volume(id) => ObjectRef::Volume(id),
            ArtefactId::Image(id) => ObjectRef::Image(id),
        };
        // One that was prepared and deleted is in nobody's way: the next one puts it away.
        let snapshots = volume.snapshots.iter().filter(|(_, done)| *done);
        let snapshots = snapshots.map(|(id, _)| name(ObjectRef::Snapshot(*id)));
        lines.push(format!(
            "stored {} complete {}, snapshots {}, {} attachments",
            name(object),
            volume.complete,
            sorted(snapshots.collect()),
            volume.attachments
        ));
    }
    lines.sort();
    Ok(lines)
}
