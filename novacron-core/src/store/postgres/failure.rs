//! The server's codes, and lost connections, as this crate's errors; and what they leave open.

use std::error::Error as StdError;

use deadpool_postgres::PoolError;
use tokio_postgres::error::{DbError, SqlState};

use crate::error::{Error, ErrorKind};

/// What a failed statement leaves behind, and what to do next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fate {
    /// Nothing happened, and the same statement fails again.
    Refused,
    /// Nothing happened; it may go through on another connection, or a little later.
    Again,
    /// The connection is gone: it may have happened.
    Lost,
}

/// The error of a statement.
pub(super) fn of_statement(operation: &'static str, error: tokio_postgres::Error) -> Error {
    let (kind, message) = match error.as_db_error() {
        Some(db) => describe(db),
        None if fate(&error) == Fate::Lost => (
            ErrorKind::Unavailable,
            "the connection to the database was lost",
        ),
        None => (
            ErrorKind::Corrupt,
            "the database holds what this build cannot read",
        ),
    };
    Error::new(kind, operation, message).caused_by(error)
}

/// The error of getting a connection, and whether a later attempt may get one.
pub(super) fn of_connecting(operation: &'static str, error: PoolError) -> (Error, bool) {
    match error {
        PoolError::Backend(error) => of_connection(operation, error),
        PoolError::Timeout(_) => {
            let message = "no connection to the database came free, or could be made, in time";
            let error = Error::new(ErrorKind::Unavailable, operation, message);
            (error.caused_by(error_text("timed out")), true)
        }
        other => (closed(operation).caused_by(other), false),
    }
}

/// As [`of_connecting`], outside the pool.
pub(super) fn of_connection(
    operation: &'static str,
    error: tokio_postgres::Error,
) -> (Error, bool) {
    let (kind, message, again) = if let Some(db) = error.as_db_error() {
        let (kind, message) = describe(db);
        (kind, message, kind == ErrorKind::Unavailable)
    } else if let Some(io) = cause::<std::io::Error>(&error) {
        let tls = io
            .get_ref()
            .is_some_and(<dyn StdError + Send + Sync>::is::<rustls::Error>);
        if tls {
            let message = "the server's certificate was not accepted";
            (ErrorKind::PermissionDenied, message, false)
        } else if io.kind() == std::io::ErrorKind::PermissionDenied {
            // tokio-postgres says so of a session that may not write; and the kernel of a socket that may not be used.
            let message = "no server was found that lets this user write: a standby, or a role that only reads";
            (ErrorKind::PermissionDenied, message, true)
        } else {
            (
                ErrorKind::Unavailable,
                "the database cannot be reached",
                true,
            )
        }
    } else if error.is_closed() {
        (
            ErrorKind::Unavailable,
            "the database ended the connection",
            true,
        )
    } else {
        // No password, or an answer that does not prove the server's knowledge of it; TLS that it does not speak.
        let message = "the server and this client do not agree on how to connect";
        (ErrorKind::PermissionDenied, message, false)
    };
    let error = Error::new(kind, operation, message).caused_by(error);
    (error, again)
}

/// What a failed statement leaves behind.
pub(super) fn fate(error: &tokio_postgres::Error) -> Fate {
    let Some(db) = error.as_db_error() else {
        let of_this_side = cause::<std::io::Error>(error).is_none()
            && !error.is_closed()
            && error.source().is_some();
        // What cannot be encoded was never sent; what cannot be decoded fails again.
        return if of_this_side {
            Fate::Refused
        } else {
            Fate::Lost
        };
    };
    let code = db.code();
    if code.code().starts_with("08")
        || code.code().starts_with("57P")
        || matches!(db.severity(), "FATAL" | "PANIC")
    {
        return Fate::Lost;
    }
    let again = [
        SqlState::T_R_SERIALIZATION_FAILURE,
        SqlState::T_R_DEADLOCK_DETECTED,
        SqlState::LOCK_NOT_AVAILABLE,
        SqlState::QUERY_CANCELED,
        SqlState::TOO_MANY_CONNECTIONS,
        // The server became a standby: another connection finds the new primary.
        SqlState::READ_ONLY_SQL_TRANSACTION,
        // A statement prepared before the schema, or the server behind a pooler, changed.
        SqlState::FEATURE_NOT_SUPPORTED,
        SqlState::INVALID_SQL_STATEMENT_NAME,
    ];
    if again.contains(code) {
        Fate::Again
    } else {
        Fate::Refused
    }
}

/// The kind and a message for people.
fn describe(db: &DbError) -> (ErrorKind, &'static str) {
    let code = db.code();
    let class = code.code().get(..2).unwrap_or_default();
    if *code == SqlState::DISK_FULL {
        (ErrorKind::Exhausted, "no space left on the database server")
    } else if *code == SqlState::INSUFFICIENT_PRIVILEGE {
        (
            ErrorKind::PermissionDenied,
            "the database user lacks a privilege",
        )
    } else if [
        SqlState::UNDEFINED_TABLE,
        SqlState::UNDEFINED_FUNCTION,
        SqlState::UNDEFINED_COLUMN,
    ]
    .contains(code)
        || [SqlState::NO_DATA_FOUND, SqlState::INVALID_SCHEMA_NAME].contains(code)
    {
        let message = "a part of the store's schema is missing: restore it from a backup";
        (ErrorKind::Corrupt, message)
    } else if *code == SqlState::DUPLICATE_TABLE {
        let message =
            "the schema has a table of such a name that is not this store's: choose another schema";
        (ErrorKind::FailedPrecondition, message)
    } else if *code == SqlState::INVALID_CATALOG_NAME {
        (ErrorKind::NotFound, "the server has no such database")
    } else if *code == SqlState::READ_ONLY_SQL_TRANSACTION {
        (
            ErrorKind::Unavailable,
            "the database server does not take writes now",
        )
    } else if *code == SqlState::TOO_MANY_CONNECTIONS {
        (
            ErrorKind::Unavailable,
            "the database server has no connection left",
        )
    } else {
        match class {
            "28" => (
                ErrorKind::PermissionDenied,
                "the database server refuses this user or password",
            ),
            "53" | "54" => (
                ErrorKind::Exhausted,
                "the database server has run out of something",
            ),
            "40" | "55" | "57" | "08" => (
                ErrorKind::Unavailable,
                "the database server cannot answer now",
            ),
            "58" => (ErrorKind::Unavailable, "the database server's disk fails"),
            "XX" => (ErrorKind::Corrupt, "the database is damaged"),
            "22" => (ErrorKind::Invalid, "the database cannot hold such a value"),
            _ => (ErrorKind::Internal, "the database refused a statement"),
        }
    }
}

/// The error of a call after the store was closed.
pub(super) fn closed(operation: &'static str) -> Error {
    Error::new(ErrorKind::Unavailable, operation, "the store was closed").retryable(false)
}

fn cause<T: StdError + 'static>(error: &tokio_postgres::Error) -> Option<&T> {
    error.source()?.downcast_ref::<T>()
}

fn error_text(text: &'static str) -> Box<dyn StdError + Send + Sync> {
    text.into()
}
