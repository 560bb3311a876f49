//! `create`, from every source.

use super::subject::{SIZE, import};
use super::{Ability, StorageFixture, Subject};
use crate::ErrorKind;
use crate::conformance::refusal;
use crate::driver::{ArtefactId, CreateSource, CreateVolume};
use crate::model::{Bytes, VolumeFormat};

/// A blank volume, in either format, has the wanted size, is empty, and inspect shows it.
pub async fn blank_volume_has_its_size_and_reads_zeroes(fixture: &dyn StorageFixture) {
    let s = Subject::open(fixture).await;
    for format in [VolumeFormat::Qcow2, VolumeFormat::Raw] {
        let id = s.volume_id();
        let request = CreateVolume {
            format,
            ..s.request(ArtefactId::Volume(id), SIZE, CreateSource::Blank)
        };
        let info = s.create(&request).await;
        assert_eq!((info.size, info.format), (SIZE, format));
        assert_eq!(info.snapshots, []);
        assert_eq!(s.info(id).await, info);
        assert_eq!(s.attach(id).await.format, format);
        s.detach(id).await;
        assert_eq!(s.read(id).await, 0);
    }
}

/// A second identical create changes nothing, also of a volume that was written to.
pub async fn create_again_changes_nothing(fixture: &dyn StorageFixture) {
    let s = Subject::open(fixture).await;
    let (image, _) = s.image(3).await;
    for source in [CreateSource::Blank, CreateSource::Image(image)] {
        let id = s.volume_id();
        let request = s.request(ArtefactId::Volume(id), SIZE, source);
        s.create(&request).await;
        s.write(id, 7).await;
        let (before, listed) = (s.info(id).await, s.listed().await);
        let again = s.create(&request).await;
        assert_eq!((again.size, again.format), (before.size, before.format));
        assert_eq!(s.read(id).await, 7);
        assert_eq!(s.listed().await, listed);
    }
}

/// What was written to a volume is there when the pool is opened anew.
pub async fn reopened_pool_has_what_was_made(fixture: &dyn StorageFixture) {
    let s = Subject::open(fixture).await;
    let (image, _) = s.image(3).await;
    let (blank, clone) = (
        s.blank().await,
        s.volume(Bytes(0), CreateSource::Image(image)).await,
    );
    s.write(blank, 7).await;
    let listed = s.listed().await;
    let s = s.reopen().await;
    assert_eq!(s.listed().await, listed);
    assert_eq!(s.read(blank).await, 7);
    assert_eq!(s.read(clone).await, 3);
}

/// An import has the source's data, and its size if none was asked for.
pub async fn import_has_the_sources_data_and_size(fixture: &dyn StorageFixture) {
    let s = Subject::open(fixture).await;
    let source = fixture.source(5).await;
    let id = s
        .volume(Bytes(0), import(&source.source, Some(&source.sha256)))
        .await;
    assert_eq!(s.info(id).await.size, source.size);
    assert_eq!(s.read(id).await, 5);
}

/// An import without a checksum is not checked against one.
pub async fn import_without_a_checksum_is_made(fixture: &dyn StorageFixture) {
    let s = Subject::open(fixture).await;
    let source = fixture.source(5).await;
    let id = s.volume(Bytes(0), import(&source.source, None)).await;
    assert_eq!(s.read(id).await, 5);
}

/// An import of a wanted size that is larger has that.
pub async fn import_with_a_larger_size_has_it(fixture: &dyn StorageFixture) {
    let s = Subject::open(fixture).await;
    let source = fixture.source(5).await;
    let size = Bytes(source.size.0 * 2);
    let id = s.volume(size, import(&source.source, None)).await;
    assert_eq!(s.info(id).await.size, size);
    assert_eq!(s.read(id).await, 5);
}

async fn refused(s: &Subject<'_>, what: &str, source: CreateSource, size: Bytes, kind: ErrorKind) {
    let before = s.listed().await;
    for id in [
        ArtefactId::Volume(s.volume_id()),
        ArtefactId::Image(s.image_id()),
    ] {
        let request = s.request(id, size, source.clone());
        assert_eq!(refusal(what, s.try_create(&request).await), kind, "{what}");
        assert_eq!(s.inspect(id).await, None, "{what}");
        assert_eq!(s.listed().await, before, "{what} leaves nothing");
        s.delete(id).await;
    }
}

/// What is smaller than its source is refused, naming both sizes; nothing is left.
async fn too_small(s: &Subject<'_>, what: &str, source: CreateSource, has: Bytes) {
    let small = Bytes(has.0 / 2);
    refused(s, what, source.clone(), small, ErrorKind::Invalid).await;
    let request = s.request(ArtefactId::Volume(s.volume_id()), small, source);
    let error = s.try_create(&request).await.unwrap_err().report();
    for size in [small, has] {
        assert!(error.contains(&size.to_string()), "{size} in: {error}");
    }
}

/// An import of a wanted size that is smaller is refused: nothing is cut off in silence.
pub async fn import_with_a_smaller_size_is_refused(fixture: &dyn StorageFixture) {
    let s = Subject::open(fixture).await;
    let source = fixture.source(5).await;
    let import = import(&source.source, None);
    too_small(&s, "a smaller import", import, source.size).await;
}

