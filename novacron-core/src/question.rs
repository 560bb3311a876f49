//! What a running guest's hypervisor is asked: by the process that looks after the node, for itself or for another one.

use std::path::PathBuf;
use std::pin::Pin;

use async_trait::async_trait;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::driver::{
    AgentOutput, ByteStream, Call, ConsoleStart, Diagnostics, DomainId, DomainStats, GuestAddress,
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

/// A question whose answer goes on as a stream of bytes, both ways.
#[async_trait]
pub(crate) trait Open: Serialize + DeserializeOwned + Send + Sync {
    const VERB: &'static str;
    /// Whether the stream is over when who asked ends its side of it. A console has no such end: its output goes on.
    #[cfg_attr(
        not(feature = "peers"),
        expect(dead_code, reason = "the driver's own stream knows")
    )]
    const ENDS_WITH_INPUT: bool;
    /// What is said before the bytes.
    type Head: Serialize + DeserializeOwned + Send;

    async fn open(
        &self,
        hypervisor: &dyn Hypervisor,
        call: Call,
        id: DomainId,
    ) -> Result<(Self::Head, Pin<Box<dyn ByteStream>>)>;
}

#[derive(Serialize, Deserialize)]
pub(crate) struct Console(pub(crate) ConsoleStart);

#[async_trait]
impl Open for Console {
    const VERB: &'static str = "vm.console";
    const ENDS_WITH_INPUT: bool = false;
    /// The offset of the first byte.
    type Head = u64;

    async fn open(
        &self,
        hypervisor: &dyn Hypervisor,
        call: Call,
        id: DomainId,
    ) -> Result<(u64, Pin<Box<dyn ByteStream>>)> {
        let consoles = hypervisor
            .consoles()
            .ok_or_else(|| unsupported(Self::VERB))?;
        let console = consoles.open(call, id, self.0).await?;
        Ok((console.offset, console.stream))
    }
}

#[derive(Serialize, Deserialize)]
pub(crate) struct Vnc;

#[async_trait]
impl Open for Vnc {
    const VERB: &'static str = "vm.vnc";
    const ENDS_WITH_INPUT: bool = true;
    type Head = ();

    async fn open(
        &self,
        hypervisor: &dyn Hypervisor,
        call: Call,
        id: DomainId,
    ) -> Result<((), Pin<Box<dyn ByteStream>>)> {
        let screens = hypervisor
            .screens()
            .ok_or_else(|| unsupported(Self::VERB))?;
        Ok(((), screens.vnc(call, id).await?))
    }
}

#[derive(Serialize, Deserialize)]
pub(crate) struct Exec {
    pub(crate) argv: Vec<String>,
}

#[derive(Serialize, Deserialize)]
pub(crate) struct Nmi;

#[async_trait]
impl Question for Nmi {
    const VERB: &'static str = "vm.inject_nmi";
    const EFFECT: bool = true;
    type Answer = ();

    async fn ask(&self, hypervisor: &dyn Hypervisor, call: Call, id: DomainId) -> Result<()> {
        let diagnostics = diagnostics(hypervisor, Self::VERB)?;
        diagnostics.inject_nmi(call, id).await
    }
}

#[derive(Serialize, Deserialize)]
pub(crate) struct DumpMemory {
    pub(crate) file: PathBuf,
}

#[async_trait]
impl Question for DumpMemory {
    const VERB: &'static str = "vm.dump_memory";
    const EFFECT: bool = true;
    type Answer = ();

    async fn ask(&self, hypervisor: &dyn Hypervisor, call: Call, id: DomainId) -> Result<()> {
        let diagnostics = diagnostics(hypervisor, Self::VERB)?;
        diagnostics.dump_memory(call, id, &self.file).await
    }
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

fn diagnostics<'h>(
    hypervisor: &'h dyn Hypervisor,
    verb: &'static str,
) -> Result<&'h dyn Diagnostics> {
    hypervisor.diagnostics().ok_or_else(|| unsupported(verb))
}

fn unsupported(verb: &'static str) -> Error {
    Error::new(
        ErrorKind::Unsupported,
        verb,
        "this node's hypervisor has no such interface",
    )
}
