//! Self-fencing: a host that ends itself when its owner is lost.
//!
//! ```text
//!   owner    owns the node ──► armed ──► recorded (node status) ──► starts guests … feeds, as long as it is alive and the owner
//!   leader   the owner's lease is the leader's ── 2 × timeout + a second, by its own timer ──► receipt "watchdog"
//! ```
//! Fed is right after the member's lease was renewed, and only while it is held by the process's own count, which ends before
//! the store's. A process that is stopped between that look and the feed may feed once more when it goes on: less than one
//! timeout after the feed before, or the host is reset by then. So the last feed is less than one timeout after the lease ran
//! out, and the host is reset less than two after it.
//!
//! The leader counts by its own timer, from when it knew that the owner was lost: no clock is believed, and a new leader counts
//! anew. Only the process that owns the node feeds: one that was started in its place, and does not own it yet, does not, so
//! the timeout has to be long enough for that: [`TTLS`] leases at least.

use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use super::cache::Cache;
use super::part::{self, Part};
use crate::driver::{Call, Watchdog};
use crate::error::{Error, ErrorKind, Result};
use crate::model::{MemberId, NodeId};

/// The least timeout, in times to live of a lease: a process that is started again takes its node when the lease of the one
/// before has run out.
const TTLS: u32 = 3;
/// What the leader adds.
const MARGIN: Duration = Duration::from_secs(1);

/// How long after its owner was lost a host with this timeout has been reset.
pub(crate) fn reset_after(timeout: Duration) -> Duration {
    timeout * 2 + MARGIN
}

/// Arms it for a node, unless its time is too short.
pub(crate) async fn arm(watchdog: &dyn Watchdog, call: Call, ttl: Duration) -> Result<Duration> {
    let timeout = watchdog.arm(call).await?;
    if timeout < ttl * TTLS {
        watchdog.disarm(call).await?;
        let message = format!(
            "the watchdog waits for {timeout:?} only: a process that is started again would come too late; {TTLS} times the lease's {ttl:?} at least"
        );
        return Err(Error::new(ErrorKind::Invalid, "node.watchdog", message));
    }
    Ok(timeout)
}

/// Feeds the watchdogs of the nodes that this process owns.
#[derive(Debug)]
pub(crate) struct Feeder {
    pub(crate) member: MemberId,
    pub(crate) cache: Arc<RwLock<Cache>>,
    pub(crate) watchdogs: Vec<(NodeId, Arc<dyn Watchdog>)>,
}

impl Feeder {
    /// Right after the lease was renewed; `is_alive` is asked before each.
    pub(crate) async fn feed(&self, is_alive: impl Fn() -> bool) {
        for (node, watchdog) in &self.watchdogs {
            let owner = {
                let cache = self.cache.read().unwrap_or_else(PoisonError::into_inner);
                part::owner(&Part::Node(node.clone()), &cache)
            };
            if owner != Some(self.member) || !is_alive() {
                continue;
            }
            if let Err(error) = watchdog.feed().await {
                tracing::error!(%error, %node, "the watchdog was not fed");
            }
        }
    }

    /// Stops them, after it was written down that this process left.
    pub(crate) async fn disarm(&self, call: Call) -> Result<()> {
        for (_, watchdog) in &self.watchdogs {
            watchdog.disarm(call).await?;
        }
        Ok(())
    }
}
