//! Reaching a running guest: straight to its hypervisor, past the records; through the process that looks after its node
//! where this one does not.

use std::path::PathBuf;
use std::pin::Pin;
use std::sync::Arc;

use tokio::time::timeout_at;

use super::super::request::refuse_change_options;
use super::VmHandle;
use crate::driver::{
    AgentOutput, ByteStream, Call, ConsoleStart, ConsoleStream, DomainId, DomainStats,
    GuestAddress, Hypervisor,
};
use crate::error::{Error, ErrorKind, Problem, Result};
use crate::model::NodeId;
#[cfg(feature = "peers")]
use crate::peers::Peer;
use crate::question::{
    Addresses, Console, DumpMemory, Exec, Freeze, Nmi, Open, Ping, Question, Stats, Thaw, Vnc,
};

/// Who answers for a guest.
enum Reached {
    Here(Arc<dyn Hypervisor>),
    #[cfg(feature = "peers")]
    There(Peer),
}

impl VmHandle {
    /// The domain of the present run, and who answers for it.
    async fn reach(&self, verb: &'static str, call: Call) -> Result<(Reached, DomainId)> {
        self.inner().authorize(self.cluster.options(), verb)?;
        let view = timeout_at(call.deadline.instant(), self.get()).await;
        let view = view.map_err(|_| {
            let message = "the store did not answer in time";
            Error::new(ErrorKind::DeadlineExceeded, verb, message).with("vm", self.id)
        })??;
        let run = view.run.filter(|r| r.phase.may_run()).ok_or_else(|| {
            Error::new(
                ErrorKind::FailedPrecondition,
                verb,
                format!("the VM is {}", view.phase),
            )
            .with("vm", self.id)
        })?;
        let id = DomainId {
            cluster: self.inner().id,
            vm: self.id,
            epoch: run.epoch,
        };
        let reached = match self.inner().drivers.nodes.get(&run.node) {
            Some(hypervisor) => Reached::Here(Arc::clone(hypervisor)),
            None => self.elsewhere(verb, &run.node)?,
        };
        Ok((reached, id))
    }

    #[cfg(feature = "peers")]
    fn elsewhere(&self, verb: &'static str, node: &NodeId) -> Result<Reached> {
        let peer = self.inner().peers.of_node(verb, node, &self.inner().cache);
        peer.map(Reached::There)
    }

    #[cfg(not(feature = "peers"))]
    #[expect(clippy::unused_self, reason = "as with the feature")]
    fn elsewhere(&self, verb: &'static str, node: &NodeId) -> Result<Reached> {
        let message = "another process looks after the node, and this one was built without the feature `peers`";
        Err(Error::new(ErrorKind::Unsupported, verb, message).with("node", node))
    }

    async fn ask<Q: Question>(&self, call: Call, question: Q) -> Result<Q::Answer> {
        let (reached, id) = self.reach(Q::VERB, call).await?;
        match reached {
            Reached::Here(hypervisor) => question.ask(&*hypervisor, call, id).await,
            #[cfg(feature = "peers")]
            Reached::There(peer) => peer.ask(call, id, &question).await,
        }
    }

    /// Numbers of the running guest.
    ///
    /// # Errors
    /// [`ErrorKind::NotFound`]; [`ErrorKind::FailedPrecondition`] when it does not run; [`ErrorKind::Unsupported`] when
    /// another process looks after its node, and one of the two was not built with `Builder::peers`;
    /// [`ErrorKind::Unavailable`] when that process cannot be reached, [`ErrorKind::DeadlineExceeded`] when it does not answer
    /// in time, [`ErrorKind::PermissionDenied`] when it takes this one for lost or the two clocks are a minute apart,
    /// [`ErrorKind::Exhausted`] when it is asked more at a time than it answers.
    pub async fn stats(&self, call: Call) -> Result<DomainStats> {
        self.ask(call, Stats).await
    }

    /// The serial console, from `start` on. Offsets are of the present start of the VM: its next one counts from zero.
    ///
    /// # Errors
    /// As [`VmHandle::stats`]; [`ErrorKind::Unsupported`]; [`ErrorKind::Invalid`] for request options that make sense
    /// for a change only.
    pub async fn console(&self, call: Call, start: ConsoleStart) -> Result<ConsoleStream> {
        let (offset, stream) = self.open(call, Console(start)).await?;
        Ok(ConsoleStream { offset, stream })
    }

