//! One server that is killed, stopped, cut off in the middle of a commit, compacted by others.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use novacron_core::ErrorKind;
use novacron_core::store::{
    EtcdOptions, EtcdStore, LeaseAnswer, ListOptions, Revision, Store, TxnOutcome,
};

use super::shared::{create, key, pass, put, told, value};
use super::support::etcd::{Etcd, Setup};
use super::support::proxy::Proxy;

/// A store that gives up soon.
async fn hasty(endpoints: Vec<String>, timeout: Duration) -> EtcdStore {
    let mut options = EtcdOptions::new(endpoints);
    options.timeout = timeout;
    EtcdStore::connect(options).await.unwrap()
}

async fn outcome(store: &EtcdStore, txn: novacron_core::store::TxnId) -> TxnOutcome {
    store.outcome(txn).await.unwrap()
}

fn all() -> ListOptions {
    ListOptions {
        limit: usize::MAX,
        ..ListOptions::default()
    }
}

/// Writers go on while the server is killed and started again, three times. What was acknowledged is there, what was
/// not known is told, and a watch that was open all the time has every commit once.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_acknowledged_is_lost_when_the_server_is_killed() {
    let mut etcd = Etcd::start();
    let store = hasty(vec![etcd.endpoint(0)], Duration::from_secs(3)).await;
    let mut watch = store
        .watch(vec!["vm/".to_owned()], Revision(0))
        .await
        .unwrap();
    let stop = Arc::new(tokio::sync::watch::Sender::new(false));
    let writers: Vec<_> = (0..4)
        .map(|w| {
            let (store, stop) = (store.clone(), stop.subscribe());
            tokio::spawn(async move {
                let mut written = Vec::new();
                let mut unknown = 0;
                for i in 0.. {
                    if *stop.borrow() {
                        break;
                    }
                    let name = format!("vm/{w}-{i}");
                    let commit = create(&name, i);
                    let txn = commit.txn;
                    let revision = match store.commit(commit).await {
                        Ok(revision) => Some(revision),
                        Err(error) if error.kind() == ErrorKind::OutcomeUnknown => {
                            unknown += 1;
                            loop {
                                match store.outcome(txn).await {
                                    Ok(TxnOutcome::Committed(revision)) => break Some(revision),
                                    Ok(TxnOutcome::NotCommitted) => break None,
                                    Err(error) => assert_eq!(error.kind(), ErrorKind::Unavailable),
                                }
                            }
                        }
                        Err(error) => {
                            assert_eq!(error.kind(), ErrorKind::Unavailable, "{error}");
                            None
                        }
                    };
                    written.push((name, revision));
                }
                (written, unknown)
            })
        })
        .collect();
    for _ in 0..3 {
        pass(Duration::from_millis(700)).await;
        etcd.kill(0);
        pass(Duration::from_millis(300)).await;
        etcd.restart(0);
    }
    pass(Duration::from_millis(500)).await;
    stop.send_replace(true);
    let mut expected = BTreeMap::new();
    for writer in writers {
        let (written, unknown) = writer.await.unwrap();
        println!(
            "{} commits, {unknown} of them unknown at first",
            written.len()
        );
        for (name, revision) in written {
            let found = store.get(&key(&name)).await.unwrap().map(|r| r.version);
            assert_eq!(found, revision, "{name}");
            expected.extend(revision.map(|revision| (revision, vec![name])));
        }
    }
    let tip = store.revision().await.unwrap();
    let told = told(&mut watch, tip).await;
    assert_eq!(told, expected.into_iter().collect::<Vec<_>>());
}

/// The commit arrives and the connection is cut before the answer: it is sent again, and was applied once.
#[tokio::test]
async fn a_commit_whose_answer_is_cut_off_is_applied_once() {
    let etcd = Etcd::start();
    let direct = etcd.connect().await;
    let proxy = Proxy::to(etcd.port(0)).await;
    let store = hasty(vec![proxy.endpoint()], Duration::from_secs(6)).await;
    store.commit(put("vm/a", 0)).await.unwrap();
    for round in 0..10 {
        let name = format!("vm/{round}");
        proxy.hold_answers();
        let commit = create(&name, round);
        let sent = store.clone();
        let committing = tokio::spawn(async move { sent.commit(commit).await });
        let applied = loop {
            if let Some(record) = direct.get(&key(&name)).await.unwrap() {
                break record.version;
            }
        };
        proxy.cut_once();
        assert_eq!(committing.await.unwrap().unwrap(), applied);
    }
    let page = store.list("vm/", all()).await.unwrap();
    assert_eq!(page.records.len(), 11);
}

