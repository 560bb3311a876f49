//! The trait, call by call.

use std::collections::HashMap;

use async_trait::async_trait;
use futures::stream::BoxStream;
use novacron_core::driver::{
    Call, Consoles, Diagnostics, DiskPivot, Domain, DomainId, DomainOwner, DomainSpec, DomainState,
    DomainStats, GuestAgent, HotPlug, Hypervisor, HypervisorEvent, Screens, StopMode, StopReport,
};
use novacron_core::model::{Capability, DiskBus, Firmware, HostInfo, MiB, NodeCapabilities};
use novacron_core::{Error, ErrorKind, Result};

use super::describe::{kind_of, named, uuid_of};
use super::error::remaining;
use super::host::{GuestFacts, version};
use super::look::Task;
use super::pool::Effect;
use super::state::Right;
use super::sys::{Stats, code};
use super::{LibvirtHypervisor, life, stats, uri};
use crate::accel::Accel;
use crate::events::pushed;
use crate::firmware::Ovmf;
use crate::privilege;
use crate::process::boot_id;
use crate::qemu::huge_pages;

/// What a host is said to have booted as when libvirt alone reaches it. It never changes, so nothing is ever concluded
/// from it; above all not that the host has booted since.
const UNKNOWN_BOOT: &str = "not told by libvirt";

#[async_trait]
impl Hypervisor for LibvirtHypervisor {
    /// The boot id is the host's only if the URI leads to this one; libvirt does not tell another's. Then it is a word
    /// that never changes: a reboot proves nothing there, and the domains' own states say that they have ended.
    async fn probe(&self, call: Call) -> Result<HostInfo> {
        const OPERATION: &str = "libvirt.probe";
        remaining(call, OPERATION)?;
        self.state.run(call, OPERATION, Effect::None, probe).await
    }

    async fn list(&self, call: Call) -> Result<Vec<Domain>> {
        const OPERATION: &str = "libvirt.list";
        remaining(call, OPERATION)?;
        self.state.settled(call, OPERATION).await?;
        self.state.run(call, OPERATION, Effect::None, list).await
    }

    async fn inspect(&self, call: Call, id: DomainId) -> Result<Option<Domain>> {
        const OPERATION: &str = "libvirt.inspect";
        remaining(call, OPERATION)?;
        let inspect = move |task: &Task| match task.look(id)? {
            Some((found, seen)) => task.domain(&found, seen).map(Some),
            None => Ok(None),
        };
        self.state.run(call, OPERATION, Effect::None, inspect).await
    }

    async fn define(&self, call: Call, spec: &DomainSpec) -> Result<()> {
        const OPERATION: &str = "libvirt.define";
        let spec = spec.clone();
        let (id, define) = (spec.id, move |task: &Task| life::define(task, &spec));
        self.state
            .change(call, id, Right::Life, OPERATION, define)
            .await
    }

    async fn start(&self, call: Call, id: DomainId) -> Result<()> {
        let start = move |task: &Task| life::start(task, id);
        self.state
            .change(call, id, Right::Life, "libvirt.start", start)
            .await
    }

    async fn resume(&self, call: Call, id: DomainId) -> Result<()> {
        let resume = move |task: &Task| life::resume(task, id);
        self.state
            .change(call, id, Right::Life, "libvirt.resume", resume)
            .await
    }

    async fn pause(&self, call: Call, id: DomainId) -> Result<()> {
        let pause = move |task: &Task| life::pause(task, id);
        self.state
            .change(call, id, Right::Life, "libvirt.pause", pause)
            .await
    }

    async fn stop(&self, call: Call, id: DomainId, mode: StopMode) -> Result<StopReport> {
        let stop = move |task: &Task| match mode {
            StopMode::Shutdown => life::shut_down(task, id),
            StopMode::Kill => life::kill(task, id),
        };
        self.state
            .change(call, id, Right::Life, "libvirt.stop", stop)
            .await
    }

    async fn reset(&self, call: Call, id: DomainId) -> Result<()> {
        let reset = move |task: &Task| life::reset(task, id);
        self.state
            .change(call, id, Right::Life, "libvirt.reset", reset)
            .await
    }

