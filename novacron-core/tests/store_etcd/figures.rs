//! The figures of `docs/guides/choosing-a-store.md`, on this machine: `cargo test --release -p novacron-core
//! --features etcd,conformance --test store_etcd -- --ignored figures --nocapture`.

use std::sync::Arc;
use std::time::{Duration, Instant};

use futures::StreamExt as _;
use novacron_core::SystemClock;
use novacron_core::store::{Commit, ListOptions, MemoryStore, Op, SqliteStore, Store, WatchEvent};

use super::shared::{key, put, txn, value};
use super::support::etcd::{Etcd, Setup};

fn record(i: usize) -> String {
    format!(
        "{{\"v\":1,\"body\":{{\"number\":{i},\"filler\":\"{}\"}}}}",
        "x".repeat(900)
    )
}

fn median(mut times: Vec<Duration>) -> Duration {
    times.sort_unstable();
    times[times.len() / 2]
}

async fn measure(name: &str, store: Arc<dyn Store>) {
    let mut one = Vec::new();
    for i in 0..300 {
        let began = Instant::now();
        store
            .commit(put(&format!("one/{i}"), record(i)))
            .await
            .unwrap();
        one.push(began.elapsed());
    }
    let began = Instant::now();
    let writers = (0..64).map(|w| {
        let store = Arc::clone(&store);
        tokio::spawn(async move {
            for i in 0..30 {
                store
                    .commit(put(&format!("many/{w}-{i}"), record(i)))
                    .await
                    .unwrap();
            }
        })
    });
    futures::future::join_all(writers).await;
    let many = 64.0 * 30.0 / began.elapsed().as_secs_f64();
    let mut hundred = Vec::new();
    for i in 0..20 {
        let mut commit = Commit::new(txn());
        for j in 0..100 {
            commit.push(Op::Put(key(&format!("list/{i}-{j}")), value(record(j))));
        }
        let began = Instant::now();
        store.commit(commit).await.unwrap();
        hundred.push(began.elapsed());
    }
    let (mut get, mut revision, mut list) = (Vec::new(), Vec::new(), Vec::new());
    for i in 0..300 {
        let began = Instant::now();
        store.get(&key(&format!("one/{i}"))).await.unwrap().unwrap();
        get.push(began.elapsed());
        let began = Instant::now();
        store.revision().await.unwrap();
        revision.push(began.elapsed());
    }
    for _ in 0..20 {
        let options = ListOptions {
            limit: 1000,
            ..ListOptions::default()
        };
        let began = Instant::now();
        assert_eq!(
            store.list("list/", options).await.unwrap().records.len(),
            1000
        );
        list.push(began.elapsed());
    }
    let mut told = Vec::new();
    let tip = store.revision().await.unwrap();
    let mut watch = store.watch(vec!["w/".to_owned()], tip).await.unwrap();
    for i in 0..100 {
        let began = Instant::now();
        let revision = store.commit(put("w/a", i)).await.unwrap();
        while !matches!(watch.next().await.unwrap().unwrap(), WatchEvent::Commit { revision: r, .. } if r == revision)
        {
        }
        told.push(began.elapsed());
    }
    println!(
        "| {name} | {:?} | {many:.0}/s | {:?} | {:?} | {:?} | {:?} | {:?} |",
        median(one),
        median(hundred),
        median(get),
        median(revision),
        median(list),
        median(told)
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "measures, and asserts nothing"]
async fn figures() {
    println!(
        "| store | commit | 64 writers | commit of 100 | get | revision | list of 1000 | commit to watch |"
    );
    measure("memory", Arc::new(MemoryStore::new(Arc::new(SystemClock)))).await;
    let folder = tempfile::tempdir().unwrap();
    let sqlite = SqliteStore::open(folder.path().join("novacron.db"))
        .await
        .unwrap();
    measure("sqlite", Arc::new(sqlite)).await;
    for members in [1, 3] {
        let etcd = Etcd::start_with(members, &Setup::default());
        etcd.leader();
        measure(&format!("etcd, {members}"), Arc::new(etcd.connect().await)).await;
    }
}
