//! What clients saw while the server died, stood still, and connections were cut is one history; and what a watch told
//! meanwhile is what was committed.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use novacron_core::conformance::store::Checked;
use novacron_core::store::{EtcdOptions, EtcdStore};

use super::shared::pass;
use super::support::etcd::{Etcd, Setup};
use super::support::history;
use super::support::proxy::Proxy;

/// How long a server may take to answer at first.
const PATIENCE: Duration = Duration::from_secs(60);

/// As [`history::under`], on two stores that give up soon.
async fn under<F: Future<Output = ()>>(
    endpoints: Vec<String>,
    timeout: Duration,
    calls: usize,
    fault: impl Fn() -> F,
) -> Checked {
    let mut options = EtcdOptions::new(endpoints);
    options.timeout = timeout;
    // The short time is for the calls under the fault; a busy machine may take longer to begin with.
    let connect = async || {
        loop {
            match EtcdStore::connect(options.clone()).await {
                Err(error) if error.is_retryable() => {}
                connected => return connected.unwrap(),
            }
        }
    };
    let (one, other) = tokio::time::timeout(PATIENCE, async { (connect().await, connect().await) })
        .await
        .expect("etcd answers");
    history::under([Arc::new(one), Arc::new(other)], calls, fault).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_is_killed_and_restarted_loses_nothing() {
    let etcd = Etcd::start();
    let endpoints = etcd.endpoints();
    let etcd = Mutex::new(etcd);
    under(endpoints, Duration::from_secs(3), 500, || async {
        pass(Duration::from_millis(300)).await;
        {
            let mut etcd = etcd.lock().unwrap();
            etcd.kill(0);
            etcd.restart(0);
        }
        // A member that is started again waits for more than a second before it leads.
        pass(Duration::from_millis(1500)).await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_stands_still_leaves_outcomes_unknown_and_settles_them() {
    let etcd = Etcd::start();
    let timeout = Duration::from_secs(1);
    let checked = under(etcd.endpoints(), timeout, 150, || async {
        pass(Duration::from_millis(100)).await;
        etcd.pause(0);
        pass(Duration::from_millis(1500)).await;
        etcd.resume(0);
    })
    .await;
    assert!(checked.unknown > 0, "{checked:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn connections_that_are_cut_anywhere_change_nothing() {
    let etcd = Etcd::start();
    let proxy = Proxy::to(etcd.port(0)).await;
    let endpoints = vec![proxy.endpoint()];
    under(endpoints, Duration::from_secs(2), 300, || async {
        proxy.cut_at_random();
        pass(Duration::from_millis(300)).await;
        proxy.hold_answers();
        pass(Duration::from_millis(20)).await;
        proxy.cut_once();
        pass(Duration::from_millis(20)).await;
        proxy.lose_answers();
        pass(Duration::from_millis(50)).await;
        proxy.release();
        pass(Duration::from_millis(50)).await;
    })
    .await;
    proxy.release();
}

/// One of three members is away at any time, the leader among them.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_leader_that_is_killed_again_and_again_loses_nothing() {
    let etcd = Etcd::start_with(3, &Setup::default());
    let endpoints = etcd.endpoints();
    let etcd = Mutex::new(etcd);
    under(endpoints, Duration::from_secs(6), 400, || async {
        let leader = {
            let mut etcd = etcd.lock().unwrap();
            let leader = etcd.leader();
            etcd.kill(leader);
            leader
        };
        pass(Duration::from_millis(1500)).await;
        etcd.lock().unwrap().restart(leader);
        pass(Duration::from_millis(300)).await;
    })
    .await;
}
