//! PostgresStore while its server dies, stands still, fails over, and its connections are cut: what clients saw is
//! checked as one history, and what watches told against what was committed.
#![allow(
    missing_docs,
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "tests"
)]
#![allow(clippy::disallowed_methods, reason = "faults come at some time")]

mod support {
    pub(crate) mod history;
    pub(crate) mod postgres;
    pub(crate) mod process;
    pub(crate) mod proxy;
}

use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt as _;
use novacron_core::ErrorKind;
use novacron_core::conformance::store::Checked;
use novacron_core::store::{
    Commit, Key, Op, PostgresOptions, PostgresStore, Revision, Store, TxnId, TxnOutcome, WatchEvent,
};
use secrecy::SecretString;
use support::history;
use support::postgres::{PASSWORD, Server};
use support::proxy::Proxy;
use tokio::sync::Mutex;
use tokio::time::{sleep, timeout};
use uuid::Uuid;

const LONG: Duration = Duration::from_secs(60);

fn commit(n: u128) -> Commit {
    let mut commit = Commit::new(TxnId(Uuid::from_u128(n)));
    commit.push(Op::Put(Key::new("vm/a").unwrap(), n.to_string().into()));
    commit
}

/// As [`history::under`], on two stores with these options.
async fn under<F: Future<Output = ()>>(
    options: PostgresOptions,
    calls: usize,
    fault: impl Fn() -> F,
) -> Checked {
    let one = PostgresStore::connect(options.clone()).await.unwrap();
    let other = PostgresStore::connect(options).await.unwrap();
    history::under([Arc::new(one), Arc::new(other)], calls, fault).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_is_killed_and_restarted_loses_nothing() {
    let server = Arc::new(Mutex::new(Server::start(false, &[])));
    let mut options = server.lock().await.options("nc");
    options.deadline = Duration::from_secs(2);
    under(options, 500, || async {
        sleep(Duration::from_millis(200)).await;
        let mut server = Arc::clone(&server).lock_owned().await;
        tokio::task::spawn_blocking(move || {
            server.kill();
            server.run();
        })
        .await
        .unwrap();
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_stands_still_leaves_outcomes_unknown_and_settles_them() {
    let server = Server::start(false, &[]);
    let mut options = server.options("nc");
    options.deadline = Duration::from_millis(500);
    let checked = under(options, 300, || async {
        sleep(Duration::from_millis(200)).await;
        server.pause();
        sleep(Duration::from_millis(900)).await;
        server.resume();
    })
    .await;
    assert!(checked.unknown > 0, "{checked:?}");
}

async fn through_proxy(schema: &str) -> (Server, Proxy, PostgresOptions) {
    let server = Server::start(true, &[]);
    let proxy = Proxy::to(server.port()).await;
    let string = format!(
        "host=127.0.0.1 port={} user=postgres dbname=postgres",
        proxy.port()
    );
    let mut options = PostgresOptions::new(&string)
        .unwrap()
        .with_password(&SecretString::from(PASSWORD));
    schema.clone_into(&mut options.schema);
    options.deadline = Duration::from_secs(2);
    options.connections = 4;
    (server, proxy, options)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn connections_that_are_cut_anywhere_change_nothing() {
    let (_server, proxy, options) = through_proxy("nc").await;
    under(options, 120, || async {
        proxy.cut_at_random();
        sleep(Duration::from_millis(700)).await;
        proxy.lose_answers();
        sleep(Duration::from_millis(50)).await;
        proxy.release();
        sleep(Duration::from_millis(100)).await;
    })
    .await;
    proxy.release();
}

/// The answer to a commit is lost; the store asks again by itself, and it is applied once.
#[tokio::test]
async fn a_commit_whose_answer_is_lost_is_told_all_the_same() {
    let (_server, proxy, options) = through_proxy("nc").await;
    let store = PostgresStore::connect(options).await.unwrap();
    store.commit(commit(1)).await.unwrap();
    proxy.lose_answers();
    let (revision, ()) = futures::join!(store.commit(commit(2)), async {
        sleep(Duration::from_millis(300)).await;
        proxy.release();
    });
    assert_eq!(revision.unwrap(), Revision(2));
    assert_eq!(store.revision().await.unwrap(), Revision(2));
    let outcome = store.outcome(commit(2).txn).await.unwrap();
    assert_eq!(outcome, TxnOutcome::Committed(Revision(2)));
}

/// The server cannot be asked again in time: the outcome is unknown, says so, and is known later.
#[tokio::test]
async fn a_commit_whose_answer_stays_lost_is_of_unknown_outcome() {
    let (_server, proxy, options) = through_proxy("nc").await;
    let store = PostgresStore::connect(options).await.unwrap();
    store.commit(commit(1)).await.unwrap();
    proxy.lose_answers();
    let (error, ()) = futures::join!(store.commit(commit(2)), async {
        sleep(Duration::from_millis(100)).await;
        proxy.cut();
    });
    let error = error.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::OutcomeUnknown, "{error}");
    assert!(!error.is_retryable());
    let waiting = store.get(&Key::new("vm/a").unwrap()).await.unwrap_err();
    assert_eq!(waiting.kind(), ErrorKind::Unavailable, "{waiting}");
    // What was never sent did not happen, and says so.
    let unsent = store.commit(commit(3)).await.unwrap_err();
    assert_eq!(unsent.kind(), ErrorKind::Unavailable, "{unsent}");
    assert!(unsent.context().any(|(name, _)| name == "last"), "{unsent}");

    proxy.release();
    let outcome = store.outcome(commit(2).txn).await.unwrap();
    assert_eq!(outcome, TxnOutcome::Committed(Revision(2)));
    assert_eq!(
        store.outcome(commit(3).txn).await.unwrap(),
        TxnOutcome::NotCommitted
    );
    let refused = store.commit(commit(3)).await.unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::Cancelled, "{refused}");
    assert_eq!(store.commit(commit(4)).await.unwrap(), Revision(3));
}

/// A commit that reached a server that stands still may be carried out when it goes on, unless its outcome was asked
/// for first.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn not_committed_is_final_for_a_commit_that_is_still_under_way() {
    let server = Server::start(false, &[]);
    let mut options = server.options("nc");
    options.deadline = Duration::from_millis(500);
    let store = PostgresStore::connect(options).await.unwrap();
    store.commit(commit(1)).await.unwrap();
    for n in 2..12 {
        server.pause();
        let error = store.commit(commit(n)).await.unwrap_err();
        assert!(
            matches!(
                error.kind(),
                ErrorKind::OutcomeUnknown | ErrorKind::Unavailable
            ),
            "{error}"
        );
        server.resume();
        let outcome = loop {
            if let Ok(outcome) = store.outcome(commit(n).txn).await {
                break outcome;
            }
        };
        sleep(Duration::from_millis(100)).await;
        let there = store
            .get(&Key::new("vm/a").unwrap())
            .await
            .unwrap()
            .unwrap();
        let written = there.value == n.to_string();
        assert_eq!(
            written,
            outcome != TxnOutcome::NotCommitted,
            "{n}: {outcome:?}"
        );
    }
}

/// A connection that listens and is lost costs a moment, and no commit.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lost_notification_loses_no_commit() {
    let server = Server::start(false, &[]);
    let mut options = server.options("nc");
    options.poll = 2 * LONG;
    let (one, other) = (
        PostgresStore::connect(options.clone()).await.unwrap(),
        PostgresStore::connect(options).await.unwrap(),
    );
    let mut watch = other.watch(vec![String::new()], Revision(0)).await.unwrap();
    for n in 1..=10 {
        server
            .sql(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE query LIKE 'LISTEN%'",
            )
            .await;
        one.commit(commit(n)).await.unwrap();
        let told = async {
            loop {
                if let WatchEvent::Commit { revision, .. } = watch.next().await.unwrap().unwrap() {
                    return revision;
                }
            }
        };
        let told = timeout(Duration::from_secs(10), told).await.unwrap();
        assert_eq!(told, Revision(u64::try_from(n).unwrap()));
    }
}

/// The database goes back to what it was some commits ago, as after a restore: watches say so, and begin anew.
#[tokio::test]
async fn a_database_that_goes_back_ends_every_watch() {
    let server = Server::start(false, &[]);
    let store = server.store("nc").await;
    for n in 1..=5 {
        store.commit(commit(n)).await.unwrap();
    }
    let mut watch = store.watch(vec![String::new()], Revision(5)).await.unwrap();
    let caught_up = watch.next().await.unwrap().unwrap();
    assert_eq!(caught_up, WatchEvent::Bookmark(Revision(5)));
    let back = "DELETE FROM nc.history WHERE replaced > 2; UPDATE nc.records SET version = 2;
                DELETE FROM nc.txns WHERE decided > 2; UPDATE nc.revision SET revision = 2";
    server.sql(back).await;
    let error = timeout(LONG, watch.next())
        .await
        .unwrap()
        .unwrap()
        .unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Compacted, "{error}");
    let error = store
        .watch(vec![String::new()], Revision(5))
        .await
        .err()
        .unwrap();
    assert_eq!(error.kind(), ErrorKind::Compacted, "{error}");
    let mut watch = store.watch(vec![String::new()], Revision(2)).await.unwrap();
    assert_eq!(store.commit(commit(6)).await.unwrap(), Revision(3));
    loop {
        match timeout(LONG, watch.next()).await.unwrap().unwrap().unwrap() {
            WatchEvent::Commit { revision, .. } => {
                assert_eq!(revision, Revision(3));
                break;
            }
            WatchEvent::Bookmark(_) => {}
        }
    }
}

