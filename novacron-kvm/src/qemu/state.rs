//! What a hypervisor holds in memory, and how a domain is looked at.

use std::collections::HashMap;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use novacron_core::driver::{Call, DomainId, GuestEvent, HypervisorEvent};
use novacron_core::model::{DiskCache, DiskOptions, Epoch, Exit, HostId, VmId, VolumeId};
use novacron_core::{Error, ErrorKind, Result};
use tokio::sync::{OnceCell, OwnedMutexGuard, broadcast};
use tokio::time::timeout;

use super::live::Live;
use super::monitor::{Monitor, Status};
use super::spec::StoredSpec;
use super::{error, host, start};
use crate::accel::AccelChoice;
use crate::probe::{Offer, QemuBinary};
use crate::process::{
    End, EndCause, FolderLock, Found, Holder, Identity, Owner, Process, ProcessError, RunDir, fits,
    holder, owner,
};
use crate::qmp::Qmp;
use crate::tpm;

/// Events that a slow reader may be behind.
const EVENT_BACKLOG: usize = 4096;
/// The longest that a look at one domain waits for its QEMU.
const LOOK: Duration = Duration::from_secs(5);

/// What the host application chose.
#[derive(Clone, Debug)]
pub(super) struct Config {
    pub(super) folder: PathBuf,
    pub(super) qemu: PathBuf,
    pub(super) accel: AccelChoice,
    pub(super) host: Option<HostId>,
}

/// The hypervisor's memory.
#[derive(Debug)]
pub(super) struct State {
    pub(super) config: Config,
    pub(super) events: broadcast::Sender<HypervisorEvent>,
    binary: OnceCell<QemuBinary>,
    pub(super) offer: OnceCell<Offer>,
    pub(super) swtpm: Arc<tpm::Program>,
    slots: Mutex<HashMap<DomainId, Arc<Slot>>>,
    owned: Mutex<Option<FolderLock>>,
}

/// A domain's place in the memory.
#[derive(Debug, Default)]
pub(super) struct Slot {
    turn: Arc<tokio::sync::Mutex<()>>,
    pub(super) connecting: tokio::sync::Mutex<()>,
    live: Mutex<Option<Arc<Live>>>,
}

/// A QEMU that holds a VM's lock and whose spec cannot be read.
#[derive(Debug)]
pub(super) struct Stranger {
    pub(super) vm: VmId,
    pub(super) holder: Holder,
}

/// A started domain, and the right to change it.
#[derive(Debug)]
pub(super) struct Turn {
    pub(super) live: Arc<Live>,
    call: Call,
    operation: &'static str,
    _right: OwnedMutexGuard<()>,
}

impl Turn {
    pub(super) fn monitor(&self) -> Monitor<'_> {
        self.live.monitor(self.call, self.operation)
    }

    /// How a disk was opened, as far as it is known of one that was plugged in later: its cache's mode.
    pub(super) fn options(&self, volume: VolumeId, cache: DiskCache) -> Result<DiskOptions> {
        let spec = StoredSpec::read(&self.live.dir);
        let spec = spec.map_err(|e| error::process(self.operation, e))?;
        let disks = spec.iter().flat_map(|spec| &spec.disks);
        let mut of_start = disks.filter(|disk| disk.volume == volume);
        Ok(DiskOptions {
            cache,
            ..of_start
                .next()
                .map(|disk| disk.options.clone())
                .unwrap_or_default()
        })
    }

    /// Finishes the start, if that was cut short.
    pub(super) async fn prepare(&self) -> Result<()> {
        start::prepare(&self.live, self.call, self.operation).await
    }
}

/// What a look at a domain shows.
#[derive(Debug)]
pub(super) enum Seen {
    /// It is not defined.
    Absent,
    /// It was never started.
    Defined(Box<StoredSpec>),
    /// QEMU runs, and the guest has not ended.
    Live(Arc<Live>, Status),
    /// It has ended.
    Ended(End),
    /// That cannot be told.
    Unknown(String),
}

