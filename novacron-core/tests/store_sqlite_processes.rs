//! SqliteStore and other processes: killed ones, second ones, ones without permission.
//!
//! The child is this very test binary, run with `NOVACRON_STORE_CHILD` set (what it shall do, and on which database).
#![cfg(feature = "sqlite")]
#![allow(missing_docs, clippy::unwrap_used, reason = "tests")]

use std::io::{BufRead as _, BufReader, Write as _};
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use novacron_core::ErrorKind;
use novacron_core::store::{Commit, Key, Op, Revision, SqliteStore, Store, TxnId, TxnOutcome};
use uuid::Uuid;

const ROLE: &str = "NOVACRON_STORE_CHILD";
const WRITERS: u128 = 8;

fn txn(round: u128, writer: u128, i: u128) -> TxnId {
    TxnId(Uuid::from_u128(round << 64 | writer << 32 | i))
}

fn key(round: u128, writer: u128, i: u128) -> Key {
    Key::new(format!("vm/{round}-{writer}-{i}")).unwrap()
}

/// What the child does. Not a test of its own: nothing happens without its variable.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "the child process of the tests in this file"]
async fn child() {
    let Ok(role) = std::env::var(ROLE) else {
        return;
    };
    let (role, path) = role.split_once(' ').unwrap();
    let say = |line: String| {
        let mut out = std::io::stdout().lock();
        writeln!(out, "@ {line}")
            .and_then(|()| out.flush())
            .unwrap();
    };
    match SqliteStore::open(path).await {
        Err(error) => say(format!("{} {error}", error.kind())),
        Ok(store) => match role.parse::<u128>() {
            Ok(round) => {
                let writers = (0..WRITERS).map(|writer| {
                    let store = store.clone();
                    tokio::spawn(async move {
                        for i in 0.. {
                            let mut commit = Commit::new(txn(round, writer, i));
                            commit.push(Op::Put(key(round, writer, i), format!("\"{i}\"").into()));
                            commit.push(Op::Put(
                                Key::new("shared").unwrap(),
                                format!("\"{i}\"").into(),
                            ));
                            let revision = store.commit(commit).await.unwrap();
                            say(format!("{writer} {i} {revision}"));
                        }
                    })
                });
                futures::future::join_all(writers).await;
            }
            Err(_) => say("opened".to_owned()),
        },
    }
}

fn spawn(role: &str, path: &Path, user: Option<u32>) -> Child {
    // By this name, the binary is found also by a user who may not search its folder.
    let mut command = Command::new("/proc/self/exe");
    command.args([
        "--exact",
        "child",
        "--ignored",
        "--nocapture",
        "--test-threads=1",
    ]);
    command
        .env(ROLE, format!("{role} {}", path.display()))
        .stdin(Stdio::null());
    command.stdout(Stdio::piped()).stderr(Stdio::null());
    if let Some(user) = user {
        command.uid(user).gid(user);
    }
    command.spawn().unwrap()
}

fn lines(child: &mut Child) -> impl Iterator<Item = String> + use<> {
    let out = BufReader::new(child.stdout.take().unwrap());
    // The harness may have written before on the same line. A torn last line has no newline and no meaning.
    let whole = out
        .split(b'\n')
        .map_while(Result::ok)
        .map(|line| String::from_utf8_lossy(&line).into_owned());
    whole.filter_map(|line| line.split_once("@ ").map(|(_, said)| said.to_owned()))
}

