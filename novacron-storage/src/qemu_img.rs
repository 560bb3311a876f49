//! Running `qemu-img`.
//!
//! A child is started without a shell and with an empty environment, in a process group of its own (Ctrl-C on the
//! host application's terminal is not for it). Its standard input is the lock file of the artefact that it works on: a
//! `flock` lives as long as any descriptor of its open file, so the lock is held until the child is gone, also when
//! this process is killed and the child outlives it. When the deadline passes, or the future is dropped, the child is
//! killed.
//!
//! Paths are absolute, so that QEMU takes none for a protocol (`nbd:…`, `json:…`), and every image is opened with its
//! format named: nothing is ever probed.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::sync::Arc;

use novacron_core::model::VolumeFormat;
use novacron_core::{Deadline, Error, ErrorKind, Result};
use serde::de::DeserializeOwned;
use tokio::io::{AsyncRead, AsyncReadExt as _};
use tokio::process::Command;
use tokio::sync::{OnceCell, Semaphore};

use crate::failure::kind_of_words;
use crate::local::Held;

/// At most this many children at once.
const CHILDREN: usize = 8;
/// At most this much of a child's output is kept.
const MAX_STDOUT: usize = 64 << 20;
/// This much of the end of what a child says on standard error is kept.
const MAX_STDERR: usize = 2 << 10;

/// The program.
#[derive(Clone, Debug)]
pub(crate) struct QemuImg(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    program: PathBuf,
    children: Semaphore,
    answered: OnceCell<()>,
}

/// How a format is called.
pub(crate) fn format_name(format: VolumeFormat) -> &'static str {
    match format {
        VolumeFormat::Qcow2 => "qcow2",
        VolumeFormat::Raw => "raw",
    }
}

/// How a child ended.
#[derive(Debug)]
pub(crate) struct Ended {
    status: ExitStatus,
    stdout: Vec<u8>,
    stderr: String,
}

impl Ended {
    pub(crate) fn code(&self) -> Option<i32> {
        self.status.code()
    }

    /// The last line that it said.
    pub(crate) fn last_words(&self) -> String {
        let mut lines: Vec<&str> = self
            .stderr
            .lines()
            .map(|line| line.trim().trim_start_matches("qemu-img: "))
            .filter(|l| !l.is_empty())
            .collect();
        lines.dedup();
        let from = lines.len().saturating_sub(3);
        lines[from..].join("; ")
    }

    /// Its output as JSON.
    pub(crate) fn json<T: DeserializeOwned>(&self, operation: &'static str) -> Result<T> {
        serde_json::from_slice(&self.stdout).map_err(|e| {
            Error::new(
                ErrorKind::Internal,
                operation,
                "qemu-img answered something else than expected",
            )
            .caused_by(e)
        })
    }

    /// Nothing if it ended well; else an error of the kind that its last words point to, or of `otherwise`.
    pub(crate) fn success(&self, operation: &'static str, otherwise: ErrorKind) -> Result<()> {
        use std::os::unix::process::ExitStatusExt as _;
        if self.status.success() {
            return Ok(());
        }
        let words = self.last_words();
        let too_large = self.status.signal() == Some(rustix::process::Signal::XFSZ.as_raw());
        let kind = if too_large {
            ErrorKind::Exhausted
        } else {
            kind_of_words(&words).unwrap_or(otherwise)
        };
        let message = match (too_large, words.is_empty()) {
            (true, _) => "the file would be larger than this process may write".to_owned(),
            (_, true) => format!("qemu-img ended with {} and no word", self.status),
            (_, false) => format!("qemu-img: {words}"),
        };
        Err(Error::new(kind, operation, message))
    }
}

impl QemuImg {
    /// The program at `path`, or found in `PATH`.
    pub(crate) fn new(program: PathBuf) -> Self {
        Self(Arc::new(Inner {
            program,
            children: Semaphore::new(CHILDREN),
            answered: OnceCell::new(),
        }))
    }

    /// Whether it is there at all; asked once.
    pub(crate) async fn answers(&self, operation: &'static str, deadline: Deadline) -> Result<()> {
        self.0
            .answered
            .get_or_try_init(|| async {
                self.run(operation, ["--version"], deadline, None)
                    .await?
                    .success(operation, ErrorKind::Unsupported)
            })
            .await
            .copied()
    }

