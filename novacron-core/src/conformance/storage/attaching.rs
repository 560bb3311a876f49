//! `attach`, `detach`.

use super::{StorageFixture, Subject};
use crate::ErrorKind;
use crate::conformance::refusal;
use crate::model::Epoch;

/// An attachment says where the data is and which epoch may write it.
pub async fn attach_tells_where_the_data_is(fixture: &dyn StorageFixture) {
    let s = Subject::open(fixture).await;
    let id = s.blank().await;
    let attachment = s.attach(id).await;
    assert_eq!(attachment.epoch, Epoch(1));
    assert_eq!(attachment.format, s.info(id).await.format);
    fixture.write(&attachment, 7).await;
    assert_eq!(fixture.read(&attachment).await, 7);
}

/// A second identical call answers the same, also when the pool was opened anew.
pub async fn attach_again_answers_the_same(fixture: &dyn StorageFixture) {
    let s = Subject::open(fixture).await;
    let id = s.blank().await;
    let first = s.attach(id).await;
    assert_eq!(s.attach(id).await, first);
    let s = s.reopen().await;
    assert_eq!(s.attach(id).await, first);
}

/// The next epoch gets the same data, under its own number.
pub async fn attach_for_the_next_epoch_has_its_number(fixture: &dyn StorageFixture) {
    let s = Subject::open(fixture).await;
    let id = s.blank().await;
    s.write(id, 7).await;
    let attachment = s.backend.attach(s.call(), id, &s.user(2)).await.unwrap();
    assert_eq!(attachment.epoch, Epoch(2));
    assert_eq!(fixture.read(&attachment).await, 7);
}

/// A volume that is not there is not attached, and not made.
pub async fn attach_of_nothing_is_not_found(fixture: &dyn StorageFixture) {
    let s = Subject::open(fixture).await;
    let attach = s.backend.attach(s.call(), s.volume_id(), &s.user(1)).await;
    assert_eq!(refusal("attach", attach), ErrorKind::NotFound);
    assert_eq!(s.listed().await, []);
}

/// A volume can be detached, again, and when it never was attached; its data stays.
pub async fn detach_can_be_repeated(fixture: &dyn StorageFixture) {
    let s = Subject::open(fixture).await;
    let id = s.blank().await;
    s.detach(id).await;
    s.write(id, 7).await;
    s.detach(id).await;
    assert_eq!(s.read(id).await, 7);
}

/// What one start wrote, the next one reads.
pub async fn data_outlives_the_attachment(fixture: &dyn StorageFixture) {
    let s = Subject::open(fixture).await;
    let id = s.blank().await;
    for fill in 5..8 {
        s.write(id, fill).await;
        assert_eq!(s.read(id).await, fill);
    }
}
