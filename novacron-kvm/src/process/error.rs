//! What can go wrong with a process and its run directory.

use std::path::{Path, PathBuf};

use super::lock::Holder;

/// Why a process could not be started, found or watched.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ProcessError {
    /// The lock is held: this VM runs.
    #[error("it already runs on this host: {} is locked{}", path.display(), holder.map(|holder| format!(" by start {}, process {}", holder.epoch, holder.pid)).unwrap_or_default())]
    AlreadyRuns {
        /// The lock file.
        path: PathBuf,
        /// Who holds it, when that is known.
        holder: Option<Holder>,
    },
    /// A unix socket's path would not fit into the kernel's 108 bytes.
    #[error(
        "the state folder's path is too long for the unix sockets in it: {} has {} bytes and the limit is {limit}; use a shorter one",
        path.display(), path.as_os_str().len()
    )]
    PathTooLong {
        /// The state folder.
        path: PathBuf,
        /// The longest that works.
        limit: usize,
    },
    /// The binary could not be started.
    #[error("cannot start {}", binary.display())]
    Spawn {
        /// The binary.
        binary: PathBuf,
        /// The system's error.
        source: std::io::Error,
    },
    /// The guest's TPM could not be started.
    #[error("{0}")]
    Swtpm(String),
    /// A file operation failed.
    #[error("cannot {action} {}", path.display())]
    Io {
        /// What was tried.
        action: &'static str,
        /// On which file.
        path: PathBuf,
        /// The system's error.
        source: std::io::Error,
    },
}

impl ProcessError {
    /// A closure for `map_err`.
    pub(crate) fn io<E: Into<std::io::Error>>(
        action: &'static str,
        path: &Path,
    ) -> impl FnOnce(E) -> Self {
        move |source| Self::Io {
            action,
            path: path.to_owned(),
            source: source.into(),
        }
    }
}
