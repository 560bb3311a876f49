//! Fences for real hosts: each takes from one host the ability to run and to start guests, and proves that it has.
//!
//! | fence | how | for whom |
//! |---|---|---|
//! | `RedfishFence` (feature `redfish`) | the power switch of the host's BMC | servers of the last ten years |
//! | [`IpmiFence`] | the same, by `ipmitool` | older ones |
//! | [`ProcessFence`] | ends the owner's process and its guests | a cluster on one machine, and tests |
//!
//! What each proves, and which to choose: `docs/guides/fencing.md`.

mod ipmi;
mod process;
#[cfg(feature = "redfish")]
mod redfish;

pub use ipmi::{IpmiFence, IpmiOptions};
pub use process::ProcessFence;
#[cfg(feature = "redfish")]
pub use redfish::{RedfishFence, RedfishOptions};
