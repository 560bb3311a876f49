//! A full disk, a read-only folder, a limit on the size of files: each is said, and nothing half made is left.

#![allow(
    clippy::unwrap_used,
    clippy::print_stderr,
    reason = "to panic is to report; a helper says why it does nothing"
)]

mod support;

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use novacron_core::ErrorKind;
use novacron_core::driver::{ArtefactId, CreateSource, StorageBackend as _};
use novacron_core::model::{Bytes, VolumeFormat};
use novacron_storage::LocalStorage;
use support::{Fixture, MIB, call, disk, file, same};

const FOLDER: &str = "NOVACRON_TEST_FOLDER";

/// Runs a test of this binary in a mount namespace of its own, where it may mount a file system on a folder. Root needs
/// no more than that; others get a user namespace too.
fn in_a_namespace(test: &str) {
    let folder = tempfile::tempdir().unwrap();
    let user: &[&str] = if rustix::process::geteuid().is_root() {
        &[]
    } else {
        &["--user", "--map-root-user"]
    };
    let out = Command::new("unshare")
        .args(user)
        .args(["--mount", "--propagation", "private"])
        .arg(std::env::current_exe().unwrap())
        .args(["--exact", test, "--ignored", "--nocapture"])
        .env(FOLDER, folder.path())
        .output()
        .unwrap();
    assert!(
        out.status.success() && String::from_utf8_lossy(&out.stdout).contains("1 passed"),
        "{test} (needs a mount namespace: root, or unprivileged user namespaces):\n{}\n{}",
        String::from_utf8_lossy(&out.stdout),
        String::from_utf8_lossy(&out.stderr)
    );
}

/// The folder to mount on, for a test that was started by [`in_a_namespace`]; else the test is not for this run.
fn folder() -> Option<PathBuf> {
    let folder = std::env::var_os(FOLDER).map(PathBuf::from);
    if folder.is_none() {
        eprintln!("run by the test that sets {FOLDER}");
    }
    folder
}

fn mount(options: &str, folder: &Path) {
    let folder = folder.to_str().unwrap();
    support::run("mount", &["-t", "tmpfs", "-o", options, "tmpfs", folder]);
}

#[test]
fn a_full_disk_leaves_no_half_volume() {
    in_a_namespace("full_disk");
}

#[tokio::test]
#[ignore = "run by a_full_disk_leaves_no_half_volume"]
async fn full_disk() {
    let Some(folder) = folder() else { return };
    let outside = tempfile::tempdir().unwrap();
    let large = outside.path().join("large.raw");
    std::fs::write(&large, disk(16 * MIB, &[(1, 0, 16 * MIB)])).unwrap();
    mount("size=8m", &folder);
    let t = Fixture::in_folder(tempfile::tempdir_in(&folder).unwrap()).await;
    for format in [VolumeFormat::Qcow2, VolumeFormat::Raw] {
        let id = ArtefactId::Image(t.image());
        let error = t.create(id, 0, format, file(&large)).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Exhausted, "{error}");
        assert!(t.left().is_empty());
    }
    let id = t.blank(4 * MIB, VolumeFormat::Qcow2).await;
    let artefact = ArtefactId::Volume(id);
    t.write(id, 1, 0, MIB).await;
    let snapshot = t.snap(id).await;
    let wanted = disk(4 * MIB, &[(1, 0, MIB)]);
    let before = t.left();

    let mut ballast = std::fs::File::create(folder.join("ballast")).unwrap();
    while ballast.write_all(&[1; 512]).is_ok() {}
    let copy = ArtefactId::Volume(t.volume());
    let from = CreateSource::Snapshot(id, snapshot);
    let errors = [
        t.create(copy, 0, VolumeFormat::Qcow2, from)
            .await
            .unwrap_err(),
        t.create(copy, MIB, VolumeFormat::Qcow2, CreateSource::Blank)
            .await
            .unwrap_err(),
        t.pool
            .snapshot_prepare(call(), id, t.snapshot(), None)
            .await
            .unwrap_err(),
        t.pool.restore(call(), id, snapshot).await.unwrap_err(),
    ];
    for error in errors {
        assert_eq!(error.kind(), ErrorKind::Exhausted, "{error}");
    }
    assert_eq!(t.left(), before);
    same(&t.read(artefact, None).await, &wanted);
    drop(ballast);
    std::fs::remove_file(folder.join("ballast")).unwrap();
    t.pool.restore(call(), id, snapshot).await.unwrap();
    same(&t.read(artefact, None).await, &wanted);
    t.pool.delete(call(), artefact).await.unwrap();
    assert!(t.left().is_empty());
}

#[test]
fn a_read_only_folder_is_read_and_not_written() {
    in_a_namespace("read_only_folder");
}

#[tokio::test]
#[ignore = "run by a_read_only_folder_is_read_and_not_written"]
async fn read_only_folder() {
    let Some(folder) = folder() else { return };
    mount("size=64m", &folder);
    let t = Fixture::in_folder(tempfile::tempdir_in(&folder).unwrap()).await;
    let id = t.blank(4 * MIB, VolumeFormat::Qcow2).await;
    let artefact = ArtefactId::Volume(id);
    t.write(id, 1, 0, MIB).await;
    let snapshot = t.snap(id).await;
    mount_read_only(&folder);
    let new = ArtefactId::Volume(t.volume());
    let errors = [
        t.create(new, MIB, VolumeFormat::Qcow2, CreateSource::Blank)
            .await
            .unwrap_err(),
        t.pool.resize(call(), id, Bytes(8 * MIB)).await.unwrap_err(),
        t.pool.restore(call(), id, snapshot).await.unwrap_err(),
        t.pool
            .snapshot_prepare(call(), id, t.snapshot(), None)
            .await
            .unwrap_err(),
        t.pool
            .snapshot_delete(call(), id, snapshot)
            .await
            .unwrap_err(),
        t.pool.delete(call(), artefact).await.unwrap_err(),
        LocalStorage::open(folder.join("new")).await.unwrap_err(),
    ];
    for error in errors {
        assert_eq!(error.kind(), ErrorKind::PermissionDenied, "{error}");
    }
    assert_eq!(t.pool.list(call()).await.unwrap().len(), 1);
    same(
        &t.read(artefact, Some(snapshot)).await,
        &disk(4 * MIB, &[(1, 0, MIB)]),
    );
}

fn mount_read_only(folder: &Path) {
    support::run(
        "mount",
        &["-o", "remount,bind,ro", folder.to_str().unwrap()],
    );
}

#[tokio::test]
async fn a_limit_on_the_size_of_files_is_a_full_disk() {
    use std::os::unix::fs::PermissionsExt as _;
    let t = Fixture::new().await;
    let limited = t.dir.path().join("limited");
    std::fs::write(&limited, "#!/bin/sh\nulimit -f 100\nexec qemu-img \"$@\"\n").unwrap();
    std::fs::set_permissions(&limited, std::fs::Permissions::from_mode(0o755)).unwrap();
    let pool = LocalStorage::builder(t.pool.dir())
        .qemu_img(&limited)
        .open()
        .await
        .unwrap();
    for format in [VolumeFormat::Raw, VolumeFormat::Qcow2] {
        let id = ArtefactId::Volume(t.volume());
        let request = t.request(id, 64 * MIB, format, CreateSource::Blank);
        let error = pool.create(call(), &request).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Exhausted, "{error}");
        assert!(t.left().is_empty());
    }
}
