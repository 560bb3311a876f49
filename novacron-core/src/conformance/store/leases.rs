//! Leases and beats.

use std::time::Duration;

use super::subject::{drain, json, key, put, soon};
use super::{StoreFixture, Subject};
use crate::ErrorKind;
use crate::store::{Lease, LeaseAnswer, MAX_BEAT_BYTES, Precondition};

const TTL: Duration = Duration::from_secs(10);
const PART: Duration = Duration::from_secs(6);

async fn ask(s: &Subject, name: &str, holder: &str) -> LeaseAnswer {
    soon("a lease", s.store.lease_acquire(name, holder, TTL))
        .await
        .unwrap()
}

async fn granted(s: &Subject, name: &str, holder: &str) -> Lease {
    match ask(s, name, holder).await {
        LeaseAnswer::Granted(lease) => lease,
        other @ LeaseAnswer::HeldBy { .. } => panic!("{name} for {holder}: {other:?}"),
    }
}

async fn assert_held(s: &Subject, name: &str, asker: &str, by: &str) {
    match ask(s, name, asker).await {
        LeaseAnswer::HeldBy { holder, remaining } => {
            assert_eq!(holder, by);
            assert!(
                remaining <= TTL && remaining > Duration::ZERO,
                "{remaining:?}"
            );
        }
        other @ LeaseAnswer::Granted(_) => panic!("{name} for {asker}: {other:?}"),
    }
}

fn fence(lease: &Lease) -> Vec<Precondition> {
    vec![Precondition::Lease {
        name: lease.name.clone(),
        token: lease.token,
    }]
}

/// A free lease is granted with its name, holder and time to live.
pub async fn lease_is_granted_when_free(fixture: &dyn StoreFixture) {
    let s = Subject::open(fixture).await;
    let lease = granted(&s, "leader", "a").await;
    assert_eq!(
        (lease.name.as_str(), lease.holder.as_str(), lease.ttl),
        ("leader", "a", TTL)
    );
}

/// Who asks for a held lease learns by whom and how long.
pub async fn lease_held_by_another_is_refused(fixture: &dyn StoreFixture) {
    let s = Subject::open(fixture).await;
    granted(&s, "leader", "a").await;
    assert_held(&s, "leader", "b", "a").await;
    assert_held(&s, "leader", "b", "a").await;
}

/// Leases of different names have nothing to do with each other.
pub async fn lease_of_another_name_is_apart(fixture: &dyn StoreFixture) {
    let s = Subject::open(fixture).await;
    granted(&s, "owner/1", "a").await;
    granted(&s, "owner/2", "b").await;
    assert_held(&s, "owner/1", "b", "a").await;
    assert_held(&s, "owner/2", "a", "b").await;
}

/// The holder that asks again renews under the same token.
pub async fn lease_asked_for_again_keeps_its_token(fixture: &dyn StoreFixture) {
    let s = Subject::open(fixture).await;
    let lease = granted(&s, "leader", "a").await;
    fixture.advance(PART).await;
    assert_eq!(granted(&s, "leader", "a").await, lease);
    fixture.advance(PART).await;
    assert_held(&s, "leader", "b", "a").await;
}

/// When its time has passed on the store's clock, another one gets it.
pub async fn lease_expires_by_the_clock(fixture: &dyn StoreFixture) {
    let s = Subject::open(fixture).await;
    granted(&s, "leader", "a").await;
    fixture.advance(PART).await;
    assert_held(&s, "leader", "b", "a").await;
    fixture.advance(PART).await;
    granted(&s, "leader", "b").await;
    assert_held(&s, "leader", "a", "b").await;
}

/// A renewal counts from when it is made.
pub async fn lease_renewal_extends_it(fixture: &dyn StoreFixture) {
    let s = Subject::open(fixture).await;
    let lease = granted(&s, "leader", "a").await;
    for _ in 0..3 {
        fixture.advance(PART).await;
        s.store.lease_renew(&lease).await.unwrap();
    }
    fixture.advance(PART).await;
    assert_held(&s, "leader", "b", "a").await;
}

/// An expired lease cannot be renewed, even if nobody took it.
pub async fn lease_renewal_after_expiry_is_refused(fixture: &dyn StoreFixture) {
    let s = Subject::open(fixture).await;
    let lease = granted(&s, "leader", "a").await;
    fixture.advance(2 * TTL).await;
    assert_eq!(
        s.store.lease_renew(&lease).await.unwrap_err().kind(),
        ErrorKind::Conflict
    );
    granted(&s, "leader", "b").await;
}

