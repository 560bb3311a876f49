//! `LocalStorage` with the real `qemu-img`: what each call promises, proved by the bytes.

#![allow(clippy::unwrap_used, reason = "to panic is to report")]

mod support;

use std::os::unix::fs::MetadataExt as _;

use novacron_core::ErrorKind;
use novacron_core::driver::{ArtefactId, CreateSource, StorageBackend as _};
use novacron_core::model::{Bytes, VolumeFormat, VolumeId};
use novacron_storage::LocalStorage;
use support::{Fixture, MIB, call, disk, file, path_of, qemu_img, qemu_io, same, write};

const BOTH: [VolumeFormat; 2] = [VolumeFormat::Qcow2, VolumeFormat::Raw];

#[tokio::test]
async fn a_blank_volume_is_zeroes_and_takes_writes() {
    let t = Fixture::new().await;
    for format in BOTH {
        let id = t.volume();
        let artefact = ArtefactId::Volume(id);
        let info = t
            .create(artefact, 4 * MIB, format, CreateSource::Blank)
            .await
            .unwrap();
        assert_eq!((info.size, info.format), (Bytes(4 * MIB), format));
        same(&t.read(artefact, None).await, &disk(4 * MIB, &[]));

        t.write(id, 7, MIB, 65_536).await;
        same(
            &t.read(artefact, None).await,
            &disk(4 * MIB, &[(7, MIB, 65_536)]),
        );
        let again = t
            .create(artefact, 4 * MIB, format, CreateSource::Blank)
            .await
            .unwrap();
        assert_eq!(again.size, info.size);
        same(
            &t.read(artefact, None).await,
            &disk(4 * MIB, &[(7, MIB, 65_536)]),
        );
        let from = CreateSource::Image(t.image());
        let other = t.create(artefact, 4 * MIB, format, from).await.unwrap_err();
        assert_eq!(other.kind(), ErrorKind::AlreadyExists);
    }
    let probe = t.pool.probe(call()).await.unwrap();
    assert!(probe.capacity >= probe.free && probe.free.0 > 0);
}

#[tokio::test]
async fn sizes_are_checked() {
    let t = Fixture::new().await;
    for (size, source) in [(0, CreateSource::Blank), (u64::MAX, CreateSource::Blank)] {
        let id = ArtefactId::Volume(t.volume());
        let error = t
            .create(id, size, VolumeFormat::Qcow2, source)
            .await
            .unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Invalid);
        assert_eq!(error.problems()[0].field, "size");
    }
    assert!(t.left().is_empty());
    let odd = t.blank(1_000_001, VolumeFormat::Raw).await;
    let info = t.pool.inspect(call(), ArtefactId::Volume(odd)).await;
    assert_eq!(info.unwrap().unwrap().size, Bytes(1_000_448));
}

#[tokio::test]
async fn images_are_imported_and_cloned() {
    let t = Fixture::new().await;
    let wanted = disk(8 * MIB, &[(1, 0, 4096), (2, 5 * MIB, 200_000)]);
    let raw = t.dir.path().join("nbd:127.0.0.1:1,a=b.raw");
    std::fs::write(&raw, &wanted).unwrap();
    let qcow2 = t.dir.path().join("json:{}.qcow2");
    qemu_img(&[
        "convert",
        "-c",
        "-f",
        "raw",
        "-O",
        "qcow2",
        raw.to_str().unwrap(),
        qcow2.to_str().unwrap(),
    ]);
    for source in [&raw, &qcow2] {
        for format in BOTH {
            let image = t.image();
            let artefact = ArtefactId::Image(image);
            let info = t.create(artefact, 0, format, file(source)).await.unwrap();
            assert_eq!((info.size, info.format), (Bytes(8 * MIB), format));
            same(&t.read(artefact, None).await, &wanted);
            for cloned in BOTH {
                let id = t.volume();
                let clone = ArtefactId::Volume(id);
                let from = CreateSource::Image(image);
                let info = t.create(clone, 10 * MIB, cloned, from).await.unwrap();
                assert_eq!((info.size, info.format), (Bytes(10 * MIB), cloned));
                let mut grown = wanted.clone();
                grown.resize(10 << 20, 0);
                same(&t.read(clone, None).await, &grown);
                t.write(id, 9, 4096, 4096).await;
                grown[4096..8192].fill(9);
                same(&t.read(clone, None).await, &grown);
                same(&t.read(artefact, None).await, &wanted);
                if cloned == VolumeFormat::Qcow2 {
                    assert!(info.stored.0 < MIB, "linked, not copied: {}", info.stored);
                    let error = t.pool.delete(call(), artefact).await.unwrap_err();
                    assert_eq!(error.kind(), ErrorKind::FailedPrecondition);
                    assert!(error.message().contains(&id.to_string()), "{error}");
                }
                t.pool.delete(call(), clone).await.unwrap();
            }
            t.pool.delete(call(), artefact).await.unwrap();
            t.pool.delete(call(), artefact).await.unwrap();
        }
    }
    assert!(t.left().is_empty());
    let id = t.volume();
    let error = t
        .create(
            ArtefactId::Volume(id),
            0,
            VolumeFormat::Qcow2,
            CreateSource::Image(t.image()),
        )
        .await
        .unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NotFound, "a dangling image");
    assert!(t.left().is_empty());
}

