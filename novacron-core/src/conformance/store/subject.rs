//! A store under test, with the few calls that nearly every behaviour makes.

use std::collections::BTreeMap;
use std::future::Future;
use std::sync::Arc;

use bytes::Bytes;
use futures::StreamExt;
use uuid::Uuid;

use super::{PATIENCE, StoreFixture};
use crate::error::{Error, Result};
use crate::store::{
    Change, Commit, Key, ListOptions, Op, Precondition, Record, Revision, Store, TxnId, WatchEvent,
    WatchStream,
};
use crate::time::{IdSource, SeededIds};

/// A key.
pub(super) fn key(text: impl Into<String>) -> Key {
    Key::new(text.into()).unwrap()
}

/// A put of a JSON string.
pub(super) fn put(text: impl Into<String>, value: impl std::fmt::Display) -> Op {
    Op::Put(key(text), json(value))
}

/// A delete.
pub(super) fn delete(text: impl Into<String>) -> Op {
    Op::Delete(key(text))
}

/// `value` as a JSON string.
pub(super) fn json(value: impl std::fmt::Display) -> Bytes {
    format!("{:?}", value.to_string()).into()
}

/// The future's output; panics when there is none in time.
pub(super) async fn soon<T>(what: &str, future: impl Future<Output = T>) -> T {
    match tokio::time::timeout(PATIENCE, future).await {
        Ok(output) => output,
        Err(_) => panic!("no answer within {PATIENCE:?}: {what}"),
    }
}

/// The value of a context pair of an error.
pub(super) fn context<'a>(error: &'a Error, name: &str) -> Option<&'a str> {
    error
        .context()
        .find(|(key, _)| *key == name)
        .map(|(_, value)| value)
}

/// A store under test. Clones share it.
#[derive(Clone)]
pub(super) struct Subject {
    pub(super) store: Arc<dyn Store>,
    ids: Arc<SeededIds>,
}

impl Subject {
    pub(super) async fn open(fixture: &dyn StoreFixture) -> Self {
        Self {
            store: soon("open", fixture.open()).await,
            ids: Arc::new(SeededIds::from_os()),
        }
    }

    pub(super) async fn reopen(self, fixture: &dyn StoreFixture) -> Self {
        let Self { store, ids } = self;
        Self {
            store: soon("reopen", fixture.reopen(store)).await,
            ids,
        }
    }

    /// A transaction id that was never used.
    pub(super) fn txn(&self) -> TxnId {
        TxnId(Uuid::from_u128(self.ids.bits()))
    }

    /// A commit with a fresh transaction id.
    pub(super) fn draft(&self, preconditions: Vec<Precondition>, ops: Vec<Op>) -> Commit {
        Commit {
            txn: self.txn(),
            preconditions,
            ops,
        }
    }

    pub(super) async fn send(&self, commit: Commit) -> Result<Revision> {
        soon("commit", self.store.commit(commit)).await
    }

    /// Commits operations that must succeed.
    pub(super) async fn apply(&self, ops: Vec<Op>) -> Revision {
        self.send(self.draft(Vec::new(), ops)).await.unwrap()
    }

    /// Commits operations under preconditions.
    pub(super) async fn apply_if(
        &self,
        preconditions: Vec<Precondition>,
        ops: Vec<Op>,
    ) -> Result<Revision> {
        self.send(self.draft(preconditions, ops)).await
    }

    /// The value at a key, as text.
    pub(super) async fn value(&self, text: &str) -> Option<String> {
        let record = soon("get", self.store.get(&key(text))).await.unwrap()?;
        Some(String::from_utf8(record.value.to_vec()).unwrap())
    }

    pub(super) async fn version(&self, text: &str) -> Option<Revision> {
        Some(
            soon("get", self.store.get(&key(text)))
                .await
                .unwrap()?
                .version,
        )
    }

    /// The present revision.
    pub(super) async fn revision(&self) -> Revision {
        soon("list", self.store.list("", ListOptions::default()))
            .await
            .unwrap()
            .revision
    }

    /// Every record under a prefix, now or at a revision, in pages of seven.
    pub(super) async fn all(&self, prefix: &str, at: Option<Revision>) -> (Vec<Record>, Revision) {
        let (mut records, mut options) = (
            Vec::new(),
            ListOptions {
                limit: 7,
                at,
                after: None,
            },
        );
        loop {
            let page = soon("list", self.store.list(prefix, options.clone()))
                .await
                .unwrap();
            records.extend(page.records);
            if !page.more {
                return (records, page.revision);
            }
            options.at = Some(page.revision);
            options.after = records.last().map(|r| r.key.clone());
        }
    }

    /// The keys and values under a prefix.
    pub(super) async fn map(&self, prefix: &str, at: Option<Revision>) -> BTreeMap<Key, Bytes> {
        self.all(prefix, at)
            .await
            .0
            .into_iter()
            .map(|r| (r.key, r.value))
            .collect()
    }

    pub(super) async fn watch(&self, prefixes: &[&str], after: Revision) -> WatchStream {
        let prefixes = prefixes.iter().map(ToString::to_string).collect();
        soon("watch", self.store.watch(prefixes, after))
            .await
            .unwrap()
    }
}

/// The next event of a watch.
pub(super) async fn next(watch: &mut WatchStream) -> Result<WatchEvent> {
    soon("the next event", watch.next())
        .await
        .unwrap_or_else(|| panic!("the watch ended without an error"))
}

/// The commits of a watch up to the bookmark that passes `until`, in the order delivered.
pub(super) async fn drain(
    watch: &mut WatchStream,
    until: Revision,
) -> Vec<(Revision, Vec<Change>)> {
    let mut commits = Vec::new();
    loop {
        match next(watch).await.unwrap() {
            WatchEvent::Commit { revision, changes } => commits.push((revision, changes.to_vec())),
            WatchEvent::Bookmark(revision) if revision >= until => return commits,
            WatchEvent::Bookmark(_) => {}
        }
    }
}

/// Applies the changes of delivered commits to a map.
pub(super) fn replay(map: &mut BTreeMap<Key, Bytes>, commits: &[(Revision, Vec<Change>)]) {
    for change in commits.iter().flat_map(|(_, changes)| changes) {
        match &change.value {
            Some(value) => map.insert(change.key.clone(), value.clone()),
            None => map.remove(&change.key),
        };
    }
}
