//! What went wrong with a call, as this crate's errors.
//!
//! | what was seen | what it means | what follows |
//! |---|---|---|
//! | no connection | nothing was sent | another member is asked |
//! | the token is not known (any more) | nothing was done | a new one is fetched, once per attempt |
//! | no leader, overload | nothing was done | another member is asked |
//! | any other answer of etcd | nothing was done | the caller is told |
//! | time-out, cut connection, a leader that was lost | **not known** | another member is asked, and the doubt remembered |
//!
//! Every request of the store may be sent twice, so asking again is always right; only what may be *said* in the end
//! depends on the doubt.

use std::error::Error as StdError;

use tonic::{Code, ConnectError, Status};

use crate::error::{Error, ErrorKind};

/// What an attempt's end means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Meaning {
    /// Nothing was sent.
    Unsent,
    /// Nothing was sent, and nothing will be: the certificates do not fit.
    Untrusted,
    /// Nothing was done: the token is not good.
    Token,
    /// Nothing was done; another member, or this one later, may do it.
    Busy,
    /// Nothing was done, and asking again does not help.
    Refused,
    /// It may have been done.
    Doubt,
}

/// A call that failed.
#[derive(Debug)]
pub(super) struct Failure {
    pub(super) error: Error,
    /// Whether some attempt may have been carried out.
    pub(super) doubt: bool,
}

impl From<Failure> for Error {
    fn from(failure: Failure) -> Self {
        failure.error
    }
}

/// What `status` means for the request that it answers.
pub(super) fn meaning(status: &Status) -> Meaning {
    let text = status.message();
    if is_unsent(status) {
        return if chain(status).any(|cause| cause.to_string().contains("certificate")) {
            Meaning::Untrusted
        } else {
            Meaning::Unsent
        };
    }
    match status.code() {
        Code::Unauthenticated => Meaning::Token,
        // The roles changed while it was under way: etcd has checked them and did nothing.
        _ if text.contains("revision in header is old")
            || text.contains("revision of auth store is old") =>
        {
            Meaning::Token
        }
        Code::Unavailable if text.contains("no leader") => Meaning::Busy,
        Code::Unknown if text.contains("proposal dropped") => Meaning::Busy,
        Code::ResourceExhausted if text.contains("too many requests") => Meaning::Busy,
        Code::InvalidArgument
        | Code::NotFound
        | Code::PermissionDenied
        | Code::ResourceExhausted
        | Code::FailedPrecondition
        | Code::OutOfRange
        | Code::Unimplemented => Meaning::Refused,
        _ => Meaning::Doubt,
    }
}

/// Whether etcd says that a revision was compacted.
pub(super) fn is_compacted(status: &Status) -> bool {
    status.code() == Code::OutOfRange && status.message().contains("compacted")
}

/// Whether etcd says that a revision has not been reached.
pub(super) fn is_future(status: &Status) -> bool {
    status.code() == Code::OutOfRange && status.message().contains("future")
}

/// Whether etcd says that a lease does not exist.
pub(super) fn is_lease_gone(status: &Status) -> bool {
    status.code() == Code::NotFound && status.message().contains("lease not found")
}

/// The status of a failed call, if etcd gave one.
pub(super) fn status_of(error: &Error) -> Option<&Status> {
    error.source()?.downcast_ref()
}

/// A status as an error. Nothing that was asked has happened unless the caller knows of a doubt.
pub(super) fn of_status(operation: &'static str, member: &str, status: Status) -> Error {
    let (kind, message) = describe(&status);
    let retryable = matches!(kind, ErrorKind::Unavailable);
    Error::new(kind, operation, message)
        .with("endpoint", member)
        .caused_by(status)
        .retryable(retryable)
}

fn describe(status: &Status) -> (ErrorKind, &'static str) {
    let text = status.message();
    match meaning(status) {
        Meaning::Unsent => return (ErrorKind::Unavailable, "no connection to etcd"),
        Meaning::Untrusted => {
            return (
                ErrorKind::PermissionDenied,
                "the certificates of etcd and of this client do not fit",
            );
        }
        Meaning::Token => return (ErrorKind::PermissionDenied, "etcd does not accept the user"),
        Meaning::Busy | Meaning::Doubt => {
            return (ErrorKind::Unavailable, "etcd does not answer as it should");
        }
        Meaning::Refused => {}
    }
    if text.contains("space exceeded") {
        let message = "etcd's quota is used up: compact, defragment, then `etcdctl alarm disarm`";
        return (ErrorKind::Exhausted, message);
    }
    if text.contains("authentication failed") {
        return (
            ErrorKind::PermissionDenied,
            "etcd does not accept the user or the password",
        );
    }
    if text.contains("user name is empty") {
        return (
            ErrorKind::PermissionDenied,
            "etcd's authentication is on, and no user was given",
        );
    }
    if text.contains("authentication is not enabled") {
        let message = "a user was given, but etcd's authentication is off";
        return (ErrorKind::FailedPrecondition, message);
    }
    if text.contains("too large") || text.contains("too many operations") {
        let message =
            "etcd's limits are below its defaults: --max-request-bytes 1572864, --max-txn-ops 128";
        return (ErrorKind::Unsupported, message);
    }
    match status.code() {
        Code::PermissionDenied => (
            ErrorKind::PermissionDenied,
            "the role of etcd's user does not allow this",
        ),
        Code::ResourceExhausted => (ErrorKind::Exhausted, "etcd has no resources for this"),
        Code::Unimplemented => (ErrorKind::Unsupported, "this is not etcd, or not version 3"),
        _ => (ErrorKind::Internal, "etcd refused a request"),
    }
}

fn is_unsent(status: &Status) -> bool {
    chain(status).any(<dyn StdError>::is::<ConnectError>)
}

fn chain(status: &Status) -> impl Iterator<Item = &(dyn StdError + 'static)> {
    let mut next = status.source();
    std::iter::from_fn(move || {
        let cause = next?;
        next = cause.source();
        Some(cause)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_an_answer_that_rules_it_out_leaves_no_doubt() {
        for (status, expected) in [
            (Status::unavailable("etcdserver: no leader"), Meaning::Busy),
            (
                Status::unavailable("etcdserver: leader changed"),
                Meaning::Doubt,
            ),
            (
                Status::unavailable("etcdserver: request timed out"),
                Meaning::Doubt,
            ),
            (Status::unknown("h2 protocol error"), Meaning::Doubt),
            (Status::cancelled("operation was canceled"), Meaning::Doubt),
            (
                Status::unauthenticated("etcdserver: invalid auth token"),
                Meaning::Token,
            ),
            (
                Status::permission_denied("etcdserver: permission denied"),
                Meaning::Refused,
            ),
            (
                Status::resource_exhausted("etcdserver: mvcc: database space exceeded"),
                Meaning::Refused,
            ),
        ] {
            assert_eq!(meaning(&status), expected, "{status:?}");
        }
    }
}
