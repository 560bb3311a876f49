//! The numbers of the core, each as one line. `make bench-core` runs all parts, `make bench-core ONLY=overhead` one.
//!
//! ```text
//!   figure <name> <value> <unit> goal <op> <number>     what docs/SPECIFICATION.md promises
//!   figure <name> <value> <unit>                        what is only reported
//!   # …                                                 what else helps to read them
//! ```
//! Nothing is judged here: a slow machine is no failure. Only a part that cannot measure fails, and says why. Each part
//! is a process of its own, so that none inherits another's memory. Files lie under `target/bench`, on the disk of the
//! clone, and are gone at the end.
#![expect(clippy::print_stdout, reason = "the output of a program for people")]

mod control;
mod figure;
mod footprint;
mod latency;
mod overhead;
mod qemu;
mod scale;
mod site;

use std::process::{Command, ExitCode};

/// The outcome of a part.
type Result<T, E = Box<dyn std::error::Error + Send + Sync>> = std::result::Result<T, E>;

const PARTS: [&str; 5] = ["latency", "control", "overhead", "footprint", "scale"];

fn main() -> ExitCode {
    let outcome = match std::env::args().nth(1).as_deref() {
        None | Some("all") => all(),
        Some(part) => run(part),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            println!("# failed: {}", chain(&*error));
            ExitCode::FAILURE
        }
    }
}

/// Every part, one after the other; a failed one does not hide the others' numbers.
fn all() -> Result<()> {
    let mut failed = Vec::new();
    for part in PARTS {
        if !Command::new(std::env::current_exe()?)
            .arg(part)
            .status()?
            .success()
        {
            failed.push(part);
        }
    }
    if failed.is_empty() {
        Ok(())
    } else {
        Err(format!("these parts: {}", failed.join(", ")).into())
    }
}

fn run(part: &str) -> Result<()> {
    println!("# {part}");
    let runtime = tokio::runtime::Runtime::new()?;
    match part {
        "latency" => runtime.block_on(or_interrupted(latency::run())),
        "control" => runtime.block_on(or_interrupted(control::run())),
        "overhead" => runtime.block_on(or_interrupted(overhead::run())),
        "footprint" => footprint::run(),
        "scale" => runtime.block_on(or_interrupted(scale::run())),
        scale::SIM_ALONE => runtime.block_on(scale::sim_alone()),
        _ => Err(format!("no part {part:?}; there are: {}", PARTS.join(", ")).into()),
    }
}

/// The part, or its end when somebody asks for it: then it is dropped, and with it its guests and files.
async fn or_interrupted(part: impl Future<Output = Result<()>>) -> Result<()> {
    use tokio::signal::unix::{SignalKind, signal};
    let (mut interrupt, mut terminate) = (
        signal(SignalKind::interrupt())?,
        signal(SignalKind::terminate())?,
    );
    tokio::select! {
        outcome = part => outcome,
        _ = interrupt.recv() => Err("interrupted".into()),
        _ = terminate.recv() => Err("terminated".into()),
    }
}

fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        text.push_str(&format!(": {cause}"));
        next = cause.source();
    }
    text
}
