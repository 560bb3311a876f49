//! Threads that call libvirt: a hypervisor has a pool for what changes something, and one for what reads, which so never
//! waits behind fifty starts. Threads are made when they are needed, each with a connection of its own ([`Lane`]).
//!
//! ```text
//!   call ─► job in the queue ─► a thread ─► libvirt ─► answer, before the deadline: the caller's
//!                │ deadline                    │ deadline: the thread is late, its answer nobody's
//!                ▼                             ▼
//!     DeadlineExceeded: never begun    OutcomeUnknown (it changes something), or DeadlineExceeded (it reads)
//! ```
//! No call of libvirt's has a deadline, and one to a daemon that hangs may never return. So nobody waits for a thread: a
//! caller goes at its deadline, and the thread comes back when libvirt does. While every thread of a pool is late, its
//! calls are refused at once, and other hypervisors' threads go on. What changes something and is late is counted, for `list`: it
//! is only complete when nothing is under way that nobody waits for.

use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use novacron_core::driver::Call;
use novacron_core::{Error, ErrorKind, Result};
use tokio::sync::{oneshot, watch};
use tokio::time::timeout;

use super::error::remaining;
use super::link::Lane;

/// A thread without work for so long goes.
const IDLE: Duration = Duration::from_secs(30);

/// What a call does to the world.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Effect {
    /// It reads.
    None,
    /// It changes something.
    Some,
}

/// The threads. Dropping it lets them go when they have done what is queued.
#[derive(Debug)]
pub(super) struct Pool(Arc<Shared>);

struct Shared {
    /// The most threads.
    limit: usize,
    queue: Mutex<Queue>,
    wake: Condvar,
    /// Calls that change something and that nobody waits for any more.
    late_changes: watch::Sender<usize>,
}

impl std::fmt::Debug for Shared {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let queue = lock(&self.queue);
        f.debug_struct("Pool")
            .field("threads", &queue.threads)
            .field("late", &queue.late)
            .finish_non_exhaustive()
    }
}

type Job = Box<dyn FnOnce(&mut Lane) + Send>;

#[derive(Default)]
struct Queue {
    jobs: VecDeque<Job>,
    threads: usize,
    idle: usize,
    late: usize,
    closed: bool,
}

/// Where a job is.
const QUEUED: u8 = 0;
const BEGUN: u8 = 1;
const OVER: u8 = 2;
/// Its caller has gone: while it was queued it will not begin, and while it was begun it is late.
const LEFT: u8 = 3;

impl Drop for Pool {
    fn drop(&mut self) {
        lock(&self.0.queue).closed = true;
        self.0.wake.notify_all();
    }
}

impl Pool {
    /// One of at most so many threads.
    pub(super) fn new(limit: usize) -> Self {
        Self(Arc::new(Shared {
            limit,
            queue: Mutex::default(),
            wake: Condvar::new(),
            late_changes: watch::Sender::new(0),
        }))
    }

    /// Does the work on a thread, and waits for it until the deadline.
    pub(super) async fn run<T: Send + 'static>(
        &self,
        call: Call,
        operation: &'static str,
        effect: Effect,
        work: impl FnOnce(&mut Lane) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        let left = remaining(call, operation)?;
        let (answer, answered) = oneshot::channel();
        let place = Arc::new(AtomicU8::new(QUEUED));
        let (shared, at) = (Arc::clone(&self.0), Arc::clone(&place));
        let job = move |lane: &mut Lane| {
            if at
                .compare_exchange(QUEUED, BEGUN, Ordering::SeqCst, Ordering::SeqCst)
                .is_err()
            {
                return;
            }
            let done = catch_unwind(AssertUnwindSafe(|| work(lane)));
            if at.swap(OVER, Ordering::SeqCst) == LEFT {
                shared.back(effect);
            }
            // A panic shows as an answer that never comes; a caller that has left needs none.
            if let Ok(done) = done {
                let _ = answer.send(done);
            }
        };
        self.submit(Box::new(job), operation)?;
        match timeout(left, answered).await {
            Ok(Ok(answer)) => answer,
            Ok(Err(_)) => Err(Error::new(
                ErrorKind::Internal,
                operation,
                "a thread that calls libvirt panicked",
            )),
            Err(_) => Err(self.leave(&place, operation, effect)),
        }
    }

    /// Waits until nothing that changes something is under way without a caller.
    pub(super) async fn settled(&self, call: Call, operation: &'static str) -> Result<()> {
        let mut late = self.0.late_changes.subscribe();
        let settles = late.wait_for(|late| *late == 0);
        match timeout(remaining(call, operation)?, settles).await {
            Ok(_) => Ok(()),
            Err(_) => Err(Error::new(
                ErrorKind::Unavailable,
                operation,
                "libvirt has not answered an earlier call yet, which may still change what there is",
            )),
        }
    }

    fn submit(&self, job: Job, operation: &'static str) -> Result<()> {
        let mut queue = lock(&self.0.queue);
        let limit = self.0.limit;
        if queue.late >= limit {
            let message = format!("libvirt does not answer: {limit} calls hang in it");
            return Err(Error::new(ErrorKind::Unavailable, operation, message));
        }
        // What waits for an idle thread has that one's connection; a new thread opens one for the call that it is made for,
        // which may hang where the daemon does.
        let mut job = Some(job);
        if queue.idle <= queue.jobs.len() && queue.threads < limit {
            let shared = Arc::clone(&self.0);
            let first = Arc::new(Mutex::new(job));
            let handed = Arc::clone(&first);
            let thread = std::thread::Builder::new().name("libvirt-call".to_owned());
            match thread.spawn(move || shared.work(lock(&handed).take())) {
                Ok(_) => {
                    queue.threads += 1;
                    return Ok(());
                }
                Err(error) if queue.threads == 0 => {
                    let message = "no thread can be started to call libvirt";
                    let error =
                        Error::new(ErrorKind::Exhausted, operation, message).caused_by(error);
                    return Err(error);
                }
                Err(_) => job = lock(&first).take(),
            }
        }
        queue.jobs.extend(job);
        drop(queue);
        self.0.wake.notify_one();
        Ok(())
    }

    /// The caller goes; what that means for it.
    fn leave(&self, place: &AtomicU8, operation: &'static str, effect: Effect) -> Error {
        // Held throughout, so that the count is never lowered before it is raised.
        let mut queue = lock(&self.0.queue);
        let was = place.swap(LEFT, Ordering::SeqCst);
        if was == BEGUN {
            queue.late += 1;
            if effect == Effect::Some {
                self.0.late_changes.send_modify(|late| *late += 1);
            }
        }
        drop(queue);
        match (was, effect) {
            (QUEUED, _) => Error::new(
                ErrorKind::DeadlineExceeded,
                operation,
                "the deadline has passed before libvirt was asked",
            ),
            (_, Effect::None) => Error::new(
                ErrorKind::DeadlineExceeded,
                operation,
                "libvirt did not answer in time",
            ),
            (_, Effect::Some) => Error::new(
                ErrorKind::OutcomeUnknown,
                operation,
                "libvirt did not answer in time, and may still do it",
            ),
        }
    }
}

