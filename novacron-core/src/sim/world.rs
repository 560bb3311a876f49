//! The world's handle: what a test sets up in it, and does to it.

use std::collections::BTreeSet;
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use rand::Rng;
use tokio::sync::Notify;
use tokio::time::Instant;

use super::call::until;
use super::faults::{FaultPlan, Latency, chance, duration};
use super::pool::{SimPool, SimSource, SimVolume};
use super::state::{Place, SimHost, State};
use crate::driver::{ArtefactId, DomainId, DomainState, GuestEvent};
use crate::model::{
    Bytes, DiskLimits, Exit, HostId, LinkState, MiB, NicLimits, PoolId, PortId, VolumeId,
};

/// A world. Clones share it. Made inside a tokio runtime, whose timer is its time.
#[derive(Clone)]
pub struct SimWorld(Arc<Shared>, Option<SimLine>);

/// The way of one process's calls into a world, and of their answers back. While it is held, the process stands still as
/// far as the world can see: nothing new is sent, and nothing is learned, whatever was under way.
#[derive(Clone, Debug, Default)]
pub struct SimLine(Arc<Gate>);

/// Lets those who wait go on in the order of their waiting; tokio's `watch` draws lots.
#[derive(Debug, Default)]
struct Gate {
    held: AtomicBool,
    freed: Notify,
}

impl SimLine {
    /// Holds every call and every answer, or lets them go on.
    pub fn hold(&self, held: bool) {
        self.0.held.store(held, Ordering::SeqCst);
        if !held {
            self.0.freed.notify_waiters();
        }
    }

    /// Returns when it is not held.
    pub async fn free(&self) {
        loop {
            let freed = self.0.freed.notified();
            if !self.0.held.load(Ordering::SeqCst) {
                return;
            }
            freed.await;
        }
    }
}

struct Shared {
    state: Mutex<State>,
    healed: Arc<Notify>,
}

impl SimWorld {
    /// An empty world in which everything comes from `seed`.
    pub fn new(seed: u64) -> Self {
        Self(
            Arc::new(Shared {
                state: Mutex::new(State::new(seed)),
                healed: Arc::default(),
            }),
            None,
        )
    }

    /// The same world, as drivers have it whose calls go over `line`.
    #[must_use]
    pub fn over(&self, line: &SimLine) -> Self {
        Self(Arc::clone(&self.0), Some(line.clone()))
    }

    /// Waits while the line is held.
    pub(super) async fn line_is_free(&self) {
        if let Some(line) = &self.1 {
            line.free().await;
        }
    }

    /// Adds a host.
    pub fn add_host(&self, cpus: u32, memory: MiB) -> HostId {
        let mut state = self.lock();
        let (id, boot_id) = (HostId::from_uuid(state.fresh_uuid()), state.fresh_uuid());
        let host = SimHost {
            boot_id,
            boots: 0,
            cpus,
            memory,
            cpu_models: words(&["qemu64", "Nehalem", "Haswell"]),
            cpu_features: words(&["aes", "avx2", "vmx"]),
            used: MiB(0),
            outage: None,
            domains: std::collections::BTreeMap::new(),
            ports: std::collections::BTreeMap::new(),
            foreign: Vec::new(),
            listeners: Vec::new(),
            goes_off: None,
            booted: Arc::default(),
        };
        state.hosts.insert(id, host);
        id
    }

    /// Gives a host a CPU with these models and features; at first it has Intel's of 2013.
    pub fn set_cpu(&self, host: HostId, models: &[&str], features: &[&str]) {
        if let Some(host) = self.lock().hosts.get_mut(&host) {
            host.cpu_models = words(models);
            host.cpu_features = words(features);
        }
    }

    /// How much a domain may read and write of a volume, if it has it.
    pub fn disk_limits(&self, host: HostId, id: DomainId, volume: VolumeId) -> Option<DiskLimits> {
        let state = self.lock();
        let disks = &state.hosts.get(&host)?.domains.get(&id)?.disks;
        let disk = disks.iter().find(|disk| disk.volume == volume)?;
        Some(disk.limits)
    }

    /// Whether a NIC's cable is plugged in and how much the guest may send and receive, if the domain has it.
    pub fn nic_state(
        &self,
        host: HostId,
        id: DomainId,
        port: PortId,
    ) -> Option<(LinkState, NicLimits)> {
        let state = self.lock();
        let nics = &state.hosts.get(&host)?.domains.get(&id)?.nics;
        let nic = nics.iter().find(|nic| nic.port == port)?;
        Some((nic.link, nic.limits))
    }

    /// Adds a storage pool.
    pub fn add_pool(&self, pool: PoolId, capacity: Bytes) {
        self.lock().pools.insert(pool, SimPool::new(capacity));
    }

    /// From now on the pool's name stands for the pool of this id.
    pub fn set_pool_identity(&self, pool: &PoolId, identity: uuid::Uuid) {
        if let Some(pool) = self.lock().pools.get_mut(pool) {
            pool.identity = Some(identity);
        }
    }

