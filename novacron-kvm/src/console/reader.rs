//! One reader of a console, at its own offset of the log.

use std::io;
use std::path::PathBuf;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
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
    pub(super) fn new(path: PathBuf, offset: u64, progress: watch::Receiver<Progress>) -> Self {
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
        // Jump over a hole: what was there is gone.
        match seek(&*file, SeekFrom::Data(self.offset)) {
            Ok(data) => self.offset = data,
            Err(Errno::NXIO) => return Ok(Bytes::new()),
            Err(Errno::INVAL) => {}
            Err(error) => return Err(error.into()),
        }
        file.seek(io::SeekFrom::Start(self.offset)).await?;
        let mut bytes = BytesMut::with_capacity(CHUNK);
        file.read_buf(&mut bytes).await?;
        Ok(bytes.freeze())
    }
}
