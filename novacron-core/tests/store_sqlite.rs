//! What SqliteStore promises beyond the suite: which files it opens and refuses, group commit, a full disk, closing.
#![cfg(feature = "sqlite")]
#![allow(missing_docs, clippy::unwrap_used, reason = "tests")]

use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use futures::StreamExt as _;
use novacron_core::store::{
    Commit, Key, ListOptions, Op, Record, Revision, SqliteOptions, SqliteStore, Store, TxnId,
};
use novacron_core::{Error, ErrorKind};
use rusqlite::Connection;
use uuid::Uuid;

fn key(text: impl Into<String>) -> Key {
    Key::new(text.into()).unwrap()
}

fn put(n: u128, name: impl Into<String>, value: &str) -> Commit {
    let mut commit = Commit::new(TxnId(Uuid::from_u128(n)));
    commit.push(Op::Put(
        key(name),
        format!("{{\"meta\":{{\"name\":\"{value}\"}}}}").into(),
    ));
    commit
}

async fn records(store: &SqliteStore) -> Result<Vec<Record>, Error> {
    let options = ListOptions {
        limit: usize::MAX,
        ..ListOptions::default()
    };
    Ok(store.list("", options).await?.records)
}

/// A closed database with 300 records and some history, and what is in it.
async fn filled(folder: &Path) -> (PathBuf, Vec<Record>) {
    let path = folder.join("novacron.db");
    let store = SqliteStore::open(&path).await.unwrap();
    let commits = (0..400_u32).map(|i| {
        store.commit(put(
            i.into(),
            format!("vm/{:03}", i % 300),
            &format!("web-{i}"),
        ))
    });
    assert!(
        futures::future::join_all(commits)
            .await
            .iter()
            .all(Result::is_ok)
    );
    let records = records(&store).await.unwrap();
    store.close().await.unwrap();
    (path, records)
}

/// Opens what must be refused, and checks that nothing in the folder changed but for the lock file.
async fn refused(path: &Path) -> Error {
    let content = |folder: &Path| {
        let mut files: Vec<_> = std::fs::read_dir(folder)
            .unwrap()
            .map(|f| f.unwrap().path())
            .collect();
        files.retain(|f| f.extension().is_none_or(|e| e != "lock"));
        files.sort();
        files
            .into_iter()
            .map(|f| (f.clone(), std::fs::read(f).unwrap()))
            .collect::<Vec<_>>()
    };
    let folder = path.parent().unwrap();
    let before = content(folder);
    let error = SqliteStore::open(path).await.unwrap_err();
    assert!(content(folder) == before, "{error}: the folder has changed");
    error
}

#[tokio::test]
async fn the_file_and_its_companions_are_the_owners_alone() {
    let folder = tempfile::tempdir().unwrap();
    let store = SqliteStore::open(folder.path().join("novacron.db"))
        .await
        .unwrap();
    store.commit(put(1, "vm/a", "a")).await.unwrap();
    let mut names = Vec::new();
    for file in std::fs::read_dir(folder.path()).unwrap() {
        let file = file.unwrap();
        assert_eq!(
            file.metadata().unwrap().permissions().mode() & 0o777,
            0o600,
            "{:?}",
            file.path()
        );
        names.push(file.file_name().into_string().unwrap());
    }
    names.sort();
    assert_eq!(
        names,
        [
            "novacron.db",
            "novacron.db-shm",
            "novacron.db-wal",
            "novacron.db.lock"
        ]
    );
    store.close().await.unwrap();
    assert!(
        !folder.path().join("novacron.db-wal").exists(),
        "folded into the database"
    );
}

#[tokio::test]
async fn a_second_open_in_this_process_is_refused_under_any_name() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("novacron.db");
    let store = SqliteStore::open(&path).await.unwrap();
    std::os::unix::fs::symlink(&path, folder.path().join("link.db")).unwrap();
    for name in ["novacron.db", "link.db", "./novacron.db"] {
        let error = SqliteStore::open(folder.path().join(name))
            .await
            .unwrap_err();
        assert_eq!(error.kind(), ErrorKind::FailedPrecondition);
        assert!(
            error.message().contains(&std::process::id().to_string()),
            "{error}"
        );
    }
    store.close().await.unwrap();
    SqliteStore::open(&path)
        .await
        .unwrap()
        .close()
        .await
        .unwrap();
}

