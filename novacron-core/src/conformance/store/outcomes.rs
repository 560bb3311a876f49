//! Transaction ids and `outcome`.

use super::subject::{put, soon};
use super::{StoreFixture, Subject};
use crate::ErrorKind;
use crate::store::{Precondition, TxnOutcome};

/// A second commit under the same transaction id changes nothing and returns the first one's revision.
pub async fn same_transaction_twice_is_applied_once(fixture: &dyn StoreFixture) {
    let s = Subject::open(fixture).await;
    let commit = s.draft(
        vec![Precondition::Absent(super::subject::key("vm/a"))],
        vec![put("vm/a", 1)],
    );
    let first = s.send(commit.clone()).await.unwrap();
    let between = s.apply(vec![put("vm/a", 2)]).await;
    assert_eq!(
        s.send(commit).await.unwrap(),
        first,
        "though its precondition would fail now"
    );
    assert_eq!(
        (s.revision().await, s.version("vm/a").await),
        (between, Some(between))
    );
}

/// Many copies of one commit at the same time are applied once and all return its revision.
pub async fn same_transaction_at_the_same_time_is_applied_once(fixture: &dyn StoreFixture) {
    let s = Subject::open(fixture).await;
    let before = s.revision().await;
    let commit = s.draft(Vec::new(), vec![put("vm/a", 1)]);
    let revisions = futures::future::join_all((0..16).map(|_| s.send(commit.clone()))).await;
    let revision = *revisions[0].as_ref().unwrap();
    assert!(revisions.into_iter().all(|r| r.unwrap() == revision));
    assert!(revision > before);
    assert_eq!(s.revision().await, revision);
}

/// The outcome of a commit is its revision.
pub async fn outcome_of_a_commit_is_its_revision(fixture: &dyn StoreFixture) {
    let s = Subject::open(fixture).await;
    let commit = s.draft(Vec::new(), vec![put("vm/a", 1)]);
    let txn = commit.txn;
    let revision = s.send(commit).await.unwrap();
    s.apply(vec![put("vm/a", 2)]).await;
    assert_eq!(
        s.store.outcome(txn).await.unwrap(),
        TxnOutcome::Committed(revision)
    );
    assert_eq!(
        s.store.outcome(txn).await.unwrap(),
        TxnOutcome::Committed(revision)
    );
}

/// "Not committed" is final: a commit that arrives later is refused and applies nothing.
pub async fn outcome_of_a_transaction_never_seen_is_final(fixture: &dyn StoreFixture) {
    let s = Subject::open(fixture).await;
    let commit = s.draft(Vec::new(), vec![put("vm/a", 1)]);
    let before = s.revision().await;
    assert_eq!(
        s.store.outcome(commit.txn).await.unwrap(),
        TxnOutcome::NotCommitted
    );
    assert_eq!(
        s.send(commit.clone()).await.unwrap_err().kind(),
        ErrorKind::Cancelled
    );
    assert_eq!(
        s.store.outcome(commit.txn).await.unwrap(),
        TxnOutcome::NotCommitted
    );
    assert_eq!((s.value("vm/a").await, s.revision().await), (None, before));

    // Asked while the commit is under way, either answer is right, and both sides agree.
    for round in 0..20 {
        let commit = s.draft(Vec::new(), vec![put(format!("vm/{round}"), 1)]);
        let txn = commit.txn;
        let (outcome, committed) =
            futures::join!(soon("outcome", s.store.outcome(txn)), s.send(commit));
        match outcome.unwrap() {
            TxnOutcome::Committed(revision) => assert_eq!(committed.unwrap(), revision),
            TxnOutcome::NotCommitted => {
                assert_eq!(committed.unwrap_err().kind(), ErrorKind::Cancelled);
            }
        }
    }
}

/// A commit that failed on a precondition was not committed.
pub async fn outcome_after_a_conflict_is_not_committed(fixture: &dyn StoreFixture) {
    let s = Subject::open(fixture).await;
    let commit = s.draft(
        vec![Precondition::Present(super::subject::key("vm/a"))],
        vec![put("vm/a", 1)],
    );
    let txn = commit.txn;
    assert_eq!(
        s.send(commit).await.unwrap_err().kind(),
        ErrorKind::Conflict
    );
    assert_eq!(
        s.store.outcome(txn).await.unwrap(),
        TxnOutcome::NotCommitted
    );
}

/// Outcomes are kept for an hour, whatever is compacted.
pub async fn outcome_outlives_compaction(fixture: &dyn StoreFixture) {
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
    let tip = s.apply(vec![put("vm/a", 2)]).await;
    fixture.advance(std::time::Duration::from_secs(3590)).await;
    s.store.compact(tip).await.unwrap();
    assert_eq!(
        s.store.outcome(done.txn).await.unwrap(),
        TxnOutcome::Committed(revision)
    );
    assert_eq!(s.send(done).await.unwrap(), revision);
    assert_eq!(
        s.send(given_up).await.unwrap_err().kind(),
        ErrorKind::Cancelled
    );
    assert_eq!(s.revision().await, tip);
}
