//! What a running guest's hypervisor is asked: by the process that looks after the node, for itself or for another one.

use async_trait::async_trait;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::driver::{
    AgentOutput, Call, ConsoleStart, ConsoleStream, DomainId, DomainStats, GuestAddress,
    GuestAgent, Hypervisor,
};
use crate::error::{Error, ErrorKind, Result};

/// One question, in the form in which it goes from process to process.
#[async_trait]
pub(crate) trait Question: Serialize + DeserializeOwned + Send + Sync {
    /// What it is called to the authorizer, and on the way.
    const VERB: &'static str;
    /// Whether it does something in the guest, so that a lost answer leaves it open whether that happened.
    #[cfg_attr(
        not(feature = "peers"),
        expect(dead_code, reason = "no answer is lost here")
    )]
    const EFFECT: bool = false;
    type Answer: Serialize + DeserializeOwned + Send;

    async fn ask(
        &self,
        hypervisor: &dyn Hypervisor,
        call: Call,
        id: DomainId,
    ) -> Result<Self::Answer>;
}

#[derive(Serialize, Deserialize)]
pub(crate) struct Stats;

#[async_trait]
impl Question for Stats {
    const VERB: &'static str = "vm.stats";
    type Answer = DomainStats;

    async fn ask(
        &self,
        hypervisor: &dyn Hypervisor,
        call: Call,
        id: DomainId,
    ) -> Result<DomainStats> {
        hypervisor.stats(call, id).await
    }
}

/// Where the console's stream begins. Its bytes follow on the same way.
#[derive(Serialize, Deserialize)]
pub(crate) struct OpenConsole(pub(crate) ConsoleStart);

impl OpenConsole {
    pub(crate) const VERB: &'static str = "vm.console";

    pub(crate) async fn open(
        &self,
        hypervisor: &dyn Hypervisor,
        call: Call,
        id: DomainId,
    ) -> Result<ConsoleStream> {
        let consoles = hypervisor
            .consoles()
            .ok_or_else(|| unsupported(Self::VERB))?;
        consoles.open(call, id, self.0).await
    }
}

#[derive(Serialize, Deserialize)]
pub(crate) struct Exec {
    pub(crate) argv: Vec<String>,
}

#[derive(Serialize, Deserialize)]
pub(crate) struct Ping;

#[derive(Serialize, Deserialize)]
pub(crate) struct Freeze;

#[derive(Serialize, Deserialize)]
pub(crate) struct Thaw;

#[derive(Serialize, Deserialize)]
pub(crate) struct Addresses;

/// Questions to the guest's agent.
macro_rules! of_the_agent {
    ($($question:ty, $verb:literal, $effect:literal, $answer:ty, |$this:ident, $agent:ident, $call:ident, $id:ident| $work:expr;)*) => {$(
        #[async_trait]
        impl Question for $question {
            const VERB: &'static str = $verb;
            const EFFECT: bool = $effect;
            type Answer = $answer;

            async fn ask(
                &self,
                hypervisor: &dyn Hypervisor,
                $call: Call,
                $id: DomainId,
            ) -> Result<$answer> {
                let $this = self;
                let $agent = agent(hypervisor, Self::VERB)?;
                $work.await
            }
        }
    )*};
}

of_the_agent! {
    Exec, "vm.exec", true, AgentOutput, |this, agent, call, id| agent.exec(call, id, &this.argv, None);
    Ping, "vm.ping", false, (), |_this, agent, call, id| agent.ping(call, id);
    Freeze, "vm.freeze", true, u32, |_this, agent, call, id| agent.freeze(call, id);
    Thaw, "vm.thaw", true, u32, |_this, agent, call, id| agent.thaw(call, id);
    Addresses, "vm.addresses", false, Vec<GuestAddress>, |_this, agent, call, id| agent.addresses(call, id);
}

fn agent<'h>(hypervisor: &'h dyn Hypervisor, verb: &'static str) -> Result<&'h dyn GuestAgent> {
    hypervisor.guest_agent().ok_or_else(|| unsupported(verb))
}

fn unsupported(verb: &'static str) -> Error {
    Error::new(
        ErrorKind::Unsupported,
        verb,
        "this node's hypervisor has no such interface",
    )
}
