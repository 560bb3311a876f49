//! libvirt's errors, as the one error that callers act on.

use novacron_core::driver::DomainId;
use novacron_core::{Error, ErrorKind};

use super::pool::Effect;
use super::sys::{LvError, code};
pub(super) use crate::qemu::error::{is_locked, not_found, precondition, remaining};

/// An error of a call on a connection that is still open, or `lost`.
pub(super) fn libvirt(
    operation: &'static str,
    error: &LvError,
    effect: Effect,
    lost: bool,
) -> Error {
    let message = if lost {
        format!("the connection to libvirt was lost: {error}")
    } else {
        error.to_string()
    };
    Error::new(kind(error, effect, lost), operation, message)
}

fn kind(error: &LvError, effect: Effect, lost: bool) -> ErrorKind {
    let gone = matches!(
        error.code,
        code::VIR_ERR_RPC | code::VIR_ERR_INVALID_CONN | code::VIR_ERR_NO_CONNECT
    );
    match (error.code, effect) {
        _ if is_locked(&error.message) => ErrorKind::Unavailable,
        _ if lost || gone => match effect {
            Effect::Some => ErrorKind::OutcomeUnknown,
            Effect::None => ErrorKind::Unavailable,
        },
        (code::VIR_ERR_NO_DOMAIN, _) => ErrorKind::NotFound,
        (
            code::VIR_ERR_NO_SUPPORT
            | code::VIR_ERR_CONFIG_UNSUPPORTED
            | code::VIR_ERR_OPERATION_UNSUPPORTED
            | code::VIR_ERR_ARGUMENT_UNSUPPORTED,
            _,
        ) => ErrorKind::Unsupported,
        (
            code::VIR_ERR_XML_ERROR
            | code::VIR_ERR_XML_DETAIL
            | code::VIR_ERR_XML_INVALID_SCHEMA
            | code::VIR_ERR_INVALID_ARG,
            _,
        ) => ErrorKind::Invalid,
        (
            code::VIR_ERR_AUTH_FAILED
            | code::VIR_ERR_AUTH_CANCELLED
            | code::VIR_ERR_AUTH_UNAVAILABLE
            | code::VIR_ERR_ACCESS_DENIED
            | code::VIR_ERR_OPERATION_DENIED,
            _,
        ) => ErrorKind::PermissionDenied,
        (code::VIR_ERR_DOM_EXIST, _) => ErrorKind::AlreadyExists,
        (code::VIR_ERR_NO_MEMORY, _) => ErrorKind::Exhausted,
        // libvirt waited for another call on the domain, in vain, and did nothing.
        (code::VIR_ERR_OPERATION_TIMEOUT | code::VIR_ERR_RESOURCE_BUSY, _) => {
            ErrorKind::Unavailable
        }
        (code::VIR_ERR_AGENT_COMMAND_TIMEOUT, Effect::Some) => ErrorKind::OutcomeUnknown,
        (
            code::VIR_ERR_AGENT_UNRESPONSIVE
            | code::VIR_ERR_AGENT_UNSYNCED
            | code::VIR_ERR_AGENT_COMMAND_TIMEOUT,
            _,
        ) => ErrorKind::Unavailable,
        (
            code::VIR_ERR_OPERATION_INVALID
            | code::VIR_ERR_OPERATION_FAILED
            | code::VIR_ERR_DEVICE_MISSING
            | code::VIR_ERR_AGENT_COMMAND_FAILED,
            _,
        ) => ErrorKind::FailedPrecondition,
        _ => ErrorKind::Internal,
    }
}

/// Why QEMU refused, in libvirt's words, which hold QEMU's last ones.
pub(super) fn refused(operation: &'static str, id: DomainId, error: &LvError) -> Error {
    let kind = match kind(error, Effect::None, false) {
        _ if error.message.contains("Cannot allocate memory") => ErrorKind::Exhausted,
        ErrorKind::Internal => ErrorKind::FailedPrecondition,
        other => other,
    };
    Error::new(kind, operation, error.message.clone()).with("domain", id)
}

/// The same, for a start: that epoch is not tried again.
pub(super) fn start_failed(operation: &'static str, id: DomainId, error: &LvError) -> Error {
    let message = error.message.clone();
    if is_locked(&message) {
        return precondition(operation, id, message);
    }
    refused(operation, id, error)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_lost_while_it_changes_something_is_unknown() {
        let error = |code| LvError {
            code,
            domain: 0,
            message: "words".into(),
        };
        let of = |code, effect, lost| kind(&error(code), effect, lost);
        assert_eq!(of(38, Effect::Some, true), ErrorKind::OutcomeUnknown);
        assert_eq!(of(38, Effect::None, true), ErrorKind::Unavailable);
        assert_eq!(
            of(code::VIR_ERR_RPC, Effect::Some, false),
            ErrorKind::OutcomeUnknown
        );
        assert_eq!(
            of(code::VIR_ERR_NO_DOMAIN, Effect::Some, false),
            ErrorKind::NotFound
        );
        assert_eq!(of(1, Effect::Some, false), ErrorKind::Internal);
    }
}
