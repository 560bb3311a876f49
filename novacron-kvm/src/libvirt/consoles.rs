//! The serial console of a local domain.
//!
//! ```text
//!   guest ─► QEMU ─┬─► console.log (QEMU or virtlogd appends) ──► readers, each at its offset; also while libvirt is away
//!                  └─► pty ◄─► libvirt's stream, open while somebody here has written: input, and a sign of more
//! ```
//! Reading needs the log alone, so that `virsh console` stays free for people. Whoever writes opens libvirt's stream of
//! the console, which has one user at a time: while somebody else has it, writing fails, and says so. With virtlogd
//! (libvirt's `stdio_handler = "logd"`) the log is turned over at its size limit, and its offsets begin anew.

use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Weak};
use std::time::Duration;

use async_trait::async_trait;
use bytes::{Buf, Bytes};
use novacron_core::driver::{Call, ConsoleStart, ConsoleStream, Consoles, DomainId};
use novacron_core::{Error, ErrorKind, Result};
use tokio::sync::{Notify, mpsc};
use tokio::time::{interval, timeout};

use super::LibvirtHypervisor;
use super::describe::{CONSOLE_LOG, uuid_of};
use super::error;
use super::look::{Seen, Task};
use super::pool::Effect;
use super::state::State;
use super::sys::{Readiness, Stream};
use crate::console::{ConsoleReader, place};
use crate::qemu::ConsoleIo;

/// Chunks of input that wait for a guest that does not read.
const INPUT_BACKLOG: usize = 64;
/// How long a chunk of input may take.
const PATIENCE: Duration = Duration::from_secs(60);
/// How long the stream stays open after its last writer went.
const LINGER: Duration = Duration::from_secs(5);
const OPERATION: &str = "libvirt.console";

#[async_trait]
impl Consoles for LibvirtHypervisor {
    async fn open(&self, call: Call, id: DomainId, start: ConsoleStart) -> Result<ConsoleStream> {
        let look = move |task: &Task| {
            // Before the look: an end that comes after it is told.
            let progress = task.state.console(id);
            match task.look(id)? {
                Some((_, Seen::Live(_))) => Ok((progress, true)),
                Some((_, Seen::Ended(_))) => Ok((progress, false)),
                None => Err(error::not_found(OPERATION, id)),
                Some((_, Seen::Defined)) => {
                    let message = "the domain has not been started";
                    Err(error::precondition(OPERATION, id, message))
                }
                Some((_, Seen::Unknown(reason))) => {
                    Err(Error::new(ErrorKind::Unavailable, OPERATION, reason).with("domain", id))
                }
            }
        };
        let (progress, runs) = self.state.run(call, OPERATION, Effect::None, look).await?;
        let folder = self.state.folder(id).ok_or_else(|| {
            let message = "without a state folder there are no consoles";
            Error::new(ErrorKind::Unsupported, OPERATION, message)
        })?;
        let log = folder.join(CONSOLE_LOG);
        let offset = place(&log, start).map_err(|error| {
            let kind = match error.kind() {
                io::ErrorKind::PermissionDenied => ErrorKind::PermissionDenied,
                _ => ErrorKind::Unavailable,
            };
            let message = "the console's log cannot be read";
            Error::new(kind, OPERATION, message)
                .with("path", log.display())
                .caused_by(error)
        })?;
        let reader = ConsoleReader::new(log, offset, progress);
        let input = runs.then(|| {
            let (input, queue) = mpsc::channel(INPUT_BACKLOG);
            tokio::spawn(feed(Arc::downgrade(&self.state), id, queue));
            input
        });
        Ok(ConsoleStream {
            offset,
            stream: Box::pin(ConsoleIo::new(reader, input)),
        })
    }
}

/// libvirt's stream of a console, open.
#[derive(Debug)]
pub(super) struct Typing {
    stream: Arc<Stream>,
    moved: Arc<Notify>,
    /// The guest is gone, or the connection.
    ended: Arc<AtomicBool>,
}

impl Typing {
    fn has_ended(&self) -> bool {
        self.ended.load(Ordering::SeqCst)
    }
}

