//! Reaching a running guest: straight to its hypervisor, past the records.

use std::sync::Arc;

use super::super::request::refuse_change_options;
use super::VmHandle;
use crate::driver::{
    AgentOutput, Call, ConsoleStart, ConsoleStream, DomainId, DomainStats, GuestAddress, Hypervisor,
};
use crate::error::{Error, ErrorKind, Result};

impl VmHandle {
    /// The hypervisor and the domain of the present run.
    async fn domain(&self, verb: &'static str) -> Result<(Arc<dyn Hypervisor>, DomainId)> {
        self.inner().authorize(self.cluster.options(), verb)?;
        let view = self.get().await?;
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
        Ok((Arc::clone(self.inner().drivers.node(&run.node)?), id))
    }

    /// Numbers of the running guest.
    ///
    /// # Errors
    /// [`ErrorKind::NotFound`]; [`ErrorKind::FailedPrecondition`] when it does not run.
    pub async fn stats(&self, call: Call) -> Result<DomainStats> {
        let (hypervisor, id) = self.domain("vm.stats").await?;
        hypervisor.stats(call, id).await
    }

    /// The serial console, from `start` on. Offsets are of the present start of the VM: its next one counts from zero.
    ///
    /// # Errors
    /// As [`VmHandle::stats`]; [`ErrorKind::Unsupported`]; [`ErrorKind::Invalid`] for request options that make sense
    /// for a change only.
    pub async fn console(&self, call: Call, start: ConsoleStart) -> Result<ConsoleStream> {
        refuse_change_options(self.cluster.options(), "vm.console")?;
        let (hypervisor, id) = self.domain("vm.console").await?;
        hypervisor
            .consoles()
            .ok_or_else(|| unsupported("vm.console"))?
            .open(call, id, start)
            .await
    }

    /// Runs a program in the guest through its agent.
    ///
    /// # Errors
    /// As [`VmHandle::console`]; [`ErrorKind::Unavailable`] when no agent answers.
    pub async fn exec(&self, call: Call, argv: &[String]) -> Result<AgentOutput> {
        refuse_change_options(self.cluster.options(), "vm.exec")?;
        let (hypervisor, id) = self.domain("vm.exec").await?;
        hypervisor
            .guest_agent()
            .ok_or_else(|| unsupported("vm.exec"))?
            .exec(call, id, argv, None)
            .await
    }

    /// Whether the guest's agent answers.
    ///
    /// # Errors
    /// As [`VmHandle::addresses`].
    pub async fn ping(&self, call: Call) -> Result<()> {
        let (hypervisor, id) = self.domain("vm.ping").await?;
        let agent = hypervisor.guest_agent();
        agent
            .ok_or_else(|| unsupported("vm.ping"))?
            .ping(call, id)
            .await
    }

    /// Freezes the guest's file systems through its agent, so that a snapshot taken now is one of whole files; how many.
    /// [`VmHandle::thaw`] undoes it: a guest that stays frozen hangs.
    ///
    /// # Errors
    /// As [`VmHandle::exec`].
    pub async fn freeze(&self, call: Call) -> Result<u32> {
        refuse_change_options(self.cluster.options(), "vm.freeze")?;
        let (hypervisor, id) = self.domain("vm.freeze").await?;
        let agent = hypervisor.guest_agent();
        agent
            .ok_or_else(|| unsupported("vm.freeze"))?
            .freeze(call, id)
            .await
    }

    /// Thaws them; how many. None that is frozen is no error.
    ///
    /// # Errors
    /// As [`VmHandle::exec`].
    pub async fn thaw(&self, call: Call) -> Result<u32> {
        refuse_change_options(self.cluster.options(), "vm.thaw")?;
        let (hypervisor, id) = self.domain("vm.thaw").await?;
        let agent = hypervisor.guest_agent();
        agent
            .ok_or_else(|| unsupported("vm.thaw"))?
            .thaw(call, id)
            .await
    }

    /// The guest's addresses, by its agent.
    ///
    /// # Errors
    /// As [`VmHandle::stats`]; [`ErrorKind::Unsupported`]; [`ErrorKind::Unavailable`] when no agent answers.
    pub async fn addresses(&self, call: Call) -> Result<Vec<GuestAddress>> {
        let (hypervisor, id) = self.domain("vm.addresses").await?;
        hypervisor
            .guest_agent()
            .ok_or_else(|| unsupported("vm.addresses"))?
            .addresses(call, id)
            .await
    }
}

fn unsupported(verb: &'static str) -> Error {
    Error::new(
        ErrorKind::Unsupported,
        verb,
        "this node's hypervisor has no such interface",
    )
}
