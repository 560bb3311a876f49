//! More than one at work: a guest, another call, another process, a caller that went away.

#![allow(clippy::unwrap_used, reason = "to panic is to report")]

mod support;

use std::time::Duration;

use futures::StreamExt as _;
use novacron_core::ErrorKind;
use novacron_core::driver::{ArtefactId, Call, CreateSource, StorageBackend as _};
use novacron_core::model::{Bytes, VolumeFormat};
use novacron_storage::LocalStorage;
use support::{Fixture, MIB, call, disk, path_of, qemu_img, same};

#[tokio::test]
async fn a_volume_in_use_is_not_changed_under_its_guest() {
    for format in [VolumeFormat::Qcow2, VolumeFormat::Raw] {
        let t = Fixture::new().await;
        let id = t.blank(4 * MIB, format).await;
        let artefact = ArtefactId::Volume(id);
        t.write(id, 1, 0, 4096).await;
        let snapshot = t.snap(id).await;
        let attachment = t.attach(id).await;
        // As if the record of it were lost: QEMU's own locks are enough.
        t.detach(id).await;
        let mut guest = std::process::Command::new("qemu-io")
            .args(["-f", "qcow2", path_of(&attachment).to_str().unwrap()])
            .stdin(std::process::Stdio::piped())
            .stdout(std::process::Stdio::piped())
            .spawn()
            .unwrap();
        {
            use std::io::{Read as _, Write as _};
            let stdin = guest.stdin.as_mut().unwrap();
            stdin.write_all(b"write -P 2 0 4096\n").unwrap();
            stdin.flush().unwrap();
            let mut told = [0; 6];
            guest
                .stdout
                .as_mut()
                .unwrap()
                .read_exact(&mut told)
                .unwrap();
        }
        let mut refused = vec![
            t.pool.restore(call(), id, snapshot).await.unwrap_err(),
            t.pool.delete(call(), artefact).await.unwrap_err(),
        ];
        refused.push(t.pool.resize(call(), id, Bytes(8 * MIB)).await.unwrap_err());
        let transfer = t.pool.transfer().unwrap();
        refused.extend(transfer.export(call(), artefact, None).await.err());
        assert_eq!(refused.len(), 4);
        for error in refused {
            assert_eq!(error.kind(), ErrorKind::FailedPrecondition, "{error}");
        }
        // A frozen layer is read, the next one is prepared, and a snapshot is forgotten, all under the guest.
        same(
            &t.read(artefact, Some(snapshot)).await,
            &disk(4 * MIB, &[(1, 0, 4096)]),
        );
        let next = t.snapshot();
        t.pool
            .snapshot_prepare(call(), id, next, None)
            .await
            .unwrap();
        t.pool.snapshot_delete(call(), id, next).await.unwrap();
        t.pool.snapshot_delete(call(), id, snapshot).await.unwrap();
        drop(guest.stdin.take());
        assert!(guest.wait().unwrap().success());
        same(
            &t.read(artefact, None).await,
            &disk(4 * MIB, &[(2, 0, 4096)]),
        );
        t.pool.delete(call(), artefact).await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn calls_on_one_volume_wait_for_each_other() {
    let t = Fixture::new().await;
    let id = t.blank(2 * MIB, VolumeFormat::Qcow2).await;
    // Two handles share no memory, as two processes would.
    let other = LocalStorage::open(t.pool.dir()).await.unwrap();
    let mut tasks = Vec::new();
    for n in 0..8u64 {
        let pool = if n % 2 == 0 { &t.pool } else { &other }.clone();
        let size = Bytes(2 * MIB + n * 65_536);
        tasks.push(tokio::spawn(
            async move { pool.resize(call(), id, size).await },
        ));
        let (pool, snapshot) = (other.clone(), t.snapshot());
        tasks.push(tokio::spawn(async move {
            match pool.snapshot_prepare(call(), id, snapshot, None).await {
                Ok(_) => pool.snapshot_commit(call(), id, snapshot).await?,
                Err(e) if e.kind() == ErrorKind::FailedPrecondition => {}
                Err(e) => return Err(e),
            }
            pool.inspect(call(), ArtefactId::Volume(id))
                .await
                .map(Option::unwrap)
        }));
    }
    for task in tasks {
        match task.await.unwrap() {
            Ok(_) => {}
            Err(e) => assert_eq!(e.kind(), ErrorKind::FailedPrecondition, "{e}"),
        }
    }
    let attachment = t.attach(id).await;
    qemu_img(&[
        "check",
        "-q",
        "-f",
        "qcow2",
        path_of(&attachment).to_str().unwrap(),
    ]);

    // A lock that another process keeps ends at the deadline.
    let lock = t.pool.dir().join(format!("volumes/{id}/lock"));
    let held = std::fs::File::open(lock).unwrap();
    rustix::fs::flock(&held, rustix::fs::FlockOperation::LockExclusive).unwrap();
    let short = Call::within(Duration::from_millis(100));
    let error = t.pool.resize(short, id, Bytes(9 * MIB)).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::DeadlineExceeded);
}

/// A folder that two hosts share: each has a pool of its own over it.
#[tokio::test]
async fn what_one_host_does_the_other_sees() {
    let t = Fixture::new().await;
    let other = LocalStorage::open(t.pool.dir()).await.unwrap();
    let raw = t.dir.path().join("a.raw");
    std::fs::write(&raw, disk(MIB, &[(1, 0, 4096)])).unwrap();
    let image = t.import(&raw).await.unwrap();
    let id = t.volume();
    let clone = CreateSource::Image(image);
    let request = t.request(ArtefactId::Volume(id), 0, VolumeFormat::Qcow2, clone);
    let (here, there) = tokio::join!(
        t.pool.create(call(), &request),
        other.create(call(), &request)
    );
    assert_eq!(here.unwrap(), there.unwrap(), "made once");
    assert_eq!(
        t.pool.list(call()).await.unwrap(),
        other.list(call()).await.unwrap()
    );
    t.write(id, 2, 0, 4096).await;
    let snapshot = t.snap(id).await;

    // Attached here, so not restored there; detached there, so free here.
    t.attach(id).await;
    let refused = [
        other.restore(call(), id, snapshot).await.unwrap_err(),
        other.resize(call(), id, Bytes(2 * MIB)).await.unwrap_err(),
        other
            .delete(call(), ArtefactId::Image(image))
            .await
            .unwrap_err(),
    ];
    for error in refused {
        assert_eq!(error.kind(), ErrorKind::FailedPrecondition, "{error}");
    }
    other.detach(call(), id, &t.user(3)).await.unwrap();
    t.pool.restore(call(), id, snapshot).await.unwrap();
    let seen = other.inspect(call(), ArtefactId::Volume(id)).await;
    assert_eq!(seen.unwrap().unwrap().snapshots, [snapshot]);
    for id in [ArtefactId::Volume(id), ArtefactId::Image(image)] {
        other.delete(call(), id).await.unwrap();
    }
    assert!(t.left().is_empty());
}

/// Two hosts make and remove one artefact, over and over: each call has its answer, and nothing is left.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_hosts_may_make_and_remove_one_at_once() {
    let t = Fixture::new().await;
    let other = LocalStorage::open(t.pool.dir()).await.unwrap();
    for round in 0..40 {
        let id = ArtefactId::Volume(t.volume());
        let request = t.request(id, 65_536, VolumeFormat::Raw, CreateSource::Blank);
        let (here, there, gone) = tokio::join!(
            t.pool.create(call(), &request),
            other.create(call(), &request),
            async {
                match round % 2 {
                    0 => Ok(()),
                    _ => other.delete(call(), id).await,
                }
            }
        );
        gone.unwrap();
        for made in [here, there] {
            match made {
                Ok(_) => {}
                Err(e) => assert_eq!((round % 2, e.kind()), (1, ErrorKind::Conflict), "{e}"),
            }
        }
        t.pool.delete(call(), id).await.unwrap();
        assert!(t.left().is_empty(), "{:?}", t.left());
    }
}