/// Gives what is written to the guest. Its end closes the queue, so that a writer is told.
async fn feed(state: Weak<State>, id: DomainId, mut queue: mpsc::Receiver<Bytes>) {
    let mut open: Option<Arc<Typing>> = None;
    while let Some(mut chunk) = queue.recv().await {
        while !chunk.is_empty() {
            let Some(state) = state.upgrade() else { return };
            let fed = match &open {
                Some(open) if !open.has_ended() => send(&state, open, &chunk).await,
                _ => shared(&state, id).await.map(|stream| {
                    open = Some(stream);
                    0
                }),
            };
            match fed {
                Ok(count) => chunk.advance(count),
                // The next connection has another one, if the guest is still there.
                Err(_) if open.as_ref().is_some_and(|open| open.has_ended()) => open = None,
                Err(error) => {
                    tracing::info!(%error, domain = %id, "a console takes no input");
                    return;
                }
            }
        }
    }
    if open.is_some() {
        // What the guest has not read yet would go with the stream.
        let mut tick = interval(LINGER);
        tick.tick().await;
        tick.tick().await;
    }
}

/// The stream that somebody here has open, or a new one.
async fn shared(state: &Arc<State>, id: DomainId) -> Result<Arc<Typing>> {
    let input = state.input(id);
    let mut input = input.lock().await;
    if let Some(open) = input.upgrade().filter(|open| !open.has_ended()) {
        return Ok(open);
    }
    let open = Arc::new(opened(state, id).await?);
    *input = Arc::downgrade(&open);
    Ok(open)
}

async fn opened(state: &Arc<State>, id: DomainId) -> Result<Typing> {
    let (moved, ended) = (Arc::new(Notify::new()), Arc::new(AtomicBool::new(false)));
    let (watched, signal, end) = (
        Arc::downgrade(state),
        Arc::clone(&moved),
        Arc::clone(&ended),
    );
    let open = move |task: &Task| {
        task.started(id)?;
        let stream = task
            .live
            .open()
            .and_then(|conn| Stream::console(conn, uuid_of(id)));
        let stream = Arc::new(task.ok(stream)?);
        let weak = Arc::downgrade(&stream);
        let ready = move |ready: Readiness| {
            let Some(stream) = weak.upgrade() else { return };
            let (bytes, has_ended) = drained(&stream);
            if ready.ended || has_ended {
                end.store(true, Ordering::SeqCst);
            }
            if let Some(state) = watched.upgrade() {
                state.console_moved(id, bytes);
            }
            if ready.writable {
                // Else it is told for ever that it may write.
                let _ = stream.watch_writes(false);
            }
            if ready.writable || ready.ended || has_ended {
                signal.notify_one();
            }
        };
        task.ok(stream.watch(ready))?;
        Ok(stream)
    };
    let call = Call::within(PATIENCE);
    let stream = state.run(call, OPERATION, Effect::None, open).await?;
    Ok(Typing {
        stream,
        moved,
        ended,
    })
}

/// Takes out what there is: it stands in the log. How much, and whether the stream has ended.
fn drained(stream: &Stream) -> (u64, bool) {
    let mut buffer = [0; 16 << 10];
    let mut bytes = 0;
    loop {
        match stream.receive(&mut buffer) {
            Ok(None) => return (bytes, false),
            Ok(Some(0)) | Err(_) => {
                // A stream that has ended is told so for ever.
                let _ = stream.unwatch();
                return (bytes, true);
            }
            Ok(Some(count)) => bytes += count as u64,
        }
    }
}

async fn send(state: &Arc<State>, open: &Typing, chunk: &Bytes) -> Result<usize> {
    let (stream, chunk) = (Arc::clone(&open.stream), chunk.clone());
    let ended = Arc::clone(&open.ended);
    let send = move |task: &Task| {
        let sent = stream.send(&chunk);
        if sent.is_err() {
            ended.store(true, Ordering::SeqCst);
        }
        let sent = task.ok(sent)?;
        if sent.is_none() {
            task.ok(stream.watch_writes(true))?;
        }
        Ok(sent)
    };
    let call = Call::within(PATIENCE);
    match state.run(call, OPERATION, Effect::None, send).await? {
        Some(count) => Ok(count),
        None => match timeout(PATIENCE, open.moved.notified()).await {
            Ok(()) => Ok(0),
            Err(_) => {
                let message = "the guest takes no input";
                Err(Error::new(ErrorKind::Unavailable, OPERATION, message))
            }
        },
    }
}
