//! `get`, `list` and `compact`.

use super::subject::{delete, json, key, put, soon};
use super::{StoreFixture, Subject};
use crate::ErrorKind;
use crate::store::{ListOptions, Revision};

fn keys(page: &[crate::store::Record]) -> Vec<&str> {
    page.iter().map(|record| record.key.as_str()).collect()
}

/// The empty store is at zero and has no record.
pub async fn empty_store_is_at_revision_zero(fixture: &dyn StoreFixture) {
    let s = Subject::open(fixture).await;
    assert_eq!(s.revision().await, Revision(0));
    assert_eq!(s.value("vm/a").await, None);
    assert!(s.all("", None).await.0.is_empty());
}

/// A `get` sees every commit that returned before, whoever made it.
pub async fn get_sees_every_commit_that_returned(fixture: &dyn StoreFixture) {
    let s = Subject::open(fixture).await;
    for i in 0..50 {
        let revision = s.apply(vec![put("vm/a", i)]).await;
        let other = s.clone();
        let seen = tokio::spawn(async move { other.store.get(&key("vm/a")).await })
            .await
            .unwrap()
            .unwrap()
            .unwrap();
        assert_eq!(
            (seen.key, seen.version, seen.value),
            (key("vm/a"), revision, json(i))
        );
    }
    s.apply(vec![delete("vm/a")]).await;
    assert_eq!(s.value("vm/a").await, None);
}

/// A `list` sees every commit that returned before, and its revision is at least theirs.
pub async fn list_sees_every_commit_that_returned(fixture: &dyn StoreFixture) {
    let s = Subject::open(fixture).await;
    for i in 0..50 {
        let revision = s.apply(vec![put(format!("vm/{i:02}"), i)]).await;
        let other = s.clone();
        let (records, at) = tokio::spawn(async move { other.all("vm/", None).await })
            .await
            .unwrap();
        assert!(at >= revision);
        assert_eq!(records.len(), i + 1);
    }
}

/// A list has the records whose keys start with the prefix, byte for byte, in the order of the keys' bytes.
pub async fn list_is_in_key_order_under_its_prefix(fixture: &dyn StoreFixture) {
    let s = Subject::open(fixture).await;
    let mut under = [
        "vm/a", "vm/a/b", "vm/a-b", "vm/a.b", "vm/ab", "vm/B", "vm/_", "vm/a:0", "vm/a@0", "vm/10",
        "vm/9",
    ];
    let beside = ["v", "vm", "vm-x/a", "vm0", "vmx/a", "VM/a", "wm/a"];
    s.apply(under.iter().chain(&beside).map(|k| put(*k, k)).collect())
        .await;

    under.sort_unstable();
    assert_eq!(keys(&s.all("vm/", None).await.0), under);
    assert_eq!(
        keys(&s.all("vm/a", None).await.0),
        [
            "vm/a", "vm/a-b", "vm/a.b", "vm/a/b", "vm/a:0", "vm/a@0", "vm/ab"
        ]
    );
    assert_eq!(keys(&s.all("vm/ab", None).await.0), ["vm/ab"]);
    assert!(s.all("vm/abc", None).await.0.is_empty());
    assert_eq!(s.all("", None).await.0.len(), under.len() + beside.len());
    for wild in ["vm%", "vm_", "vm/a*", "vm/?"] {
        let expected: &[&str] = &[];
        assert_eq!(
            keys(&s.all(wild, None).await.0),
            expected,
            "{wild:?} is no pattern"
        );
    }
}

/// `after` need not exist; what is before the prefix changes nothing, what is behind it leaves nothing.
pub async fn list_continues_after_a_key(fixture: &dyn StoreFixture) {
    let s = Subject::open(fixture).await;
    s.apply(
        ["vm/a", "vm/c", "vm/e"]
            .into_iter()
            .map(|k| put(k, k))
            .collect(),
    )
    .await;
    for (after, expected) in [
        ("vm/a", vec!["vm/c", "vm/e"]),
        ("vm/b", vec!["vm/c", "vm/e"]),
        ("vm/e", vec![]),
        ("a", vec!["vm/a", "vm/c", "vm/e"]),
        ("z", vec![]),
    ] {
        let options = ListOptions {
            after: Some(key(after)),
            limit: 10,
            at: None,
        };
        let page = soon("list", s.store.list("vm/", options)).await.unwrap();
        assert_eq!(
            (keys(&page.records), page.more),
            (expected, false),
            "after {after}"
        );
    }
}

/// `more` is true if and only if another record follows.
pub async fn list_tells_exactly_whether_more_follow(fixture: &dyn StoreFixture) {
    let s = Subject::open(fixture).await;
    s.apply(
        (0..5)
            .map(|i| put(format!("vm/{i}"), i))
            .chain([put("vn/0", 0)])
            .collect(),
    )
    .await;
    s.apply(vec![delete("vm/4")]).await;
    for (limit, count, more) in [
        (3, 3, true),
        (4, 4, false),
        (5, 4, false),
        (usize::MAX, 4, false),
    ] {
        let page = s
            .store
            .list(
                "vm/",
                ListOptions {
                    limit,
                    ..ListOptions::default()
                },
            )
            .await
            .unwrap();
        assert_eq!(
            (page.records.len(), page.more),
            (count, more),
            "limit {limit}"
        );
    }
}

