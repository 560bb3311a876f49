//! `hot_plug` and `disk_pivot`.

use super::{HypervisorFixture, Subject};
use crate::ErrorKind;
use crate::conformance::refusal;
use crate::driver::{DomainId, DomainSpec};
use crate::model::{Bytes, PortId, SnapshotId, VolumeId};

async fn has_disk(s: &Subject<'_>, id: DomainId, volume: VolumeId) -> bool {
    s.inspect(id).await.unwrap().disks.contains(&volume)
}

async fn has_nic(s: &Subject<'_>, id: DomainId, port: PortId) -> bool {
    s.inspect(id).await.unwrap().nics.contains(&port)
}

/// What the domain was defined with is still there.
async fn keeps_its_own(s: &Subject<'_>, spec: &DomainSpec) {
    for disk in &spec.disks {
        assert!(has_disk(s, spec.id, disk.volume).await, "{}", disk.name);
    }
    for nic in &spec.nics {
        assert!(has_nic(s, spec.id, nic.port).await, "{}", nic.port);
    }
}

/// A disk is attached to a running guest, once however often it is asked for, and taken back, once too.
pub async fn disk_is_attached_and_detached(fixture: &dyn HypervisorFixture) {
    let s = Subject::open(fixture).await;
    let Some(hot_plug) = s.hot_plug() else { return };
    let (spec, disk) = (s.booted().await, fixture.disk("plugged").await);
    for _ in 0..2 {
        let attach = hot_plug.attach_disk(s.call(), spec.id, &disk);
        s.soon("attach_disk", attach).await.unwrap();
        let domain = s.inspect(spec.id).await.unwrap();
        let count = domain.disks.iter().filter(|d| **d == disk.volume).count();
        assert_eq!(count, 1, "{domain:?}");
        keeps_its_own(&s, &spec).await;
    }
    for _ in 0..2 {
        let detach = hot_plug.detach_disk(s.call(), spec.id, disk.volume);
        s.soon("detach_disk", detach).await.unwrap();
        assert!(!has_disk(&s, spec.id, disk.volume).await);
        keeps_its_own(&s, &spec).await;
    }
    // The image was closed: it can be attached anew.
    let attach = hot_plug.attach_disk(s.call(), spec.id, &disk);
    s.soon("attach_disk", attach).await.unwrap();
    assert!(has_disk(&s, spec.id, disk.volume).await);
}

/// A disk that one guest has open is not given to another one, also not to one that starts with it; once it is taken
/// back, it is.
pub async fn disk_that_another_domain_has_is_refused(fixture: &dyn HypervisorFixture) {
    let s = Subject::open(fixture).await;
    let Some(hot_plug) = s.hot_plug() else { return };
    let (first, disk) = (s.booted().await, fixture.disk("shared").await);
    let attach = hot_plug.attach_disk(s.call(), first.id, &disk);
    s.soon("attach_disk", attach).await.unwrap();

    let second = s.paused().await;
    let attach = hot_plug.attach_disk(s.call(), second.id, &disk);
    let refused = refusal("attach_disk", s.soon("attach_disk", attach).await);
    assert_eq!(refused, ErrorKind::Unavailable, "attach");
    assert!(!has_disk(&s, second.id, disk.volume).await);
    keeps_its_own(&s, &second).await;

    let mut third = s.soon("a spec", fixture.spec(s.fresh())).await;
    third.disks.push(disk.clone());
    s.define_as(&third).await;
    let start = s.hypervisor.start(s.call(), third.id);
    let refused = refusal("start", s.soon("start", start).await);
    assert_eq!(refused, ErrorKind::FailedPrecondition);

    let detach = hot_plug.detach_disk(s.call(), first.id, disk.volume);
    s.soon("detach_disk", detach).await.unwrap();
    let attach = hot_plug.attach_disk(s.call(), second.id, &disk);
    s.soon("attach_disk", attach).await.unwrap();
    assert!(has_disk(&s, second.id, disk.volume).await);
}

/// A disk that was never attached can be taken back.
pub async fn detach_of_a_disk_that_is_not_attached_is_no_error(fixture: &dyn HypervisorFixture) {
    let s = Subject::open(fixture).await;
    let Some(hot_plug) = s.hot_plug() else { return };
    let (spec, disk) = (s.running().await, fixture.disk("elsewhere").await);
    let detach = hot_plug.detach_disk(s.call(), spec.id, disk.volume);
    s.soon("detach_disk", detach).await.unwrap();
    keeps_its_own(&s, &spec).await;
}

