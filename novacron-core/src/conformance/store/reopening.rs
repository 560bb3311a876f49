//! What is there after the store was ended and opened anew.

use std::time::Duration;

use super::subject::{delete, drain, key, put};
use super::{StoreFixture, Subject};
use crate::ErrorKind;
use crate::store::{LeaseAnswer, ListOptions, Precondition, TxnOutcome};

/// Every commit that returned is there, with its version, and the revisions go on.
pub async fn reopened_store_has_every_commit(fixture: &dyn StoreFixture) {
    let mut s = Subject::open(fixture).await;
    for round in 0..3 {
        for i in 0..10 {
            s.apply(vec![put(format!("vm/{round}-{i}"), i), put("vm/shared", i)])
                .await;
        }
        s.apply(vec![delete(format!("vm/{round}-3"))]).await;
        let before = s.all("", None).await;
        s = s.reopen(fixture).await;
        assert_eq!(s.all("", None).await, before);
        let next = s.apply(vec![put("vm/shared", "next")]).await;
        assert!(next > before.1);
    }
}

/// Outcomes are as final as they were.
pub async fn reopened_store_knows_outcomes(fixture: &dyn StoreFixture) {
    let s = Subject::open(fixture).await;
    let (done, given_up) = (
        s.draft(Vec::new(), vec![put("vm/a", 1)]),
        s.draft(Vec::new(), vec![put("vm/b", 1)]),
    );
    let revision = s.send(done.clone()).await.unwrap();
    assert_eq!(
        s.store.outcome(given_up.txn).await.unwrap(),
        TxnOutcome::NotCommitted
    );

    let s = s.reopen(fixture).await;
    assert_eq!(
        s.store.outcome(done.txn).await.unwrap(),
        TxnOutcome::Committed(revision)
    );
    assert_eq!(s.send(done).await.unwrap(), revision);
    assert_eq!(
        s.send(given_up).await.unwrap_err().kind(),
        ErrorKind::Cancelled
    );
    assert_eq!(s.revision().await, revision);
}

/// A lease outlives the store's end, and no token is given twice.
pub async fn reopened_store_keeps_leases_and_tokens(fixture: &dyn StoreFixture) {
    let s = Subject::open(fixture).await;
    let ttl = Duration::from_secs(10);
    let LeaseAnswer::Granted(lease) = s.store.lease_acquire("leader", "a", ttl).await.unwrap()
    else {
        panic!("a free lease is granted")
    };
    let s = s.reopen(fixture).await;
    assert!(matches!(
        s.store.lease_acquire("leader", "b", ttl).await.unwrap(),
        LeaseAnswer::HeldBy { .. }
    ));
    s.store.lease_renew(&lease).await.unwrap();
    let fence = Precondition::Lease {
        name: lease.name.clone(),
        token: lease.token,
    };
    s.apply_if(vec![fence], vec![put("vm/a", 1)]).await.unwrap();
    s.store.lease_release(&lease).await.unwrap();

    let s = s.reopen(fixture).await;
    let LeaseAnswer::Granted(next) = s.store.lease_acquire("leader", "a", ttl).await.unwrap()
    else {
        panic!("a released lease is granted")
    };
    assert!(next.token > lease.token);
}

/// Old revisions can be listed and watched as before, and what was compacted stays refused.
pub async fn reopened_store_keeps_history_and_compaction(fixture: &dyn StoreFixture) {
    let s = Subject::open(fixture).await;
    let first = s.apply(vec![put("vm/a", 1), put("vm/b", 1)]).await;
    let second = s.apply(vec![put("vm/a", 2)]).await;
    let third = s.apply(vec![delete("vm/b"), put("vm/a", 3)]).await;
    let fourth = s.apply(vec![put("vm/b", 4)]).await;
    s.store.compact(second).await.unwrap();
    let mut watch = s.watch(&["vm/"], second).await;
    let told = drain(&mut watch, fourth).await;
    let at_second = s.all("vm/", Some(second)).await;
    drop(watch);

    let s = s.reopen(fixture).await;
    assert_eq!(s.all("vm/", Some(second)).await, at_second);
    let mut watch = s.watch(&["vm/"], second).await;
    assert_eq!(drain(&mut watch, fourth).await, told);
    assert_eq!(
        told.iter().map(|(r, _)| *r).collect::<Vec<_>>(),
        [third, fourth]
    );
    let options = ListOptions {
        limit: 10,
        at: Some(first),
        after: None,
    };
    assert_eq!(
        s.store.list("vm/", options).await.unwrap_err().kind(),
        ErrorKind::Compacted
    );
    assert!(s.store.get(&key("vm/b")).await.unwrap().is_some());
}