    /// Whether a started domain keeps others out of the images that it has open, as QEMU does where the file system
    /// knows locks. It is so at first; without, only the control plane keeps a second writer out.
    pub fn set_image_locks(&self, kept: bool) {
        self.lock().image_locks = kept;
    }

    /// Whether guests keep the doors of their CD-ROM drives locked. They do not at first.
    pub fn lock_doors(&self, locked: bool) {
        self.lock().doors_locked = locked;
    }

    /// Adds something that an image can be imported from, under its path or URL.
    pub fn add_source(&self, name: impl Into<String>, source: SimSource) {
        self.lock().sources.insert(name.into(), source);
    }

    /// Sets how long things take from now on.
    pub fn set_latency(&self, latency: Latency) {
        self.lock().latency = latency;
    }

    /// Lets things go wrong from now on, in place of what the plan before said.
    pub fn faults(&self, plan: FaultPlan) {
        let mut state = self.lock();
        state.plan_serial += 1;
        if plan.has_ticks() {
            let world = Arc::downgrade(&self.0);
            tokio::spawn(ticks(world, plan.tick, state.plan_serial));
        }
        state.plan = plan;
    }

    /// Nothing goes wrong any more: every host and pool answers, and so does every call that hangs. What late calls
    /// still do comes in its time ([`SimWorld::calls_under_way`]).
    pub fn heal(&self) {
        let mut state = self.lock();
        state.plan_serial += 1;
        state.plan = FaultPlan::default();
        for host in state.hosts.values_mut() {
            host.outage = None;
        }
        for pool in state.pools.values_mut() {
            pool.outage = None;
        }
        state.note(|| "healed".to_owned());
        drop(state);
        self.0.healed.notify_waiters();
    }

    /// The hosts.
    pub fn hosts(&self) -> Vec<HostId> {
        self.lock().hosts.keys().copied().collect()
    }

    /// The host's present boot id.
    pub fn boot_id(&self, host: HostId) -> Option<String> {
        self.lock().hosts.get(&host).map(|h| h.boot_id.to_string())
    }

    /// Boots a host anew: its domains are gone, and calls under way on it come to nothing.
    pub fn reboot(&self, host: HostId) {
        self.act(|state| state.reboot(host));
    }

    /// Waits until a host boots anew, as its own processes cannot. One that the world does not have never does.
    pub fn booted(&self, host: HostId) -> impl Future<Output = ()> + use<> {
        let booted = self.lock().hosts.get(&host).map(|h| Arc::clone(&h.booted));
        booted.unwrap_or_default().notified_owned()
    }

    /// Whether a host's driver answers. Its guests go on; events of the time in between are lost.
    pub fn set_reachable(&self, host: HostId, reachable: bool) {
        self.act(|state| state.set_outage(&Place::Host(host), !reachable));
    }

    /// Whether a pool's driver answers.
    pub fn set_pool_reachable(&self, pool: &PoolId, reachable: bool) {
        self.act(|state| state.set_outage(&Place::Pool(pool.clone()), !reachable));
    }

    /// Ends every event stream of a host.
    pub fn end_event_streams(&self, host: HostId) {
        self.act(|state| {
            if let Some(h) = state.hosts.get_mut(&host) {
                h.listeners.clear();
            }
        });
    }

    /// The guest ends by itself. False if it was not started.
    pub fn end_guest(&self, host: HostId, id: DomainId, exit: Exit) -> bool {
        self.act(|state| state.end(host, id, exit))
    }

    /// The guest restarts itself.
    pub fn reset_guest(&self, host: HostId, id: DomainId) {
        self.act(|state| state.push(host, id, GuestEvent::Reset));
    }

    /// The hypervisor can no longer tell what a domain does.
    pub fn lose_sight(&self, host: HostId, id: DomainId, why: &str) {
        let why = why.to_owned();
        self.act(|state| state.enter(host, id, DomainState::Unknown(why)));
    }

    /// Adds a domain of somebody else's.
    pub fn add_foreign(&self, host: HostId, name: impl Into<String>) {
        if let Some(h) = self.lock().hosts.get_mut(&host) {
            h.foreign.push(name.into());
        }
    }

    /// Domains of somebody else's.
    pub fn foreign(&self, host: HostId) -> Vec<String> {
        let state = self.lock();
        state
            .hosts
            .get(&host)
            .map_or_else(Vec::new, |h| h.foreign.clone())
    }

    /// Fills a layer with a byte, as a guest that has it open would. False if no layer that can be written is there.
    pub fn write(&self, layer: &Path, fill: u8) -> bool {
        self.act(|state| {
            let volume = layer_of(state, layer);
            volume.is_some_and(|(volume, layer)| volume.write(&layer, fill))
        })
    }