/// So is a clone of an image.
pub async fn clone_with_a_smaller_size_is_refused(fixture: &dyn StorageFixture) {
    let s = Subject::open(fixture).await;
    let (image, source) = s.image(3).await;
    let clone = CreateSource::Image(image);
    too_small(&s, "a smaller clone", clone, source.size).await;
}

/// So is a copy of a snapshot.
pub async fn copy_with_a_smaller_size_is_refused(fixture: &dyn StorageFixture) {
    let s = Subject::open(fixture).await;
    let volume = s.blank().await;
    let copy = CreateSource::Snapshot(volume, s.snapshot(volume).await);
    too_small(&s, "a smaller copy", copy, SIZE).await;
}

/// A source whose bytes have another SHA-256 is refused, and nothing is left.
pub async fn import_with_another_checksum_is_refused(fixture: &dyn StorageFixture) {
    let s = Subject::open(fixture).await;
    let (source, other) = (fixture.source(5).await, fixture.source(6).await);
    let source = import(&source.source, Some(&other.sha256));
    refused(&s, "another SHA-256", source, Bytes(0), ErrorKind::Invalid).await;
}

/// A source that is not what it claims to be is refused with the reason, and nothing is left.
pub async fn import_of_a_damaged_source_is_refused(fixture: &dyn StorageFixture) {
    let s = Subject::open(fixture).await;
    let source = import(&fixture.damaged_source().await, None);
    refused(&s, "damaged", source, Bytes(0), ErrorKind::Invalid).await;
}

/// A source that is not there is refused, and nothing is left.
pub async fn import_of_a_missing_source_is_refused(fixture: &dyn StorageFixture) {
    let s = Subject::open(fixture).await;
    let source = import(&fixture.missing_source(), None);
    refused(&s, "missing", source, Bytes(0), ErrorKind::NotFound).await;
}

/// What does not fit into the pool is refused, and nothing is left.
pub async fn create_in_a_full_pool_is_refused(fixture: &dyn StorageFixture) {
    let s = Subject::open(fixture).await;
    if s.can(Ability::Fill) {
        let (source, size) = fixture.too_much().await;
        refused(&s, "too much", source, size, ErrorKind::Exhausted).await;
    }
}

/// A clone has its image's data and size.
pub async fn clone_has_the_images_data(fixture: &dyn StorageFixture) {
    let s = Subject::open(fixture).await;
    let (image, source) = s.image(3).await;
    let id = s.volume(Bytes(0), CreateSource::Image(image)).await;
    assert_eq!(s.info(id).await.size, source.size);
    assert_eq!(s.read(id).await, 3);
}

/// A clone of a wanted size that is larger has that.
pub async fn clone_with_a_larger_size_has_it(fixture: &dyn StorageFixture) {
    let s = Subject::open(fixture).await;
    let (image, source) = s.image(3).await;
    let size = Bytes(source.size.0 * 2);
    let id = s.volume(size, CreateSource::Image(image)).await;
    assert_eq!(s.info(id).await.size, size);
    assert_eq!(s.read(id).await, 3);
}

/// What is written to a clone changes neither its image nor another clone.
pub async fn clone_is_apart_from_its_image(fixture: &dyn StorageFixture) {
    let s = Subject::open(fixture).await;
    let (image, _) = s.image(3).await;
    let first = s.volume(Bytes(0), CreateSource::Image(image)).await;
    let second = s.volume(Bytes(0), CreateSource::Image(image)).await;
    s.write(first, 7).await;
    assert_eq!(s.read(first).await, 7);
    assert_eq!(s.read(second).await, 3);
    let third = s.volume(Bytes(0), CreateSource::Image(image)).await;
    assert_eq!(s.read(third).await, 3);
}

/// There is no clone of an image that is not there.
pub async fn clone_of_a_missing_image_is_refused(fixture: &dyn StorageFixture) {
    let s = Subject::open(fixture).await;
    let source = CreateSource::Image(s.image_id());
    refused(&s, "no image", source, Bytes(0), ErrorKind::NotFound).await;
}

/// A copy of a snapshot has its data, not what was written since, and outlives the volume.
pub async fn copy_of_a_snapshot_is_apart(fixture: &dyn StorageFixture) {
    let s = Subject::open(fixture).await;
    let (image, _) = s.image(3).await;
    let origin = s.volume(SIZE, CreateSource::Image(image)).await;
    s.write(origin, 5).await;
    let snapshot = s.snapshot(origin).await;
    s.write(origin, 6).await;
    let source = CreateSource::Snapshot(origin, snapshot);
    let copy = s.volume(SIZE, source).await;
    assert_eq!(s.read(copy).await, 5);
    s.write(copy, 7).await;
    assert_eq!(s.read(origin).await, 6);
    s.delete(ArtefactId::Volume(origin)).await;
    s.delete(ArtefactId::Image(image)).await;
    assert_eq!(s.read(copy).await, 7);
    assert_eq!(s.listed().await, [ArtefactId::Volume(copy)]);
}

/// There is no copy of a snapshot that is not there.
pub async fn copy_of_a_missing_snapshot_is_refused(fixture: &dyn StorageFixture) {
    let s = Subject::open(fixture).await;
    let volume = s.blank().await;
    for volume in [volume, s.volume_id()] {
        let source = CreateSource::Snapshot(volume, s.snapshot_id());
        refused(&s, "no snapshot", source, SIZE, ErrorKind::NotFound).await;
    }
}
