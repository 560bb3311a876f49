//! What writes: one request each, inside the group's transaction.
//!
//! Everything is checked before anything is written, so a refused commit needs no savepoint. The outer result of each
//! function is SQLite's: an error there fails the whole group.

use rusqlite::{CachedStatement, Connection, OptionalExtension, params};

use super::beats::Unsaved;
use super::reads;
use super::rows::{self, Json, int, revision};
use super::sum::sum;
use crate::error::Result;
use crate::store::check::{self, Facts};
use crate::store::lease::LeaseRow;
use crate::store::watch::Committed;
use crate::store::{Change, Commit, Key, OUTCOMES_KEPT, Op, Revision, TxnId, TxnOutcome};
use crate::time::Timestamp;

/// Rows that compaction deletes at once, so that commits need not wait for long.
const SWEEP_ROWS: i64 = 500;

/// A result whose inner error is an answer and whose outer one is SQLite's.
pub(super) type Answer<T> = rusqlite::Result<Result<T>>;

/// The database at a time.
pub(super) struct Group<'a> {
    pub(super) connection: &'a Connection,
    /// The revision of the latest commit of this group, or before it.
    pub(super) revision: Revision,
    pub(super) now: Timestamp,
}

impl Group<'_> {
    fn prepare(&self, sql: &str) -> rusqlite::Result<CachedStatement<'_>> {
        self.connection.prepare_cached(sql)
    }

    fn now(&self) -> i64 {
        i64::try_from(self.now.as_millis()).unwrap_or(i64::MAX)
    }

    /// Applies a commit; nothing for watchers if it had been applied before.
    pub(super) fn commit(&mut self, commit: &Commit) -> Answer<(Revision, Option<Committed>)> {
        match self.decided(commit.txn)? {
            Some(TxnOutcome::Committed(revision)) => return Ok(Ok((revision, None))),
            Some(TxnOutcome::NotCommitted) => return Ok(Err(check::given_up(commit.txn))),
            None => {}
        }
        if let Err(conflict) = check::evaluate(&commit.preconditions, self)? {
            return Ok(Err(conflict));
        }

        self.revision.0 += 1;
        let revision = self.revision;
        let mut changes = Vec::with_capacity(commit.ops.len());
        for (place, op) in (0..).zip(&commit.ops) {
            let place = (int(revision) << 8) | (place << 1);
            let applied = match op {
                Op::Put(key, value) => self.put(place, key, value).map(|()| true),
                Op::Delete(key) => self.delete(place, key),
            }?;
            if applied {
                let value = if let Op::Put(_, value) = op {
                    Some(value.clone())
                } else {
                    None
                };
                changes.push(Change {
                    key: op.key().clone(),
                    value,
                });
            }
        }
        changes.sort_by(|a, b| a.key.cmp(&b.key));
        self.decide(commit.txn, TxnOutcome::Committed(revision))?;
        Ok(Ok((
            revision,
            Some(Committed {
                revision,
                changes: changes.into(),
            }),
        )))
    }

    fn put(&self, place: i64, key: &Key, value: &[u8]) -> rusqlite::Result<()> {
        self.keep(place, key)?;
        let sum = sum(key.as_str(), self.revision.0, Some(value));
        self.prepare(
            "INSERT INTO records (key, version, value, sum) VALUES (?1, ?2, ?3, ?4)
             ON CONFLICT (key) DO UPDATE SET version = excluded.version, value = excluded.value, sum = excluded.sum",
        )?
        .execute(params![key.as_str(), int(self.revision), Json(value), sum])?;
        Ok(())
    }

    /// Whether there was something to delete.
    fn delete(&self, place: i64, key: &Key) -> rusqlite::Result<bool> {
        if !self.keep(place, key)? {
            return Ok(false);
        }
        self.prepare("DELETE FROM records WHERE key = ?1")?
            .execute([key.as_str()])?;
        let sum = sum(key.as_str(), self.revision.0, None);
        self.prepare(
            "INSERT INTO history (id, key, version, value, sum) VALUES (?1, ?2, ?3, NULL, ?4)",
        )?
        .execute(params![place | 1, key.as_str(), int(self.revision), sum])?;
        Ok(true)
    }

    /// Copies the present value, if any, to the history.
    fn keep(&self, place: i64, key: &Key) -> rusqlite::Result<bool> {
        let copied = self
            .prepare(
                "INSERT INTO history (id, key, version, value, sum)
                 SELECT ?1, key, version, value, sum FROM records WHERE key = ?2",
            )?
            .execute(params![place, key.as_str()])?;
        Ok(copied == 1)
    }

    /// The outcome of `txn`; one never seen is ruled out from here on.
    pub(super) fn outcome(&self, txn: TxnId) -> rusqlite::Result<TxnOutcome> {
        if let Some(outcome) = self.decided(txn)? {
            return Ok(outcome);
        }
        self.decide(txn, TxnOutcome::NotCommitted)?;
        Ok(TxnOutcome::NotCommitted)
    }

    fn decided(&self, txn: TxnId) -> rusqlite::Result<Option<TxnOutcome>> {
        let mut select = self.prepare("SELECT revision FROM txns WHERE txn = ?1")?;
        let found: Option<Option<i64>> = select
            .query_row([txn.0.as_bytes()], |row| row.get(0))
            .optional()?;
        Ok(found.map(|at| {
            at.map_or(TxnOutcome::NotCommitted, |at| {
                TxnOutcome::Committed(revision(at))
            })
        }))
    }

    fn decide(&self, txn: TxnId, outcome: TxnOutcome) -> rusqlite::Result<()> {
        let committed = match outcome {
            TxnOutcome::Committed(revision) => Some(int(revision)),
            TxnOutcome::NotCommitted => None,
        };
        self.prepare("INSERT INTO txns (txn, revision, decided, at) VALUES (?1, ?2, ?3, ?4)")?
            .execute(params![
                txn.0.as_bytes(),
                committed,
                int(self.revision),
                self.now()
            ])?;
        Ok(())
    }

    /// Reads a lease, lets `change` decide, and writes it back if it changed.
    pub(super) fn lease<T>(
        &self,
        name: &str,
        change: impl FnOnce(&mut LeaseRow) -> T,
    ) -> rusqlite::Result<T> {
        let before = self.lease_row(name)?;
        let mut row = before.clone();
        let answer = change(&mut row);
        if row != before {
            self.prepare(
                "INSERT INTO leases (name, holder, token, expires) VALUES (?1, ?2, ?3, ?4)
                 ON CONFLICT (name) DO UPDATE
                 SET holder = excluded.holder, token = excluded.token, expires = excluded.expires",
            )?
            .execute(params![
                name,
                row.holder,
                i64::try_from(row.token).unwrap_or(i64::MAX),
                i64::try_from(row.expires.as_millis()).unwrap_or(i64::MAX)
            ])?;
        }
        Ok(answer)
    }

    fn lease_row(&self, name: &str) -> rusqlite::Result<LeaseRow> {
        let mut select =
            self.prepare("SELECT holder, token, expires FROM leases WHERE name = ?1")?;
        let number = |int: i64| u64::try_from(int).unwrap_or_default();
        let found = select.query_row([name], |row| {
            let expires = Timestamp::from_millis(number(row.get(2)?));
            Ok(LeaseRow {
                holder: row.get(0)?,
                token: number(row.get(1)?),
                expires,
            })
        });
        Ok(found.optional()?.unwrap_or_default())
    }

    /// Raises the compaction floor, and returns it. What lies below is swept away later.
    pub(super) fn compact(&self, before: Revision) -> rusqlite::Result<Revision> {
        let (_, compacted) = rows::revisions(self.connection)?;
        let floor = before.min(self.revision).max(compacted);
        self.prepare("UPDATE meta SET compacted = ?1")?
            .execute([int(floor)])?;
        Ok(floor)
    }

    /// The time up to which a compaction now may forget outcomes.
    pub(super) fn forgettable(&self) -> i64 {
        self.now() - i64::try_from(OUTCOMES_KEPT.as_millis()).unwrap_or(i64::MAX)
    }

    /// Deletes some of what only reads from before the floor need, and of the outcomes decided before it and no later
    /// than `forget`; whether there may be more.
    pub(super) fn sweep(&self, forget: i64) -> rusqlite::Result<bool> {
        let (_, floor) = rows::revisions(self.connection)?;
        let history = self
            .prepare("DELETE FROM history WHERE id IN (SELECT id FROM history WHERE id < ?1 ORDER BY id LIMIT ?2)")?
            .execute([(int(floor) + 1) << 8, SWEEP_ROWS])?;
        let txns = self
            .prepare(
                "DELETE FROM txns WHERE txn IN
                 (SELECT txn FROM txns WHERE at <= ?1 AND decided < ?2 ORDER BY at LIMIT ?3)",
            )?
            .execute([forget, int(floor), SWEEP_ROWS])?;
        Ok(history > 0 || txns > 0)
    }

    /// Writes the latest revision down, once for the group.
    pub(super) fn save_revision(&self) -> rusqlite::Result<()> {
        self.prepare("UPDATE meta SET revision = ?1")?
            .execute([int(self.revision)])?;
        Ok(())
    }

    /// Writes heartbeats down.
    pub(super) fn save_beats(&self, beats: &[Unsaved]) -> rusqlite::Result<()> {
        let sql = "INSERT INTO beats (key, value) VALUES (?1, ?2) ON CONFLICT (key) DO UPDATE SET value = excluded.value";
        let mut insert = self.prepare(sql)?;
        let mut delete = self.prepare("DELETE FROM beats WHERE key = ?1")?;
        for (key, value) in beats {
            match value {
                Some(value) => insert.execute(params![key.as_str(), Json(value)])?,
                None => delete.execute([key.as_str()])?,
            };
        }
        Ok(())
    }
}

impl Facts for Group<'_> {
    type Error = rusqlite::Error;

    fn version(&self, key: &Key) -> rusqlite::Result<Option<Revision>> {
        reads::version(self.connection, key)
    }

    fn holds(&self, name: &str, token: u64) -> rusqlite::Result<bool> {
        Ok(self.lease_row(name)?.holds(token, self.now))
    }
}
