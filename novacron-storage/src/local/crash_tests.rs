//! Killed at every point of every change: what is left is shown, and the same call, or `delete`, repairs it.
//!
//! The test runs itself again as a child that is killed at one point of one call, then looks with a fresh pool.

use std::path::{Path, PathBuf};
use std::process::Command;

use futures::TryStreamExt as _;
use novacron_core::model::{Bytes, ClusterId, ImageId, ImageSource};
use uuid::Uuid;

use super::*;
use novacron_core::driver::CreateSource;

const DIR: &str = "NOVACRON_STORAGE_CRASH_DIR";
const DO: &str = "NOVACRON_STORAGE_CRASH_DO";
const AT: &str = "NOVACRON_STORAGE_CRASH_AT";
const SIZE: u64 = 4 << 20;
const BLOCK: u64 = 65_536;

const VOLUME: VolumeId = VolumeId::from_uuid(Uuid::from_u128(1));
const IMAGE: ImageId = ImageId::from_uuid(Uuid::from_u128(2));
const CLONE: VolumeId = VolumeId::from_uuid(Uuid::from_u128(3));
const FIRST: SnapshotId = SnapshotId::from_uuid(Uuid::from_u128(4));
const SECOND: SnapshotId = SnapshotId::from_uuid(Uuid::from_u128(5));
const CLUSTER: ClusterId = ClusterId::from_uuid(Uuid::from_u128(6));

/// Every call, and where it is killed.
const CASES: [(&str, &[&str]); 9] = [
    (
        "create",
        &[
            "create.part-made",
            "create.stamped",
            "create.layer-made",
            "record.written",
            "record.named",
        ],
    ),
    ("import", &["import.staged", "create.layer-made"]),
    ("clone", &["create.stamped", "create.layer-made"]),
    (
        "prepare",
        &["prepare.layer-made", "record.written", "record.named"],
    ),
    ("commit", &["record.written", "record.named"]),
    (
        "restore",
        &["restore.layer-made", "record.written", "restore.recorded"],
    ),
    (
        "forget",
        &[
            "record.written",
            "snapshot-delete.recorded",
            "merge.rebased",
        ],
    ),
    ("resize", &["record.written", "record.named"]),
    ("delete", &["delete.renamed"]),
];

fn call() -> Call {
    Call::within(Duration::from_secs(60))
}

fn volume(id: VolumeId) -> ArtefactId {
    ArtefactId::Volume(id)
}

async fn create(pool: &LocalStorage, id: ArtefactId, source: CreateSource) -> Result<()> {
    let request = CreateVolume {
        cluster: CLUSTER,
        id,
        size: Bytes(SIZE),
        format: VolumeFormat::Qcow2,
        source,
    };
    pool.create(call(), &request).await.map(drop)
}

fn import(dir: &Path) -> CreateSource {
    CreateSource::Import {
        source: ImageSource::File(dir.join("image.raw")),
        sha256: None,
    }
}

/// The call that is killed, and that is repeated afterwards.
async fn act(what: &str, dir: &Path, pool: &LocalStorage) -> Result<()> {
    match what {
        "create" => create(pool, volume(CLONE), CreateSource::Blank).await,
        "import" => {
            create(
                pool,
                ArtefactId::Image(ImageId::from_uuid(CLONE.uuid())),
                import(dir),
            )
            .await
        }
        "clone" => create(pool, volume(CLONE), CreateSource::Image(IMAGE)).await,
        "prepare" => pool
            .snapshot_prepare(call(), VOLUME, SECOND, None)
            .await
            .map(drop),
        "commit" => {
            pool.snapshot_prepare(call(), VOLUME, SECOND, None).await?;
            pool.snapshot_commit(call(), VOLUME, SECOND).await
        }
        "restore" => pool.restore(call(), VOLUME, FIRST).await,
        "forget" => pool.snapshot_delete(call(), VOLUME, FIRST).await,
        "resize" => pool.resize(call(), VOLUME, Bytes(2 * SIZE)).await.map(drop),
        "delete" => pool.delete(call(), volume(VOLUME)).await,
        other => panic!("{other}"),
    }
}

fn write(path: &Path, pattern: u8, block: u64) {
    let status = Command::new("qemu-io")
        .args(["-f", "qcow2", "-c"])
        .arg(format!("write -P {pattern} {} {BLOCK}", block * BLOCK))
        .arg(path)
        .stdout(std::process::Stdio::null())
        .status()
        .unwrap();
    assert!(status.success());
}

async fn read(pool: &LocalStorage, snapshot: Option<SnapshotId>) -> Vec<u8> {
    let stream = pool.export(call(), volume(VOLUME), snapshot).await.unwrap();
    let pieces: Vec<bytes::Bytes> = stream.try_collect().await.unwrap();
    pieces.concat()
}

fn disk(size: u64, blocks: &[(u8, u64)]) -> Vec<u8> {
    let mut bytes = vec![0; size as usize];
    for (pattern, block) in blocks {
        let at = (block * BLOCK) as usize;
        bytes[at..at + BLOCK as usize].fill(*pattern);
    }
    bytes
}

