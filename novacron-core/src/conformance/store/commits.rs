//! `commit`: atomicity, preconditions, limits, concurrency.

use std::time::Duration;

use super::subject::{context, delete, json, key, put};
use super::{StoreFixture, Subject};
use crate::ErrorKind;
use crate::store::{MAX_COMMIT_BYTES, MAX_OPS, MAX_VALUE_BYTES, Op, Precondition, Revision};

/// Every operation of a commit is applied, at one revision.
pub async fn commit_applies_every_operation_at_one_revision(fixture: &dyn StoreFixture) {
    let s = Subject::open(fixture).await;
    s.apply(vec![put("vm/a", 1), put("vm/b", 1)]).await;
    let revision = s
        .apply(vec![put("vm/a", 2), delete("vm/b"), put("run/n/a", 1)])
        .await;
    assert_eq!(s.revision().await, revision);
    assert_eq!(
        (s.version("vm/a").await, s.value("vm/a").await),
        (Some(revision), Some("\"2\"".to_owned()))
    );
    assert_eq!(s.version("vm/b").await, None);
    assert_eq!(s.version("run/n/a").await, Some(revision));
}

/// Each commit has a larger revision than those that returned before.
pub async fn commit_revisions_grow(fixture: &dyn StoreFixture) {
    let s = Subject::open(fixture).await;
    let mut last = s.revision().await;
    for i in 0..20 {
        let revision = s.apply(vec![put(format!("vm/{}", i % 3), "same")]).await;
        assert!(revision > last);
        last = revision;
    }
}

/// When one precondition fails, nothing is applied and the revision stays.
pub async fn commit_with_a_failed_precondition_applies_nothing(fixture: &dyn StoreFixture) {
    let s = Subject::open(fixture).await;
    let revision = s.apply(vec![put("vm/a", 1), put("vm/b", 1)]).await;
    let preconditions = vec![
        Precondition::Present(key("vm/a")),
        Precondition::Absent(key("vm/b")),
    ];
    let ops = vec![put("vm/a", 2), delete("vm/b"), put("vm/c", 1)];
    let error = s.apply_if(preconditions, ops).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Conflict);
    assert_eq!(s.revision().await, revision);
    assert_eq!(
        (s.version("vm/a").await, s.version("vm/b").await),
        (Some(revision), Some(revision))
    );
    assert_eq!(s.version("vm/c").await, None);
}

/// A delete of a key that is absent is no error, alone or beside others.
pub async fn delete_of_an_absent_key_is_no_error(fixture: &dyn StoreFixture) {
    let s = Subject::open(fixture).await;
    s.apply(vec![delete("vm/a")]).await;
    let revision = s.apply(vec![delete("vm/a"), put("vm/b", 1)]).await;
    assert_eq!(
        (s.version("vm/a").await, s.version("vm/b").await),
        (None, Some(revision))
    );
}

/// `Absent` holds for a key never written and for a deleted one.
pub async fn precondition_absent(fixture: &dyn StoreFixture) {
    let s = Subject::open(fixture).await;
    let absent = || vec![Precondition::Absent(key("vm/a"))];
    s.apply_if(absent(), vec![put("vm/a", 1)]).await.unwrap();
    assert_eq!(
        s.apply_if(absent(), vec![put("vm/a", 2)])
            .await
            .unwrap_err()
            .kind(),
        ErrorKind::Conflict
    );
    s.apply(vec![delete("vm/a")]).await;
    s.apply_if(absent(), vec![put("vm/a", 3)]).await.unwrap();
}

/// `Present` holds at whatever version.
pub async fn precondition_present(fixture: &dyn StoreFixture) {
    let s = Subject::open(fixture).await;
    let present = || vec![Precondition::Present(key("vm/a"))];
    assert_eq!(
        s.apply_if(present(), vec![put("vm/a", 1)])
            .await
            .unwrap_err()
            .kind(),
        ErrorKind::Conflict
    );
    s.apply(vec![put("vm/a", 1)]).await;
    s.apply_if(present(), vec![put("vm/a", 2)]).await.unwrap();
    s.apply_if(present(), vec![delete("vm/a")]).await.unwrap();
    assert_eq!(
        s.apply_if(present(), vec![put("vm/a", 3)])
            .await
            .unwrap_err()
            .kind(),
        ErrorKind::Conflict
    );
}

