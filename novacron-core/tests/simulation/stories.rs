//! The stories of [`super::systematic`]: one request each, on a cluster that has something of every kind.

use std::time::Duration;

use novacron_core::model::{
    DiskLimits, DiskOptions, DiskSource, Hardware, ImageId, LinkState, NetworkId, NicOptions,
    NicSpec, NodeId, ObjectRef, OperationId, PortId, Power, Returning, SnapshotId, VmId,
    VmSettings, VolumeId, VolumeSource,
};
use novacron_core::sim::Latency;
use novacron_core::store::{Commit, Key, Op, Store as _, TxnId};
use novacron_core::{Bytes, Cluster, Deadline, MiB, Phase, Result, VmSpec};

use uuid::Uuid;

use crate::requests::{Answer, Request};
use crate::site::{RESYNC, Site, node};

/// The request's verb, and on what.
pub(crate) const STORIES: [&str; 79] = [
    "vm.create/blank",
    "vm.create/image",
    "vm.create/volume",
    "vm.create/off",
    "vm.create/paused",
    "vm.start/off",
    "vm.start/held",
    "vm.stop/on",
    "vm.stop/held",
    "vm.kill/on",
    "vm.pause/on",
    "vm.pause/off",
    "vm.reset/on",
    "vm.move/off",
    "vm.restore/off",
    "vm.set-disk/on",
    "vm.set-disk/off",
    "vm.set-nic/on",
    "vm.set-nic/off",
    "vm.rebuild/off",
    "vm.rescue/off",
    "vm.unrescue/off",
    "vm.update/on",
    "vm.update/off",
    "vm.confirm-stopped/lost",
    "vm.attach/on",
    "vm.attach/held",
    "vm.attach/off",
    "vm.detach/on",
    "vm.detach/off",
    "vm.attach-nic/on",
    "vm.attach-nic/off",
    "vm.detach-nic/on",
    "vm.detach-nic/off",
    "vm.set-labels/on",
    "vm.set-annotations/on",
    "vm.delete/on",
    "vm.delete/held",
    "vm.delete/off",
    "volume.create/blank",
    "volume.create/image",
    "volume.create/snapshot",
    "volume.grow/free",
    "volume.grow/on",
    "volume.grow/clone",
    "volume.set-labels",
    "volume.set-annotations",
    "volume.delete/free",
    "volume.delete/snapshots",
    "image.create",
    "image.set-labels",
    "image.set-annotations",
    "image.delete",
    "snapshot.create/free",
    "snapshot.create/on",
    "snapshot.create/held",
    "snapshot.set-labels",
    "snapshot.set-annotations",
    "snapshot.delete/free",
    "snapshot.delete/on",
    "network.create",
    "network.set-labels",
    "network.set-annotations",
    "network.delete",
    "node.set-schedulable/no",
    "node.set-schedulable/yes",
    "node.set-schedulable/home",
    "node.evacuate",
    "node.remove",
    "operation.cancel/create-vm",
    "operation.cancel/create-running",
    "operation.cancel/create-volume",
    "operation.cancel/create-image",
    "operation.cancel/create-snapshot",
    "operation.cancel/start",
    "operation.cancel/stop",
    "operation.cancel/pause",
    "operation.cancel/reset",
    "operation.cancel/evacuate",
];

/// Something of every kind.
pub(crate) struct Objects {
    /// It runs, with a volume `data` that has a snapshot, and a NIC.
    on: VmId,
    /// It is off: a clone of `debian`, with a volume `cold` that has a snapshot, and a NIC.
    off: VmId,
    /// It is paused.
    held: VmId,
    /// It runs, alone on the second node.
    lost: VmId,
    root: VolumeId,
    pub data: VolumeId,
    cold: VolumeId,
    free: VolumeId,
    /// Free, with a snapshot.
    kept: VolumeId,
    of_data: SnapshotId,
    of_cold: SnapshotId,
    of_kept: SnapshotId,
    spare_image: ImageId,
    network: NetworkId,
    spare_network: NetworkId,
    port_on: PortId,
    port_off: PortId,
}

