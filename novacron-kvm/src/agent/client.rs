//! Sessions with the agent and the calls made of them.

use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use bytes::Bytes;
use novacron_core::driver::AgentOutput;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::sync::Mutex;
use tokio::time::{MissedTickBehavior, interval, timeout};

use super::error::AgentError;
use super::reply::{self, Interface};
use crate::lines::LineDecoder;

/// The longest line taken from a guest: a program's end with both its outputs, of which the agent keeps 16 MiB each, in
/// base 64.
const MAX_LINE: usize = 48 << 20;
/// Lines skipped in one session before it is given up: a guest could send them for ever.
const MAX_SKIPPED: usize = 10_000;
const FIRST_POLL: Duration = Duration::from_millis(20);
const SLOWEST_POLL: Duration = Duration::from_millis(500);

/// A program to run in the guest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ExecRequest {
    /// Its path in the guest.
    pub(crate) program: String,
    /// Its arguments.
    pub(crate) arguments: Vec<String>,
    /// `KEY=value` pairs; the agent's own environment when empty.
    pub(crate) environment: Vec<String>,
    /// What it reads from stdin.
    pub(crate) input: Bytes,
}

/// The agent of one guest.
#[derive(Debug)]
pub(crate) struct Agent {
    socket: PathBuf,
    next_sync: AtomicU64,
    turn: Mutex<()>,
}

impl Agent {
    /// The agent behind this socket. Connects at each call, not here.
    pub(crate) fn new(socket: PathBuf) -> Self {
        // The number only has to differ from those of sessions that may still have answers under way.
        let seed = u64::from(std::process::id()) << 20;
        Self {
            socket,
            next_sync: AtomicU64::new(seed),
            turn: Mutex::new(()),
        }
    }

    /// Whether the agent answers.
    pub(crate) async fn ping(&self, deadline: Duration) -> Result<(), AgentError> {
        self.call("guest-ping", json!({}), deadline).await.map(drop)
    }

    /// Runs a program and waits for its end. At the deadline the program goes on in the guest.
    pub(crate) async fn exec(
        &self,
        request: &ExecRequest,
        deadline: Duration,
    ) -> Result<AgentOutput, AgentError> {
        let mut arguments =
            json!({ "path": request.program, "arg": request.arguments, "capture-output": true });
        if !request.environment.is_empty() {
            arguments["env"] = json!(request.environment);
        }
        if !request.input.is_empty() {
            arguments["input-data"] = json!(BASE64.encode(&request.input));
        }
        let work = async {
            let _turn = self.turn.lock().await;
            let mut session = self.open().await?;
            let started = session.call("guest-exec", arguments).await?;
            let nonsense = || AgentError::Nonsense {
                command: "guest-exec".to_owned(),
            };
            let pid = started
                .get("pid")
                .and_then(Value::as_u64)
                .ok_or_else(nonsense)?;
            let mut pause = FIRST_POLL;
            loop {
                let status = session
                    .call("guest-exec-status", json!({ "pid": pid }))
                    .await?;
                if status
                    .get("exited")
                    .and_then(Value::as_bool)
                    .ok_or_else(nonsense)?
                {
                    return exec_output(&status).ok_or_else(nonsense);
                }
                let mut tick = interval(pause);
                tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
                tick.tick().await;
                tick.tick().await;
                pause = (pause * 2).min(SLOWEST_POLL);
            }
        };
        self.within("guest-exec", deadline, work).await
    }

    /// Flushes and freezes the guest's file systems; how many. Undo with [`Agent::thaw`].
    pub(crate) async fn freeze(&self, deadline: Duration) -> Result<u64, AgentError> {
        self.count("guest-fsfreeze-freeze", deadline).await
    }

    /// Thaws the guest's file systems; how many.
    pub(crate) async fn thaw(&self, deadline: Duration) -> Result<u64, AgentError> {
        self.count("guest-fsfreeze-thaw", deadline).await
    }

    /// The guest's NICs with their addresses.
    pub(crate) async fn interfaces(
        &self,
        deadline: Duration,
    ) -> Result<Vec<Interface>, AgentError> {
        let command = "guest-network-get-interfaces";
        let answer = self.call(command, json!({}), deadline).await?;
        reply::interfaces(&answer).ok_or_else(|| AgentError::Nonsense {
            command: command.to_owned(),
        })
    }

