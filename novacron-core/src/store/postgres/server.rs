//! The connections to the server, and statements with a deadline and retries.
//!
//! ```text
//!   get, list, leases, beats ──► query ──► pool ──┐
//!   group of commits ──► writer ──► pool of one ──┼──► open: connect ─► session settings ─► ready
//!   wake-ups ◄── listener ◄───────────────────────┘
//! ```
//! Every call of the store but `commit` is one statement that may be sent twice, so a lost connection is answered with
//! another attempt until the call's deadline. A connection on which an answer did not come in time is never used again.

use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::time::Duration;

use deadpool_postgres::{
    Client, Connect, Manager, ManagerConfig, Object, Pool, RecyclingMethod, Runtime,
};
use futures::future::poll_fn;
use tokio::sync::mpsc::UnboundedSender;
use tokio::task::JoinHandle;
use tokio::time::{Instant, timeout_at};
use tokio_postgres::tls::MakeTlsConnect;
use tokio_postgres::types::ToSql;
use tokio_postgres::{AsyncMessage, Config, NoTls, Row, Socket};
use tokio_postgres_rustls::MakeRustlsConnect;

use super::PostgresOptions;
use super::failure::{self, Fate};
use crate::error::{Error, ErrorKind, Result};

/// The first and the longest pause between two attempts.
const PAUSES: (Duration, Duration) = (Duration::from_millis(20), Duration::from_millis(500));

/// A statement's parameters.
pub(super) type Params<'a> = &'a [&'a (dyn ToSql + Sync)];

/// A server, and what is connected to it.
pub(super) struct Server {
    connector: Connector,
    readers: Pool,
    writer: Pool,
    deadline: Duration,
}

impl Server {
    /// Connects when first asked.
    pub(super) fn new(options: &PostgresOptions) -> Result<Self> {
        let tls = match &options.tls {
            Some(tls) => Some(MakeRustlsConnect::new(tls.config()?)),
            None => None,
        };
        let millis = |duration: Duration| duration.as_millis().min(i32::MAX as u128);
        let connector = Connector {
            config: options.config(),
            tls,
            setup: format!(
                "SELECT set_config('synchronous_commit', 'on', false) WHERE current_setting('synchronous_commit') = 'off';
                 SET default_transaction_isolation = 'read committed';
                 SET standard_conforming_strings = on;
                 SET client_min_messages = warning;
                 SET jit = off;
                 SET statement_timeout = {deadline};
                 SET lock_timeout = {deadline};
                 SET idle_in_transaction_session_timeout = {deadline};
                 SET client_connection_check_interval = 5000",
                deadline = millis(options.deadline)
            ),
        };
        let pool = |size: usize| {
            let recycling_method = RecyclingMethod::Fast;
            let manager = Manager::from_connect(
                connector.config.clone(),
                connector.clone(),
                ManagerConfig { recycling_method },
            );
            Pool::builder(manager)
                .max_size(size)
                .wait_timeout(Some(options.deadline))
                .create_timeout(Some(options.deadline))
                .recycle_timeout(Some(options.deadline))
                .runtime(Runtime::Tokio1)
                .build()
                .map_err(|e| {
                    Error::new(ErrorKind::Internal, "store.open", "no pool of connections")
                        .caused_by(e)
                })
        };
        Ok(Self {
            readers: pool(options.connections.clamp(1, 256))?,
            writer: pool(1)?,
            connector,
            deadline: options.deadline,
        })
    }

    /// How long a call may take.
    pub(super) fn deadline(&self) -> Duration {
        self.deadline
    }

    /// Runs one statement that may be sent twice.
    pub(super) async fn query(
        &self,
        operation: &'static str,
        sql: &str,
        params: Params<'_>,
    ) -> Result<Vec<Row>> {
        let until = Instant::now() + self.deadline;
        let mut backoff = Backoff::default();
        loop {
            let (error, again) = match connection(&self.readers, operation, until).await {
                Err(failed) => failed,
                Ok(client) => match attempt(client, sql, params, until).await {
                    Ok(rows) => return Ok(rows),
                    Err(None) => return Err(late(operation)),
                    Err(Some(error)) => {
                        let again = failure::fate(&error) != Fate::Refused;
                        (failure::of_statement(operation, error), again)
                    }
                },
            };
            if !again || !backoff.pause(until).await {
                return Err(error);
            }
        }
    }

    /// The connection that writes.
    pub(super) async fn writer(
        &self,
        operation: &'static str,
        until: Instant,
    ) -> Result<Client, (Error, bool)> {
        connection(&self.writer, operation, until).await
    }

    /// A connection of its own, for a task of the caller's.
    pub(super) async fn connect(
        &self,
        operation: &'static str,
        heard: Option<UnboundedSender<String>>,
    ) -> Result<(tokio_postgres::Client, Connection)> {
        let made = self.connector.open(heard);
        let made = tokio::time::timeout(self.deadline, made).await;
        let made = made.map_err(|_| late(operation))?;
        let (client, task) = made.map_err(|e| failure::of_connection(operation, e).0)?;
        Ok((client, Connection(task)))
    }

    /// Refuses new calls; those under way go on.
    pub(super) fn close(&self) {
        self.readers.close();
        self.writer.close();
    }
}

impl fmt::Debug for Server {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Server").finish_non_exhaustive()
    }
}