#[tokio::test]
async fn an_export_is_one_version_and_keeps_removal_waiting() {
    let t = Fixture::new().await;
    let id = t.blank(300 * MIB, VolumeFormat::Qcow2).await;
    t.write(id, 1, 299 * MIB, MIB).await;
    let snapshot = t.snap(id).await;
    let transfer = t.pool.transfer().unwrap();
    let mut stream = transfer
        .export(call(), ArtefactId::Volume(id), Some(snapshot))
        .await
        .unwrap();
    stream.next().await.unwrap().unwrap();
    let short = Call::within(Duration::from_millis(100));
    let waited = t.pool.snapshot_delete(short, id, snapshot).await;
    assert_eq!(waited.unwrap_err().kind(), ErrorKind::DeadlineExceeded);
    t.snap(id).await;
    let mut last = bytes::Bytes::new();
    let mut read = 1u64 << 20;
    while let Some(piece) = stream.next().await {
        last = piece.unwrap();
        read += last.len() as u64;
    }
    assert_eq!(read, 300 * MIB);
    assert_eq!(last.last(), Some(&1));
    t.pool.snapshot_delete(call(), id, snapshot).await.unwrap();

    let stream = transfer.export(call(), ArtefactId::Volume(id), None).await;
    drop(stream.unwrap());
    t.pool.delete(call(), ArtefactId::Volume(id)).await.unwrap();
}