/// The commit never arrives because the connection is cut first: it is sent again.
#[tokio::test]
async fn a_commit_that_is_cut_off_on_its_way_is_sent_again() {
    let etcd = Etcd::start();
    let proxy = Proxy::to(etcd.port(0)).await;
    let store = hasty(vec![proxy.endpoint()], Duration::from_secs(6)).await;
    store.commit(put("vm/a", 0)).await.unwrap();
    proxy.hold_requests();
    let sent = store.clone();
    let committing = tokio::spawn(async move { sent.commit(put("vm/a", 1)).await });
    pass(Duration::from_millis(100)).await;
    proxy.cut_once();
    let revision = committing.await.unwrap().unwrap();
    assert_eq!(
        store.get(&key("vm/a")).await.unwrap().unwrap().version,
        revision
    );
}

/// The connection is cut in the middle of a commit and does not come back: the outcome is not known, is told as such,
/// and is found out when the server can be reached again, whether the commit arrived or not.
#[tokio::test]
async fn an_unknown_outcome_is_told_and_found_out_later() {
    let etcd = Etcd::start();
    let direct = etcd.connect().await;
    let proxy = Proxy::to(etcd.port(0)).await;
    let store = hasty(vec![proxy.endpoint()], Duration::from_secs(2)).await;
    store.commit(put("vm/start", 0)).await.unwrap();

    proxy.hold_answers();
    let commit = create("vm/arrived", 1);
    let txn = commit.txn;
    let sent = store.clone();
    let committing = tokio::spawn(async move { sent.commit(commit).await });
    while direct.get(&key("vm/arrived")).await.unwrap().is_none() {}
    proxy.cut();
    let error = committing.await.unwrap().unwrap_err();
    assert_eq!(error.kind(), ErrorKind::OutcomeUnknown, "{error}");
    assert!(error.to_string().contains(&txn.0.to_string()), "{error}");
    assert_eq!(
        store.outcome(txn).await.unwrap_err().kind(),
        ErrorKind::Unavailable
    );
    proxy.release();
    let version = store
        .get(&key("vm/arrived"))
        .await
        .unwrap()
        .unwrap()
        .version;
    assert_eq!(outcome(&store, txn).await, TxnOutcome::Committed(version));

    proxy.hold_requests();
    let commit = create("vm/lost", 1);
    let txn = commit.txn;
    let error = store.commit(commit.clone()).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::OutcomeUnknown, "{error}");
    proxy.cut_once();
    assert_eq!(outcome(&store, txn).await, TxnOutcome::NotCommitted);
    assert_eq!(
        store.commit(commit).await.unwrap_err().kind(),
        ErrorKind::Cancelled
    );
    assert_eq!(store.get(&key("vm/lost")).await.unwrap(), None);
}

/// An attempt is held up on its way to one member; the next one, over another way, meets a conflict. When that is told,
/// the first one is ruled out, though its precondition holds again when it arrives.
#[tokio::test]
async fn a_conflict_rules_out_the_attempt_that_is_still_on_its_way() {
    let etcd = Etcd::start();
    let direct = etcd.connect().await;
    let proxy = Proxy::to(etcd.port(0)).await;
    let both = vec![proxy.endpoint(), etcd.endpoint(0)];
    let store = hasty(both, Duration::from_secs(3)).await;
    store.commit(put("vm/start", 0)).await.unwrap();

    proxy.hold_requests();
    let commit = create("vm/a", "late");
    let txn = commit.txn;
    let sent = store.clone();
    let committing = tokio::spawn(async move { sent.commit(commit).await });
    pass(Duration::from_millis(200)).await;
    direct.commit(put("vm/a", "other")).await.unwrap();
    let error = committing.await.unwrap().unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Conflict, "{error}");

    let mut gone = put("vm/b", 1);
    gone.push(novacron_core::store::Op::Delete(key("vm/a")));
    direct.commit(gone).await.unwrap();
    proxy.release();
    pass(Duration::from_millis(500)).await;
    assert_eq!(direct.get(&key("vm/a")).await.unwrap(), None);
    assert_eq!(outcome(&direct, txn).await, TxnOutcome::NotCommitted);
}

