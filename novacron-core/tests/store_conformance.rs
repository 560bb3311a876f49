//! Every Store of this crate against the one suite.
#![allow(missing_docs)]

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
