//! Which keys of etcd the store uses.
//!
//! | key | holds | written by |
//! |---|---|---|
//! | `r/<key>` | a record | commits |
//! | `rev` | nothing: its mod revision is the store's revision | every commit, as its last operation |
//! | `t/<txn>` | what became of a commit, under an etcd lease so that it goes by itself | commits, `outcome` |
//! | `l/<name>` | a lease's holder, under an etcd lease of its time to live | leases |
//! | `b/<key>` | a beat | beats |
//!
//! One range, from `r/` to `rev`, covers what a watch must see, and nothing that the others write.

use bytes::Bytes;

use crate::store::{Key, TxnId};

/// The keys under one prefix.
#[derive(Clone, Debug)]
pub(super) struct Keys {
    prefix: String,
}

impl Keys {
    pub(super) fn new(prefix: &str) -> Self {
        Self {
            prefix: prefix.to_owned(),
        }
    }

    fn make(&self, parts: &[&str]) -> Bytes {
        let mut key = self.prefix.clone();
        parts.iter().for_each(|part| key.push_str(part));
        key.into()
    }

    pub(super) fn revision(&self) -> Bytes {
        self.make(&["rev"])
    }

    pub(super) fn record(&self, key: &str) -> Bytes {
        self.make(&["r/", key])
    }

    pub(super) fn beat(&self, key: &str) -> Bytes {
        self.make(&["b/", key])
    }

    pub(super) fn lease(&self, name: &str) -> Bytes {
        self.make(&["l/", name])
    }

    pub(super) fn txn(&self, txn: TxnId) -> Bytes {
        self.make(&["t/", &txn.0.to_string()])
    }

    /// The range of everything that commits change.
    pub(super) fn watched(&self) -> (Bytes, Bytes) {
        (self.record(""), self.make(&["rev\0"]))
    }

    /// The record's key in a key of etcd, if it is one.
    pub(super) fn record_of(&self, key: &Bytes) -> Option<Key> {
        self.part(key, "r/")
    }

    /// The beat's key in a key of etcd, if it is one.
    pub(super) fn beat_of(&self, key: &Bytes) -> Option<Key> {
        self.part(key, "b/")
    }

    fn part(&self, key: &Bytes, kind: &str) -> Option<Key> {
        let rest = key.strip_prefix(self.prefix.as_bytes())?;
        let rest = rest.strip_prefix(kind.as_bytes())?;
        Key::new(std::str::from_utf8(rest).ok()?).ok()
    }
}

/// The first key behind every key that begins with `prefix`.
pub(super) fn behind(prefix: &Bytes) -> Bytes {
    let mut end = prefix.to_vec();
    // Text in UTF-8 has no byte 0xff.
    if let Some(last) = end.last_mut() {
        *last += 1;
    }
    end.into()
}

/// The first key behind `key`.
pub(super) fn next(key: &Bytes) -> Bytes {
    let mut next = key.to_vec();
    next.push(0);
    next.into()
}
