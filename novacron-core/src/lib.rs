//! The virtual machine cluster in a library: model, traits, store, control loop.

#[cfg(feature = "conformance")]
pub mod conformance;
mod error;
pub mod store;
mod time;

pub use error::{Error, ErrorKind, Problem, Result};
pub use time::{Clock, Deadline, IdSource, SeededIds, SystemClock, TimerClock, Timestamp};