/// The primary dies and its synchronous standby takes over; the store finds it among its hosts.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_fail_over_to_a_synchronous_standby_loses_nothing() {
    let mut primary = Server::start(false, &[]);
    let standby = primary.standby(&[]);
    let client = primary.client().await;
    for sql in [
        "ALTER SYSTEM SET synchronous_standby_names = '*'",
        "SELECT pg_reload_conf()",
    ] {
        client.batch_execute(sql).await.unwrap();
    }
    let hosts = format!(
        "host={},{} port=5432 user=postgres dbname=postgres",
        standby.folder().display(),
        primary.folder().display()
    );
    let mut options = PostgresOptions::new(&hosts).unwrap();
    // A promotion takes seconds, on a busy machine many.
    options.deadline = LONG;
    let store = PostgresStore::connect(options).await.unwrap();
    let mut watch = store.watch(vec![String::new()], Revision(0)).await.unwrap();
    for n in 1..=50 {
        assert_eq!(
            store.commit(commit(n)).await.unwrap(),
            Revision(u64::try_from(n).unwrap())
        );
    }
    let going_on = tokio::spawn({
        let store = store.clone();
        async move {
            for n in 51..=100 {
                store.commit(commit(n)).await.unwrap();
            }
        }
    });
    sleep(Duration::from_millis(20)).await;
    primary.kill();
    // To wait for it here would hold a snapshot that the last of the recovery may have to wait for.
    standby.sql("SELECT pg_promote(false)").await;
    timeout(LONG, going_on).await.unwrap().unwrap();
    assert_eq!(store.revision().await.unwrap(), Revision(100));
    let mut seen = 0;
    while seen < 100 {
        match timeout(LONG, watch.next()).await.unwrap().unwrap().unwrap() {
            WatchEvent::Commit { revision, .. } => {
                seen += 1;
                assert_eq!(revision, Revision(seen));
            }
            WatchEvent::Bookmark(_) => {}
        }
    }
}

/// A server that takes no writes for a while, as during a planned change of primary.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_is_read_only_for_a_while_is_waited_for() {
    let server = Server::start(false, &[]);
    let store = server.store("nc").await;
    store.commit(commit(1)).await.unwrap();
    let read_only = async |on: &str| {
        let client = server.client().await;
        let alter = format!("ALTER SYSTEM SET default_transaction_read_only = {on}");
        client
            .batch_execute("SET default_transaction_read_only = off")
            .await
            .unwrap();
        client.batch_execute(&alter).await.unwrap();
        client
            .batch_execute("SELECT pg_reload_conf()")
            .await
            .unwrap();
        sleep(Duration::from_millis(300)).await;
    };
    read_only("on").await;
    let (revision, ()) = futures::join!(store.commit(commit(2)), async {
        sleep(Duration::from_millis(500)).await;
        read_only("off").await;
    });
    assert_eq!(revision.unwrap(), Revision(2));
}
