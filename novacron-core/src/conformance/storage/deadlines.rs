//! Deadlines, of every call.

use std::time::Duration;

use super::subject::{SIZE, too_late};
use super::{StorageFixture, Subject};
use crate::ErrorKind;
use crate::conformance::refusal;
use crate::driver::{ArtefactId, Call, CreateSource};
use crate::model::Bytes;

fn passed<T: std::fmt::Debug>(what: &str, result: crate::Result<T>) {
    assert_eq!(refusal(what, result), ErrorKind::DeadlineExceeded, "{what}");
}

/// A read whose deadline has passed is not made.
pub async fn reads_after_their_deadline_are_refused(fixture: &dyn StorageFixture) {
    let s = Subject::open(fixture).await;
    let id = ArtefactId::Volume(s.blank().await);
    passed("probe", s.backend.probe(too_late()).await);
    passed("list", s.backend.list(too_late()).await);
    passed("inspect", s.backend.inspect(too_late(), id).await);
}

/// A change whose deadline has passed does not happen.
pub async fn changes_after_their_deadline_do_not_happen(fixture: &dyn StorageFixture) {
    let s = Subject::open(fixture).await;
    let (id, late) = (s.blank().await, too_late());
    s.write(id, 5).await;
    let snapshot = s.snapshot(id).await;
    s.write(id, 6).await;
    let (before, listed) = (s.info(id).await, s.listed().await);
    let fresh = s.request(ArtefactId::Volume(s.volume_id()), SIZE, CreateSource::Blank);
    let (larger, user) = (Bytes(SIZE.0 * 2), s.user(1));
    let other = s.snapshot_id();
    let b = &s.backend;
    passed("create", b.create(late, &fresh).await);
    passed("resize", b.resize(late, id, larger).await);
    passed("delete", b.delete(late, ArtefactId::Volume(id)).await);
    passed("attach", b.attach(late, id, &user).await);
    passed("detach", b.detach(late, id, &user).await);
    passed("prepare", b.snapshot_prepare(late, id, other, None).await);
    passed("commit", b.snapshot_commit(late, id, snapshot).await);
    passed("forget", b.snapshot_delete(late, id, snapshot).await);
    passed("restore", b.restore(late, id, snapshot).await);
    assert_eq!(s.info(id).await, before);
    assert_eq!(s.listed().await, listed);
    assert_eq!(s.read(id).await, 6);
}

/// A create that cannot end in time ends all the same, with one of the two errors for that; made again it is complete.
pub async fn create_ends_about_its_deadline(fixture: &dyn StorageFixture) {
    let s = Subject::open(fixture).await;
    let (image, _) = s.image(3).await;
    let id = s.volume_id();
    let request = s.request(ArtefactId::Volume(id), SIZE, CreateSource::Image(image));
    let soon = Call::within(Duration::from_millis(1));
    let create = s.backend.create(soon, &request);
    if let Err(error) = s.soon("create", create).await {
        let allowed = [ErrorKind::DeadlineExceeded, ErrorKind::OutcomeUnknown];
        assert!(allowed.contains(&error.kind()), "{error}");
    }
    s.create(&request).await;
    assert_eq!(s.read(id).await, 3);
    s.delete(ArtefactId::Volume(id)).await;
    assert_eq!(s.listed().await, [ArtefactId::Image(image)]);
}
