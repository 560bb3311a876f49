//! `watch`.

use std::collections::{BTreeMap, BTreeSet};

use super::subject::{delete, drain, json, key, next, put, replay, soon};
use super::{StoreFixture, Subject};
use crate::ErrorKind;
use crate::store::{Change, ListOptions, Revision, WatchEvent};

fn change(text: &str, value: Option<u32>) -> Change {
    Change {
        key: key(text),
        value: value.map(json),
    }
}

/// A watch after zero tells every commit from the first.
pub async fn watch_from_zero_delivers_everything(fixture: &dyn StoreFixture) {
    let s = Subject::open(fixture).await;
    let mut expected = Vec::new();
    for i in 0..20 {
        let name = format!("vm/{}", i % 4);
        expected.push((
            s.apply(vec![put(&*name, i)]).await,
            vec![change(&name, Some(i))],
        ));
    }
    let mut watch = s.watch(&["vm/"], Revision(0)).await;
    assert_eq!(drain(&mut watch, expected[19].0).await, expected);
}

/// A watch goes on with what is committed after it was opened, and tells nothing from before its start.
pub async fn watch_delivers_what_is_committed_later(fixture: &dyn StoreFixture) {
    let s = Subject::open(fixture).await;
    let start = s.apply(vec![put("vm/a", 0)]).await;
    let mut watch = s.watch(&["vm/"], start).await;
    for i in 1..10 {
        let revision = s.apply(vec![put("vm/a", i)]).await;
        assert_eq!(
            drain(&mut watch, revision).await,
            [(revision, vec![change("vm/a", Some(i))])]
        );
    }
    // Also when it waits already.
    let waiting = tokio::spawn(async move { drain(&mut watch, Revision(start.0 + 10)).await });
    tokio::task::yield_now().await;
    let revision = s.apply(vec![delete("vm/a")]).await;
    assert_eq!(
        soon("the watch", waiting).await.unwrap(),
        [(revision, vec![change("vm/a", None)])]
    );
}

/// All changes of a commit come in one event.
pub async fn watch_delivers_commits_whole(fixture: &dyn StoreFixture) {
    let s = Subject::open(fixture).await;
    let first = s
        .apply((0..100).map(|i| put(format!("vm/{i:02}"), i)).collect())
        .await;
    let second = s
        .apply(
            (0..100)
                .step_by(2)
                .map(|i| delete(format!("vm/{i:02}")))
                .collect(),
        )
        .await;
    let mut watch = s.watch(&["vm/"], Revision(0)).await;
    let commits = drain(&mut watch, second).await;
    assert_eq!(
        commits
            .iter()
            .map(|(r, c)| (*r, c.len()))
            .collect::<Vec<_>>(),
        [(first, 100), (second, 50)]
    );
}

/// A delete is a change without a value; a delete of an absent key is none.
pub async fn watch_tells_deletes(fixture: &dyn StoreFixture) {
    let s = Subject::open(fixture).await;
    let first = s.apply(vec![put("vm/a", 1)]).await;
    let second = s.apply(vec![delete("vm/a"), delete("vm/b")]).await;
    let third = s.apply(vec![delete("vm/a")]).await;
    let mut watch = s.watch(&[""], Revision(0)).await;
    let expected = [
        (first, vec![change("vm/a", Some(1))]),
        (second, vec![change("vm/a", None)]),
    ];
    assert_eq!(drain(&mut watch, third).await, expected);
}

/// Only changes under the prefix are told, and no commit without one.
pub async fn watch_filters_by_prefix(fixture: &dyn StoreFixture) {
    let s = Subject::open(fixture).await;
    let first = s
        .apply(vec![put("run/a/1", 1), put("run/ab/1", 1), put("vm/1", 1)])
        .await;
    s.apply(vec![put("run/ab/1", 2)]).await;
    let third = s.apply(vec![delete("run/a/1"), delete("vm/1")]).await;
    let mut watch = s.watch(&["run/a/"], Revision(0)).await;
    let expected = [
        (first, vec![change("run/a/1", Some(1))]),
        (third, vec![change("run/a/1", None)]),
    ];
    assert_eq!(drain(&mut watch, third).await, expected);
}

