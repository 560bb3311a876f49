//! The whole state into an etcd and out of it again.

use std::io::Cursor;
use std::sync::Arc;

use novacron_core::store::{Commit, EtcdStore, MemoryStore, Op, Revision, Store, diff, dump, load};
use novacron_core::{ErrorKind, SeededIds, SystemClock};

use super::shared::{key, put, txn, value};
use super::support::etcd::{Etcd, Setup};

#[tokio::test]
async fn the_state_moves_into_etcd_and_out_of_it() {
    let memory = || MemoryStore::new(Arc::new(SystemClock));
    let (first, last) = (memory(), memory());
    for i in 0..30 {
        let mut commit = Commit::new(txn());
        for j in 0..100 {
            commit.push(Op::Put(
                key(&format!("vm/{i}-{j}")),
                value(format!("{{\"v\":{j}}}")),
            ));
        }
        first.commit(commit).await.unwrap();
    }
    for i in 0..8 {
        first
            .commit(put(&format!("large/{i}"), "x".repeat(256 * 1024)))
            .await
            .unwrap();
    }
    let ids = SeededIds::from_os();
    let etcd = Etcd::start_with(3, &Setup::default());
    let store = etcd.connect().await;
    let mut file = Vec::new();
    let dumped = dump(&first, &mut file).await.unwrap();
    assert_eq!(dumped.records, 3008);
    load(&store, &mut Cursor::new(file), &ids).await.unwrap();
    assert!(diff(&first, &store).await.unwrap().is_empty());

    // Beats and leases do not come along, and a second load is refused.
    let mut file = Vec::new();
    dump(&store, &mut file).await.unwrap();
    let refused = load(&store, &mut Cursor::new(file.clone()), &ids)
        .await
        .unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::FailedPrecondition, "{refused}");
    load(&last, &mut Cursor::new(file), &ids).await.unwrap();
    assert!(diff(&store, &last).await.unwrap().is_empty());
}

/// etcd's own snapshot, taken with `etcdctl` and restored into a new server: an older state, with the same revisions.
#[tokio::test]
async fn a_snapshot_of_etcd_restores_the_store() {
    let etcd = Etcd::start();
    let store = etcd.connect().await;
    let kept = store.commit(put("vm/a", 1)).await.unwrap();
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("snapshot");
    etcd.ctl(&["snapshot", "save", file.to_str().unwrap()]);
    let newer = store.commit(put("vm/a", 2)).await.unwrap();
    drop((store, etcd));

    let restored = Etcd::restored(&file);
    let store: EtcdStore = restored.connect().await;
    assert_eq!(store.revision().await.unwrap(), kept);
    assert_eq!(
        store.get(&key("vm/a")).await.unwrap().unwrap().value,
        value(1)
    );
    // Who has seen what was lost is told that it is of another history.
    let Err(error) = store.watch(vec![String::new()], Revision(newer.0)).await else {
        panic!("a revision that was never reached")
    };
    assert_eq!(error.kind(), ErrorKind::Compacted, "{error}");
    store.commit(put("vm/a", 3)).await.unwrap();
}