/// A limit of zero returns no record but the present revision.
pub async fn list_with_limit_zero_tells_the_revision(fixture: &dyn StoreFixture) {
    let s = Subject::open(fixture).await;
    let revision = s.apply(vec![put("vm/a", 1)]).await;
    let page = s.store.list("", ListOptions::default()).await.unwrap();
    assert_eq!((page.records.len(), page.revision), (0, revision));
}

/// The revision counts every commit that returned before, whoever made it, and is the one that a list would have.
pub async fn revision_is_that_of_a_list(fixture: &dyn StoreFixture) {
    let s = Subject::open(fixture).await;
    assert_eq!(s.store.revision().await.unwrap(), Revision(0));
    for i in 0..20 {
        let committed = s.apply(vec![put("vm/a", i)]).await;
        let other = s.clone();
        let told = tokio::spawn(async move { other.store.revision().await })
            .await
            .unwrap()
            .unwrap();
        assert_eq!((told, s.revision().await), (committed, committed));
    }
}

/// All pages of one list show one revision, whatever is written, deleted and created between them.
pub async fn list_pages_share_one_revision_while_others_write(fixture: &dyn StoreFixture) {
    let s = Subject::open(fixture).await;
    s.apply(
        (0..60)
            .map(|i| put(format!("vm/{i:02}"), "before"))
            .collect(),
    )
    .await;
    let before = s.all("vm/", None).await;

    let mut pages = Vec::new();
    let mut options = ListOptions {
        limit: 10,
        ..ListOptions::default()
    };
    loop {
        let page = s.store.list("vm/", options.clone()).await.unwrap();
        assert_eq!(page.revision, before.1);
        options.at = Some(page.revision);
        options.after = page.records.last().map(|r| r.key.clone());
        pages.extend(page.records);
        let n = pages.len();
        s.apply(vec![
            put(format!("vm/{:02}", (n + 3) % 60), "changed"),
            delete(format!("vm/{:02}", (n + 5) % 60)),
            put(format!("vm/{:02}x", (n + 7) % 60), "new"),
        ])
        .await;
        s.apply(vec![put(
            format!("vm/{:02}", (n + 5) % 60),
            "created again",
        )])
        .await;
        if !page.more {
            break;
        }
    }
    assert_eq!(pages, before.0);
}

/// A list at an old revision shows the values, versions and absences of that time.
pub async fn list_at_an_old_revision_shows_it(fixture: &dyn StoreFixture) {
    let s = Subject::open(fixture).await;
    let mut seen = vec![(Revision(0), Vec::new())];
    for ops in [
        vec![put("vm/a", 1), put("vm/b", 1)],
        vec![put("vm/a", 2), put("vm/c", 1)],
        vec![delete("vm/a")],
        vec![put("vm/a", 3), delete("vm/b")],
        vec![delete("vm/a"), delete("vm/c")],
        vec![put("vm/b", 2)],
    ] {
        let revision = s.apply(ops).await;
        seen.push((revision, s.all("vm/", None).await.0));
    }
    for (revision, records) in seen {
        assert_eq!(s.all("vm/", Some(revision)).await, (records, revision));
    }
}

/// What was compacted away is refused, and the revision compacted to is not.
pub async fn list_at_a_compacted_revision_is_refused(fixture: &dyn StoreFixture) {
    let s = Subject::open(fixture).await;
    let first = s.apply(vec![put("vm/a", 1)]).await;
    let second = s.apply(vec![put("vm/a", 2)]).await;
    s.apply(vec![put("vm/a", 3)]).await;
    s.store.compact(second).await.unwrap();

    let options = |at| ListOptions {
        limit: 10,
        at: Some(at),
        after: None,
    };
    let error = s.store.list("vm/", options(first)).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Compacted);
    let page = s.store.list("vm/", options(second)).await.unwrap();
    assert_eq!(page.records[0].value, json(2));
    s.store.compact(first).await.unwrap();
    assert_eq!(
        s.store
            .list("vm/", options(first))
            .await
            .unwrap_err()
            .kind(),
        ErrorKind::Compacted,
        "it never goes back"
    );
}

/// A revision that was never reached belongs to another history: list again.
pub async fn list_at_a_future_revision_is_refused(fixture: &dyn StoreFixture) {
    let s = Subject::open(fixture).await;
    let revision = s.apply(vec![put("vm/a", 1)]).await;
    let options = ListOptions {
        limit: 10,
        at: Some(Revision(revision.0 + 1000)),
        after: None,
    };
    assert_eq!(
        s.store.list("vm/", options).await.unwrap_err().kind(),
        ErrorKind::Compacted
    );
}

/// Compaction, also beyond the present revision, changes nothing of what is present, nor its versions.
pub async fn compaction_keeps_what_is_present(fixture: &dyn StoreFixture) {
    let s = Subject::open(fixture).await;
    s.apply((0..20).map(|i| put(format!("vm/{i:02}"), 1)).collect())
        .await;
    s.apply((0..10).map(|i| put(format!("vm/{i:02}"), 2)).collect())
        .await;
    let revision = s
        .apply((5..15).map(|i| delete(format!("vm/{i:02}"))).collect())
        .await;
    let before = s.all("", None).await;
    s.store.compact(revision).await.unwrap();
    s.store.compact(Revision(revision.0 + 1000)).await.unwrap();
    assert_eq!(s.all("", None).await, before);
    let next = s.apply(vec![put("vm/00", 3)]).await;
    assert!(next > revision);
    assert_eq!(s.all("", Some(revision)).await, before);
}
