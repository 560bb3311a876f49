//! A layer's bytes in order, read straight from the files that have them.
//!
//! `qemu-img map` tells, window by window, which file of the chain has each extent and where; the extents are read from
//! there and holes are zeroes. So an export needs no room in the pool, no NBD and no parser of ours for QEMU's tables.
//! (`qemu-img convert` and `dd` cannot write to a pipe.) The data lock keeps the layers where they are until the stream
//! ends or is dropped. The deadline is the whole stream's.

use std::fs::File;
use std::os::unix::fs::FileExt as _;
use std::path::PathBuf;
use std::sync::Arc;

use bytes::Bytes;
use futures::stream::{self, BoxStream, StreamExt as _};
use novacron_core::driver::{ArtefactId, Call};
use novacron_core::model::{SnapshotId, VolumeFormat};
use novacron_core::{Deadline, Error, ErrorKind, Result};
use serde::Deserialize;
use tokio::sync::mpsc;

use super::lock::Want;
use super::{Held, Pool, chain, missing, writer};
use crate::failure::of_io;
use crate::qemu_img::{file_arg, format_name};
use crate::task::blocking;

const OP: &str = "storage.export";
/// This much is mapped at once: bounds the map's size whatever the layers look like.
const WINDOW: u64 = 256 << 20;
/// The largest piece of the stream.
const PIECE: usize = 1 << 20;

/// One stretch of the disk, as `qemu-img map` tells it.
#[derive(Debug, Deserialize)]
struct Extent {
    start: u64,
    length: u64,
    depth: usize,
    zero: bool,
    data: bool,
    offset: Option<u64>,
}

/// An export that goes on.
struct Export {
    pool: Arc<Pool>,
    top: PathBuf,
    format: VolumeFormat,
    /// Where a writer would spoil the stream.
    written: bool,
    size: u64,
    files: Vec<Arc<File>>,
    zeroes: Bytes,
    deadline: Deadline,
    held: Arc<Held>,
}

impl Pool {
    pub(super) async fn export(
        self: Arc<Self>,
        call: Call,
        id: ArtefactId,
        snapshot: Option<SnapshotId>,
    ) -> Result<BoxStream<'static, Result<Bytes>>> {
        let dir = self.layout.dir(id);
        let held = self
            .locks
            .acquire(OP, &dir, Want::Read, call.deadline)
            .await?;
        let held = held.ok_or_else(|| missing(OP, id))?;
        let (record, layer) = self.layer_of(OP, id, snapshot).await?;
        let format = record.layer(OP, &layer)?.format;
        let top = dir.join(&layer);
        let written = snapshot.is_none();
        let (layout, at) = (self.layout.clone(), top.clone());
        let (size, files) = blocking(OP, move || {
            if written {
                writer::refuse_written(OP, &at)?;
            }
            let (size, _) = chain::header(OP, &at, format)?;
            let mut files = Vec::new();
            for path in chain::files(OP, &layout, &dir, &record, &layer)? {
                let file = File::open(&path).map_err(|e| of_io(OP, "cannot open", &path, e))?;
                files.push(Arc::new(file));
            }
            Ok((size, files))
        })
        .await?;
        let export = Export {
            pool: self,
            top,
            format,
            written,
            size,
            files,
            zeroes: Bytes::from(vec![0; PIECE]),
            deadline: call.deadline,
            held,
        };
        let (to, mut from) = mpsc::channel(4);
        tokio::spawn(async move {
            if let Err(error) = export.run(&to).await {
                // Whoever dropped the stream wants no error either.
                let _ = to.send(Err(error)).await;
            }
        });
        Ok(stream::poll_fn(move |cx| from.poll_recv(cx)).boxed())
    }
}

impl Export {
    async fn run(&self, to: &mpsc::Sender<Result<Bytes>>) -> Result<()> {
        let mut at = 0;
        while at < self.size {
            let end = self.size.min(at + WINDOW);
            for extent in self.map(at, end).await? {
                // An extent may begin before the window and end after it.
                let from = extent.start.max(at);
                let until = extent.start.saturating_add(extent.length).min(end);
                if extent.start > at {
                    return Err(damaged("the map of the volume has a gap"));
                }
                while at < until {
                    let want = usize::try_from(until - at).map_or(PIECE, |left| left.min(PIECE));
                    let piece = self.read(&extent, at, want);
                    let piece = tokio::time::timeout_at(self.deadline.instant(), async {
                        let piece = piece.await?;
                        Ok::<_, Error>(to.send(Ok(piece)).await.is_ok())
                    });
                    match piece.await {
                        Ok(Ok(true)) => at += want as u64,
                        Ok(Ok(false)) => return Ok(()),
                        Ok(Err(error)) => return Err(error),
                        Err(_) => {
                            return Err(Error::new(
                                ErrorKind::DeadlineExceeded,
                                OP,
                                "the deadline passed before the whole volume was read",
                            ));
                        }
                    }
                }
                debug_assert!(from <= at);
            }
            if at < end {
                return Err(damaged("the map of the volume ends too early"));
            }
        }
        Ok(())
    }

    async fn map(&self, from: u64, to: u64) -> Result<Vec<Extent>> {
        let mut args: Vec<std::ffi::OsString> = vec!["map".into(), "--output=json".into()];
        if self.written {
            let top = self.top.clone();
            blocking(OP, move || writer::refuse_written(OP, &top)).await?;
        } else {
            args.push("-U".into());
        }
        args.extend(["-f".into(), format_name(self.format).into()]);
        args.push(format!("--start-offset={from}").into());
        args.push(format!("--max-length={}", to - from).into());
        args.push(file_arg(&self.top).into());
        let ended = self
            .pool
            .qemu
            .run(OP, args, self.deadline, Some(&self.held))
            .await?;
        ended.success(OP, ErrorKind::Internal)?;
        ended.json(OP)
    }

    async fn read(&self, extent: &Extent, at: u64, want: usize) -> Result<Bytes> {
        if extent.zero || !extent.data {
            return Ok(self.zeroes.slice(..want));
        }
        let Some(offset) = extent.offset else {
            return Err(Error::new(
                ErrorKind::Unsupported,
                OP,
                "the volume has compressed clusters, which no call of this pool makes",
            ));
        };
        let file = self
            .files
            .get(extent.depth)
            .ok_or_else(|| damaged("the map names a layer that is not there"))?;
        let (file, held, top) = (Arc::clone(file), Arc::clone(&self.held), self.top.clone());
        let from = offset + (at - extent.start);
        blocking(OP, move || {
            let _held = held;
            let mut piece = vec![0; want];
            let mut done = 0;
            while done < want {
                match file.read_at(&mut piece[done..], from + done as u64) {
                    // Past the end of a layer's file are zeroes.
                    Ok(0) => break,
                    Ok(n) => done += n,
                    Err(e) if e.kind() == std::io::ErrorKind::Interrupted => {}
                    Err(e) => return Err(of_io(OP, "cannot read a layer", &top, e)),
                }
            }
            Ok(Bytes::from(piece))
        })
        .await
    }
}

fn damaged(message: &'static str) -> Error {
    Error::new(ErrorKind::Corrupt, OP, message)
}
