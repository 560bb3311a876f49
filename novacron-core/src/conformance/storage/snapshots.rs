//! `snapshot_prepare`, `snapshot_commit`, `snapshot_delete`, `restore`, and `transfer`.

use futures::StreamExt;

use super::subject::SIZE;
use super::{StorageFixture, Subject};
use crate::ErrorKind;
use crate::conformance::refusal;
use crate::driver::{ArtefactId, CreateSource};
use crate::model::{Bytes, SnapshotId, VolumeId};

/// A committed snapshot is shown, and the volume goes on with its data.
pub async fn snapshot_is_shown_and_the_volume_goes_on(fixture: &dyn StorageFixture) {
    let s = Subject::open(fixture).await;
    let id = s.blank().await;
    s.write(id, 5).await;
    let snapshot = s.snapshot(id).await;
    assert_eq!(s.info(id).await.snapshots, [snapshot]);
    assert_eq!(s.info(id).await.size, SIZE);
    assert_eq!(s.read(id).await, 5);
    s.write(id, 6).await;
    assert_eq!(s.read(id).await, 6);
    assert_eq!(s.listed().await, [ArtefactId::Volume(id)]);
}

/// Before the commit nothing changes for a running guest.
pub async fn prepare_changes_nothing_for_the_guest(fixture: &dyn StorageFixture) {
    let s = Subject::open(fixture).await;
    let id = s.blank().await;
    let running = s.attach(id).await;
    fixture.write(&running, 5).await;
    if let Some(layer) = s.prepare_for(id, s.snapshot_id(), &s.user(1)).await {
        assert_ne!(layer.source, running.source);
        assert_eq!(layer.epoch, running.epoch);
    }
    assert_eq!(fixture.read(&running).await, 5);
    assert_eq!(s.attach(id).await.source, running.source);
}

/// A second prepare answers the same, also after the commit, and when the pool was opened anew.
pub async fn prepare_again_answers_the_same(fixture: &dyn StorageFixture) {
    let s = Subject::open(fixture).await;
    let (id, snapshot, writer) = (s.blank().await, s.snapshot_id(), s.user(1));
    s.attach(id).await;
    let first = s.prepare_for(id, snapshot, &writer).await;
    assert_eq!(s.prepare_for(id, snapshot, &writer).await, first);
    s.commit(id, snapshot).await;
    let s = s.reopen().await;
    assert_eq!(s.prepare_for(id, snapshot, &writer).await, first);
    assert_eq!(s.info(id).await.snapshots, [snapshot]);
}

/// Without a writer there is nobody to go over to a layer.
pub async fn prepare_for_nobody_gives_no_layer(fixture: &dyn StorageFixture) {
    let s = Subject::open(fixture).await;
    let (id, snapshot) = (s.blank().await, s.snapshot_id());
    for _ in 0..2 {
        let prepare = s
            .backend
            .snapshot_prepare(s.call(), id, snapshot, None)
            .await;
        assert_eq!(prepare.unwrap(), None);
        s.commit(id, snapshot).await;
    }
}

/// Only who is attached can be a snapshot's writer; a refused one prepares nothing.
pub async fn prepare_for_a_writer_that_is_not_attached_is_refused(fixture: &dyn StorageFixture) {
    let s = Subject::open(fixture).await;
    let id = s.blank().await;
    s.attach(id).await;
    let (call, other) = (s.call(), s.user(2));
    let prepare = s
        .backend
        .snapshot_prepare(call, id, s.snapshot_id(), Some(&other));
    let kind = refusal("a writer that is not attached", prepare.await);
    assert_eq!(kind, ErrorKind::FailedPrecondition);
    s.prepare_for(id, s.snapshot_id(), &s.user(1)).await;
}

/// One snapshot is taken at a time: another one waits until it is committed or deleted.
pub async fn prepare_while_another_is_prepared_is_refused(fixture: &dyn StorageFixture) {
    let s = Subject::open(fixture).await;
    let (id, first, second) = (s.blank().await, s.snapshot_id(), s.snapshot_id());
    s.prepare(id, first).await;
    let prepare = s.backend.snapshot_prepare(s.call(), id, second, None);
    let kind = refusal("a second snapshot", prepare.await);
    assert_eq!(kind, ErrorKind::FailedPrecondition);
    s.commit(id, first).await;
    s.prepare(id, second).await;
}

