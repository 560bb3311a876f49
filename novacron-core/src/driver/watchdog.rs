//! A timer outside of every process, which resets the host unless it is fed: what self-fencing rests on.

use std::fmt;
use std::time::Duration;

use async_trait::async_trait;

use super::Call;
use crate::error::Result;

/// A host's watchdog, which lasts when this process is killed or stopped.
#[async_trait]
pub trait Watchdog: fmt::Debug + Send + Sync + 'static {
    /// Arms it, or feeds one that is armed; says for how long it waits to be fed.
    ///
    /// *Holds on return:* once that time has passed since the last feed the host is reset, and every guest with it, whatever
    /// becomes of this process; nothing but [`Watchdog::disarm`] ends that. *Errors:* any error proves nothing, and may leave
    /// it armed.
    async fn arm(&self, call: Call) -> Result<Duration>;

    /// Feeds it: its time begins anew. One that is not armed stays so.
    async fn feed(&self) -> Result<()>;

    /// Stops it. One that is not armed stays so.
    async fn disarm(&self, call: Call) -> Result<()>;
}
