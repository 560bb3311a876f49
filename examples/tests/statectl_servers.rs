//! The state of a simulated cluster, by the program, through every store: SQLite, PostgreSQL, etcd, and back.
#![allow(clippy::unwrap_used, reason = "to panic is to fail the test")]

#[path = "../../novacron-core/tests/support"]
mod support {
    pub(crate) mod etcd;
    pub(crate) mod postgres;
    pub(crate) mod process;
    pub(crate) mod world;
}

use std::path::Path;
use std::process::Command;

use novacron_core::store::SqliteStore;
use novacron_core::{Cluster, Phase};
use support::etcd::Etcd;
use support::postgres::{PASSWORD, Server};
use support::world::{World, named, soon};

async fn build(world: &World, database: &Path) -> (Cluster, SqliteStore) {
    let store = SqliteStore::open(database).await.unwrap();
    let cluster = world.cluster("prod", store.clone()).await.unwrap();
    cluster.nodes().wait_available(soon()).await.unwrap();
    (cluster, store)
}

/// Runs it, checks its exit code, and returns what it said.
fn statectl(folder: &Path, code: i32, arguments: &[&str]) -> String {
    let output = Command::new(env!("CARGO_BIN_EXE_statectl"))
        .args(arguments)
        .current_dir(folder)
        .env("NOVACRON_POSTGRES_PASSWORD", PASSWORD)
        .output()
        .unwrap();
    let said = [&output.stdout[..], &output.stderr[..]].concat();
    let said = String::from_utf8_lossy(&said).into_owned();
    assert_eq!(output.status.code(), Some(code), "{arguments:?}: {said}");
    said
}

#[tokio::test]
async fn the_state_of_a_cluster_moves_through_every_store() {
    let folder = tempfile::tempdir().unwrap();
    let dir = folder.path();
    let world = World::new();
    let (cluster, store) = build(&world, &dir.join("a.db")).await;
    let mut ids = Vec::new();
    for name in ["web-1", "web-2", "web-3"] {
        let mut spec = named(name);
        // What is not plain in JSON: a NUL, quotes, other alphabets.
        let note = "\u{0} \"\\ ä 漢 \u{1f600}".to_owned();
        spec.annotations.insert("note".to_owned(), note);
        let vm = cluster.vms().create(spec).await.unwrap();
        vm.wait_for(Phase::Running, soon()).await.unwrap();
        ids.push(vm.id());
    }
    let stopped = cluster.vms().by_id(ids[2]);
    stopped.stop().await.unwrap().wait(soon()).await.unwrap();
    cluster.shutdown(soon()).await.unwrap();
    drop((stopped, cluster));
    store.close().await.unwrap();

    let (server, etcd) = (Server::start(true, &[]), Etcd::start());
    let place = format!("postgres://postgres@127.0.0.1:{}/postgres", server.port());
    let postgres = format!("{place}?schema=moved");
    let etcd = format!("etcd://127.0.0.1:{}/moved/", etcd.port(0));
    let hops = ["sqlite:a.db", &postgres, &etcd, "sqlite:b.db"];
    let missing = statectl(dir, 3, &["diff", "sqlite:a.db", &postgres]);
    assert!(missing.contains("schema"), "{missing}");
    for hop in hops.windows(2) {
        let copied = statectl(dir, 0, &["copy", hop[0], hop[1]]);
        assert!(copied.contains("equal\ncopied"), "{copied}");
        let compared = statectl(dir, 0, &["diff", hop[0], hop[1]]);
        assert!(compared.contains("equal"), "{compared}");
    }
    // And the other way round.
    let (back, further) = (format!("{etcd}back/"), format!("{place}?schema=back"));
    let hops = ["sqlite:b.db", &back, &further, "sqlite:c.db"];
    for hop in hops.windows(2) {
        statectl(dir, 0, &["copy", hop[0], hop[1]]);
    }
    let compared = statectl(dir, 0, &["diff", "sqlite:a.db", "sqlite:c.db"]);
    assert!(compared.contains("equal"), "{compared}");

    // A cluster over what came back finds its VMs.
    let (cluster, store) = build(&world, &dir.join("c.db")).await;
    for (id, phase) in ids
        .into_iter()
        .zip([Phase::Running, Phase::Running, Phase::Stopped])
    {
        let vm = cluster.vms().by_id(id);
        vm.wait_for(phase, soon()).await.unwrap();
    }
    let vm = cluster.vms().by_name("web-1").await.unwrap();
    vm.delete().await.unwrap().wait(soon()).await.unwrap();
    cluster.shutdown(soon()).await.unwrap();
    store.close().await.unwrap();
    let differs = statectl(dir, 1, &["diff", &postgres, "sqlite:c.db"]);
    assert!(differs.contains("- vm/"), "{differs}");

    let refused = statectl(
        dir,
        3,
        &["dump", "postgres://panel:hunter2@127.0.0.1/panel", "state"],
    );
    assert!(refused.contains("NOVACRON_POSTGRES_PASSWORD"), "{refused}");
    assert!(!refused.contains("hunter2"), "{refused}");
}
