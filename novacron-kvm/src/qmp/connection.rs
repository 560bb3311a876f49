//! The connection: a reader task, a writer task and the map of calls under way.

use std::collections::HashMap;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::{broadcast, mpsc, oneshot, watch};
use tokio::task::AbortHandle;
use tokio::time::timeout;

use super::error::QmpError;
use super::message::{Event, Message, Refusal};
use crate::lines::LineDecoder;

/// The longest line taken from QEMU; its whole schema is about 300 kB.
const MAX_LINE: usize = 16 << 20;
/// Events that a slow subscriber may be behind.
const EVENT_BACKLOG: usize = 1024;
/// Commands waiting for the writer.
const COMMAND_BACKLOG: usize = 64;

type Answer = Result<Value, Refusal>;

/// A session with one QEMU. Cheap to clone; every clone is the same session.
#[derive(Debug, Clone)]
pub(crate) struct Qmp {
    session: Arc<Session>,
}

#[derive(Debug)]
struct Session {
    next_id: AtomicU64,
    lines: mpsc::Sender<Vec<u8>>,
    shared: Arc<Shared>,
    tasks: [AbortHandle; 2],
}

/// What the tasks and the callers both hold.
#[derive(Debug)]
struct Shared {
    /// `None` once the connection is gone: no call can be added after the last was failed.
    pending: Mutex<Option<HashMap<u64, oneshot::Sender<Answer>>>>,
    events: broadcast::Sender<Event>,
    closed: watch::Sender<bool>,
}

impl Drop for Session {
    fn drop(&mut self) {
        for task in &self.tasks {
            task.abort();
        }
    }
}

impl Qmp {
    /// Connects to the monitor socket, reads the greeting and enters command mode, all within `deadline`.
    pub(crate) async fn connect(path: &Path, deadline: Duration) -> Result<Self, QmpError> {
        let late = || QmpError::Deadline {
            command: "greeting".to_owned(),
            after: deadline,
        };
        timeout(deadline, Self::handshake(path, deadline))
            .await
            .map_err(|_| late())?
    }

    async fn handshake(path: &Path, deadline: Duration) -> Result<Self, QmpError> {
        let stream = UnixStream::connect(path)
            .await
            .map_err(|error| QmpError::Connect {
                path: path.to_owned(),
                reason: error.to_string(),
            })?;
        let (mut reader, writer) = stream.into_split();
        let mut decoder = LineDecoder::new(MAX_LINE);
        let first = read_line(&mut reader, &mut decoder).await;
        match first.as_deref().map(Message::decode) {
            Some(Message::Greeting) => {}
            Some(_) => {
                return Err(QmpError::Protocol {
                    command: "greeting".to_owned(),
                    reason: "the first line is no QMP greeting".to_owned(),
                });
            }
            None => {
                return Err(QmpError::Disconnected {
                    command: "greeting".to_owned(),
                });
            }
        }
        let shared = Arc::new(Shared {
            pending: Mutex::new(Some(HashMap::new())),
            events: broadcast::Sender::new(EVENT_BACKLOG),
            closed: watch::Sender::new(false),
        });
        let (lines, queue) = mpsc::channel(COMMAND_BACKLOG);
        let read = tokio::spawn(read_loop(reader, decoder, Arc::clone(&shared)));
        let write = tokio::spawn(write_loop(writer, queue, Arc::clone(&shared)));
        let tasks = [read.abort_handle(), write.abort_handle()];
        let qmp = Self {
            session: Arc::new(Session {
                next_id: AtomicU64::new(1),
                lines,
                shared,
                tasks,
            }),
        };
        qmp.execute("qmp_capabilities", json!({}), deadline).await?;
        Ok(qmp)
    }

