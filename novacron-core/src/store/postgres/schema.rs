//! The schema: versions, migrations, and what must be there.
//!
//! `migrations` has a row for each step applied. Steps are never changed once released; a new one is appended. All
//! missing ones run in one transaction under an advisory lock, so that of many processes that start one migrates. When
//! the schema is up to date nothing is written, and no privilege to make or change tables is needed.

use tokio_postgres::Client;

use super::PostgresOptions;
use super::failure::of_statement;
use crate::error::{Error, ErrorKind, Result};

/// Step `n` leads from version `n` to `n + 1`.
const STEPS: &[&str] = &[include_str!("schema_1.sql")];

/// The oldest server, as its `server_version_num`.
const OLDEST_SERVER: i32 = 140_000;

/// The tables of the kinds that have one of their own.
const KINDS: &[(&str, &str)] = &[
    ("action", "actions"),
    ("action-status", "action_status"),
    ("assignment", "assignments"),
    ("audit", "audits"),
    ("claim", "claims"),
    ("cluster", "cluster"),
    ("event", "events"),
    ("grave", "graves"),
    ("idempotency", "idempotency"),
    ("image", "images"),
    ("image-status", "image_status"),
    ("member", "members"),
    ("name", "names"),
    ("network", "networks"),
    ("node", "nodes"),
    ("node-status", "node_status"),
    ("operation", "operations"),
    ("owner", "owners"),
    ("pool", "pools"),
    ("pool-status", "pool_status"),
    ("port", "ports"),
    ("port-status", "port_status"),
    ("reason", "reasons"),
    ("run", "runs"),
    ("snapshot", "snapshots"),
    ("snapshot-status", "snapshot_status"),
    ("vm", "vms"),
    ("volume", "volumes"),
    ("volume-status", "volume_status"),
];

/// The other tables that are written to.
const TABLES: &[&str] = &[
    "records", "revision", "history", "txns", "leases", "beats", "others",
];

/// The table of a kind, if it has one of its own.
pub(super) fn table(kind: &str) -> Option<&'static str> {
    let found = KINDS.binary_search_by_key(&kind, |(kind, _)| kind).ok()?;
    Some(KINDS[found].1)
}

/// A migration, as SQL for whoever may change the schema.
pub(super) fn script(schema: &str) -> String {
    let mut script = format!("CREATE SCHEMA IF NOT EXISTS {};\n", quoted(schema));
    for (version, step) in (1..).zip(STEPS) {
        script.push_str(&step_sql(schema, version, step));
    }
    script
}

/// A schema's name in SQL.
pub(super) fn quoted(schema: &str) -> String {
    format!("\"{schema}\"")
}

/// Fails unless the server can hold the store, brings the schema up to date, and fails unless it is whole and may be
/// written.
pub(super) async fn prepare(client: &mut Client, options: &PostgresOptions) -> Result<()> {
    check_server(client).await?;
    migrate(client, options, STEPS).await?;
    check_parts(client, options).await
}

async fn check_server(client: &Client) -> Result<()> {
    let sql =
        "SELECT current_setting('server_version_num')::int, current_setting('server_encoding'),
                      current_setting('fsync')";
    let fail = |e| of_statement("store.open", e);
    let row = client.query_one(sql, &[]).await.map_err(fail)?;
    let (version, encoding, fsync): (i32, String, String) = (row.get(0), row.get(1), row.get(2));
    let refuse = |message: String| Error::new(ErrorKind::Unsupported, "store.open", message);
    if version < OLDEST_SERVER {
        return Err(refuse(format!(
            "the server is PostgreSQL {}; {} or newer is needed",
            version / 10_000,
            OLDEST_SERVER / 10_000
        )));
    }
    if encoding != "UTF8" {
        return Err(refuse(format!(
            "the database's encoding is {encoding}; UTF8 is needed"
        )));
    }
    if fsync != "on" {
        tracing::warn!(
            "the server runs with fsync = off: what it acknowledges does not survive loss of power"
        );
    }
    Ok(())
}