#[tokio::test]
async fn a_create_that_is_repeated_with_another_size_finds_what_was_made() {
    let t = Fixture::new().await;
    let raw = t.dir.path().join("a.raw");
    std::fs::write(&raw, disk(2 * MIB, &[])).unwrap();
    let from = CreateSource::Image(t.import(&raw).await.unwrap());
    let id = ArtefactId::Volume(t.volume());
    for size in [2 * MIB, 4 * MIB] {
        let made = t.create(id, size, VolumeFormat::Qcow2, from.clone()).await;
        assert_eq!(made.unwrap().size, Bytes(2 * MIB), "made once");
    }
}

#[tokio::test]
async fn an_attached_volume_is_neither_grown_nor_restored() {
    let t = Fixture::new().await;
    let id = t.blank(MIB, VolumeFormat::Qcow2).await;
    let snapshot = t.snap(id).await;
    for epoch in [3, 4, 4] {
        let request = t.user(epoch);
        let attachment = t.pool.attach(call(), id, &request).await.unwrap();
        assert_eq!(attachment.epoch, request.epoch);
        assert!(!attachment.enforces_writer);
    }
    for error in [
        t.pool.resize(call(), id, Bytes(2 * MIB)).await.unwrap_err(),
        t.pool.restore(call(), id, snapshot).await.unwrap_err(),
    ] {
        assert_eq!(error.kind(), ErrorKind::FailedPrecondition, "{error}");
    }
    t.pool.resize(call(), id, Bytes(MIB)).await.unwrap();
    // The third start is not over; the fourth is, and was proof that the third is.
    t.pool.detach(call(), id, &t.user(3)).await.unwrap();
    assert!(t.pool.restore(call(), id, snapshot).await.is_err());
    for _ in 0..2 {
        t.pool.detach(call(), id, &t.user(4)).await.unwrap();
    }
    t.pool.restore(call(), id, snapshot).await.unwrap();
    t.pool.resize(call(), id, Bytes(2 * MIB)).await.unwrap();
}

#[tokio::test]
async fn holes_stay_holes() {
    let t = Fixture::new().await;
    let raw = t.dir.path().join("sparse.raw");
    let sparse = std::fs::File::create(&raw).unwrap();
    sparse.set_len(64 << 30).unwrap();
    qemu_io(&raw, "raw", "write -P 5 32G 64k");
    for format in BOTH {
        let image = ArtefactId::Image(t.image());
        let info = t.create(image, 0, format, file(&raw)).await.unwrap();
        assert_eq!(info.size, Bytes::gib(64));
        assert!(info.stored < Bytes::mib(20), "{}", info.stored);
    }
}