impl Slot {
    fn current(&self) -> Option<Arc<Live>> {
        lock(&self.live)
            .as_ref()
            .filter(|live| !live.is_over())
            .cloned()
    }

    pub(super) fn set(&self, live: Arc<Live>) {
        *lock(&self.live) = Some(live);
    }

    /// Lets go of connections whose end has been seen.
    pub(super) fn forget_ended(&self) {
        let ended = lock(&self.live).take_if(|live| live.is_over());
        drop(ended);
    }

    /// Waits for the right to change the domain.
    pub(super) async fn turn(
        &self,
        call: Call,
        operation: &'static str,
    ) -> Result<OwnedMutexGuard<()>> {
        let left = error::remaining(call, operation)?;
        timeout(left, Arc::clone(&self.turn).lock_owned())
            .await
            .map_err(|_| {
                Error::new(
                    ErrorKind::DeadlineExceeded,
                    operation,
                    "another call on the domain is under way",
                )
            })
    }
}

impl State {
    pub(super) fn new(config: Config) -> Self {
        let folder = std::path::absolute(&config.folder).unwrap_or(config.folder);
        Self {
            config: Config { folder, ..config },
            events: broadcast::Sender::new(EVENT_BACKLOG),
            binary: OnceCell::new(),
            offer: OnceCell::new(),
            swtpm: Arc::default(),
            slots: Mutex::default(),
            owned: Mutex::default(),
        }
    }

    /// Fails when domains in the folder could not be started. Then none can be there, and whoever looks finds none.
    pub(super) fn fits(&self, operation: &'static str) -> Result<()> {
        fits(&self.config.folder).map_err(|e| error::process(operation, e))
    }

    /// Makes sure that the folder is there and ours alone.
    pub(super) fn own(&self, operation: &'static str) -> Result<()> {
        let mut owned = lock(&self.owned);
        if owned.is_some() {
            return Ok(());
        }
        let folder = &self.config.folder;
        let made = std::fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(folder);
        made.map_err(|e| {
            error::process(operation, ProcessError::io("make the folder", folder)(e))
        })?;
        let failed = |e| error::process(operation, e);
        let Some(lock) = FolderLock::take(folder).map_err(failed)? else {
            let message = match owner(folder).map_err(failed)? {
                Some(Owner { process, .. }) if process.is_alive() => {
                    format!("the state folder is used by process {}", process.pid)
                }
                _ => "the state folder is locked by another process: perhaps it is being fenced"
                    .to_owned(),
            };
            return Err(
                Error::new(ErrorKind::FailedPrecondition, operation, message)
                    .with("path", folder.display()),
            );
        };
        let process = Identity::own()
            .map_err(|e| failed(ProcessError::io("read", "/proc/self/stat".as_ref())(e)))?;
        let host = self.host(operation)?;
        lock.name(&Owner { host, process }).map_err(failed)?;
        *owned = Some(lock);
        Ok(())
    }

    /// Which host it is. The folder must be there.
    pub(super) fn host(&self, operation: &'static str) -> Result<HostId> {
        match self.config.host {
            Some(host) => Ok(host),
            None => host::host_id(&self.config.folder, operation),
        }
    }

    /// The domain's run directory.
    pub(super) fn dir(&self, id: DomainId, operation: &'static str) -> Result<RunDir> {
        self.own(operation)?;
        let vm = self.config.folder.join(id.vm.to_string());
        Ok(RunDir::new(&vm, id.epoch.0))
    }

    pub(super) fn slot(&self, id: DomainId) -> Arc<Slot> {
        Arc::clone(lock(&self.slots).entry(id).or_default())
    }

    pub(super) fn push(&self, domain: DomainId, event: GuestEvent) {
        // Nobody listening is no error.
        let _ = self.events.send(HypervisorEvent { domain, event });
    }

    pub(super) fn forget(&self, id: DomainId) {
        lock(&self.slots).remove(&id);
    }

