//! What reads: one statement each, so each has one snapshot of the database.
//!
//! A list at revision R is every record with version ≤ R, and of the history what was replaced after R and written at
//! or before R. A watch from R is every row of both tables with version > R. Keys of a kind that has its own table are
//! looked up there, by name: the plan has one table in it, not thirty.

use std::sync::Arc;

use bytes::Bytes;
use tokio_postgres::Row;

use super::schema;
use crate::error::{Error, ErrorKind, Result};
use crate::store::watch::Committed;
use crate::store::{Change, Key, ListOptions, Page, Record, Revision, check};

/// How many commits a watcher reads at once: bounds what a page takes in memory.
pub(super) const PAGE: i64 = 64;

/// A revision as PostgreSQL's integer.
pub(super) fn int(revision: Revision) -> i64 {
    i64::try_from(revision.0).unwrap_or(i64::MAX)
}

/// PostgreSQL's integer as a revision.
pub(super) fn revision(int: i64) -> Revision {
    Revision(u64::try_from(int).unwrap_or_default())
}

/// The statements of one schema.
#[derive(Debug)]
pub(super) struct Statements {
    schema: String,
    pub(super) revision: String,
    pub(super) revisions: String,
    pub(super) commits_after: String,
    pub(super) commit_group: String,
    pub(super) outcome: String,
    pub(super) compact: String,
    pub(super) sweep: String,
    pub(super) lease_acquire: String,
    pub(super) lease_renew: String,
    pub(super) lease_release: String,
    pub(super) put_beat: String,
    pub(super) drop_beat: String,
    pub(super) beats: String,
}

impl Statements {
    pub(super) fn new(schema: &str) -> Self {
        let s = schema::quoted(schema);
        Self {
            revision: format!("SELECT revision FROM {s}.revision"),
            revisions: format!("SELECT revision, compacted FROM {s}.revision"),
            commits_after: format!(
                "SELECT m.revision, m.compacted, c.key, c.version, c.value FROM {s}.revision m LEFT JOIN LATERAL (
                     SELECT key, version, coalesce(raw, value::text) AS value FROM {s}.records
                     WHERE version > $1 AND version <= $2
                     UNION ALL SELECT key, version, coalesce(raw, value::text) FROM {s}.history
                     WHERE version > $1 AND version <= $2) c ON true ORDER BY c.version"
            ),
            commit_group: format!("SELECT * FROM {s}.commit_group($1, $2, $3, $4, $5, $6, $7, $8)"),
            outcome: format!("SELECT {s}.outcome($1)"),
            compact: format!("SELECT {s}.compact($1)"),
            sweep: format!("SELECT {s}.sweep($1, $2)"),
            lease_acquire: format!("SELECT * FROM {s}.lease_acquire($1, $2, $3)"),
            lease_renew: format!("SELECT * FROM {s}.lease_renew($1, $2, $3, $4)"),
            lease_release: format!(
                "UPDATE {s}.leases SET holder = NULL WHERE name = $1 AND holder = $2 AND token = $3"
            ),
            put_beat: format!(
                "INSERT INTO {s}.beats (key, value) VALUES ($1, $2) ON CONFLICT (key) DO UPDATE SET value = excluded.value"
            ),
            drop_beat: format!("DELETE FROM {s}.beats WHERE key = $1"),
            beats: format!(
                "SELECT key, value FROM {s}.beats WHERE key >= $1 AND key < $2 ORDER BY key"
            ),
            schema: s,
        }
    }

    /// The record at a key of `kind`.
    pub(super) fn get(&self, kind: &str) -> String {
        let table = self.table(kind);
        format!("SELECT key, version, coalesce(raw, value::text) FROM {table} WHERE key = $1")
    }

    /// A page of a list, each row with the store's revisions; with `old`, as of one before the present.
    pub(super) fn list(&self, kind: Option<&str>, old: bool) -> String {
        let s = &self.schema;
        let table = kind.map_or_else(|| format!("{s}.records"), |kind| self.table(kind));
        let range = "key >= $1 AND key < $2 AND key <> $3";
        let found = if old {
            // Each part in order and cut off by itself: otherwise the server sorts all that follows for every page.
            format!(
                "(SELECT key, version, coalesce(raw, value::text) AS value FROM {table}
                  WHERE {range} AND version <= $5 ORDER BY key LIMIT $4)
                 UNION ALL (SELECT key, version, coalesce(raw, value::text) FROM {s}.history
                  WHERE {range} AND replaced > $5 AND version <= $5 AND value IS NOT NULL ORDER BY key LIMIT $4)
                 ORDER BY key LIMIT $4"
            )
        } else {
            format!(
                "SELECT key, version, coalesce(raw, value::text) AS value FROM {table}
                 WHERE {range} ORDER BY key LIMIT $4"
            )
        };
        format!(
            "SELECT m.revision, m.compacted, r.key, r.version, r.value FROM {s}.revision m
             LEFT JOIN LATERAL ({found}) r ON true ORDER BY r.key"
        )
    }

    /// Where the records of a kind are.
    fn table(&self, kind: &str) -> String {
        format!(
            "{}.{}",
            self.schema,
            schema::table(kind).unwrap_or("others")
        )
    }
}

