//! The schema: versions, migrations, and views of each kind of record for people.
//!
//! `user_version` is the number of steps applied. Steps are never changed once released; a new one is appended. All
//! missing ones run in one transaction. The views per kind are derived data and made anew whenever they differ.

use rusqlite::{Connection, OptionalExtension};

use crate::error::{Error, ErrorKind, Result};

use super::failure::sql;

/// Marks a file as ours: "NovC".
pub(super) const APPLICATION_ID: i32 = 0x4e6f_7643;

/// Step `n` leads from version `n` to `n + 1`.
const STEPS: &[&str] = &[include_str!("schema_1.sql")];

/// The version this build writes.
pub(super) fn version() -> i32 {
    i32::try_from(STEPS.len()).unwrap_or(i32::MAX)
}

/// A view of one kind of record: its name and the first part of the keys.
///
/// Columns that every kind has: `id` (the rest of the key), `revision`, `name`, `phase` (if the JSON has such members
/// anywhere) and `json`.
const KINDS: &[(&str, &str)] = &[
    ("vms", "vm"),
    ("runs", "run"),
    ("nodes", "node"),
    ("volumes", "volume"),
    ("pools", "pool"),
    ("images", "image"),
    ("networks", "network"),
    ("snapshots", "snapshot"),
    ("operations", "operation"),
    ("actions", "action"),
    ("events", "event"),
    ("names", "name"),
];

/// Fails with [`ErrorKind::Corrupt`] when a file of schema `found` is newer than this build.
pub(super) fn check_version(found: i32) -> Result<()> {
    let ours = version();
    if found <= ours {
        return Ok(());
    }
    let message = format!(
        "the database has schema {found} and this build knows up to {ours}: use a newer build"
    );
    Err(Error::new(ErrorKind::Corrupt, "store.open", message)
        .with("schema", found)
        .with("supported", ours))
}

/// Brings the schema up to date.
pub(super) fn migrate(connection: &mut Connection) -> Result<()> {
    let found: i32 = connection
        .query_row("PRAGMA user_version", [], |row| row.get(0))
        .map_err(sql("store.open"))?;
    check_version(found)?;
    apply(connection, found).map_err(sql("store.migrate"))
}

fn apply(connection: &mut Connection, found: i32) -> rusqlite::Result<()> {
    let transaction = connection.transaction()?;
    for step in STEPS
        .iter()
        .skip(usize::try_from(found).unwrap_or_default())
    {
        transaction.execute_batch(step)?;
    }
    for (view, kind) in KINDS {
        let wanted = view_of(view, kind);
        let select = "SELECT sql FROM sqlite_schema WHERE type = 'view' AND name = ?1";
        let present: Option<String> = transaction
            .query_row(select, [view], |row| row.get(0))
            .optional()?;
        if present.as_ref() != Some(&wanted) {
            transaction.execute_batch(&format!("DROP VIEW IF EXISTS {view}; {wanted}"))?;
        }
    }
    if found < version() {
        transaction.pragma_update(None, "user_version", version())?;
        transaction.pragma_update(None, "application_id", APPLICATION_ID)?;
    }
    transaction.commit()
}

fn view_of(view: &str, kind: &str) -> String {
    // The first member of that name at any depth: the store does not know the envelope.
    let member = |name: &str| {
        format!(
            "(SELECT atom FROM json_tree(records.value) WHERE json_tree.key = '{name}' AND atom IS NOT NULL LIMIT 1)"
        )
    };
    format!(
        "CREATE VIEW {view} AS SELECT substr(key, {}) AS id, {} AS name, {} AS phase, version AS revision, \
         value AS json FROM records WHERE key >= '{kind}/' AND key < '{kind}0'",
        kind.len() + 2,
        member("name"),
        member("phase"),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn migrating_twice_changes_nothing() {
        let mut connection = Connection::open_in_memory().unwrap();
        migrate(&mut connection).unwrap();
        let before = connection.total_changes();
        let version: i32 = connection
            .query_row("PRAGMA schema_version", [], |row| row.get(0))
            .unwrap();
        migrate(&mut connection).unwrap();
        assert_eq!(
            connection.query_row("PRAGMA schema_version", [], |row| row.get(0)),
            Ok(version)
        );
        assert_eq!(connection.total_changes(), before);
    }

    #[test]
    fn a_view_shows_the_members_of_a_record() {
        let mut connection = Connection::open_in_memory().unwrap();
        migrate(&mut connection).unwrap();
        let json = r#"{"v":1,"meta":{"name":"web-1"},"status":{"phase":"running"}}"#;
        connection
            .execute(
                "INSERT INTO records VALUES ('vm/1', 7, ?1, NULL), ('vmx/1', 8, '1', NULL)",
                [json],
            )
            .unwrap();
        let mut select = connection
            .prepare("SELECT id, name, phase, revision FROM vms")
            .unwrap();
        let rows: Vec<(String, String, String, u32)> = select
            .query_map([], |row| {
                Ok((row.get(0)?, row.get(1)?, row.get(2)?, row.get(3)?))
            })
            .unwrap()
            .collect::<Result<_, _>>()
            .unwrap();
        assert_eq!(
            rows,
            [("1".to_owned(), "web-1".to_owned(), "running".to_owned(), 7)]
        );
    }
}
