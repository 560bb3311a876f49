//! Breaking into a guest, and its memory as a file.

use std::io;
use std::path::Path;
use std::time::Duration;

use async_trait::async_trait;
use novacron_core::driver::{Call, Diagnostics, DomainId};
use novacron_core::{Error, ErrorKind, Result};
use serde_json::{Value, json};
use tokio::fs;
use tokio::time::interval;

use super::QemuHypervisor;
use super::monitor::Monitor;

/// Between two questions whether a dump has ended.
const POLL: Duration = Duration::from_millis(50);

#[async_trait]
impl Diagnostics for QemuHypervisor {
    async fn inject_nmi(&self, call: Call, id: DomainId) -> Result<()> {
        const OPERATION: &str = "qemu.inject_nmi";
        let (live, _) = self.state.live(call, id, OPERATION).await?;
        let monitor = live.monitor(call, OPERATION);
        monitor.tell("inject-nmi", json!({})).await
    }

    async fn dump_memory(&self, call: Call, id: DomainId, file: &Path) -> Result<()> {
        const OPERATION: &str = "qemu.dump_memory";
        let turn = self.state.turn(call, id, OPERATION).await?;
        let failed = |kind, e: io::Error| {
            let message = "the file of the dump cannot be made";
            let error = Error::new(kind, OPERATION, message);
            error.with("path", file.display()).caused_by(e)
        };
        let path = file.to_str().ok_or_else(|| {
            failed(
                ErrorKind::Invalid,
                io::Error::other("its path is not UTF-8"),
            )
        })?;
        // QEMU would write over what is there.
        let mut options = fs::OpenOptions::new();
        let made = options.write(true).create_new(true).mode(0o600).open(file);
        made.await.map_err(|e| match e.kind() {
            io::ErrorKind::AlreadyExists => failed(ErrorKind::AlreadyExists, e),
            io::ErrorKind::PermissionDenied => failed(ErrorKind::PermissionDenied, e),
            _ => failed(ErrorKind::FailedPrecondition, e),
        })?;
        let dumped = dump(turn.monitor(), path).await;
        if let Err(error) = &dumped
            && error.kind() != ErrorKind::OutcomeUnknown
        {
            // What was written of it is of no use.
            let _ = fs::remove_file(file).await;
        }
        dumped
    }
}

async fn dump(monitor: Monitor<'_>, path: &str) -> Result<()> {
    let request = json!({ "paging": false, "protocol": format!("file:{path}"), "detach": true });
    monitor.tell("dump-guest-memory", request).await?;
    let mut polls = interval(POLL);
    loop {
        polls.tick().await;
        let answer = asked(monitor, "query-dump").await?;
        match answer.get("status").and_then(Value::as_str) {
            Some("active") => {}
            // QEMU says so before it lets the vCPUs run again.
            Some("completed") if held(monitor).await? => {}
            Some("completed") => return Ok(()),
            _ => {
                let message = "QEMU could not write the dump: is there room for it?";
                let error = Error::new(ErrorKind::FailedPrecondition, monitor.operation, message);
                return Err(error.with("path", path));
            }
        }
    }
}

/// Whether the vCPUs are held for the dump.
async fn held(monitor: Monitor<'_>) -> Result<bool> {
    let answer = asked(monitor, "query-status").await?;
    Ok(answer.get("status").and_then(Value::as_str) == Some("save-vm"))
}

async fn asked(monitor: Monitor<'_>, command: &str) -> Result<Value> {
    monitor.ask(command, json!({})).await.map_err(|e| {
        let message = "the dump is under way, and its end was not seen";
        Error::new(ErrorKind::OutcomeUnknown, monitor.operation, message).caused_by(e)
    })
}