pub(crate) fn blank(name: &str) -> VmSpec {
    let size = Bytes::gib(1);
    VmSpec::new(name).disk("root", DiskSource::Blank { size, pool: None })
}

pub(crate) fn unplugged() -> NicOptions {
    NicOptions {
        link: LinkState::Down,
        ..NicOptions::default()
    }
}

pub(crate) fn limited(iops: u64) -> DiskOptions {
    DiskOptions {
        limits: DiskLimits {
            iops: Some(iops),
            ..DiskLimits::default()
        },
        ..DiskOptions::default()
    }
}

/// Sends a request, and waits for its end.
pub(crate) async fn done(cluster: &Cluster, request: Request) -> Result<Option<ObjectRef>> {
    let answer = now(cluster, request).await?;
    let deadline = Deadline::after(Duration::from_secs(120));
    cluster.operation(answer.operation).wait(deadline).await?;
    Ok(answer.made)
}

async fn now(cluster: &Cluster, request: Request) -> Result<Answer> {
    // Each has a key of its own.
    request
        .send(cluster, &format!("{:x}", fingerprint(&request)))
        .await
}

fn fingerprint(request: &Request) -> u64 {
    use std::hash::{DefaultHasher, Hash, Hasher};
    let mut hasher = DefaultHasher::new();
    format!("{request:?}").hash(&mut hasher);
    hasher.finish()
}

pub(crate) async fn furnish(cluster: &Cluster) -> Result<Objects> {
    macro_rules! made {
        ($kind:ident, $request:expr) => {
            match done(cluster, $request).await? {
                Some(ObjectRef::$kind(id)) => id,
                other => panic!("made {other:?}"),
            }
        };
    }
    let vm = |spec: VmSpec| Request::CreateVm(Box::new(spec));
    let with = |volume| DiskSource::Volume { volume };
    made!(Image, Request::CreateImage("debian".to_owned()));
    let spare_image = made!(Image, Request::CreateImage("spare-image".to_owned()));
    let network = made!(Network, Request::CreateNetwork("lan".to_owned()));
    let spare_network = made!(Network, Request::CreateNetwork("spare-lan".to_owned()));
    let volume = async |name: &str| {
        done(
            cluster,
            Request::CreateVolume(name.to_owned(), VolumeSource::Blank),
        )
        .await
    };
    let mut volumes = Vec::new();
    for name in ["data", "cold", "free", "kept"] {
        match volume(name).await? {
            Some(ObjectRef::Volume(id)) => volumes.push(id),
            other => panic!("made {other:?}"),
        }
    }
    let [data, cold, free, kept] = volumes[..] else {
        panic!("four volumes")
    };
    let snapshot = |name: &str, of| Request::CreateSnapshot(name.to_owned(), of);
    let of_cold = made!(Snapshot, snapshot("of-cold", cold));
    let of_kept = made!(Snapshot, snapshot("of-kept", kept));
    done(cluster, Request::Schedulable(node(1), false)).await?;
    let spec = blank("on")
        .nic(NicSpec::new(network))
        .disk("data", with(data));
    let on = made!(Vm, vm(spec));
    let of_data = made!(Snapshot, snapshot("of-data", data));
    let spec = VmSpec::new("off").image("debian").power(Power::Off);
    let spec = spec.disk("cold", with(cold)).nic(NicSpec::new(network));
    let off = made!(Vm, vm(spec));
    let held = made!(Vm, vm(blank("held").power(Power::Paused)));
    done(cluster, Request::Schedulable(node(0), false)).await?;
    done(cluster, Request::Schedulable(node(1), true)).await?;
    let lost = made!(Vm, vm(blank("lost")));
    done(cluster, Request::Schedulable(node(0), true)).await?;
    let (seen_on, seen_off) = (
        cluster.vms().by_id(on).get().await?.vm.value.machine,
        cluster.vms().by_id(off).get().await?.vm.value.machine,
    );
    Ok(Objects {
        on,
        off,
        held,
        lost,
        root: seen_off.disks[0].volume,
        data,
        cold,
        free,
        kept,
        of_data,
        of_cold,
        of_kept,
        spare_image,
        network,
        spare_network,
        port_on: seen_on.nics[0].port,
        port_off: seen_off.nics[0].port,
    })
}