impl Shared {
    fn back(&self, effect: Effect) {
        lock(&self.queue).late -= 1;
        if effect == Effect::Some {
            self.late_changes.send_modify(|late| *late -= 1);
        }
    }

    fn work(&self, first: Option<Job>) {
        let mut lane = Lane::default();
        if let Some(job) = first {
            job(&mut lane);
        }
        let mut queue = lock(&self.queue);
        loop {
            if let Some(job) = queue.jobs.pop_front() {
                drop(queue);
                job(&mut lane);
                queue = lock(&self.queue);
                continue;
            }
            if queue.closed {
                break;
            }
            queue.idle += 1;
            let (woken, waited) = self
                .wake
                .wait_timeout(queue, IDLE)
                .unwrap_or_else(PoisonError::into_inner);
            queue = woken;
            queue.idle -= 1;
            if waited.timed_out() && queue.jobs.is_empty() {
                break;
            }
        }
        queue.threads -= 1;
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;

    const OPERATION: &str = "test";
    const LIMIT: usize = 4;

    #[tokio::test]
    async fn a_call_that_hangs_ends_at_its_deadline_and_others_go_on() {
        let pool = Pool::new(LIMIT);
        let (release, hang) = mpsc::channel::<()>();
        let soon = Call::within(Duration::from_millis(50));
        let stuck = move |_: &mut Lane| {
            let _ = hang.recv();
            Ok(())
        };
        let error = pool
            .run(soon, OPERATION, Effect::Some, stuck)
            .await
            .unwrap_err();
        assert_eq!(error.kind(), ErrorKind::OutcomeUnknown);
        let later = || Call::within(Duration::from_secs(30));
        let other = pool.run(later(), OPERATION, Effect::None, |_| Ok(7));
        assert_eq!(other.await.unwrap(), 7);
        let soon = Call::within(Duration::from_millis(50));
        let unsettled = pool.settled(soon, OPERATION).await.unwrap_err();
        assert_eq!(unsettled.kind(), ErrorKind::Unavailable);
        drop(release);
        pool.settled(later(), OPERATION).await.unwrap();
    }

    #[tokio::test]
    async fn when_every_thread_hangs_calls_are_refused_until_one_is_back() {
        let pool = Pool::new(LIMIT);
        let mut held = Vec::new();
        for _ in 0..LIMIT {
            let (release, hang) = mpsc::channel::<()>();
            held.push(release);
            let soon = Call::within(Duration::from_millis(20));
            let stuck = move |_: &mut Lane| {
                let _ = hang.recv();
                Ok(())
            };
            let error = pool.run(soon, OPERATION, Effect::None, stuck).await;
            assert_eq!(error.unwrap_err().kind(), ErrorKind::DeadlineExceeded);
        }
        let later = || Call::within(Duration::from_secs(30));
        let refused = pool.run(later(), OPERATION, Effect::None, |_| Ok(()));
        assert_eq!(refused.await.unwrap_err().kind(), ErrorKind::Unavailable);
        held.clear();
        while pool
            .run(later(), OPERATION, Effect::None, |_| Ok(()))
            .await
            .is_err()
        {}
    }

    #[tokio::test]
    async fn a_panic_is_an_answer() {
        let pool = Pool::new(LIMIT);
        let call = Call::within(Duration::from_secs(30));
        let answer = pool.run(call, OPERATION, Effect::None, |_| -> Result<()> {
            panic!("meant")
        });
        assert_eq!(answer.await.unwrap_err().kind(), ErrorKind::Internal);
    }
}
