//! The suite while connections are cut at any moment, in the middle of commits, and the server is stopped for a while, or
//! killed and started again. Every call is sent again until it is answered, so the suite sees none of it. Leases are left
//! out: they depend on time.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use novacron_core::conformance::store::{self as suite, StoreFixture};
use novacron_core::store::{EtcdOptions, EtcdStore, Store};

use super::shared::pass;
use super::support::etcd::Etcd;
use super::support::proxy::Proxy;

struct Fixture {
    etcd: Arc<Mutex<Etcd>>,
    proxy: Arc<Proxy>,
    trouble: tokio::task::AbortHandle,
}

impl Fixture {
    async fn new() -> Self {
        let etcd = Etcd::start();
        let proxy = Arc::new(Proxy::to(etcd.port(0)).await);
        let etcd = Arc::new(Mutex::new(etcd));
        let trouble = tokio::spawn(trouble(Arc::clone(&etcd), Arc::clone(&proxy)));
        let trouble = trouble.abort_handle();
        Self {
            etcd,
            proxy,
            trouble,
        }
    }
}

impl Drop for Fixture {
    fn drop(&mut self) {
        self.trouble.abort();
        // A server that is stopped would not be a child to wait for.
        let etcd = self.etcd.lock().unwrap_or_else(PoisonError::into_inner);
        etcd.resume(0);
    }
}

/// At no fixed beat, so that over the tests every moment is met.
async fn trouble(etcd: Arc<Mutex<Etcd>>, proxy: Arc<Proxy>) {
    for round in 1_u64.. {
        pass(Duration::from_millis(60 + round * 37 % 240)).await;
        match round % 16 {
            3 => {
                etcd.lock().unwrap().pause(0);
                pass(Duration::from_millis(150)).await;
                etcd.lock().unwrap().resume(0);
            }
            11 => {
                {
                    let mut etcd = etcd.lock().unwrap();
                    etcd.kill(0);
                    etcd.restart(0);
                }
                // A member that is started again waits for more than a second before it leads.
                pass(Duration::from_millis(2_500)).await;
            }
            // Requests arrive and their answers do not.
            1 | 5 | 9 => {
                proxy.hold_answers();
                pass(Duration::from_millis(10)).await;
                proxy.cut_once();
            }
            _ => proxy.cut_once(),
        }
    }
}

#[async_trait]
impl StoreFixture for Fixture {
    async fn open(&self) -> Arc<dyn Store> {
        let mut options = EtcdOptions::new([self.proxy.endpoint()]);
        // Attempts are short, as a third party's would be who expects trouble.
        options.timeout = Duration::from_secs(12);
        Arc::new(EtcdStore::connect(options).await.unwrap())
    }

    async fn reopen(&self, store: Arc<dyn Store>) -> Arc<dyn Store> {
        drop(store);
        self.open().await
    }

    async fn advance(&self, _: Duration) {
        unreachable!("leases are left out");
    }
}

macro_rules! disturbed {
    ($($behaviour:ident)*) => {$(
        #[tokio::test]
        async fn $behaviour() {
            suite::$behaviour(&Fixture::new().await).await;
        }
    )*};
}

disturbed! {
    get_sees_every_commit_that_returned
    list_sees_every_commit_that_returned
    list_pages_share_one_revision_while_others_write
    list_at_an_old_revision_shows_it
    commit_revisions_grow
    commit_with_a_failed_precondition_applies_nothing
    limit_on_the_size_of_a_commit
    conflicting_commits_have_one_winner
    concurrent_increments_lose_nothing
    crossed_preconditions_let_one_through
    same_transaction_twice_is_applied_once
    same_transaction_at_the_same_time_is_applied_once
    outcome_of_a_transaction_never_seen_is_final
    outcome_after_a_conflict_is_not_committed
    watch_from_zero_delivers_everything
    watch_delivers_what_is_committed_later
    watch_keeps_the_order_of_each_key
    watch_resumes_without_loss
    watch_after_a_list_misses_nothing
    watch_by_a_slow_reader_loses_nothing_in_silence
    beats_are_overwritten_and_listed_by_prefix
    reopened_store_has_every_commit
    reopened_store_knows_outcomes
}