    /// The binary, asked once; a failure is asked again.
    pub(super) async fn binary(&self, operation: &'static str) -> Result<&QemuBinary> {
        let probed = self
            .binary
            .get_or_try_init(|| QemuBinary::probe(&self.config.qemu))
            .await;
        probed.map_err(|e| error::probe(operation, e))
    }

    /// Every domain in the folder; and every QEMU that holds a VM's lock and whose spec cannot be read, so that nobody
    /// knows whose it is.
    pub(super) fn found(&self, operation: &'static str) -> Result<(Vec<DomainId>, Vec<Stranger>)> {
        self.own(operation)?;
        let failed = |e| error::process(operation, e);
        let (mut ids, mut strangers) = (Vec::new(), Vec::new());
        for vm in names::<VmId>(&self.config.folder).map_err(failed)? {
            let folder = self.config.folder.join(vm.to_string());
            // Before the specs: one is written before its QEMU is started, and removed after its end.
            let holder = holder(&folder).map_err(failed)?;
            let known = ids.len();
            for epoch in names::<u64>(&folder).map_err(failed)? {
                let dir = RunDir::new(&folder, epoch);
                let id = StoredSpec::read(&dir).map_err(failed)?.map(|spec| spec.id);
                ids.extend(id.filter(|id| id.vm == vm && id.epoch == Epoch(epoch)));
            }
            let is_known =
                |holder: &Holder| ids[known..].iter().any(|id| id.epoch.0 == holder.epoch);
            strangers.extend(
                holder
                    .filter(|holder| !is_known(holder))
                    .map(|holder| Stranger { vm, holder }),
            );
        }
        Ok((ids, strangers))
    }

    /// Looks at a domain, connecting to it if it runs and finishing its end if its guest has ended.
    pub(super) async fn observe(
        &self,
        call: Call,
        id: DomainId,
        operation: &'static str,
    ) -> Result<Seen> {
        let dir = self.dir(id, operation)?;
        let limit = error::remaining(call, operation)?.min(LOOK);
        let looked = timeout(limit + limit / 4, self.look(id, &dir, limit, operation)).await;
        let seen = looked.unwrap_or_else(|_| {
            Ok(Seen::Unknown(format!(
                "QEMU did not answer within {limit:?}"
            )))
        })?;
        if let Seen::Unknown(_) = seen {
            // Not known for want of time is the caller's deadline, not a state.
            error::remaining(call, operation)?;
        }
        Ok(seen)
    }

    async fn look(
        &self,
        id: DomainId,
        dir: &RunDir,
        limit: Duration,
        operation: &'static str,
    ) -> Result<Seen> {
        loop {
            let stored = StoredSpec::read(dir).map_err(|e| error::process(operation, e))?;
            let Some(spec) = stored.filter(|spec| spec.id == id) else {
                return Ok(Seen::Absent);
            };
            let live = match self.connected(id, dir, limit).await {
                Ok(Connected::Live(live)) => live,
                Ok(Connected::Not(Found::Gone(end))) => return Ok(Seen::Ended(end)),
                Ok(Connected::Not(_)) => return Ok(Seen::Defined(Box::new(spec))),
                Err(reason) => return Ok(Seen::Unknown(reason)),
            };
            match Status::of(&live.qmp, limit).await {
                Ok(status) if status.is_shutdown() || status.is_panicked() => live.over().await,
                Ok(status) => return Ok(Seen::Live(live, status)),
                Err(crate::qmp::QmpError::Disconnected { .. }) => live.over().await,
                Err(error) => return Ok(Seen::Unknown(error.to_string())),
            }
        }
    }

