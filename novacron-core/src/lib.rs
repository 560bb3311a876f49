//! The virtual machine cluster in a library: model, traits, store, control loop.

pub mod cluster;
#[cfg(feature = "conformance")]
pub mod conformance;
pub(crate) mod control;
pub mod driver;
mod error;
pub mod lifecycle;
pub mod model;
mod records;
#[cfg(feature = "sim")]
pub mod sim;
pub mod store;
mod time;

pub use cluster::{Cluster, RequestOptions};
pub use error::{Error, ErrorKind, Problem, Result};
pub use lifecycle::Phase;
pub use model::{Bytes, MiB, VmSpec};
pub use time::{Clock, Deadline, IdSource, SeededIds, SystemClock, TimerClock, Timestamp};
