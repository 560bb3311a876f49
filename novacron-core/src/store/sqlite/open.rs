//! From a path to a database that is locked, whole, ours and up to date; or to an error, with the file untouched.
//!
//! ```text
//!   lock ─► missing?  make `<path>.new`, sync, rename         (a crash leaves no half-made database)
//!        └► there:    header: SQLite? ours? not newer? ─► open ─► integrity and checksums ─► migrate
//! ```
//! The header is read before SQLite sees the file: SQLite would write to what it opens (journal, WAL). Nothing here may
//! open and close the file while SQLite has it open, since that would drop SQLite's POSIX locks: hence the lock first.

use std::ffi::OsString;
use std::fs::{self, File, OpenOptions};
use std::io::Read as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use rusqlite::{Connection, OpenFlags};

use super::failure::{of_io, sql};
use super::lock::LockFile;
use super::{SqliteOptions, rows, schema};
use crate::error::{Error, ErrorKind, Result};

/// How long to wait for another program's write, as one in the `sqlite3` shell.
const BUSY_MS: u32 = 5_000;
/// Pages in the WAL (4 KiB each) after which a commit copies them back: each time costs two more syncs.
const CHECKPOINT_PAGES: u32 = 4_000;
/// What the WAL is cut back to after a burst, bytes.
const WAL_KEPT: u32 = 64 << 20;
const PAGE_BYTES: u64 = 4096;
/// How many damaged records a message names; with more, a backup is the better way.
const NAMED: usize = 20;

/// An open database.
#[derive(Debug)]
pub(super) struct Opened {
    /// The one connection that writes.
    pub(super) connection: Connection,
    /// Held as long as the writer lives.
    pub(super) lock: LockFile,
    /// Where it really is.
    pub(super) path: PathBuf,
}

/// Opens or makes the database. Blocks.
pub(super) fn open(path: &Path, options: &SqliteOptions) -> Result<Opened> {
    let path = resolve(path)?;
    let lock = LockFile::acquire(&path)?;
    if path
        .try_exists()
        .map_err(|e| of_io("cannot look at the database", &path, e))?
    {
        check_header(&path)?;
    } else {
        create(&path)?;
    }
    let mut connection = connect(&path, OpenFlags::SQLITE_OPEN_READ_WRITE)?;
    // SQLite falls back to reading when it may not write.
    if connection.is_readonly("main").map_err(sql("store.open"))? {
        let error = Error::new(
            ErrorKind::PermissionDenied,
            "store.open",
            "the database may not be written",
        );
        return Err(error.with("path", path.display()));
    }
    if options.check {
        check_content(&connection, &path).map_err(|e| e.with("path", path.display()))?;
    }
    schema::migrate(&mut connection).map_err(|e| e.with("path", path.display()))?;
    configure_writer(&connection, options).map_err(sql("store.open"))?;
    Ok(Opened {
        connection,
        lock,
        path,
    })
}

/// A connection that only reads.
pub(super) fn open_reader(path: &Path) -> Result<Connection> {
    let connection = connect(path, OpenFlags::SQLITE_OPEN_READ_WRITE)?;
    // Opened writable so that it can share the WAL's index whoever came first; kept from writing by this.
    connection
        .pragma_update(None, "query_only", true)
        .map_err(sql("store.open"))?;
    Ok(connection)
}

fn connect(path: &Path, flags: OpenFlags) -> Result<Connection> {
    let connect = || {
        // One thread at a time uses a connection, so SQLite need not lock it again.
        let connection =
            Connection::open_with_flags(path, flags | OpenFlags::SQLITE_OPEN_NO_MUTEX)?;
        connection.busy_timeout(std::time::Duration::from_millis(BUSY_MS.into()))?;
        connection.set_prepared_statement_cache_capacity(64);
        // Views and triggers in a file are data: they may not call functions with side effects.
        connection.pragma_update(None, "trusted_schema", false)?;
        // Reads the header and, after a crash, the WAL: says early whether this works at all.
        connection.query_row("PRAGMA schema_version", [], |_| Ok(()))?;
        Ok(connection)
    };
    connect().map_err(|e| sql("store.open")(e).with("path", path.display()))
}