    async fn undefine(&self, call: Call, id: DomainId) -> Result<()> {
        let undefine = move |task: &Task| life::undefine(task, id);
        self.state
            .change(call, id, Right::Life, "libvirt.undefine", undefine)
            .await
    }

    async fn stats(&self, call: Call, id: DomainId) -> Result<DomainStats> {
        const OPERATION: &str = "libvirt.stats";
        remaining(call, OPERATION)?;
        let read = move |task: &Task| stats::read(task, id);
        self.state.run(call, OPERATION, Effect::None, read).await
    }

    /// A lost connection ends the stream, too: what happened meanwhile is not told.
    fn events(&self) -> BoxStream<'static, HypervisorEvent> {
        pushed(self.state.subscribe())
    }

    fn hot_plug(&self) -> Option<&dyn HotPlug> {
        Some(self)
    }

    fn consoles(&self) -> Option<&dyn Consoles> {
        self.state.config.folder.is_some().then_some(self as _)
    }

    fn screens(&self) -> Option<&dyn Screens> {
        uri::is_local(&self.state.config.uri).then_some(self as _)
    }

    fn diagnostics(&self) -> Option<&dyn Diagnostics> {
        Some(self)
    }

    fn guest_agent(&self) -> Option<&dyn GuestAgent> {
        Some(self)
    }

    fn disk_pivot(&self) -> Option<&dyn DiskPivot> {
        Some(self)
    }
}

fn probe(task: &Task) -> Result<HostInfo> {
    let config = &task.state.config;
    let facts = &task.live.facts;
    let local = uri::is_local(&config.uri);
    let host = config.host.or_else(|| facts.capabilities.host());
    let host = host.ok_or_else(|| {
        let message = "libvirt does not know the host's UUID: give the hypervisor a host id";
        Error::new(ErrorKind::FailedPrecondition, task.operation, message)
    })?;
    let boot_id = if local {
        boot_id().map_err(|error| {
            let message = "this host's boot id cannot be read";
            Error::new(ErrorKind::Internal, task.operation, message).caused_by(error)
        })?
    } else {
        UNKNOWN_BOOT.to_owned()
    };
    // A host whose QEMU cannot be asked, while it is replaced, still has guests to look after.
    let guests = guests(task).unwrap_or_else(|error| {
        tracing::debug!(%error, "libvirt does not tell what guests can be given");
        GuestFacts::default()
    });
    let capabilities = capabilities(task, guests)?;
    Ok(HostInfo {
        host,
        boot_id,
        capabilities,
    })
}

/// What its guests can be given, asked once per connection.
pub(super) fn guests(task: &Task) -> Result<GuestFacts> {
    let facts = &task.live.facts;
    if facts.driver != "QEMU" {
        return Ok(GuestFacts::default());
    }
    let known = &task.live.guests;
    if let Some(guests) = known.get() {
        return Ok(guests.clone());
    }
    let (arch, kind) = (facts.capabilities.arch(), kind_of(life::accel(task)?));
    let asked = task.ok(GuestFacts::of(&task.conn, arch, kind))?;
    Ok(known.get_or_init(|| asked).clone())
}

