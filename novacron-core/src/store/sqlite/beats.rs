//! Heartbeats: kept in memory, written along with the next commits.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Bound;

use bytes::Bytes;

use crate::store::Key;

/// A beat to be saved, or to be removed.
pub(super) type Unsaved = (Key, Option<Bytes>);

/// The latest beats and which of them are not in the database yet.
#[derive(Debug, Default)]
pub(super) struct Beats {
    latest: BTreeMap<Key, Bytes>,
    unsaved: BTreeSet<Key>,
}

impl Beats {
    pub(super) fn loaded(latest: BTreeMap<Key, Bytes>) -> Self {
        Self {
            latest,
            unsaved: BTreeSet::new(),
        }
    }

    pub(super) fn put(&mut self, key: &Key, value: Option<Bytes>) {
        match value {
            Some(value) => drop(self.latest.insert(key.clone(), value)),
            None => drop(self.latest.remove(key)),
        }
        self.unsaved.insert(key.clone());
    }

    pub(super) fn under(&self, prefix: &str) -> Vec<(Key, Bytes)> {
        let from = self
            .latest
            .range::<str, _>((Bound::Included(prefix), Bound::Unbounded));
        let under = from.take_while(|(key, _)| key.as_str().starts_with(prefix));
        under
            .map(|(key, value)| (key.clone(), value.clone()))
            .collect()
    }

    /// Takes at most `most` that are to be saved; one without a value was removed.
    pub(super) fn take_unsaved(&mut self, most: usize) -> Vec<Unsaved> {
        let keys: Vec<_> = self.unsaved.iter().take(most).cloned().collect();
        let taken = keys.into_iter().map(|key| {
            self.unsaved.remove(&key);
            let value = self.latest.get(&key).cloned();
            (key, value)
        });
        taken.collect()
    }

    /// Gives back what could not be saved.
    pub(super) fn not_saved(&mut self, beats: Vec<Unsaved>) {
        self.unsaved.extend(beats.into_iter().map(|(key, _)| key));
    }
}
