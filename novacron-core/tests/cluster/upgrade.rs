//! Builds of two feature levels over one store, as one build sees the other; and records that cannot be read.

use novacron_core::cluster::ListRequest;
use novacron_core::store::{Commit, Key, MemoryStore, Op, Store as _, TxnId};
use novacron_core::{Cluster, ErrorKind, Phase, SeededIds};
use uuid::Uuid;

use crate::{Site, soon, spec};

async fn write(store: &MemoryStore, txn: u128, key: &str, value: &str) {
    let mut commit = Commit::new(TxnId(Uuid::from_u128(txn)));
    let key = Key::new(key).unwrap();
    commit.push(Op::Put(key, value.as_bytes().to_vec().into()));
    store.commit(commit).await.unwrap();
}

fn level(level: u32) -> String {
    format!(r#"{{"v":1,"body":{{"level":{level},"by":"somebody","at":0}}}}"#)
}

#[tokio::test(start_paused = true)]
async fn a_build_that_is_too_old_or_too_new_is_refused_by_level() {
    let site = Site::new(0);
    let join = || {
        Cluster::builder("test")
            .store(site.store.clone())
            .clock(site.clock)
            .ids(SeededIds::from_seed(1))
            .build()
    };
    let known = join().await.unwrap().feature_level().await.unwrap();
    assert_eq!(
        known.cluster, known.build,
        "a new cluster is at its build's level"
    );
    write(&site.store, 1, "cluster/level", &level(known.build + 1)).await;
    let refused = join().await.unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::FailedPrecondition);
    let newer = format!("is at feature level {}", known.build + 1);
    assert!(refused.message().contains(&newer), "{refused}");
    assert!(refused.message().contains("upgrade it"), "{refused}");
    // Nothing is left of the attempt that would be in the way of the right build.
    write(&site.store, 2, "cluster/level", &level(known.build)).await;
    join().await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_process_that_was_left_behind_by_an_upgrade_decides_and_changes_nothing() {
    let mut site = Site::new(1);
    let cluster = site.start().await;
    let vm = cluster.vms().create(spec("web")).await.unwrap();
    vm.wait_for(Phase::Running, soon()).await.unwrap();
    let build = cluster.feature_level().await.unwrap().build;
    // Nothing to raise: every process knows the level that the cluster is at.
    assert_eq!(cluster.finalize_upgrade().await.unwrap().cluster, build);
    write(&site.store, 1, "cluster/level", &level(build + 1)).await;
    assert_eq!(cluster.feature_level().await.unwrap().cluster, build + 1);
    let refused = vm.stop().await.unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::FailedPrecondition);
    assert!(refused.message().contains("upgrade it"), "{refused}");
    // The guest goes on; that it ends is for others to see.
    let (host, domain) = site.world.running(vm.id())[0];
    let before = site.store.revision().await.unwrap();
    let crashed = novacron_core::model::Exit::Panicked;
    site.world.end_guest(host, domain, crashed);
    vm.wait_for(Phase::Stopped, soon()).await.unwrap_err();
    assert_eq!(site.store.revision().await.unwrap(), before);
}

#[tokio::test(start_paused = true)]
async fn what_cannot_be_read_is_told_and_hurts_nobody() {
    let mut site = Site::new(1);
    let cluster = site.start().await;
    let vm = cluster.vms().create(spec("web")).await.unwrap();
    vm.wait_for(Phase::Running, soon()).await.unwrap();
    assert!(cluster.damaged_records().await.unwrap().is_empty());
    let id = Uuid::from_u128(7);
    let hand = [
        (format!("vm/{id}"), "{", "envelope"),
        (format!("volume/{id}"), r#"{"v":9,"body":{}}"#, "version 9"),
        (
            "node/Not A Name".replace(' ', "-"),
            r#"{"v":1,"body":{}}"#,
            "no record of this kind",
        ),
    ];
    for (txn, (key, value, _)) in (10..).zip(&hand) {
        write(&site.store, txn, key, value).await;
    }
    let damaged = cluster.damaged_records().await.unwrap();
    for (key, _, why) in &hand {
        let told = damaged.iter().find(|(k, _)| k == key);
        assert!(
            told.is_some_and(|(_, told)| told.contains(why)),
            "{key}: {damaged:?}"
        );
    }
    vm.stop().await.unwrap().wait(soon()).await.unwrap();
    vm.start().await.unwrap().wait(soon()).await.unwrap();
    let all = cluster.vms().list(&ListRequest::new()).await.unwrap();
    assert_eq!(all.items.len(), 1);
    // Put right, it is a record like any other.
    let mut gone = Commit::new(TxnId(Uuid::from_u128(99)));
    for (key, ..) in &hand {
        gone.push(Op::Delete(Key::new(key.as_str()).unwrap()));
    }
    site.store.commit(gone).await.unwrap();
    assert!(cluster.damaged_records().await.unwrap().is_empty());
}