    /// The byte that a layer is filled with.
    pub fn read(&self, layer: &Path) -> Option<u8> {
        self.act(|state| {
            let (volume, layer) = layer_of(state, layer)?;
            volume.read(&layer)
        })
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, State> {
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Comes with the first healing from now on.
    pub(super) fn healed(&self) -> impl Future<Output = ()> + use<> {
        Arc::clone(&self.0.healed).notified_owned()
    }

    /// Changes the world, and sees to what the change wants done later.
    pub(super) fn act<T>(&self, deed: impl FnOnce(&mut State) -> T) -> T {
        let (result, agenda) = {
            let mut state = self.lock();
            let result = deed(&mut state);
            state.orphan = false;
            (result, std::mem::take(&mut state.agenda))
        };
        for (delay, deed) in agenda {
            let (world, due) = (self.clone(), Instant::now() + delay);
            tokio::spawn(async move {
                until(due).await;
                world.act(deed);
            });
        }
        result
    }
}

impl fmt::Debug for SimWorld {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("SimWorld").field(&*self.lock()).finish()
    }
}

impl State {
    fn set_outage(&mut self, place: &Place, out: bool) -> Option<u64> {
        let serial = out.then(|| self.next_serial());
        match place {
            Place::Host(host) => self.hosts.get_mut(host).map(|h| h.outage = serial),
            Place::Pool(pool) => self.pools.get_mut(pool).map(|p| p.outage = serial),
            Place::Power(_) => None,
        };
        self.note(|| format!("{place:?} answers: {}", !out));
        serial
    }

    /// What happens at a tick that no call brings about.
    fn tick(&mut self) {
        let plan = self.plan.clone();
        let hosts: Vec<HostId> = self.hosts.keys().copied().collect();
        let pools: Vec<PoolId> = self.pools.keys().cloned().collect();
        let places = hosts.iter().copied().map(Place::Host);
        for place in places.chain(pools.into_iter().map(Place::Pool)) {
            if chance(&mut self.rng, plan.unreachable) {
                let serial = self.set_outage(&place, true);
                let back = duration(&mut self.rng, &plan.unreachable_for);
                self.agenda.push((
                    back,
                    Box::new(move |state| state.end_outage(&place, serial)),
                ));
            }
        }
        for host in hosts {
            if chance(&mut self.rng, plan.host_reboot) {
                self.reboot(host);
            }
        }
        let guests = plan.guest_poweroff + plan.guest_panic + plan.guest_crash;
        if guests > 0.0 {
            let running: Vec<_> = self.running.iter().copied().collect();
            for (_, host, id) in running {
                let x: f64 = self.rng.random();
                if x < plan.guest_poweroff {
                    self.end(host, id, Exit::GuestShutdown);
                } else if x < plan.guest_poweroff + plan.guest_panic {
                    self.end(host, id, Exit::Panicked);
                } else if x < guests {
                    let detail = "simulated crash".to_owned();
                    self.end(host, id, Exit::Crashed { detail });
                }
            }
        }
    }

    /// Ends an outage, if it is still this one.
    fn end_outage(&mut self, place: &Place, serial: Option<u64>) {
        let outage = match place {
            Place::Host(host) => self.hosts.get_mut(host).map(|h| &mut h.outage),
            Place::Pool(pool) => self.pools.get_mut(pool).map(|p| &mut p.outage),
            Place::Power(_) => None,
        };
        if let Some(outage) = outage.filter(|o| **o == serial) {
            *outage = None;
            self.note(|| format!("{place:?} answers again"));
        }
    }
}

/// Draws what happens by itself, until the plan is another one.
async fn ticks(world: Weak<Shared>, every: Duration, serial: u64) {
    let every = every.max(Duration::from_millis(1));
    loop {
        until(Instant::now() + every).await;
        let Some(world) = world.upgrade().map(|shared| SimWorld(shared, None)) else {
            return;
        };
        if world.lock().plan_serial != serial {
            return;
        }
        world.act(State::tick);
    }
}

/// A file of the world: which pool and volume it is a layer of.
pub(super) fn layer_path(pool: &PoolId, volume: VolumeId, layer: impl fmt::Display) -> PathBuf {
    format!("/sim/{pool}/{volume}/{layer}").into()
}

/// The pool, volume and layer that a file of the world is.
fn parse_layer(path: &Path) -> Option<(PoolId, VolumeId, String)> {
    let mut parts = path.to_str()?.strip_prefix("/sim/")?.split('/');
    let pool = PoolId::new(parts.next()?).ok()?;
    let volume = parts.next()?.parse().ok()?;
    Some((pool, volume, parts.next()?.to_owned()))
}

/// The pool of a file of the world, if it is a layer of this volume.
pub(super) fn pool_of(path: &Path, volume: VolumeId) -> Option<PoolId> {
    let (pool, of, _) = parse_layer(path)?;
    (of == volume).then_some(pool)
}

fn layer_of<'a>(state: &'a mut State, path: &Path) -> Option<(&'a mut SimVolume, String)> {
    let (pool, volume, layer) = parse_layer(path)?;
    let volumes = &mut state.pools.get_mut(&pool)?.volumes;
    Some((volumes.get_mut(&ArtefactId::Volume(volume))?, layer))
}

fn words(words: &[&str]) -> Arc<BTreeSet<String>> {
    Arc::new(words.iter().map(|word| (*word).to_owned()).collect())
}
