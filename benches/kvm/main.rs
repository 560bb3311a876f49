//! The numbers of the libvirt driver, each as one line. `make bench-kvm` runs all parts, `make bench-kvm ONLY=start` one.
//! How the lines are read stands at the head of [`novacron_benches`]. Each part has a libvirtd of its own with real QEMUs,
//! whose vCPUs are held: what is measured is what happens around guests, and not how fast they compute.

mod burst;
mod events;
mod guests;
mod start;
mod stats;

#[path = "../../novacron-kvm/tests/common/mod.rs"]
mod common;
#[path = "../../novacron-kvm/tests/libvirt/daemon.rs"]
#[allow(
    dead_code,
    clippy::unwrap_used,
    reason = "a bench without its libvirtd says why"
)]
mod daemon;

use std::process::ExitCode;

use novacron_benches::Result;
use novacron_benches::parts::{self, or_interrupted};

const PARTS: [&str; 4] = ["start", "stats", "burst", "events"];

fn main() -> ExitCode {
    parts::main(&PARTS, run)
}

fn run(part: &str) -> Result<()> {
    let runtime = tokio::runtime::Runtime::new()?;
    match part {
        "start" => runtime.block_on(or_interrupted(start::run())),
        "stats" => runtime.block_on(or_interrupted(stats::run())),
        "burst" => runtime.block_on(or_interrupted(burst::run())),
        "events" => runtime.block_on(or_interrupted(events::run())),
        _ => parts::unknown(part, &PARTS),
    }
}
