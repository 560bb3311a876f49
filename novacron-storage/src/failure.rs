//! What an error of the operating system means to a caller.

use std::io;
use std::path::Path;

use novacron_core::{Error, ErrorKind};
use rustix::io::Errno;

/// The kind of an I/O error.
pub(crate) fn kind_of(error: &io::Error) -> ErrorKind {
    match error.raw_os_error().map(Errno::from_raw_os_error) {
        Some(Errno::NOSPC | Errno::DQUOT | Errno::FBIG | Errno::MFILE | Errno::NFILE) => {
            ErrorKind::Exhausted
        }
        Some(Errno::ACCESS | Errno::PERM | Errno::ROFS) => ErrorKind::PermissionDenied,
        Some(Errno::NOENT | Errno::NOTDIR) => ErrorKind::NotFound,
        Some(Errno::IO | Errno::STALE | Errno::TIMEDOUT | Errno::HOSTDOWN) => {
            ErrorKind::Unavailable
        }
        _ => ErrorKind::Internal,
    }
}

/// An I/O error on a path.
pub(crate) fn of_io(
    operation: &'static str,
    what: &'static str,
    path: &Path,
    error: io::Error,
) -> Error {
    Error::new(kind_of(&error), operation, what)
        .with("path", path.display())
        .caused_by(error)
}

/// What a program's last words say about the kind of its failure, if anything.
pub(crate) fn kind_of_words(words: &str) -> Option<ErrorKind> {
    const WORDS: [(&str, ErrorKind); 11] = [
        ("No space left on device", ErrorKind::Exhausted),
        ("Disk quota exceeded", ErrorKind::Exhausted),
        ("File too large", ErrorKind::Exhausted),
        ("is too large for file format", ErrorKind::Exhausted),
        ("Cannot allocate memory", ErrorKind::Exhausted),
        ("Permission denied", ErrorKind::PermissionDenied),
        ("Read-only file system", ErrorKind::PermissionDenied),
        ("Operation not permitted", ErrorKind::PermissionDenied),
        (
            "Is another process using the image",
            ErrorKind::FailedPrecondition,
        ),
        ("No such file or directory", ErrorKind::NotFound),
        ("Input/output error", ErrorKind::Unavailable),
    ];
    WORDS
        .iter()
        .find(|(text, _)| words.contains(text))
        .map(|(_, kind)| *kind)
}