/// Applies the steps that are missing.
async fn migrate(client: &mut Client, options: &PostgresOptions, steps: &[&str]) -> Result<()> {
    let fail = |e| of_statement("store.migrate", e);
    let schema = &options.schema;
    let ours = i32::try_from(steps.len()).unwrap_or(i32::MAX);
    let found = version(client, schema).await?;
    if check_version(found, ours, schema)? {
        return Ok(());
    }
    if !options.migrate {
        let message = format!(
            "the schema {schema} has version {found} and this build needs {ours}: apply \
             PostgresStore::migration_script as its owner, or open it once with `migrate`"
        );
        return Err(
            Error::new(ErrorKind::FailedPrecondition, "store.open", message)
                .with("schema", found)
                .with("needed", ours),
        );
    }
    let transaction = client.transaction().await.map_err(fail)?;
    // A migration may take longer than a call, and so may the one that is waited for.
    transaction
        .batch_execute("SET LOCAL statement_timeout = 0; SET LOCAL lock_timeout = 0")
        .await
        .map_err(fail)?;
    let lock = "SELECT pg_advisory_xact_lock(hashtextextended('novacron migration ' || $1, 0))";
    transaction.execute(lock, &[schema]).await.map_err(fail)?;
    // Who was faster may have done it meanwhile.
    let found = version(transaction.client(), schema).await?;
    if check_version(found, ours, schema)? {
        return Ok(());
    }
    let there = "SELECT 1 FROM pg_namespace WHERE nspname = $1";
    if transaction
        .query_opt(there, &[schema])
        .await
        .map_err(fail)?
        .is_none()
    {
        let create = format!("CREATE SCHEMA {}", quoted(schema));
        transaction.batch_execute(&create).await.map_err(fail)?;
    }
    for (version, step) in (1..).zip(steps).filter(|(version, _)| *version > found) {
        let sql = step_sql(schema, version, step);
        transaction.batch_execute(&sql).await.map_err(fail)?;
    }
    transaction.commit().await.map_err(fail)?;
    tracing::info!(
        schema,
        from = found,
        to = ours,
        "the database's schema was brought up to date"
    );
    Ok(())
}

fn step_sql(schema: &str, version: i32, step: &str) -> String {
    let schema = quoted(schema);
    format!(
        "{}\nINSERT INTO {schema}.migrations (version, applied_by) VALUES ({version}, 'novacron-core {}');\n",
        step.replace("{schema}", &schema),
        env!("CARGO_PKG_VERSION")
    )
}

/// The schema's version; zero if there is none.
async fn version(client: &Client, schema: &str) -> Result<i32> {
    let fail = |e| of_statement("store.open", e);
    let there = "SELECT 1 FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
                 WHERE n.nspname = $1 AND c.relname = 'migrations'";
    if client
        .query_opt(there, &[&schema])
        .await
        .map_err(fail)?
        .is_none()
    {
        return Ok(0);
    }
    let sql = format!(
        "SELECT coalesce(max(version), 0) FROM {}.migrations",
        quoted(schema)
    );
    Ok(client.query_one(&sql, &[]).await.map_err(fail)?.get(0))
}

/// Whether the schema is up to date; an error when it is newer than this build.
fn check_version(found: i32, ours: i32, schema: &str) -> Result<bool> {
    if found <= ours {
        return Ok(found == ours);
    }
    let message = format!(
        "the schema {schema} has version {found} and this build knows up to {ours}: use a newer build"
    );
    Err(Error::new(ErrorKind::Corrupt, "store.open", message)
        .with("schema", found)
        .with("supported", ours))
}

/// Fails when a table is missing, or may not be written.
async fn check_parts(client: &Client, options: &PostgresOptions) -> Result<()> {
    let names: Vec<&str> = TABLES
        .iter()
        .copied()
        .chain(KINDS.iter().map(|(_, table)| *table))
        .collect();
    let sql = "SELECT t.name, c.oid IS NULL,
                      coalesce(has_table_privilege(c.oid, 'SELECT') AND has_table_privilege(c.oid, 'INSERT')
                               AND has_table_privilege(c.oid, 'UPDATE') AND has_table_privilege(c.oid, 'DELETE'), true)
               FROM unnest($2::text[]) AS t (name)
               LEFT JOIN (pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace AND n.nspname = $1)
               ON c.relname = t.name";
    let rows = client
        .query(sql, &[&options.schema, &names])
        .await
        .map_err(|e| of_statement("store.open", e))?;
    let (mut missing, mut closed) = (Vec::new(), Vec::new());
    for row in rows {
        let (name, absent, writable): (String, bool, bool) = (row.get(0), row.get(1), row.get(2));
        if absent {
            missing.push(name);
        } else if !writable {
            closed.push(name);
        }
    }
    if !missing.is_empty() {
        let message = format!(
            "the schema {} lacks a table: {}; restore it from a backup",
            options.schema,
            missing.join(", ")
        );
        return Err(Error::new(ErrorKind::Corrupt, "store.open", message));
    }
    if let Some(first) = closed.first() {
        let message = format!(
            "the user {} may not write to {} tables of the schema {}, as {first}: it needs SELECT, INSERT, UPDATE and \
             DELETE on every one",
            options.user(),
            closed.len(),
            options.schema
        );
        return Err(Error::new(
            ErrorKind::PermissionDenied,
            "store.open",
            message,
        ));
    }
    Ok(())
}

