//! Data from outside: copied into the pool, checked there, converted, and the copy removed.
//!
//! ```text
//! file ──reflink or copy──┐
//!                         ├─► source (private) ─► sha256 ─► detect ─► qemu-img check ─► convert ─► check ─► base.*
//! url ──ranges, resumed───┘
//! ```
//! What is checked is what is converted, since nobody else can write the copy. [`crate::image`] says what is refused.

use std::fs::File;
use std::io::Read as _;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use novacron_core::model::{ImageSource, VolumeFormat};
use novacron_core::{Error, ErrorKind, Result};
use serde::Deserialize;
use sha2::{Digest as _, Sha256};

use super::create::{Making, invalid};
use super::layout::SOURCE;
use super::{Pool, copy};
use crate::failure::of_io;
use crate::image::{Detected, HEAD, TAIL, detect};
use crate::qemu_img::file_arg;
use crate::task::{Stop, blocking};

const OP: &str = "storage.create";
/// `qemu-img check` ends with this when clusters are lost, which does no harm to the data.
const LEAKS: i32 = 3;

impl Pool {
    pub(super) async fn import(
        self: &Arc<Self>,
        making: &Making,
        source: &ImageSource,
        sha256: Option<&str>,
    ) -> Result<()> {
        let staged = making.dir.join(SOURCE);
        match source {
            ImageSource::File(path) => self.stage_file(making, path.clone(), &staged).await?,
            ImageSource::Url(url) => self.stage_url(making, url, &staged).await?,
        }
        crate::crash::point("import.staged");
        if let Some(sum) = sha256 {
            check_sum(making, &staged, sum).await?;
        }
        let max = self.max_size;
        let at = staged.clone();
        let detected = blocking(OP, move || look(&at, max)).await?;
        let size = making.size_from(detected.size)?;
        if detected.format == VolumeFormat::Qcow2 {
            self.check(making, &staged, "source").await?;
        }
        if detected.format == VolumeFormat::Raw && making.format == VolumeFormat::Raw {
            let (from, to) = (staged, making.base_path());
            blocking(OP, move || {
                std::fs::rename(&from, &to).map_err(|e| of_io(OP, "cannot name", &to, e))
            })
            .await?;
            return self.extend(making, size).await;
        }
        self.convert(making, &staged, detected.format, size)
            .await
            .map_err(unreadable)?;
        if making.format == VolumeFormat::Qcow2 {
            self.check(making, &making.base_path(), "copy").await?;
        }
        blocking(OP, move || {
            std::fs::remove_file(&staged).map_err(|e| of_io(OP, "cannot remove", &staged, e))
        })
        .await
    }

    async fn stage_file(&self, making: &Making, path: PathBuf, staged: &Path) -> Result<()> {
        if !path.is_absolute() {
            return Err(invalid("source", "the path of an image is absolute"));
        }
        let (stop, _guard) = Stop::new(OP, making.deadline);
        let (to, held, max) = (staged.to_owned(), Arc::clone(&making.held), self.max_file());
        blocking(OP, move || {
            let _held = held;
            copy::stage(OP, &path, &to, max, &stop)
        })
        .await
    }

    #[cfg(feature = "http")]
    async fn stage_url(&self, making: &Making, url: &str, staged: &Path) -> Result<()> {
        super::http::fetch(making, url, staged, self.max_file()).await
    }

    #[cfg(not(feature = "http"))]
    #[expect(clippy::unused_async, reason = "the same shape as with the feature")]
    async fn stage_url(&self, _making: &Making, _url: &str, _staged: &Path) -> Result<()> {
        Err(Error::new(
            ErrorKind::Unsupported,
            OP,
            "images from a URL need the feature `http` of novacron-storage",
        ))
    }

    /// The longest file that is taken: a qcow2 has tables and perhaps snapshots beside the disk.
    fn max_file(&self) -> u64 {
        self.max_size.saturating_mul(2)
    }

    /// Whether every table of a qcow2 agrees with the others and points into the file.
    async fn check(&self, making: &Making, path: &Path, what: &'static str) -> Result<()> {
        #[derive(Default, Deserialize)]
        #[serde(rename_all = "kebab-case", default)]
        struct Report {
            corruptions: u64,
            check_errors: u64,
        }
        let args = [
            "check".as_ref(),
            "-f".as_ref(),
            "qcow2".as_ref(),
            "--output=json".as_ref(),
            file_arg(path),
        ];
        let ended = self
            .qemu
            .run(OP, args, making.deadline, Some(&making.held))
            .await?;
        if matches!(ended.code(), Some(0 | LEAKS)) {
            return Ok(());
        }
        let report: Report = ended.json(OP).unwrap_or_default();
        let kind = if what == "source" {
            ErrorKind::Invalid
        } else {
            ErrorKind::Internal
        };
        if report.corruptions == 0 && report.check_errors == 0 {
            return ended.success(OP, kind).map_err(unreadable);
        }
        let message = format!(
            "the qcow2 is damaged or cut off: {} of its entries are wrong ({})",
            report.corruptions + report.check_errors,
            ended.last_words()
        );
        Err(if kind == ErrorKind::Invalid {
            invalid(what, &message)
        } else {
            Error::new(kind, OP, message)
        })
    }
}

/// An error of reading the source is the source's fault, not the disk's.
fn unreadable(error: Error) -> Error {
    if error.kind() == ErrorKind::Unavailable {
        invalid("source", error.message())
    } else {
        error
    }
}

/// Tells what the private copy is.
fn look(path: &Path, max: u64) -> Result<Detected> {
    let fail = |e| of_io(OP, "cannot read the copy", path, e);
    let file = File::open(path).map_err(fail)?;
    let length = file.metadata().map_err(fail)?.len();
    let mut head = Vec::new();
    (&file)
        .take(HEAD as u64)
        .read_to_end(&mut head)
        .map_err(fail)?;
    let mut tail = vec![0; usize::try_from(length).map_or(TAIL, |l| l.min(TAIL))];
    let from = length - tail.len() as u64;
    file.read_exact_at(&mut tail, from).map_err(fail)?;
    detect(&head, &tail, length, max).map_err(|refused| invalid("source", &refused.0))
}

async fn check_sum(making: &Making, staged: &Path, wanted: &str) -> Result<()> {
    let (stop, _guard) = Stop::new(OP, making.deadline);
    let (path, held) = (staged.to_owned(), Arc::clone(&making.held));
    let sum = blocking(OP, move || {
        let _held = held;
        let fail = |e| of_io(OP, "cannot read the copy", &path, e);
        let mut file = File::open(&path).map_err(fail)?;
        let mut hasher = Sha256::new();
        let mut buffer = vec![0; 1 << 20];
        loop {
            stop.check()?;
            match file.read(&mut buffer).map_err(fail)? {
                0 => return Ok(hex(&hasher.finalize())),
                n => hasher.update(&buffer[..n]),
            }
        }
    })
    .await?;
    if sum.eq_ignore_ascii_case(wanted) {
        return Ok(());
    }
    Err(invalid(
        "sha256",
        &format!("the source's is {sum}, not {wanted}"),
    ))
}

/// The SHA-256 of a few bytes.
pub(super) fn digest_of(bytes: &[u8]) -> String {
    hex(&Sha256::digest(bytes))
}

fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write as _;
    bytes.iter().fold(String::new(), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}
