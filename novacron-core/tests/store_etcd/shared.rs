//! What the tests of this folder share.

use std::time::Duration;

use bytes::Bytes;
use futures::StreamExt as _;
use novacron_core::store::{
    Commit, Key, Op, Precondition, Revision, TxnId, WatchEvent, WatchStream,
};
use novacron_core::{IdSource, Result, SeededIds};
use uuid::Uuid;

pub(crate) fn key(text: &str) -> Key {
    Key::new(text).unwrap()
}

pub(crate) fn value(value: impl std::fmt::Display) -> Bytes {
    value.to_string().into()
}

pub(crate) fn txn() -> TxnId {
    TxnId(Uuid::from_u128(SeededIds::from_os().bits()))
}

/// A commit that writes one record.
pub(crate) fn put(text: &str, number: impl std::fmt::Display) -> Commit {
    let mut commit = Commit::new(txn());
    commit.push(Op::Put(key(text), value(number)));
    commit
}

/// A commit that creates one record.
pub(crate) fn create(text: &str, number: impl std::fmt::Display) -> Commit {
    let mut commit = put(text, number);
    commit.require(Precondition::Absent(key(text)));
    commit
}

/// Real time: the servers' clocks cannot be moved.
#[expect(clippy::disallowed_methods, reason = "etcd's clock is the machine's")]
pub(crate) async fn pass(time: Duration) {
    tokio::time::sleep(time).await;
}

/// The keys of each commit.
pub(crate) type Told = Vec<(Revision, Vec<String>)>;

/// What a watch tells up to the bookmark that passes `until`.
pub(crate) async fn told(watch: &mut WatchStream, until: Revision) -> Told {
    read_until(watch, until).await.unwrap()
}

/// As [`told`], of a watch that may fail.
pub(crate) async fn read_until(watch: &mut WatchStream, until: Revision) -> Result<Told> {
    let mut commits = Vec::new();
    loop {
        let event = tokio::time::timeout(Duration::from_secs(30), watch.next()).await;
        match event.expect("an event in time").expect("no end")? {
            WatchEvent::Commit { revision, changes } => {
                let keys = changes.iter().map(|change| change.key.to_string());
                commits.push((revision, keys.collect()));
            }
            WatchEvent::Bookmark(revision) if revision >= until => return Ok(commits),
            WatchEvent::Bookmark(_) => {}
        }
    }
}
