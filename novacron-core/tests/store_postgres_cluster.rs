//! A cluster on PostgresStore: it lives on through a restart of its process, several share a database, and what a DBA
//! sees of it is what docs/guides/postgresql.md says.
#![allow(missing_docs, clippy::unwrap_used, reason = "tests")]

mod support {
    pub(crate) mod postgres;
    pub(crate) mod process;
    pub(crate) mod world;
}

use novacron_core::store::Store;
use novacron_core::{ErrorKind, Phase};
use support::postgres::Server;
use support::world::{World, named, soon};

#[tokio::test]
async fn a_cluster_lives_on_when_its_process_starts_anew() {
    let server = Server::start(false, &[]);
    let world = World::new();
    let store = server.store("novacron").await;
    let cluster = world.cluster("prod", store).await.unwrap();
    cluster.nodes().wait_available(soon()).await.unwrap();
    let vm = cluster.vms().create(named("web-1")).await.unwrap();
    vm.wait_for(Phase::Running, soon()).await.unwrap();
    let (id, create) = (vm.id(), vm.operation().unwrap().id());
    // Dropped without a shutdown, as by a crash.
    drop((vm, cluster));

    let store = server.store("novacron").await;
    let other = world.cluster("another", store.clone()).await.unwrap_err();
    assert_eq!(other.kind(), ErrorKind::FailedPrecondition, "{other}");
    assert!(
        other.to_string().contains("\"prod\", not \"another\""),
        "{other}"
    );

    let cluster = world.cluster("prod", store.clone()).await.unwrap();
    cluster.nodes().wait_available(soon()).await.unwrap();
    let vm = cluster.vms().by_name("web-1").await.unwrap();
    assert_eq!(vm.id(), id);
    // The process may have gone before it saw the request's end; its successor ends it.
    cluster.operation(create).wait(soon()).await.unwrap();
    vm.stop().await.unwrap().wait(soon()).await.unwrap();

    let client = server.client().await;
    let expect = async |sql: &str, expected: &[&str]| {
        let rows = client
            .query(sql, &[])
            .await
            .unwrap_or_else(|e| panic!("{sql}: {e:?}"));
        let rows: Vec<Vec<Option<String>>> = rows
            .iter()
            .map(|row| (0..row.len()).map(|i| row.get(i)).collect())
            .collect();
        let expected: Vec<_> = expected.iter().map(|it| Some((*it).to_owned())).collect();
        assert_eq!(rows, [expected], "{sql}");
    };
    expect(
        "SELECT name, project, state, key FROM novacron.vms",
        &["web-1", "default", "off", &format!("vm/{id}")],
    )
    .await;
    expect(
        "SELECT node, state, key FROM novacron.runs",
        &["alpha", "stopped", &format!("run/alpha/{id}")],
    )
    .await;
    expect("SELECT project FROM novacron.volumes", &["default"]).await;
    expect("SELECT state FROM novacron.volume_status", &["available"]).await;
    expect("SELECT state FROM novacron.node_status", &["available"]).await;
    expect(
        "SELECT state FROM novacron.operations WHERE value #>> '{body,kind}' = 'create'",
        &["done"],
    )
    .await;
    // What the guide shows can be asked.
    let guide = include_str!("../../docs/guides/postgresql.md");
    let shown = guide
        .split("```sql")
        .map(|rest| rest.split("```").next().unwrap());
    let asked = shown.filter(|sql| sql.contains("SELECT ") && !sql.contains("GRANT"));
    assert_eq!(asked.clone().count(), 1);
    for sql in asked {
        client.batch_execute(sql).await.unwrap();
    }
    let nothing = client
        .query("SELECT key FROM novacron.others", &[])
        .await
        .unwrap();
    assert!(
        nothing.is_empty(),
        "every kind of record has its table: {nothing:?}"
    );
    cluster.shutdown(soon()).await.unwrap();
    store.close().await.unwrap();
    assert_eq!(
        store.revision().await.unwrap_err().kind(),
        ErrorKind::Unavailable
    );
}

#[tokio::test]
async fn two_clusters_share_a_database_under_two_schemas() {
    let server = Server::start(false, &[]);
    let (first, second) = (World::new(), World::new());
    let one = first
        .cluster("one", server.store("one").await)
        .await
        .unwrap();
    let two = second
        .cluster("two", server.store("two").await)
        .await
        .unwrap();
    one.nodes().wait_available(soon()).await.unwrap();
    two.nodes().wait_available(soon()).await.unwrap();
    let vm = one.vms().create(named("web-1")).await.unwrap();
    vm.wait_for(Phase::Running, soon()).await.unwrap();
    let missing = two.vms().by_name("web-1").await.unwrap_err();
    assert_eq!(missing.kind(), ErrorKind::NotFound);
    one.shutdown(soon()).await.unwrap();
    two.shutdown(soon()).await.unwrap();
}

/// Somebody changed records by SQL so that they are none any more: what needs one names it, and what does not goes on.
#[tokio::test]
async fn records_broken_by_hand_are_named() {
    let server = Server::start(false, &[]);
    let world = World::new();
    let cluster = world
        .cluster("prod", server.store("novacron").await)
        .await
        .unwrap();
    cluster.nodes().wait_available(soon()).await.unwrap();
    for name in ["web-1", "web-2"] {
        let vm = cluster.vms().create(named(name)).await.unwrap();
        vm.wait_for(Phase::Running, soon()).await.unwrap();
    }
    cluster.shutdown(soon()).await.unwrap();
    drop(cluster);

    server
        .sql(
            "UPDATE novacron.vms SET value = '{\"v\": 1, \"body\": {\"oops\": true}}' WHERE name = 'web-1';
             UPDATE novacron.names SET value = '[]' WHERE key LIKE '%/web-1'",
        )
        .await;
    let store = server.store("novacron").await;
    let cluster = world.cluster("prod", store).await.unwrap();
    let told = cluster.vms().by_name("web-1").await.unwrap_err();
    assert_eq!(told.kind(), ErrorKind::Corrupt, "{told}");
    assert!(told.report().contains("name/default/vm/web-1"), "{told}");
    let whole = cluster.vms().by_name("web-2").await.unwrap();
    whole.wait_for(Phase::Running, soon()).await.unwrap();
    cluster.shutdown(soon()).await.unwrap();
    drop((whole, cluster));

    server
        .sql("UPDATE novacron.cluster SET value = '7' WHERE key = 'cluster/self'")
        .await;
    let store = server.store("novacron").await;
    let told = world.cluster("prod", store).await.unwrap_err();
    assert_eq!(told.kind(), ErrorKind::Corrupt, "{told}");
    assert!(told.report().contains("cluster/self"), "{told}");
}
