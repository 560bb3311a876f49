//! What a hypervisor holds in memory.
//!
//! **libvirt's definitions and what runs are the whole state.** Memory holds the connection, who waits for whom, and
//! which start is under way.

use std::collections::{HashMap, HashSet};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, Weak};
use std::thread::Thread;
use std::time::Duration;

use novacron_core::driver::{Call, DomainId, GuestEvent, HypervisorEvent};
use novacron_core::model::HostId;
use novacron_core::{Error, ErrorKind, Result};
use tokio::sync::{OwnedMutexGuard, broadcast, watch};
use tokio::time::timeout;
use uuid::Uuid;

use super::consoles::Typing;
use super::describe::uuid_of;
use super::ends;
use super::error::{self, remaining};
use super::event_loop::EventLoop;
use super::link::{self, Lane, Live, Status};
use super::look::Task;
use super::pool::{Effect, Pool};
use super::sys::{Event, LvError, LvResult, code};
use crate::accel::AccelChoice;
use crate::console::Progress;
use crate::tpm;

/// Events that a slow reader may be behind.
const EVENT_BACKLOG: usize = 4096;

/// Calls of libvirt that change something and may be under way at once: libvirtd has 20 threads for its callers.
const CHANGES: usize = 10;
/// Calls that read.
const READS: usize = 6;
/// How long a look may take that nobody asked for.
const OWN: Duration = Duration::from_secs(60);

/// What the host application chose.
#[derive(Clone, Debug)]
pub(super) struct Config {
    pub(super) uri: String,
    /// On this host, and only if the URI leads to it.
    pub(super) folder: Option<PathBuf>,
    pub(super) event_loop: EventLoop,
    pub(super) accel: AccelChoice,
    pub(super) host: Option<HostId>,
}

/// The hypervisor's memory.
#[derive(Debug)]
pub(super) struct State {
    pub(super) config: Config,
    pub(super) status: watch::Sender<Status>,
    changes: Pool,
    reads: Pool,
    supervisor: OnceLock<Thread>,
    events: Mutex<broadcast::Sender<HypervisorEvent>>,
    /// Devices that guests have let go of.
    pub(super) removed: broadcast::Sender<(Uuid, String)>,
    pub(super) swtpm: tpm::Program,
    turns: Mutex<HashMap<(DomainId, Right), Turn>>,
    pub(super) known: Mutex<HashMap<Uuid, DomainId>>,
    starting: Mutex<HashSet<DomainId>>,
    /// Domains whose QEMU was asked to end from outside of libvirt.
    pub(super) terminated: Mutex<HashSet<Uuid>>,
    consoles: Mutex<HashMap<DomainId, watch::Sender<Progress>>>,
    inputs: Mutex<HashMap<DomainId, Input>>,
}

/// The stream that a domain's console is written to, while somebody does.
pub(super) type Input = Arc<tokio::sync::Mutex<Weak<Typing>>>;

/// Held by the one that changes a domain.
type Turn = Arc<tokio::sync::Mutex<()>>;

/// What of a domain is changed by one call at a time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Right {
    /// Its life.
    Life,
    /// Its devices.
    Devices,
}

impl State {
    pub(super) fn new(config: Config) -> Self {
        Self {
            config,
            status: watch::Sender::default(),
            changes: Pool::new(CHANGES),
            reads: Pool::new(READS),
            supervisor: OnceLock::new(),
            events: Mutex::new(broadcast::Sender::new(EVENT_BACKLOG)),
            removed: broadcast::Sender::new(EVENT_BACKLOG),
            swtpm: tpm::Program::default(),
            turns: Mutex::default(),
            known: Mutex::default(),
            starting: Mutex::default(),
            terminated: Mutex::default(),
            consoles: Mutex::default(),
            inputs: Mutex::default(),
        }
    }

    /// The domain's folder.
    pub(super) fn folder(&self, id: DomainId) -> Option<PathBuf> {
        let folder = self.config.folder.as_ref()?;
        Some(folder.join(id.vm.to_string()).join(id.epoch.to_string()))
    }

