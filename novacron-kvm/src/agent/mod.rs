//! A client of the QEMU guest agent, whose every byte comes from inside the guest and is not to be trusted.
//!
//! ```text
//!  Agent ── one session at a time ──► unix socket ──► virtio-serial port ──► qemu-ga in the guest
//! ```
//! Each call opens a session of its own: connect, `guest-sync-delimited` with a fresh number (answers of sessions that
//! were cut off earlier are skipped until that number comes back), the commands, close. QEMU serves one client of the
//! port, so sessions queue up inside an [`Agent`], and the time in the queue counts towards the deadline.
//!
//! What can fail: nobody listens in the guest → [`AgentError::Deadline`] (the port gives no sign; whether the agent is
//! there shows only in an answer). The guest sends rubbish → skipped; lines longer than 48 MiB are dropped. The guest
//! hangs, lies or dies → the call ends at its deadline. A command that was sent may have been carried out all the same.
//! The agent has no event for the end of a program, so [`Agent::exec`] asks, at intervals that grow up to half a second.

mod client;
mod error;
mod reply;

use novacron_core::{Error, Problem, Result};

pub(crate) use client::{Agent, ExecRequest};
pub(crate) use error::AgentError;
pub(crate) use reply::addresses;
#[cfg(feature = "libvirt")]
pub(crate) use {
    client::exec_output,
    reply::{decode, interfaces},
};

/// The program of a command line, and its arguments.
pub(crate) fn program_of<'a>(
    argv: &'a [String],
    operation: &'static str,
) -> Result<(&'a String, &'a [String])> {
    argv.split_first().ok_or_else(|| {
        let problem = Problem {
            field: "argv".into(),
            message: "names no program".into(),
        };
        Error::invalid(operation, vec![problem])
    })
}

#[cfg(test)]
mod tests;
