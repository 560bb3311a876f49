//! One reader of a console, at its own offset of the log.

use std::io;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use novacron_core::driver::ConsoleStart;
use rustix::fs::{SeekFrom, seek};
use rustix::io::Errno;
use tokio::fs::File;
use tokio::io::{AsyncReadExt, AsyncSeekExt};
use tokio::sync::watch;
use tokio::time::timeout;

use super::hub::Progress;

const CHUNK: usize = 64 << 10;
/// QEMU writes the log right after the socket; how long until the log is looked at again.
const LOG_LAG: Duration = Duration::from_millis(5);
/// The same, once it has been looked at in vain.
const IDLE_LOOK: Duration = Duration::from_secs(1);

/// The offset in a log at which a reader begins. A log that QEMU has not made yet begins at zero.
pub(crate) fn place(log: &Path, start: ConsoleStart) -> io::Result<u64> {
    let file = match std::fs::File::open(log) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(0),
        Err(error) => return Err(error),
    };
    let length = file.metadata()?.len();
    let wanted = match start {
        ConsoleStart::Last(bytes) => length.saturating_sub(bytes),
        ConsoleStart::Offset(offset) => offset.min(length),
    };
    Ok(first_kept(&file, wanted)?.unwrap_or(length))
}

/// The first byte from `offset` on that is not in a hole; none at the end. A file system without holes keeps all.
fn first_kept(file: impl AsFd, offset: u64) -> io::Result<Option<u64>> {
    match seek(file, SeekFrom::Data(offset)) {
        Ok(kept) => Ok(Some(kept)),
        Err(Errno::NXIO) => Ok(None),
        Err(Errno::INVAL) => Ok(Some(offset)),
        Err(error) => Err(error.into()),
    }
}

/// Reads a console from an offset on: first the history, then what comes.
#[derive(Debug)]
pub(crate) struct ConsoleReader {
    path: PathBuf,
    file: Option<File>,
    offset: u64,
    progress: watch::Receiver<Progress>,
    /// The wait before the next look, when no sign comes.
    patience: Duration,
}

impl ConsoleReader {
    pub(crate) fn new(path: PathBuf, offset: u64, progress: watch::Receiver<Progress>) -> Self {
        Self {
            path,
            file: None,
            offset,
            progress,
            patience: LOG_LAG,
        }
    }

    /// The offset of the next byte.
    #[cfg(test)]
    pub(super) fn offset(&self) -> u64 {
        self.offset
    }

    /// The next bytes; `None` when QEMU is gone and all of the log was read. Dropping the future loses no byte.
    pub(crate) async fn read(&mut self) -> io::Result<Option<Bytes>> {
        loop {
            let ended =
                self.progress.borrow_and_update().ended || self.progress.has_changed().is_err();
            let bytes = self.read_log().await?;
            if !bytes.is_empty() {
                self.offset += bytes.len() as u64;
                self.patience = LOG_LAG;
                return Ok(Some(bytes));
            }
            if ended {
                return Ok(None);
            }
            // The sign may come a moment before the byte is in the log, so an unanswered look is repeated: at once
            // after a sign, then rarely.
            self.patience = match timeout(self.patience, self.progress.changed()).await {
                Ok(_) => LOG_LAG,
                Err(_) => (self.patience * 4).min(IDLE_LOOK),
            };
        }
    }

    async fn read_log(&mut self) -> io::Result<Bytes> {
        let file = match &mut self.file {
            Some(file) => file,
            none => match File::open(&self.path).await {
                Ok(file) => none.insert(file),
                Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Bytes::new()),
                Err(error) => return Err(error),
            },
        };
        match first_kept(&*file, self.offset)? {
            None => return Ok(Bytes::new()),
            Some(kept) if kept > self.offset => {
                let (from, upto) = (self.offset, kept);
                return Err(io::Error::other(format!(
                    "the console's bytes from {from} up to {upto} are not kept any more"
                )));
            }
            Some(_) => {}
        }
        file.seek(io::SeekFrom::Start(self.offset)).await?;
        let mut bytes = BytesMut::with_capacity(CHUNK);
        file.read_buf(&mut bytes).await?;
        Ok(bytes.freeze())
    }
}
