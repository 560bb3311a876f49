//! Retention: what has ended is kept for a while, then forgotten.
//!
//! | what | forgotten when |
//! |---|---|
//! | operations, ended actions | [`Retention::operations`] after their end |
//! | events, audit records | [`Retention::events`], [`Retention::audit`] after they were written |
//! | answers kept for idempotency keys | [`Retention::idempotency`] after the first request |
//! | graves | [`Retention::graves`] after the object was deleted: what turns up later is reported, not swept |
//! | the times that processes told | their members are gone |
//! | the store's history | [`Retention::history`] after it happened: who watches from before must list again |
//!
//! Graves and actions are in the cache, so they go by plain commits. The other kinds are not, and one command a round
//! walks them in the store: events and audit records lie there in the order of their ids, which is that of time, so the
//! walk begins with the oldest; answers lie in the order of their keys, so each round looks at the next ten thousand.
//! Operations forget themselves ([`super::operation`]).

use std::collections::VecDeque;
use std::sync::PoisonError;
use std::time::Duration;

use super::cache::Cache;
use super::executor::Drivers;
use super::plan::{Command, Draft, Plan};
use super::session;
use crate::driver::Call;
use crate::error::Result;
use crate::model::{Action, ActionStatus, Audit, Event, EventId, OperationId, uuid_v7};
use crate::records::{self, Grave, Stored};
use crate::store::{Commit, Key, ListOptions, MAX_OPS, Op, Precondition, Record, Revision, TxnId};
use crate::time::Timestamp;

/// Between two rounds.
const EVERY: Duration = Duration::from_secs(60);
/// Pages of answers that a round looks at.
const PAGES: u32 = 100;

/// How long things are kept that nothing needs any more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Retention {
    /// Ended operations and actions. One day.
    pub operations: Duration,
    /// Events. A week.
    pub events: Duration,
    /// Audit records. A year.
    pub audit: Duration,
    /// The answers that requests with an idempotency key got. One day.
    pub idempotency: Duration,
    /// What says that an artefact without a record is nobody's. A month.
    pub graves: Duration,
    /// The store's superseded values: how far back a watch can be resumed. Ten minutes.
    pub history: Duration,
}

impl Default for Retention {
    fn default() -> Self {
        const DAY: Duration = Duration::from_secs(24 * 3600);
        Self {
            operations: DAY,
            events: DAY * 7,
            audit: DAY * 365,
            idempotency: DAY,
            graves: DAY * 30,
            history: Duration::from_secs(600),
        }
    }
}

/// What the runtime remembers between two rounds.
#[derive(Clone, Debug, Default)]
pub(crate) struct Rounds {
    last: Timestamp,
    /// Which revision there was when.
    marks: VecDeque<(Timestamp, Revision)>,
    answers_after: Option<Key>,
}

/// What a round forgets in the store.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Cutoffs {
    events: Timestamp,
    audit: Timestamp,
    idempotency: Timestamp,
    /// The answers were looked at up to here.
    answers_after: Option<Key>,
    history: Option<Revision>,
}

impl Rounds {
    /// A round begins.
    pub(crate) fn begin(&mut self, keep: &Retention, revision: Revision, now: Timestamp) {
        self.last = now;
        self.marks.push_back((now, revision));
        // One mark that is old enough stays: it is what may be forgotten.
        while self
            .marks
            .get(1)
            .is_some_and(|(at, _)| now.since(*at) >= keep.history)
        {
            self.marks.pop_front();
        }
    }

    pub(super) fn move_times(&mut self, by: i64) {
        self.last = self.last.moved(by);
        for (at, _) in &mut self.marks {
            *at = at.moved(by);
        }
    }

    /// A round has ended, and the next one goes on with the answers after this.
    pub(super) fn go_on_at(&mut self, after: Option<Key>) {
        self.answers_after = after;
    }
}

pub(crate) fn reconcile(
    keep: &Retention,
    rounds: &Rounds,
    cache: &Cache,
    now: Timestamp,
) -> Result<Plan> {
    let due = rounds.last.plus(EVERY);
    if now < due {
        return Ok(Plan::wake_at(due));
    }
    let mut draft = Draft::new();
    let old = |at: Timestamp, kept: Duration| now.since(at) >= kept;
    for (id, grave) in &cache.graves {
        if old(grave.at, keep.graves) && draft.ops.len() < MAX_OPS {
            draft = draft
                .unchanged::<Grave>(id, Some(grave.version))
                .delete::<Grave>(id);
        }
    }
    for (id, status) in &cache.action_status {
        let ended = status.ended_at().is_some_and(|at| old(at, keep.operations));
        if ended && draft.ops.len() + 2 <= MAX_OPS {
            draft = draft
                .unchanged::<ActionStatus>(id, Some(status.version))
                .delete::<Action>(id)
                .delete::<ActionStatus>(id);
        }
    }
    if !draft.ops.is_empty() {
        return Ok(Plan::commit(draft));
    }
    let history = rounds
        .marks
        .front()
        .filter(|(at, _)| old(*at, keep.history));
    Ok(Plan::command(Command::Forget(Cutoffs {
        events: now.minus(keep.events),
        audit: now.minus(keep.audit),
        idempotency: now.minus(keep.idempotency),
        answers_after: rounds.answers_after.clone(),
        history: history.map(|(_, revision)| *revision),
    })))
}

