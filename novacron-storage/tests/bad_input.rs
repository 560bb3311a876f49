//! Bad files and records: each is refused with its reason, and nothing of it is left.

#![allow(clippy::unwrap_used, reason = "to panic is to report")]

mod support;

use std::io::{Read as _, Seek as _, SeekFrom, Write as _};
use std::path::{Path, PathBuf};
use std::process::Command;

use novacron_core::driver::{ArtefactId, CreateSource, StorageBackend as _};
use novacron_core::model::{ImageSource, VolumeFormat};
use novacron_core::{Error, ErrorKind};
use novacron_storage::LocalStorage;
use support::{Fixture, MIB, call, disk, qemu_img, qemu_io, same};

/// A qcow2 with data, as QEMU makes it.
fn good(t: &Fixture, name: &str) -> PathBuf {
    let path = t.dir.path().join(name);
    let text = path.to_str().unwrap();
    qemu_img(&["create", "-q", "-f", "qcow2", text, "4M"]);
    qemu_io(&path, "qcow2", "write -P 1 0 2M");
    path
}

fn patch(path: &Path, at: u64, bytes: &[u8]) {
    let mut file = std::fs::OpenOptions::new().write(true).open(path).unwrap();
    file.seek(SeekFrom::Start(at)).unwrap();
    file.write_all(bytes).unwrap();
}

async fn refused(t: &Fixture, path: &Path) -> Error {
    let error = t.import(path).await.unwrap_err();
    assert!(t.left().is_empty(), "{:?}", t.left());
    error
}

#[tokio::test]
async fn sources_that_are_no_files_are_refused() {
    let t = Fixture::new().await;
    let missing = refused(&t, &t.dir.path().join("nothing.qcow2")).await;
    assert_eq!(missing.kind(), ErrorKind::NotFound, "{missing}");
    let fifo = t.dir.path().join("fifo");
    support::run("mkfifo", &[fifo.to_str().unwrap()]);
    for path in [
        t.dir.path(),
        Path::new("/dev/zero"),
        &fifo,
        Path::new("a.raw"),
    ] {
        let error = refused(&t, path).await;
        assert_eq!(error.kind(), ErrorKind::Invalid, "{error}");
    }
}

#[tokio::test]
async fn a_file_cut_off_anywhere_is_refused() {
    let t = Fixture::new().await;
    let length = good(&t, "whole.qcow2").metadata().unwrap().len();
    for cut in [
        0,
        3,
        4,
        71,
        103,
        600,
        65_536,
        200_000,
        300_000,
        MIB,
        length - 65_537,
    ] {
        let path = good(&t, "cut.qcow2");
        let file = std::fs::OpenOptions::new().write(true).open(&path).unwrap();
        file.set_len(cut).unwrap();
        let error = refused(&t, &path).await;
        assert_eq!(error.kind(), ErrorKind::Invalid, "{cut}: {error}");
        assert_eq!(error.problems()[0].field, "source", "{cut}: {error}");
    }
}

#[tokio::test]
async fn a_qcow2_that_lies_or_points_elsewhere_is_refused() {
    let t = Fixture::new().await;
    let secret = t.dir.path().join("secret");
    std::fs::write(&secret, vec![b'x'; 4 << 20]).unwrap();
    let secret = secret.to_str().unwrap();

    let path = t.dir.path().join("backing.qcow2");
    let text = path.to_str().unwrap();
    qemu_img(&[
        "create", "-q", "-f", "qcow2", "-b", secret, "-F", "raw", text,
    ]);
    let error = refused(&t, &path).await;
    assert!(error.message().contains("backing file"), "{error}");

    let path = t.dir.path().join("data.qcow2");
    let text = path.to_str().unwrap();
    let data = t.dir.path().join("data.raw");
    let option = format!("data_file={},data_file_raw=on", data.display());
    qemu_img(&["create", "-q", "-f", "qcow2", "-o", &option, text, "4M"]);
    let error = refused(&t, &path).await;
    assert!(error.message().contains("external"), "{error}");

    type Lie = (&'static str, u64, &'static [u8]);
    let lies: [Lie; 9] = [
        ("room for less", 24, &[0x7f; 8]),
        ("room for less", 24, &[0, 0, 1, 0, 0, 0, 0, 0]),
        ("cluster size", 20, &[0, 0, 0, 40]),
        ("encrypted", 32, &[0, 0, 0, 1]),
        ("L1 table", 40, &[0, 0, 0x10, 0, 0, 0, 0, 0]),
        ("refcount table", 48, &[0, 0, 0x10, 0, 0, 0, 0, 0]),
        ("corrupt", 79, &[2]),
        ("not known", 78, &[1]),
        // The first L1 entry points behind the end of the file.
        (
            "damaged or cut off",
            3 * 65_536,
            &[0x80, 0, 0, 0x10, 0, 0, 0, 0],
        ),
    ];
    for (reason, at, bytes) in lies {
        let path = good(&t, "lie.qcow2");
        patch(&path, at, bytes);
        let error = refused(&t, &path).await;
        assert_eq!(error.kind(), ErrorKind::Invalid, "{error}");
        assert!(
            error.message().contains(reason),
            "wanted {reason}, got {error}"
        );
    }

    let path = t.dir.path().join("huge.qcow2");
    let text = path.to_str().unwrap();
    qemu_img(&["create", "-q", "-f", "qcow2", text, "1P"]);
    let error = refused(&t, &path).await;
    assert!(error.message().contains("at most"), "{error}");
}

