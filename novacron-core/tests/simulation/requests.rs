//! Every kind of request that the door lets in, as data: so that it can be sent again.

use std::collections::BTreeMap;

use novacron_core::cluster::{Evidence, ImageSpec, VolumeSpec};
use novacron_core::model::{
    DiskOptions, ImageSource, NetworkKind, NicOptions, NicSpec, NodeId, ObjectRef, OperationId,
    PortId, Returning, SnapshotId, VmId, VmSettings, VolumeId, VolumeSource,
};
use novacron_core::{Bytes, Cluster, RequestOptions, Result, VmSpec};

use crate::site::SOURCE;

#[derive(Clone, Debug)]
pub(crate) enum Request {
    CreateVm(Box<VmSpec>),
    CreateVolume(String, VolumeSource),
    CreateImage(String),
    CreateSnapshot(String, VolumeId),
    CreateNetwork(String),
    Start(VmId),
    Stop(VmId),
    Kill(VmId),
    Pause(VmId),
    Reset(VmId),
    ConfirmStopped(VmId),
    Move(VmId, NodeId),
    SetDisk(VmId, String, DiskOptions),
    SetNic(VmId, PortId, NicOptions),
    Rebuild(VmId, String, String),
    Rescue(VmId, String),
    Unrescue(VmId),
    Update(VmId, Box<VmSettings>),
    Attach(VmId, String, VolumeId, DiskOptions),
    Detach(VmId, String, VolumeId),
    AttachNic(VmId, NicSpec),
    DetachNic(VmId, PortId),
    Restore(VmId, VolumeId, SnapshotId),
    Grow(VolumeId, Bytes),
    Label(ObjectRef, String),
    Annotate(ObjectRef, String),
    Delete(ObjectRef),
    Schedulable(NodeId, bool),
    Evacuate(NodeId, Returning),
    Forget(NodeId),
    Cancel(OperationId),
}

/// What a user is told.
#[derive(Clone, Debug)]
pub(crate) struct Answer {
    /// What was made, if something was.
    pub made: Option<ObjectRef>,
    pub operation: OperationId,
}

/// The same call on a handle of any kind.
macro_rules! on_any {
    ($cluster:ident, $object:expr, $method:ident($($arg:expr),*)) => {
        match $object {
            ObjectRef::Vm(id) => $cluster.vms().by_id(*id).$method($($arg),*).await?,
            ObjectRef::Volume(id) => $cluster.volumes().by_id(*id).$method($($arg),*).await?,
            ObjectRef::Image(id) => $cluster.images().by_id(*id).$method($($arg),*).await?,
            ObjectRef::Snapshot(id) => $cluster.snapshots().by_id(*id).$method($($arg),*).await?,
            ObjectRef::Network(id) => $cluster.networks().by_id(*id).$method($($arg),*).await?,
            other => panic!("{other} has no such request"),
        }
    };
}

pub(crate) fn text(value: &str) -> BTreeMap<String, String> {
    [("text".to_owned(), value.to_owned())].into()
}

impl Request {
    /// The verb, as the audit has it.
    pub(crate) fn verb(&self) -> String {
        match self {
            Self::CreateVm(_) => "vm.create",
            Self::CreateVolume(..) => "volume.create",
            Self::CreateImage(_) => "image.create",
            Self::CreateSnapshot(..) => "snapshot.create",
            Self::CreateNetwork(_) => "network.create",
            Self::Start(_) => "vm.start",
            Self::Stop(_) => "vm.stop",
            Self::Kill(_) => "vm.kill",
            Self::Pause(_) => "vm.pause",
            Self::Reset(_) => "vm.reset",
            Self::ConfirmStopped(_) => "vm.confirm-stopped",
            Self::Move(..) => "vm.move",
            Self::SetDisk(..) => "vm.set-disk",
            Self::SetNic(..) => "vm.set-nic",
            Self::Rebuild(..) => "vm.rebuild",
            Self::Rescue(..) => "vm.rescue",
            Self::Unrescue(_) => "vm.unrescue",
            Self::Update(..) => "vm.update",
            Self::Attach(..) => "vm.attach",
            Self::Detach(..) => "vm.detach",
            Self::AttachNic(..) => "vm.attach-nic",
            Self::DetachNic(..) => "vm.detach-nic",
            Self::Restore(..) => "vm.restore",
            Self::Grow(..) => "volume.grow",
            Self::Schedulable(..) => "node.set-schedulable",
            Self::Evacuate(..) => "node.evacuate",
            Self::Forget(_) => "node.remove",
            Self::Cancel(_) => "operation.cancel",
            Self::Label(object, _) => return format!("{}.set-labels", object.kind()),
            Self::Annotate(object, _) => return format!("{}.set-annotations", object.kind()),
            Self::Delete(object) => return format!("{}.delete", object.kind()),
        }
        .to_owned()
    }

