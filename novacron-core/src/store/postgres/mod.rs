//! A store on a PostgreSQL server, shared by many processes.
//!
//! ```text
//!   commit ──► queue ──► writer ── commit_group(…): one statement per group ──► server
//!   get, list, leases, outcome, beats ──► pool, one statement each ──────────────┤
//!   watch ◄── log ◄── follower ◄── pages of the change log, woken by NOTIFY ◄────┘
//! ```
//! | file | holds |
//! |---|---|
//! | `options`, `server`, `failure` | how the server is reached; connections, retries; its codes as errors |
//! | `schema`, `schema_1.sql` | migrations, tables, and the functions that commit |
//! | `writer`, `group` | group commit; a group as arguments and answers |
//! | `reads`, `follower` | statements that read; commits of every process into the log of watches |
//!
//! **Revisions** are counted in one row that every commit locks and updates, so they have no gaps and the order of the
//! commits (`docs/decisions/0008-postgres-revisions.md`). Nobody can hold that lock while paused or dead: a group of
//! commits is one statement, of a function in the database. Reads are one statement each, so each has one snapshot,
//! with every commit in it that returned before. Leases run on the server's clock.
//!
//! **Values** are JSONB: what is read equals what was written as JSON, with other spaces and another order of members.
//!
//! What may be lost is what the server may lose: a fail-over to a standby that was behind takes acknowledged commits
//! with it, so standbys are to be synchronous (`docs/guides/postgresql.md`).

mod failure;
mod follower;
mod group;
mod options;
mod reads;
mod schema;
mod server;
mod writer;

use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use tokio::sync::{Notify, mpsc, oneshot};
use tokio::task::JoinHandle;
use tokio::time::{Instant, timeout_at};

pub use self::options::{PostgresOptions, PostgresTls};
use self::reads::{Statements, int, revision};
use self::server::Server;
use self::writer::{Pending, Sending};
use super::watch::{self, Backlog, Log};
use super::{
    Commit, Key, Lease, LeaseAnswer, ListOptions, Page, Record, Revision, Store, TxnId, TxnOutcome,
    WatchStream, check, lease,
};
use crate::error::{Error, Result};

/// The most commits that wait.
const QUEUE: usize = 1024;
/// Rows that compaction deletes at once, so that commits need not wait for long.
const SWEEP_ROWS: i32 = 2000;
/// The longest time to live of a lease: a hundred years.
const LONGEST_TTL: i64 = 100 * 366 * 86_400 * 1000;

/// A store on a PostgreSQL server (14 or newer), for clusters whose hosts each run a process. Clones share it.
///
/// Feature `postgres`. The database and the user must be there; the schema is made and kept up to date by whoever may.
///
/// ```no_run
/// use novacron_core::store::{PostgresOptions, PostgresStore, PostgresTls};
/// use novacron_core::{Cluster, Result};
///
/// # async fn open(authorities: &[u8], password: &secrecy::SecretString) -> Result<()> {
/// let mut options = PostgresOptions::new("postgresql://panel@db-1.example,db-2.example/panel")?
///     .with_password(password);
/// options.tls = Some(PostgresTls::new(authorities)?);
/// let store = PostgresStore::connect(options).await?;
/// let cluster = Cluster::builder("prod").store(store).build().await?;
/// # Ok(())
/// # }
/// ```
///
/// Every call ends within [`PostgresOptions::deadline`]: what was interrupted is tried again until then, also on the
/// next of the hosts. A commit whose answer did not come by then fails with
/// [`ErrorKind::OutcomeUnknown`](crate::ErrorKind::OutcomeUnknown), and [`Store::outcome`] settles it.
///
/// It belongs to the runtime on which it was connected, and ends with it.
#[derive(Clone)]
pub struct PostgresStore(Arc<Inner>);

struct Inner {
    place: String,
    shared: Arc<Shared>,
    commits: Mutex<Option<mpsc::Sender<Pending>>>,
    tasks: Mutex<Option<Tasks>>,
}

struct Tasks {
    writer: JoinHandle<()>,
    followers: [JoinHandle<()>; 2],
}

/// What the store and its tasks share.
#[derive(Debug)]
struct Shared {
    server: Server,
    schema: String,
    sql: Statements,
    poll: Duration,
    watch_bytes: usize,
    log: Mutex<Arc<Log>>,
    /// There may be commits that the log has not.
    wake: Notify,
    /// Why the last attempt to commit failed, until one succeeds.
    trouble: Mutex<Option<String>>,
}

