//! The guest agent, call by call.

use async_trait::async_trait;
use bytes::Bytes;
use novacron_core::driver::{AgentOutput, Call, DomainId, GuestAddress, GuestAgent};
use novacron_core::{Error, ErrorKind, Problem, Result};

use super::{QemuHypervisor, error};
use crate::agent::ExecRequest;

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
        let Some((program, arguments)) = argv.split_first() else {
            let problem = Problem {
                field: "argv".into(),
                message: "names no program".into(),
            };
            return Err(Error::invalid(OPERATION, vec![problem]));
        };
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
        let flat = interfaces.into_iter().flat_map(|nic| {
            let mac = nic.mac.and_then(|mac| mac.parse().ok());
            nic.addresses
                .into_iter()
                .map(move |(address, prefix)| GuestAddress {
                    interface: nic.name.clone(),
                    mac,
                    address,
                    prefix,
                })
        });
        Ok(flat.collect())
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
