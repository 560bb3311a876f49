//! The serial console as one stream to read from and write to.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use async_trait::async_trait;
use bytes::{Buf, Bytes};
use futures::future::BoxFuture;
use novacron_core::driver::{Call, ConsoleStart, ConsoleStream, Consoles, DomainId};
use novacron_core::{Error, ErrorKind, Result};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::mpsc::error::SendError;
use tokio::sync::mpsc::{self, OwnedPermit};
use tokio::task::AbortHandle;

use super::state::Seen;
use super::{QemuHypervisor, error};
use crate::console::{ConsoleHub, ConsoleReader, place};

/// The most of one write that is taken at once.
const CHUNK: usize = 16 << 10;

#[async_trait]
impl Consoles for QemuHypervisor {
    async fn open(&self, call: Call, id: DomainId, start: ConsoleStart) -> Result<ConsoleStream> {
        const OPERATION: &str = "qemu.console";
        let failed = |e: io::Error| {
            let message = "the console cannot be opened";
            Error::new(ErrorKind::Unavailable, OPERATION, message).caused_by(e)
        };
        let log = self.state.dir(id, OPERATION)?.file("console.log");
        let offset = place(&log, start).map_err(failed)?;
        let stream = match self.state.observe(call, id, OPERATION).await? {
            Seen::Live(live, _) => {
                let hub = live.console().await.map_err(failed)?;
                Stream::new(hub.reader(offset), Some(hub.input()))
            }
            Seen::Ended(_) => Stream::new(ConsoleHub::reader_of_ended(log, offset), None),
            Seen::Absent => return Err(error::not_found(OPERATION, id)),
            Seen::Defined(_) => {
                let message = "the domain has not been started";
                return Err(error::precondition(OPERATION, id, message));
            }
            Seen::Unknown(reason) => {
                return Err(
                    Error::new(ErrorKind::Unavailable, OPERATION, reason).with("domain", id)
                );
            }
        };
        Ok(ConsoleStream {
            offset,
            stream: Box::pin(stream),
        })
    }
}

type Permit = Result<OwnedPermit<Bytes>, SendError<()>>;

/// One user's view of a console.
pub(crate) struct Stream {
    output: mpsc::Receiver<io::Result<Bytes>>,
    unread: Bytes,
    input: Option<mpsc::Sender<Bytes>>,
    permit: Option<BoxFuture<'static, Permit>>,
    pump: AbortHandle,
}

impl Stream {
    pub(crate) fn new(mut reader: ConsoleReader, input: Option<mpsc::Sender<Bytes>>) -> Self {
        let (sender, output) = mpsc::channel(4);
        let pump = tokio::spawn(async move {
            while let Some(chunk) = reader.read().await.transpose() {
                let failed = chunk.is_err();
                if sender.send(chunk).await.is_err() || failed {
                    return;
                }
            }
        });
        Self {
            output,
            unread: Bytes::new(),
            input,
            permit: None,
            pump: pump.abort_handle(),
        }
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        self.pump.abort();
    }
}

impl AsyncRead for Stream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.unread.is_empty() {
            match ready!(self.output.poll_recv(cx)) {
                Some(chunk) => self.unread = chunk?,
                None => return Poll::Ready(Ok(())),
            }
        }
        let count = self.unread.len().min(buf.remaining());
        buf.put_slice(&self.unread[..count]);
        self.unread.advance(count);
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Stream {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let Some(input) = self.input.clone() else {
            return Poll::Ready(Err(gone()));
        };
        let permit = self
            .permit
            .get_or_insert_with(|| Box::pin(input.reserve_owned()));
        let permit = ready!(permit.as_mut().poll(cx));
        self.permit = None;
        let taken = &bytes[..bytes.len().min(CHUNK)];
        permit
            .map_err(|_| gone())?
            .send(Bytes::copy_from_slice(taken));
        Poll::Ready(Ok(taken.len()))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.input = None;
        Poll::Ready(Ok(()))
    }
}

fn gone() -> io::Error {
    io::Error::new(io::ErrorKind::BrokenPipe, "the domain has ended")
}