    async fn count(&self, command: &str, deadline: Duration) -> Result<u64, AgentError> {
        let answer = self.call(command, json!({}), deadline).await?;
        answer.as_u64().ok_or_else(|| AgentError::Nonsense {
            command: command.to_owned(),
        })
    }

    async fn call(
        &self,
        command: &str,
        arguments: Value,
        deadline: Duration,
    ) -> Result<Value, AgentError> {
        let work = async {
            let _turn = self.turn.lock().await;
            self.open().await?.call(command, arguments).await
        };
        self.within(command, deadline, work).await
    }

    async fn within<T>(
        &self,
        command: &str,
        deadline: Duration,
        work: impl Future<Output = Result<T, AgentError>>,
    ) -> Result<T, AgentError> {
        let late = || AgentError::Deadline {
            command: command.to_owned(),
            after: deadline,
        };
        timeout(deadline, work).await.map_err(|_| late())?
    }

    async fn open(&self) -> Result<Session, AgentError> {
        let stream = UnixStream::connect(&self.socket)
            .await
            .map_err(AgentError::Connect)?;
        let mut session = Session {
            stream,
            decoder: LineDecoder::new(MAX_LINE),
            skipped: 0,
        };
        let number = self.next_sync.fetch_add(1, Ordering::Relaxed);
        let command = "guest-sync-delimited";
        // The leading byte makes the agent drop half a command that an earlier session left behind.
        session.send(&[0xff], command).await?;
        session
            .send(&line(command, &json!({ "id": number })), command)
            .await?;
        while session
            .receive(command)
            .await?
            .ok()
            .and_then(|value| value.as_u64())
            != Some(number)
        {}
        Ok(session)
    }
}

struct Session {
    stream: UnixStream,
    decoder: LineDecoder,
    skipped: usize,
}

impl Session {
    async fn call(&mut self, command: &str, arguments: Value) -> Result<Value, AgentError> {
        self.send(&line(command, &arguments), command).await?;
        let answer = self.receive(command).await?;
        answer.map_err(|description| AgentError::Refused {
            command: command.to_owned(),
            description,
        })
    }

    async fn send(&mut self, bytes: &[u8], command: &str) -> Result<(), AgentError> {
        let sent = self.stream.write_all(bytes).await;
        sent.map_err(|_| AgentError::Closed {
            command: command.to_owned(),
        })
    }

    /// The next answer; everything that is none is skipped.
    async fn receive(&mut self, command: &str) -> Result<Result<Value, String>, AgentError> {
        let mut chunk = vec![0; 16 << 10];
        loop {
            match self
                .decoder
                .next_line()
                .map(|line| line.ok().as_deref().and_then(reply::decode))
            {
                Some(Some(answer)) => return Ok(answer),
                Some(None) if self.skipped < MAX_SKIPPED => self.skipped += 1,
                Some(None) => {
                    return Err(AgentError::Nonsense {
                        command: command.to_owned(),
                    });
                }
                None => match self.stream.read(&mut chunk).await {
                    Ok(0) | Err(_) => {
                        return Err(AgentError::Closed {
                            command: command.to_owned(),
                        });
                    }
                    Ok(count) => self.decoder.push(&chunk[..count]),
                },
            }
        }
    }
}

fn line(command: &str, arguments: &Value) -> Vec<u8> {
    let mut bytes = json!({ "execute": command, "arguments": arguments })
        .to_string()
        .into_bytes();
    bytes.push(b'\n');
    bytes
}

/// What the agent says of a program that has ended.
pub(crate) fn exec_output(status: &Value) -> Option<AgentOutput> {
    // Windows' codes are unsigned: 0xc0000005 and the like.
    let number = |key: &str| {
        let number = status.get(key)?.as_i64()?;
        let unsigned = || u32::try_from(number).ok().map(u32::cast_signed);
        i32::try_from(number).ok().or_else(unsigned)
    };
    let stream = |key: &str| match status.get(key) {
        None => Some(Bytes::new()),
        Some(text) => BASE64.decode(text.as_str()?).ok().map(Bytes::from),
    };
    let flag = |key: &str| status.get(key).and_then(Value::as_bool).unwrap_or(false);
    Some(AgentOutput {
        exit_code: number("exitcode"),
        signal: number("signal"),
        stdout: stream("out-data")?,
        stderr: stream("err-data")?,
        stdout_truncated: flag("out-truncated"),
        stderr_truncated: flag("err-truncated"),
    })
}
