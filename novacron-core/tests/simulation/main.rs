//! The deterministic simulation: the real control loop, on one thread and a paused clock, in a world that is made up.
//!
//! [`systematic`]: every kind of request, with a crash at each of its commits, on drivers that do not fail.
//! [`lost`]: the loss of a process, with a crash of the leader at each commit of the failover.
//! [`random`]: random requests, driver faults and crashes, from one seed. [`many`]: the same with several processes, which
//! die, are cut off, and come back. What must hold is in [`invariants`].
//!
//! | variable | |
//! |---|---|
//! | `NOVACRON_SIM_SEEDS=n` | random stories of the seeds 0 to n-1; 1,000 if it is not set |
//! | `NOVACRON_SIM_SEED=s` | that one, with the log of the world |
//! | `NOVACRON_SIM_COMMITS=1` | every commit is printed |
//! | `NOVACRON_SIM_CASE=c` | one systematic story, likewise |
//! | `NOVACRON_SIM_LOSS=c` | one loss, likewise |
//! | `NOVACRON_SIM_SYNC_EVERY=n` | takes the durability of commit out: the store is synced with every n-th commit only, and the simulation must find it |

#![allow(
    clippy::print_stderr,
    clippy::print_stdout,
    clippy::unwrap_used,
    unreachable_pub,
    missing_docs,
    reason = "a test program: a panic is its way to fail"
)]

mod crash_store;
mod healing;
mod invariants;
mod lost;
mod many;
mod random;
mod requests;
mod seeds;
mod seen;
mod site;
mod stories;
mod systematic;
mod workload;