/// A lease that changed hands cannot be renewed by the one before, and the new holder keeps it.
pub async fn lease_renewal_by_a_former_holder_is_refused(fixture: &dyn StoreFixture) {
    let s = Subject::open(fixture).await;
    let former = granted(&s, "leader", "a").await;
    fixture.advance(2 * TTL).await;
    let lease = granted(&s, "leader", "b").await;
    assert_eq!(
        s.store.lease_renew(&former).await.unwrap_err().kind(),
        ErrorKind::Conflict
    );
    s.store.lease_renew(&lease).await.unwrap();
    let forged = Lease {
        name: "never/granted".to_owned(),
        ..lease
    };
    assert_eq!(
        s.store.lease_renew(&forged).await.unwrap_err().kind(),
        ErrorKind::Conflict
    );
}

/// A released lease is free at once, and cannot be renewed.
pub async fn lease_released_is_free_at_once(fixture: &dyn StoreFixture) {
    let s = Subject::open(fixture).await;
    let lease = granted(&s, "leader", "a").await;
    s.store.lease_release(&lease).await.unwrap();
    assert_eq!(
        s.store.lease_renew(&lease).await.unwrap_err().kind(),
        ErrorKind::Conflict
    );
    granted(&s, "leader", "b").await;
}

/// To release a lease that is not held any more is no error, and takes nothing from its holder.
pub async fn lease_release_by_a_former_holder_changes_nothing(fixture: &dyn StoreFixture) {
    let s = Subject::open(fixture).await;
    let former = granted(&s, "leader", "a").await;
    s.store.lease_release(&former).await.unwrap();
    s.store.lease_release(&former).await.unwrap();
    let lease = granted(&s, "leader", "b").await;
    s.store.lease_release(&former).await.unwrap();
    s.store.lease_renew(&lease).await.unwrap();
    assert_held(&s, "leader", "a", "b").await;
    s.store
        .lease_release(&Lease {
            name: "never/granted".to_owned(),
            ..former
        })
        .await
        .unwrap();
}

/// Every grant has a larger token: to another, after expiry, after release, and to the same holder again.
pub async fn lease_token_grows_with_every_grant(fixture: &dyn StoreFixture) {
    let s = Subject::open(fixture).await;
    let mut tokens = Vec::new();
    for holder in ["a", "b", "b", "a"] {
        let lease = granted(&s, "leader", holder).await;
        tokens.push(lease.token);
        fixture.advance(2 * TTL).await;
    }
    for holder in ["a", "a", "b"] {
        let lease = granted(&s, "leader", holder).await;
        tokens.push(lease.token);
        s.store.lease_release(&lease).await.unwrap();
    }
    assert!(tokens.is_sorted_by(|a, b| a < b), "{tokens:?}");
}

/// Of many that ask at the same time, one gets it and the others learn whom.
pub async fn lease_wanted_by_many_goes_to_one(fixture: &dyn StoreFixture) {
    let s = Subject::open(fixture).await;
    let tasks = (0..16).map(|i| {
        let s = s.clone();
        tokio::spawn(async move { ask(&s, "leader", &format!("h{i}")).await })
    });
    let (mut grants, mut refusals) = (Vec::new(), Vec::new());
    for answer in futures::future::join_all(tasks).await {
        match answer.unwrap() {
            LeaseAnswer::Granted(lease) => grants.push(lease.holder),
            LeaseAnswer::HeldBy { holder, .. } => refusals.push(holder),
        }
    }
    assert_eq!(grants.len(), 1);
    assert!(refusals.iter().all(|holder| *holder == grants[0]));
}

/// A commit that requires a held lease goes through, before and after a renewal.
pub async fn lease_precondition_lets_the_holder_commit(fixture: &dyn StoreFixture) {
    let s = Subject::open(fixture).await;
    let lease = granted(&s, "leader", "a").await;
    s.apply_if(fence(&lease), vec![put("vm/a", 1)])
        .await
        .unwrap();
    fixture.advance(PART).await;
    s.store.lease_renew(&lease).await.unwrap();
    fixture.advance(PART).await;
    s.apply_if(fence(&lease), vec![put("vm/a", 2)])
        .await
        .unwrap();
}

/// A commit that requires an expired or released lease fails, even if nobody took it.
pub async fn lease_precondition_fences_the_expired(fixture: &dyn StoreFixture) {
    let s = Subject::open(fixture).await;
    let expired = granted(&s, "leader", "a").await;
    fixture.advance(2 * TTL).await;
    let error = s
        .apply_if(fence(&expired), vec![put("vm/a", 1)])
        .await
        .unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Conflict);
    let released = granted(&s, "leader", "a").await;
    s.store.lease_release(&released).await.unwrap();
    let error = s
        .apply_if(fence(&released), vec![put("vm/a", 1)])
        .await
        .unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Conflict);
    assert_eq!(s.value("vm/a").await, None);
}

