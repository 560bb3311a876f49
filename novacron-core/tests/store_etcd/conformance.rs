//! The suite of every Store. Each test has a server of its own, because compaction is for the whole etcd.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use novacron_core::conformance::store::{self as suite, StoreFixture};
use novacron_core::store::Store;

use super::shared::pass;
use super::support::etcd::{Etcd, Setup};

struct Fixture {
    etcd: Mutex<Etcd>,
    /// Whether the servers are killed and started again when the store is reopened.
    killed: bool,
}

impl Fixture {
    fn new(members: usize, killed: bool) -> Self {
        let etcd = Mutex::new(Etcd::start_with(members, &Setup::default()));
        Self { etcd, killed }
    }
}

#[async_trait]
impl StoreFixture for Fixture {
    async fn open(&self) -> Arc<dyn Store> {
        let options = self.etcd.lock().unwrap().options();
        let store = novacron_core::store::EtcdStore::connect(options).await;
        Arc::new(store.unwrap())
    }

    async fn reopen(&self, store: Arc<dyn Store>) -> Arc<dyn Store> {
        drop(store);
        if self.killed {
            let mut etcd = self.etcd.lock().unwrap();
            etcd.kill(0);
            etcd.restart(0);
        }
        self.open().await
    }

    /// The one place where waiting for time is right: etcd's clock is the machine's. An hour is not waited for; what
    /// must outlast it is looked at instead: outcomes, which etcd keeps under leases.
    async fn advance(&self, by: Duration) {
        if by <= Duration::from_secs(60) {
            return pass(by).await;
        }
        let etcd = self.etcd.lock().unwrap();
        let outcomes = etcd.ctl_json(&["get", "--prefix", "/novacron/t/"]);
        for outcome in outcomes["kvs"].as_array().unwrap() {
            let lease = format!("{:x}", outcome["lease"].as_i64().unwrap());
            let left = etcd.ctl_json(&["lease", "timetolive", &lease]);
            assert!(left["ttl"].as_u64().unwrap() > by.as_secs(), "{left}");
        }
    }
}

mod one_member {
    novacron_core::store_conformance!(super::Fixture::new(1, false));
}

mod one_member_that_is_killed {
    use super::{Fixture, suite};

    #[tokio::test]
    async fn reopened_store_has_every_commit() {
        suite::reopened_store_has_every_commit(&Fixture::new(1, true)).await;
    }

    #[tokio::test]
    async fn reopened_store_knows_outcomes() {
        suite::reopened_store_knows_outcomes(&Fixture::new(1, true)).await;
    }

    #[tokio::test]
    async fn reopened_store_keeps_leases_and_tokens() {
        suite::reopened_store_keeps_leases_and_tokens(&Fixture::new(1, true)).await;
    }

    #[tokio::test]
    async fn reopened_store_keeps_history_and_compaction() {
        suite::reopened_store_keeps_history_and_compaction(&Fixture::new(1, true)).await;
    }
}

/// What is most about concurrency, on three members.
mod three_members {
    use super::{Fixture, suite};

    #[tokio::test]
    async fn concurrent_increments_lose_nothing() {
        suite::concurrent_increments_lose_nothing(&Fixture::new(3, false)).await;
    }

    #[tokio::test]
    async fn watch_after_a_list_misses_nothing() {
        suite::watch_after_a_list_misses_nothing(&Fixture::new(3, false)).await;
    }

    #[tokio::test]
    async fn outcome_of_a_transaction_never_seen_is_final() {
        suite::outcome_of_a_transaction_never_seen_is_final(&Fixture::new(3, false)).await;
    }

    #[tokio::test]
    async fn lease_wanted_by_many_goes_to_one() {
        suite::lease_wanted_by_many_goes_to_one(&Fixture::new(3, false)).await;
    }
}
