//! The parts of a bench.
#![expect(clippy::print_stdout, reason = "the output of a program for people")]

use std::process::{Command, ExitCode};

use crate::Result;

/// Runs the part that the command line names, or each of `parts`, one after the other, if it names none.
pub fn main(parts: &[&str], run: impl FnOnce(&str) -> Result<()>) -> ExitCode {
    let outcome = match std::env::args().nth(1).as_deref() {
        None | Some("all") => all(parts),
        Some(part) => {
            println!("# {part}");
            run(part)
        }
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            println!("# failed: {}", chain(&*error));
            ExitCode::FAILURE
        }
    }
}

/// Runs each part as a process of its own; a failed one does not hide the others' numbers.
pub fn all(parts: &[&str]) -> Result<()> {
    let mut failed = Vec::new();
    for part in parts {
        if !Command::new(std::env::current_exe()?)
            .arg(part)
            .status()?
            .success()
        {
            failed.push(*part);
        }
    }
    if failed.is_empty() {
        Ok(())
    } else {
        Err(format!("these parts: {}", failed.join(", ")).into())
    }
}

/// Says which parts there are.
pub fn unknown(part: &str, parts: &[&str]) -> Result<()> {
    Err(format!("no part {part:?}; there are: {}", parts.join(", ")).into())
}

/// The part, or its end when somebody asks for it: then it is dropped, and with it its guests and files.
pub async fn or_interrupted(part: impl Future<Output = Result<()>>) -> Result<()> {
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