/// Whatever was acknowledged before `kill -9` is there, and so is the answer to what was not.
#[tokio::test]
async fn nothing_acknowledged_is_lost_by_kill_9() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("novacron.db");
    let mut last = Revision(0);
    for round in 0..4 {
        let mut child = spawn(&round.to_string(), &path, None);
        let mut said = lines(&mut child);
        let mut acknowledged: Vec<_> = said
            .by_ref()
            .take(100 + 170 * usize::try_from(round).unwrap())
            .collect();
        child.kill().unwrap();
        child.wait().unwrap();
        acknowledged.extend(said);
        assert!(
            acknowledged.len() >= 100,
            "the child died by itself: {acknowledged:?}"
        );

        // The lock of the dead is no obstacle.
        let store = SqliteStore::open(&path).await.unwrap();
        let mut counts = [0; WRITERS as usize];
        for line in &acknowledged {
            let numbers: Vec<u128> = line.split(' ').filter_map(|n| n.parse().ok()).collect();
            let [writer, i, revision] = numbers[..] else {
                panic!("the child said {line:?}")
            };
            let revision = Revision(u64::try_from(revision).unwrap());
            let found = store.get(&key(round, writer, i)).await.unwrap();
            assert_eq!(found.map(|record| record.version), Some(revision), "{line}");
            assert_eq!(
                store.outcome(txn(round, writer, i)).await.unwrap(),
                TxnOutcome::Committed(revision)
            );
            assert!(revision > last);
            counts[usize::try_from(writer).unwrap()] = i + 1;
        }
        // Of the commit after it, each writer's outcome and record agree.
        for (writer, next) in (0..).zip(counts) {
            let found = store
                .get(&key(round, writer, next))
                .await
                .unwrap()
                .map(|record| record.version);
            let expected = found.map_or(TxnOutcome::NotCommitted, TxnOutcome::Committed);
            assert_eq!(
                store.outcome(txn(round, writer, next)).await.unwrap(),
                expected
            );
        }
        last = store
            .get(&Key::new("shared").unwrap())
            .await
            .unwrap()
            .unwrap()
            .version;
        store.close().await.unwrap();
    }
}

#[tokio::test]
async fn a_second_process_is_refused_with_the_pid_of_the_first() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("novacron.db");
    let store = SqliteStore::open(&path).await.unwrap();
    let mut child = spawn("open", &path, None);
    let said: Vec<_> = lines(&mut child).collect();
    child.wait().unwrap();
    assert!(said[0].starts_with("failed-precondition"), "{said:?}");
    assert!(
        said[0].contains(&format!("process {} has", std::process::id())),
        "{said:?}"
    );
    store.close().await.unwrap();

    let mut child = spawn("0", &path, None);
    let first = lines(&mut child).next();
    assert!(first.is_some());
    let error = SqliteStore::open(&path).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::FailedPrecondition);
    assert!(
        error
            .context()
            .any(|pair| pair == ("pid", child.id().to_string().as_str())),
        "{error}"
    );
    child.kill().unwrap();
    child.wait().unwrap();
}

/// A folder, or a file, that may not be written. Root may write anything, so as root the child is `nobody`.
#[tokio::test]
async fn what_may_not_be_written_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let user = std::fs::metadata("/proc/self")
        .map(|m| std::os::unix::fs::MetadataExt::uid(&m))
        .unwrap();
    let other = (user == 0).then_some(65_534);
    let set = |path: &Path, mode| {
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
    };
    set(folder.path(), 0o555);
    let said = |path: &Path| {
        let mut child = spawn("open", path, other);
        let said: Vec<_> = lines(&mut child).collect();
        child.wait().unwrap();
        said.join("\n")
    };
    let path = folder.path().join("novacron.db");
    let nothing = said(&path);
    assert!(
        nothing.starts_with("permission-denied") && nothing.contains("novacron.db"),
        "{nothing}"
    );

    set(folder.path(), 0o755);
    SqliteStore::open(&path)
        .await
        .unwrap()
        .close()
        .await
        .unwrap();
    set(&path, 0o444);
    set(&folder.path().join("novacron.db.lock"), 0o666);
    set(folder.path(), 0o777);
    let read_only = said(&path);
    assert!(read_only.starts_with("permission-denied"), "{read_only}");
    set(folder.path(), 0o755);
}