/// A server that is stopped answers nothing: every call ends in time, a commit as unknown; afterwards all is well.
#[tokio::test]
async fn a_stopped_server_ends_every_call_in_time() {
    let etcd = Etcd::start();
    let timeout = Duration::from_secs(2);
    let store = hasty(vec![etcd.endpoint(0)], timeout).await;
    let first = store.commit(put("vm/a", 0)).await.unwrap();
    let mut watch = store.watch(vec![String::new()], first).await.unwrap();
    etcd.pause(0);
    let commit = create("vm/b", 1);
    let txn = commit.txn;
    let began = Instant::now();
    let lost = store.commit(commit).await.unwrap_err();
    assert_eq!(lost.kind(), ErrorKind::OutcomeUnknown, "{lost}");
    let errors = [
        store.get(&key("vm/a")).await.unwrap_err(),
        store.list("", all()).await.unwrap_err(),
        store.revision().await.unwrap_err(),
        store.outcome(txn).await.unwrap_err(),
        store
            .lease_acquire("leader", "a", timeout)
            .await
            .unwrap_err(),
        store.put_beat(&key("node/a"), None).await.unwrap_err(),
        store.compact(first).await.unwrap_err(),
    ];
    for error in &errors {
        assert_eq!(error.kind(), ErrorKind::Unavailable, "{error}");
        assert!(error.is_retryable(), "{error}");
    }
    let taken = began.elapsed();
    assert!(taken < timeout * 9, "eight calls of two seconds: {taken:?}");
    etcd.resume(0);
    let told_later = match outcome(&store, txn).await {
        TxnOutcome::Committed(revision) => Some(revision),
        TxnOutcome::NotCommitted => None,
    };
    let found = store.get(&key("vm/b")).await.unwrap().map(|r| r.version);
    assert_eq!(found, told_later);
    let last = store.commit(put("vm/c", 2)).await.unwrap();
    let told = told(&mut watch, last).await;
    assert_eq!(told.len(), 1 + usize::from(found.is_some()));
}

/// An idle store is behind what others let etcd compact; nobody notices.
#[tokio::test]
async fn an_etcd_that_others_compact_hurts_no_idle_store() {
    let mut etcd = Etcd::start();
    let store = etcd.connect().await;
    let mut empty = store.watch(vec![String::new()], Revision(0)).await.unwrap();
    let compact = |etcd: &Etcd| {
        for i in 0..5 {
            etcd.ctl(&["put", "other", &i.to_string()]);
        }
        let status = etcd.ctl_json(&["endpoint", "status"]);
        let revision = status[0]["Status"]["header"]["revision"].to_string();
        etcd.ctl(&["compact", &revision]);
    };
    compact(&etcd);
    let mut fresh = store.watch(vec![String::new()], Revision(0)).await.unwrap();
    assert!(told(&mut fresh, Revision(0)).await.is_empty());
    assert_eq!(store.list("", all()).await.unwrap().revision, Revision(0));

    let tip = store.commit(put("vm/a", 1)).await.unwrap();
    assert_eq!(told(&mut empty, tip).await.len(), 1);
    compact(&etcd);
    // The watch of etcd must be opened again behind what is compacted.
    etcd.kill(0);
    etcd.restart(0);
    let at = ListOptions {
        at: Some(tip),
        ..all()
    };
    let page = store.list("vm/", at).await.unwrap();
    assert_eq!((page.records.len(), page.revision), (1, tip));
    let mut idle = store.watch(vec!["vm/".to_owned()], tip).await.unwrap();
    assert!(told(&mut idle, tip).await.is_empty());
    let next = store.commit(put("vm/a", 2)).await.unwrap();
    assert_eq!(
        told(&mut idle, next).await,
        [(next, vec!["vm/a".to_owned()])]
    );
    assert_eq!(told(&mut empty, next).await.len(), 1);
    // A store that is opened now has its history from etcd only.
    let opened = etcd.connect().await;
    let refused = match opened.watch(vec![String::new()], Revision(0)).await {
        Err(error) => error,
        Ok(mut watch) => futures::StreamExt::next(&mut watch)
            .await
            .unwrap()
            .unwrap_err(),
    };
    assert_eq!(refused.kind(), ErrorKind::Compacted, "{refused}");
}

