//! From the events of one etcd watch to whole commits in the log that every watch of the store reads.
//!
//! ```text
//!   etcd: r/vm/a  r/vm/b  rev │ r/run/x  rev │ …       events of one revision come together, `rev` last
//!                 └── commit ─┘                ──► Log ──► watchers
//! ```
//! The feed resumes after a cut where it was. It begins a watch *at* the last revision that it has seen, not behind it:
//! etcd refuses a revision below what is compacted, but hands out the one compacted to with its deletes missing, and
//! what has been seen is passed over anyway. When etcd has compacted the place where the feed was, nothing is lost if no
//! commit was made between there and the oldest revision left; otherwise the log begins anew, and whoever was behind it
//! is told to list again.
//!
//! A record that somebody writes beside the store, without `rev`, is told with the next commit.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use tokio::task::AbortHandle;

use super::client::{Client, Stop, Watch, wait};
use super::keys::Keys;
use super::reads::{self, int, passed_over, revision};
use super::wire::{Event, EventType, RangeRequest, WatchCreateRequest};
use crate::error::{Error, ErrorKind, Result};
use crate::store::watch::{BATCH, Backlog, Committed, Log};
use crate::store::{Change, Key, Revision, check};
use crate::time::Deadline;

const OPERATION: &str = "store.watch";
/// About how many bytes of commits the backlog reads at once.
const BATCH_BYTES: usize = 8 << 20;
const LONGEST_PAUSE: Duration = Duration::from_secs(1);

/// The task that follows etcd, and the log that it fills.
#[derive(Debug)]
pub(super) struct Feed {
    log: Arc<Log>,
    backlog: Arc<dyn Backlog>,
    task: AbortHandle,
}

impl Feed {
    /// Reads where the store is, and follows from there.
    pub(super) async fn start(client: Arc<Client>, keys: Keys, watch_bytes: usize) -> Result<Self> {
        let (tip, seen) = reads::tip(&client, &keys, "store.open", client.deadline()).await?;
        let log = Arc::new(Log::new(tip, watch_bytes));
        let backlog = Arc::new(History {
            client: Arc::clone(&client),
            keys: keys.clone(),
        });
        let follower = Follower {
            client,
            keys,
            log: Arc::clone(&log),
            seen,
        };
        let task = tokio::spawn(follower.run()).abort_handle();
        Ok(Self { log, backlog, task })
    }

    pub(super) fn log(&self) -> Arc<Log> {
        Arc::clone(&self.log)
    }

    pub(super) fn backlog(&self) -> Arc<dyn Backlog> {
        Arc::clone(&self.backlog)
    }
}

impl Drop for Feed {
    fn drop(&mut self) {
        self.task.abort();
        self.log.close();
    }
}

#[derive(Debug)]
struct Follower {
    client: Arc<Client>,
    keys: Keys,
    log: Arc<Log>,
    /// The revision of etcd up to which everything is in the log.
    seen: i64,
}

impl Follower {
    async fn run(mut self) {
        let mut pause = Duration::from_millis(50);
        loop {
            let before = self.seen;
            let stopped = match self.follow().await {
                Ok(()) => continue,
                Err(Stop::Compacted { oldest }) => self.go_on_from(oldest).await,
                Err(Stop::Failed(error)) => Err(error),
            };
            if let Err(error) = stopped {
                tracing::debug!(error = %error.report(), "the watch of etcd is opened again");
            }
            if self.seen > before {
                pause = Duration::from_millis(50);
            }
            wait(pause).await;
            pause = (pause * 2).min(LONGEST_PAUSE);
        }
    }

    /// Publishes commits until the watch breaks, or the calls have gone to another member.
    async fn follow(&mut self) -> Result<(), Stop> {
        let client = Arc::clone(&self.client);
        let member = client.present();
        let leave = |stop: &Stop| {
            if matches!(stop, Stop::Failed(error) if error.kind() == ErrorKind::Unavailable) {
                client.leave(member);
            }
        };
        let opened = open(&client, &self.keys, member, self.seen).await;
        let mut watch = opened.inspect_err(leave)?;
        let mut commits = Assembly::after(revision(self.seen));
        loop {
            let moved = client.moved.notified();
            if client.present() != watch.member {
                return Ok(());
            }
            let response = tokio::select! {
                response = watch.next() => response,
                () = moved => continue,
            };
            let response = response.inspect_err(leave)?;
            let whole = commits.take(&self.keys, response.events);
            if let Some(last) = whole.last() {
                self.seen = int(last.revision);
                self.log.publish(whole);
            }
        }
    }