/// A NIC is attached to a running guest, once however often it is asked for, and taken back, once too.
pub async fn nic_is_attached_and_detached(fixture: &dyn HypervisorFixture) {
    let s = Subject::open(fixture).await;
    let Some(hot_plug) = s.hot_plug() else { return };
    let (spec, nic) = (s.booted().await, fixture.nic().await);
    for _ in 0..2 {
        let attach = hot_plug.attach_nic(s.call(), spec.id, &nic);
        s.soon("attach_nic", attach).await.unwrap();
        let domain = s.inspect(spec.id).await.unwrap();
        let count = domain.nics.iter().filter(|p| **p == nic.port).count();
        assert_eq!(count, 1, "{domain:?}");
        keeps_its_own(&s, &spec).await;
    }
    for _ in 0..2 {
        let detach = hot_plug.detach_nic(s.call(), spec.id, nic.port);
        s.soon("detach_nic", detach).await.unwrap();
        assert!(!has_nic(&s, spec.id, nic.port).await);
        keeps_its_own(&s, &spec).await;
    }
}

/// A disk that was attached is still attached when the driver was opened anew, and can be taken back.
pub async fn attached_disk_is_known_after_reopening(fixture: &dyn HypervisorFixture) {
    let s = Subject::open(fixture).await;
    let (spec, disk) = {
        let Some(hot_plug) = s.hot_plug() else { return };
        let (spec, disk) = (s.booted().await, fixture.disk("plugged").await);
        let attach = hot_plug.attach_disk(s.call(), spec.id, &disk);
        s.soon("attach_disk", attach).await.unwrap();
        (spec, disk)
    };
    let s = s.reopen().await;
    assert!(has_disk(&s, spec.id, disk.volume).await);
    let Some(hot_plug) = s.hot_plug() else { return };
    let detach = hot_plug.detach_disk(s.call(), spec.id, disk.volume);
    s.soon("detach_disk", detach).await.unwrap();
    assert!(!has_disk(&s, spec.id, disk.volume).await);
}

/// A domain that is not started takes no disk and no NIC.
pub async fn hot_plug_needs_a_started_domain(fixture: &dyn HypervisorFixture) {
    let s = Subject::open(fixture).await;
    let Some(hot_plug) = s.hot_plug() else { return };
    let (disk, nic) = (fixture.disk("plugged").await, fixture.nic().await);
    let ended = s.running().await.id;
    s.kill(ended).await;
    for id in [s.defined().await.id, ended, s.fresh()] {
        let before = s.inspect(id).await;
        refusal("attach", hot_plug.attach_disk(s.call(), id, &disk).await);
        refusal("attach", hot_plug.attach_nic(s.call(), id, &nic).await);
        assert_eq!(s.inspect(id).await, before);
    }
}

/// An attached disk grows; one that has the size already is no error; one that is not attached is.
pub async fn attached_disk_is_resized(fixture: &dyn HypervisorFixture) {
    let s = Subject::open(fixture).await;
    let Some(hot_plug) = s.hot_plug() else { return };
    let (spec, disk) = (s.booted().await, fixture.disk("plugged").await);
    let size = Bytes(fixture.disk_size().0 * 2);
    let early = hot_plug.resize_disk(s.call(), spec.id, disk.volume, size);
    refusal("resize of a disk that is not attached", early.await);
    let attach = hot_plug.attach_disk(s.call(), spec.id, &disk);
    s.soon("attach_disk", attach).await.unwrap();
    for _ in 0..2 {
        let resize = hot_plug.resize_disk(s.call(), spec.id, disk.volume, size);
        s.soon("resize_disk", resize).await.unwrap();
    }
}

/// A running domain goes over to a new layer, once however often it is asked for, and runs on.
pub async fn pivot_goes_over_to_the_new_layer(fixture: &dyn HypervisorFixture) {
    let s = Subject::open(fixture).await;
    let Some(pivot) = s.disk_pivot() else { return };
    let spec = s.booted().await;
    let disk = spec.disks.last().expect("the fixture's guest has a disk");
    let snapshot = SnapshotId::generate(crate::Timestamp::from_millis(0), &s.ids);
    let path = fixture.layer(disk, snapshot).await;
    for _ in 0..2 {
        let go = pivot.pivot(s.call(), spec.id, disk.volume, snapshot, path.clone());
        s.soon("pivot", go).await.unwrap();
        assert_eq!(s.state(spec.id).await, crate::driver::DomainState::Running);
        keeps_its_own(&s, &spec).await;
    }
}

/// A disk that is not attached does not pivot.
pub async fn pivot_of_a_disk_that_is_not_attached_is_refused(fixture: &dyn HypervisorFixture) {
    let s = Subject::open(fixture).await;
    let Some(pivot) = s.disk_pivot() else { return };
    let (spec, disk) = (s.running().await, fixture.disk("elsewhere").await);
    let snapshot = SnapshotId::generate(crate::Timestamp::from_millis(0), &s.ids);
    let path = fixture.layer(&disk, snapshot).await;
    let go = pivot.pivot(s.call(), spec.id, disk.volume, snapshot, path);
    refusal("pivot", go.await);
}
