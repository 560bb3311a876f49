//! The one door: what holds for every change alike.

use std::collections::BTreeMap;
use std::time::Duration;

use futures::FutureExt;
use futures::future::LocalBoxFuture;
use novacron_core::cluster::{Evidence, ImageSpec, OperationHandle, VolumeSpec};
use novacron_core::driver::Call;
use novacron_core::model::{
    DiskLimits, DiskOptions, DiskSource, ImageId, ImageSource, LinkState, Name, NetworkId,
    NetworkKind, NicOptions, NicSpec, NodeId, OperationId, OperationState, PortId, Power,
    Returning, SnapshotId, VmId, VmSettings, VolumeId,
};
use novacron_core::store::{Commit, Key, Op, Revision, Store as _, TxnId};
use novacron_core::{Bytes, Cluster, Error, ErrorKind, Phase, RequestOptions, Result, VmSpec};

use uuid::Uuid;

use crate::{SOURCE, Site, soon, spec};

/// A change of some object, as any caller would ask for it.
struct Change {
    name: &'static str,
    request: Box<dyn Fn(Cluster) -> LocalBoxFuture<'static, Result<OperationHandle>>>,
}

fn change<F>(name: &'static str, request: impl Fn(Cluster) -> F + 'static) -> Change
where
    F: Future<Output = Result<OperationHandle>> + 'static,
{
    Change {
        name,
        request: Box::new(move |cluster| request(cluster).boxed_local()),
    }
}

/// Something of every kind to change.
#[derive(Clone, Copy)]
struct Objects {
    /// It is off, and has the volume `data` and a NIC on the network.
    vm: VmId,
    port: PortId,
    /// Nobody can tell whether it runs.
    lost: VmId,
    /// So this cannot end.
    stopping: OperationId,
    data: VolumeId,
    free: VolumeId,
    image: ImageId,
    spare: ImageId,
    snapshot: SnapshotId,
    network: NetworkId,
    other_network: NetworkId,
}

async fn furnish(site: &Site, cluster: &Cluster) -> Objects {
    let lost = cluster.vms().create(spec("lost")).await.unwrap();
    lost.wait_for(Phase::Running, soon()).await.unwrap();
    let (host, _) = site.world.running(lost.id())[0];
    site.world.set_reachable(host, false);
    lost.wait_for(Phase::Unknown, soon()).await.unwrap();
    let stopping = lost.stop().await.unwrap();

    // What a process left that nobody builds any more.
    let record = br#"{"v":1,"body":{"id":"gone","schedulable":true}}"#;
    let mut left = Commit::new(TxnId(Uuid::from_u128(0xf00d)));
    let key = Key::new("node/gone").unwrap();
    left.push(Op::Put(key, record.as_slice().into()));
    site.store.commit(left).await.unwrap();

    let image = async |name| {
        let spec = ImageSpec::new(name, site.add_source());
        cluster.images().create(spec).await.unwrap()
    };
    let (image, spare) = (image("debian").await, image("spare").await);
    let volume = async |name| {
        let spec = VolumeSpec::new(name, Bytes::gib(1));
        cluster.volumes().create(spec).await.unwrap()
    };
    let (data, free) = (volume("data").await, volume("free").await);
    let made = [&image, &spare].map(|i| i.operation());
    for operation in made.into_iter().chain([data.operation(), free.operation()]) {
        operation.unwrap().wait(soon()).await.unwrap();
    }
    let snapshots = cluster.snapshots();
    let snapshot = snapshots.create("before", data.id()).await.unwrap();
    snapshot.operation().unwrap().wait(soon()).await.unwrap();
    let networks = cluster.networks();
    let network = networks.create("lan", NetworkKind::User).await.unwrap();
    let vm = spec("web")
        .power(Power::Off)
        .disk("data", DiskSource::Volume { volume: data.id() })
        .nic(NicSpec::new(network.id()));
    let vm = cluster.vms().create(vm).await.unwrap();
    vm.operation().unwrap().wait(soon()).await.unwrap();
    let other_network = networks.create("lan-2", NetworkKind::User).await.unwrap();
    Objects {
        port: vm.get().await.unwrap().vm.machine.nics[0].port,
        stopping: stopping.id(),
        other_network: other_network.id(),
        vm: vm.id(),
        lost: lost.id(),
        data: data.id(),
        free: free.id(),
        image: image.id(),
        spare: spare.id(),
        snapshot: snapshot.id(),
        network: network.id(),
    }
}