/// An image, and a clone of it with one snapshot: 1 from the image, 2 before the snapshot, 3 after it.
async fn scene(dir: &Path) -> LocalStorage {
    let pool = LocalStorage::open(dir.join("pool")).await.unwrap();
    std::fs::write(dir.join("image.raw"), disk(SIZE, &[(1, 0)])).unwrap();
    create(&pool, ArtefactId::Image(IMAGE), import(dir))
        .await
        .unwrap();
    create(&pool, volume(VOLUME), CreateSource::Image(IMAGE))
        .await
        .unwrap();
    let folder = pool.dir().join(format!("volumes/{VOLUME}"));
    write(&folder.join("base.qcow2"), 2, 1);
    pool.snapshot_prepare(call(), VOLUME, FIRST, None)
        .await
        .unwrap();
    pool.snapshot_commit(call(), VOLUME, FIRST).await.unwrap();
    write(&folder.join(format!("{FIRST}.qcow2")), 3, 2);
    pool
}

#[tokio::test]
#[ignore = "run by killed_anywhere"]
async fn child() {
    let Some(dir) = std::env::var_os(DIR).map(PathBuf::from) else {
        eprintln!("run by the test that sets {DIR}");
        return;
    };
    let pool = LocalStorage::open(dir.join("pool")).await.unwrap();
    act(&std::env::var(DO).unwrap(), &dir, &pool).await.unwrap();
}

#[tokio::test]
async fn killed_anywhere() {
    use std::os::unix::process::ExitStatusExt as _;
    for (what, points) in CASES {
        for at in points {
            let dir = tempfile::tempdir().unwrap();
            let pool = scene(dir.path()).await;
            let before = pool.list(call()).await.unwrap().len();
            let out = Command::new(std::env::current_exe().unwrap())
                .args(["--exact", "local::crash_tests::child", "--ignored"])
                .env(DIR, dir.path())
                .env(DO, what)
                .env(AT, at)
                .output()
                .unwrap();
            assert_eq!(
                out.status.signal(),
                Some(9),
                "{what} never came to {at}: {out:?}"
            );
            after(what, at, dir.path(), before).await;
        }
    }
}

/// With a fresh pool: everything is shown, nothing is lost, the call succeeds, and everything can be removed.
async fn after(what: &str, at: &str, dir: &Path, before: usize) {
    let context = format!("{what} killed at {at}");
    let pool = LocalStorage::open(dir.join("pool")).await.unwrap();
    let listed = pool.list(call()).await.unwrap();
    let made = usize::from(matches!(what, "create" | "import" | "clone"));
    assert_eq!(listed.len(), before + made, "{context}: {listed:?}");
    assert!(listed.iter().all(|a| a.cluster == CLUSTER), "{context}");
    if what != "delete" {
        let first = disk(SIZE, &[(1, 0), (2, 1)]);
        let latest = disk(SIZE, &[(1, 0), (2, 1), (3, 2)]);
        let grown = disk(2 * SIZE, &[(1, 0), (2, 1), (3, 2)]);
        let info = pool.inspect(call(), volume(VOLUME)).await.unwrap().unwrap();
        if info.snapshots.contains(&FIRST) {
            assert!(read(&pool, Some(FIRST)).await == first, "{context}");
        } else {
            assert_eq!(what, "forget", "{context}");
        }
        let now = read(&pool, None).await;
        let restored = what == "restore" && now == first;
        let resized = what == "resize" && now == grown;
        assert!(now == latest || restored || resized, "{context}");

        act(what, dir, &pool).await.unwrap();
        no_leftovers(pool.dir(), &context);
        let wanted = match what {
            "restore" => first,
            "resize" => grown,
            _ => latest,
        };
        assert!(
            read(&pool, None).await == wanted,
            "{context}, then repeated"
        );
    }
    for artefact in pool.list(call()).await.unwrap() {
        if let ArtefactId::Volume(_) = artefact.id {
            pool.delete(call(), artefact.id).await.unwrap();
        }
    }
    for artefact in pool.list(call()).await.unwrap() {
        pool.delete(call(), artefact.id).await.unwrap();
    }
    for kind in ["volumes", "images", "parts/volumes", "parts/images"] {
        let left: Vec<_> = std::fs::read_dir(pool.dir().join(kind)).unwrap().collect();
        assert!(left.is_empty(), "{context}: {left:?}");
    }
}

/// Every file of every volume is one that its record names.
fn no_leftovers(pool: &Path, context: &str) {
    for volume in std::fs::read_dir(pool.join("volumes")).unwrap() {
        let dir = volume.unwrap().path();
        let record = record::Record::read("test", &dir).unwrap().unwrap();
        let mut wanted: Vec<_> = record.layers.iter().map(|l| l.file.clone()).collect();
        wanted.extend(["cluster", "data.lock", "lock", "volume.json"].map(str::to_owned));
        let files = std::fs::read_dir(&dir).unwrap();
        let mut found: Vec<_> = files
            .map(|f| f.unwrap().file_name().into_string().unwrap())
            .collect();
        wanted.sort();
        found.sort();
        assert_eq!(found, wanted, "{context}");
    }
}