#[tokio::test]
async fn snapshots_keep_what_was_and_restore_brings_it_back() {
    for format in BOTH {
        let t = Fixture::new().await;
        let id = t.blank(4 * MIB, format).await;
        let artefact = ArtefactId::Volume(id);
        t.write(id, 1, 0, 65_536).await;
        let first = t.snap(id).await;
        t.write(id, 2, 0, 65_536).await;
        let second = t.snap(id).await;
        t.write(id, 3, MIB, 65_536).await;

        let one = disk(4 * MIB, &[(1, 0, 65_536)]);
        let two = disk(4 * MIB, &[(2, 0, 65_536)]);
        let three = disk(4 * MIB, &[(2, 0, 65_536), (3, MIB, 65_536)]);
        same(&t.read(artefact, Some(first)).await, &one);
        same(&t.read(artefact, Some(second)).await, &two);
        same(&t.read(artefact, None).await, &three);

        let copy = ArtefactId::Volume(t.volume());
        let from = CreateSource::Snapshot(id, first);
        t.create(copy, 6 * MIB, VolumeFormat::Raw, from)
            .await
            .unwrap();
        let mut grown = one.clone();
        grown.resize(6 << 20, 0);
        same(&t.read(copy, None).await, &grown);

        // Grown in between: a restore brings the bytes back and keeps the size.
        t.pool.resize(call(), id, Bytes(5 * MIB)).await.unwrap();
        t.pool.restore(call(), id, first).await.unwrap();
        t.pool.restore(call(), id, first).await.unwrap();
        grown.truncate(5 << 20);
        same(&t.read(artefact, None).await, &grown);
        t.write(id, 4, 2 * MIB, 65_536).await;
        same(&t.read(artefact, Some(first)).await, &one);
        same(&t.read(artefact, Some(second)).await, &two);

        t.pool.snapshot_delete(call(), id, first).await.unwrap();
        t.pool.snapshot_delete(call(), id, first).await.unwrap();
        same(&t.read(artefact, Some(second)).await, &two);
        grown[2 << 20..(2 << 20) + 65_536].fill(4);
        same(&t.read(artefact, None).await, &grown);
        let error = t.pool.restore(call(), id, first).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::NotFound);

        t.pool.restore(call(), id, second).await.unwrap();
        let info = t.pool.inspect(call(), artefact).await.unwrap().unwrap();
        assert_eq!(info.snapshots, [second]);
        t.pool.delete(call(), artefact).await.unwrap();
        t.pool.delete(call(), copy).await.unwrap();
        assert!(t.left().is_empty());
    }
}

#[tokio::test]
async fn layers_nobody_needs_are_merged() {
    let t = Fixture::new().await;
    let raw = t.dir.path().join("a.raw");
    std::fs::write(&raw, disk(4 * MIB, &[(8, 3 * MIB, 65_536)])).unwrap();
    let image = t.import(&raw).await.unwrap();
    let id = t.volume();
    let artefact = ArtefactId::Volume(id);
    let from = CreateSource::Image(image);
    t.create(artefact, 0, VolumeFormat::Qcow2, from)
        .await
        .unwrap();
    let mut wanted = disk(4 * MIB, &[(8, 3 * MIB, 65_536)]);
    for round in 0..4u8 {
        let at = u64::from(round) * 65_536;
        t.write(id, round + 1, at, 65_536).await;
        wanted[at as usize..at as usize + 65_536].fill(round + 1);
        let snapshot = t.snap(id).await;
        t.pool.snapshot_delete(call(), id, snapshot).await.unwrap();
        same(&t.read(artefact, None).await, &wanted);
    }
    let layers: Vec<_> = t
        .left()
        .into_iter()
        .filter(|p| p.to_str().unwrap().contains(&id.to_string()))
        .filter(|p| p.extension().is_some_and(|e| e == "qcow2"))
        .collect();
    assert_eq!(layers.len(), 1, "{layers:?}");
    let info = qemu_img(&["info", "-f", "qcow2", layers[0].to_str().unwrap()]);
    assert!(info.contains(&format!("../../images/{image}/")), "{info}");
    assert!(
        t.pool
            .delete(call(), ArtefactId::Image(image))
            .await
            .is_err()
    );
}

#[tokio::test]
async fn prepare_and_commit_are_idempotent() {
    let t = Fixture::new().await;
    let id = t.blank(4 * MIB, VolumeFormat::Qcow2).await;
    let snapshot = t.snapshot();
    let error = t.pool.snapshot_commit(call(), id, snapshot).await;
    assert_eq!(error.unwrap_err().kind(), ErrorKind::NotFound);

    let (before, writer) = (t.attach(id).await, t.user(3));
    let prepare = async || {
        let prepare = t.pool.snapshot_prepare(call(), id, snapshot, Some(&writer));
        prepare.await.unwrap().unwrap()
    };
    let prepared = prepare().await;
    assert_ne!(prepared.source, before.source);
    assert_eq!(prepared.epoch, before.epoch);
    assert_eq!(prepare().await, prepared);
    let other = t
        .pool
        .snapshot_prepare(call(), id, t.snapshot(), None)
        .await;
    assert_eq!(other.unwrap_err().kind(), ErrorKind::FailedPrecondition);
    assert_eq!(t.attach(id).await.source, before.source);

    for _ in 0..2 {
        t.pool.snapshot_commit(call(), id, snapshot).await.unwrap();
        assert_eq!(prepare().await, prepared);
        assert_eq!(t.attach(id).await.source, prepared.source);
    }
}

