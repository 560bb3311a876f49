//! The state out of one database and into another, by the program.

#![expect(clippy::unwrap_used, reason = "to panic is to fail the test")]

use std::path::Path;
use std::process::{Command, Output};

use novacron_core::store::{Commit, Key, Op, SqliteStore, Store, TxnId};
use novacron_core::{IdSource, SeededIds};

fn statectl(folder: &Path, arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_statectl"))
        .args(arguments)
        .current_dir(folder)
        .output()
        .unwrap()
}

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&[&output.stdout[..], &output.stderr[..]].concat()).into_owned()
}

/// Runs it, checks its exit code, and returns what it said.
fn expect(folder: &Path, code: i32, arguments: &[&str]) -> String {
    let output = statectl(folder, arguments);
    let said = said(&output);
    assert_eq!(output.status.code(), Some(code), "{arguments:?}: {said}");
    said
}

async fn put(path: &Path, keys: &[&str]) {
    let store = SqliteStore::open(path).await.unwrap();
    let mut commit = Commit::new(TxnId(uuid::Uuid::from_u128(SeededIds::from_os().bits())));
    for key in keys {
        let key = Key::new(*key).unwrap();
        commit.push(Op::Put(key, r#"{"v":1,"body":1}"#.into()));
    }
    store.commit(commit).await.unwrap();
    store.close().await.unwrap();
}

#[tokio::test]
async fn the_state_moves_from_one_database_to_another() {
    let folder = tempfile::tempdir().unwrap();
    let dir = folder.path();
    put(&dir.join("a.db"), &["vm/a", "vm/b", "name/default/vm/a"]).await;

    let dumped = expect(dir, 0, &["dump", "sqlite:a.db", "state"]);
    assert!(dumped.contains("dumped 3 records"), "{dumped}");
    assert!(expect(dir, 0, &["load", "state", "sqlite:b.db"]).contains("loaded 3 records"));
    assert!(expect(dir, 0, &["diff", "sqlite:a.db", "sqlite:b.db"]).contains("equal"));
    assert!(expect(dir, 0, &["copy", "sqlite:b.db", "sqlite:c.db"]).contains("copied 3 records"));

    put(&dir.join("c.db"), &["vm/c"]).await;
    assert!(expect(dir, 1, &["diff", "sqlite:a.db", "sqlite:c.db"]).contains("+ vm/c"));
    assert!(expect(dir, 3, &["load", "state", "sqlite:c.db"]).contains("not empty"));
    assert!(expect(dir, 3, &["dump", "sqlite:none.db", "state"]).contains("no such database"));
    assert!(!dir.join("none.db").exists());
    assert!(expect(dir, 3, &["load", "none", "sqlite:d.db"]).contains("none"));
    assert!(!dir.join("d.db").exists());
    std::fs::write(dir.join("broken"), "hello\n").unwrap();
    assert!(expect(dir, 3, &["load", "broken", "sqlite:e.db"]).contains("no dump"));
    // A dump that is good at its begin only, as one that was cut off.
    let whole = std::fs::read_to_string(dir.join("state")).unwrap();
    let cut = whole.lines().take(2).collect::<Vec<_>>().join("\n") + "\n";
    std::fs::write(dir.join("cut"), cut).unwrap();
    assert!(expect(dir, 3, &["load", "cut", "sqlite:e.db"]).contains("cut off"));
    assert!(!dir.join("e.db").exists());
    assert!(expect(dir, 3, &["dump", "what", "state"]).contains("no URL"));
    assert!(expect(dir, 2, &["dump"]).contains("usage"));
}