impl Shared {
    fn log(&self) -> Arc<Log> {
        Arc::clone(&lock(&self.log))
    }

    /// Ends every watch and begins a new log at `tip`.
    fn begin_anew(&self, tip: Revision) {
        let anew = Arc::new(Log::new(tip, self.watch_bytes));
        std::mem::replace(&mut *lock(&self.log), anew).cut_off();
    }

    fn trouble(&self, error: &Error) {
        let error = error.report();
        let before = lock(&self.trouble).replace(error.clone());
        if before.is_none() {
            tracing::warn!(error, "commits wait: the database does not take them");
        }
    }

    fn well(&self) {
        *lock(&self.trouble) = None;
    }

    async fn revision(&self, operation: &'static str) -> Result<Revision> {
        let rows = self
            .server
            .query(operation, &self.sql.revision, &[])
            .await?;
        reads::tip(operation, &rows)
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl PostgresStore {
    /// Connects, and makes the schema or brings it up to date ([`PostgresOptions::migrate`]).
    ///
    /// # Errors
    /// [`ErrorKind::Unavailable`](crate::ErrorKind::Unavailable) when no server answers,
    /// [`ErrorKind::PermissionDenied`](crate::ErrorKind::PermissionDenied) when it refuses the user or the password, its
    /// certificate is not accepted, or the user lacks a privilege (the message says which),
    /// [`ErrorKind::NotFound`](crate::ErrorKind::NotFound) without the database,
    /// [`ErrorKind::FailedPrecondition`](crate::ErrorKind::FailedPrecondition) when the schema is older than this build
    /// and `migrate` is off, [`ErrorKind::Corrupt`](crate::ErrorKind::Corrupt) when it is newer, or a table is missing,
    /// [`ErrorKind::Unsupported`](crate::ErrorKind::Unsupported) when the server is too old, or its encoding not UTF-8.
    pub async fn connect(options: PostgresOptions) -> Result<Self> {
        options.check()?;
        let place = options.place();
        let shared = Self::open(options)
            .await
            .map_err(|e| e.with("server", &place))?;
        let (commits, queue) = mpsc::channel(QUEUE);
        let tasks = Tasks {
            writer: tokio::spawn(writer::run(queue, Arc::clone(&shared))),
            followers: [
                tokio::spawn(follower::follow(Arc::clone(&shared))),
                tokio::spawn(follower::listen(Arc::clone(&shared))),
            ],
        };
        Ok(Self(Arc::new(Inner {
            place,
            shared,
            commits: Mutex::new(Some(commits)),
            tasks: Mutex::new(Some(tasks)),
        })))
    }

    async fn open(options: PostgresOptions) -> Result<Arc<Shared>> {
        let server = Server::new(&options)?;
        let (mut client, connection) = server.connect("store.open", None).await?;
        schema::prepare(&mut client, &options).await?;
        drop((client, connection));
        let sql = Statements::new(&options.schema);
        let rows = server.query("store.open", &sql.revision, &[]).await?;
        let tip = reads::tip("store.open", &rows)?;
        Ok(Arc::new(Shared {
            server,
            schema: options.schema,
            sql,
            poll: options.poll,
            watch_bytes: options.watch_bytes,
            log: Mutex::new(Arc::new(Log::new(tip, options.watch_bytes))),
            wake: Notify::new(),
            trouble: Mutex::default(),
        }))
    }

    /// The SQL that makes the schema from nothing, for whoever may when the store's user may not.
    ///
    /// # Errors
    /// [`ErrorKind::Invalid`](crate::ErrorKind::Invalid) when this is no schema's name.
    pub fn migration_script(schema: &str) -> Result<String> {
        options::check_schema(schema)?;
        Ok(schema::script(schema))
    }

    /// Writes what is queued, ends every watch and the connections. Later calls on any clone fail with
    /// [`ErrorKind::Unavailable`](crate::ErrorKind::Unavailable); a second `close` does nothing.
    ///
    /// # Errors
    /// None; a commit that could not be written has its own.
    pub async fn close(&self) -> Result<()> {
        lock(&self.0.commits).take();
        let taken = lock(&self.0.tasks).take();
        if let Some(mut tasks) = taken {
            // Callers give up after the deadline, and then the writer has nothing left.
            let _ =
                tokio::time::timeout(2 * self.shared().server.deadline(), &mut tasks.writer).await;
            tasks.end();
        }
        self.shared().log().close();
        self.shared().server.close();
        Ok(())
    }

    fn shared(&self) -> &Shared {
        &self.0.shared
    }
}

impl Tasks {
    fn end(&self) {
        self.followers.iter().for_each(JoinHandle::abort);
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        // The writer finishes what is queued, and ends.
        if let Some(tasks) = lock(&self.tasks).take() {
            tasks.end();
        }
        self.shared.log().close();
    }
}

impl fmt::Debug for PostgresStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PostgresStore")
            .field("server", &self.0.place)
            .field("schema", &self.0.shared.schema)
            .finish_non_exhaustive()
    }
}

