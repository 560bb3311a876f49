//! The data of a [`MemoryStore`](super::MemoryStore): every version of every record that was not compacted away.
//!
//! Plain synchronous functions over ordered maps; the caller holds the lock.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::ops::Bound;

use bytes::Bytes;

use super::super::check::{self, Facts};
use super::super::lease::LeaseRow;
use super::super::watch::Committed;
use super::super::{
    Change, Commit, Key, ListOptions, OUTCOMES_KEPT, Op, Page, Record, Revision, TxnId, TxnOutcome,
};
use crate::error::Result;
use crate::time::Timestamp;

#[derive(Clone, Debug, Default)]
pub(super) struct State {
    revision: Revision,
    /// Reads and watches from before this one answer Compacted.
    compacted: Revision,
    /// The versions of each key, oldest first; none is a delete.
    records: BTreeMap<Key, Vec<(Revision, Option<Bytes>)>>,
    txns: BTreeMap<TxnId, Txn>,
    pub(super) leases: BTreeMap<String, LeaseRow>,
    pub(super) beats: BTreeMap<Key, Bytes>,
}

#[derive(Clone, Debug)]
struct Txn {
    outcome: TxnOutcome,
    /// The store's revision when it was decided.
    revision: Revision,
    at: Timestamp,
}

impl State {
    pub(super) fn revision(&self) -> Revision {
        self.revision
    }

    pub(super) fn get(&self, key: &Key) -> Option<Record> {
        let (version, value) = self.records.get(key)?.last()?;
        Some(Record {
            key: key.clone(),
            version: *version,
            value: value.clone()?,
        })
    }

    pub(super) fn list(&self, prefix: &str, options: &ListOptions) -> Result<Page> {
        let at = options.at.unwrap_or(self.revision);
        self.check_kept("store.list", at)?;
        let start = match &options.after {
            Some(after) if after.as_str() >= prefix => Bound::Excluded(after.as_str()),
            _ => Bound::Included(prefix),
        };
        let mut found = self
            .records
            .range::<str, _>((start, Bound::Unbounded))
            .take_while(|(key, _)| key.as_str().starts_with(prefix))
            .filter_map(|(key, versions)| {
                let (version, value) = versions.iter().rfind(|(version, _)| *version <= at)?;
                Some(Record {
                    key: key.clone(),
                    version: *version,
                    value: value.clone()?,
                })
            });
        let records = found.by_ref().take(options.limit).collect();
        Ok(Page {
            records,
            revision: at,
            more: found.next().is_some(),
        })
    }

    /// Fails unless `revision` is one that reads may still be at.
    pub(super) fn check_kept(&self, operation: &'static str, revision: Revision) -> Result<()> {
        if (self.compacted..=self.revision).contains(&revision) {
            Ok(())
        } else {
            Err(check::compacted(
                operation,
                revision,
                self.compacted,
                self.revision,
            ))
        }
    }

    /// Applies a commit; none if it had been applied before.
    pub(super) fn commit(
        &mut self,
        commit: &Commit,
        now: Timestamp,
    ) -> Result<(Revision, Option<Committed>)> {
        match self.txns.get(&commit.txn).map(|txn| txn.outcome) {
            Some(TxnOutcome::Committed(revision)) => return Ok((revision, None)),
            Some(TxnOutcome::NotCommitted) => return Err(check::given_up(commit.txn)),
            None => {}
        }
        let Ok(verdict) = check::evaluate(&commit.preconditions, &At { state: self, now });
        verdict?;

        self.revision.0 += 1;
        let revision = self.revision;
        let mut changes = Vec::with_capacity(commit.ops.len());
        for op in &commit.ops {
            let value = match op {
                Op::Put(_, value) => Some(value.clone()),
                Op::Delete(key) if self.get(key).is_none() => continue,
                Op::Delete(_) => None,
            };
            self.records
                .entry(op.key().clone())
                .or_default()
                .push((revision, value.clone()));
            changes.push(Change {
                key: op.key().clone(),
                value,
            });
        }
        changes.sort_by(|a, b| a.key.cmp(&b.key));
        self.txns.insert(
            commit.txn,
            Txn {
                outcome: TxnOutcome::Committed(revision),
                revision,
                at: now,
            },
        );
        Ok((
            revision,
            Some(Committed {
                revision,
                changes: changes.into(),
            }),
        ))
    }

    /// The outcome of `txn`; one never seen is ruled out from here on.
    pub(super) fn outcome(&mut self, txn: TxnId, now: Timestamp) -> TxnOutcome {
        let revision = self.revision;
        self.txns
            .entry(txn)
            .or_insert(Txn {
                outcome: TxnOutcome::NotCommitted,
                revision,
                at: now,
            })
            .outcome
    }

    /// Forgets what only reads before `before` need, and returns the new floor.
    pub(super) fn compact(&mut self, before: Revision, now: Timestamp) -> Revision {
        let floor = before.min(self.revision).max(self.compacted);
        self.compacted = floor;
        self.records.retain(|_, versions| {
            // The latest version at the floor stays, unless it is a delete.
            let keep = versions
                .iter()
                .rposition(|(version, _)| *version <= floor)
                .unwrap_or(0);
            versions.drain(..keep);
            if versions
                .first()
                .is_some_and(|(version, value)| *version <= floor && value.is_none())
            {
                versions.remove(0);
            }
            !versions.is_empty()
        });
        self.txns
            .retain(|_, txn| txn.revision >= floor || now.since(txn.at) < OUTCOMES_KEPT);
        floor
    }
}

/// The state at a time, for preconditions.
struct At<'a> {
    state: &'a State,
    now: Timestamp,
}

impl Facts for At<'_> {
    type Error = Infallible;

    fn version(&self, key: &Key) -> Result<Option<Revision>, Infallible> {
        let latest = self
            .state
            .records
            .get(key)
            .and_then(|versions| versions.last());
        Ok(latest
            .filter(|(_, value)| value.is_some())
            .map(|(version, _)| *version))
    }

    fn holds(&self, name: &str, token: u64) -> Result<bool, Infallible> {
        Ok(self
            .state
            .leases
            .get(name)
            .is_some_and(|lease| lease.holds(token, self.now)))
    }
}
