//! The one public error of every NovaCron crate.
//!
//! A caller acts on [`ErrorKind`] (small and stable: a new backend adds none) and on [`Error::is_retryable`]; a person
//! reads the one-line message with its operation and context pairs, and walks [`std::error::Error::source`] for the
//! rest. Modules keep precise private enums and map them here at their public boundary. Nothing that came out of a
//! [`secrecy::SecretString`] may be put into a message or a context value.

use std::borrow::Cow;
use std::error::Error as StdError;
use std::fmt;

/// What NovaCron's functions return.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What a caller can do about an error.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum ErrorKind {
    /// The request itself is wrong; [`Error::problems`] names each field.
    Invalid,
    /// The object does not exist.
    NotFound,
    /// A name or id is taken.
    AlreadyExists,
    /// A precondition of a commit failed: somebody else was faster, or the expected version is old.
    Conflict,
    /// The object's present state does not allow this; the message says which would.
    FailedPrecondition,
    /// The driver, host or build cannot do this at all.
    Unsupported,
    /// The principal, or this process, may not do this.
    PermissionDenied,
    /// A resource is used up: disk, memory, ports, quota.
    Exhausted,
    /// A part that is needed does not answer now.
    Unavailable,
    /// The deadline passed and nothing happened: nothing was sent, or what was done is taken back.
    DeadlineExceeded,
    /// The effect may or may not have happened; it must be looked at before anything is repeated.
    OutcomeUnknown,
    /// The caller, or a shutdown, ended it.
    Cancelled,
    /// A revision is no longer kept: list again.
    Compacted,
    /// Stored or received bytes are damaged, or newer than this build.
    Corrupt,
    /// A defect in NovaCron or in a driver.
    Internal,
}

impl ErrorKind {
    /// The kind as a stable lower-case word, as it stands in records and logs.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Invalid => "invalid",
            Self::NotFound => "not-found",
            Self::AlreadyExists => "already-exists",
            Self::Conflict => "conflict",
            Self::FailedPrecondition => "failed-precondition",
            Self::Unsupported => "unsupported",
            Self::PermissionDenied => "permission-denied",
            Self::Exhausted => "exhausted",
            Self::Unavailable => "unavailable",
            Self::DeadlineExceeded => "deadline-exceeded",
            Self::OutcomeUnknown => "outcome-unknown",
            Self::Cancelled => "cancelled",
            Self::Compacted => "compacted",
            Self::Corrupt => "corrupt",
            Self::Internal => "internal",
        }
    }
}

impl fmt::Display for ErrorKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// One thing that is wrong with a request.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Problem {
    /// Path of the field, as in `disks[1].size`.
    pub field: String,
    /// What is wrong and what would be right.
    pub message: String,
}

impl Problem {
    /// Those of a list of (whether it is wrong, field, message) that are wrong.
    pub(crate) fn those<'a>(
        checks: impl IntoIterator<Item = (bool, &'a str, &'a str)>,
    ) -> Vec<Self> {
        let wrong = checks.into_iter().filter(|(wrong, ..)| *wrong);
        wrong
            .map(|(_, field, message)| Self {
                field: field.to_owned(),
                message: message.to_owned(),
            })
            .collect()
    }

    /// The same problem of a part that stands at this path, as `hardware`.
    #[must_use]
    pub fn under(self, path: &str) -> Self {
        Self {
            field: format!("{path}.{}", self.field),
            ..self
        }
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.field, self.message)
    }
}

/// An error: kind, operation, message, context pairs, source.
pub struct Error(Box<Inner>);

struct Inner {
    kind: ErrorKind,
    retryable: bool,
    operation: &'static str,
    message: Cow<'static, str>,
    context: Vec<(&'static str, String)>,
    problems: Vec<Problem>,
    source: Option<Box<dyn StdError + Send + Sync>>,
}

impl Error {
    /// A new error. `operation` is what was being done, as `"qemu.start"`; retryable by default are
    /// [`ErrorKind::Conflict`] and [`ErrorKind::Unavailable`].
    pub fn new(
        kind: ErrorKind,
        operation: &'static str,
        message: impl Into<Cow<'static, str>>,
    ) -> Self {
        Self(Box::new(Inner {
            kind,
            retryable: matches!(kind, ErrorKind::Conflict | ErrorKind::Unavailable),
            operation,
            message: message.into(),
            context: Vec::new(),
            problems: Vec::new(),
            source: None,
        }))
    }

    /// An [`ErrorKind::Invalid`] that carries every problem found. `problems` must not be empty.
    pub fn invalid(operation: &'static str, problems: Vec<Problem>) -> Self {
        debug_assert!(!problems.is_empty());
        let message = match problems.as_slice() {
            [one] => one.to_string(),
            [first, rest @ ..] => format!("{first} (and {} more)", rest.len()),
            [] => "invalid".to_owned(),
        };
        let mut error = Self::new(ErrorKind::Invalid, operation, message);
        error.0.problems = problems;
        error
    }

    /// Adds a context pair, as `("path", …)`.
    #[must_use]
    pub fn with(mut self, key: &'static str, value: impl fmt::Display) -> Self {
        self.0.context.push((key, value.to_string()));
        self
    }

    /// Sets the cause.
    #[must_use]
    pub fn caused_by(mut self, source: impl Into<Box<dyn StdError + Send + Sync>>) -> Self {
        self.0.source = Some(source.into());
        self
    }

    /// Overrides whether the same call may succeed later.
    #[must_use]
    pub fn retryable(mut self, retryable: bool) -> Self {
        self.0.retryable = retryable;
        self
    }

    /// What a caller can do about it.
    pub fn kind(&self) -> ErrorKind {
        self.0.kind
    }

    /// Whether the same call may succeed later without a change by the caller.
    pub fn is_retryable(&self) -> bool {
        self.0.retryable
    }

    /// What was being done.
    pub fn operation(&self) -> &'static str {
        self.0.operation
    }

    /// What went wrong, without operation and context.
    pub fn message(&self) -> &str {
        &self.0.message
    }

    /// Every problem of an [`ErrorKind::Invalid`]; empty for other kinds.
    pub fn problems(&self) -> &[Problem] {
        &self.0.problems
    }

    /// The context pairs, in the order they were added.
    pub fn context(&self) -> impl Iterator<Item = (&'static str, &str)> {
        self.0.context.iter().map(|(k, v)| (*k, v.as_str()))
    }

    /// The message with its chain of causes on one line: what a record or an event keeps.
    pub fn report(&self) -> String {
        let mut text = self.to_string();
        let mut next = self.source();
        while let Some(cause) = next {
            text.push_str(": ");
            text.push_str(&cause.to_string());
            next = cause.source();
        }
        text
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.0.operation, self.0.message)?;
        for (i, (key, value)) in self.0.context.iter().enumerate() {
            write!(f, "{}{key}={value}", if i == 0 { " [" } else { ", " })?;
        }
        if self.0.context.is_empty() {
            Ok(())
        } else {
            f.write_str("]")
        }
    }
}

impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Error")
            .field("kind", &self.0.kind)
            .field("retryable", &self.0.retryable)
            .field("operation", &self.0.operation)
            .field("message", &self.0.message)
            .field("context", &self.0.context)
            .field("problems", &self.0.problems)
            .field("source", &self.0.source)
            .finish()
    }
}

impl StdError for Error {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        self.0
            .source
            .as_deref()
            .map(|s| s as &(dyn StdError + 'static))
    }
}