    async fn connected(
        &self,
        id: DomainId,
        dir: &RunDir,
        limit: Duration,
    ) -> Result<Connected, String> {
        let slot = self.slot(id);
        let _one = timeout(limit, slot.connecting.lock())
            .await
            .map_err(|_| "it is being started".to_owned())?;
        if let Some(live) = slot.current() {
            return Ok(Connected::Live(live));
        }
        match dir.inspect().map_err(|error| error.to_string())? {
            Found::Running(process) => {
                let path = dir.file("qmp");
                let qmp = tokio::select! {
                    qmp = Qmp::connect(&path, limit) => qmp.map_err(|error| error.to_string()),
                    _ = process.gone() => Err("QEMU has just ended".to_owned()),
                };
                match qmp {
                    Ok(qmp) => Ok(Connected::Live(self.take_up(id, dir, process, qmp).await)),
                    Err(reason) => match dir.inspect() {
                        Ok(Found::Gone(end)) => Ok(Connected::Not(Found::Gone(end))),
                        _ => Err(reason),
                    },
                }
            }
            found => Ok(Connected::Not(found)),
        }
    }

    /// Keeps a connection that was just made; `connecting` must be held.
    pub(super) async fn take_up(
        &self,
        id: DomainId,
        dir: &RunDir,
        process: Process,
        qmp: Qmp,
    ) -> Arc<Live> {
        let slot = self.slot(id);
        let process = Arc::new(process);
        let live = Live::new(
            id,
            dir.clone(),
            process,
            qmp,
            Arc::downgrade(&slot),
            self.events.clone(),
        )
        .await;
        let live = Arc::new(live);
        slot.set(Arc::clone(&live));
        live
    }

    /// Waits for the right to change a domain that must have been started.
    pub(super) async fn turn(
        &self,
        call: Call,
        id: DomainId,
        operation: &'static str,
    ) -> Result<Turn> {
        let right = self.slot(id).turn(call, operation).await?;
        let (live, _) = self.live(call, id, operation).await?;
        Ok(Turn {
            live,
            call,
            operation,
            _right: right,
        })
    }

    /// The connections of a domain that must have been started.
    pub(super) async fn live(
        &self,
        call: Call,
        id: DomainId,
        operation: &'static str,
    ) -> Result<(Arc<Live>, Status)> {
        match self.observe(call, id, operation).await? {
            Seen::Live(live, status) => Ok((live, status)),
            Seen::Absent => Err(error::not_found(operation, id)),
            Seen::Defined(_) => Err(error::precondition(
                operation,
                id,
                "the domain has not been started",
            )),
            Seen::Ended(end) => Err(error::precondition(
                operation,
                id,
                format!("the domain has ended: {end}"),
            )),
            Seen::Unknown(reason) => {
                Err(Error::new(ErrorKind::Unavailable, operation, reason).with("domain", id))
            }
        }
    }
}

enum Connected {
    Live(Arc<Live>),
    Not(Found),
}

/// An end, as the contract names it.
pub(super) fn exit(end: &End) -> Exit {
    match &end.cause {
        EndCause::GuestShutdown => Exit::GuestShutdown,
        EndCause::GuestPanic => Exit::Panicked,
        EndCause::Requested => Exit::Requested,
        EndCause::StartFailed => Exit::StartFailed {
            detail: end.to_string(),
        },
        EndCause::Terminated => Exit::Terminated {
            detail: end.to_string(),
        },
        EndCause::Exited(_) | EndCause::Killed(_) | EndCause::Vanished | EndCause::HostRebooted => {
            Exit::Crashed {
                detail: end.to_string(),
            }
        }
    }
}

/// The entries of a folder whose names parse; none if it is not there.
pub(crate) fn names<T: std::str::FromStr>(folder: &Path) -> Result<Vec<T>, ProcessError> {
    let listed = || {
        let entries = match std::fs::read_dir(folder) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
            entries => entries?,
        };
        let mut names = Vec::new();
        for entry in entries {
            let name = entry?.file_name();
            names.extend(name.to_str().and_then(|name| name.parse().ok()));
        }
        Ok(names)
    };
    listed().map_err(ProcessError::io::<std::io::Error>("list", folder))
}

pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