/// What the host can do now.
pub(super) fn capabilities(task: &Task, guests: GuestFacts) -> Result<NodeCapabilities> {
    let facts = &task.live.facts;
    let accel = life::accel(task)?;
    let is_qemu = facts.driver == "QEMU";
    let arch = facts.capabilities.arch().to_owned();
    // A session's libvirt makes no taps but by a helper, which it does not tell of.
    let is_local = uri::is_local(&task.state.config.uri);
    let may_raise = !is_local || privilege::is_within_bounds(privilege::SYS_RESOURCE);
    // The variables are put there by this process.
    let has_firmware = |firmware| {
        let folder = &task.state.config.folder;
        is_qemu && folder.is_some() && Ovmf::find(firmware).is_some()
    };
    let is_system = !task.state.config.uri.contains("/session");
    let can = [
        (Capability::Uefi, has_firmware(Firmware::Uefi)),
        (
            Capability::SecureBoot,
            has_firmware(Firmware::UefiSecureBoot),
        ),
        (Capability::Bridge, is_qemu && is_system),
        (Capability::UserNetwork, is_qemu),
        (Capability::HotPlug, is_qemu),
        (Capability::LiveSnapshot, is_qemu),
        (Capability::ScsiDisks, guests.domain.disk_bus(DiskBus::Scsi)),
        (Capability::SataDisks, guests.domain.disk_bus(DiskBus::Sata)),
        // libvirt 11.5 has a bus for them, which was never tried.
        (Capability::NvmeDisks, false),
        (Capability::DiskLimits, is_qemu),
        // Of another host it is not known.
        (
            Capability::IoUring,
            is_qemu && is_local && privilege::may_use_io_uring(),
        ),
        (Capability::IoThreads, is_qemu),
        (
            Capability::HyperV,
            is_qemu && arch == "x86_64" && accel == Accel::Kvm,
        ),
        (Capability::E1000eNics, is_qemu && arch == "x86_64"),
        (Capability::NicLimits, is_qemu && is_system),
        // Of another host it is not known what it has set aside.
        (
            Capability::HugePages,
            is_qemu && is_local && huge_pages() > 0,
        ),
        // libvirtd raises a limit for it.
        (Capability::LockedMemory, is_qemu && is_system && may_raise),
        (Capability::SharedMemory, is_qemu),
        (Capability::Tablet, is_qemu),
        (Capability::Watchdog, is_qemu),
        // By a swtpm of this process's: libvirt's own keep their state out of the VM's volumes.
        (
            Capability::Tpm,
            task.state.config.folder.is_some()
                && guests.domain.tpm_backend("external")
                && task.state.swtpm.find(task.operation).is_ok(),
        ),
    ];
    let (hypervisor, library) = facts.versions;
    Ok(NodeCapabilities {
        hypervisor: format!(
            "{} {} (libvirt {})",
            facts.driver,
            version(hypervisor),
            version(library)
        ),
        arch,
        acceleration: if is_qemu {
            accel.to_string()
        } else {
            facts.driver.to_lowercase()
        },
        cpus: facts.cpus,
        memory: MiB(facts.memory_kib / 1024),
        max_vcpus: guests.domain.max_vcpus(),
        cpu_models: guests.cpus.models,
        cpu_features: guests.cpus.features,
        can: Capability::those(can),
    })
}

fn list(task: &Task) -> Result<Vec<Domain>> {
    let (mut listed, mut ours) = (Vec::new(), Vec::new());
    for dom in task.ok(task.conn.domains())? {
        let name = task.ok(dom.name())?;
        // Ours are asked for their states together, after all of their notes.
        let state = match named(&name) {
            Some(_) => code::VIR_DOMAIN_NOSTATE,
            None => match task.state_of(&dom)? {
                Some(state) => state.state,
                None => continue,
            },
        };
        match task.found(dom)? {
            Some(found) => ours.push(found),
            None => listed.push(foreign(name, state)),
        }
    }
    let starting = task.state.starting();
    // A driver that cannot tell them together is asked for each.
    let states = Stats::states(ours.iter().map(|found| &found.dom)).unwrap_or_default();
    let states: HashMap<_, _> = states.into_iter().collect();
    for found in ours {
        let state = match states.get(&uuid_of(found.id)) {
            Some(state) => Some(*state),
            None => task.state_of(&found.dom)?,
        };
        let Some(state) = state else { continue };
        let seen = task.seen(&found, &starting, state)?;
        listed.push(task.domain(&found, seen)?);
    }
    Ok(listed)
}

/// Somebody else's domain.
fn foreign(name: String, state: u32) -> Domain {
    let state = match state {
        code::VIR_DOMAIN_RUNNING => DomainState::Running,
        code::VIR_DOMAIN_PAUSED => DomainState::Paused,
        code::VIR_DOMAIN_SHUTOFF => DomainState::Unknown("it is shut off".to_owned()),
        other => DomainState::Unknown(format!("libvirt's state {other}")),
    };
    Domain {
        owner: DomainOwner::Foreign(name),
        state,
        disks: Vec::new(),
        nics: Vec::new(),
    }
}