/// `At` holds at exactly the version of the record.
pub async fn precondition_at_a_revision(fixture: &dyn StoreFixture) {
    let s = Subject::open(fixture).await;
    let at = |revision| vec![Precondition::At(key("vm/a"), revision)];
    assert_eq!(
        s.apply_if(at(Revision(0)), vec![put("vm/a", 1)])
            .await
            .unwrap_err()
            .kind(),
        ErrorKind::Conflict
    );
    let first = s.apply(vec![put("vm/a", 1)]).await;
    let other = s.apply(vec![put("vm/b", 1)]).await;
    assert_eq!(
        s.apply_if(at(other), vec![put("vm/a", 2)])
            .await
            .unwrap_err()
            .kind(),
        ErrorKind::Conflict
    );
    let second = s.apply_if(at(first), vec![put("vm/a", 2)]).await.unwrap();
    assert_eq!(
        s.apply_if(at(first), vec![put("vm/a", 3)])
            .await
            .unwrap_err()
            .kind(),
        ErrorKind::Conflict
    );
    s.apply_if(at(second), vec![delete("vm/a")]).await.unwrap();
    assert_eq!(
        s.apply_if(at(second), vec![put("vm/a", 4)])
            .await
            .unwrap_err()
            .kind(),
        ErrorKind::Conflict
    );
}

/// A record that was deleted and created with the same value is another one.
pub async fn precondition_is_not_fooled_by_delete_and_create(fixture: &dyn StoreFixture) {
    let s = Subject::open(fixture).await;
    let first = s.apply(vec![put("vm/a", 1)]).await;
    s.apply(vec![delete("vm/a")]).await;
    s.apply(vec![put("vm/a", 1)]).await;
    let error = s
        .apply_if(
            vec![Precondition::At(key("vm/a"), first)],
            vec![put("vm/a", 2)],
        )
        .await
        .unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Conflict);
}

/// A precondition may guard by a key that the commit does not touch.
pub async fn precondition_on_a_key_that_is_not_written(fixture: &dyn StoreFixture) {
    let s = Subject::open(fixture).await;
    let epoch = s.apply(vec![put("epoch", 1)]).await;
    s.apply_if(
        vec![Precondition::At(key("epoch"), epoch)],
        vec![put("vm/a", 1)],
    )
    .await
    .unwrap();
    s.apply(vec![put("epoch", 2)]).await;
    let error = s
        .apply_if(
            vec![Precondition::At(key("epoch"), epoch)],
            vec![put("vm/a", 2)],
        )
        .await
        .unwrap_err();
    assert_eq!(context(&error, "key"), Some("epoch"));
}

/// A conflict names the precondition by its index and its key, or the lease's name.
pub async fn failed_precondition_is_named_by_index_and_key(fixture: &dyn StoreFixture) {
    let s = Subject::open(fixture).await;
    let revision = s.apply(vec![put("vm/a", 1)]).await;
    let good = || {
        vec![
            Precondition::Present(key("vm/a")),
            Precondition::At(key("vm/a"), revision),
        ]
    };
    for (bad, name) in [
        (Precondition::Absent(key("vm/a")), "vm/a"),
        (Precondition::Present(key("vm/b")), "vm/b"),
        (Precondition::At(key("vm/c"), revision), "vm/c"),
        (
            Precondition::At(key("vm/a"), Revision(revision.0 + 1)),
            "vm/a",
        ),
        (
            Precondition::Lease {
                name: "leader".to_owned(),
                token: 1,
            },
            "leader",
        ),
    ] {
        let mut preconditions = good();
        preconditions.push(bad);
        preconditions.extend(good());
        let error = s
            .apply_if(preconditions, vec![put("vm/a", 2)])
            .await
            .unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Conflict);
        assert_eq!(
            (context(&error, "precondition"), context(&error, "key")),
            (Some("2"), Some(name))
        );
    }
}

async fn refused(s: &Subject, ops: Vec<Op>) {
    let before = s.revision().await;
    assert_eq!(
        s.apply_if(Vec::new(), ops).await.unwrap_err().kind(),
        ErrorKind::Invalid
    );
    assert_eq!(s.revision().await, before);
}

/// A value of the limit is taken and comes back; one byte more is refused.
pub async fn limit_on_the_size_of_a_value(fixture: &dyn StoreFixture) {
    let s = Subject::open(fixture).await;
    let value = json("x".repeat(MAX_VALUE_BYTES - 2));
    s.apply(vec![Op::Put(key("vm/a"), value.clone())]).await;
    assert_eq!(
        s.store.get(&key("vm/a")).await.unwrap().unwrap().value,
        value
    );
    refused(&s, vec![put("vm/b", "x".repeat(MAX_VALUE_BYTES - 1))]).await;
}

/// As many operations as the limit are taken; one more is refused.
pub async fn limit_on_the_number_of_operations(fixture: &dyn StoreFixture) {
    let s = Subject::open(fixture).await;
    s.apply((0..MAX_OPS).map(|i| put(format!("vm/{i}"), i)).collect())
        .await;
    assert_eq!(s.all("vm/", None).await.0.len(), MAX_OPS);
    refused(
        &s,
        (0..=MAX_OPS).map(|i| put(format!("vm/{i}"), i)).collect(),
    )
    .await;
}

/// As many preconditions as the limit are taken; one more is refused.
pub async fn limit_on_the_number_of_preconditions(fixture: &dyn StoreFixture) {
    let s = Subject::open(fixture).await;
    let absent = |n: usize| {
        (0..n)
            .map(|i| Precondition::Absent(key(format!("vm/{i}"))))
            .collect()
    };
    s.apply_if(absent(MAX_OPS), vec![put("vn/a", 1)])
        .await
        .unwrap();
    let error = s
        .apply_if(absent(MAX_OPS + 1), vec![put("vn/a", 2)])
        .await
        .unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Invalid);
}

