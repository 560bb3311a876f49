//! A simulated world, and drivers that act in it.
//!
//! ```text
//!   SimHypervisor ─┐                                ┌─ hosts: boot id, domains, ports, event streams
//!   SimNetwork ────┼─ call ─► fate, latency ─► effect on the world ─┼─ pools: volumes, images, snapshots
//!   SimStorage ────┘ (faults.rs, call.rs)           └─ observe.rs: what runs, violations, artefacts
//! ```
//! [`SimWorld`] outlives a crash of the simulated NovaCron process: a call under way is carried out by a task of the
//! world's, so that one whose caller was dropped, or got tired of waiting, may take effect later. Everything comes from
//! one seed: latencies, faults and boot ids; time is tokio's timer, which a simulation pauses; maps are ordered. On one
//! thread a run repeats exactly.
//!
//! Without latency and faults a call takes effect and returns at once, with neither task nor timer, so that benchmarks
//! can hold 100,000 guests on 10,000 hosts.
//!
//! The world does not know NovaCron's records. It sees what runs, and writes down a [`Violation`] at the moment when a
//! VM runs twice, a volume has two writers, or a volume is changed behind a running guest's back.

mod call;
mod devices;
mod faults;
mod fence;
mod guests;
mod hypervisor;
mod network;
mod observe;
mod pool;
mod state;
mod storage;
mod watchdog;
mod world;

pub use faults::{FaultPlan, Latency};
pub use fence::SimFence;
pub use hypervisor::SimHypervisor;
pub use network::SimNetwork;
pub use observe::{LogEntry, SimArtefacts, SimDomainRef, SimVolumeRef, Violation, ViolationKind};
pub use pool::SimSource;
pub use storage::SimStorage;
pub use watchdog::SimWatchdog;
pub use world::{SimLine, SimWorld};

#[cfg(test)]
mod tests;