async fn connection(
    pool: &Pool,
    operation: &'static str,
    until: Instant,
) -> Result<Client, (Error, bool)> {
    match timeout_at(until, pool.get()).await {
        Ok(got) => got.map_err(|e| failure::of_connecting(operation, e)),
        Err(_) => Err((late(operation), true)),
    }
}

/// One statement on one connection; no error when the time was over first.
pub(super) async fn attempt(
    client: Client,
    sql: &str,
    params: Params<'_>,
    until: Instant,
) -> Result<Vec<Row>, Option<tokio_postgres::Error>> {
    let run = async {
        let statement = client.prepare_cached(sql).await?;
        client.query(&statement, params).await
    };
    let result = timeout_at(until, run).await;
    let usable = match &result {
        Ok(Ok(_)) => true,
        Ok(Err(error)) => failure::fate(error) == Fate::Refused,
        Err(_) => false,
    };
    if !usable {
        // Its statement may still be running, or its server no longer be the one that writes.
        drop(Object::take(client));
    }
    result.map_err(|_| None)?.map_err(Some)
}

/// The error of a call whose time is over.
pub(super) fn late(operation: &'static str) -> Error {
    let message = "the database did not answer in time";
    Error::new(ErrorKind::Unavailable, operation, message)
}

/// Growing pauses.
#[derive(Debug)]
pub(super) struct Backoff(Duration);

impl Default for Backoff {
    fn default() -> Self {
        Self(PAUSES.0)
    }
}

impl Backoff {
    /// Waits a little; not at all, and false, if that would last beyond `until`.
    pub(super) async fn pause(&mut self, until: Instant) -> bool {
        let in_time = Instant::now() + self.0 < until;
        if in_time {
            self.wait().await;
        }
        in_time
    }

    /// Waits a little, and the next time longer.
    pub(super) async fn wait(&mut self) {
        let end = Instant::now() + self.0;
        self.0 = (self.0 * 2).min(PAUSES.1);
        tokio::time::sleep_until(end).await;
    }
}

/// A connection's task: ends it when dropped.
#[derive(Debug)]
pub(super) struct Connection(JoinHandle<()>);

impl Drop for Connection {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// How a connection is made, alike for every use.
#[derive(Clone)]
struct Connector {
    config: Config,
    tls: Option<MakeRustlsConnect>,
    setup: String,
}

type Opened = Result<(tokio_postgres::Client, JoinHandle<()>), tokio_postgres::Error>;

impl Connector {
    async fn open(&self, heard: Option<UnboundedSender<String>>) -> Opened {
        let (client, task) = match &self.tls {
            Some(tls) => start(&self.config, tls.clone(), heard).await?,
            None => start(&self.config, NoTls, heard).await?,
        };
        client.batch_execute(&self.setup).await?;
        Ok((client, task))
    }
}

impl Connect for Connector {
    fn connect(&self, _: &Config) -> Pin<Box<dyn Future<Output = Opened> + Send + '_>> {
        Box::pin(self.open(None))
    }
}

/// Connects, and starts the task that moves the connection's bytes and passes notifications on.
async fn start<T>(config: &Config, tls: T, heard: Option<UnboundedSender<String>>) -> Opened
where
    T: MakeTlsConnect<Socket>,
    T::Stream: Send + 'static,
{
    let (client, mut connection) = config.connect(tls).await?;
    let task = tokio::spawn(async move {
        loop {
            match poll_fn(|context| connection.poll_message(context)).await {
                Some(Ok(AsyncMessage::Notification(it))) => {
                    if let Some(heard) = &heard {
                        let _ = heard.send(it.payload().to_owned());
                    }
                }
                Some(Ok(_)) => {}
                Some(Err(error)) => {
                    tracing::debug!(%error, "a connection to the database ended");
                    return;
                }
                None => return,
            }
        }
    });
    Ok((client, task))
}