    /// The connection, waited for until the deadline.
    async fn live(self: &Arc<Self>, call: Call, operation: &'static str) -> Result<Arc<Live>> {
        let left = remaining(call, operation)?;
        let mut status = self.status.subscribe();
        if self.supervisor.get().is_none() {
            self.begin(operation)?;
        }
        let up = async {
            loop {
                match &*status.borrow_and_update() {
                    Status::Up(live) if !live.is_lost() => return Ok(Arc::clone(live)),
                    Status::Down(error) => return Err(self.unreachable(operation, error)),
                    _ => {}
                }
                if status.changed().await.is_err() {
                    let message = "the hypervisor is gone";
                    return Err(Error::new(ErrorKind::Cancelled, operation, message));
                }
            }
        };
        timeout(left, up).await.unwrap_or_else(|_| {
            let message = "libvirt has not taken the connection in time";
            Err(Error::new(ErrorKind::DeadlineExceeded, operation, message)
                .with("uri", &self.config.uri))
        })
    }

    /// No connection could be made.
    fn unreachable(&self, operation: &'static str, error: &LvError) -> Error {
        let error = error::libvirt(operation, error, Effect::None, false);
        // Whatever the reason, the host cannot be asked.
        let kind = match error.kind() {
            ErrorKind::PermissionDenied => ErrorKind::PermissionDenied,
            _ => ErrorKind::Unavailable,
        };
        let message = format!("no connection to libvirt: {}", error.message());
        Error::new(kind, operation, message).with("uri", &self.config.uri)
    }

    fn begin(self: &Arc<Self>, operation: &'static str) -> Result<()> {
        // Two first calls at once: one thread is enough, and the lock is held for no longer than its start.
        let _one = lock(&self.starting);
        if self.supervisor.get().is_none() {
            let thread = link::supervise(self).map_err(|error| {
                let message = "no thread can be started to connect to libvirt";
                Error::new(ErrorKind::Exhausted, operation, message).caused_by(error)
            })?;
            let _ = self.supervisor.set(thread);
        }
        Ok(())
    }

