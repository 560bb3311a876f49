//! The modules' own errors, as the one error that callers act on.

use std::time::Duration;

use novacron_core::driver::{Call, DomainId};
use novacron_core::{Error, ErrorKind, Result};

use crate::accel::AccelError;
use crate::agent::AgentError;
use crate::probe::ProbeError;
use crate::process::ProcessError;
use crate::qmp::QmpError;

/// The time that a call has left; an error when there is none, since then nothing was sent.
pub(crate) fn remaining(call: Call, operation: &'static str) -> Result<Duration> {
    match call.deadline.remaining() {
        Duration::ZERO => Err(Error::new(
            ErrorKind::DeadlineExceeded,
            operation,
            "the deadline has passed",
        )),
        left => Ok(left),
    }
}

pub(crate) fn not_found(operation: &'static str, id: DomainId) -> Error {
    Error::new(ErrorKind::NotFound, operation, "no such domain").with("domain", id)
}

pub(crate) fn precondition(
    operation: &'static str,
    id: DomainId,
    message: impl Into<String>,
) -> Error {
    Error::new(ErrorKind::FailedPrecondition, operation, message.into()).with("domain", id)
}

pub(crate) fn process(operation: &'static str, error: ProcessError) -> Error {
    let kind = match &error {
        ProcessError::AlreadyRuns {
            holder: Some(_), ..
        } => ErrorKind::FailedPrecondition,
        ProcessError::AlreadyRuns { holder: None, .. } => ErrorKind::Unavailable,
        ProcessError::Swtpm(_) => ErrorKind::FailedPrecondition,
        ProcessError::PathTooLong { .. } => ErrorKind::Invalid,
        ProcessError::Spawn { source, .. } | ProcessError::Io { source, .. } => match source.kind()
        {
            std::io::ErrorKind::PermissionDenied | std::io::ErrorKind::ReadOnlyFilesystem => {
                ErrorKind::PermissionDenied
            }
            std::io::ErrorKind::StorageFull | std::io::ErrorKind::OutOfMemory => {
                ErrorKind::Exhausted
            }
            std::io::ErrorKind::NotFound => ErrorKind::Unsupported,
            std::io::ErrorKind::TimedOut => ErrorKind::Unavailable,
            _ => ErrorKind::Internal,
        },
    };
    from(kind, operation, error)
}

pub(super) fn probe(operation: &'static str, error: ProbeError) -> Error {
    let kind = match &error {
        ProbeError::Missing { .. } | ProbeError::TooOld { .. } => ErrorKind::Unsupported,
        ProbeError::Broken { .. } => ErrorKind::Unavailable,
    };
    from(kind, operation, error)
}

pub(crate) fn accel(operation: &'static str, error: AccelError) -> Error {
    let kind = match &error {
        AccelError::UnknownChoice(_) => ErrorKind::Invalid,
        AccelError::NoKvm(_) => ErrorKind::Unsupported,
    };
    from(kind, operation, error)
}

/// `effect`: whether the command changes something, so that a missing answer leaves its outcome open.
pub(super) fn qmp(operation: &'static str, error: QmpError, effect: bool) -> Error {
    let kind = match &error {
        QmpError::Refused { description, .. } if is_locked(description) => ErrorKind::Unavailable,
        QmpError::Refused { .. } => ErrorKind::FailedPrecondition,
        QmpError::Deadline { .. } if effect => ErrorKind::OutcomeUnknown,
        QmpError::Deadline { .. } => ErrorKind::DeadlineExceeded,
        QmpError::Disconnected { .. } if effect => ErrorKind::OutcomeUnknown,
        QmpError::Disconnected { .. } | QmpError::Connect { .. } => ErrorKind::Unavailable,
        QmpError::Protocol { .. } => ErrorKind::Internal,
    };
    from(kind, operation, error)
}

/// Whether QEMU says that somebody else has the image open. It has no class of its own for that.
pub(crate) fn is_locked(words: &str) -> bool {
    words.contains("Failed to get \"write\" lock") || words.contains("Failed to get shared \"")
}

/// `effect`: as for [`qmp`].
pub(super) fn agent(operation: &'static str, error: AgentError, effect: bool) -> Error {
    let kind = match &error {
        AgentError::Connect(_) => ErrorKind::Unavailable,
        AgentError::Closed { .. } | AgentError::Deadline { .. } if effect => {
            ErrorKind::OutcomeUnknown
        }
        AgentError::Closed { .. } | AgentError::Deadline { .. } => ErrorKind::Unavailable,
        AgentError::Refused { .. } => ErrorKind::FailedPrecondition,
        AgentError::Nonsense { .. } => ErrorKind::Corrupt,
    };
    from(kind, operation, error)
}

/// What QEMU's last words mean for a start that failed.
pub(super) fn start_failed(operation: &'static str, id: DomainId, how: &str) -> Error {
    let kind = if how.contains("host forwarding rule") || how.contains("Cannot allocate memory") {
        ErrorKind::Exhausted
    } else {
        ErrorKind::FailedPrecondition
    };
    Error::new(kind, operation, how.to_owned()).with("domain", id)
}

/// The message is the cause's; only what lies behind it is the source, so that nothing is said twice.
fn from(kind: ErrorKind, operation: &'static str, error: impl std::error::Error) -> Error {
    let mut message = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        message = format!("{message}: {cause}");
        next = cause.source();
    }
    Error::new(kind, operation, message)
}
