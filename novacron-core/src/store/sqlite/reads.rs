//! What reads: pure functions over a connection, each in one read transaction.
//!
//! A list at revision R is every record with version ≤ R, and of the history what was replaced after R (its `id` says
//! when) and written at or before R. A watch from R is every row of both tables with version > R. Either way the
//! history is scanned from R on only, so what a reader pays grows with what happened since, not with all there is.

use std::sync::Arc;

use rusqlite::{Connection, OptionalExtension, Row, Transaction, TransactionBehavior, params};

use super::failure::sql;
use super::rows::{self, int};
use crate::error::Result;
use crate::store::watch::{BATCH, Committed};
use crate::store::{Change, Key, ListOptions, Page, Record, Revision, check};

/// Bytes of values after which a batch of commits ends.
const BATCH_BYTES: usize = 4 << 20;

/// The record at a key.
pub(super) fn get(connection: &mut Connection, key: &Key) -> Result<Option<Record>> {
    let fail = sql("store.get");
    let mut select = connection
        .prepare_cached("SELECT key, version, value, sum FROM records WHERE key = ?1")
        .map_err(&fail)?;
    let mut found = select.query([key.as_str()]).map_err(&fail)?;
    match found.next().map_err(&fail)? {
        Some(row) => rows::record("store.get", row).map(Some),
        None => Ok(None),
    }
}

/// One page of a list.
pub(super) fn list(
    connection: &mut Connection,
    prefix: &str,
    options: &ListOptions,
) -> Result<Page> {
    let fail = sql("store.list");
    let snapshot = begin(connection).map_err(&fail)?;
    let (tip, compacted) = rows::revisions(&snapshot).map_err(&fail)?;
    let at = options.at.unwrap_or(tip);
    if at < compacted || at > tip {
        return Err(check::compacted("store.list", at, compacted, tip));
    }
    let after = options.after.as_ref().map_or("", Key::as_str);
    let from = if after > prefix { after } else { prefix };
    let to = behind(prefix);
    // One more than asked for tells whether more follow.
    let limit = i64::try_from(options.limit)
        .unwrap_or(i64::MAX)
        .saturating_add(1);

    let mut records = Vec::new();
    let mut take =
        |row: &Row<'_>| rows::record("store.list", row).map(|record| records.push(record));
    if at == tip {
        let select = "SELECT key, version, value, sum FROM records
            WHERE key >= ?1 AND key < ?2 AND key <> ?3 ORDER BY key LIMIT ?4";
        each(
            &snapshot,
            "store.list",
            select,
            params![from, to, after, limit],
            &mut take,
        )?;
    } else {
        let select = "SELECT key, version, value, sum FROM records
            WHERE key >= ?1 AND key < ?2 AND key <> ?3 AND version <= ?5
            UNION ALL SELECT key, version, value, sum FROM history
            WHERE id >= ?6 AND key >= ?1 AND key < ?2 AND key <> ?3 AND version <= ?5 AND value IS NOT NULL
            ORDER BY key LIMIT ?4";
        let replaced_later = (int(at) + 1) << 8;
        each(
            &snapshot,
            "store.list",
            select,
            params![from, to, after, limit, int(at), replaced_later],
            &mut take,
        )?;
    }
    let more = records.len() > options.limit;
    records.truncate(options.limit);
    Ok(Page {
        records,
        revision: at,
        more,
    })
}

/// Some commits after `after`, whole and in order, and the revision up to which they are complete.
pub(super) fn commits_after(
    connection: &mut Connection,
    after: Revision,
) -> Result<(Vec<Committed>, Revision)> {
    let fail = sql("store.watch");
    let snapshot = begin(connection).map_err(&fail)?;
    let (tip, compacted) = rows::revisions(&snapshot).map_err(&fail)?;
    if after < compacted || after > tip {
        return Err(check::compacted("store.watch", after, compacted, tip));
    }
    let mut select = snapshot
        .prepare_cached(
            "SELECT key, version, value, sum FROM records WHERE version > ?1
             UNION ALL SELECT key, version, value, sum FROM history WHERE version > ?1
             ORDER BY version",
        )
        .map_err(&fail)?;
    let mut found = select.query([int(after)]).map_err(&fail)?;

    let (mut commits, mut bytes) = (Vec::new(), 0);
    let mut open: Option<(Revision, Vec<Change>)> = None;
    while let Some(row) = found.next().map_err(&fail)? {
        let (key, version, value) = rows::change("store.watch", row)?;
        if open
            .as_ref()
            .is_some_and(|(revision, _)| *revision != version)
        {
            commits.extend(open.take().map(whole));
            if commits.len() >= BATCH || bytes >= BATCH_BYTES {
                let complete = commits.last().map_or(after, |commit| commit.revision);
                return Ok((commits, complete));
            }
        }
        bytes += value.as_ref().map_or(0, bytes::Bytes::len);
        open.get_or_insert_with(|| (version, Vec::new()))
            .1
            .push(Change { key, value });
    }
    commits.extend(open.map(whole));
    Ok((commits, tip))
}

/// Every beat.
pub(super) fn beats(connection: &Connection) -> rusqlite::Result<Vec<(String, Vec<u8>)>> {
    let mut select = connection.prepare("SELECT key, value FROM beats")?;
    select
        .query_map([], |row| {
            Ok((row.get(0)?, row.get_ref(1)?.as_bytes()?.to_vec()))
        })?
        .collect()
}

/// The revision at which a precondition finds a key.
pub(super) fn version(connection: &Connection, key: &Key) -> rusqlite::Result<Option<Revision>> {
    let mut select = connection.prepare_cached("SELECT version FROM records WHERE key = ?1")?;
    select
        .query_row([key.as_str()], |row| row.get(0).map(rows::revision))
        .optional()
}

fn begin(connection: &mut Connection) -> rusqlite::Result<Transaction<'_>> {
    connection.transaction_with_behavior(TransactionBehavior::Deferred)
}

/// The smallest text behind every key that starts with `prefix`: no key has a byte as large as DEL.
fn behind(prefix: &str) -> String {
    format!("{prefix}\x7f")
}

fn each(
    snapshot: &Transaction<'_>,
    operation: &'static str,
    select: &str,
    params: impl rusqlite::Params,
    mut take: impl FnMut(&Row<'_>) -> Result<()>,
) -> Result<()> {
    let mut select = snapshot.prepare_cached(select).map_err(sql(operation))?;
    let mut found = select.query(params).map_err(sql(operation))?;
    while let Some(row) = found.next().map_err(sql(operation))? {
        take(row)?;
    }
    Ok(())
}

fn whole((revision, mut changes): (Revision, Vec<Change>)) -> Committed {
    changes.sort_by(|a, b| a.key.cmp(&b.key));
    Committed {
        revision,
        changes: Arc::from(changes),
    }
}
