//! Closures that libvirt calls, under numbers.
//!
//! libvirt is given a number where its interface wants a pointer to data, and no function that frees it: some drivers keep
//! what they are given, and some take it and do nothing with it. A number that is not here any more is nobody's.

use std::collections::BTreeMap;
use std::ffi::c_void;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, PoisonError, RwLock};

type Sink<E> = Arc<dyn Fn(E) + Send + Sync>;

/// The closures of one kind of event, for the whole process.
pub(super) struct Registry<E>(RwLock<Closures<E>>);

struct Closures<E> {
    next: usize,
    sinks: BTreeMap<usize, Sink<E>>,
}

/// A closure's place; dropped, it is not called any more. A call that is under way on libvirt's thread comes to its end.
pub(super) struct Place<E: 'static> {
    registry: &'static Registry<E>,
    number: usize,
}

impl<E> Registry<E> {
    pub(super) const fn new() -> Self {
        Self(RwLock::new(Closures {
            next: 1,
            sinks: BTreeMap::new(),
        }))
    }

    pub(super) fn add(&'static self, sink: impl Fn(E) + Send + Sync + 'static) -> Place<E> {
        let mut closures = self.0.write().unwrap_or_else(PoisonError::into_inner);
        let number = closures.next;
        closures.next += 1;
        closures.sinks.insert(number, Arc::new(sink));
        Place {
            registry: self,
            number,
        }
    }

    /// Calls what has this number. A panic ends here: it must not cross into C.
    pub(super) fn call(&self, data: *mut c_void, event: E) {
        let closures = self.0.read().unwrap_or_else(PoisonError::into_inner);
        let sink = closures.sinks.get(&data.addr()).cloned();
        drop(closures);
        if let Some(sink) = sink {
            let _ = catch_unwind(AssertUnwindSafe(|| sink(event)));
        }
    }
}

impl<E> Place<E> {
    /// What libvirt is given as data.
    pub(super) fn data(&self) -> *mut c_void {
        std::ptr::without_provenance_mut(self.number)
    }
}

impl<E> Drop for Place<E> {
    fn drop(&mut self) {
        let closures = &self.registry.0;
        let mut closures = closures.write().unwrap_or_else(PoisonError::into_inner);
        let sink = closures.sinks.remove(&self.number);
        // What it holds may call back.
        drop(closures);
        drop(sink);
    }
}