/// A commit that requires the lease under an older token fails, also for the same holder.
pub async fn lease_precondition_fences_the_former_holder(fixture: &dyn StoreFixture) {
    let s = Subject::open(fixture).await;
    let mut leases = Vec::new();
    for holder in ["a", "b", "b"] {
        leases.push(granted(&s, "leader", holder).await);
        fixture.advance(2 * TTL).await;
    }
    leases.push(granted(&s, "leader", "b").await);
    let present = leases.pop().unwrap();
    for former in &leases {
        let error = s
            .apply_if(fence(former), vec![put("vm/a", 1)])
            .await
            .unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Conflict);
    }
    s.apply_if(fence(&present), vec![put("vm/a", 1)])
        .await
        .unwrap();
}

/// Leases are no records: no revision, nothing in a list or a watch.
pub async fn lease_changes_no_revision(fixture: &dyn StoreFixture) {
    let s = Subject::open(fixture).await;
    let before = s.apply(vec![put("vm/a", 1)]).await;
    let mut watch = s.watch(&[""], before).await;
    let lease = granted(&s, "leader", "a").await;
    s.store.lease_renew(&lease).await.unwrap();
    s.store.lease_release(&lease).await.unwrap();
    assert_eq!(
        (s.revision().await, s.all("", None).await.0.len()),
        (before, 1)
    );
    let after = s.apply(vec![put("vm/a", 2)]).await;
    assert!(after > before);
    assert_eq!(drain(&mut watch, after).await.len(), 1);
}

/// A beat replaces the one before; `beats` has the latest of each key under the prefix, in order.
pub async fn beats_are_overwritten_and_listed_by_prefix(fixture: &dyn StoreFixture) {
    let s = Subject::open(fixture).await;
    for round in 0..3 {
        for name in ["node/b", "node/a", "node-x/a", "owner/a"] {
            s.store
                .put_beat(&key(name), Some(json(format!("{name}-{round}"))))
                .await
                .unwrap();
        }
    }
    let expected = [
        (key("node/a"), json("node/a-2")),
        (key("node/b"), json("node/b-2")),
    ];
    assert_eq!(s.store.beats("node/").await.unwrap(), expected);
    assert_eq!(s.store.beats("").await.unwrap().len(), 4);
    assert!(s.store.beats("none/").await.unwrap().is_empty());
}

/// A beat that is removed is gone, also when the store is opened anew; one that is not there can be removed.
pub async fn beat_can_be_removed(fixture: &dyn StoreFixture) {
    let s = Subject::open(fixture).await;
    for name in ["node/a", "node/b"] {
        s.store.put_beat(&key(name), Some(json(1))).await.unwrap();
    }
    for _ in 0..2 {
        s.store.put_beat(&key("node/a"), None).await.unwrap();
        let left = s.store.beats("node/").await.unwrap();
        assert_eq!(left, [(key("node/b"), json(1))]);
    }
    // An orderly end is no crash: what was removed stays so.
    let s = s.reopen(fixture).await;
    let left = s.store.beats("").await.unwrap();
    assert!(left.iter().all(|(k, _)| *k != key("node/a")), "{left:?}");
}

/// A beat is no record: what is larger than its limit is refused, and the one before stays.
pub async fn beat_that_is_too_large_is_refused(fixture: &dyn StoreFixture) {
    let s = Subject::open(fixture).await;
    let largest = json("x".repeat(MAX_BEAT_BYTES - 2));
    assert_eq!(largest.len(), MAX_BEAT_BYTES);
    let beat = key("node/a");
    s.store
        .put_beat(&beat, Some(largest.clone()))
        .await
        .unwrap();
    let larger = json("x".repeat(MAX_BEAT_BYTES - 1));
    let refused = s.store.put_beat(&beat, Some(larger)).await.unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::Invalid);
    assert_eq!(s.store.beats("").await.unwrap(), [(beat, largest)]);
}

/// Beats bypass the history: no revision, no record, no watch event.
pub async fn beats_leave_no_trace_in_the_history(fixture: &dyn StoreFixture) {
    let s = Subject::open(fixture).await;
    let before = s.apply(vec![put("vm/a", 1)]).await;
    let mut watch = s.watch(&[""], before).await;
    s.store
        .put_beat(&key("node/a"), Some(json(1)))
        .await
        .unwrap();
    assert_eq!(
        (s.revision().await, s.value("node/a").await),
        (before, None)
    );
    let after = s.apply(vec![put("vm/a", 2)]).await;
    assert_eq!(drain(&mut watch, after).await.len(), 1);
    assert_eq!(s.all("", None).await.0.len(), 1);
}
