//! A libvirtd with small guests, and how both sides speak to it.

use std::time::Duration;

use futures::{StreamExt, TryStreamExt, stream};
use novacron_benches::Result;
use novacron_core::driver::{Call, DomainId, DomainSpec, Hypervisor, StopMode};
use novacron_core::model::{ClusterId, Epoch, Hardware, MiB, VmId};
use novacron_core::{Clock, SeededIds, SystemClock};
use novacron_kvm::LibvirtHypervisor;
use tokio::task::block_in_place;
use uuid::Uuid;

use crate::daemon::Daemon;

/// Long enough for fifty starts at once on two cores.
pub(crate) fn call() -> Call {
    Call::within(Duration::from_secs(300))
}

/// The libvirtd, and the hypervisor that speaks to it.
pub(crate) struct Site {
    pub(crate) hypervisor: LibvirtHypervisor,
    pub(crate) daemon: Daemon,
    cluster: ClusterId,
    ids: SeededIds,
}

impl Site {
    /// Starts it, and has it answer once.
    pub(crate) async fn up() -> Result<Self> {
        let daemon = block_in_place(Daemon::up);
        let ids = SeededIds::from_os();
        let site = Self {
            hypervisor: daemon.hypervisor(),
            daemon,
            cluster: ClusterId::generate(SystemClock.now(), &ids),
            ids,
        };
        site.hypervisor.probe(call()).await?;
        Ok(site)
    }

    /// A guest of 32 MiB without devices that a computer could do without.
    pub(crate) fn spec(&self) -> DomainSpec {
        DomainSpec {
            id: DomainId {
                cluster: self.cluster,
                vm: VmId::generate(SystemClock.now(), &self.ids),
                epoch: Epoch(1),
            },
            name: "web-1".to_owned(),
            hardware: Hardware::new(1, MiB(32)),
            disks: Vec::new(),
            nics: Vec::new(),
            nvram: None,
            generation_id: Uuid::nil(),
            tpm: None,
            seed: None,
        }
    }

    /// Defines and starts a guest; its vCPUs stay held.
    pub(crate) async fn start(&self, spec: &DomainSpec) -> Result<()> {
        self.hypervisor.define(call(), spec).await?;
        Ok(self.hypervisor.start(call(), spec.id).await?)
    }

    /// The same for many, a few at a time.
    pub(crate) async fn start_all(&self, count: usize) -> Result<Vec<DomainSpec>> {
        let specs: Vec<_> = (0..count).map(|_| self.spec()).collect();
        stream::iter(&specs)
            .map(|spec| self.start(spec))
            .buffer_unordered(4)
            .try_collect::<Vec<()>>()
            .await?;
        Ok(specs)
    }

    /// Ends and forgets a guest.
    pub(crate) async fn remove(&self, id: DomainId) -> Result<()> {
        self.hypervisor.stop(call(), id, StopMode::Kill).await?;
        Ok(self.hypervisor.undefine(call(), id).await?)
    }

    /// What a command of libvirt's prints.
    pub(crate) fn virsh(&self, arguments: &[&str]) -> Result<String> {
        let printed = block_in_place(|| self.daemon.virsh(arguments));
        Ok(printed.ok_or_else(|| format!("virsh {arguments:?} failed"))?)
    }
}