    /// The screen, as a connection of the RFB protocol (VNC, RFC 6143) from the server's `ProtocolVersion` on, without a
    /// password: what a viewer speaks over TCP, and noVNC over a WebSocket. Whom the host application lets in, it may hand
    /// the bytes on to.
    ///
    /// ```
    /// # use novacron_core::{cluster::VmHandle, driver::Call};
    /// # use std::time::Duration;
    /// # async fn example(vm: VmHandle, mut viewer: tokio::net::TcpStream) -> std::result::Result<(), Box<dyn std::error::Error>> {
    /// let mut screen = vm.vnc(Call::within(Duration::from_secs(10))).await?;
    /// tokio::io::copy_bidirectional(&mut viewer, &mut screen).await?;
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// As [`VmHandle::console`].
    pub async fn vnc(&self, call: Call) -> Result<Pin<Box<dyn ByteStream>>> {
        self.open(call, Vnc).await.map(|(_, stream)| stream)
    }

    async fn open<O: Open>(
        &self,
        call: Call,
        question: O,
    ) -> Result<(O::Head, Pin<Box<dyn ByteStream>>)> {
        refuse_change_options(self.cluster.options(), O::VERB)?;
        let (reached, id) = self.reach(O::VERB, call).await?;
        match reached {
            Reached::Here(hypervisor) => question.open(&*hypervisor, call, id).await,
            #[cfg(feature = "peers")]
            Reached::There(peer) => peer.open(call, id, &question).await,
        }
    }

    /// Gives the guest a non-maskable interrupt, which breaks into one that hangs: what its kernel makes of it is for it to
    /// say ([`Diagnostics::inject_nmi`](crate::driver::Diagnostics::inject_nmi)).
    ///
    /// # Errors
    /// As [`VmHandle::console`]; [`ErrorKind::OutcomeUnknown`] when the process that looks after the node was lost over it.
    pub async fn inject_nmi(&self, call: Call) -> Result<()> {
        refuse_change_options(self.cluster.options(), Nmi::VERB)?;
        self.ask(call, Nmi).await
    }

    /// Writes the guest's memory into a new file **of its node's host**, as an ELF core; the guest stands still meanwhile.
    ///
    /// # Errors
    /// As [`VmHandle::inject_nmi`]; [`ErrorKind::AlreadyExists`] for a file that is there.
    pub async fn dump_memory(&self, call: Call, file: impl Into<PathBuf>) -> Result<()> {
        refuse_change_options(self.cluster.options(), DumpMemory::VERB)?;
        let file = file.into();
        if file.to_str().is_none() || !file.is_absolute() {
            let problem = Problem {
                field: "file".into(),
                message: format!("{}; must be an absolute path in UTF-8", file.display()),
            };
            return Err(Error::invalid(DumpMemory::VERB, vec![problem]));
        }
        self.ask(call, DumpMemory { file }).await
    }

    /// Runs a program in the guest through its agent.
    ///
    /// # Errors
    /// As [`VmHandle::console`]; [`ErrorKind::Unavailable`] when no agent answers; [`ErrorKind::OutcomeUnknown`] when the
    /// process that looks after the node did not answer in time, or was lost.
    pub async fn exec(&self, call: Call, argv: &[String]) -> Result<AgentOutput> {
        refuse_change_options(self.cluster.options(), Exec::VERB)?;
        let argv = argv.to_vec();
        self.ask(call, Exec { argv }).await
    }

    /// Whether the guest's agent answers.
    ///
    /// # Errors
    /// As [`VmHandle::addresses`].
    pub async fn ping(&self, call: Call) -> Result<()> {
        self.ask(call, Ping).await
    }

    /// Freezes the guest's file systems through its agent, so that a snapshot taken now is one of whole files; how many.
    /// [`VmHandle::thaw`] undoes it: a guest that stays frozen hangs.
    ///
    /// # Errors
    /// As [`VmHandle::exec`].
    pub async fn freeze(&self, call: Call) -> Result<u32> {
        refuse_change_options(self.cluster.options(), Freeze::VERB)?;
        self.ask(call, Freeze).await
    }

    /// Thaws them; how many. None that is frozen is no error.
    ///
    /// # Errors
    /// As [`VmHandle::exec`].
    pub async fn thaw(&self, call: Call) -> Result<u32> {
        refuse_change_options(self.cluster.options(), Thaw::VERB)?;
        self.ask(call, Thaw).await
    }

    /// The guest's addresses, by its agent.
    ///
    /// # Errors
    /// As [`VmHandle::stats`]; [`ErrorKind::Unsupported`]; [`ErrorKind::Unavailable`] when no agent answers.
    pub async fn addresses(&self, call: Call) -> Result<Vec<GuestAddress>> {
        self.ask(call, Addresses).await
    }
}