#[async_trait]
impl Store for PostgresStore {
    fn exclusive(&self) -> bool {
        false
    }

    async fn revision(&self) -> Result<Revision> {
        self.shared().revision("store.revision").await
    }

    async fn get(&self, key: &Key) -> Result<Option<Record>> {
        let shared = self.shared();
        let sql = shared.sql.get(key.kind());
        reads::record(
            &shared
                .server
                .query("store.get", &sql, &[&key.as_str()])
                .await?,
        )
    }

    async fn list(&self, prefix: &str, options: ListOptions) -> Result<Page> {
        let shared = self.shared();
        let (from, to, kind) = reads::range(prefix);
        let after = options.after.as_ref().map_or("", Key::as_str);
        let from = if after > from { after } else { from };
        // One more than asked for tells whether more follow.
        let limit = i64::try_from(options.limit)
            .unwrap_or(i64::MAX)
            .saturating_add(1);
        let sql = shared.sql.list(kind, options.at.is_some());
        let at = options.at.map(int);
        let rows = match &at {
            Some(at) => {
                shared
                    .server
                    .query("store.list", &sql, &[&from, &to, &after, &limit, at])
                    .await?
            }
            None => {
                shared
                    .server
                    .query("store.list", &sql, &[&from, &to, &after, &limit])
                    .await?
            }
        };
        reads::page(&rows, &options)
    }

    async fn commit(&self, commit: Commit) -> Result<Revision> {
        commit.check()?;
        group::check_values(&commit)?;
        let shared = self.shared();
        let until = Instant::now() + shared.server.deadline();
        let queue = lock(&self.0.commits).clone();
        let queue = queue.ok_or_else(|| failure::closed("store.commit"))?;
        let (reply, answer) = oneshot::channel();
        let sending = Arc::<Sending>::default();
        let pending = Pending {
            commit,
            sending: Arc::clone(&sending),
            reply,
            lost: false,
        };
        let answered = timeout_at(until, async {
            queue.send(pending).await.ok()?;
            // Not held while waiting: the writer ends when nobody can send any more.
            drop(queue);
            answer.await.ok()
        });
        let error = match answered.await {
            Ok(Some(answer)) => return answer,
            Ok(None) if sending.withdraw() => failure::closed("store.commit"),
            Err(_) if sending.withdraw() => server::late("store.commit"),
            Ok(None) => writer::unknown("the store's writer ended before it answered"),
            Err(_) => writer::unknown("the database did not answer in time"),
        };
        let last = lock(&shared.trouble).clone();
        Err(match last {
            Some(last) => error.with("last", last),
            None => error,
        })
    }

    async fn outcome(&self, txn: TxnId) -> Result<TxnOutcome> {
        let shared = self.shared();
        let rows = shared
            .server
            .query("store.outcome", &shared.sql.outcome, &[&txn.0])
            .await?;
        let committed: Option<i64> = rows.first().and_then(|row| row.get(0));
        Ok(committed.map_or(TxnOutcome::NotCommitted, |at| {
            TxnOutcome::Committed(revision(at))
        }))
    }

    async fn watch(&self, prefixes: Vec<String>, after: Revision) -> Result<WatchStream> {
        // Taken before the database is asked: should the log be cut off meanwhile, the stream says so.
        let log = self.shared().log();
        let rows = self
            .shared()
            .server
            .query("store.watch", &self.shared().sql.revisions, &[])
            .await?;
        let (tip, compacted) = reads::revisions("store.watch", &rows)?;
        if after < compacted || after > tip {
            return Err(check::compacted("store.watch", after, compacted, tip));
        }
        self.shared().wake.notify_one();
        // It does not keep the store open: a stream that outlives it ends with an error.
        let backlog: Arc<dyn Backlog> = Arc::<Shared>::clone(&self.0.shared);
        Ok(watch::stream(log, Some(backlog), prefixes, after))
    }

