//! Every Store of this crate against the one suite.
#![allow(missing_docs, clippy::unwrap_used, reason = "tests")]

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use novacron_core::conformance::ManualClock;
use novacron_core::conformance::store::StoreFixture;
use novacron_core::store::{MemoryStore, Store};

mod memory_store {
    use super::*;

    struct Fixture {
        clock: Arc<ManualClock>,
        data: MemoryStore,
    }

    impl Fixture {
        fn new() -> Self {
            let clock = Arc::new(ManualClock::default());
            let data = MemoryStore::new(Arc::<ManualClock>::clone(&clock));
            Self { clock, data }
        }
    }

    #[async_trait]
    impl StoreFixture for Fixture {
        async fn open(&self) -> Arc<dyn Store> {
            Arc::new(self.data.clone())
        }

        async fn reopen(&self, store: Arc<dyn Store>) -> Arc<dyn Store> {
            drop(store);
            self.open().await
        }

        async fn advance(&self, by: Duration) {
            self.clock.advance(by);
        }
    }

    novacron_core::store_conformance!(Fixture::new());
}

#[cfg(feature = "sqlite")]
mod sqlite_fixture {
    use std::sync::Mutex;

    use novacron_core::store::{SqliteOptions, SqliteStore};

    use super::*;

    pub(crate) struct Fixture {
        clock: Arc<ManualClock>,
        folder: tempfile::TempDir,
        options: SqliteOptions,
        present: Mutex<Option<SqliteStore>>,
    }

    impl Fixture {
        pub(crate) fn new(change: impl FnOnce(&mut SqliteOptions)) -> Self {
            let clock = Arc::new(ManualClock::default());
            let mut options = SqliteOptions {
                clock: Arc::<ManualClock>::clone(&clock),
                ..SqliteOptions::default()
            };
            change(&mut options);
            Self {
                clock,
                folder: tempfile::tempdir().unwrap(),
                options,
                present: Mutex::default(),
            }
        }
    }

    #[async_trait]
    impl StoreFixture for Fixture {
        async fn open(&self) -> Arc<dyn Store> {
            let path = self.folder.path().join("novacron.db");
            let store = SqliteStore::open_with(path, self.options.clone())
                .await
                .unwrap();
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
            self.clock.advance(by);
        }
    }
}

#[cfg(feature = "sqlite")]
mod sqlite_store {
    novacron_core::store_conformance!(super::sqlite_fixture::Fixture::new(|_| ()));
}

/// With no memory for recent commits, every watch reads the file; with one reader, reads wait for each other.
#[cfg(feature = "sqlite")]
mod sqlite_store_with_least_memory {
    novacron_core::store_conformance!(super::sqlite_fixture::Fixture::new(|options| {
        options.watch_bytes = 0;
        options.readers = 1;
    }));
}
