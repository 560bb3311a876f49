//! Callers that wait for an object to change, woken by what wakes its reconciler.
//!
//! A change costs as much as there are callers who wait for just this object; the thousands that wait for others are
//! left alone. Whoever waits registers first and looks at the cache then, so that no change falls between the two.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use tokio::sync::oneshot;

use super::plan::ObjectKey;

#[derive(Debug, Default)]
pub(crate) struct Waiters(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    by_object: BTreeMap<ObjectKey, Vec<oneshot::Sender<()>>>,
    ended: bool,
}

impl Waiters {
    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Answers when the object has changed; fails when the runtime has ended, or does.
    pub(crate) fn register(&self, key: &ObjectKey) -> oneshot::Receiver<()> {
        let (changed, answer) = oneshot::channel();
        let mut state = self.state();
        if !state.ended {
            let same = state.by_object.entry(key.clone()).or_default();
            // Those who gave up leave here.
            same.retain(|waiter| !waiter.is_closed());
            same.push(changed);
        }
        answer
    }

    /// These objects changed.
    pub(crate) fn wake<'a>(&self, keys: impl IntoIterator<Item = &'a ObjectKey>) {
        let mut state = self.state();
        for key in keys {
            if state.by_object.is_empty() {
                return;
            }
            for waiter in state.by_object.remove(key).into_iter().flatten() {
                // One that is gone needs no answer.
                let _ = waiter.send(());
            }
        }
    }

    /// Everything may have changed.
    pub(crate) fn wake_all(&self) {
        let all = std::mem::take(&mut self.state().by_object);
        for waiter in all.into_values().flatten() {
            let _ = waiter.send(());
        }
    }

    /// Nothing will change any more: who waits, or comes later, is told.
    pub(crate) fn end(&self) {
        let mut state = self.state();
        state.ended = true;
        state.by_object.clear();
    }
}