fn labels() -> BTreeMap<String, String> {
    [("tier".to_owned(), "web".to_owned())].into()
}

fn limited() -> DiskOptions {
    DiskOptions {
        limits: DiskLimits {
            iops: Some(100),
            ..DiskLimits::default()
        },
        ..DiskOptions::default()
    }
}

fn unplugged() -> NicOptions {
    NicOptions {
        link: LinkState::Down,
        ..NicOptions::default()
    }
}

fn made(operation: Option<&OperationHandle>) -> OperationHandle {
    operation.unwrap().clone()
}

/// Every change that the door lets in, in an order in which each is possible.
fn every_change(o: Objects) -> Vec<Change> {
    macro_rules! vm {
        ($($name:literal => $method:ident($($arg:expr),*);)*) => {
            vec![$(change($name, move |c| async move { c.vms().by_id(o.vm).$method($($arg),*).await })),*]
        };
    }
    macro_rules! on {
        ($($name:literal => $collection:ident $id:ident $method:ident($($arg:expr),*);)*) => {
            vec![$(change($name, move |c| async move { c.$collection().by_id(o.$id).$method($($arg),*).await })),*]
        };
    }
    let node = |name| NodeId::new(name).unwrap();
    let mut all = vec![
        change("vm.create", |c| async move {
            let clone = VmSpec::new("new").power(Power::Off).image("debian");
            Ok(made(c.vms().create(clone).await?.operation()))
        }),
        change("volume.create", |c| async move {
            let spec = VolumeSpec::new("new", Bytes::gib(1));
            Ok(made(c.volumes().create(spec).await?.operation()))
        }),
        change("image.create", |c| async move {
            let spec = ImageSpec::new("new", ImageSource::File(SOURCE.into()));
            Ok(made(c.images().create(spec).await?.operation()))
        }),
        change("snapshot.create", move |c| async move {
            Ok(made(c.snapshots().create("new", o.data).await?.operation()))
        }),
        change("network.create", |c| async move {
            let network = c.networks().create("new", NetworkKind::User).await?;
            Ok(made(network.operation()))
        }),
        change("node.evacuate", move |c| async move {
            let nodes = c.nodes();
            let stay = Returning::Stay;
            nodes
                .evacuate(&node("node-1"), Evidence::Observed, stay)
                .await
        }),
        change("node.remove", move |c| async move {
            c.nodes().remove(&node("gone")).await
        }),
        change("node.set-schedulable", move |c| async move {
            c.nodes().set_schedulable(&node("node-1"), true).await
        }),
    ];
    all.extend(vm! {
        "vm.attach" => attach("more", o.free, DiskOptions::default());
        "vm.set-disk" => set_disk("more", limited());
        "vm.detach" => detach("more");
        "vm.attach-nic" => attach_nic(NicSpec::new(o.other_network));
        "vm.set-nic" => set_nic(o.port, unplugged());
        "vm.detach-nic" => detach_nic(o.port);
        "vm.restore" => restore(o.data, o.snapshot);
        "vm.rescue" => rescue("spare");
        "vm.unrescue" => unrescue();
        "vm.rebuild" => rebuild("root", "spare");
        "vm.start" => start();
        "vm.reset" => reset();
        "vm.pause" => pause();
        "vm.stop" => stop();
        "vm.update" => update(VmSettings::of_spec(&VmSpec::new("vm").vcpus(2)));
        "vm.kill" => kill();
        "vm.move" => move_to(node("node-1"));
        "vm.set-labels" => set_labels(labels());
        "vm.set-annotations" => set_annotations(labels());
    });
    all.push(change("operation.cancel", move |c| async move {
        c.operation(o.stopping).cancel().await
    }));
    all.extend(on! {
        "vm.confirm-stopped" => vms lost confirm_stopped();
        "volume.grow" => volumes free grow(Bytes::gib(2));
        "volume.set-labels" => volumes free set_labels(labels());
        "volume.set-annotations" => volumes free set_annotations(labels());
        "image.set-labels" => images image set_labels(labels());
        "image.set-annotations" => images image set_annotations(labels());
        "snapshot.set-labels" => snapshots snapshot set_labels(labels());
        "snapshot.set-annotations" => snapshots snapshot set_annotations(labels());
        "network.set-labels" => networks network set_labels(labels());
        "network.set-annotations" => networks network set_annotations(labels());
        "snapshot.delete" => snapshots snapshot delete();
        "network.delete" => networks network delete();
        "vm.delete" => vms vm delete();
        "volume.delete" => volumes free delete();
        "image.delete" => images spare delete();
    });
    all
}

