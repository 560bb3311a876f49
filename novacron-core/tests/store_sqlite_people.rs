//! SqliteStore and people: what the `sqlite3` shell shows while a cluster runs, and how a damaged record is repaired
//! with it.
#![cfg(all(feature = "sqlite", feature = "sim"))]
#![allow(missing_docs, clippy::unwrap_used, reason = "tests")]

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use novacron_core::model::{DiskSource, PoolId};
use novacron_core::sim::{SimHypervisor, SimStorage, SimWorld};
use novacron_core::store::{Commit, Key, Op, SqliteStore, Store, TxnId};
use novacron_core::{Bytes, Cluster, Deadline, ErrorKind, MiB, Phase, VmSpec};
use uuid::Uuid;

fn run(command: &mut Command) -> String {
    let output = command
        .output()
        .expect("the sqlite3 shell is needed: apt-get install sqlite3");
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{command:?}: {error}");
    String::from_utf8(output.stdout).unwrap().trim().to_owned()
}

fn shell(path: &Path, sql: &str) -> String {
    run(Command::new("sqlite3").arg("-readonly").arg(path).arg(sql))
}

fn edit(path: &Path, sql: &str) {
    run(Command::new("sqlite3").arg(path).arg(sql));
}

async fn put(store: &SqliteStore, n: u128, key: &str) {
    let mut commit = Commit::new(TxnId(Uuid::from_u128(n)));
    commit.push(Op::Put(
        Key::new(key).unwrap(),
        format!("{{\"n\":{n}}}").into(),
    ));
    store.commit(commit).await.unwrap();
}

/// Also what the guide on looking into the database says of each view.
#[tokio::test]
async fn people_can_read_it_with_the_shell_while_a_cluster_runs() {
    let soon = || Deadline::after(Duration::from_secs(30));
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("novacron.db");
    let world = SimWorld::new(1);
    let pool = PoolId::new("shared").unwrap();
    world.add_pool(pool.clone(), Bytes::gib(100));
    let store = SqliteStore::open(&path).await.unwrap();
    let cluster = Cluster::builder("example")
        .store(store.clone())
        .node(
            "alpha",
            SimHypervisor::new(&world, world.add_host(8, MiB(16_384))),
        )
        .storage("shared", SimStorage::new(&world, pool))
        .build()
        .await
        .unwrap();
    cluster.nodes().wait_available(soon()).await.unwrap();
    let root = DiskSource::Blank {
        size: Bytes::gib(1),
        pool: None,
    };
    let spec = VmSpec::new("web-1").memory(MiB(512)).disk("root", root);
    let vm = cluster.vms().create(spec).await.unwrap();
    vm.wait_for(Phase::Running, soon()).await.unwrap();
    vm.reset().await.unwrap().wait(soon()).await.unwrap();
    vm.stop().await.unwrap().wait(soon()).await.unwrap();

    let id = vm.id();
    let expect = |sql: &str, expected: &str| assert_eq!(shell(&path, sql), expected, "{sql}");
    expect(
        "SELECT name, project, wanted, phase, node, epoch, memory_mib, id FROM vms",
        &format!("web-1|default|off|stopped|alpha|1|512|{id}"),
    );
    expect(
        "SELECT vm, node, epoch, phase, key FROM runs",
        &format!("web-1|alpha|1|stopped|run/alpha/{id}"),
    );
    expect(
        "SELECT name, state, schedulable, cpus, memory_mib FROM nodes",
        "alpha|available|1|8|16384",
    );
    expect(
        "SELECT pool, bytes, state, writer FROM volumes",
        "shared|1073741824|available|",
    );
    expect(
        "SELECT verb, target, name, state FROM operations",
        &["create", "action", "power"]
            .map(|verb| format!("{verb}|vm/{id}|web-1|done"))
            .join("\n"),
    );
    expect("SELECT verb, vm, state FROM actions", "reset|web-1|done");
    expect(
        &format!(
            "SELECT name, count(*) > 0 FROM events WHERE object = 'vm/{id}' AND message <> ''"
        ),
        "web-1|1",
    );
    expect("SELECT verb FROM audits LIMIT 1", "vm.create");
    expect("SELECT records FROM kinds WHERE kind = 'vm'", "1");
    expect(
        &format!("SELECT body ->> 'meta' ->> 'name' FROM bodies WHERE key = 'vm/{id}'"),
        "web-1",
    );
    expect("SELECT count(*) > 10 FROM recent WHERE change = 'put'", "1");
    expect(
        "SELECT count(*) > 0 FROM transactions WHERE outcome LIKE 'committed at %'",
        "1",
    );

    expect(
        "SELECT name, holder, token FROM lease_holders",
        "leader|the-only-one|1\nmember/1|the-only-one|1",
    );
    expect(
        "SELECT id, role, state, name <> '' FROM members",
        "1|both|alive|1",
    );
    for view in shell(&path, "SELECT name FROM sqlite_schema WHERE type = 'view'").lines() {
        let rows = shell(&path, &format!("SELECT * FROM {view}"));
        let whole = rows.lines().find(|row| row.contains("{\"v\":1"));
        assert!(whole.is_none(), "{view} has a column of whole records");
    }
    cluster.shutdown(soon()).await.unwrap();
    store.close().await.unwrap();
    expect("SELECT name, phase FROM vms", "web-1|stopped");
}

#[tokio::test]
async fn what_is_damaged_is_named_with_the_command_that_repairs_it() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("nova cron.db");
    let store = SqliteStore::open(&path).await.unwrap();
    for (n, key) in (1..).zip(["vm/a", "vm/b", "run/alpha/c", "vm/b"]) {
        put(&store, n, key).await;
    }
    store.close().await.unwrap();
    edit(
        &path,
        "UPDATE records SET value = '{\"n\":7}' WHERE key IN ('vm/a', 'run/alpha/c'); \
         UPDATE history SET value = '{}' WHERE key = 'vm/b'",
    );

    let error = SqliteStore::open(&path).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Corrupt);
    let message = error.message();
    assert!(
        message.contains("run/alpha/c, vm/a, vm/b as it was at revision 2."),
        "{message}"
    );
    let (_, command) = message.split_once("sqlite3 ").unwrap();
    run(Command::new("sh")
        .arg("-c")
        .arg(format!("sqlite3 {command}")));

    let store = SqliteStore::open(&path).await.unwrap();
    for (key, value) in [
        ("vm/a", "{\"n\":7}"),
        ("vm/b", "{\"n\":4}"),
        ("run/alpha/c", "{\"n\":7}"),
    ] {
        let record = store.get(&Key::new(key).unwrap()).await.unwrap().unwrap();
        assert_eq!(record.value, value, "{key}");
    }

    // Damage that comes while the store is open is an error of whoever reads it, and leads to the same way out.
    edit(&path, "UPDATE records SET value = '0' WHERE key = 'vm/b'");
    let error = store.get(&Key::new("vm/b").unwrap()).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Corrupt);
    assert!(error.to_string().contains("key=vm/b"), "{error}");
    store.close().await.unwrap();
}

#[tokio::test]
async fn of_many_damaged_records_the_message_names_some() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("novacron.db");
    let store = SqliteStore::open(&path).await.unwrap();
    for n in 0..30 {
        put(&store, n, &format!("vm/{n:02}")).await;
    }
    store.close().await.unwrap();
    edit(&path, "UPDATE records SET value = '0'");
    let error = SqliteStore::open(&path).await.unwrap_err();
    let message = error.message();
    assert!(message.contains("vm/19, and 10 more"), "{message}");
    assert!(!message.contains("vm/20"), "{message}");
}