#[tokio::test]
async fn other_formats_are_refused_by_name() {
    let t = Fixture::new().await;
    for (format, says) in [
        ("vmdk", "VMDK"),
        ("vdi", "VDI"),
        ("qed", "QED"),
        ("vpc", "VHD"),
        ("vhdx", "VHDX"),
        ("qcow", "version 1"),
        ("parallels", "Parallels"),
    ] {
        let path = t.dir.path().join(format);
        qemu_img(&["create", "-q", "-f", format, path.to_str().unwrap(), "4M"]);
        let error = refused(&t, &path).await;
        assert_eq!(error.kind(), ErrorKind::Invalid);
        assert!(error.message().contains(says), "{error}");
    }
}

/// CVE-2022-47951: a text that names a host's files as its extents.
#[tokio::test]
async fn a_vmdk_descriptor_is_refused() {
    let t = Fixture::new().await;
    let path = t.dir.path().join("descriptor.raw");
    let mut text = b"# Disk DescriptorFile\nversion=1\ncreateType=\"monolithicFlat\"\nRW 8 FLAT \"/etc/passwd\" 0\n".to_vec();
    text.resize(4096, 0);
    std::fs::write(&path, text).unwrap();
    let error = refused(&t, &path).await;
    assert_eq!(error.kind(), ErrorKind::Invalid, "{error}");
    assert!(error.message().contains("VMDK descriptor"), "{error}");
}

/// CVE-2015-5162: a file of some hundred kilobytes that says it is a petabyte, whose tables even agree.
#[tokio::test]
async fn a_small_file_with_an_absurd_size_is_refused_by_the_pools_limit() {
    let t = Fixture::new().await;
    let pool = LocalStorage::builder(t.pool.dir())
        .max_size(novacron_core::Bytes::mib(64))
        .open()
        .await
        .unwrap();
    let path = t.dir.path().join("absurd.qcow2");
    let text = path.to_str().unwrap();
    qemu_img(&["create", "-q", "-f", "qcow2", text, "100M"]);
    let id = ArtefactId::Image(t.image());
    let request = t.request(id, 0, VolumeFormat::Qcow2, support::file(&path));
    let error = pool.create(call(), &request).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Invalid, "{error}");
    assert!(error.message().contains("at most"), "{error}");
    assert!(t.left().is_empty());
}

/// The source becomes another file once it has been looked at: what was looked at is what is made.
#[tokio::test]
async fn a_source_that_is_exchanged_after_the_check_changes_nothing() {
    use std::os::unix::fs::PermissionsExt as _;
    let t = Fixture::new().await;
    let (source, evil) = (good(&t, "source.qcow2"), t.dir.path().join("evil.qcow2"));
    let text = evil.to_str().unwrap();
    qemu_img(&[
        "create",
        "-q",
        "-f",
        "qcow2",
        "-u",
        "-b",
        "/etc/passwd",
        "-F",
        "raw",
        text,
        "4M",
    ]);
    let swap = t.dir.path().join("swap");
    let script = format!(
        "#!/bin/sh\n[ \"$1\" = check ] && cp {text} {}\nexec qemu-img \"$@\"\n",
        source.display()
    );
    std::fs::write(&swap, script).unwrap();
    std::fs::set_permissions(&swap, std::fs::Permissions::from_mode(0o755)).unwrap();
    let pool = LocalStorage::builder(t.pool.dir())
        .qemu_img(&swap)
        .open()
        .await
        .unwrap();
    let id = ArtefactId::Image(t.image());
    let request = t.request(id, 0, VolumeFormat::Qcow2, support::file(&source));
    pool.create(call(), &request).await.unwrap();
    let exchanged = std::fs::read(&source).unwrap() == std::fs::read(&evil).unwrap();
    assert!(exchanged, "the source was exchanged");
    same(&t.read(id, None).await, &disk(4 * MIB, &[(1, 0, 2 * MIB)]));
}