    /// Goes on from the oldest revision that etcd has, if what it compacted had a place in the log.
    async fn go_on_from(&mut self, oldest: i64) -> Result<()> {
        let request = RangeRequest {
            key: self.keys.revision(),
            revision: oldest,
            ..RangeRequest::default()
        };
        let deadline = self.client.deadline();
        let answer = self.client.ask_any(OPERATION, deadline, &request).await?;
        // The last commit up to there. Every later one will be told.
        let tip = reads::tip_in(&answer);
        if tip != self.log.tip() {
            self.log.restart(tip);
        }
        self.seen = oldest;
        Ok(())
    }
}

async fn open(client: &Client, keys: &Keys, member: usize, from: i64) -> Result<Watch, Stop> {
    let (key, range_end) = keys.watched();
    let request = WatchCreateRequest {
        key,
        range_end,
        start_revision: from.max(1),
        fragment: true,
    };
    client.watch(OPERATION, member, request).await
}

/// Events on their way to become commits.
struct Assembly {
    after: Revision,
    open: BTreeMap<Key, Change>,
}

impl Assembly {
    /// Of the commits behind `after`.
    fn after(after: Revision) -> Self {
        Self {
            after,
            open: BTreeMap::new(),
        }
    }

    /// The commits that these events complete.
    fn take(&mut self, keys: &Keys, events: Vec<Event>) -> Vec<Committed> {
        let end = keys.revision();
        let mut whole = Vec::new();
        for event in events {
            let is_delete = event.kind == EventType::Delete as i32;
            let Some(kv) = event.kv else { continue };
            let at = revision(kv.mod_revision);
            if at <= self.after {
                continue;
            }
            if kv.key == end {
                let changes = std::mem::take(&mut self.open).into_values().collect();
                self.after = at;
                whole.push(Committed {
                    revision: at,
                    changes,
                });
            } else if let Some(key) = keys.record_of(&kv.key) {
                let change = Change {
                    key: key.clone(),
                    value: (!is_delete).then_some(kv.value),
                };
                self.open.insert(key, change);
            } else {
                passed_over(&kv.key);
            }
        }
        whole
    }
}

/// The commits that the log has dropped, from etcd's history.
#[derive(Debug)]
struct History {
    client: Arc<Client>,
    keys: Keys,
}

#[async_trait]
impl Backlog for History {
    async fn read_after(&self, after: Revision) -> Result<(Vec<Committed>, Revision)> {
        let deadline = self.client.deadline();
        let (tip, _) = reads::tip(&self.client, &self.keys, OPERATION, deadline).await?;
        if after >= tip {
            return Ok((Vec::new(), after));
        }
        loop {
            let member = self.client.present();
            match self.read(member, after, tip, deadline).await {
                Ok(found) => return Ok(found),
                Err(Stop::Compacted { oldest }) => {
                    return Err(check::compacted(OPERATION, after, revision(oldest), tip));
                }
                Err(Stop::Failed(error))
                    if error.kind() == ErrorKind::Unavailable
                        && !deadline.remaining().is_zero() =>
                {
                    self.client.leave(member);
                    wait(Duration::from_millis(100)).await;
                }
                Err(Stop::Failed(error)) => return Err(error),
            }
        }
    }
}

impl History {
    async fn read(
        &self,
        member: usize,
        after: Revision,
        until: Revision,
        deadline: Deadline,
    ) -> Result<(Vec<Committed>, Revision), Stop> {
        let mut watch = open(&self.client, &self.keys, member, int(after)).await?;
        let mut assembly = Assembly::after(after);
        let (mut commits, mut bytes) = (Vec::new(), 0);
        loop {
            let end = deadline.min(Deadline::after(self.client.patience()));
            let Ok(response) = tokio::time::timeout_at(end.instant(), watch.next()).await else {
                let message = "etcd does not go on telling its history";
                return Err(Error::new(ErrorKind::Unavailable, OPERATION, message).into());
            };
            let whole = assembly.take(&self.keys, response?.events);
            bytes += whole.iter().map(Committed::bytes).sum::<usize>();
            commits.extend(whole);
            if let Some(last) = commits.last()
                && (last.revision >= until || commits.len() >= BATCH || bytes >= BATCH_BYTES)
            {
                let last = last.revision;
                return Ok((commits, last));
            }
        }
    }
}