/// A change under two of the prefixes is told once.
pub async fn watch_of_several_prefixes(fixture: &dyn StoreFixture) {
    let s = Subject::open(fixture).await;
    let revision = s
        .apply(vec![put("run/a", 1), put("vm/a", 1), put("volume/a", 1)])
        .await;
    let mut watch = s.watch(&["vm/", "run/", "v"], Revision(0)).await;
    let [(at, changes)] = &drain(&mut watch, revision).await[..] else {
        panic!("one commit")
    };
    let keys: BTreeSet<_> = changes.iter().map(|c| c.key.as_str()).collect();
    assert_eq!(
        (*at, changes.len(), keys),
        (revision, 3, BTreeSet::from(["run/a", "vm/a", "volume/a"]))
    );
}

/// A bookmark follows when all there is has been told, also at once when there is nothing.
pub async fn watch_bookmarks_when_caught_up(fixture: &dyn StoreFixture) {
    let s = Subject::open(fixture).await;
    let mut empty = s.watch(&["vm/"], Revision(0)).await;
    assert_eq!(
        next(&mut empty).await.unwrap(),
        WatchEvent::Bookmark(Revision(0))
    );
    let revision = s.apply(vec![put("vm/a", 1)]).await;
    let mut idle = s.watch(&["vm/"], revision).await;
    assert_eq!(
        next(&mut idle).await.unwrap(),
        WatchEvent::Bookmark(revision)
    );
    assert_eq!(drain(&mut empty, revision).await.len(), 1);
}

/// The bookmark moves on with commits that the watch does not tell.
pub async fn watch_bookmark_passes_what_others_wrote(fixture: &dyn StoreFixture) {
    let s = Subject::open(fixture).await;
    let mut watch = s.watch(&["vm/"], Revision(0)).await;
    let mut last = Revision(0);
    for i in 0..10 {
        last = s.apply(vec![put("run/a", i)]).await;
    }
    assert!(drain(&mut watch, last).await.is_empty());
}

/// Whatever is written at the same time, each key's changes come in the order of their revisions, none missing.
pub async fn watch_keeps_the_order_of_each_key(fixture: &dyn StoreFixture) {
    let s = Subject::open(fixture).await;
    let mut watch = s.watch(&["vm/"], Revision(0)).await;
    let writers = (0..8).map(|w| {
        let s = s.clone();
        tokio::spawn(async move {
            let mut mine = Vec::new();
            for i in 0..25 {
                mine.push(
                    s.apply(vec![
                        put(format!("vm/{w}"), i),
                        put("vm/shared", format!("{w}-{i}")),
                    ])
                    .await,
                );
            }
            mine
        })
    });
    let written: Vec<_> = futures::future::join_all(writers)
        .await
        .into_iter()
        .map(Result::unwrap)
        .collect();
    let tip = s.revision().await;
    let mut told: BTreeMap<_, Vec<Revision>> = BTreeMap::new();
    for (revision, changes) in drain(&mut watch, tip).await {
        for change in changes {
            told.entry(change.key).or_default().push(revision);
        }
    }
    for (w, revisions) in written.iter().enumerate() {
        assert_eq!(&told[&key(format!("vm/{w}"))], revisions);
    }
    let mut all: Vec<_> = written.into_iter().flatten().collect();
    all.sort_unstable();
    assert_eq!(told[&key("vm/shared")], all);
}

/// A reader that comes back after its last bookmark misses nothing, wherever the stream was cut.
pub async fn watch_resumes_without_loss(fixture: &dyn StoreFixture) {
    let s = Subject::open(fixture).await;
    let (mut map, mut resume) = (BTreeMap::new(), Revision(0));
    for round in 0..12_u32 {
        let mut tip = Revision(0);
        for i in 0..5 {
            let (name, other) = (
                format!("vm/{}", (round + i) % 7),
                format!("vm/{}", (round * i + 3) % 5),
            );
            tip = s.apply(vec![put(name, round * 10 + i)]).await;
            if i % 2 == 0 {
                tip = s.apply(vec![delete(other)]).await;
            }
        }
        // Read some events, then drop the stream: what came after the last bookmark will come again.
        let mut watch = s.watch(&["vm/"], resume).await;
        for _ in 0..round % 5 {
            match next(&mut watch).await.unwrap() {
                WatchEvent::Commit { revision, changes } => {
                    replay(&mut map, &[(revision, changes.to_vec())]);
                }
                WatchEvent::Bookmark(revision) => {
                    resume = revision;
                    if revision == tip {
                        break;
                    }
                }
            }
        }
    }
    let tip = s.revision().await;
    let mut watch = s.watch(&["vm/"], resume).await;
    replay(&mut map, &drain(&mut watch, tip).await);
    assert_eq!(map, s.map("vm/", None).await);
}