    /// Sends it under an idempotency key.
    pub(crate) async fn send(&self, cluster: &Cluster, key: &str) -> Result<Answer> {
        let c = &cluster.with(RequestOptions {
            idempotency_key: Some(key.to_owned()),
            ..RequestOptions::default()
        });
        macro_rules! made {
            ($kind:ident, $handle:expr) => {{
                let handle = $handle.await?;
                return Ok(Answer {
                    made: Some(ObjectRef::$kind(handle.id())),
                    operation: handle.operation().unwrap().id(),
                });
            }};
        }
        let vm = |id: &VmId| c.vms().by_id(*id);
        let operation = match self {
            Self::CreateVm(spec) => made!(Vm, c.vms().create((**spec).clone())),
            Self::CreateVolume(name, source) => {
                let size = match source {
                    VolumeSource::Blank => Bytes::gib(1),
                    // As large as its source.
                    _ => Bytes(0),
                };
                let spec = VolumeSpec::new(name, size).source(*source);
                made!(Volume, c.volumes().create(spec))
            }
            Self::CreateImage(name) => {
                let source = ImageSource::File(SOURCE.into());
                made!(Image, c.images().create(ImageSpec::new(name, source)))
            }
            Self::CreateSnapshot(name, volume) => {
                made!(Snapshot, c.snapshots().create(name, *volume))
            }
            Self::CreateNetwork(name) => {
                made!(Network, c.networks().create(name, NetworkKind::User))
            }
            Self::Start(id) => vm(id).start().await?,
            Self::Stop(id) => vm(id).stop().await?,
            Self::Kill(id) => vm(id).kill().await?,
            Self::Pause(id) => vm(id).pause().await?,
            Self::Reset(id) => vm(id).reset().await?,
            Self::ConfirmStopped(id) => vm(id).confirm_stopped().await?,
            Self::Move(id, node) => vm(id).move_to(node.clone()).await?,
            Self::SetDisk(id, disk, options) => vm(id).set_disk(disk, options.clone()).await?,
            Self::SetNic(id, port, options) => vm(id).set_nic(*port, options.clone()).await?,
            Self::Rebuild(id, disk, image) => vm(id).rebuild(disk, image).await?,
            Self::Rescue(id, image) => vm(id).rescue(image).await?,
            Self::Unrescue(id) => vm(id).unrescue().await?,
            Self::Update(id, settings) => vm(id).update((**settings).clone()).await?,
            Self::Attach(id, disk, volume, options) => {
                vm(id).attach(disk, *volume, options.clone()).await?
            }
            Self::Detach(id, disk, _) => vm(id).detach(disk).await?,
            Self::AttachNic(id, nic) => vm(id).attach_nic(nic.clone()).await?,
            Self::DetachNic(id, port) => vm(id).detach_nic(*port).await?,
            Self::Restore(id, volume, snapshot) => vm(id).restore(*volume, *snapshot).await?,
            Self::Grow(volume, size) => c.volumes().by_id(*volume).grow(*size).await?,
            Self::Label(object, value) => on_any!(c, object, set_labels(text(value))),
            Self::Annotate(object, value) => on_any!(c, object, set_annotations(text(value))),
            Self::Delete(object) => on_any!(c, object, delete()),
            Self::Schedulable(node, yes) => c.nodes().set_schedulable(node, *yes).await?,
            Self::Evacuate(node, returning) => {
                let nodes = c.nodes();
                nodes.evacuate(node, Evidence::Observed, *returning).await?
            }
            Self::Forget(node) => c.nodes().remove(node).await?,
            Self::Cancel(operation) => c.operation(*operation).cancel().await?,
        };
        Ok(Answer {
            made: None,
            operation: operation.id(),
        })
    }
}