/// Commits are made and compacted away while the store is cut off: it says so to whoever missed them, and goes on.
#[tokio::test]
async fn a_watch_that_missed_compacted_commits_is_told_to_list_again() {
    let etcd = Etcd::start();
    let direct = etcd.connect().await;
    let proxy = Proxy::to(etcd.port(0)).await;
    let store = hasty(vec![proxy.endpoint()], Duration::from_secs(3)).await;
    let first = store.commit(put("vm/a", 0)).await.unwrap();
    let mut watch = store.watch(vec![String::new()], first).await.unwrap();
    assert!(told(&mut watch, first).await.is_empty());
    proxy.cut();
    for i in 0..5 {
        direct.commit(put("vm/a", i)).await.unwrap();
    }
    let tip = direct.revision().await.unwrap();
    direct.compact(tip).await.unwrap();
    proxy.release();
    let next = futures::StreamExt::next(&mut watch);
    let error = tokio::time::timeout(Duration::from_secs(20), next)
        .await
        .unwrap();
    assert_eq!(error.unwrap().unwrap_err().kind(), ErrorKind::Compacted);
    let page = store.list("", all()).await.unwrap();
    let mut watch = store
        .watch(vec![String::new()], page.revision)
        .await
        .unwrap();
    let next = direct.commit(put("vm/b", 1)).await.unwrap();
    assert_eq!(
        told(&mut watch, next).await,
        [(next, vec!["vm/b".to_owned()])]
    );
}

/// The etcd lease of the outcomes was revoked by somebody: commits go on under a new one.
#[tokio::test]
async fn a_revoked_lease_of_outcomes_is_replaced() {
    let etcd = Etcd::start();
    let store = etcd.connect().await;
    store.commit(put("vm/a", 0)).await.unwrap();
    let outcomes = etcd.ctl_json(&["get", "--prefix", "/novacron/t/"]);
    let lease = outcomes["kvs"][0]["lease"].as_i64().unwrap();
    etcd.ctl(&["lease", "revoke", &format!("{lease:x}")]);
    let commit = put("vm/a", 1);
    let txn = commit.txn;
    let revision = store.commit(commit).await.unwrap();
    assert_eq!(outcome(&store, txn).await, TxnOutcome::Committed(revision));
}

/// A lease outlives the server's death, and its time starts anew; the holder's token stays good.
#[tokio::test]
async fn a_lease_outlives_the_death_of_the_server() {
    let mut etcd = Etcd::start();
    let store = etcd.connect().await;
    let ttl = Duration::from_millis(4_500);
    let LeaseAnswer::Granted(lease) = store.lease_acquire("leader", "a", ttl).await.unwrap() else {
        panic!("a free lease is granted")
    };
    assert_eq!(lease.ttl, ttl, "etcd counts five seconds, the holder less");
    etcd.kill(0);
    etcd.restart(0);
    store.lease_renew(&lease).await.unwrap();
    let LeaseAnswer::HeldBy { holder, remaining } =
        store.lease_acquire("leader", "b", ttl).await.unwrap()
    else {
        panic!("it is held")
    };
    assert_eq!(holder, "a");
    assert!(remaining <= Duration::from_secs(5), "{remaining:?}");
    let longer = store.lease_acquire("leader", "a", ttl * 2).await.unwrap();
    let LeaseAnswer::Granted(longer) = longer else {
        panic!("its own")
    };
    assert_eq!((longer.token, longer.ttl), (lease.token, ttl * 2));
    pass(Duration::from_secs(6)).await;
    store.lease_renew(&longer).await.unwrap();
}

/// etcd's quota is used up: commits are refused, reads go on, and when room was made all is as before.
#[tokio::test]
async fn a_full_server_says_so_and_recovers() {
    let quota = (4 << 20).to_string();
    let args = vec!["--quota-backend-bytes".to_owned(), quota];
    let etcd = Etcd::start_with(1, &Setup { args, tls: false });
    let store = etcd.connect().await;
    let filler = "x".repeat(200 * 1024);
    let error = loop {
        if let Err(error) = store.commit(put("vm/a", &filler)).await {
            break error;
        }
    };
    assert_eq!(error.kind(), ErrorKind::Exhausted, "{error}");
    assert!(
        error.message().contains("quota") && error.message().contains("alarm disarm"),
        "{error}"
    );
    assert!(!error.is_retryable());
    let record = store.get(&key("vm/a")).await.unwrap().unwrap();
    assert_eq!(record.value, value(&filler));

    store
        .compact(store.revision().await.unwrap())
        .await
        .unwrap();
    etcd.ctl(&["defrag"]);
    etcd.ctl(&["alarm", "disarm"]);
    store.commit(put("vm/a", 1)).await.unwrap();
}
