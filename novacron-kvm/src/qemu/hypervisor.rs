//! The trait, call by call.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use futures::StreamExt;
use futures::stream::{self, BoxStream};
use novacron_core::driver::{
    Call, Consoles, Diagnostics, DiskPivot, Domain, DomainId, DomainOwner, DomainSpec, DomainState,
    DomainStats, GuestAgent, GuestEvent, HotPlug, Hypervisor, HypervisorEvent, Screens, StopMode,
    StopReport,
};
use novacron_core::model::{HostInfo, PortId, VolumeId};
use novacron_core::{Error, ErrorKind, Result};
use serde_json::json;
use tokio::time::timeout;

use super::live::{ASKED, quit};
use super::spec::StoredSpec;
use super::start::blocking;
use super::state::{Seen, Stranger, exit};
use super::{QemuHypervisor, error, start, stats};
use crate::events::pushed;
use crate::process::{EndCause, Found, ProcessError, boot_id};
use crate::tpm;

/// Domains that `list` looks at side by side.
const LOOKS: usize = 16;
/// How much longer than its deadline a start is waited for: time enough for it to say that nothing happened.
const GRACE: Duration = Duration::from_millis(200);

#[async_trait]
impl Hypervisor for QemuHypervisor {
    async fn probe(&self, call: Call) -> Result<HostInfo> {
        const OPERATION: &str = "qemu.probe";
        error::remaining(call, OPERATION)?;
        self.state.fits(OPERATION)?;
        self.state.own(OPERATION)?;
        let host = self.state.host(OPERATION)?;
        let unreadable = ProcessError::io("read", "/proc/sys/kernel/random/boot_id".as_ref());
        let boot_id = boot_id().map_err(|e| error::process(OPERATION, unreadable(e)))?;
        let capabilities = self.state.capabilities(OPERATION).await?;
        Ok(HostInfo {
            host,
            boot_id,
            capabilities,
        })
    }

    async fn list(&self, call: Call) -> Result<Vec<Domain>> {
        const OPERATION: &str = "qemu.list";
        error::remaining(call, OPERATION)?;
        let (ids, strangers) = self.state.found(OPERATION)?;
        let looks = ids.into_iter().map(|id| self.inspect(call, id));
        let seen: Vec<_> = stream::iter(looks).buffered(LOOKS).collect().await;
        let strangers = strangers.into_iter().map(|Stranger { vm, holder }| {
            let state = format!("process {} runs, and its spec cannot be read", holder.pid);
            Ok(Domain {
                owner: DomainOwner::Foreign(format!("{vm}.{}", holder.epoch)),
                state: DomainState::Unknown(state),
                disks: Vec::new(),
                nics: Vec::new(),
            })
        });
        let ours = seen.into_iter().filter_map(Result::transpose);
        ours.chain(strangers).collect()
    }

    async fn inspect(&self, call: Call, id: DomainId) -> Result<Option<Domain>> {
        const OPERATION: &str = "qemu.inspect";
        let domain = |state, (disks, nics)| Domain {
            owner: DomainOwner::NovaCron(id),
            state,
            disks,
            nics,
        };
        let nothing = (Vec::new(), Vec::new());
        Ok(Some(
            match self.state.observe(call, id, OPERATION).await? {
                Seen::Absent => return Ok(None),
                Seen::Defined(spec) => {
                    let disks = spec.disks.iter().map(|disk| disk.volume).collect();
                    domain(
                        DomainState::Defined,
                        (disks, spec.nics.iter().map(|nic| nic.port).collect()),
                    )
                }
                Seen::Live(live, status) => {
                    let attached = live.monitor(call, OPERATION).attached().await;
                    match attached {
                        Ok((mut disks, nics)) => {
                            disks.retain(|disk| !live.is_inserting(*disk).unwrap_or(false));
                            let attached = self.in_order(id, (disks, nics))?;
                            domain(status.domain_state(), attached)
                        }
                        Err(error) => {
                            domain(DomainState::Unknown(error.message().to_owned()), nothing)
                        }
                    }
                }
                Seen::Ended(end) => domain(DomainState::Ended(exit(&end)), nothing),
                Seen::Unknown(reason) => domain(DomainState::Unknown(reason), nothing),
            },
        ))
    }

