//! Volumes, snapshots and restores against starts, stops and failures that come at the same time.

use std::time::Duration;

use futures::{StreamExt, TryStreamExt};
use novacron_core::cluster::{ImageSpec, OperationHandle, VmHandle, VolumeHandle, VolumeSpec};
use novacron_core::driver::Call;
use novacron_core::model::{
    DiskOptions, DiskSource, NetworkKind, NicSpec, PoolId, Power, VolumeSource,
};
use novacron_core::store::{Commit, Op, Store, TxnId};
use novacron_core::{Bytes, Cluster, Deadline, ErrorKind, Phase, RequestOptions};

use crate::{Site, soon, spec, tells};

async fn done(operation: &OperationHandle) {
    operation.wait(soon()).await.unwrap();
}

async fn waits(vm: &VmHandle, why: &str) {
    let view = vm.wait_for(Phase::Pending, soon()).await.unwrap();
    assert!(view.reason.contains(why), "{}", view.reason);
}

async fn volume(cluster: &Cluster, name: &str) -> VolumeHandle {
    let spec = VolumeSpec::new(name, Bytes::gib(1));
    let volume = cluster.volumes().create(spec).await.unwrap();
    done(volume.operation().unwrap()).await;
    volume
}

/// A VM with the volume `data`.
async fn with_data(cluster: &Cluster, power: Power) -> (VmHandle, VolumeHandle) {
    let data = volume(cluster, "data").await;
    let source = DiskSource::Volume { volume: data.id() };
    let vm = spec("db").power(power).disk("data", source);
    let vm = cluster.vms().create(vm).await.unwrap();
    done(vm.operation().unwrap()).await;
    (vm, data)
}

#[tokio::test(start_paused = true)]
async fn a_vm_does_not_take_another_volumes_name_with_it() {
    let mut site = Site::new(1);
    let cluster = site.start().await;
    let data = volume(&cluster, "data").await;
    let size = Bytes::gib(1);
    let made = spec("web").disk("data", DiskSource::Blank { size, pool: None });
    let vm = cluster.vms().create(made).await.unwrap();
    vm.wait_for(Phase::Running, soon()).await.unwrap();
    done(&vm.delete().await.unwrap()).await;
    let found = cluster.volumes().by_name("data").await.unwrap();
    assert_eq!(found.id(), data.id());
    done(&data.delete().await.unwrap()).await;
    volume(&cluster, "data").await;
}

#[tokio::test(start_paused = true)]
async fn a_start_waits_for_a_snapshot_and_a_restore_of_its_volume() {
    let mut site = Site::new(1);
    let cluster = site.start().await;
    let (vm, data) = with_data(&cluster, Power::Off).await;
    site.gate.hold("snapshot_commit");
    let snapshot = cluster.snapshots().create("s1", data.id()).await.unwrap();
    site.gate.called("snapshot_commit").await;
    let start = vm.start().await.unwrap();
    waits(&vm, "a snapshot of the volume of disk data is under way").await;
    site.gate.open();
    done(&start).await;
    done(snapshot.operation().unwrap()).await;

    done(&vm.stop().await.unwrap()).await;
    site.gate.hold("restore");
    let restore = vm.restore(data.id(), snapshot.id()).await.unwrap();
    site.gate.called("restore").await;
    let start = vm.start().await.unwrap();
    waits(&vm, "a restore of the volume of disk data is under way").await;
    let second = cluster.snapshots().create("s2", data.id()).await.unwrap();
    tells(second.operation().unwrap(), "being restored").await;
    site.gate.open();
    done(&restore).await;
    done(&start).await;
    done(second.operation().unwrap()).await;
    assert!(site.world.violations().is_empty());
}

