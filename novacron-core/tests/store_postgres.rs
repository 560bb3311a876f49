//! PostgresStore against the suite that every Store runs, on a real server.
#![allow(missing_docs, clippy::unwrap_used, reason = "tests")]

mod support {
    pub(crate) mod postgres;
    pub(crate) mod process;
}

use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use novacron_core::conformance::store::StoreFixture;
use novacron_core::store::{PostgresOptions, PostgresStore, Store};
use support::postgres::Server;

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
