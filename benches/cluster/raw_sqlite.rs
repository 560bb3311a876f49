//! SQLite without the store around it: the same statements, one transaction and one sync for each commit, on one
//! connection that clients take in turn.

use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use novacron_core::{IdSource, SeededIds};
use rusqlite::{Connection, OptionalExtension as _, TransactionBehavior, params};

use crate::Result;
use crate::commits::{Client, value};

/// The database of a store that was closed.
#[derive(Clone)]
pub(crate) struct Raw(Arc<Mutex<Connection>>);

impl Raw {
    pub(crate) fn open(path: &Path) -> Result<Self> {
        let connection = Connection::open(path)?;
        connection.pragma_update_and_check(None, "journal_mode", "wal", |_| Ok(()))?;
        connection.pragma_update(None, "synchronous", "full")?;
        connection.pragma_update(None, "wal_autocheckpoint", 4000)?;
        connection.pragma_update(None, "cache_size", -32 * 1024)?;
        Ok(Self(Arc::new(Mutex::new(connection))))
    }

    pub(crate) fn client(&self) -> OfSqlite {
        OfSqlite {
            raw: self.clone(),
            ids: SeededIds::from_os(),
            value: value(),
        }
    }
}

/// One of the clients.
pub(crate) struct OfSqlite {
    raw: Raw,
    ids: SeededIds,
    value: String,
}

impl Client for OfSqlite {
    async fn commit(&mut self, key: &str) -> Result<()> {
        let (raw, key, value) = (self.raw.clone(), key.to_owned(), self.value.clone());
        let txn = self.ids.bits().to_be_bytes();
        // A thread for each client that waits, so that none of them keeps the others from running.
        let committed = tokio::task::spawn_blocking(move || {
            let mut connection = raw.0.lock().unwrap_or_else(PoisonError::into_inner);
            commit(&mut connection, &txn, &key, &value)
        });
        Ok(committed.await??)
    }
}

fn commit(connection: &mut Connection, txn: &[u8], key: &str, value: &str) -> rusqlite::Result<()> {
    let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
    transaction
        .prepare_cached("SELECT revision FROM txns WHERE txn = ?1")?
        .query_row([txn], |row| row.get::<_, Option<i64>>(0))
        .optional()?;
    let before: i64 = transaction
        .prepare_cached("SELECT revision FROM meta")?
        .query_row([], |row| row.get(0))?;
    transaction
        .prepare_cached("SELECT version FROM records WHERE key = ?1")?
        .query_row([key], |row| row.get::<_, i64>(0))?;
    let revision = before + 1;
    transaction
        .prepare_cached(
            "INSERT INTO history (id, key, version, value, sum)
             SELECT ?1, key, version, value, sum FROM records WHERE key = ?2",
        )?
        .execute(params![revision << 8, key])?;
    transaction
        .prepare_cached(
            "INSERT INTO records (key, version, value, sum) VALUES (?1, ?2, ?3, ?4)
             ON CONFLICT (key) DO UPDATE SET version = excluded.version, value = excluded.value, sum = excluded.sum",
        )?
        .execute(params![key, revision, value, None::<i64>])?;
    transaction
        .prepare_cached("INSERT INTO txns (txn, revision, decided, at) VALUES (?1, ?2, ?2, 0)")?
        .execute(params![txn, revision])?;
    transaction
        .prepare_cached("UPDATE meta SET revision = ?1")?
        .execute([revision])?;
    transaction.commit()
}