#[tokio::test]
async fn a_closed_store_answers_with_an_error() {
    let folder = tempfile::tempdir().unwrap();
    let store = SqliteStore::open(folder.path().join("novacron.db"))
        .await
        .unwrap();
    let mut watch = store.watch(vec![String::new()], Revision(0)).await.unwrap();
    store.commit(put(1, "vm/a", "a")).await.unwrap();
    store.close().await.unwrap();
    store.close().await.unwrap();
    assert_eq!(
        store.commit(put(2, "vm/b", "b")).await.unwrap_err().kind(),
        ErrorKind::Unavailable
    );
    assert_eq!(
        store.get(&key("vm/a")).await.unwrap_err().kind(),
        ErrorKind::Unavailable
    );
    assert_eq!(
        records(&store).await.unwrap_err().kind(),
        ErrorKind::Unavailable
    );
    let mut told = Vec::new();
    while let Some(event) = watch.next().await {
        told.push(event.map_err(|e| e.kind()));
    }
    assert_eq!(
        told.pop(),
        Some(Err(ErrorKind::Unavailable)),
        "the watch ends with an error"
    );
    assert!(told.iter().all(Result::is_ok));
}

#[tokio::test]
async fn commits_under_way_at_a_close_are_settled() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("novacron.db");
    let store = SqliteStore::open(&path).await.unwrap();
    let commits = (0..200).map(|i| store.commit(put(i, format!("vm/{i}"), "x")));
    let (answers, closed) = futures::join!(futures::future::join_all(commits), store.close());
    closed.unwrap();
    let store = SqliteStore::open(&path).await.unwrap();
    for (i, answer) in answers.into_iter().enumerate() {
        let found = store.get(&key(format!("vm/{i}"))).await.unwrap();
        match answer {
            Ok(revision) => assert_eq!(found.unwrap().version, revision),
            Err(error) => assert_eq!((error.kind(), found), (ErrorKind::Unavailable, None)),
        }
    }
}

#[tokio::test]
async fn commits_at_the_same_time_share_a_sync() {
    let folder = tempfile::tempdir().unwrap();
    let store = SqliteStore::open(folder.path().join("novacron.db"))
        .await
        .unwrap();
    for i in 0..10 {
        store.commit(put(i, "vm/alone", "x")).await.unwrap();
    }
    let alone = store.stats();
    assert_eq!(
        (alone.groups, alone.commits, alone.largest_group),
        (10, 10, 1)
    );

    let commits = (0..1000).map(|i| store.commit(put(100 + i, format!("vm/{i}"), "x")));
    assert!(
        futures::future::join_all(commits)
            .await
            .iter()
            .all(Result::is_ok)
    );
    let stats = store.stats();
    assert_eq!(stats.commits, 1010);
    assert!(stats.groups - alone.groups <= 50, "{stats:?}");
    assert!(stats.largest_group >= 100, "{stats:?}");
}

#[tokio::test]
async fn a_full_disk_is_an_error_and_the_store_goes_on_when_there_is_space() {
    let folder = tempfile::tempdir().unwrap();
    let options = SqliteOptions {
        max_bytes: Some(1 << 20),
        ..SqliteOptions::default()
    };
    let store = SqliteStore::open_with(folder.path().join("novacron.db"), options)
        .await
        .unwrap();
    let filler = "x".repeat(20_000);
    let mut written = 0;
    let error = loop {
        match store
            .commit(put(written, format!("vm/{written}"), &filler))
            .await
        {
            Ok(_) => written += 1,
            Err(error) => break error,
        }
    };
    assert!(written > 10, "{error}");
    assert_eq!(error.kind(), ErrorKind::Exhausted);
    let before = records(&store).await.unwrap();
    assert_eq!(
        before.len(),
        usize::try_from(written).unwrap(),
        "the refused commit left nothing"
    );

    // Smaller ones may still fit, until nothing does.
    let mut small = 0;
    while store
        .commit(put(1000 + small, format!("small/{small}"), "x"))
        .await
        .is_ok()
    {
        small += 1;
    }
    assert_eq!(
        records(&store).await.unwrap().len(),
        before.len() + usize::try_from(small).unwrap()
    );

    // Space comes back: here, as another program makes room in the same file.
    let raw = Connection::open(store.path()).unwrap();
    raw.busy_timeout(std::time::Duration::from_secs(10))
        .unwrap();
    raw.execute("DELETE FROM records WHERE key LIKE 'vm/%'", [])
        .unwrap();
    drop(raw);
    let revision = store
        .commit(put(written, format!("vm/{written}"), "fits now"))
        .await
        .unwrap();
    assert_eq!(
        store
            .get(&key(format!("vm/{written}")))
            .await
            .unwrap()
            .unwrap()
            .version,
        revision
    );
}