    /// Runs it to its end.
    ///
    /// Past the deadline the child is killed and waited for, and the error is `OutcomeUnknown`; callers that undo what
    /// it did say `DeadlineExceeded` instead.
    pub(crate) async fn run<A: AsRef<OsStr>>(
        &self,
        operation: &'static str,
        args: impl IntoIterator<Item = A>,
        deadline: Deadline,
        lock: Option<&Held>,
    ) -> Result<Ended> {
        let late = || {
            Error::new(
                ErrorKind::DeadlineExceeded,
                operation,
                "the deadline passed before qemu-img was started",
            )
        };
        if deadline.remaining().is_zero() {
            return Err(late());
        }
        let _slot = tokio::time::timeout_at(deadline.instant(), self.0.children.acquire())
            .await
            .map_err(|_| late())?
            .map_err(|e| {
                Error::new(ErrorKind::Internal, operation, "no more children").caused_by(e)
            })?;

        let mut command = Command::new(&self.0.program);
        command
            .args(args)
            .env_clear()
            .env("LC_ALL", "C")
            .stdin(match lock {
                Some(held) => held.stdio(operation)?,
                None => Stdio::null(),
            })
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .process_group(0)
            .kill_on_drop(true);
        if let Some(path) = std::env::var_os("PATH") {
            command.env("PATH", path);
        }
        tracing::debug!(command = ?command.as_std(), "qemu-img");
        let mut child = command
            .spawn()
            .map_err(|e| self.not_started(operation, e))?;
        let stdout = child.stdout.take();
        let stderr = child.stderr.take();
        let ended = tokio::time::timeout_at(deadline.instant(), async {
            let (stdout, stderr, status) = tokio::join!(
                read(stdout, MAX_STDOUT, Keep::First),
                read(stderr, MAX_STDERR, Keep::Last),
                child.wait()
            );
            (stdout, stderr, status)
        })
        .await;
        match ended {
            Ok((stdout, stderr, Ok(status))) => Ok(Ended {
                status,
                stdout,
                stderr: String::from_utf8_lossy(&stderr).into_owned(),
            }),
            Ok((_, _, Err(e))) => {
                Err(
                    Error::new(ErrorKind::OutcomeUnknown, operation, "qemu-img was lost")
                        .caused_by(e),
                )
            }
            Err(_) => {
                // The lock must not be given back while the child may still write.
                if let Err(e) = child.kill().await {
                    tracing::warn!(error = %e, "cannot kill qemu-img");
                }
                Err(Error::new(
                    ErrorKind::OutcomeUnknown,
                    operation,
                    "the deadline passed and qemu-img was killed",
                ))
            }
        }
    }

    fn not_started(&self, operation: &'static str, error: std::io::Error) -> Error {
        let program = self.0.program.display();
        match error.kind() {
            std::io::ErrorKind::NotFound => Error::new(
                ErrorKind::Unsupported,
                operation,
                format!("{program} is not there (Debian, Ubuntu: apt install qemu-utils)"),
            ),
            std::io::ErrorKind::PermissionDenied => Error::new(
                ErrorKind::PermissionDenied,
                operation,
                format!("{program} may not be run"),
            ),
            _ => Error::new(
                ErrorKind::Unavailable,
                operation,
                format!("{program} cannot be started"),
            ),
        }
        .caused_by(error)
    }
}

/// A path as an argument that QEMU takes for nothing but a file. Every path of a pool is absolute.
pub(crate) fn file_arg(path: &Path) -> &OsStr {
    debug_assert!(path.is_absolute());
    path.as_os_str()
}

#[derive(Clone, Copy)]
enum Keep {
    First,
    Last,
}

/// Reads to the end, and keeps no more than `limit` bytes.
async fn read(from: Option<impl AsyncRead + Unpin>, limit: usize, keep: Keep) -> Vec<u8> {
    let mut kept = Vec::new();
    let Some(mut from) = from else { return kept };
    let mut buffer = vec![0; 16 << 10];
    while let Ok(n @ 1..) = from.read(&mut buffer).await {
        match keep {
            Keep::First => kept.extend_from_slice(&buffer[..n.min(limit - kept.len())]),
            Keep::Last => {
                kept.extend_from_slice(&buffer[..n]);
                kept.drain(..kept.len().saturating_sub(limit));
            }
        }
    }
    kept
}
