//! What can go wrong between us and the guest's agent.

use std::time::Duration;

/// Why an agent call failed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum AgentError {
    /// The port's socket could not be connected.
    #[error("the guest agent's port cannot be connected")]
    Connect(#[source] std::io::Error),
    /// QEMU closed the port.
    #[error("the guest agent's port was closed while `{command}` was under way")]
    Closed {
        /// The command.
        command: String,
    },
    /// No answer in time.
    #[error(
        "the guest agent did not answer `{command}` within {after:?}; is qemu-guest-agent running in the guest?"
    )]
    Deadline {
        /// The command.
        command: String,
        /// How long was waited.
        after: Duration,
    },
    /// The agent refused.
    #[error("the guest agent refused `{command}`: {description}")]
    Refused {
        /// The command.
        command: String,
        /// The agent's words, cut to a sane length.
        description: String,
    },
    /// An answer without the promised fields.
    #[error("the guest agent's answer to `{command}` makes no sense")]
    Nonsense {
        /// The command.
        command: String,
    },
}
