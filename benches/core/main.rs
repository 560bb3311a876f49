//! The numbers of the core, each as one line. `make bench-core` runs all parts, `make bench-core ONLY=overhead` one. How
//! the lines are read stands at the head of [`novacron_benches`].

mod control;
mod footprint;
mod latency;
mod overhead;
mod qemu;
mod scale;

use std::process::ExitCode;

use novacron_benches::parts::{self, or_interrupted};
use novacron_benches::{Result, figure, site};

const PARTS: [&str; 5] = ["latency", "control", "overhead", "footprint", "scale"];

fn main() -> ExitCode {
    parts::main(&PARTS, run)
}

fn run(part: &str) -> Result<()> {
    let runtime = tokio::runtime::Runtime::new()?;
    match part {
        "latency" => runtime.block_on(or_interrupted(latency::run())),
        "control" => runtime.block_on(or_interrupted(control::run())),
        "overhead" => runtime.block_on(or_interrupted(overhead::run())),
        "footprint" => footprint::run(),
        "scale" => runtime.block_on(or_interrupted(scale::run())),
        scale::SIM_ALONE => runtime.block_on(scale::sim_alone()),
        _ => parts::unknown(part, &PARTS),
    }
}
