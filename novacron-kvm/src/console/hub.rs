//! The one client of the console's socket.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use rustix::fs::{FallocateFlags, fallocate};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::{mpsc, watch};
use tokio::task::AbortHandle;

use super::reader::ConsoleReader;

/// Bytes of history that are always kept.
pub(super) const KEEP: u64 = 4 << 20;
/// A multiple of every file system's block.
const BLOCK: u64 = 64 << 10;
/// Chunks of input that wait for a guest that does not read.
const INPUT_BACKLOG: usize = 64;

/// How far the console has come.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Progress {
    /// Bytes that came through the socket so far.
    pub(crate) received: u64,
    /// QEMU closed the socket: nothing more will come.
    pub(crate) ended: bool,
}

/// The console of one running guest. Dropping it closes the socket; the guest goes on, and its log too.
#[derive(Debug)]
pub(crate) struct ConsoleHub {
    log: PathBuf,
    progress: watch::Receiver<Progress>,
    input: mpsc::Sender<Bytes>,
    tasks: [AbortHandle; 2],
}

impl Drop for ConsoleHub {
    fn drop(&mut self) {
        for task in &self.tasks {
            task.abort();
        }
    }
}

impl ConsoleHub {
    /// Connects to the console's socket.
    pub(crate) async fn connect(socket: &Path, log: PathBuf) -> std::io::Result<Self> {
        let (reader, writer) = UnixStream::connect(socket).await?.into_split();
        let (progress_sender, progress) = watch::channel(Progress {
            received: 0,
            ended: false,
        });
        let (input, queue) = mpsc::channel(INPUT_BACKLOG);
        let drain = tokio::spawn(drain(reader, log.clone(), progress_sender));
        let write = tokio::spawn(write(writer, queue));
        Ok(Self {
            log,
            progress,
            input,
            tasks: [drain.abort_handle(), write.abort_handle()],
        })
    }

    /// A reader that starts at this offset of the log.
    pub(crate) fn reader(&self, offset: u64) -> ConsoleReader {
        ConsoleReader::new(self.log.clone(), offset, self.progress.clone())
    }

    /// A reader of the log of a guest that is gone.
    pub(crate) fn reader_of_ended(log: PathBuf, offset: u64) -> ConsoleReader {
        ConsoleReader::new(
            log,
            offset,
            watch::channel(Progress {
                received: 0,
                ended: true,
            })
            .1,
        )
    }

    /// Where chunks for the guest go: whole chunks of several writers alternate. Closed once QEMU is gone.
    pub(crate) fn input(&self) -> mpsc::Sender<Bytes> {
        self.input.clone()
    }
}

async fn drain(mut socket: OwnedReadHalf, log: PathBuf, progress: watch::Sender<Progress>) {
    let mut chunk = vec![0; 64 << 10];
    let mut unpunched = KEEP;
    let log: Arc<Path> = log.into();
    loop {
        let count = match socket.read(&mut chunk).await {
            Ok(0) | Err(_) => break,
            Ok(count) => count as u64,
        };
        progress.send_modify(|progress| progress.received += count);
        unpunched += count;
        if unpunched >= KEEP {
            unpunched = 0;
            let log = Arc::clone(&log);
            // A log that cannot be shortened is no reason to stop the console.
            let _ = tokio::task::spawn_blocking(move || punch(&log)).await;
        }
    }
    progress.send_modify(|progress| progress.ended = true);
}

/// Gives back all but the last [`KEEP`] bytes of the log, in whole blocks: part of a block would read as zeros.
pub(super) fn punch(log: &Path) {
    let punched = File::options().write(true).open(log).and_then(|file| {
        let old = file.metadata()?.len().saturating_sub(KEEP) / BLOCK * BLOCK;
        if old > 0 {
            fallocate(
                &file,
                FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE,
                0,
                old,
            )?;
        }
        Ok(())
    });
    if let Err(error) = punched {
        tracing::warn!(%error, log = %log.display(), "the console's log cannot be shortened");
    }
}

async fn write(mut socket: OwnedWriteHalf, mut queue: mpsc::Receiver<Bytes>) {
    while let Some(chunk) = queue.recv().await {
        if socket.write_all(&chunk).await.is_err() {
            return;
        }
    }
}
