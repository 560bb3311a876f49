//! `probe`, `list`, `inspect`, `resize`, `delete`.

use std::time::Duration;

use super::subject::SIZE;
use super::{StorageFixture, Subject};
use crate::ErrorKind;
use crate::conformance::refusal;
use crate::driver::{ArtefactId, Call, CreateSource, CreateVolume};
use crate::model::{Bytes, ClusterId};

/// A probe tells a capacity, and no more free than that.
pub async fn probe_tells_the_capacity(fixture: &dyn StorageFixture) {
    let s = Subject::open(fixture).await;
    let info = s.backend.probe(s.call()).await.unwrap();
    assert!(info.capacity > Bytes(0), "{info:?}");
    assert!(info.free <= info.capacity, "{info:?}");
}

/// A pool without artefacts lists none.
pub async fn empty_pool_lists_nothing(fixture: &dyn StorageFixture) {
    let s = Subject::open(fixture).await;
    assert_eq!(s.listed().await, []);
}

/// A list has every volume and image, each under the cluster that it was made for.
pub async fn list_is_complete_and_tells_clusters_apart(fixture: &dyn StorageFixture) {
    let s = Subject::open(fixture).await;
    let (image, _) = s.image(3).await;
    let volume = s.volume(Bytes(0), CreateSource::Image(image)).await;
    let cluster = ClusterId::generate(crate::Timestamp::from_millis(1), &s.ids);
    let theirs = ArtefactId::Volume(s.volume_id());
    let request = s.request(theirs, SIZE, CreateSource::Blank);
    s.create(&CreateVolume { cluster, ..request }).await;
    let mut listed: Vec<_> = s.list().await.iter().map(|a| (a.id, a.cluster)).collect();
    let mut wanted = vec![
        (ArtefactId::Image(image), s.cluster),
        (ArtefactId::Volume(volume), s.cluster),
        (theirs, cluster),
    ];
    listed.sort_unstable();
    wanted.sort_unstable();
    assert_eq!(listed, wanted);
}

/// What a list does not have after a create has ended, however it ended, does not come back.
pub async fn list_after_a_create_that_ended_is_final(fixture: &dyn StorageFixture) {
    let s = Subject::open(fixture).await;
    let (image, _) = s.image(3).await;
    for micros in [0, 50, 200, 1_000, 5_000] {
        let id = ArtefactId::Volume(s.volume_id());
        let request = s.request(id, SIZE, CreateSource::Image(image));
        let call = Call::within(Duration::from_micros(micros));
        let ended = s.backend.create(call, &request).await;
        let listed = s.listed().await;
        if ended.is_ok() {
            assert!(listed.contains(&id));
        }
        if !listed.contains(&id) {
            // Every other call on it comes after whatever the create still does.
            s.delete(id).await;
            assert_eq!(s.inspect(id).await, None);
            assert_eq!(s.listed().await, listed);
        } else {
            s.delete(id).await;
        }
    }
    assert_eq!(s.listed().await, [ArtefactId::Image(image)]);
}

/// Inspect of what is not there is none; a volume and an image with the same UUID are two.
pub async fn inspect_of_nothing_is_none(fixture: &dyn StorageFixture) {
    let s = Subject::open(fixture).await;
    let volume = s.blank().await;
    let image = crate::model::ImageId::from_uuid(volume.uuid());
    assert_eq!(s.inspect(ArtefactId::Image(image)).await, None);
    assert_eq!(s.inspect(ArtefactId::Volume(s.volume_id())).await, None);
}

/// A volume that is not attached grows and keeps its data; a second identical call changes nothing.
pub async fn resize_grows_and_keeps_the_data(fixture: &dyn StorageFixture) {
    let s = Subject::open(fixture).await;
    let id = s.blank().await;
    s.write(id, 7).await;
    let size = Bytes(SIZE.0 * 2);
    for _ in 0..2 {
        let resize = s.backend.resize(s.call(), id, size);
        let info = s.soon("resize", resize).await.unwrap();
        assert_eq!(info.size, size);
        assert_eq!(s.info(id).await.size, size);
        assert_eq!(s.read(id).await, 7);
    }
}

/// A volume that has at least the size stays as it is.
pub async fn resize_never_shrinks(fixture: &dyn StorageFixture) {
    let s = Subject::open(fixture).await;
    let id = s.blank().await;
    for size in [SIZE, Bytes(SIZE.0 / 2)] {
        let resize = s.backend.resize(s.call(), id, size);
        assert_eq!(s.soon("resize", resize).await.unwrap().size, SIZE);
        assert_eq!(s.info(id).await.size, SIZE);
    }
}

/// A volume that is not there does not grow, and is not made.
pub async fn resize_of_nothing_is_not_found(fixture: &dyn StorageFixture) {
    let s = Subject::open(fixture).await;
    let resize = s.backend.resize(s.call(), s.volume_id(), SIZE);
    let kind = refusal("resize", s.soon("resize", resize).await);
    assert_eq!(kind, ErrorKind::NotFound);
    assert_eq!(s.listed().await, []);
}

/// Nothing is left of a volume with clones' and snapshots' layers; a second delete changes nothing.
pub async fn delete_leaves_nothing(fixture: &dyn StorageFixture) {
    let s = Subject::open(fixture).await;
    let (image, _) = s.image(3).await;
    let id = s.volume(SIZE, CreateSource::Image(image)).await;
    for fill in 4..7 {
        s.write(id, fill).await;
        s.snapshot(id).await;
    }
    s.prepare(id, s.snapshot_id()).await;
    for _ in 0..2 {
        s.delete(ArtefactId::Volume(id)).await;
        assert_eq!(s.inspect(ArtefactId::Volume(id)).await, None);
        assert_eq!(s.listed().await, [ArtefactId::Image(image)]);
    }
    s.delete(ArtefactId::Image(image)).await;
    let s = s.reopen().await;
    assert_eq!(s.listed().await, []);
}

/// Delete of what never was is no error.
pub async fn delete_of_nothing_changes_nothing(fixture: &dyn StorageFixture) {
    let s = Subject::open(fixture).await;
    let volume = s.blank().await;
    s.delete(ArtefactId::Volume(s.volume_id())).await;
    s.delete(ArtefactId::Image(s.image_id())).await;
    assert_eq!(s.listed().await, [ArtefactId::Volume(volume)]);
}

/// An image stays while a clone of it is there, which the error names; then it can go.
pub async fn delete_of_an_image_with_clones_is_refused(fixture: &dyn StorageFixture) {
    let s = Subject::open(fixture).await;
    let (image, _) = s.image(3).await;
    let clone = s.volume(Bytes(0), CreateSource::Image(image)).await;
    let s = s.reopen().await;
    let id = ArtefactId::Image(image);
    let error = s.backend.delete(s.call(), id).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::FailedPrecondition);
    assert!(error.to_string().contains(&clone.to_string()), "{error}");
    assert_eq!(s.read(clone).await, 3);
    s.delete(ArtefactId::Volume(clone)).await;
    s.delete(id).await;
    assert_eq!(s.listed().await, []);
}

/// A delete touches no other volume.
pub async fn delete_of_one_leaves_the_others(fixture: &dyn StorageFixture) {
    let s = Subject::open(fixture).await;
    let (first, second) = (s.blank().await, s.blank().await);
    s.write(second, 7).await;
    s.delete(ArtefactId::Volume(first)).await;
    assert_eq!(s.read(second).await, 7);
    assert_eq!(s.listed().await, [ArtefactId::Volume(second)]);
}
