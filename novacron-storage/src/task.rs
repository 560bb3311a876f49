//! Work that blocks, off the async workers.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use novacron_core::{Deadline, Error, ErrorKind, Result};

/// Runs `work` on tokio's pool for blocking work.
pub(crate) async fn blocking<T: Send + 'static>(
    operation: &'static str,
    work: impl FnOnce() -> Result<T> + Send + 'static,
) -> Result<T> {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result,
        Err(e) if e.is_cancelled() => Err(Error::new(
            ErrorKind::Cancelled,
            operation,
            "the runtime is shutting down",
        )),
        Err(e) => Err(Error::new(ErrorKind::Internal, operation, "a worker panicked").caused_by(e)),
    }
}

/// Tells long blocking work to end: the deadline passed, or the future that waits for it was dropped.
#[derive(Clone, Debug)]
pub(crate) struct Stop {
    operation: &'static str,
    deadline: Deadline,
    dropped: Arc<AtomicBool>,
}

/// Dropping it stops the work.
#[derive(Debug)]
pub(crate) struct StopOnDrop(Arc<AtomicBool>);

impl Drop for StopOnDrop {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

impl Stop {
    /// For work that must end by `deadline`. The guard stays with the future that waits.
    pub(crate) fn new(operation: &'static str, deadline: Deadline) -> (Self, StopOnDrop) {
        let dropped = Arc::new(AtomicBool::new(false));
        let stop = Self {
            operation,
            deadline,
            dropped: Arc::clone(&dropped),
        };
        (stop, StopOnDrop(dropped))
    }

    /// An error once the work should end.
    pub(crate) fn check(&self) -> Result<()> {
        if self.dropped.load(Ordering::Relaxed) {
            return Err(Error::new(
                ErrorKind::Cancelled,
                self.operation,
                "nobody waits for it any more",
            ));
        }
        if self.deadline.remaining().is_zero() {
            return Err(Error::new(
                ErrorKind::DeadlineExceeded,
                self.operation,
                "the deadline passed",
            ));
        }
        Ok(())
    }

    #[cfg(feature = "http")]
    pub(crate) fn deadline(&self) -> Deadline {
        self.deadline
    }
}