/// After the commit an attachment is that of the prepared layer, if there was one.
pub async fn commit_makes_the_prepared_layer_the_active_one(fixture: &dyn StorageFixture) {
    let s = Subject::open(fixture).await;
    let (id, snapshot) = (s.blank().await, s.snapshot_id());
    let before = s.attach(id).await;
    let layer = s.prepare_for(id, snapshot, &s.user(1)).await;
    s.commit(id, snapshot).await;
    assert_eq!(s.attach(id).await, layer.unwrap_or(before));
}

/// A second commit changes nothing, also after the guest has written on.
pub async fn commit_again_changes_nothing(fixture: &dyn StorageFixture) {
    let s = Subject::open(fixture).await;
    let id = s.blank().await;
    s.write(id, 5).await;
    let snapshot = s.snapshot(id).await;
    s.write(id, 6).await;
    s.commit(id, snapshot).await;
    assert_eq!(s.read(id).await, 6);
    s.restore(id, snapshot).await;
    assert_eq!(s.read(id).await, 5);
}

/// What was not prepared is not committed.
pub async fn commit_of_nothing_is_refused(fixture: &dyn StorageFixture) {
    let s = Subject::open(fixture).await;
    let id = s.blank().await;
    let commit = s.backend.snapshot_commit(s.call(), id, s.snapshot_id());
    refusal("commit", commit.await);
    assert_eq!(s.info(id).await.snapshots, []);
}

/// A live snapshot has what was written below the new layer, and not what was written to it. Where no layer is given,
/// it has what was written before the commit.
pub async fn live_snapshot_has_what_was_written_before_the_pivot(fixture: &dyn StorageFixture) {
    let s = Subject::open(fixture).await;
    let (id, snapshot) = (s.blank().await, s.snapshot_id());
    let before = s.attach(id).await;
    fixture.write(&before, 5).await;
    let layer = s.prepare_for(id, snapshot, &s.user(1)).await;
    if let Some(layer) = &layer {
        fixture.write(layer, 6).await;
    }
    s.commit(id, snapshot).await;
    let after = layer.unwrap_or(before);
    fixture.write(&after, 6).await;
    assert_eq!(fixture.read(&after).await, 6);
    s.detach(id).await;
    assert_eq!(s.read(id).await, 6);
    s.restore(id, snapshot).await;
    assert_eq!(s.read(id).await, 5);
}

/// A restore brings a snapshot's data back, as often as wanted, and keeps every snapshot.
pub async fn restore_brings_the_data_back(fixture: &dyn StorageFixture) {
    let s = Subject::open(fixture).await;
    let (image, _) = s.image(3).await;
    let id = s.volume(SIZE, CreateSource::Image(image)).await;
    let mut taken = Vec::new();
    for fill in 4..7 {
        s.write(id, fill).await;
        taken.push((s.snapshot(id).await, fill));
    }
    for n in [0, 2, 1, 1, 0] {
        s.write(id, 9).await;
        let (snapshot, fill) = taken[n];
        s.restore(id, snapshot).await;
        assert_eq!(s.read(id).await, fill);
        assert_eq!(s.info(id).await.snapshots.len(), 3);
    }
    // And the volume goes on from there.
    s.write(id, 8).await;
    let last = s.snapshot(id).await;
    s.write(id, 9).await;
    s.restore(id, last).await;
    assert_eq!(s.read(id).await, 8);
}

/// A restore to what is not there leaves the volume as it was.
pub async fn restore_of_nothing_is_refused(fixture: &dyn StorageFixture) {
    let s = Subject::open(fixture).await;
    let id = s.blank().await;
    s.write(id, 7).await;
    for volume in [id, s.volume_id()] {
        let restore = s.backend.restore(s.call(), volume, s.snapshot_id());
        assert_eq!(refusal("restore", restore.await), ErrorKind::NotFound);
    }
    assert_eq!(s.read(id).await, 7);
}