// What the function `sweep` has built in.
const _: () = assert!(crate::store::OUTCOMES_KEPT.as_secs() == 3600);

#[cfg(test)]
#[path = "../../../tests/support"]
mod support {
    pub(crate) mod postgres;
    pub(crate) mod process;
}

#[cfg(test)]
mod tests {
    use super::support::postgres::Server;
    use super::*;

    #[test]
    fn each_kind_has_its_table_in_the_schema() {
        assert!(KINDS.is_sorted());
        for (kind, table) in KINDS {
            let partition = STEPS[0].lines().find(|line| {
                line.starts_with("CREATE TABLE") && line.contains(&format!("}}.{table} "))
            });
            let ends = format!("FOR VALUES IN ('{kind}');");
            assert!(
                partition.is_some_and(|line| line.ends_with(&ends)),
                "{kind}"
            );
            assert_eq!(super::table(kind), Some(*table));
        }
        let partitions = STEPS[0].matches("FOR VALUES IN").count();
        assert_eq!(partitions, KINDS.len());
        assert_eq!(table("counter"), None);
    }

    /// From every version that was released to the present one, and on to one that may come.
    #[tokio::test]
    async fn each_released_schema_is_brought_up_to_date() {
        let server = Server::start(false, &[]);
        let mut client = server.client().await;
        let next = [
            STEPS,
            &["ALTER TABLE {schema}.leases ADD COLUMN note text;"],
        ]
        .concat();
        for released in 1..=STEPS.len() {
            let options = server.options(&format!("from_{released}"));
            let schema = &options.schema;
            migrate(&mut client, &options, &STEPS[..released])
                .await
                .unwrap();
            let insert = format!(
                "INSERT INTO {schema}.records (key, kind, version, value) VALUES ('vm/a', 'vm', 1, '7')"
            );
            client.batch_execute(&insert).await.unwrap();
            for steps in [STEPS, &next, &next] {
                migrate(&mut client, &options, steps).await.unwrap();
                let select = format!("SELECT value::text FROM {schema}.vms WHERE key = 'vm/a'");
                let row = client.query_one(&select, &[]).await.unwrap();
                assert_eq!(row.get::<_, &str>(0), "7");
            }
            let ours = i32::try_from(STEPS.len()).unwrap();
            assert_eq!(version(&client, schema).await.unwrap(), ours + 1);
            let error = migrate(&mut client, &options, STEPS).await.unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Corrupt);
            let named = format!("version {} and this build knows up to {ours}", ours + 1);
            assert!(error.to_string().contains(&named), "{error}");
        }
    }

    /// A step that fails takes back every step of its migration.
    #[tokio::test]
    async fn a_migration_that_fails_changes_nothing() {
        let server = Server::start(false, &[]);
        let mut client = server.client().await;
        let options = server.options("nc");
        let broken = [STEPS, &["CREATE TABLE {schema}.half (x int); SELECT 1/0;"]].concat();
        migrate(&mut client, &options, &broken).await.unwrap_err();
        assert_eq!(version(&client, "nc").await.unwrap(), 0);
        let there = client
            .query_opt("SELECT 1 FROM pg_namespace WHERE nspname = 'nc'", &[])
            .await
            .unwrap();
        assert!(there.is_none());
        migrate(&mut client, &options, STEPS).await.unwrap();
        migrate(&mut client, &options, &broken).await.unwrap_err();
        prepare(&mut client, &options).await.unwrap();
    }
}