/// Brings about what the story begins with; its request.
pub(crate) async fn stage(
    story: &str,
    site: &Site,
    cluster: &Cluster,
    o: &Objects,
) -> Result<Request> {
    let (verb, on_what) = story.split_once('/').unwrap_or((story, ""));
    let new = || "new".to_owned();
    let named = match on_what {
        "on" => o.on,
        "off" => o.off,
        "held" => o.held,
        _ => o.lost,
    };
    let (vm, volume) = (ObjectRef::Vm(o.on), ObjectRef::Volume(o.free));
    let (image, network) = (
        ObjectRef::Image(o.spare_image),
        ObjectRef::Network(o.spare_network),
    );
    let snapshot = ObjectRef::Snapshot(o.of_kept);
    let object = match verb.split('.').next() {
        Some("vm") => vm,
        Some("volume") => volume,
        Some("image") => image,
        Some("network") => network,
        _ => snapshot,
    };
    Ok(match verb {
        "vm.create" => {
            let spec = match on_what {
                "image" => VmSpec::new("new").image("debian"),
                "volume" => VmSpec::new("new").disk("data", DiskSource::Volume { volume: o.free }),
                "off" => blank("new").power(Power::Off),
                "paused" => blank("new").power(Power::Paused),
                _ => blank("new"),
            };
            // Bound to a node: where it is placed is not the story's.
            Request::CreateVm(Box::new(spec.nic(NicSpec::new(o.network)).node(node(0))))
        }
        "vm.start" => Request::Start(named),
        "vm.stop" => Request::Stop(named),
        "vm.kill" => Request::Kill(named),
        "vm.pause" => Request::Pause(named),
        "vm.reset" => Request::Reset(named),
        "vm.move" => Request::Move(named, node(1)),
        "vm.set-disk" => {
            let disk = if on_what == "on" { "data" } else { "cold" };
            Request::SetDisk(named, disk.to_owned(), limited(100))
        }
        "vm.set-nic" if on_what == "on" => Request::SetNic(o.on, o.port_on, unplugged()),
        "vm.set-nic" => Request::SetNic(o.off, o.port_off, unplugged()),
        "vm.rebuild" => Request::Rebuild(named, "root".to_owned(), "spare-image".to_owned()),
        "vm.rescue" => Request::Rescue(named, "spare-image".to_owned()),
        "vm.unrescue" => {
            done(cluster, Request::Rescue(named, "spare-image".to_owned())).await?;
            Request::Unrescue(named)
        }
        "vm.update" => {
            let view = cluster.vms().by_id(named).get().await?;
            let mut settings = VmSettings::of(&view.vm);
            settings.hardware = Hardware::new(2, MiB(1024));
            Request::Update(named, Box::new(settings))
        }
        "vm.restore" => Request::Restore(named, o.cold, o.of_cold),
        "vm.confirm-stopped" => {
            // Its host is lost for good: the word is true.
            let (host, _) = site.world.running(o.lost)[0];
            site.world.set_reachable(host, false);
            site.world.reboot(host);
            let unknown = Deadline::after(Duration::from_secs(60));
            let vm = cluster.vms().by_id(o.lost);
            vm.wait_for(Phase::Unknown, unknown).await?;
            // Nothing is placed there any more.
            crate::site::pass(RESYNC).await;
            Request::ConfirmStopped(o.lost)
        }
        "vm.attach" => Request::Attach(named, "more".to_owned(), o.free, <_>::default()),
        "vm.detach" if on_what == "on" => Request::Detach(o.on, "data".to_owned(), o.data),
        "vm.detach" => Request::Detach(o.off, "cold".to_owned(), o.cold),
        "vm.attach-nic" => Request::AttachNic(named, NicSpec::new(o.network)),
        "vm.detach-nic" if on_what == "on" => Request::DetachNic(o.on, o.port_on),
        "vm.detach-nic" => Request::DetachNic(o.off, o.port_off),
        "vm.delete" => Request::Delete(ObjectRef::Vm(named)),
        "volume.create" => {
            let source = match on_what {
                "image" => VolumeSource::Image(o.spare_image),
                "snapshot" => VolumeSource::Snapshot(o.of_kept),
                _ => VolumeSource::Blank,
            };
            Request::CreateVolume(new(), source)
        }
        "volume.grow" => {
            let volume = match on_what {
                "on" => o.data,
                "clone" => o.root,
                _ => o.free,
            };
            Request::Grow(volume, Bytes::gib(3))
        }
        "volume.delete" if on_what == "snapshots" => Request::Delete(ObjectRef::Volume(o.kept)),
        "image.create" => Request::CreateImage(new()),
        "snapshot.create" => {
            let volume = match on_what {
                "on" => o.data,
                "held" => cluster.vms().by_id(o.held).get().await?.vm.machine.disks[0].volume,
                _ => o.free,
            };
            Request::CreateSnapshot(new(), volume)
        }
        "snapshot.delete" if on_what == "on" => Request::Delete(ObjectRef::Snapshot(o.of_data)),
        "network.create" => Request::CreateNetwork(new()),
        "node.set-schedulable" if on_what == "no" => Request::Schedulable(node(1), false),
        "node.set-schedulable" if on_what == "home" => {
            done(cluster, Request::Evacuate(node(1), Returning::Return)).await?;
            cluster
                .vms()
                .by_id(o.lost)
                .wait_for(Phase::Running, Deadline::after(Duration::from_secs(60)))
                .await?;
            Request::Schedulable(node(1), true)
        }
        "node.evacuate" => Request::Evacuate(node(1), Returning::Stay),
        "node.remove" => {
            // What a process leaves that nobody builds any more.
            let record = br#"{"v":1,"body":{"id":"gone","schedulable":true}}"#;
            let mut left = Commit::new(TxnId(Uuid::from_u128(0xf00d)));
            left.push(Op::Put(Key::new("node/gone")?, record.as_slice().into()));
            site.disk.connect().commit(left).await?;
            crate::site::pass(RESYNC).await;
            Request::Forget(NodeId::new("gone")?)
        }
        "node.set-schedulable" => {
            done(cluster, Request::Schedulable(node(1), false)).await?;
            Request::Schedulable(node(1), true)
        }
        "operation.cancel" => Request::Cancel(begun(on_what, site, cluster, o).await?),
        _ if verb.ends_with(".delete") => Request::Delete(object),
        _ if verb.ends_with(".set-labels") => Request::Label(object, new()),
        _ if verb.ends_with(".set-annotations") => Request::Annotate(object, new()),
        other => panic!("no story of {other}"),
    })
}