    async fn define(&self, call: Call, spec: &DomainSpec) -> Result<()> {
        start::define(&self.state, call, spec).await
    }

    async fn start(&self, call: Call, id: DomainId) -> Result<()> {
        let unknown = |message| {
            Error::new(ErrorKind::OutcomeUnknown, "qemu.start", message).with("domain", id)
        };
        // The start goes on when its caller leaves or is late: a QEMU that was begun is seen through.
        let starting = tokio::spawn(start::start(Arc::clone(&self.state), call, id));
        let late = error::remaining(call, "qemu.start")? + GRACE;
        let started = timeout(late, starting)
            .await
            .map_err(|_| unknown("QEMU is still coming up"))?;
        started.unwrap_or_else(|error| Err(unknown("the start was cut off").caused_by(error)))
    }

    async fn resume(&self, call: Call, id: DomainId) -> Result<()> {
        const OPERATION: &str = "qemu.resume";
        let (live, _) = self.state.live(call, id, OPERATION).await?;
        start::prepare(&live, call, OPERATION).await?;
        live.monitor(call, OPERATION).tell("cont", json!({})).await
    }

    async fn pause(&self, call: Call, id: DomainId) -> Result<()> {
        self.press(call, id, "stop", "qemu.pause").await
    }

    async fn stop(&self, call: Call, id: DomainId, mode: StopMode) -> Result<StopReport> {
        match mode {
            StopMode::Shutdown => self.ask_to_end(call, id).await,
            StopMode::Kill => self.kill(call, id).await,
        }
    }

    async fn reset(&self, call: Call, id: DomainId) -> Result<()> {
        self.press(call, id, "system_reset", "qemu.reset").await
    }

    async fn undefine(&self, call: Call, id: DomainId) -> Result<()> {
        const OPERATION: &str = "qemu.undefine";
        let slot = self.state.slot(id);
        let _turn = slot.turn(call, OPERATION).await?;
        match self.state.observe(call, id, OPERATION).await? {
            Seen::Defined(_) | Seen::Ended(_) | Seen::Absent => {}
            Seen::Live(..) => return Err(error::precondition(OPERATION, id, "the domain runs")),
            Seen::Unknown(reason) => {
                return Err(error::precondition(
                    OPERATION,
                    id,
                    format!("it may run: {reason}"),
                ));
            }
        }
        let dir = self.state.dir(id, OPERATION)?;
        let stored = StoredSpec::read(&dir).map_err(|e| error::process(OPERATION, e))?;
        if stored.as_ref().is_none_or(|spec| spec.id == id) {
            // What cannot be read may have been one.
            let has_tpm = stored.as_ref().is_none_or(|spec| spec.tpm.is_some());
            let gone = move || {
                if has_tpm {
                    tpm::end(dir.path())
                        .map_err(ProcessError::io("end the swtpm of", dir.path()))?;
                }
                dir.remove()
            };
            blocking(OPERATION, gone).await?;
        }
        self.state.forget(id);
        Ok(())
    }

    async fn stats(&self, call: Call, id: DomainId) -> Result<DomainStats> {
        const OPERATION: &str = "qemu.stats";
        let (live, _) = self.state.live(call, id, OPERATION).await?;
        stats::read(live.monitor(call, OPERATION), live.process.pid()).await
    }

