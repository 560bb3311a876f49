//! A process's leases: that it is alive, and that it leads.
//!
//! ```text
//!   member/<member>   asked for again every third of its time to live, by every process
//!   leader            likewise, by every process that may lead; the others wait for it to run out
//! ```
//! The time counts from **before** a request was sent, and a margin is taken off, so that the holder stops before the
//! store lets another one in; and whatever it still commits as the leader requires the lease, so that even a process
//! that was stopped in the middle of a commit can change nothing afterwards.
//!
//! After each renewal a process tells the store its time, by a beat under `clock/<member>`. The leader, which sees in a lease
//! how long ago it was renewed, knows from that whose clock is wrong ([`super::clock`]).
//!
//! Where the store lets in one process at a time ([`Store::exclusive`]), who held a lease before is gone: all processes
//! then ask under one name, so the next one need not wait.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{Notify, watch};
use tokio::time::Instant;
use uuid::Uuid;

use super::watchdog::Feeder;
use crate::error::{Error, ErrorKind, Result};
use crate::model::{MemberId, Role};
use crate::store::{Key, Lease, LeaseAnswer, Store};
use crate::time::{Clock, IdSource, Timestamp};

/// The lease that the leader holds.
pub(crate) const LEADER: &str = "leader";
/// In a store that no other process can open, this long is short enough: nobody waits for it.
const EXCLUSIVE_TTL: Duration = Duration::from_secs(3600);
/// How long after another's lease should have run out it is asked for: clocks tick apart.
pub(crate) const SLACK: Duration = Duration::from_millis(20);
/// Between two tries while the store does not answer.
const RETRY: Duration = Duration::from_millis(500);

const CLOCKS: &str = "clock/";

/// Where a process tells its time.
fn clock_key(member: MemberId) -> Result<Key> {
    Key::new(format!("{CLOCKS}{member}"))
}

/// Where processes told their times.
pub(crate) async fn told_times(store: &dyn Store) -> Result<Vec<Key>> {
    let told = store.beats(CLOCKS).await?;
    Ok(told.into_iter().map(|(key, _)| key).collect())
}

/// Who told a time there.
pub(crate) fn who_told(key: &Key) -> Option<MemberId> {
    key.as_str().strip_prefix(CLOCKS)?.parse().ok()
}

/// The time that a process told last.
pub(crate) async fn told_time(store: &dyn Store, member: MemberId) -> Result<Option<Timestamp>> {
    let key = clock_key(member)?;
    let told = store.beats(key.as_str()).await?;
    let own = told.into_iter().find(|(found, _)| *found == key);
    // What is no time was written by a hand, and the next renewal overwrites it.
    Ok(own.and_then(|(_, value)| serde_json::from_slice(&value).ok()))
}

/// By how many seconds a clock is ahead of this one, if certainly by more than `tolerance`: it showed `told` when this one was
/// within `between`.
pub(crate) fn clock_off_secs(
    told: Timestamp,
    between: (Timestamp, Timestamp),
    tolerance: Duration,
) -> Option<i64> {
    let (ahead, behind) = (told.since(between.1), between.0.since(told));
    let off = ahead.max(behind);
    let secs = i64::try_from(off.as_secs()).unwrap_or(i64::MAX);
    (off > tolerance).then_some(if behind.is_zero() { secs } else { -secs })
}

/// The lease of a member.
pub(crate) fn member_lease(member: MemberId) -> String {
    format!("member/{member}")
}

/// As whom a process asks for leases.
#[derive(Clone, Debug)]
pub(crate) struct Holder {
    pub(crate) name: String,
    pub(crate) ttl: Duration,
}

impl Holder {
    pub(crate) fn new(store: &dyn Store, ids: &dyn IdSource, ttl: Duration) -> Self {
        if store.exclusive() {
            Self {
                name: "the-only-one".to_owned(),
                ttl: EXCLUSIVE_TTL,
            }
        } else {
            Self {
                name: Uuid::from_u128(ids.bits()).to_string(),
                ttl,
            }
        }
    }
}

/// What a process is at this moment.
#[derive(Clone, Debug, Default)]
pub(crate) struct Standing {
    alive: Option<Held>,
    leads: Option<Held>,
}

#[derive(Clone, Debug)]
struct Held {
    lease: Lease,
    /// Since when it was renewed in time, every time.
    since: Instant,
    /// When the last renewal was asked for.
    asked: Instant,
    until: Instant,
}

impl Standing {
    /// That of a process that counts itself as alive, and as the leader under this lease, for ever.
    #[cfg(test)]
    pub(crate) fn believed(leads: Option<Lease>) -> Self {
        let now = Instant::now();
        let held = |lease| Held {
            lease,
            since: now - Duration::from_secs(60),
            asked: now,
            until: Instant::now() + Duration::from_secs(3600),
        };
        let alive = Lease {
            name: String::new(),
            holder: String::new(),
            token: 0,
            ttl: Duration::ZERO,
        };
        Self {
            alive: Some(held(alive)),
            leads: leads.map(held),
        }
    }