#[tokio::test]
async fn what_is_no_database_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("novacron.db");
    let noise: Vec<u8> = (0..20_000_u32)
        .map(|i| (i.wrapping_mul(2_654_435_761) >> 13).to_le_bytes()[0])
        .collect();
    for content in [
        &noise[..],
        b"{\"not\": \"a database\"}",
        b"",
        b"SQLite format 3\0",
        &[0; 4096],
    ] {
        std::fs::write(&path, content).unwrap();
        let error = refused(&path).await;
        assert_eq!(error.kind(), ErrorKind::Corrupt, "{error}");
    }
    std::fs::remove_file(&path).unwrap();
    std::fs::create_dir(&path).unwrap();
    assert!(SqliteStore::open(&path).await.is_err());
}

#[tokio::test]
async fn another_programs_database_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("novacron.db");
    Connection::open(&path)
        .unwrap()
        .execute_batch("CREATE TABLE t (a); PRAGMA application_id = 7")
        .unwrap();
    let error = refused(&path).await;
    assert_eq!(error.kind(), ErrorKind::Corrupt);
    assert!(error.message().contains("another program"), "{error}");
}

#[tokio::test]
async fn a_newer_schema_is_refused_by_both_versions() {
    let folder = tempfile::tempdir().unwrap();
    let (path, _) = filled(folder.path()).await;
    let raw = Connection::open(&path).unwrap();
    raw.execute_batch("PRAGMA user_version = 99").unwrap();
    raw.close().unwrap();
    let error = refused(&path).await;
    assert_eq!(error.kind(), ErrorKind::Corrupt);
    assert!(
        error.message().contains("99") && error.message().contains("up to 1"),
        "{error}"
    );
}

#[tokio::test]
async fn a_database_that_lost_its_file_but_not_its_log_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("novacron.db-wal"), "something").unwrap();
    assert_eq!(
        refused(&folder.path().join("novacron.db")).await.kind(),
        ErrorKind::Corrupt
    );
}

#[tokio::test]
async fn a_folder_that_does_not_exist_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let error = SqliteStore::open(folder.path().join("none/novacron.db"))
        .await
        .unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NotFound);
    assert!(error.to_string().contains("/none"), "{error}");
    let report = error.report();
    assert_eq!(report.matches("No such file").count(), 1, "{report}");
}

#[tokio::test]
async fn what_a_crash_in_the_making_left_is_no_obstacle() {
    let folder = tempfile::tempdir().unwrap();
    for name in [
        "novacron.db.new",
        "novacron.db.new-journal",
        "novacron.db.new-wal",
    ] {
        std::fs::write(folder.path().join(name), "half").unwrap();
    }
    let (_, records) = filled(folder.path()).await;
    assert_eq!(records.len(), 300);
    assert!(!folder.path().join("novacron.db.new").exists());
}

#[tokio::test]
async fn a_truncated_database_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let (path, _) = filled(folder.path()).await;
    let whole = std::fs::read(&path).unwrap();
    for part in [
        50,
        100,
        4095,
        4096,
        8192,
        whole.len() / 2,
        whole.len() / 4096 / 2 * 4096,
        whole.len() - 1,
    ] {
        std::fs::write(&path, &whole[..part]).unwrap();
        let error = SqliteStore::open(&path).await.unwrap_err();
        assert_eq!(
            error.kind(),
            ErrorKind::Corrupt,
            "{part} of {} bytes: {error}",
            whole.len()
        );
        assert!(
            std::fs::read(&path).unwrap() == whole[..part],
            "{part} bytes: touched"
        );
    }
}

/// Wherever a byte flips, the database is refused, or every record is read as it was written.
#[tokio::test]
async fn a_flipped_byte_never_changes_a_record_in_silence() {
    let folder = tempfile::tempdir().unwrap();
    let (path, written) = filled(folder.path()).await;
    let whole = std::fs::read(&path).unwrap();
    let (mut refused, mut seed) = (0, 0x9e37_79b9_7f4a_7c15_u64);
    for _ in 0..250 {
        // xorshift: the same places every time.
        seed ^= seed << 13;
        seed ^= seed >> 7;
        seed ^= seed << 17;
        let place = usize::try_from(seed % whole.len() as u64).unwrap();
        let mut damaged = whole.clone();
        damaged[place] ^= 1 << (seed >> 60 & 7);
        std::fs::write(&path, &damaged).unwrap();
        match SqliteStore::open(&path).await {
            Err(error) => {
                assert_eq!(error.kind(), ErrorKind::Corrupt, "byte {place}: {error}");
                refused += 1;
            }
            Ok(store) => {
                assert_eq!(records(&store).await.unwrap(), written, "byte {place}");
                store.close().await.unwrap();
            }
        }
    }
    assert!(refused > 50, "only {refused} were noticed");
}