/// A volume that is attached does not go back; once it is detached, it does.
pub async fn restore_of_an_attached_volume_is_refused(fixture: &dyn StorageFixture) {
    let s = Subject::open(fixture).await;
    let id = s.blank().await;
    s.write(id, 5).await;
    let snapshot = s.snapshot(id).await;
    s.write(id, 6).await;
    let running = s.attach(id).await;
    let restore = s.backend.restore(s.call(), id, snapshot);
    let kind = refusal("restore of an attached volume", restore.await);
    assert_eq!(kind, ErrorKind::FailedPrecondition);
    assert_eq!(fixture.read(&running).await, 6);
    s.detach(id).await;
    s.restore(id, snapshot).await;
    assert_eq!(s.read(id).await, 5);
}

/// A snapshot that was forgotten is not shown; the volume and its other snapshots keep their data.
pub async fn snapshot_delete_keeps_what_others_need(fixture: &dyn StorageFixture) {
    let s = Subject::open(fixture).await;
    let id = s.blank().await;
    let mut taken: Vec<(SnapshotId, u8)> = Vec::new();
    for fill in 4..7 {
        s.write(id, fill).await;
        taken.push((s.snapshot(id).await, fill));
    }
    s.write(id, 9).await;
    for _ in 0..2 {
        s.forget(id, taken[1].0).await;
        assert_eq!(s.info(id).await.snapshots, [taken[0].0, taken[2].0]);
    }
    assert_eq!(s.read(id).await, 9);
    for (snapshot, fill) in [taken[2], taken[0]] {
        s.restore(id, snapshot).await;
        assert_eq!(s.read(id).await, fill);
    }
    let gone = s.backend.restore(s.call(), id, taken[1].0);
    assert_eq!(refusal("restore", gone.await), ErrorKind::NotFound);
}

/// A snapshot that was only prepared is forgotten, and another one can be taken.
pub async fn snapshot_delete_takes_back_a_prepared_one(fixture: &dyn StorageFixture) {
    let s = Subject::open(fixture).await;
    let (id, given_up) = (s.blank().await, s.snapshot_id());
    s.write(id, 5).await;
    s.prepare(id, given_up).await;
    s.forget(id, given_up).await;
    assert_eq!(s.info(id).await.snapshots, []);
    assert_eq!(s.read(id).await, 5);
    let taken = s.snapshot(id).await;
    s.write(id, 6).await;
    s.restore(id, taken).await;
    assert_eq!(s.read(id).await, 5);
}

/// A snapshot, or a volume, that is not there can be forgotten.
pub async fn snapshot_delete_of_nothing_changes_nothing(fixture: &dyn StorageFixture) {
    let s = Subject::open(fixture).await;
    let id = s.blank().await;
    let snapshot = s.snapshot(id).await;
    s.forget(id, s.snapshot_id()).await;
    s.forget(s.volume_id(), snapshot).await;
    assert_eq!(s.info(id).await.snapshots, [snapshot]);
}

async fn export(s: &Subject<'_>, id: VolumeId, snapshot: Option<SnapshotId>) -> Option<Vec<u8>> {
    let transfer = s.transfer()?;
    let export = transfer.export(s.call(), ArtefactId::Volume(id), snapshot);
    let mut pieces = s.soon("export", export).await.unwrap();
    let mut bytes = Vec::new();
    while let Some(piece) = s.soon("an export's bytes", pieces.next()).await {
        bytes.extend_from_slice(&piece.unwrap());
    }
    Some(bytes)
}

/// An export has the volume's bytes, holes as zeroes; that of a snapshot has the snapshot's.
pub async fn export_has_every_byte(fixture: &dyn StorageFixture) {
    let s = Subject::open(fixture).await;
    let blank = s.blank().await;
    let Some(bytes) = export(&s, blank, None).await else {
        return;
    };
    assert_eq!(Bytes(bytes.len() as u64), SIZE);
    assert!(bytes.iter().all(|b| *b == 0), "holes are zeroes");
    let source = s.fixture.source(5).await;
    let import = super::subject::import(&source.source, None);
    let id = s.volume(Bytes(0), import).await;
    let snapshot = s.snapshot(id).await;
    s.write(id, 6).await;
    let now = export(&s, id, None).await.unwrap();
    let then = export(&s, id, Some(snapshot)).await.unwrap();
    assert_eq!(Bytes(now.len() as u64), source.size);
    assert_eq!(now[0], 6);
    assert!(then.iter().all(|b| *b == 5), "as it was at the snapshot");
}