    async fn compact(&self, before: Revision) -> Result<()> {
        let shared = self.shared();
        let query = async |sql: &str, params: server::Params<'_>| -> Result<i64> {
            let rows = shared.server.query("store.compact", sql, params).await?;
            Ok(rows.first().map_or(0, |row| row.get(0)))
        };
        let floor = query(&shared.sql.compact, &[&int(before)]).await?;
        shared.log().trim(revision(floor));
        while query(&shared.sql.sweep, &[&floor, &SWEEP_ROWS]).await? > 0 {}
        Ok(())
    }

    async fn lease_acquire(&self, name: &str, holder: &str, ttl: Duration) -> Result<LeaseAnswer> {
        group::check_text("store.lease_acquire", name)?;
        group::check_text("store.lease_acquire", holder)?;
        let (sql, ttl_ms) = (&self.shared().sql.lease_acquire, millis(ttl));
        let params: server::Params<'_> = &[&name, &holder, &ttl_ms];
        let rows = self
            .shared()
            .server
            .query("store.lease_acquire", sql, params)
            .await?;
        let row = reads::one("store.lease_acquire", &rows)?;
        let number = |column: usize| u64::try_from(row.get::<_, i64>(column)).unwrap_or_default();
        Ok(if row.get(0) {
            LeaseAnswer::Granted(Lease {
                name: name.to_owned(),
                holder: holder.to_owned(),
                token: number(2),
                ttl,
            })
        } else {
            LeaseAnswer::HeldBy {
                holder: row.get(1),
                remaining: Duration::from_micros(number(3)),
            }
        })
    }

    async fn lease_renew(&self, lease: &Lease) -> Result<()> {
        group::check_text("store.lease_renew", &lease.name)?;
        group::check_text("store.lease_renew", &lease.holder)?;
        let (sql, token) = (&self.shared().sql.lease_renew, token(lease));
        let params: server::Params<'_> = &[&lease.name, &lease.holder, &token, &millis(lease.ttl)];
        let rows = self
            .shared()
            .server
            .query("store.lease_renew", sql, params)
            .await?;
        let row = reads::one("store.lease_renew", &rows)?;
        if row.get(0) {
            return Ok(());
        }
        let present: Option<(&str, u64)> = row.get::<_, Option<&str>>(1).map(|holder| {
            (
                holder,
                u64::try_from(row.get::<_, i64>(2)).unwrap_or_default(),
            )
        });
        Err(lease::lost(lease, present))
    }

    async fn lease_release(&self, lease: &Lease) -> Result<()> {
        group::check_text("store.lease_release", &lease.name)?;
        group::check_text("store.lease_release", &lease.holder)?;
        let sql = &self.shared().sql.lease_release;
        let params: server::Params<'_> = &[&lease.name, &lease.holder, &token(lease)];
        self.shared()
            .server
            .query("store.lease_release", sql, params)
            .await?;
        Ok(())
    }

    async fn put_beat(&self, key: &Key, value: Option<Bytes>) -> Result<()> {
        check::beat(key, value.as_deref())?;
        let shared = self.shared();
        match value {
            Some(value) => {
                let text = group::check_value("store.put_beat", key, &value)?;
                shared
                    .server
                    .query(
                        "store.put_beat",
                        &shared.sql.put_beat,
                        &[&key.as_str(), &text],
                    )
                    .await?
            }
            None => {
                shared
                    .server
                    .query("store.put_beat", &shared.sql.drop_beat, &[&key.as_str()])
                    .await?
            }
        };
        Ok(())
    }

    async fn beats(&self, prefix: &str) -> Result<Vec<(Key, Bytes)>> {
        let shared = self.shared();
        let (from, to, _) = reads::range(prefix);
        reads::beats(
            &shared
                .server
                .query("store.beats", &shared.sql.beats, &[&from, &to])
                .await?,
        )
    }
}

fn millis(ttl: Duration) -> i64 {
    i64::try_from(ttl.as_millis())
        .unwrap_or(LONGEST_TTL)
        .min(LONGEST_TTL)
}

fn token(lease: &Lease) -> i64 {
    i64::try_from(lease.token).unwrap_or(i64::MAX)
}