fn configure_writer(connection: &Connection, options: &SqliteOptions) -> rusqlite::Result<()> {
    // WAL: readers never wait for the writer nor the writer for readers, and a commit is one sequential write.
    connection.pragma_update_and_check(None, "journal_mode", "wal", |_| Ok(()))?;
    // FULL: sync the WAL at every commit. NORMAL would be faster and lose commits that were acknowledged.
    connection.pragma_update(None, "synchronous", "full")?;
    connection.pragma_update(None, "wal_autocheckpoint", CHECKPOINT_PAGES)?;
    connection.pragma_update(None, "journal_size_limit", WAL_KEPT)?;
    // 32 MiB of pages, for the parts of the indexes that commits touch at random.
    connection.pragma_update(None, "cache_size", -32 * 1024)?;
    connection.pragma_update(None, "temp_store", "memory")?;
    if let Some(bytes) = options.max_bytes {
        let pages = i64::try_from((bytes / PAGE_BYTES).max(1)).unwrap_or(i64::MAX);
        connection.pragma_update_and_check(None, "max_page_count", pages, |_| Ok(()))?;
    }
    Ok(())
}

/// The path without links, so that two names of one database have one lock.
fn resolve(path: &Path) -> Result<PathBuf> {
    if let Ok(real) = path.canonicalize() {
        return Ok(real);
    }
    let Some(name) = path.file_name() else {
        let message = "the path of a database ends in a file name";
        return Err(
            Error::new(ErrorKind::Invalid, "store.open", message).with("path", path.display())
        );
    };
    let folder = match path.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        _ => Path::new("."),
    };
    let real = folder
        .canonicalize()
        .map_err(|e| of_io("cannot find the database's folder", folder, e))?;
    Ok(real.join(name))
}

/// Fails unless the file is a database of ours that this build can read.
fn check_header(path: &Path) -> Result<()> {
    let corrupt = |message: String| {
        Error::new(ErrorKind::Corrupt, "store.open", message).with("path", path.display())
    };
    let mut header = Vec::with_capacity(100);
    let file = File::open(path).map_err(|e| of_io("cannot read the database", path, e))?;
    file.take(100)
        .read_to_end(&mut header)
        .map_err(|e| of_io("cannot read the database", path, e))?;
    if header.is_empty() {
        return Err(corrupt(
            "the file is empty: restore the database, or remove the file to begin anew".to_owned(),
        ));
    }
    if header.len() < 100 || !header.starts_with(b"SQLite format 3\0") {
        return Err(corrupt(
            "the file is no SQLite database, or its beginning is damaged".to_owned(),
        ));
    }
    let number = |at: usize| {
        i32::from_be_bytes([header[at], header[at + 1], header[at + 2], header[at + 3]])
    };
    let (version, application) = (number(60), number(68));
    if application != schema::APPLICATION_ID {
        let message = format!(
            "the file is a database of another program (application id {application:#010x})"
        );
        return Err(corrupt(message).with("application_id", application));
    }
    schema::check_version(version).map_err(|e| e.with("path", path.display()))
}

/// Fails when pages, indexes or records are damaged.
fn check_content(connection: &Connection, path: &Path) -> Result<()> {
    let corrupt = |message: String| Error::new(ErrorKind::Corrupt, "store.open", message);
    // Not `quick_check`: a record that its index does not find would be absent in silence.
    let check = "PRAGMA integrity_check(1)";
    let verdict: String = connection
        .query_row(check, [], |row| row.get(0))
        .map_err(sql("store.open"))?;
    if verdict != "ok" {
        return Err(corrupt(format!("the database is damaged: {verdict}")));
    }
    let latest = "SELECT revision, (SELECT coalesce(max(version), 0) FROM records) FROM meta";
    let latest = connection.query_row(latest, [], |row| {
        Ok((row.get::<_, i64>(0)?, row.get::<_, i64>(1)?))
    });
    let (revision, newest) = latest.map_err(sql("store.open"))?;
    if newest > revision {
        return Err(corrupt(format!(
            "the database is damaged: at revision {revision}, a record of {newest}"
        )));
    }
    let mut damaged = Vec::new();
    for table in ["records", "history"] {
        damaged.extend(damaged_rows(connection, table).map_err(sql("store.open"))?);
    }
    if damaged.is_empty() {
        return Ok(());
    }
    Err(corrupt(way_out(path, &damaged)).with("damaged", damaged.len()))
}

/// A row that does not fit its checksum.
struct Damaged {
    table: &'static str,
    row: i64,
    key: String,
    version: i64,
}

