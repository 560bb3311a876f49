//! Working in a guest over its serial console: waiting for a line, running a command and reading its answer.

use std::pin::Pin;
use std::time::Duration;

use novacron_core::cluster::VmHandle;
use novacron_core::driver::{self, Call, ConsoleStart};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::Result;

/// How much of what the guest said is kept, for the report of a failure.
const TAIL: usize = 4096;

/// A guest's serial console with a root shell on it.
pub(crate) struct Console {
    stream: Pin<Box<dyn driver::ByteStream>>,
    unread: Vec<u8>,
    tail: Vec<u8>,
    commands: u32,
}

/// What a command in the guest came to.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) code: i32,
    pub(crate) text: String,
}

/// What the guest says once it is up.
#[derive(Clone, Debug)]
pub(crate) struct Ready {
    pub(crate) hostname: String,
    pub(crate) boot_id: String,
}

impl Console {
    /// Opens the console of a running VM, from `start` on.
    pub(crate) async fn open(vm: &VmHandle, start: ConsoleStart) -> Result<Self> {
        let console = vm
            .console(Call::within(Duration::from_secs(10)), start)
            .await?;
        Ok(Self {
            stream: console.stream,
            unread: Vec::new(),
            tail: Vec::new(),
            commands: 0,
        })
    }

    /// Waits for the guest's own word that it is up and that its seed is applied.
    pub(crate) async fn ready(&mut self) -> Result<Ready> {
        self.skip_past("NOVACRON-GUEST-READY ").await?;
        let line = self.skip_past("\n").await?;
        let field = |name: &str| {
            let value = line
                .split_whitespace()
                .find_map(|word| word.strip_prefix(name));
            value
                .map(str::to_owned)
                .ok_or_else(|| format!("the ready line has no {name} {line:?}"))
        };
        Ok(Ready {
            hostname: field("hostname=")?,
            boot_id: field("boot_id=")?,
        })
    }

    /// Runs a line of shell in the guest; it must succeed. Returns what it printed.
    pub(crate) async fn run(&mut self, line: &str) -> Result<String> {
        let answer = self.try_run(line).await?;
        match answer.code {
            0 => Ok(answer.text),
            code => {
                Err(format!("in the guest, `{line}` ended with {code}: {}", answer.text).into())
            }
        }
    }

    /// Runs a line of shell in the guest.
    ///
    /// The output stands between two marks. The quotes inside keep a mark from being found in the command itself, should
    /// the terminal echo it.
    pub(crate) async fn try_run(&mut self, line: &str) -> Result<Answer> {
        self.commands += 1;
        let n = self.commands;
        let sent = format!("echo '@@''{n}<'; {{ {line}; }} 2>&1; echo '@@''{n}>'$?\n");
        self.stream.write_all(sent.as_bytes()).await?;
        self.stream.flush().await?;
        self.skip_past(&format!("@@{n}<\r\n")).await?;
        let text = self.skip_past(&format!("@@{n}>")).await?;
        let code = self.skip_past("\n").await?;
        let code = code
            .trim()
            .parse()
            .map_err(|e| format!("the guest's exit code {code:?}: {e}"))?;
        Ok(Answer {
            code,
            text: text.replace('\r', "").trim_end().to_owned(),
        })
    }

    /// The last lines that the guest wrote.
    pub(crate) fn tail(&self) -> String {
        String::from_utf8_lossy(&self.tail).replace('\r', "")
    }

    /// Reads up to and with `mark`; returns what stood before it. The step's deadline bounds the wait.
    async fn skip_past(&mut self, mark: &str) -> Result<String> {
        let mark = mark.as_bytes();
        let mut searched = 0;
        loop {
            if let Some(at) = self.unread[searched..]
                .windows(mark.len())
                .position(|w| w == mark)
            {
                let rest = self.unread.split_off(searched + at + mark.len());
                let mut before = std::mem::replace(&mut self.unread, rest);
                before.truncate(searched + at);
                return Ok(String::from_utf8_lossy(&before).into_owned());
            }
            searched = (self.unread.len() + 1).saturating_sub(mark.len());
            let mut chunk = [0; 4096];
            let n = self.stream.read(&mut chunk).await?;
            if n == 0 {
                return Err("the guest's console has ended".into());
            }
            self.unread.extend_from_slice(&chunk[..n]);
            self.tail.extend_from_slice(&chunk[..n]);
            self.tail.drain(..self.tail.len().saturating_sub(TAIL));
        }
    }
}