/// An operation that has begun and not ended.
async fn begun(what: &str, site: &Site, cluster: &Cluster, o: &Objects) -> Result<OperationId> {
    let slow = Duration::from_secs(20);
    site.world.set_latency(Latency {
        call: slow..=slow,
        shutdown: slow..=slow,
    });
    let new = || "new".to_owned();
    let request = match what {
        // It waits for a place that no node has.
        "create-vm" => {
            let big = blank("big")
                .memory(MiB(1024 * 1024))
                .nic(NicSpec::new(o.network));
            Request::CreateVm(Box::new(big))
        }
        "create-running" => Request::CreateVm(Box::new(blank("new").nic(NicSpec::new(o.network)))),
        "create-volume" => Request::CreateVolume(new(), VolumeSource::Blank),
        "create-image" => Request::CreateImage(new()),
        "create-snapshot" => Request::CreateSnapshot(new(), o.data),
        "start" => Request::Start(o.off),
        "stop" => Request::Stop(o.on),
        "pause" => Request::Pause(o.on),
        "reset" => {
            now(cluster, Request::Reset(o.on)).await?;
            Request::Reset(o.on)
        }
        "evacuate" => Request::Evacuate(node(1), Returning::Return),
        other => panic!("no story of cancelling {other}"),
    };
    // Not under the key of the one before.
    let answer = request.send(cluster, "to-be-cancelled").await?;
    // Into the middle of its first call.
    crate::site::pass(Duration::from_secs(2)).await;
    Ok(answer.operation)
}
