//! SQLite's error codes as this crate's errors.

use std::io;
use std::path::Path;

use rusqlite::ErrorCode;

use crate::error::{Error, ErrorKind};

/// A closure for `map_err` that names the operation.
pub(super) fn sql(operation: &'static str) -> impl Fn(rusqlite::Error) -> Error {
    move |error| of_sql(operation, error)
}

/// What an error of SQLite means for a caller. Nothing was written when it is not [`ErrorKind::OutcomeUnknown`].
pub(super) fn of_sql(operation: &'static str, error: rusqlite::Error) -> Error {
    let (kind, message) = describe(&error);
    Error::new(kind, operation, message).caused_by(error)
}

/// The kind and a message for people.
pub(super) fn describe(error: &rusqlite::Error) -> (ErrorKind, &'static str) {
    let Some(code) = error.sqlite_error_code() else {
        // A value of another type than the schema says, or text that is no text.
        return (
            ErrorKind::Corrupt,
            "the database holds what this build cannot read",
        );
    };
    match code {
        ErrorCode::DiskFull => (ErrorKind::Exhausted, "no space left for the database"),
        ErrorCode::OutOfMemory => (ErrorKind::Exhausted, "out of memory"),
        ErrorCode::ReadOnly => (
            ErrorKind::PermissionDenied,
            "the database or its folder cannot be written",
        ),
        ErrorCode::CannotOpen | ErrorCode::PermissionDenied => {
            (ErrorKind::PermissionDenied, "the database cannot be opened")
        }
        ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase => (
            ErrorKind::Corrupt,
            "the database is damaged: restore it from a backup",
        ),
        ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked => (
            ErrorKind::Unavailable,
            "another program writes to the database",
        ),
        ErrorCode::SystemIoFailure => (ErrorKind::Unavailable, "the disk of the database fails"),
        _ => (ErrorKind::Internal, "the database refused a statement"),
    }
}

/// An error of the file system around the database.
pub(super) fn of_io(what: &str, path: &Path, error: io::Error) -> Error {
    let kind = match error.kind() {
        io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem => {
            ErrorKind::PermissionDenied
        }
        io::ErrorKind::NotFound | io::ErrorKind::NotADirectory => ErrorKind::NotFound,
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded | io::ErrorKind::FileTooLarge => {
            ErrorKind::Exhausted
        }
        _ => ErrorKind::Unavailable,
    };
    Error::new(kind, "store.open", what.to_owned())
        .with("path", path.display())
        .caused_by(error)
}
