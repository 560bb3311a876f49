//! A process's time: its host's clock, put right by what the leader tells of it, and steady in between.
//!
//! ```text
//!   now = the host's clock when this began + the time that has passed since + what was put right
//! ```
//! So the times in records agree, whoever writes them: a request of a process whose host is an hour behind does not come with
//! a deadline that has passed. The host's clock is followed when it was set, and the leader's while the two differ
//! ([`Member::clock_off_secs`](crate::model::Member::clock_off_secs)). That happens between two turns of the control loop,
//! which then moves along what it remembers with a time, and looks at everything: a step of an hour delays nothing by one.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};

use tokio::time::Instant;

use crate::time::{Clock, Timestamp};

/// A smaller difference is left: clocks are slewed, and looks have a price.
const STEP_MS: i64 = 1000;

#[derive(Debug)]
pub(crate) struct OwnClock {
    host: Arc<dyn Clock>,
    origin: Instant,
    /// What this clock showed at the origin, milliseconds.
    begin: AtomicI64,
    /// By how much the host's clock is ahead of the leader's, milliseconds.
    off: AtomicI64,
}

impl OwnClock {
    pub(crate) fn new(host: Arc<dyn Clock>) -> Self {
        Self {
            begin: AtomicI64::new(millis(host.now())),
            origin: Instant::now(),
            host,
            off: AtomicI64::new(0),
        }
    }

    /// Takes in what the leader tells.
    pub(crate) fn is_off_by(&self, secs: Option<i64>) {
        let off = secs.unwrap_or(0).saturating_mul(1000);
        self.off.store(off, Ordering::Relaxed);
    }

    /// Puts it right; by how many milliseconds, if it was not.
    pub(crate) fn put_right(&self) -> Option<i64> {
        let right = millis(self.host.now()) - self.off.load(Ordering::Relaxed);
        let by = right - millis(self.now());
        (by.abs() > STEP_MS).then(|| {
            self.begin.fetch_add(by, Ordering::Relaxed);
            by
        })
    }
}

impl Clock for OwnClock {
    fn now(&self) -> Timestamp {
        let passed = i64::try_from(self.origin.elapsed().as_millis()).unwrap_or(i64::MAX);
        let now = self.begin.load(Ordering::Relaxed).saturating_add(passed);
        Timestamp::from_millis(u64::try_from(now).unwrap_or(0))
    }
}

fn millis(time: Timestamp) -> i64 {
    i64::try_from(time.as_millis()).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;
    use std::time::Duration;

    use super::*;

    /// A clock that is set by hand.
    #[derive(Debug, Default)]
    struct ByHand(Mutex<u64>);

    impl Clock for ByHand {
        fn now(&self) -> Timestamp {
            Timestamp::from_millis(*self.0.lock().unwrap())
        }
    }

    #[tokio::test(start_paused = true)]
    async fn it_is_steady_between_two_turns_and_follows_the_host_and_the_leader() {
        let host = Arc::new(ByHand(Mutex::new(5_000_000)));
        let clock = OwnClock::new(Arc::clone(&host) as Arc<dyn Clock>);
        tokio::time::advance(Duration::from_secs(10)).await;
        assert_eq!(clock.now(), Timestamp::from_millis(5_010_000));
        *host.0.lock().unwrap() = 5_010_400;
        assert_eq!(clock.put_right(), None);
        // The host's clock is set back.
        *host.0.lock().unwrap() = 1_000_000;
        assert_eq!(clock.now(), Timestamp::from_millis(5_010_000));
        assert_eq!(clock.put_right(), Some(-4_010_000));
        assert_eq!(clock.now(), Timestamp::from_millis(1_000_000));
        // It is an hour behind the leader's.
        clock.is_off_by(Some(-3600));
        assert_eq!(clock.put_right(), Some(3_600_000));
        clock.is_off_by(None);
        assert_eq!(clock.put_right(), Some(-3_600_000));
    }
}
