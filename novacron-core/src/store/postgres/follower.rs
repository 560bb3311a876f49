//! What follows the database: commits of every process, in order, into the log that watches read.
//!
//! ```text
//!   NOTIFY ─► listen ─┐
//!   own commits ──────┼─ wake ─► follow ── pages after the log's tip ──► Log ──► watches
//!   every `poll` ─────┘
//! ```
//! A notification is only a wake-up: one that is lost costs a poll's time and no commit. Should the log's tip be older
//! than what the database still has, the log goes on from the present, and a watch that is behind reads on from the
//! database, or ends with `Compacted`. Should it be newer than what there is at all (a backup was restored, or a fail-over
//! lost commits), every watch ends with `Compacted` and a new log begins.

use std::sync::Arc;

use async_trait::async_trait;
use tokio::sync::mpsc;

use super::Shared;
use super::reads::{self, PAGE, int};
use super::schema;
use super::server::{Backoff, Connection};
use crate::error::{ErrorKind, Result};
use crate::store::Revision;
use crate::store::watch::{Backlog, Committed};

/// Keeps the log up to date, for ever.
pub(super) async fn follow(shared: Arc<Shared>) {
    loop {
        if let Err(error) = catch_up(&shared).await {
            tracing::warn!(error = %error.report(), "watches wait: the database's change log cannot be read");
        }
        let _ = tokio::time::timeout(shared.poll, shared.wake.notified()).await;
    }
}

/// Publishes every commit that there is.
async fn catch_up(shared: &Shared) -> Result<()> {
    loop {
        let log = shared.log();
        let after = log.tip();
        match shared.commits_after(after).await {
            Ok((commits, complete, tip)) => {
                log.publish(commits);
                if complete >= tip {
                    return Ok(());
                }
            }
            Err(error) if error.kind() == ErrorKind::Compacted => {
                let tip = shared.revision("store.watch").await?;
                if tip < after {
                    tracing::warn!(%after, %tip, "the database lost commits: every watch lists again");
                    shared.begin_anew(tip);
                } else {
                    tracing::warn!(%after, %tip, "the database's change log was cut off");
                    log.restart(tip);
                }
            }
            Err(error) => return Err(error),
        }
    }
}

/// Listens for the commits of other processes, for ever.
pub(super) async fn listen(shared: Arc<Shared>) {
    let mut backoff = Backoff::default();
    loop {
        match subscribe(&shared).await {
            Ok((mut heard, _client, _connection)) => {
                backoff = Backoff::default();
                // What happened before is not announced.
                shared.wake.notify_one();
                while let Some(revision) = heard.recv().await {
                    let news = revision
                        .parse()
                        .map_or(true, |it| Revision(it) > shared.log().tip());
                    if news {
                        shared.wake.notify_one();
                    }
                }
            }
            Err(error) => tracing::debug!(error = %error.report(), "no notifications of commits"),
        }
        backoff.wait().await;
    }
}

async fn subscribe(
    shared: &Shared,
) -> Result<(
    mpsc::UnboundedReceiver<String>,
    tokio_postgres::Client,
    Connection,
)> {
    let (tell, heard) = mpsc::unbounded_channel();
    let (client, connection) = shared.server.connect("store.watch", Some(tell)).await?;
    let listen = format!("LISTEN {}", schema::quoted(&shared.schema));
    let done = client.batch_execute(&listen).await;
    done.map_err(|e| super::failure::of_statement("store.watch", e))?;
    Ok((heard, client, connection))
}

impl Shared {
    /// A page of commits after `after`, the revision up to which it is complete, and the store's.
    async fn commits_after(&self, after: Revision) -> Result<(Vec<Committed>, Revision, Revision)> {
        let from = int(after);
        let to = from.saturating_add(PAGE);
        let sql = &self.sql.commits_after;
        let rows = self.server.query("store.watch", sql, &[&from, &to]).await?;
        reads::commits(&rows, after)
    }
}

#[async_trait]
impl Backlog for Shared {
    async fn read_after(&self, after: Revision) -> Result<(Vec<Committed>, Revision)> {
        let (commits, complete, _) = self.commits_after(after).await?;
        Ok((commits, complete))
    }
}