#[tokio::test]
async fn a_call_past_its_deadline_leaves_nothing() {
    use std::os::unix::fs::PermissionsExt as _;
    let t = Fixture::new().await;
    let slow = t.dir.path().join("slow");
    std::fs::write(&slow, "#!/bin/sh\nexec sleep 30\n").unwrap();
    std::fs::set_permissions(&slow, std::fs::Permissions::from_mode(0o755)).unwrap();
    let pool = LocalStorage::builder(t.pool.dir())
        .qemu_img(&slow)
        .open()
        .await
        .unwrap();
    let request = t.request(
        ArtefactId::Volume(t.volume()),
        MIB,
        VolumeFormat::Qcow2,
        CreateSource::Blank,
    );
    let short = Call::within(Duration::from_millis(300));
    let error = pool.create(short, &request).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::DeadlineExceeded, "{error}");
    assert!(t.left().is_empty());

    // Dropped in the middle: what is left is shown, and the same call makes it.
    let dropped = tokio::time::timeout(Duration::from_millis(300), pool.create(call(), &request));
    assert!(dropped.await.is_err());
    let listed = t.pool.list(call()).await.unwrap();
    assert_eq!((listed.len(), listed[0].cluster), (1, t.cluster));
    assert_eq!(t.pool.inspect(call(), request.id).await.unwrap(), None);
    t.pool.create(call(), &request).await.unwrap();
    t.pool.delete(call(), request.id).await.unwrap();
    assert!(t.left().is_empty());
}

/// A pool whose file system is not mounted is not taken for an empty one.
#[tokio::test]
async fn a_pool_is_known_by_its_own_id() {
    let t = Fixture::new().await;
    let id = t.pool.probe(call()).await.unwrap().identity;
    assert!(id.is_some());
    let other = LocalStorage::open(t.pool.dir()).await.unwrap();
    assert_eq!(other.probe(call()).await.unwrap().identity, id);

    let (dir, away) = (t.pool.dir().to_owned(), t.dir.path().join("away"));
    std::fs::rename(&dir, &away).unwrap();
    std::fs::create_dir(&dir).unwrap();
    let error = t.pool.probe(call()).await.unwrap_err();
    assert!(
        error.to_string().contains("is its file system mounted"),
        "{error}"
    );
    let volume = ArtefactId::Volume(t.volume());
    let request = t.request(volume, 65_536, VolumeFormat::Raw, CreateSource::Blank);
    t.pool.create(call(), &request).await.unwrap_err();
    // Whoever opens it now has another one.
    let new = LocalStorage::open(&dir).await.unwrap();
    assert_ne!(new.probe(call()).await.unwrap().identity, id);
    let moved = LocalStorage::open(&away).await.unwrap();
    assert_eq!(moved.probe(call()).await.unwrap().identity, id);
    std::fs::write(dir.join("pool"), "no id").unwrap();
    let error = LocalStorage::open(&dir).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Corrupt);
}