fn field(error: &Error) -> &str {
    assert_eq!(error.kind(), ErrorKind::Invalid, "{error}");
    &error.problems()[0].field
}

/// Waits for the end, whatever it is.
async fn end(operation: &OperationHandle) {
    let waited = operation.wait(soon()).await;
    let state = operation.get().await.unwrap().state;
    assert_ne!(state, OperationState::Running, "{waited:?}");
}

#[tokio::test(start_paused = true)]
async fn every_change_honours_every_option() {
    let mut site = Site::new(2);
    let cluster = site.start().await;
    let objects = furnish(&site, &cluster).await;
    let host = RequestOptions::default();
    for (i, Change { name, request }) in every_change(objects).into_iter().enumerate() {
        let before = site.written().await;

        let dry = RequestOptions {
            dry_run: true,
            idempotency_key: Some(format!("dry-{i}")),
            ..host.clone()
        };
        let nothing = request(cluster.with(dry)).await;
        let nothing = nothing.unwrap_or_else(|e| panic!("dry {name}: {e}"));
        let gone = nothing.get().await.unwrap_err();
        assert_eq!(gone.kind(), ErrorKind::NotFound, "{name}");
        assert_eq!(site.written().await, before, "a dry {name} wrote");

        let old = RequestOptions {
            expected_version: Some(Revision(1)),
            ..host.clone()
        };
        let refused = request(cluster.with(old)).await.unwrap_err();
        if name.ends_with(".create") {
            assert_eq!(field(&refused), "options.expected_version", "{name}");
        } else {
            assert_eq!(refused.kind(), ErrorKind::Conflict, "{name}: {refused}");
            assert!(!refused.is_retryable(), "{name}");
            let other = RequestOptions {
                project: Name::new("other").unwrap(),
                ..host.clone()
            };
            if !name.starts_with("node.") {
                let refused = request(cluster.with(other)).await.unwrap_err();
                assert_eq!(refused.kind(), ErrorKind::NotFound, "{name}: {refused}");
            }
        }
        assert_eq!(site.written().await, before, "a refused {name} wrote");

        let keyed = cluster.with(RequestOptions {
            idempotency_key: Some(format!("key-{i}")),
            ..host.clone()
        });
        let first = request(keyed.clone()).await;
        let first = first.unwrap_or_else(|e| panic!("{name}: {e}"));
        let audited = site.records("audit/").await.len();
        assert_eq!(first.get().await.unwrap().principal, "host", "{name}");
        let again = request(keyed.clone()).await.unwrap();
        assert_eq!(again.id(), first.id(), "{name} twice");
        let other = keyed.vms().create(spec("quite-another")).await.unwrap_err();
        assert_eq!(field(&other), "options.idempotency_key", "{name}");
        assert_eq!(site.records("audit/").await.len(), audited, "{name}");
        // The way back from a stop that cannot end cannot end either, and nobody can tell of a VM on the node.
        if !["operation.cancel", "node.evacuate"].contains(&name) {
            end(&first).await;
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_dry_run_says_what_the_change_would_be_told() {
    let mut site = Site::new(2);
    let cluster = site.start().await;
    let o = furnish(&site, &cluster).await;
    let before = site.written().await;
    let dry = cluster.with(RequestOptions {
        dry_run: true,
        ..RequestOptions::default()
    });
    let size = Bytes::gib(1);
    let refused = [
        dry.vms().create(spec("web")).await.map(drop),
        dry.volumes()
            .create(VolumeSpec::new("data", size))
            .await
            .map(drop),
        dry.networks()
            .create("lan", NetworkKind::User)
            .await
            .map(drop),
        dry.snapshots().create("before", o.data).await.map(drop),
    ];
    for taken in refused {
        let taken = taken.unwrap_err();
        assert_eq!(taken.kind(), ErrorKind::AlreadyExists, "{taken}");
    }
    let in_use = dry.volumes().by_id(o.data).delete().await.unwrap_err();
    assert_eq!(in_use.kind(), ErrorKind::FailedPrecondition, "{in_use}");
    let shrunk = dry.volumes().by_id(o.data).grow(Bytes::mib(1)).await;
    assert_eq!(field(&shrunk.unwrap_err()), "size");
    assert_eq!(site.written().await, before);
}

#[tokio::test(start_paused = true)]
async fn the_expected_version_lets_one_of_two_in() {
    let mut site = Site::new(1);
    let cluster = site.start().await;
    let volume = VolumeSpec::new("data", Bytes::gib(1));
    let volume = cluster.volumes().create(volume).await.unwrap();
    let seen = volume.get().await.unwrap().volume.version;
    let expects = cluster.with(RequestOptions {
        expected_version: Some(seen),
        ..RequestOptions::default()
    });
    let expects = expects.volumes().by_id(volume.id());
    expects.set_labels(labels()).await.unwrap();
    let late = expects.set_labels(BTreeMap::new()).await.unwrap_err();
    assert_eq!(late.kind(), ErrorKind::Conflict);
    assert_eq!(volume.get().await.unwrap().volume.meta.labels, labels());
}

#[tokio::test(start_paused = true)]
async fn the_same_request_twice_at_once_is_made_once() {
    let mut site = Site::new(1);
    let cluster = site.start().await;
    let keyed = cluster.with(RequestOptions {
        idempotency_key: Some("once".to_owned()),
        ..RequestOptions::default()
    });
    let create = || async {
        let vm = keyed.vms().create(spec("web").power(Power::Off)).await;
        let vm = vm.unwrap();
        (vm.id(), vm.operation().unwrap().id())
    };
    let (a, b, c) = futures::join!(create(), create(), create());
    assert!(a == b && b == c, "{a:?} {b:?} {c:?}");
    // The handle goes on without the key, so it can ask for something else.
    let vm = keyed.vms().create(spec("web").power(Power::Off)).await;
    vm.unwrap().start().await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn options_that_cannot_apply_are_refused() {
    let mut site = Site::new(1);
    let cluster = site.start().await;
    let vm = cluster.vms().create(spec("web")).await.unwrap();
    vm.wait_for(Phase::Running, soon()).await.unwrap();
    let host = RequestOptions::default();
    let wrong = [
        RequestOptions {
            dry_run: true,
            ..host.clone()
        },
        RequestOptions {
            idempotency_key: Some("k".to_owned()),
            ..host.clone()
        },
        RequestOptions {
            expected_version: Some(Revision(1)),
            ..host.clone()
        },
    ];
    for options in wrong {
        let vm = cluster.with(options).vms().by_id(vm.id());
        let call = Call::within(Duration::from_secs(5));
        let refused = vm.exec(call, &["true".to_owned()]).await.unwrap_err();
        assert!(field(&refused).starts_with("options."), "{refused}");
    }
    let wrong = [
        RequestOptions {
            timeout: Duration::ZERO,
            ..host.clone()
        },
        RequestOptions {
            principal: "a b".to_owned(),
            ..host.clone()
        },
        RequestOptions {
            idempotency_key: Some("../k".to_owned()),
            ..host
        },
    ];
    for options in wrong {
        let refused = cluster.with(options).vms().create(spec("x")).await;
        assert!(field(&refused.unwrap_err()).starts_with("options."));
    }
}
