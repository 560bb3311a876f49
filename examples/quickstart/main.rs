//! One VM from its spec to a booted guest and back, on two QEMU nodes of this machine.
//!
//! The program is two processes. The one that you start is the [`supervisor`]: it shows the progress, and kills the
//! other one in the middle with SIGKILL. The other one is the host application ([`steps`]): it holds the cluster, and is
//! what a program of your own would look like. Begin there.
//!
//! `quickstart libvirt` (feature `libvirt`) has the second node driven by libvirt, whose QEMU driver then runs inside of the host
//! application: no daemon is needed.

mod console;
mod report;
mod site;
mod steps;
mod supervisor;

use std::process::ExitCode;

use novacron_examples::{Error, Result};

fn main() -> ExitCode {
    let mut arguments = std::env::args().skip(1);
    let beta = match (arguments.next().as_deref(), arguments.next()) {
        (None, _) => site::Driver::Qemu,
        #[cfg(feature = "libvirt")]
        (Some("libvirt"), None) => site::Driver::Libvirt,
        _ => {
            usage();
            return ExitCode::from(2);
        }
    };
    log_to_stderr();
    let runtime = match tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
    {
        Ok(runtime) => runtime,
        Err(error) => return fail(&error),
    };
    let passed = runtime.block_on(async {
        match site::Site::of_child() {
            Some((life, site)) => steps::run(life, site).await,
            None => supervisor::run(beta).await,
        }
    });
    // Not waited for: a thread of the runtime's may sit in a read of standard input.
    runtime.shutdown_background();
    if passed {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}

#[expect(clippy::print_stderr, reason = "the output of a program for people")]
fn fail(error: &std::io::Error) -> ExitCode {
    eprintln!("quickstart: no runtime: {error}");
    ExitCode::FAILURE
}

/// NovaCron's own log, if `QUICKSTART_LOG` asks for it (`info`, `debug`, …).
fn log_to_stderr() {
    let level = std::env::var("QUICKSTART_LOG")
        .ok()
        .and_then(|l| l.parse::<tracing_subscriber::filter::LevelFilter>().ok());
    if let Some(level) = level {
        tracing_subscriber::fmt()
            .with_max_level(level)
            .with_writer(std::io::stderr)
            .init();
    }
}

#[expect(clippy::print_stderr, reason = "the output of a program for people")]
fn usage() {
    eprintln!(
        "usage: quickstart [libvirt]\n\
         runs one VM from its spec to a booted guest and back, on two nodes; the second by libvirt (feature `libvirt`)"
    );
}
