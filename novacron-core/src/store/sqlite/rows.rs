//! Rows of `records` and `history` as records, checked.

use bytes::Bytes;
use rusqlite::types::{ToSql, ToSqlOutput, ValueRef};
use rusqlite::{Connection, Row};

use super::failure::sql;
use super::sum::sum;
use crate::error::{Error, ErrorKind, Result};
use crate::store::{Key, Record, Revision};

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

/// Whether a row's checksum is that of its content; one without a checksum was taken as it is by a person.
/// The row begins with `key, version, value, sum`.
pub(super) fn is_whole(row: &Row<'_>) -> rusqlite::Result<bool> {
    let key = row.get_ref(0)?.as_str()?;
    let value = row.get_ref(2)?.as_bytes_or_null()?;
    let found = i64::from(sum(key, revision(row.get(1)?).0, value));
    Ok(row
        .get::<_, Option<i64>>(3)?
        .is_none_or(|noted| noted == found))
}

/// The key, version and value of a row of `key, version, value, sum`; a value that is missing is a delete.
pub(super) fn change(
    operation: &'static str,
    row: &Row<'_>,
) -> Result<(Key, Revision, Option<Bytes>)> {
    let parts = || {
        let value = row
            .get_ref(2)?
            .as_bytes_or_null()?
            .map(Bytes::copy_from_slice);
        let (key, version) = (row.get_ref(0)?.as_str()?, revision(row.get(1)?));
        Ok((key, version, value, is_whole(row)?))
    };
    let (key, version, value, whole) = parts().map_err(sql(operation))?;
    if !whole {
        let message = "a record does not fit its checksum: close the store, and open it with `check`, which names every \
                       such record and the way out";
        return Err(Error::new(ErrorKind::Corrupt, operation, message)
            .with("key", key)
            .with("version", version));
    }
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
