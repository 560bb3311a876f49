//! The virtual machine cluster in a library: model, traits, store, control loop.

#[cfg(feature = "conformance")]
pub mod conformance;
pub mod driver;
mod error;
pub mod lifecycle;
pub mod model;
#[cfg(feature = "sim")]
pub mod sim;
pub mod store;
mod time;

pub use error::{Error, ErrorKind, Problem, Result};
pub use lifecycle::Phase;
pub use model::{Bytes, MiB, VmSpec};
pub use time::{Clock, Deadline, IdSource, SeededIds, SystemClock, TimerClock, Timestamp};