fn damaged_rows(connection: &Connection, table: &'static str) -> rusqlite::Result<Vec<Damaged>> {
    let select = format!("SELECT key, version, value, sum, rowid FROM {table} ORDER BY key, rowid");
    let mut select = connection.prepare(&select)?;
    let (mut found, mut damaged) = (select.query([])?, Vec::new());
    while let Some(row) = found.next()? {
        if !rows::is_whole(row)? {
            damaged.push(Damaged {
                table,
                row: row.get(4)?,
                key: row.get(0)?,
                version: row.get(1)?,
            });
        }
    }
    Ok(damaged)
}

/// What is damaged, and what to do about it.
///
/// Turned down: to go on without the damaged records. What they said was acknowledged, and a claim or a run that is
/// missing reads as "it does not run": only a person can tell whether that is true.
fn way_out(path: &Path, damaged: &[Damaged]) -> String {
    for Damaged {
        table,
        row,
        key,
        version,
    } in damaged
    {
        tracing::error!(
            table,
            row,
            key,
            version,
            "a record does not fit its checksum"
        );
    }
    let named = &damaged[..damaged.len().min(NAMED)];
    let mut names: Vec<String> = named
        .iter()
        .map(|it| match it.table {
            "history" => format!("{} as it was at revision {}", it.key, it.version),
            _ => it.key.clone(),
        })
        .collect();
    if damaged.len() > named.len() {
        let more = damaged.len() - named.len();
        names.push(format!("and {more} more, which the log names"));
    }
    let repair: Vec<String> = ["records", "history"]
        .into_iter()
        .filter_map(|table| {
            let rows = named.iter().filter(|it| it.table == table);
            let rows: Vec<String> = rows.map(|it| it.row.to_string()).collect();
            let rows = (!rows.is_empty()).then(|| rows.join(", "))?;
            Some(format!(
                "UPDATE {table} SET sum = NULL WHERE rowid IN ({rows});"
            ))
        })
        .collect();
    format!(
        "what does not fit its checksum: {}. Restore a backup, or look at each and take it as it is with: sqlite3 '{}' \
         \"{}\"",
        names.join(", "),
        path.display(),
        repair.join(" ")
    )
}

/// Makes an empty database under another name and renames it when it is whole and on disk.
fn create(path: &Path) -> Result<()> {
    let beside = |suffix: &str| {
        let mut name = OsString::from(path);
        name.push(suffix);
        PathBuf::from(name)
    };
    let wal = beside("-wal");
    if wal.exists() {
        let message = "the database is missing but its write-ahead log is there: restore the database beside it";
        return Err(
            Error::new(ErrorKind::Corrupt, "store.open", message).with("path", wal.display())
        );
    }
    let draft = beside(".new");
    for leftover in [
        draft.clone(),
        beside(".new-journal"),
        beside(".new-wal"),
        beside(".new-shm"),
    ] {
        match fs::remove_file(&leftover) {
            Ok(()) => {}
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => {}
            Err(e) => {
                return Err(of_io(
                    "cannot remove what an earlier start left",
                    &leftover,
                    e,
                ));
            }
        }
    }
    let made = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(&draft);
    let file = made.map_err(|e| of_io("cannot make the database", &draft, e))?;
    drop(file);

    let mut connection = connect(&draft, OpenFlags::SQLITE_OPEN_READ_WRITE)?;
    schema::migrate(&mut connection)?;
    connection
        .pragma_update_and_check(None, "journal_mode", "wal", |_| Ok(()))
        .map_err(sql("store.open"))?;
    connection.close().map_err(|(_, e)| sql("store.open")(e))?;

    let folder = path.parent().unwrap_or(Path::new("."));
    let renamed = File::open(&draft)
        .and_then(|file| file.sync_all())
        .and_then(|()| fs::rename(&draft, path))
        .and_then(|()| File::open(folder)?.sync_all());
    renamed.map_err(|e| of_io("cannot make the database", path, e))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What durability hangs on; no test short of cutting the power would notice its loss.
    #[test]
    fn the_writer_syncs_at_every_commit() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("novacron.db");
        for _ in 0..2 {
            let opened = open(&path, &SqliteOptions::default()).unwrap();
            let text = |pragma: &str| {
                opened
                    .connection
                    .query_row(pragma, [], |row| row.get::<_, String>(0))
            };
            let number = |pragma: &str| {
                opened
                    .connection
                    .query_row(pragma, [], |row| row.get::<_, i64>(0))
            };
            assert_eq!(text("PRAGMA journal_mode"), Ok("wal".to_owned()));
            assert_eq!(number("PRAGMA synchronous"), Ok(2));
        }
    }
}
