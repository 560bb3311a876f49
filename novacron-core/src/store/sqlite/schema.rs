//! The schema: versions, migrations, and views for people.
//!
//! `user_version` is the number of steps applied. Steps are never changed once released; a new one is appended. All
//! missing ones run in one transaction. The views (`views.sql`) are derived data and made anew whenever they differ.

use rusqlite::{Connection, OptionalExtension};

use crate::error::{Error, ErrorKind, Result};

use super::failure::sql;

/// Marks a file as ours: "NovC".
pub(super) const APPLICATION_ID: i32 = 0x4e6f_7643;

/// Step `n` leads from version `n` to `n + 1`.
const STEPS: &[&str] = &[include_str!("schema_1.sql")];

const VIEWS: &str = include_str!("views.sql");

/// The version this build writes.
pub(super) fn version() -> i32 {
    i32::try_from(STEPS.len()).unwrap_or(i32::MAX)
}

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
    for wanted in views() {
        let name = wanted.split(' ').nth(2).unwrap_or_default();
        let select = "SELECT sql FROM sqlite_schema WHERE type = 'view' AND name = ?1";
        let present: Option<String> = transaction
            .query_row(select, [name], |row| row.get(0))
            .optional()?;
        if present.as_deref() != Some(wanted) {
            transaction.execute_batch(&format!("DROP VIEW IF EXISTS {name}; {wanted}"))?;
        }
    }
    if found < version() {
        transaction.pragma_update(None, "user_version", version())?;
        transaction.pragma_update(None, "application_id", APPLICATION_ID)?;
    }
    transaction.commit()
}

/// The statements of the views, as SQLite keeps them.
fn views() -> impl Iterator<Item = &'static str> {
    let statements = VIEWS.split(";\n");
    statements.filter_map(|text| Some(&text[text.find("CREATE VIEW ")?..]))
}

#[cfg(test)]
mod tests {
    use rusqlite::types::Value;

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
    fn views_show_what_is_there_beside_what_is_damaged() {
        let mut connection = Connection::open_in_memory().unwrap();
        migrate(&mut connection).unwrap();
        let records = [
            (
                "vm/1",
                r#"{"v":1,"body":{"meta":{"name":"web-1"},"power":{"state":"on"}}}"#,
            ),
            (
                "claim/vm/1",
                r#"{"v":1,"body":{"epoch":3,"place":{"node":"alpha"}}}"#,
            ),
            ("run/alpha/1", r#"{"v":1,"body":{"phase":"running"}}"#),
            ("vm/2", r#"{"v":1,"body":{"meta":"#),
            ("vmx/1", "1"),
        ];
        for record in records {
            let insert = "INSERT INTO records VALUES (?1, 7, ?2, NULL)";
            connection.execute(insert, record).unwrap();
        }
        let mut select = connection
            .prepare("SELECT id, name, wanted, phase, node, epoch FROM vms")
            .unwrap();
        let rows: Vec<Vec<Value>> = select
            .query_map([], |row| (0..6).map(|i| row.get(i)).collect())
            .unwrap()
            .collect::<Result<_, _>>()
            .unwrap();
        let text = |text: &str| Value::Text(text.to_owned());
        let whole = ["1", "web-1", "on", "running", "alpha"].map(text);
        let damaged = [
            text("2"),
            Value::Null,
            Value::Null,
            Value::Null,
            Value::Null,
        ];
        assert_eq!(
            rows,
            [
                [&whole[..], &[Value::Integer(3)]].concat(),
                [&damaged[..], &[Value::Null]].concat()
            ]
        );
    }

    #[test]
    fn every_view_is_made_and_can_be_read() {
        let mut connection = Connection::open_in_memory().unwrap();
        migrate(&mut connection).unwrap();
        let made: i64 = connection
            .query_row(
                "SELECT count(*) FROM sqlite_schema WHERE type = 'view'",
                [],
                |row| row.get(0),
            )
            .unwrap();
        let wanted = VIEWS.matches("CREATE VIEW ").count();
        assert_eq!(usize::try_from(made), Ok(wanted));
        for view in views() {
            let name = view.split(' ').nth(2).unwrap();
            connection
                .prepare(&format!("SELECT * FROM {name}"))
                .unwrap_or_else(|e| panic!("{name}: {e}"));
        }
    }
}