#[tokio::test]
async fn a_prepared_layer_that_was_written_is_never_lost() {
    let t = Fixture::new().await;
    let id = t.blank(4 * MIB, VolumeFormat::Qcow2).await;
    let artefact = ArtefactId::Volume(id);
    // Not written: dropped, and its id can be taken again.
    let snapshot = t.snapshot();
    t.pool
        .snapshot_prepare(call(), id, snapshot, None)
        .await
        .unwrap();
    t.pool.snapshot_delete(call(), id, snapshot).await.unwrap();
    assert_eq!(
        path_of(&t.attach(id).await).file_name().unwrap(),
        "base.qcow2"
    );

    let writer = Some(&t.user(3));
    let layer = t.pool.snapshot_prepare(call(), id, snapshot, writer).await;
    write(&layer.unwrap().unwrap(), 6, 0, 65_536);
    let refused = t.pool.attach(call(), id, &t.user(4)).await.unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::FailedPrecondition);
    t.pool.snapshot_delete(call(), id, snapshot).await.unwrap();
    same(
        &t.read(artefact, None).await,
        &disk(4 * MIB, &[(6, 0, 65_536)]),
    );
    let info = t.pool.inspect(call(), artefact).await.unwrap().unwrap();
    assert!(info.snapshots.is_empty());
}

#[tokio::test]
async fn growing_keeps_the_bytes() {
    for format in BOTH {
        let t = Fixture::new().await;
        let id = t.blank(MIB, format).await;
        t.write(id, 1, 0, MIB).await;
        for size in [3 * MIB, 3 * MIB, MIB] {
            let info = t.pool.resize(call(), id, Bytes(size)).await.unwrap();
            assert_eq!(info.size, Bytes(3 * MIB));
        }
        same(
            &t.read(ArtefactId::Volume(id), None).await,
            &disk(3 * MIB, &[(1, 0, MIB)]),
        );
        let error = t.pool.resize(call(), id, Bytes(u64::MAX)).await;
        assert_eq!(error.unwrap_err().kind(), ErrorKind::Invalid);
        let nobody = t.pool.resize(call(), t.volume(), Bytes(MIB)).await;
        assert_eq!(nobody.unwrap_err().kind(), ErrorKind::NotFound);
    }
}

#[tokio::test]
async fn a_pool_can_be_moved_as_a_whole() {
    let t = Fixture::new().await;
    let raw = t.dir.path().join("a.raw");
    let wanted = disk(2 * MIB, &[(3, 4096, 4096)]);
    std::fs::write(&raw, &wanted).unwrap();
    let image = t.import(&raw).await.unwrap();
    let id = t.volume();
    let artefact = ArtefactId::Volume(id);
    t.create(artefact, 0, VolumeFormat::Qcow2, CreateSource::Image(image))
        .await
        .unwrap();
    t.snap(id).await;
    std::fs::rename(t.pool.dir(), t.dir.path().join("moved")).unwrap();
    let moved = LocalStorage::open(t.dir.path().join("moved"))
        .await
        .unwrap();
    let mut t = t;
    t.pool = moved;
    same(&t.read(artefact, None).await, &wanted);
    let listed = t.pool.list(call()).await.unwrap();
    assert_eq!(listed.len(), 2);
    assert!(listed.iter().all(|a| a.cluster == t.cluster));
}

#[tokio::test]
async fn what_is_not_there_is_said() {
    let t = Fixture::new().await;
    let id = VolumeId::from_uuid(t.snapshot().uuid());
    let snapshot = t.snapshot();
    let inspected = t.pool.inspect(call(), ArtefactId::Volume(id)).await;
    assert_eq!(inspected.unwrap(), None);
    let error = t.pool.restore(call(), id, snapshot).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NotFound);
    let error = t.pool.snapshot_prepare(call(), id, snapshot, None).await;
    assert_eq!(error.unwrap_err().kind(), ErrorKind::NotFound);
    t.pool.snapshot_delete(call(), id, snapshot).await.unwrap();
    t.pool.delete(call(), ArtefactId::Volume(id)).await.unwrap();
}

#[tokio::test]
async fn files_are_for_their_owner_only() {
    let t = Fixture::new().await;
    let id = t.blank(MIB, VolumeFormat::Qcow2).await;
    let attachment = t.attach(id).await;
    let mode = path_of(&attachment).metadata().unwrap().mode();
    assert_eq!(mode & 0o777, 0o600);
}
