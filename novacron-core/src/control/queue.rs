//! The work queue: one entry per object however often it is asked for, one reconcile at a time, backoff per object.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

use super::plan::ObjectKey;
use crate::time::Timestamp;

/// The longest wait between two attempts at an object.
const MAX_BACKOFF: Duration = Duration::from_secs(30);
/// The first wait.
const FIRST_BACKOFF: Duration = Duration::from_millis(100);

#[derive(Debug, Default)]
pub(crate) struct Queue {
    ready: VecDeque<ObjectKey>,
    queued: BTreeSet<ObjectKey>,
    /// Under way: not handed out; asked for again meanwhile if `true`.
    busy: BTreeMap<ObjectKey, bool>,
    /// At most one for each object: the earliest that was asked for.
    timers: BTreeSet<(Timestamp, ObjectKey)>,
    timer_of: BTreeMap<ObjectKey, Timestamp>,
    /// How often each failed in a row, and since when.
    failures: BTreeMap<ObjectKey, (u32, Timestamp)>,
}

impl Queue {
    /// Asks for an object to be looked at.
    pub(crate) fn push(&mut self, key: ObjectKey) {
        if let Some(again) = self.busy.get_mut(&key) {
            *again = true;
        } else if self.queued.insert(key.clone()) {
            self.ready.push_back(key);
        }
    }

    /// Asks for an object to be looked at then, or earlier if that was asked for before: the look asks again.
    pub(crate) fn push_at(&mut self, key: ObjectKey, at: Timestamp) {
        if let Some(before) = self.timer_of.get_mut(&key) {
            if *before <= at {
                return;
            }
            self.timers.remove(&(*before, key.clone()));
            *before = at;
        } else {
            self.timer_of.insert(key.clone(), at);
        }
        self.timers.insert((at, key));
    }

    /// The next object to look at.
    pub(crate) fn pop(&mut self) -> Option<ObjectKey> {
        let key = self.ready.pop_front()?;
        self.queued.remove(&key);
        Some(key)
    }

    /// Moves what is due to the ready ones.
    pub(crate) fn fire(&mut self, now: Timestamp) {
        while self.timers.first().is_some_and(|(at, _)| *at <= now) {
            if let Some((_, key)) = self.timers.pop_first() {
                self.timer_of.remove(&key);
                self.push(key);
            }
        }
    }

    /// The clock was put right: everything that waits for a time is looked at, and says anew when that is.
    pub(crate) fn move_times(&mut self, by: i64) {
        self.timer_of.clear();
        for (_, key) in std::mem::take(&mut self.timers) {
            self.push(key);
        }
        for (_, since) in self.failures.values_mut() {
            *since = since.moved(by);
        }
    }

    /// When the next timer is due.
    pub(crate) fn next_timer(&self) -> Option<Timestamp> {
        self.timers.first().map(|(at, _)| *at)
    }

    pub(crate) fn set_busy(&mut self, key: ObjectKey) {
        self.busy.insert(key, false);
    }

    pub(crate) fn is_busy(&self, key: &ObjectKey) -> bool {
        self.busy.contains_key(key)
    }

    /// The object's commit or command has ended: look at it again.
    pub(crate) fn release(&mut self, key: &ObjectKey) {
        self.busy.remove(key);
        self.push(key.clone());
    }

    /// As [`Queue::release`] after a failure: after a wait that doubles with every one in a row.
    pub(crate) fn release_later(&mut self, key: &ObjectKey, now: Timestamp) {
        self.busy.remove(key);
        let (failures, _) = self.failures.entry(key.clone()).or_insert((0, now));
        let wait = FIRST_BACKOFF
            .saturating_mul(1 << (*failures).min(10))
            .min(MAX_BACKOFF);
        *failures = failures.saturating_add(1);
        self.push_at(key.clone(), now.plus(wait));
    }

    /// As [`Queue::release`] for a commit that lost against another one: what it was decided from is old, which is no
    /// failure of the object's; whatever made it old wakes it, or else this short wait ends.
    pub(crate) fn release_outdated(&mut self, key: &ObjectKey, now: Timestamp) {
        match self.busy.remove(key) {
            Some(true) => self.push(key.clone()),
            _ => self.push_at(key.clone(), now.plus(FIRST_BACKOFF)),
        }
    }

    /// How often the object failed in a row.
    pub(crate) fn failures(&self, key: &ObjectKey) -> u32 {
        self.failures.get(key).map_or(0, |(count, _)| *count)
    }

    /// For how long the object has been failing.
    pub(crate) fn failing(&self, key: &ObjectKey, now: Timestamp) -> Duration {
        let since = self.failures.get(key).map(|(_, since)| *since);
        since.map(|since| now.since(since)).unwrap_or_default()
    }

    /// The object's failures, if there were any, are over; or it is gone.
    pub(crate) fn succeeded(&mut self, key: &ObjectKey) {
        self.failures.remove(key);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::NodeId;

    fn key(name: &str) -> ObjectKey {
        ObjectKey::Node(NodeId::new(name).unwrap())
    }

    #[test]
    fn requests_coalesce_also_while_busy() {
        let mut queue = Queue::default();
        queue.push(key("a"));
        queue.push(key("a"));
        assert_eq!(queue.pop(), Some(key("a")));
        assert_eq!(queue.pop(), None);
        queue.set_busy(key("a"));
        queue.push(key("a"));
        queue.push(key("a"));
        assert_eq!(queue.pop(), None);
        queue.release(&key("a"));
        assert_eq!(queue.pop(), Some(key("a")));
        assert_eq!(queue.pop(), None);
    }

    #[test]
    fn an_object_has_one_timer_the_earliest() {
        let mut queue = Queue::default();
        for at in [500, 200, 900] {
            queue.push_at(key("a"), Timestamp::from_millis(at));
        }
        assert_eq!(queue.next_timer(), Some(Timestamp::from_millis(200)));
        queue.fire(Timestamp::from_millis(1000));
        assert_eq!(queue.pop(), Some(key("a")));
        assert_eq!(queue.next_timer(), None);
        queue.push_at(key("a"), Timestamp::from_millis(1500));
        assert_eq!(queue.next_timer(), Some(Timestamp::from_millis(1500)));
    }

    #[test]
    fn backoff_doubles_up_to_the_limit_and_is_forgotten_on_success() {
        let mut queue = Queue::default();
        let mut last = 0;
        for _ in 0..20 {
            queue.release_later(&key("a"), Timestamp::from_millis(0));
            let due = queue.next_timer().unwrap().as_millis();
            assert!(due >= last && due <= 30_000, "{due}");
            last = due;
            queue.fire(Timestamp::from_millis(due));
            queue.pop();
        }
        assert_eq!(last, 30_000);
        let later = Timestamp::from_millis(90_000);
        assert_eq!(queue.failing(&key("a"), later), Duration::from_secs(90));
        queue.release_outdated(&key("a"), later);
        assert_eq!(queue.failures(&key("a")), 20);
        queue.succeeded(&key("a"));
        assert_eq!(queue.failures(&key("a")), 0);
    }
}
