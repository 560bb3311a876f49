//! Three servers, of which one is lost: the leader, the one that is asked, any; and two.

use std::time::{Duration, Instant};

use novacron_core::ErrorKind;
use novacron_core::store::{EtcdStore, LeaseAnswer, Revision, Store};

use super::shared::{key, pass, put, told};
use super::support::etcd::{Etcd, Setup};

async fn three() -> (Etcd, EtcdStore) {
    let etcd = Etcd::start_with(3, &Setup::default());
    let mut options = etcd.options();
    options.timeout = Duration::from_secs(15);
    let store = EtcdStore::connect(options).await.unwrap();
    store.commit(put("vm/start", 0)).await.unwrap();
    (etcd, store)
}

/// Commits one after another; each must succeed. Returns the longest time that one took.
async fn commits(store: &EtcdStore, name: &str, count: usize) -> (Revision, Duration) {
    let (mut last, mut longest) = (Revision(0), Duration::ZERO);
    for i in 0..count {
        let began = Instant::now();
        last = store.commit(put(name, i)).await.unwrap();
        longest = longest.max(began.elapsed());
    }
    (last, longest)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_loss_of_the_leader_is_survived() {
    let (mut etcd, store) = three().await;
    let start = store.revision().await.unwrap();
    let mut watch = store.watch(vec!["vm/".to_owned()], start).await.unwrap();
    let ttl = Duration::from_secs(10);
    let LeaseAnswer::Granted(lease) = store.lease_acquire("leader", "a", ttl).await.unwrap() else {
        panic!("a free lease is granted")
    };
    let leader = etcd.leader();
    let during = store.clone();
    let writing = tokio::spawn(async move { commits(&during, "vm/a", 300).await });
    pass(Duration::from_millis(50)).await;
    etcd.kill(leader);
    let (tip, longest) = writing.await.unwrap();
    println!("the leader was killed: the longest commit took {longest:?}");
    assert!(longest < Duration::from_secs(12), "{longest:?}");
    assert_eq!(told(&mut watch, tip).await.len(), 300);
    store.lease_renew(&lease).await.unwrap();
    etcd.restart(leader);
    let (tip, _) = commits(&store, "vm/b", 20).await;
    assert_eq!(told(&mut watch, tip).await.len(), 20);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_loss_of_any_one_member_is_survived() {
    let (mut etcd, store) = three().await;
    let mut watch = store
        .watch(vec!["vm/".to_owned()], store.revision().await.unwrap())
        .await
        .unwrap();
    for lost in 0..3 {
        etcd.kill(lost);
        let (tip, longest) = commits(&store, "vm/a", 50).await;
        println!("member {lost} was killed: the longest commit took {longest:?}");
        assert_eq!(told(&mut watch, tip).await.len(), 50);
        etcd.restart(lost);
        etcd.leader();
    }
}

/// A member that is stopped keeps its connections and answers nothing: another one is asked, and watched.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stopped_member_is_left() {
    let (etcd, store) = three().await;
    let mut watch = store
        .watch(vec!["vm/".to_owned()], store.revision().await.unwrap())
        .await
        .unwrap();
    for stopped in [0, etcd.leader()] {
        etcd.pause(stopped);
        let (tip, longest) = commits(&store, "vm/a", 20).await;
        println!("member {stopped} was stopped: the longest commit took {longest:?}");
        assert_eq!(told(&mut watch, tip).await.len(), 20);
        etcd.resume(stopped);
        etcd.leader();
    }
}

/// Without a majority nothing can be decided: calls end in time, and when the majority is back all goes on.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_a_majority_calls_end_in_time() {
    let (mut etcd, store) = three().await;
    let mut hasty = etcd.options();
    hasty.timeout = Duration::from_secs(3);
    let hasty = EtcdStore::connect(hasty).await.unwrap();
    let start = store.revision().await.unwrap();
    let mut watch = store.watch(vec!["vm/".to_owned()], start).await.unwrap();
    etcd.kill(0);
    etcd.kill(1);
    pass(Duration::from_secs(2)).await;
    let began = Instant::now();
    let commit = put("vm/a", 1);
    let txn = commit.txn;
    let error = hasty.commit(commit).await.unwrap_err();
    let possible = [ErrorKind::Unavailable, ErrorKind::OutcomeUnknown];
    assert!(possible.contains(&error.kind()), "{error}");
    let read = hasty.get(&key("vm/start")).await.unwrap_err();
    assert_eq!(read.kind(), ErrorKind::Unavailable, "{read}");
    assert!(
        began.elapsed() < Duration::from_secs(8),
        "{:?}",
        began.elapsed()
    );
    etcd.restart(0);
    etcd.restart(1);
    etcd.leader();
    let made = matches!(
        store.outcome(txn).await.unwrap(),
        novacron_core::store::TxnOutcome::Committed(_)
    );
    assert_eq!(store.get(&key("vm/a")).await.unwrap().is_some(), made);
    let (tip, _) = commits(&store, "vm/b", 10).await;
    assert_eq!(told(&mut watch, tip).await.len(), 10 + usize::from(made));
}
