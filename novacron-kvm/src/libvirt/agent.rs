//! The guest agent, through libvirt, which holds its channel and takes one command at a time.

use std::time::Duration;

use async_trait::async_trait;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use bytes::Bytes;
use novacron_core::driver::{AgentOutput, Call, DomainId, GuestAddress, GuestAgent};
use novacron_core::{Error, ErrorKind, Result};
use serde_json::{Value, json};
use tokio::time::interval;

use super::LibvirtHypervisor;
use super::error::remaining;
use super::look::Task;
use super::pool::Effect;
use crate::agent::{addresses, decode, exec_output, interfaces, program_of};

/// The wait between two questions whether a program has ended.
const FIRST_POLL: Duration = Duration::from_millis(20);
const SLOWEST_POLL: Duration = Duration::from_millis(500);

#[async_trait]
impl GuestAgent for LibvirtHypervisor {
    async fn ping(&self, call: Call, id: DomainId) -> Result<()> {
        const OPERATION: &str = "libvirt.agent_ping";
        self.ask(call, id, "guest-ping", json!({}), Effect::None, OPERATION)
            .await
            .map(drop)
    }

    async fn exec(
        &self,
        call: Call,
        id: DomainId,
        argv: &[String],
        stdin: Option<Bytes>,
    ) -> Result<AgentOutput> {
        const OPERATION: &str = "libvirt.agent_exec";
        let (program, arguments) = program_of(argv, OPERATION)?;
        let mut request = json!({ "path": program, "arg": arguments, "capture-output": true });
        if let Some(input) = stdin.filter(|input| !input.is_empty()) {
            request["input-data"] = json!(BASE64.encode(input));
        }
        let exec = "guest-exec";
        let begun = self
            .ask(call, id, exec, request, Effect::Some, OPERATION)
            .await?;
        let pid = begun.get("pid").and_then(Value::as_u64);
        let pid = pid.ok_or_else(|| nonsense(OPERATION, exec))?;
        let status = "guest-exec-status";
        let mut pause = FIRST_POLL;
        loop {
            let answer = self
                .ask(
                    call,
                    id,
                    status,
                    json!({ "pid": pid }),
                    Effect::None,
                    OPERATION,
                )
                .await
                .map_err(|error| may_run(OPERATION, &error))?;
            let exited = answer.get("exited").and_then(Value::as_bool);
            if exited.ok_or_else(|| nonsense(OPERATION, status))? {
                return exec_output(&answer).ok_or_else(|| nonsense(OPERATION, status));
            }
            let mut tick = interval(pause);
            tick.tick().await;
            tick.tick().await;
            pause = (pause * 2).min(SLOWEST_POLL);
        }
    }

    async fn freeze(&self, call: Call, id: DomainId) -> Result<u32> {
        self.count(call, id, "guest-fsfreeze-freeze", "libvirt.agent_freeze")
            .await
    }

    async fn thaw(&self, call: Call, id: DomainId) -> Result<u32> {
        self.count(call, id, "guest-fsfreeze-thaw", "libvirt.agent_thaw")
            .await
    }

    async fn addresses(&self, call: Call, id: DomainId) -> Result<Vec<GuestAddress>> {
        const OPERATION: &str = "libvirt.agent_addresses";
        let command = "guest-network-get-interfaces";
        let answer = self
            .ask(call, id, command, json!({}), Effect::None, OPERATION)
            .await?;
        let found = interfaces(&answer).ok_or_else(|| nonsense(OPERATION, command))?;
        Ok(addresses(found))
    }
}

impl LibvirtHypervisor {
    async fn ask(
        &self,
        call: Call,
        id: DomainId,
        command: &'static str,
        arguments: Value,
        effect: Effect,
        operation: &'static str,
    ) -> Result<Value> {
        let text = json!({ "execute": command, "arguments": arguments }).to_string();
        let ask = move |task: &Task| {
            let (found, _) = task.started(id)?;
            let left = remaining(call, operation)?.as_secs().clamp(1, 3600);
            let seconds = i32::try_from(left).unwrap_or(i32::MAX);
            task.ok(found.dom.agent(&text, seconds))
        };
        let answer = self.state.run(call, operation, effect, ask).await?;
        match decode(answer.as_bytes()) {
            Some(Ok(value)) => Ok(value),
            Some(Err(words)) => {
                let message = format!("the guest agent refused `{command}`: {words}");
                Err(Error::new(
                    ErrorKind::FailedPrecondition,
                    operation,
                    message,
                ))
            }
            None => Err(nonsense(operation, command)),
        }
    }

    async fn count(
        &self,
        call: Call,
        id: DomainId,
        command: &'static str,
        operation: &'static str,
    ) -> Result<u32> {
        let answer = self
            .ask(call, id, command, json!({}), Effect::Some, operation)
            .await?;
        let number = answer.as_u64().and_then(|n| u32::try_from(n).ok());
        number.ok_or_else(|| nonsense(operation, command))
    }
}

fn nonsense(operation: &'static str, command: &str) -> Error {
    let message = format!("the guest agent's answer to `{command}` makes no sense");
    Error::new(ErrorKind::Corrupt, operation, message)
}

/// A program that was begun and is not heard of any more.
fn may_run(operation: &'static str, error: &Error) -> Error {
    let message = format!("the program was begun, and may run: {}", error.message());
    Error::new(ErrorKind::OutcomeUnknown, operation, message)
}