#[tokio::test(start_paused = true)]
async fn of_a_start_a_snapshot_and_a_restore_at_once_none_comes_into_another() {
    let mut site = Site::new(1);
    let cluster = site.start().await;
    let (vm, data) = with_data(&cluster, Power::Off).await;
    let snapshots = cluster.snapshots();
    let first = snapshots.create("first", data.id()).await.unwrap();
    done(first.operation().unwrap()).await;
    for round in 0..20 {
        let name = format!("s{round}");
        let restore = vm.restore(data.id(), first.id()).await.unwrap();
        let (start, snapshot) = futures::join!(vm.start(), snapshots.create(&name, data.id()));
        // The restore may have been too late.
        let restored = restore.wait(soon()).await;
        done(&start.unwrap()).await;
        done(snapshot.unwrap().operation().unwrap()).await;
        if let Err(late) = restored {
            assert!(late.message().contains("stop the VM first"), "{late}");
        }
        let layer = site.layer(data.id()).await;
        assert!(site.world.write(&layer, 1), "the guest writes elsewhere");
        done(&vm.kill().await.unwrap()).await;
    }
    assert!(site.world.violations().is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_snapshot_waits_for_a_vm_that_is_starting() {
    let mut site = Site::new(1);
    let cluster = site.start().await;
    let (vm, data) = with_data(&cluster, Power::Off).await;
    site.gate.hold("attach");
    let start = vm.start().await.unwrap();
    site.gate.called("attach").await;
    let snapshot = cluster.snapshots().create("s1", data.id()).await.unwrap();
    tells(snapshot.operation().unwrap(), "starting and changing").await;
    assert_eq!(site.gate.calls("snapshot_prepare"), 0);
    site.gate.open();
    done(&start).await;
    done(snapshot.operation().unwrap()).await;
}

#[tokio::test(start_paused = true)]
async fn a_snapshot_whose_vm_stops_meanwhile_is_taken_without_it() {
    let mut site = Site::new(1);
    let cluster = site.start().await;
    let (vm, data) = with_data(&cluster, Power::On).await;
    site.gate.hold("snapshot_prepare");
    let snapshot = cluster.snapshots().create("s1", data.id()).await.unwrap();
    site.gate.called("snapshot_prepare").await;
    done(&vm.kill().await.unwrap()).await;
    site.gate.open();
    done(snapshot.operation().unwrap()).await;
    done(&vm.start().await.unwrap()).await;
}

#[tokio::test(start_paused = true)]
async fn snapshots_of_one_volume_are_taken_one_after_the_other() {
    let mut site = Site::new(1);
    let cluster = site.start().await;
    site.gate.hold("create");
    let data = VolumeSpec::new("data", Bytes::gib(1));
    let data = cluster.volumes().create(data).await.unwrap();
    let take = async |name| cluster.snapshots().create(name, data.id()).await.unwrap();
    let (first, second) = (take("first").await, take("second").await);
    tells(second.operation().unwrap(), "its volume is being made").await;
    site.gate.open();
    site.gate.hold("snapshot_commit");
    site.gate.called("snapshot_commit").await;
    tells(second.operation().unwrap(), "is not taken yet").await;
    assert_eq!(site.gate.calls("snapshot_prepare"), 1);
    site.gate.open();
    done(first.operation().unwrap()).await;
    done(second.operation().unwrap()).await;
}

#[tokio::test(start_paused = true)]
async fn a_live_snapshot_that_is_given_up_is_taken_back() {
    let mut site = Site::new(1);
    let cluster = site.start().await;
    let (vm, data) = with_data(&cluster, Power::On).await;
    for (n, kind) in [ErrorKind::Unsupported, ErrorKind::Unavailable]
        .into_iter()
        .enumerate()
    {
        site.gate.fail("snapshot_commit", kind);
        let name = format!("bad-{n}");
        let bad = cluster.snapshots().create(&name, data.id()).await.unwrap();
        let long = Deadline::after(Duration::from_secs(900));
        let failed = bad.operation().unwrap().wait(long).await.unwrap_err();
        assert!(failed.message().contains("refused by the test"), "{failed}");
        site.gate.open();
        assert!(site.world.write(&site.layer(data.id()).await, 7));
        let name = format!("good-{n}");
        let good = cluster.snapshots().create(&name, data.id()).await.unwrap();
        done(good.operation().unwrap()).await;
        done(&vm.kill().await.unwrap()).await;
        done(&vm.start().await.unwrap()).await;
        assert_eq!(site.world.read(&site.layer(data.id()).await), Some(7));
    }
    assert!(site.world.violations().is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_growth_that_fails_ends_and_leaves_the_size() {
    let mut site = Site::new(1);
    let cluster = site.start().await;
    let data = volume(&cluster, "data").await;
    site.gate.fail("resize", ErrorKind::Exhausted);
    let grow = data.grow(Bytes::gib(4)).await.unwrap();
    let failed = grow.wait(soon()).await.unwrap_err();
    assert!(failed.message().contains("refused by the test"), "{failed}");
    let status = data.get().await.unwrap().status.unwrap();
    assert_eq!(status.size, Bytes::gib(1));
    assert!(status.problem.is_some());
    site.gate.open();
    // Less than what failed.
    done(&data.grow(Bytes::gib(2)).await.unwrap()).await;
    let status = data.get().await.unwrap().status.unwrap();
    assert_eq!((status.size, status.problem), (Bytes::gib(2), None));
}

#[tokio::test(start_paused = true)]
async fn an_outage_of_a_minute_fails_nothing() {
    let mut site = Site::new(1);
    let cluster = site.start().await;
    let pool = PoolId::new("shared").unwrap();
    site.world.set_pool_reachable(&pool, false);
    let data = VolumeSpec::new("data", Bytes::gib(1));
    let data = cluster.volumes().create(data).await.unwrap();
    let operation = data.operation().unwrap();
    tells(operation, "being made: ").await;
    let minute = Deadline::after(Duration::from_secs(60));
    let still = operation.wait(minute).await.unwrap_err();
    assert_eq!(still.kind(), ErrorKind::DeadlineExceeded);
    assert!(still.message().contains("last: being made: "), "{still}");
    site.world.set_pool_reachable(&pool, true);
    done(operation).await;

    site.world.set_pool_reachable(&pool, false);
    let lost = VolumeSpec::new("lost", Bytes::gib(1));
    let lost = cluster.volumes().create(lost).await.unwrap();
    let long = Deadline::after(Duration::from_secs(500));
    let failed = lost.operation().unwrap().wait(long).await.unwrap_err();
    assert!(failed.message().contains("no answer"), "{failed}");
    assert!(!failed.message().contains("deadline"), "{failed}");
}

#[tokio::test(start_paused = true)]
async fn a_deletion_that_does_not_get_on_says_why() {
    let mut site = Site::new(1);
    let cluster = site.start().await;
    let (vm, data) = with_data(&cluster, Power::On).await;
    let snapshot = cluster.snapshots().create("s1", data.id()).await.unwrap();
    done(snapshot.operation().unwrap()).await;
    site.gate.fail("delete", ErrorKind::Unavailable);
    site.gate.fail("snapshot_delete", ErrorKind::Unavailable);
    let first = snapshot.delete().await.unwrap();
    let second = vm.delete().await.unwrap();
    tells(&first, "deleting: snapshot_delete: refused").await;
    tells(&second, "deleting: delete: refused").await;
    let view = vm.get().await.unwrap();
    assert!(view.reason.contains("refused by the test"), "{view:?}");
    site.gate.open();
    done(&first).await;
    done(&second).await;
}

#[tokio::test(start_paused = true)]
async fn a_volume_whose_image_is_gone_fails() {
    let mut site = Site::new(1);
    let cluster = site.start().await;
    site.gate.hold("create");
    let image = ImageSpec::new("debian", site.add_source());
    let image = cluster.images().create(image).await.unwrap();
    let clone = VolumeSpec::new("data", Bytes(0)).source(VolumeSource::Image(image.id()));
    let clone = cluster.volumes().create(clone).await.unwrap();
    tells(clone.operation().unwrap(), "being made").await;
    let mut loss = Commit::new(TxnId(image.id().uuid()));
    let record = site.records("image/").await.remove(0);
    loss.ops.push(Op::Delete(record.key));
    site.store.commit(loss).await.unwrap();
    let failed = clone.operation().unwrap().wait(soon()).await.unwrap_err();
    assert!(failed.message().contains("its image is gone"), "{failed}");
    site.gate.open();
}

#[tokio::test(start_paused = true)]
async fn of_two_requests_that_exclude_each_other_one_is_let_in() {
    let mut site = Site::new(2);
    let cluster = site.start().await;
    let data = volume(&cluster, "data").await;
    let create = async |name| {
        let vm = cluster.vms().create(spec(name).power(Power::Off)).await;
        let vm = vm.unwrap();
        done(vm.operation().unwrap()).await;
        vm
    };
    let (a, b) = (create("a").await, create("b").await);
    let (first, second) = futures::join!(
        a.attach("data", data.id(), DiskOptions::default()),
        b.attach("data", data.id(), DiskOptions::default())
    );
    assert!(first.is_ok() != second.is_ok(), "{first:?} {second:?}");
    let refused = first.and(second).unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::Conflict, "{refused}");

    let free = volume(&cluster, "free").await;
    let (attach, delete) = futures::join!(
        a.attach("free", free.id(), DiskOptions::default()),
        free.delete()
    );
    assert!(attach.is_ok() != delete.is_ok(), "{attach:?} {delete:?}");

    let networks = cluster.networks();
    let lan = networks.create("lan", NetworkKind::User).await.unwrap();
    let nic = NicSpec::new(lan.id());
    let (delete, attach) = futures::join!(lan.delete(), a.attach_nic(nic.clone()));
    let delete = delete.unwrap();
    let late = b.attach_nic(nic).await.unwrap_err();
    assert_eq!(late.problems()[0].field, "nics[0].network", "{late}");
    // One that was let in keeps its network.
    if attach.is_ok() {
        tells(&delete, "a port is on it").await;
        done(&a.start().await.unwrap()).await;
        done(&a.delete().await.unwrap()).await;
    }
    done(&delete).await;
    networks.create("lan", NetworkKind::User).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn an_action_that_did_not_begin_in_time_never_does() {
    let mut site = Site::new(1);
    let cluster = site.start().await;
    let (vm, _) = with_data(&cluster, Power::Off).await;
    site.gate.hold("attach");
    let start = vm.start().await.unwrap();
    vm.wait_for(Phase::Starting, soon()).await.unwrap();
    let hasty = cluster.with(RequestOptions {
        timeout: Duration::from_secs(20),
        ..RequestOptions::default()
    });
    let reset = hasty.vms().by_id(vm.id()).reset().await.unwrap();
    let late = reset.wait(soon()).await.unwrap_err();
    assert!(late.message().contains("deadline passed"), "{late}");
    site.gate.open();
    done(&start).await;
    done(&vm.reset().await.unwrap()).await;
    let statuses: Vec<String> = site
        .records("action-status/")
        .await
        .iter()
        .map(|r| String::from_utf8_lossy(&r.value).into_owned())
        .collect();
    assert_eq!(statuses.len(), 2, "{statuses:?}");
    assert!(
        statuses[0].contains("before it could begin"),
        "{statuses:?}"
    );
    assert!(statuses[1].contains("done"), "{statuses:?}");
}

#[tokio::test(start_paused = true)]
async fn a_stop_needs_no_disks_and_a_creation_does() {
    let mut site = Site::new(1);
    let cluster = site.start().await;
    site.gate.hold("create");
    let vm = cluster.vms().create(spec("web")).await.unwrap();
    done(&vm.stop().await.unwrap()).await;
    site.gate.fail("create", ErrorKind::Exhausted);
    let vm = cluster.vms().create(spec("db").power(Power::Off)).await;
    let vm = vm.unwrap();
    let failed = vm.operation().unwrap().wait(soon()).await.unwrap_err();
    assert!(failed.message().contains("volume of disk root"), "{failed}");
    done(&vm.stop().await.unwrap()).await;
}

#[tokio::test(start_paused = true)]
async fn a_snapshot_is_exported_and_copied() {
    let mut site = Site::new(1);
    let cluster = site.start().await;
    let (_, data) = with_data(&cluster, Power::On).await;
    let call = || Call::within(Duration::from_secs(30));
    assert!(site.world.write(&site.layer(data.id()).await, 7));
    let snapshot = cluster.snapshots().create("s1", data.id()).await.unwrap();
    let copy = VolumeSpec::new("copy", Bytes(0)).source(VolumeSource::Snapshot(snapshot.id()));
    let copy = cluster.volumes().create(copy).await.unwrap();
    done(snapshot.operation().unwrap()).await;
    assert!(site.world.write(&site.layer(data.id()).await, 9));
    done(copy.operation().unwrap()).await;
    assert_eq!(site.world.read(&site.layer(copy.id()).await), Some(7));
    let status = copy.get().await.unwrap().status.unwrap();
    assert_eq!(status.size, Bytes::gib(1));

    let mut stream = data.export(call(), snapshot.id()).await.unwrap();
    let piece = stream.next().await.unwrap().unwrap();
    assert!(piece.iter().all(|byte| *byte == 7));
    let rest = stream.try_fold(0, async |sum, piece| Ok(sum + piece.len()));
    assert_eq!((rest.await.unwrap() + piece.len()) as u64, Bytes::gib(1).0);
    let other = copy.export(call(), snapshot.id()).await.err().unwrap();
    assert_eq!(other.problems()[0].field, "snapshot", "{other}");

    // A snapshot stays for a copy that is being made of it.
    site.gate.hold("create");
    let late = VolumeSpec::new("late", Bytes(0)).source(VolumeSource::Snapshot(snapshot.id()));
    let late = cluster.volumes().create(late).await.unwrap();
    let delete = snapshot.delete().await.unwrap();
    site.gate.open();
    done(late.operation().unwrap()).await;
    done(&delete).await;
    let gone = VolumeSpec::new("gone", Bytes(0)).source(VolumeSource::Snapshot(snapshot.id()));
    let gone = cluster.volumes().create(gone).await.unwrap_err();
    assert_eq!(gone.problems()[0].field, "source.snapshot", "{gone}");
}