/// A list, then a watch after its revision: together they have all, while others write.
pub async fn watch_after_a_list_misses_nothing(fixture: &dyn StoreFixture) {
    let s = Subject::open(fixture).await;
    let writers: Vec<_> = (0..4_u32)
        .map(|w| {
            let s = s.clone();
            tokio::spawn(async move {
                for i in 0..40_u32 {
                    let name = format!("vm/{}", (w * 7 + i * 3) % 23);
                    s.apply(vec![if i % 4 == 3 {
                        delete(name)
                    } else {
                        put(name, format!("{w}-{i}"))
                    }])
                    .await;
                }
            })
        })
        .collect();
    let mut readers = Vec::new();
    for _ in 0..4 {
        let (records, revision) = s.all("vm/", None).await;
        let map: BTreeMap<_, _> = records.into_iter().map(|r| (r.key, r.value)).collect();
        readers.push((map, s.watch(&["vm/"], revision).await));
        tokio::task::yield_now().await;
    }
    for writer in writers {
        soon("the writers", writer).await.unwrap();
    }
    let (tip, expected) = (s.revision().await, s.map("vm/", None).await);
    for (mut map, mut watch) in readers {
        replay(&mut map, &drain(&mut watch, tip).await);
        assert_eq!(map, expected);
    }
}

/// A reader that does not read holds nobody up; later it gets everything, or `Compacted`.
pub async fn watch_by_a_slow_reader_loses_nothing_in_silence(fixture: &dyn StoreFixture) {
    let s = Subject::open(fixture).await;
    let start = s.apply(vec![put("vm/start", 0)]).await;
    let mut watch = s.watch(&["vm/"], start).await;
    let filler = "x".repeat(16 * 1024);
    for round in 0..10 {
        let commits = (0..60).map(|i| {
            s.apply(vec![put(
                format!("vm/{i}"),
                format!("{round}-{i}-{filler}"),
            )])
        });
        futures::future::join_all(commits).await;
    }
    let tip = s.revision().await;
    let mut map = BTreeMap::new();
    loop {
        match next(&mut watch).await {
            Ok(WatchEvent::Commit { revision, changes }) => {
                replay(&mut map, &[(revision, changes.to_vec())]);
            }
            Ok(WatchEvent::Bookmark(revision)) if revision >= tip => break,
            Ok(WatchEvent::Bookmark(_)) => {}
            Err(error) => {
                assert_eq!(error.kind(), ErrorKind::Compacted);
                assert!(
                    soon("the end", futures::StreamExt::next(&mut watch))
                        .await
                        .is_none(),
                    "an error ends it"
                );
                return;
            }
        }
    }
    map.insert(key("vm/start"), json(0));
    assert_eq!(map, s.map("vm/", None).await);
}

async fn refused(s: &Subject, after: Revision) {
    let error = match s.store.watch(vec!["vm/".to_owned()], after).await {
        Err(error) => error,
        Ok(mut watch) => next(&mut watch).await.unwrap_err(),
    };
    assert_eq!(error.kind(), ErrorKind::Compacted);
}

/// A watch cannot start below what was compacted; it can at the revision compacted to.
pub async fn watch_after_a_compacted_revision_is_refused(fixture: &dyn StoreFixture) {
    let s = Subject::open(fixture).await;
    let first = s.apply(vec![put("vm/a", 1)]).await;
    let second = s.apply(vec![delete("vm/a"), put("vm/b", 1)]).await;
    let third = s.apply(vec![put("vm/b", 2)]).await;
    s.store.compact(second).await.unwrap();
    refused(&s, Revision(0)).await;
    refused(&s, first).await;
    let mut watch = s.watch(&["vm/"], second).await;
    assert_eq!(
        drain(&mut watch, third).await,
        [(third, vec![change("vm/b", Some(2))])]
    );
    // The way out: list, and watch from there.
    let page = s
        .store
        .list(
            "vm/",
            ListOptions {
                limit: 10,
                ..ListOptions::default()
            },
        )
        .await
        .unwrap();
    assert!(
        drain(&mut s.watch(&["vm/"], page.revision).await, third)
            .await
            .is_empty()
    );
}

/// A revision that was never reached belongs to another history: list again.
pub async fn watch_after_a_future_revision_is_refused(fixture: &dyn StoreFixture) {
    let s = Subject::open(fixture).await;
    let revision = s.apply(vec![put("vm/a", 1)]).await;
    refused(&s, Revision(revision.0 + 1000)).await;
}
