//! PostgresStore against the suite that every Store runs, on a real server.
#![allow(missing_docs, clippy::unwrap_used, reason = "tests")]

mod support {
    pub(crate) mod postgres;
    pub(crate) mod process;
}

use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use futures::StreamExt;
use novacron_core::conformance::store::StoreFixture;
use novacron_core::store::{
    Commit, Key, ListOptions, Op, PostgresOptions, PostgresStore, Store, TxnId, WatchEvent,
};
use support::postgres::Server;
use tokio::time::timeout;
use uuid::Uuid;

const SOON: Duration = Duration::from_secs(30);

struct Fixture {
    options: PostgresOptions,
    present: Mutex<Option<PostgresStore>>,
}

impl Fixture {
    fn new(change: impl FnOnce(&mut PostgresOptions)) -> Self {
        let mut options = Server::shared().options(&support::postgres::schema());
        change(&mut options);
        Self {
            options,
            present: Mutex::default(),
        }
    }
}

#[async_trait]
impl StoreFixture for Fixture {
    async fn open(&self) -> Arc<dyn Store> {
        let store = PostgresStore::connect(self.options.clone()).await.unwrap();
        *self.present.lock().unwrap() = Some(store.clone());
        Arc::new(store)
    }

    async fn reopen(&self, store: Arc<dyn Store>) -> Arc<dyn Store> {
        drop(store);
        let present = self.present.lock().unwrap().take().unwrap();
        present.close().await.unwrap();
        self.open().await
    }

    async fn advance(&self, by: Duration) {
        Server::shared().pass(&self.options.schema, by).await;
    }
}

mod postgres_store {
    novacron_core::store_conformance!(super::Fixture::new(|_| ()));
}

/// With no memory for recent commits, every watch reads the database; with one connection, calls wait for each other.
mod postgres_store_with_least_memory {
    novacron_core::store_conformance!(super::Fixture::new(|options| {
        options.watch_bytes = 0;
        options.connections = 1;
    }));
}

/// A list at a revision that has passed, in pages, as a dump and a start read it: the server reads what a page holds, not all
/// that follows it.
#[tokio::test]
async fn pages_cost_no_more_than_their_rows() {
    const ROWS: u32 = 6_000;
    let schema = support::postgres::schema();
    let store = Server::shared().store(&schema).await;
    for (n, chunk) in (0..ROWS).collect::<Vec<_>>().chunks(100).enumerate() {
        let mut commit = Commit::new(TxnId(Uuid::from_u128(n as u128 + 1)));
        for i in chunk {
            let kind = ["vm", "run", "event"][*i as usize % 3];
            let key = Key::new(format!("{kind}/{i:05}")).unwrap();
            commit.push(Op::Put(key, "{}".into()));
        }
        store.commit(commit).await.unwrap();
    }
    let at = store.revision().await.unwrap();
    store.close().await.unwrap();
    // As autovacuum does within a minute.
    Server::shared().sql("ANALYZE").await;
    let before = rows_read(&schema).await;

    let store = Server::shared().store(&schema).await;
    let (mut after, mut found) = (None, 0);
    loop {
        let options = ListOptions {
            after,
            limit: 100,
            at: Some(at),
        };
        let page = store.list("", options).await.unwrap();
        found += page.records.len();
        after = page.records.last().map(|record| record.key.clone());
        if !page.more {
            break;
        }
    }
    // The store's own records are among them.
    assert!(found >= ROWS as usize, "{found}");
    store.close().await.unwrap();
    let read = rows_read(&schema).await - before;
    assert!(read >= i64::from(ROWS), "not all was counted: {read}");
    assert!(
        read < i64::from(ROWS) * 5,
        "{read} rows were read for {found}"
    );
}

/// How many rows of the schema's tables the server has read, once nobody else is connected.
async fn rows_read(schema: &str) -> i64 {
    let client = Server::shared().client().await;
    let others = "SELECT count(*) FROM pg_stat_activity
                  WHERE backend_type = 'client backend' AND pid <> pg_backend_pid()";
    while client
        .query_one(others, &[])
        .await
        .unwrap()
        .get::<_, i64>(0)
        > 0
    {
        tokio::task::yield_now().await;
    }
    let read = "SELECT sum(coalesce(idx_tup_fetch, 0) + seq_tup_read)::bigint
                FROM pg_stat_user_tables WHERE schemaname = $1";
    client.query_one(read, &[&schema]).await.unwrap().get(0)
}

/// A process that has yet to hear of the latest commits when another compacts up to them: its watches from there on go on.
#[tokio::test]
async fn a_watch_outlives_a_compaction_that_its_process_is_behind() {
    let schema = support::postgres::schema();
    let watching = Server::shared().store(&schema).await;
    let writing = Server::shared().store(&schema).await;
    for n in 1..=200 {
        let mut commit = Commit::new(TxnId(Uuid::from_u128(n)));
        commit.push(Op::Put(Key::new("vm/a").unwrap(), "{}".into()));
        let at = writing.commit(commit).await.unwrap();
        writing.compact(at).await.unwrap();
        let mut watch = watching.watch(vec!["vm/".to_owned()], at).await.unwrap();
        loop {
            let event = timeout(SOON, watch.next()).await.unwrap().unwrap();
            match event.unwrap() {
                WatchEvent::Bookmark(seen) if seen >= at => break,
                WatchEvent::Bookmark(_) => {}
                WatchEvent::Commit { .. } => panic!("told of what was before"),
            }
        }
    }
}
