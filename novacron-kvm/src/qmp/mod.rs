//! A thin client of QEMU's machine protocol (QMP).
//!
//! ```text
//!  callers ── execute(command, deadline) ──► writer task ──► unix socket ──► QEMU
//!     ▲                                                          │
//!     └── one-shot by id ◄── pending map ◄── reader task ◄───────┘
//!                            events: broadcast to every subscriber
//! ```
//! Any number of commands may be under way; each carries an id and its own deadline. Replies stay
//! [`serde_json::Value`]s: a client that decodes them strictly by one version's schema breaks on another QEMU, so each
//! caller picks out the fields that it needs.
//!
//! What can fail: QEMU closes the socket or dies → every pending and later call ends at once with
//! [`QmpError::Disconnected`]. QEMU hangs → the call ends at its deadline with [`QmpError::Deadline`], naming the
//! command; whether QEMU carried it out is then unknown. A subscriber that is slower than 1,024 events gets a
//! lag error from its receiver and has to look at the state again. Dropping the last handle closes the socket; QEMU
//! goes on without a client.

mod connection;
mod error;
mod message;

pub(crate) use connection::Qmp;
pub(crate) use error::QmpError;
pub(crate) use message::Event;

#[cfg(test)]
mod tests;
