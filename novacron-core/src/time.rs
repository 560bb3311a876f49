//! Time and ids as arguments.
//!
//! Nothing in NovaCron reads the wall clock or makes an id by itself: a [`Clock`] and an [`IdSource`] are handed to the
//! cluster and to the stores, so that a simulation can own both. Waiting uses tokio's timer, which the simulation
//! pauses.

use std::fmt;
use std::sync::Mutex;
use std::time::Duration;

use rand::rngs::StdRng;
use rand::{RngCore, SeedableRng};
use serde::{Deserialize, Serialize};
use tokio::time::Instant;
use uuid::Uuid;

/// A point of wall-clock time: milliseconds since the Unix epoch.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
#[serde(transparent)]
pub struct Timestamp(u64);

impl Timestamp {
    /// From milliseconds since the Unix epoch.
    pub const fn from_millis(millis: u64) -> Self {
        Self(millis)
    }

    /// Milliseconds since the Unix epoch.
    pub const fn as_millis(self) -> u64 {
        self.0
    }

    /// The time that has passed since `earlier`; zero when `earlier` is later.
    pub fn since(self, earlier: Self) -> Duration {
        Duration::from_millis(self.0.saturating_sub(earlier.0))
    }

    /// This time less `duration`; the epoch at the earliest.
    #[must_use]
    pub fn minus(self, duration: Duration) -> Self {
        let millis = u64::try_from(duration.as_millis()).unwrap_or(u64::MAX);
        Self(self.0.saturating_sub(millis))
    }

    /// This time, so many milliseconds later; earlier if they are negative.
    #[must_use]
    pub(crate) fn moved(self, millis: i64) -> Self {
        Self(self.0.saturating_add_signed(millis))
    }

    /// This time plus `duration`.
    #[must_use]
    pub fn plus(self, duration: Duration) -> Self {
        Self(
            self.0
                .saturating_add(u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)),
        )
    }
}

/// When what began at `since` and lasts for `length` is over; none if it is. Another process may have said when it began: a
/// clock that is ahead by more than `length` is not believed, so that nothing waits for hours because a clock is wrong.
pub(crate) fn lasts(since: Timestamp, length: Duration, now: Timestamp) -> Option<Timestamp> {
    let end = since.plus(length);
    (now < end && end.since(now) <= length * 2).then_some(end)
}

/// The wall clock.
pub trait Clock: fmt::Debug + Send + Sync + 'static {
    /// The time now. May jump in either direction; nothing may rely on it for safety.
    fn now(&self) -> Timestamp;
}

/// The machine's own clock.
#[derive(Clone, Copy, Debug, Default)]
pub struct SystemClock;

impl Clock for SystemClock {
    #[expect(
        clippy::disallowed_methods,
        reason = "the one place that reads the wall clock"
    )]
    fn now(&self) -> Timestamp {
        let since = std::time::SystemTime::now()
            .duration_since(std::time::UNIX_EPOCH)
            .unwrap_or_default();
        Timestamp::from_millis(u64::try_from(since.as_millis()).unwrap_or(u64::MAX))
    }
}

/// A clock that follows tokio's timer from a fixed start: with a paused runtime it is the simulation's time.
#[derive(Clone, Copy, Debug)]
pub struct TimerClock {
    origin: Instant,
    start: Timestamp,
}

impl TimerClock {
    /// A clock that shows `start` now.
    pub fn starting_at(start: Timestamp) -> Self {
        Self {
            origin: Instant::now(),
            start,
        }
    }
}

impl Clock for TimerClock {
    fn now(&self) -> Timestamp {
        self.start.plus(self.origin.elapsed())
    }
}

/// Where ids and jitter come from.
pub trait IdSource: fmt::Debug + Send + Sync + 'static {
    /// 128 fresh bits. The upper 32 should count up, so that ids of one millisecond are in the order of their making;
    /// the others should be random.
    fn bits(&self) -> u128;

    /// A UUID of such bits (RFC 9562, version 4).
    fn uuid(&self) -> Uuid {
        uuid::Builder::from_random_bytes(self.bits().to_be_bytes()).into_uuid()
    }
}

/// A seeded generator: from the operating system in production, from a number in a simulation.
pub struct SeededIds(Mutex<Source>);

struct Source {
    rng: StdRng,
    count: u32,
}

impl SeededIds {
    /// The count begins anywhere in the lower half, so that it does not wrap in a process's life.
    fn counting(mut rng: StdRng) -> Self {
        let count = rng.next_u32() >> 1;
        Self(Mutex::new(Source { rng, count }))
    }

    /// Ids that repeat for the same seed.
    pub fn from_seed(seed: u64) -> Self {
        Self::counting(StdRng::seed_from_u64(seed))
    }

    /// Ids that do not repeat.
    ///
    /// # Panics
    /// When the operating system has no randomness to give, as `getrandom` does for every Rust program.
    pub fn from_os() -> Self {
        let mut seed = [0; 32];
        #[expect(
            clippy::expect_used,
            reason = "documented: without randomness nothing here is sound"
        )]
        getrandom::fill(&mut seed).expect("the operating system gives randomness");
        Self::counting(StdRng::from_seed(seed))
    }
}

impl fmt::Debug for SeededIds {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SeededIds")
    }
}

impl IdSource for SeededIds {
    fn bits(&self) -> u128 {
        let mut source = self
            .0
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner);
        source.count = source.count.wrapping_add(1);
        let (high, low) = (source.rng.next_u32(), source.rng.next_u64());
        (u128::from(source.count) << 96) | (u128::from(high) << 64) | u128::from(low)
    }
}

/// When a call must have ended. Every function that leaves the process takes one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Deadline(Instant);

const CENTURY: Duration = Duration::from_secs(100 * 365 * 86_400);

impl Deadline {
    /// The deadline `timeout` from now, on tokio's timer; a century when that is more than it can count.
    pub fn after(timeout: Duration) -> Self {
        let now = Instant::now();
        Self(now.checked_add(timeout).unwrap_or(now + CENTURY))
    }

    /// At this instant.
    pub const fn at(instant: Instant) -> Self {
        Self(instant)
    }

    /// The instant, for `tokio::time::timeout_at`.
    pub const fn instant(self) -> Instant {
        self.0
    }

    /// The time left; zero when it has passed.
    pub fn remaining(self) -> Duration {
        self.0.saturating_duration_since(Instant::now())
    }
}