    /// Does work that may block on a thread for that, with the connection.
    pub(super) async fn run<T: Send + 'static>(
        self: &Arc<Self>,
        call: Call,
        operation: &'static str,
        effect: Effect,
        work: impl FnOnce(&Task) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        let live = self.live(call, operation).await?;
        let state = Arc::clone(self);
        let work = move |lane: &mut Lane| {
            // To connect may have taken long.
            let work = |task: &Task| task.in_time().and_then(|()| work(task));
            let done = state.with_task(&live, lane, call, operation, effect, work);
            done.unwrap_or_else(|error| Err(state.unreachable(operation, &error)))
        };
        let pool = match effect {
            Effect::None => &self.reads,
            Effect::Some => &self.changes,
        };
        pool.run(call, operation, effect, work).await
    }

    /// The same, with the right to change a domain, which is held until the work has really ended.
    pub(super) async fn change<T: Send + 'static>(
        self: &Arc<Self>,
        call: Call,
        id: DomainId,
        right: Right,
        operation: &'static str,
        work: impl FnOnce(&Task) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        let turn = self.turn(call, id, right, operation).await?;
        let work = move |task: &Task| {
            let _turn = turn;
            work(task)
        };
        self.run(call, operation, Effect::Some, work).await
    }

    async fn turn(
        &self,
        call: Call,
        id: DomainId,
        right: Right,
        operation: &'static str,
    ) -> Result<OwnedMutexGuard<()>> {
        let left = remaining(call, operation)?;
        let turn = Arc::clone(lock(&self.turns).entry((id, right)).or_default());
        timeout(left, turn.lock_owned()).await.map_err(|_| {
            let message = "another call on the domain is under way";
            Error::new(ErrorKind::DeadlineExceeded, operation, message).with("domain", id)
        })
    }

    /// Waits until nothing that changes something is under way without a caller.
    pub(super) async fn settled(&self, call: Call, operation: &'static str) -> Result<()> {
        self.changes.settled(call, operation).await
    }

    pub(super) fn forget(&self, id: DomainId) {
        for right in [Right::Life, Right::Devices] {
            lock(&self.turns).remove(&(id, right));
        }
        lock(&self.known).remove(&uuid_of(id));
        lock(&self.inputs).remove(&id);
        lock(&self.terminated).remove(&uuid_of(id));
        self.console_ended(id);
    }

    /// Marks a domain as being started, until the guard goes.
    pub(super) fn begin_start(self: &Arc<Self>, id: DomainId) -> Starting {
        lock(&self.starting).insert(id);
        Starting(Arc::clone(self), id)
    }

    /// The starts that are under way.
    pub(super) fn starting(&self) -> HashSet<DomainId> {
        lock(&self.starting).clone()
    }

    pub(super) fn subscribe(&self) -> broadcast::Receiver<HypervisorEvent> {
        lock(&self.events).subscribe()
    }

    /// Events may have been lost: every reader is told by its stream's end.
    pub(super) fn end_streams(&self) {
        *lock(&self.events) = broadcast::Sender::new(EVENT_BACKLOG);
    }

    /// A connection is there.
    pub(super) fn up(self: &Arc<Self>, live: &Arc<Live>) {
        self.status.send_replace(Status::Up(Arc::clone(live)));
        // Consoles of guests that ended while nobody was told.
        let open: Vec<_> = lock(&self.consoles).keys().copied().collect();
        let mut lane = Lane::default();
        for id in open {
            let look = |task: &Task| {
                let looked = task.look(id);
                tracing::debug!(domain = %id, ?looked, "a console after a new connection");
            };
            if let Err(error) = self.with_task(
                live,
                &mut lane,
                Call::within(OWN),
                "libvirt.console",
                Effect::Some,
                look,
            ) {
                tracing::debug!(%error, "consoles after a new connection");
                live.lose();
                return;
            }
        }
    }

    /// Does work on this thread, with its connection. Fails when it has none and none can be made.
    fn with_task<T>(
        self: &Arc<Self>,
        live: &Arc<Live>,
        lane: &mut Lane,
        call: Call,
        operation: &'static str,
        effect: Effect,
        work: impl FnOnce(&Task) -> T,
    ) -> LvResult<T> {
        let task = Task {
            conn: lane.take(live)?,
            state: Arc::clone(self),
            live: Arc::clone(live),
            call,
            operation,
            effect,
        };
        let done = work(&task);
        lane.put(live, task.conn);
        Ok(done)
    }

    /// How far a domain's console has come, for those who read it.
    pub(super) fn console(&self, id: DomainId) -> watch::Receiver<Progress> {
        lock(&self.consoles).entry(id).or_default().subscribe()
    }

    /// Where a domain's console is written to.
    pub(super) fn input(&self, id: DomainId) -> Input {
        Arc::clone(lock(&self.inputs).entry(id).or_default())
    }

    /// A sign that a console has said more.
    pub(super) fn console_moved(&self, id: DomainId, bytes: u64) {
        if let Some(progress) = lock(&self.consoles).get(&id) {
            progress.send_modify(|progress| progress.received += bytes);
        }
    }

    pub(super) fn console_ended(&self, id: DomainId) {
        if let Some(progress) = lock(&self.consoles).remove(&id) {
            progress.send_modify(|progress| progress.ended = true);
        }
    }

    /// Something happened, on the thread for that. Fails when there is no connection to look into it by.
    pub(super) fn happened(
        self: &Arc<Self>,
        live: &Arc<Live>,
        lane: &mut Lane,
        event: Event,
    ) -> LvResult<()> {
        if let Event::Lifecycle {
            domain,
            event: code::VIR_DOMAIN_EVENT_SHUTDOWN,
            detail: code::VIR_DOMAIN_EVENT_SHUTDOWN_HOST,
        } = event
        {
            lock(&self.terminated).insert(domain);
        }
        let (domain, told) = match event {
            Event::Lifecycle { event, .. } if !ends::is_of_life(event) => return Ok(()),
            Event::Lifecycle { domain, .. } => (domain, GuestEvent::StateChanged),
            Event::Reboot { domain } => (domain, GuestEvent::Reset),
            Event::Watchdog { domain } => (domain, GuestEvent::Watchdog),
            Event::Agent { domain, connected } => (domain, GuestEvent::Agent { connected }),
            Event::DeviceRemoved { domain, alias } => {
                let _ = self.removed.send((domain, alias));
                return Ok(());
            }
            Event::Closed => return Ok(()),
        };
        let call = Call::within(OWN);
        self.with_task(live, lane, call, "libvirt.event", Effect::Some, |task| {
            let Some(id) = task.known(domain) else { return };
            if let Event::Lifecycle { event, .. } = event
                && ends::is_end(event)
                && let Err(error) = task.look(id)
            {
                tracing::warn!(%error, domain = %id, "an end could not be noted");
            }
            // Nobody listening is no error.
            let _ = lock(&self.events).send(HypervisorEvent {
                domain: id,
                event: told,
            });
        })
    }
}

impl Drop for State {
    fn drop(&mut self) {
        if let Some(supervisor) = self.supervisor.get() {
            supervisor.unpark();
        }
    }
}

/// A start that is under way.
pub(super) struct Starting(Arc<State>, DomainId);

impl Drop for Starting {
    fn drop(&mut self) {
        lock(&self.0.starting).remove(&self.1);
    }
}

pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
