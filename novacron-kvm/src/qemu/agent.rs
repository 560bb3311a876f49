//! The guest agent, call by call.

use async_trait::async_trait;
use bytes::Bytes;
use novacron_core::driver::{AgentOutput, Call, DomainId, GuestAddress, GuestAgent};
use novacron_core::{Error, ErrorKind, Result};

use super::{QemuHypervisor, error};
use crate::agent::{ExecRequest, addresses, program_of};

#[async_trait]
impl GuestAgent for QemuHypervisor {
    async fn ping(&self, call: Call, id: DomainId) -> Result<()> {
        const OPERATION: &str = "qemu.agent_ping";
        let (live, _) = self.state.live(call, id, OPERATION).await?;
        let answer = live.agent.ping(error::remaining(call, OPERATION)?).await;
        answer.map_err(|e| error::agent(OPERATION, e, false))
    }

    async fn exec(
        &self,
        call: Call,
        id: DomainId,
        argv: &[String],
        stdin: Option<Bytes>,
    ) -> Result<AgentOutput> {
        const OPERATION: &str = "qemu.agent_exec";
        let (program, arguments) = program_of(argv, OPERATION)?;
        let (live, _) = self.state.live(call, id, OPERATION).await?;
        let request = ExecRequest {
            program: program.clone(),
            arguments: arguments.to_vec(),
            environment: Vec::new(),
            input: stdin.unwrap_or_default(),
        };
        let answer = live
            .agent
            .exec(&request, error::remaining(call, OPERATION)?)
            .await;
        answer.map_err(|e| error::agent(OPERATION, e, true))
    }

    async fn freeze(&self, call: Call, id: DomainId) -> Result<u32> {
        const OPERATION: &str = "qemu.agent_freeze";
        let (live, _) = self.state.live(call, id, OPERATION).await?;
        let answer = live.agent.freeze(error::remaining(call, OPERATION)?).await;
        count(
            OPERATION,
            answer.map_err(|e| error::agent(OPERATION, e, true))?,
        )
    }

    async fn thaw(&self, call: Call, id: DomainId) -> Result<u32> {
        const OPERATION: &str = "qemu.agent_thaw";
        let (live, _) = self.state.live(call, id, OPERATION).await?;
        let answer = live.agent.thaw(error::remaining(call, OPERATION)?).await;
        count(
            OPERATION,
            answer.map_err(|e| error::agent(OPERATION, e, true))?,
        )
    }

    async fn addresses(&self, call: Call, id: DomainId) -> Result<Vec<GuestAddress>> {
        const OPERATION: &str = "qemu.agent_addresses";
        let (live, _) = self.state.live(call, id, OPERATION).await?;
        let answer = live
            .agent
            .interfaces(error::remaining(call, OPERATION)?)
            .await;
        let interfaces = answer.map_err(|e| error::agent(OPERATION, e, false))?;
        Ok(addresses(interfaces))
    }
}

fn count(operation: &'static str, number: u64) -> Result<u32> {
    u32::try_from(number).map_err(|_| {
        Error::new(
            ErrorKind::Corrupt,
            operation,
            format!("the agent counts {number} file systems"),
        )
    })
}