#[tokio::test]
async fn a_guest_that_writes_a_header_into_its_raw_disk_stays_in_it() {
    let t = Fixture::new().await;
    let id = t.blank(4 * MIB, VolumeFormat::Raw).await;
    let attachment = t.attach(id).await;
    let mut header = Vec::new();
    let made = t.dir.path().join("made.qcow2");
    let text = made.to_str().unwrap();
    qemu_img(&[
        "create",
        "-q",
        "-f",
        "qcow2",
        "-u",
        "-b",
        "/etc/passwd",
        "-F",
        "raw",
        text,
        "4M",
    ]);
    std::fs::File::open(&made)
        .unwrap()
        .take(65_536)
        .read_to_end(&mut header)
        .unwrap();
    patch(support::path_of(&attachment), 0, &header);
    let mut wanted = disk(4 * MIB, &[]);
    wanted[..header.len()].copy_from_slice(&header);
    let artefact = ArtefactId::Volume(id);
    same(&t.read(artefact, None).await, &wanted);
    let snapshot = t.snap(id).await;
    let copy = ArtefactId::Volume(t.volume());
    t.create(
        copy,
        0,
        VolumeFormat::Qcow2,
        CreateSource::Snapshot(id, snapshot),
    )
    .await
    .unwrap();
    same(&t.read(copy, None).await, &wanted);
    same(&t.read(artefact, None).await, &wanted);
}

#[tokio::test]
async fn the_checksum_is_the_sources() {
    let t = Fixture::new().await;
    let path = t.dir.path().join("a.raw");
    std::fs::write(&path, disk(MIB, &[(1, 0, 4096)])).unwrap();
    let told = support::run("sha256sum", &[path.to_str().unwrap()]);
    let sum = told.split_whitespace().next().unwrap().to_owned();
    let id = ArtefactId::Image(t.image());
    let with = |sha256: &str| CreateSource::Import {
        source: ImageSource::File(path.clone()),
        sha256: Some(sha256.into()),
    };
    for bad in ["0".repeat(64), "abc".into()] {
        let error = t.create(id, 0, VolumeFormat::Qcow2, with(&bad)).await;
        let error = error.unwrap_err();
        assert_eq!(error.problems()[0].field, "sha256", "{error}");
        assert!(t.left().is_empty());
    }
    t.create(id, 0, VolumeFormat::Qcow2, with(&sum.to_uppercase()))
        .await
        .unwrap();
}

#[tokio::test]
async fn a_source_that_a_guest_writes_to_is_refused() {
    let t = Fixture::new().await;
    let path = good(&t, "used.qcow2");
    let mut guest = Command::new("qemu-io")
        .args(["-f", "qcow2", path.to_str().unwrap()])
        .stdin(std::process::Stdio::piped())
        .stdout(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    guest
        .stdin
        .as_mut()
        .unwrap()
        .write_all(b"length\n")
        .unwrap();
    let mut told = [0; 4];
    guest
        .stdout
        .as_mut()
        .unwrap()
        .read_exact(&mut told)
        .unwrap();
    let error = refused(&t, &path).await;
    assert_eq!(error.kind(), ErrorKind::FailedPrecondition, "{error}");
    drop(guest.stdin.take());
    guest.wait().unwrap();
    t.import(&path).await.unwrap();
}

#[tokio::test]
async fn a_missing_qemu_img_names_the_package() {
    let t = Fixture::new().await;
    let pool = LocalStorage::builder(t.pool.dir())
        .qemu_img("/nowhere/qemu-img")
        .open()
        .await
        .unwrap();
    let id = ArtefactId::Volume(t.volume());
    let request = t.request(id, MIB, VolumeFormat::Qcow2, CreateSource::Blank);
    for error in [
        pool.create(call(), &request).await.unwrap_err(),
        pool.probe(call()).await.unwrap_err(),
    ] {
        assert_eq!(error.kind(), ErrorKind::Unsupported);
        assert!(
            error.message().contains("apt install qemu-utils"),
            "{error}"
        );
    }
    assert!(t.left().is_empty());
}

#[tokio::test]
async fn a_damaged_record_is_said_and_can_be_removed() {
    let t = Fixture::new().await;
    let id = t.blank(MIB, VolumeFormat::Qcow2).await;
    let artefact = ArtefactId::Volume(id);
    std::fs::write(t.pool.dir().join(format!("volumes/{id}/volume.json")), "{").unwrap();
    let error = t.pool.inspect(call(), artefact).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Corrupt);
    assert_eq!(t.pool.list(call()).await.unwrap().len(), 1);
    t.pool.delete(call(), artefact).await.unwrap();
    assert!(t.left().is_empty());
}

#[cfg(not(feature = "http"))]
#[tokio::test]
async fn a_url_without_the_feature_names_it() {
    let t = Fixture::new().await;
    let source = CreateSource::Import {
        source: ImageSource::Url("https://example.org/a.qcow2".into()),
        sha256: None,
    };
    let id = ArtefactId::Image(t.image());
    let error = t.create(id, 0, VolumeFormat::Qcow2, source).await;
    let error = error.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unsupported);
    assert!(error.message().contains("`http`"), "{error}");
    assert!(t.left().is_empty());
}