/// The bounds of the keys under `prefix`, with the kind if it names one.
pub(super) fn range(prefix: &str) -> (&str, String, Option<&str>) {
    // No key has a byte as large as DEL, so an empty range stands for a prefix that no key has. PostgreSQL takes no NUL.
    if prefix.contains('\0') {
        return ("\x7f", "\x7f".to_owned(), None);
    }
    let kind = prefix.split_once('/').map(|(kind, _)| kind);
    (prefix, format!("{prefix}\x7f"), kind)
}

/// The rows of a page as one; `limit` is what was asked for, one less than what was read.
pub(super) fn page(rows: &[Row], options: &ListOptions) -> Result<Page> {
    let (tip, compacted) = revisions("store.list", rows)?;
    let at = options.at.unwrap_or(tip);
    if at < compacted || at > tip {
        return Err(check::compacted("store.list", at, compacted, tip));
    }
    let mut records = Vec::new();
    for row in rows {
        if let Some((key, version, value)) = change("store.list", row, 2)? {
            let value = value.ok_or_else(|| damaged("store.list", key.as_str()))?;
            records.push(Record {
                key,
                version,
                value,
            });
        }
    }
    let more = records.len() > options.limit;
    records.truncate(options.limit);
    Ok(Page {
        records,
        revision: at,
        more,
    })
}

/// What follows `after`: whole commits in order, the revision up to which they are complete, and the store's.
pub(super) fn commits(
    rows: &[Row],
    after: Revision,
) -> Result<(Vec<Committed>, Revision, Revision)> {
    let (tip, compacted) = revisions("store.watch", rows)?;
    if after < compacted || after > tip {
        return Err(check::compacted("store.watch", after, compacted, tip));
    }
    let complete = tip.min(Revision(after.0.saturating_add(PAGE.unsigned_abs())));
    let mut commits: Vec<(Revision, Vec<Change>)> = Vec::new();
    for row in rows {
        let Some((key, version, value)) = change("store.watch", row, 2)? else {
            continue;
        };
        let change = Change { key, value };
        match commits.last_mut() {
            Some((revision, changes)) if *revision == version => changes.push(change),
            _ => commits.push((version, vec![change])),
        }
    }
    // A commit that changed nothing is in neither table; watchers learn that it was there.
    if complete > commits.last().map_or(after, |(revision, _)| *revision) {
        commits.push((complete, Vec::new()));
    }
    let whole = commits.into_iter().map(|(revision, mut changes)| {
        changes.sort_by(|a, b| a.key.cmp(&b.key));
        Committed {
            revision,
            changes: Arc::from(changes),
        }
    });
    Ok((whole.collect(), complete, tip))
}

/// The one record of a `get`.
pub(super) fn record(rows: &[Row]) -> Result<Option<Record>> {
    let Some(row) = rows.first() else {
        return Ok(None);
    };
    let found = change("store.get", row, 0)?;
    let record = found.and_then(|(key, version, value)| {
        let value = value?;
        Some(Record {
            key,
            version,
            value,
        })
    });
    Ok(record)
}

/// The beats under a prefix.
pub(super) fn beats(rows: &[Row]) -> Result<Vec<(Key, Bytes)>> {
    let beat = |row: &Row| {
        let (key, value): (String, String) = (row.get(0), row.get(1));
        let key = Key::new(key.as_str()).map_err(|e| damaged("store.beats", &key).caused_by(e))?;
        Ok((key, value.into()))
    };
    rows.iter().map(beat).collect()
}

/// The latest revision and the one compacted to, of rows that begin with them.
pub(super) fn revisions(operation: &'static str, rows: &[Row]) -> Result<(Revision, Revision)> {
    let row = one(operation, rows)?;
    Ok((revision(row.get(0)), revision(row.get(1))))
}

/// The latest revision.
pub(super) fn tip(operation: &'static str, rows: &[Row]) -> Result<Revision> {
    Ok(revision(one(operation, rows)?.get(0)))
}

/// The first row, which is always there in a store that is whole.
pub(super) fn one<'a>(operation: &'static str, rows: &'a [Row]) -> Result<&'a Row> {
    rows.first().ok_or_else(|| {
        let message =
            "the one row of the table `revision` is missing: restore the database from a backup";
        Error::new(ErrorKind::Corrupt, operation, message)
    })
}

type Found = (Key, Revision, Option<Bytes>);

/// The key, version and value of a row, from column `first` on; none if the row has none.
fn change(operation: &'static str, row: &Row, first: usize) -> Result<Option<Found>> {
    let Some(key) = row.get::<_, Option<&str>>(first) else {
        return Ok(None);
    };
    let value = row.get::<_, Option<String>>(first + 2).map(Bytes::from);
    let parsed = Key::new(key).map_err(|e| damaged(operation, key).caused_by(e))?;
    Ok(Some((parsed, revision(row.get(first + 1)), value)))
}

fn damaged(operation: &'static str, key: &str) -> Error {
    let message = "the database holds a record that no store wrote";
    Error::new(ErrorKind::Corrupt, operation, message).with("key", key)
}