/// A commit of the limit's size is taken whole; a larger one is refused.
pub async fn limit_on_the_size_of_a_commit(fixture: &dyn StoreFixture) {
    let s = Subject::open(fixture).await;
    let quarter = MAX_COMMIT_BYTES / 4 - "vm/0".len() - 2;
    let ops = |size: usize| {
        (0..4)
            .map(|i| put(format!("vm/{i}"), "x".repeat(size)))
            .collect::<Vec<_>>()
    };
    let revision = s.apply(ops(quarter)).await;
    assert!(
        s.all("vm/", None)
            .await
            .0
            .iter()
            .all(|r| r.version == revision && r.value.len() == quarter + 2)
    );
    refused(&s, ops(quarter + 1)).await;
}

/// A key stands in at most one operation.
pub async fn commit_naming_a_key_twice_is_refused(fixture: &dyn StoreFixture) {
    let s = Subject::open(fixture).await;
    refused(&s, vec![put("vm/a", 1), put("vm/b", 1), put("vm/a", 2)]).await;
    refused(&s, vec![put("vm/a", 1), delete("vm/a")]).await;
}

/// A commit changes something.
pub async fn commit_without_operations_is_refused(fixture: &dyn StoreFixture) {
    let s = Subject::open(fixture).await;
    refused(&s, Vec::new()).await;
}

/// Of many commits at the same time that exclude each other, exactly one is applied.
pub async fn conflicting_commits_have_one_winner(fixture: &dyn StoreFixture) {
    let s = Subject::open(fixture).await;
    let mut version = s.apply(vec![put("vm/a", "start")]).await;
    for round in 0..5 {
        let tasks: Vec<_> = (0..24)
            .map(|i| {
                let s = s.clone();
                let expected = vec![Precondition::At(key("vm/a"), version)];
                let ops = vec![
                    put("vm/a", format!("{round}-{i}")),
                    put(format!("won/{round}/{i}"), i),
                ];
                tokio::spawn(async move { (i, s.apply_if(expected, ops).await) })
            })
            .collect();
        let mut winners = Vec::new();
        for task in tasks {
            match task.await.unwrap() {
                (i, Ok(revision)) => winners.push((i, revision)),
                (_, Err(error)) => assert_eq!(error.kind(), ErrorKind::Conflict),
            }
        }
        let [(winner, revision)] = winners[..] else {
            panic!("round {round}: winners {winners:?}")
        };
        assert_eq!(s.value("vm/a").await, Some(format!("\"{round}-{winner}\"")));
        let won = s.all(&format!("won/{round}/"), None).await.0;
        assert_eq!(won.len(), 1, "what the losers wrote beside it");
        version = revision;
    }
}

/// Read, add one, commit if unchanged, else again: no addition is lost.
pub async fn concurrent_increments_lose_nothing(fixture: &dyn StoreFixture) {
    let s = Subject::open(fixture).await;
    s.apply(vec![put("counter", 0)]).await;
    let tasks: Vec<_> = (0..6)
        .map(|_| {
            let s = s.clone();
            tokio::spawn(async move {
                for _ in 0..8 {
                    loop {
                        let record = s.store.get(&key("counter")).await.unwrap().unwrap();
                        let text = std::str::from_utf8(&record.value)
                            .unwrap()
                            .trim_matches('"');
                        let more = text.parse::<u32>().unwrap() + 1;
                        let unchanged = vec![Precondition::At(key("counter"), record.version)];
                        match s.apply_if(unchanged, vec![put("counter", more)]).await {
                            Ok(_) => break,
                            Err(error) => assert_eq!(error.kind(), ErrorKind::Conflict),
                        }
                        tokio::task::yield_now().await;
                    }
                }
            })
        })
        .collect();
    for task in tasks {
        tokio::time::timeout(Duration::from_secs(60), task)
            .await
            .unwrap()
            .unwrap();
    }
    assert_eq!(s.value("counter").await.unwrap(), "\"48\"");
}

/// Two commits that each require what the other one changes: one goes through (no write skew).
pub async fn crossed_preconditions_let_one_through(fixture: &dyn StoreFixture) {
    let s = Subject::open(fixture).await;
    for round in 0..10 {
        let (a, b) = (format!("a/{round}"), format!("b/{round}"));
        let first = s.apply_if(vec![Precondition::Absent(key(&*b))], vec![put(&*a, 1)]);
        let second = s.apply_if(vec![Precondition::Absent(key(&*a))], vec![put(&*b, 1)]);
        let (first, second) = futures::join!(first, second);
        assert!(
            first.is_ok() != second.is_ok(),
            "round {round}: {first:?}, {second:?}"
        );
    }
}
