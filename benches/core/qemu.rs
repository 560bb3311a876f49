//! A QEMU started by hand, and its monitor spoken to by hand.

use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};

use crate::Result;

/// How often a file or socket is looked at while it is waited for.
const LOOK: Duration = Duration::from_millis(2);
/// Longer than any guest boots in software here.
pub(crate) const BOOT: Duration = Duration::from_secs(120);

/// A process that ends with its value.
#[derive(Debug)]
pub(crate) struct Guest(Child);

impl Guest {
    pub(crate) fn spawn(command: &mut Command) -> Result<Self> {
        let spawned = command.stdin(Stdio::null()).stdout(Stdio::null()).spawn();
        Ok(Self(spawned.map_err(|e| format!("{command:?}: {e}"))?))
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A session with a QEMU's monitor.
#[derive(Debug)]
pub(crate) struct Monitor {
    lines: tokio::io::Lines<BufReader<OwnedReadHalf>>,
    writer: OwnedWriteHalf,
}

impl Monitor {
    /// Connects as soon as the socket is there, and returns when QEMU has greeted.
    pub(crate) async fn connect(socket: &Path) -> Result<Self> {
        let mut tick = tokio::time::interval(LOOK);
        let stream = tokio::time::timeout(BOOT, async {
            loop {
                match UnixStream::connect(socket).await {
                    Ok(stream) => return stream,
                    Err(_) => tick.tick().await,
                };
            }
        });
        let (reader, writer) = stream.await?.into_split();
        let mut monitor = Self {
            lines: BufReader::new(reader).lines(),
            writer,
        };
        let greeting = monitor.line().await?;
        if !greeting.contains("\"QMP\"") {
            return Err(format!("no greeting: {greeting}").into());
        }
        monitor.execute("qmp_capabilities").await?;
        Ok(monitor)
    }

    pub(crate) async fn execute(&mut self, command: &str) -> Result<()> {
        let line = format!("{{\"execute\":\"{command}\"}}\n");
        self.writer.write_all(line.as_bytes()).await?;
        loop {
            let answer = self.line().await?;
            if answer.starts_with("{\"return\"") {
                return Ok(());
            }
            if answer.starts_with("{\"error\"") {
                return Err(format!("{command}: {answer}").into());
            }
        }
    }

    async fn line(&mut self) -> Result<String> {
        Ok(self
            .lines
            .next_line()
            .await?
            .ok_or("QEMU closed its monitor")?)
    }
}

/// Waits until a file holds `words`; looked at the same way whoever writes it.
pub(crate) async fn wait_for(file: &Path, words: &str) -> Result<()> {
    let mut tick = tokio::time::interval(LOOK);
    let look = async {
        while !std::fs::read(file).is_ok_and(|t| contains(&t, words.as_bytes())) {
            tick.tick().await;
        }
    };
    tokio::time::timeout(BOOT, look)
        .await
        .map_err(|_| format!("no {words:?} in {}", file.display()).into())
}

fn contains(text: &[u8], words: &[u8]) -> bool {
    text.windows(words.len()).any(|w| w == words)
}
