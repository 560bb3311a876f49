//! Rows of `records` and `history` as records, checked.

use bytes::Bytes;
use rusqlite::types::{ToSql, ToSqlOutput, ValueRef};
use rusqlite::{Connection, Row};

use super::failure::sql;
use super::sum::sum;
use crate::error::{Error, ErrorKind, Result};
use crate::store::{Key, Record, Revision};

/// The columns that the functions of this module expect, in this order.
pub(super) const RECORD: &str = "key, version, value, sum";

/// JSON bytes bound as TEXT, so that people and `json_extract` can read them.
pub(super) struct Json<'a>(pub(super) &'a [u8]);

impl ToSql for Json<'_> {
    fn to_sql(&self) -> rusqlite::Result<ToSqlOutput<'_>> {
        Ok(ToSqlOutput::Borrowed(ValueRef::Text(self.0)))
    }
}

/// A revision as SQLite's integer.
pub(super) fn int(revision: Revision) -> i64 {
    i64::try_from(revision.0).unwrap_or(i64::MAX)
}

/// SQLite's integer as a revision.
pub(super) fn revision(int: i64) -> Revision {
    Revision(u64::try_from(int).unwrap_or_default())
}

/// The latest revision and the one compacted to.
pub(super) fn revisions(connection: &Connection) -> rusqlite::Result<(Revision, Revision)> {
    let mut select = connection.prepare_cached("SELECT revision, compacted FROM meta")?;
    select.query_row([], |row| Ok((revision(row.get(0)?), revision(row.get(1)?))))
}

/// Fails with [`ErrorKind::Corrupt`] when a row's checksum is not that of its content.
pub(super) fn verify(operation: &'static str, row: &Row<'_>) -> Result<()> {
    let parts = || {
        let value = row.get_ref(2)?.as_bytes_or_null()?;
        Ok((
            row.get_ref(0)?.as_str()?,
            row.get::<_, i64>(1)?,
            value,
            row.get::<_, Option<i64>>(3)?,
        ))
    };
    let (key, version, value, expected) = parts().map_err(sql(operation))?;
    match expected {
        Some(expected) if expected != i64::from(sum(key, revision(version).0, value)) => {
            let message = "a record is damaged (its checksum does not fit): restore the database from a backup";
            Err(Error::new(ErrorKind::Corrupt, operation, message)
                .with("key", key)
                .with("version", version))
        }
        _ => Ok(()),
    }
}

/// The key, version and value of a row; a value that is missing is a delete.
pub(super) fn change(
    operation: &'static str,
    row: &Row<'_>,
) -> Result<(Key, Revision, Option<Bytes>)> {
    verify(operation, row)?;
    let parts = || {
        let value = row
            .get_ref(2)?
            .as_bytes_or_null()?
            .map(Bytes::copy_from_slice);
        Ok((row.get_ref(0)?.as_str()?, revision(row.get(1)?), value))
    };
    let (key, version, value) = parts().map_err(sql(operation))?;
    let key = Key::new(key).map_err(|e| {
        Error::new(
            ErrorKind::Corrupt,
            operation,
            "the database holds a record whose key is none",
        )
        .caused_by(e)
    })?;
    Ok((key, version, value))
}

/// A row that is a record.
pub(super) fn record(operation: &'static str, row: &Row<'_>) -> Result<Record> {
    let (key, version, value) = change(operation, row)?;
    Ok(Record {
        key,
        version,
        value: value.unwrap_or_default(),
    })
}