    /// Running domains that nothing has looked at since this value was made have no events yet: `list` looks at all.
    fn events(&self) -> BoxStream<'static, HypervisorEvent> {
        pushed(self.state.events.subscribe())
    }

    fn hot_plug(&self) -> Option<&dyn HotPlug> {
        Some(self)
    }

    fn consoles(&self) -> Option<&dyn Consoles> {
        Some(self)
    }

    fn screens(&self) -> Option<&dyn Screens> {
        Some(self)
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

impl QemuHypervisor {
    async fn press(
        &self,
        call: Call,
        id: DomainId,
        command: &str,
        operation: &'static str,
    ) -> Result<()> {
        let (live, _) = self.state.live(call, id, operation).await?;
        live.monitor(call, operation).tell(command, json!({})).await
    }

    async fn ask_to_end(&self, call: Call, id: DomainId) -> Result<StopReport> {
        const OPERATION: &str = "qemu.stop";
        match self.state.observe(call, id, OPERATION).await? {
            Seen::Absent | Seen::Ended(_) => Ok(StopReport::Ended),
            Seen::Defined(_) => self.kill(call, id).await,
            Seen::Unknown(reason) => {
                Err(Error::new(ErrorKind::Unavailable, OPERATION, reason).with("domain", id))
            }
            Seen::Live(live, _) => {
                live.dir
                    .write(ASKED, &true)
                    .map_err(|e| error::process(OPERATION, e))?;
                let monitor = live.monitor(call, OPERATION);
                monitor.tell("system_powerdown", json!({})).await?;
                Ok(StopReport::Asked)
            }
        }
    }

    /// Ends QEMU, whether its monitor answers or not.
    async fn kill(&self, call: Call, id: DomainId) -> Result<StopReport> {
        const OPERATION: &str = "qemu.stop";
        let dir = self.state.dir(id, OPERATION)?;
        let stored = StoredSpec::read(&dir).map_err(|e| error::process(OPERATION, e))?;
        if stored.is_none_or(|spec| spec.id != id) {
            return Ok(StopReport::Ended);
        }
        let process = loop {
            match dir.inspect().map_err(|e| error::process(OPERATION, e))? {
                Found::Running(process) => break process,
                Found::Gone(_) => return Ok(StopReport::Ended),
                Found::Never => {
                    // What is answered must stay true, so it cannot be started any more.
                    let slot = self.state.slot(id);
                    let _turn = slot.turn(call, OPERATION).await?;
                    if let Found::Never = dir.inspect().map_err(|e| error::process(OPERATION, e))? {
                        dir.note_end(EndCause::Requested)
                            .map_err(|e| error::process(OPERATION, e))?;
                        self.state.push(id, GuestEvent::StateChanged);
                        return Ok(StopReport::Ended);
                    }
                }
            }
        };
        // In order if that is possible: a QEMU that quits closes its images clean, and a guest that has ended by itself
        // keeps its own reason.
        let seen = self.state.observe(call, id, OPERATION).await?;
        dir.note_end(EndCause::Requested)
            .map_err(|e| error::process(OPERATION, e))?;
        let end = async {
            if let Seen::Live(live, _) = &seen {
                let _ = timeout(Duration::from_secs(5), quit(&live.qmp, &process)).await;
            }
            let waited = timeout(Duration::from_secs(5), process.ended()).await;
            let status = match waited {
                Ok(status) => status,
                Err(_) => {
                    process.kill().map_err(|e| {
                        error::process(OPERATION, ProcessError::io("kill", dir.path())(e))
                    })?;
                    process.ended().await
                }
            };
            let status = status
                .map_err(|e| error::process(OPERATION, ProcessError::io("watch", dir.path())(e)))?;
            dir.how_it_ended(status)
                .map_err(|e| error::process(OPERATION, e))
        };
        let left = error::remaining(call, OPERATION)?;
        timeout(left, end).await.map_err(|_| {
            Error::new(
                ErrorKind::OutcomeUnknown,
                OPERATION,
                "QEMU was killed and has not ended yet",
            )
            .with("domain", id)
        })??;
        match seen {
            Seen::Live(live, _) => live.over().await,
            _ => self.state.push(id, GuestEvent::StateChanged),
        }
        Ok(StopReport::Ended)
    }

    /// What is attached, in the order of the spec; QEMU has none. What was plugged in later stands behind, by its id.
    fn in_order(
        &self,
        id: DomainId,
        attached: (Vec<VolumeId>, Vec<PortId>),
    ) -> Result<(Vec<VolumeId>, Vec<PortId>)> {
        const OPERATION: &str = "qemu.inspect";
        let stored = StoredSpec::read(&self.state.dir(id, OPERATION)?)
            .map_err(|e| error::process(OPERATION, e))?;
        let (mut disks, mut nics) = attached;
        let place = |at: Option<usize>| at.unwrap_or(usize::MAX);
        if let Some(StoredSpec {
            disks: volumes,
            nics: ports,
            ..
        }) = stored
        {
            disks.sort_by_key(|volume| {
                (
                    place(volumes.iter().position(|disk| disk.volume == *volume)),
                    *volume,
                )
            });
            nics.sort_by_key(|port| (place(ports.iter().position(|nic| nic.port == *port)), *port));
        }
        Ok((disks, nics))
    }
}