    /// Runs one command. Dropping the future forgets the answer; it does not take the command back.
    pub(crate) async fn execute(
        &self,
        command: &str,
        arguments: Value,
        deadline: Duration,
    ) -> Result<Value, QmpError> {
        let gone = || QmpError::Disconnected {
            command: command.to_owned(),
        };
        let id = self.session.next_id.fetch_add(1, Ordering::Relaxed);
        let mut line = json!({ "execute": command, "arguments": arguments, "id": id })
            .to_string()
            .into_bytes();
        line.push(b'\n');

        let (sender, receiver) = oneshot::channel();
        self.session
            .shared
            .pending()
            .as_mut()
            .ok_or_else(gone)?
            .insert(id, sender);
        let _forget = Forget {
            shared: &self.session.shared,
            id,
        };
        let exchange = async {
            self.session.lines.send(line).await.map_err(|_| gone())?;
            receiver.await.map_err(|_| gone())
        };
        let answer = timeout(deadline, exchange)
            .await
            .map_err(|_| QmpError::Deadline {
                command: command.to_owned(),
                after: deadline,
            })??;
        answer.map_err(|refusal| QmpError::Refused {
            command: command.to_owned(),
            class: refusal.class,
            description: refusal.description,
        })
    }

    /// QEMU's events from now on.
    pub(crate) fn events(&self) -> broadcast::Receiver<Event> {
        self.session.shared.events.subscribe()
    }

    /// Resolves when the connection is gone.
    pub(crate) async fn closed(&self) {
        let mut closed = self.session.shared.closed.subscribe();
        // An error means that the sender is gone, and it lives in `self`.
        let _ = closed.wait_for(|closed| *closed).await;
    }
}

impl Shared {
    fn pending(&self) -> MutexGuard<'_, Option<HashMap<u64, oneshot::Sender<Answer>>>> {
        self.pending.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Fails every call under way and every later one.
    fn close(&self) {
        drop(self.pending().take());
        self.closed.send_replace(true);
    }

    fn dispatch(&self, message: Message) {
        match message {
            Message::Reply { id, outcome } => {
                let waiting = self
                    .pending()
                    .as_mut()
                    .and_then(|pending| pending.remove(&id));
                if let Some(caller) = waiting {
                    // The caller may have given up at its deadline.
                    let _ = caller.send(outcome);
                }
            }
            Message::Event(event) => {
                tracing::trace!(name = event.name, data = %event.data, "qemu event");
                // No subscriber is no error.
                let _ = self.events.send(event);
            }
            Message::Greeting | Message::Other => {
                tracing::debug!(?message, "unexpected line from QEMU");
            }
        }
    }
}

/// Takes a call out of the pending map when its caller leaves, for whatever reason.
struct Forget<'a> {
    shared: &'a Shared,
    id: u64,
}

impl Drop for Forget<'_> {
    fn drop(&mut self) {
        if let Some(pending) = self.shared.pending().as_mut() {
            pending.remove(&self.id);
        }
    }
}

/// The next line; `None` when the connection is over. Lines beyond the limit are skipped.
async fn read_line(reader: &mut OwnedReadHalf, decoder: &mut LineDecoder) -> Option<bytes::Bytes> {
    let mut chunk = vec![0; 16 << 10];
    loop {
        match decoder.next_line() {
            Some(Ok(line)) => return Some(line),
            Some(Err(error)) => tracing::warn!(%error, "dropped an answer of QEMU"),
            None => match reader.read(&mut chunk).await {
                Ok(0) | Err(_) => return None,
                Ok(count) => decoder.push(&chunk[..count]),
            },
        }
    }
}

async fn read_loop(mut reader: OwnedReadHalf, mut decoder: LineDecoder, shared: Arc<Shared>) {
    while let Some(line) = read_line(&mut reader, &mut decoder).await {
        shared.dispatch(Message::decode(&line));
    }
    shared.close();
}

async fn write_loop(
    mut writer: OwnedWriteHalf,
    mut queue: mpsc::Receiver<Vec<u8>>,
    shared: Arc<Shared>,
) {
    while let Some(line) = queue.recv().await {
        if writer.write_all(&line).await.is_err() {
            break;
        }
    }
    shared.close();
}
