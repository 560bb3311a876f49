//! What can go wrong between us and QEMU's monitor.

use std::path::PathBuf;
use std::time::Duration;

/// Why a QMP call failed.
#[derive(Debug, Clone, thiserror::Error)]
pub(crate) enum QmpError {
    /// The socket could not be connected.
    #[error("cannot connect to QEMU's monitor at {}: {reason}", path.display())]
    Connect {
        /// The socket.
        path: PathBuf,
        /// The system's words.
        reason: String,
    },
    /// QEMU did not answer in time; the command may or may not have been carried out.
    #[error("QEMU did not answer `{command}` within {after:?}")]
    Deadline {
        /// The command, or `greeting`.
        command: String,
        /// How long was waited.
        after: Duration,
    },
    /// QEMU closed the monitor or died.
    #[error("QEMU closed its monitor while `{command}` was under way")]
    Disconnected {
        /// The command.
        command: String,
    },
    /// QEMU refused the command.
    #[error("QEMU refused `{command}`: {description} ({class})")]
    Refused {
        /// The command.
        command: String,
        /// QEMU's error class, such as `GenericError` or `DeviceNotFound`.
        class: String,
        /// QEMU's own words.
        description: String,
    },
    /// The reply is not what the protocol promises.
    #[error("QEMU's answer to `{command}` makes no sense: {reason}")]
    Protocol {
        /// The command.
        command: String,
        /// What was wrong.
        reason: String,
    },
}

impl QmpError {
    /// QEMU's error class, when it refused.
    pub(crate) fn class(&self) -> Option<&str> {
        match self {
            Self::Refused { class, .. } => Some(class),
            _ => None,
        }
    }
}