    /// The leader's lease, while it leads.
    pub(crate) fn leads(&self) -> Option<&Lease> {
        let held = self.leads.as_ref()?;
        (Instant::now() < held.until).then_some(&held.lease)
    }

    /// Whether it may act for what it owns.
    pub(crate) fn is_alive(&self) -> bool {
        let held = self.alive.as_ref();
        held.is_some_and(|held| Instant::now() < held.until)
    }

    /// Since when the store has answered so well that every process could renew its leases, as far as this one can tell.
    pub(crate) fn steady_since(&self, ttl: Duration) -> Option<Instant> {
        let held = self.alive.as_ref()?;
        is_timely(held.asked, ttl).then_some(held.since)
    }

    /// Gives the leases back, so that the next process need not wait.
    pub(crate) async fn leave(self, store: &dyn Store) {
        for held in [self.leads, self.alive].into_iter().flatten() {
            if let Err(error) = store.lease_release(&held.lease).await {
                let lease = held.lease.name;
                tracing::warn!(%error, lease, "a lease was not given back: it will run out");
            }
        }
    }
}

/// Whether a renewal that was asked for at `asked` is not overdue. Each process asks every third of the time to live: so if
/// the store is away for two thirds of it, another's lease may run out, which it renewed just before its next turn.
fn is_timely(asked: Instant, ttl: Duration) -> bool {
    asked.elapsed() <= ttl * 3 / 5
}

/// Keeps the leases for as long as somebody listens.
#[derive(Debug)]
pub(crate) struct Session {
    store: Arc<dyn Store>,
    clock: Arc<dyn Clock>,
    member: MemberId,
    holder: Holder,
    role: Role,
    feeder: Arc<Feeder>,
    tell: watch::Sender<Standing>,
}

impl Session {
    /// Asks for the leases a first time, so that a process which is alone begins as the leader.
    pub(crate) async fn open(
        store: Arc<dyn Store>,
        clock: Arc<dyn Clock>,
        member: MemberId,
        holder: Holder,
        role: Role,
        feeder: Arc<Feeder>,
    ) -> (Self, watch::Receiver<Standing>) {
        let (tell, standing) = watch::channel(Standing::default());
        let session = Self {
            store,
            clock,
            member,
            holder,
            role,
            feeder,
            tell,
        };
        session.ask().await;
        (session, standing)
    }

    /// Runs until nobody listens any more. A nudge has it ask at once: a leader may have left.
    #[expect(clippy::disallowed_methods, reason = "the runtime owns every timer")]
    pub(crate) async fn run(self, nudge: Arc<Notify>) {
        let mut pause = self.holder.ttl / 3;
        loop {
            tokio::select! {
                biased;
                () = self.tell.closed() => return,
                () = nudge.notified() => {}
                () = tokio::time::sleep(pause) => {}
            }
            pause = self.ask().await;
        }
    }

    /// Takes or keeps both leases; says when to ask again.
    async fn ask(&self) -> Duration {
        let mut again = self.holder.ttl / 3;
        let before = self.tell.borrow().clone();
        let alive = self
            .lease(member_lease(self.member), before.alive, &mut again)
            .await;
        let leads = if self.role.leads() {
            self.lease(LEADER.to_owned(), before.leads, &mut again)
                .await
        } else {
            None
        };
        let renewed = alive.as_ref().map(|held| held.until);
        self.tell.send_replace(Standing { alive, leads });
        if let Some(until) = renewed {
            self.feeder.feed(|| Instant::now() < until).await;
            if !self.store.exclusive()
                && let Err(error) = self.tell_time().await
            {
                tracing::debug!(%error, "this process did not tell its time");
            }
        }
        again
    }

    async fn tell_time(&self) -> Result<()> {
        let time = serde_json::to_vec(&self.clock.now()).map_err(|e| {
            Error::new(ErrorKind::Internal, "clock.tell", "no JSON of a time").caused_by(e)
        })?;
        let key = clock_key(self.member)?;
        self.store.put_beat(&key, Some(time.into())).await
    }

    async fn lease(
        &self,
        name: String,
        before: Option<Held>,
        again: &mut Duration,
    ) -> Option<Held> {
        let Holder { name: holder, ttl } = &self.holder;
        let sent = Instant::now();
        match self.store.lease_acquire(&name, holder, *ttl).await {
            Ok(LeaseAnswer::Granted(lease)) => {
                let now = Instant::now();
                let steady = |b: &Held| b.lease.token == lease.token && is_timely(b.asked, *ttl);
                Some(Held {
                    since: before.filter(steady).map_or(now, |before| before.since),
                    asked: sent,
                    lease,
                    until: sent + *ttl - *ttl / 10,
                })
            }
            Ok(LeaseAnswer::HeldBy { remaining, .. }) => {
                *again = (*again).min(remaining + SLACK);
                None
            }
            Err(error) => {
                tracing::warn!(%error, lease = name, "a lease was not renewed");
                *again = (*again).min(RETRY);
                before
            }
        }
    }
}