/// Carries a round out: where the next one goes on with the answers. What the deadline cuts short, the next one does.
pub(crate) async fn forget(
    drivers: &Drivers,
    call: Call,
    cutoffs: &Cutoffs,
) -> Result<Option<Key>> {
    let of_event = |record: &Record| Event::parse(&record.key).map(EventId::created_at);
    let of_audit = |record: &Record| Audit::parse(&record.key).map(EventId::created_at);
    let (events, audit) = ("event/", "audit/");
    walk(drivers, call, events, Order::Time, cutoffs.events, of_event).await?;
    walk(drivers, call, audit, Order::Time, cutoffs.audit, of_audit).await?;
    let order = Order::None {
        after: cutoffs.answers_after.clone(),
    };
    let kept = "idempotency/";
    let at = walk(drivers, call, kept, order, cutoffs.idempotency, of_answer).await?;
    if let Some(revision) = cutoffs.history {
        drivers.store.compact(revision).await?;
    }
    forget_times(drivers).await?;
    Ok(at)
}

/// The times that processes told which are no members any more.
async fn forget_times(drivers: &Drivers) -> Result<()> {
    let mut told = session::told_times(&*drivers.store).await?;
    {
        let cache = drivers.cache.read().unwrap_or_else(PoisonError::into_inner);
        told.retain(|key| session::who_told(key).is_none_or(|m| !cache.members.contains_key(&m)));
    }
    for key in told {
        drivers.store.put_beat(&key, None).await?;
    }
    Ok(())
}

/// When the request was made whose answer is kept: its operation's id tells.
fn of_answer(record: &Record) -> Option<Timestamp> {
    #[derive(serde::Deserialize)]
    struct Kept {
        operation: OperationId,
    }
    let kept = records::decode::<Kept>(&record.key, &record.value).ok()?;
    Some(kept.operation.created_at())
}

/// In which order the records of a kind lie.
enum Order {
    /// By their age: a walk begins with the oldest and ends at the first that is young enough.
    Time,
    /// None that helps: each must be looked at, a limited number a round.
    None {
        /// Where the round before ended.
        after: Option<Key>,
    },
}

/// Forgets the records of a kind that were written before a time, as far as it comes: to which key, if not to the end. A
/// record that does not tell its age is left, and keeps no other.
async fn walk(
    drivers: &Drivers,
    call: Call,
    prefix: &str,
    order: Order,
    before: Timestamp,
    written: impl Fn(&Record) -> Option<Timestamp>,
) -> Result<Option<Key>> {
    let (by_time, mut after) = match order {
        Order::Time => (true, None),
        Order::None { after } => (false, after),
    };
    for page in 1.. {
        let options = ListOptions {
            after,
            limit: MAX_OPS,
            at: None,
        };
        let found = drivers.store.list(prefix, options).await?;
        let mut old = Vec::new();
        let mut young = false;
        for record in &found.records {
            match written(record) {
                Some(at) if at < before => old.push(record),
                Some(_) => young = true,
                None => {}
            }
        }
        delete(drivers, &old).await?;
        if !found.more || (by_time && young) {
            break;
        }
        after = found.records.last().map(|record| record.key.clone());
        if call.deadline.remaining() < EVERY / 2 || (!by_time && page == PAGES) {
            return Ok(after);
        }
    }
    Ok(None)
}

async fn delete(drivers: &Drivers, old: &[&Record]) -> Result<()> {
    if old.is_empty() {
        return Ok(());
    }
    let mut commit = Commit::new(TxnId(uuid_v7(drivers.clock.now(), &*drivers.ids)));
    for record in old {
        commit.require(Precondition::At(record.key.clone(), record.version));
        commit.push(Op::Delete(record.key.clone()));
    }
    super::commit::commit_known(&*drivers.store, commit)
        .await
        .map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn second(n: u64) -> Timestamp {
        Timestamp::from_millis(n * 1000)
    }

    #[test]
    fn history_is_kept_for_as_long_as_promised_and_no_longer() {
        let keep = Retention {
            history: Duration::from_secs(100),
            ..Retention::default()
        };
        let mut rounds = Rounds::default();
        for n in 1..=20 {
            let now = second(n * 60);
            let plan = reconcile(&keep, &rounds, &Cache::default(), now).unwrap();
            if let Some(Command::Forget(cutoffs)) = plan.command {
                assert_eq!(cutoffs.history.is_some(), n > 2, "minute {n}: {cutoffs:?}");
                if let Some(Revision(from)) = cutoffs.history {
                    let kept = (n - from) * 60;
                    assert!((100..=180).contains(&kept), "minute {n}: {kept} s");
                }
            } else {
                panic!("minute {n}: {plan:?}");
            }
            rounds.begin(&keep, Revision(n), now);
            let early = reconcile(&keep, &rounds, &Cache::default(), now).unwrap();
            assert_eq!(early.wake, Some(now.plus(EVERY)));
        }
    }
}
