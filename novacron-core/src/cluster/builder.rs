//! Composes a cluster from its parts.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, RwLock};
use std::time::Duration;

use tokio::sync::{Notify, watch as signal};

use super::join::{Joining, identify, process_name};
use super::request::problem;
use super::{Cluster, Inner, RequestOptions};
use crate::control::cache::Cache;
use crate::control::clock::OwnClock;
use crate::control::executor::Drivers;
use crate::control::index::Limits;
use crate::control::retention::Retention;
use crate::control::runtime::{Parts, Runtime};
use crate::control::session::{Holder, Session};
use crate::control::waiters::Waiters;
use crate::control::watchdog::Feeder;
use crate::driver::{
    AllowAll, Authorizer, Fence, FirstFit, Hypervisor, NetworkDriver, NoSecrets, Scheduler,
    SecretSource, StorageBackend, Watchdog,
};
use crate::error::{Error, Problem, Result};
use crate::model::{Name, NodeId, PoolId, PoolScope, Role};
use crate::store::Store;
use crate::time::{Clock, IdSource, SeededIds, SystemClock};

/// A pool's name, the nodes that reach it (all if none), and its backend.
type NamedPool = (String, Option<Vec<String>>, Arc<dyn StorageBackend>);

/// Pools under their names: the nodes that reach each, and its backend.
pub(super) type PoolsByName = BTreeMap<PoolId, (PoolScope, Arc<dyn StorageBackend>)>;

/// More often, hosts and pools would be asked one time after the other.
const MIN_RESYNC: Duration = Duration::from_millis(100);
/// Stores tell seconds apart, and a busy machine may be late by as much.
const MIN_TTL: Duration = Duration::from_secs(1);

/// The parts, under checked names.
struct Named {
    name: Name,
    nodes: BTreeMap<NodeId, Arc<dyn Hypervisor>>,
    networks: BTreeMap<NodeId, Arc<dyn NetworkDriver>>,
    pools: PoolsByName,
    fences: BTreeMap<NodeId, Arc<dyn Fence>>,
    watchdogs: BTreeMap<NodeId, Arc<dyn Watchdog>>,
}

/// Builds a [`Cluster`]. Names are checked when it is built, all at once.
#[derive(Debug)]
pub struct Builder {
    name: String,
    store: Option<Arc<dyn Store>>,
    nodes: Vec<(String, Arc<dyn Hypervisor>)>,
    networks: Vec<(String, Arc<dyn NetworkDriver>)>,
    pools: Vec<NamedPool>,
    fences: Vec<(String, Arc<dyn Fence>)>,
    watchdogs: Vec<(String, Arc<dyn Watchdog>)>,
    scheduler: Arc<dyn Scheduler>,
    authorizer: Arc<dyn Authorizer>,
    secrets: Arc<dyn SecretSource>,
    clock: Arc<dyn Clock>,
    ids: Arc<dyn IdSource>,
    resync: Duration,
    retention: Retention,
    role: Role,
    process: String,
    lease_ttl: Duration,
    lost_after: Duration,
    limits: Limits,
    #[cfg(feature = "peers")]
    peers: Option<crate::peers::Peers>,
}

impl Builder {
    pub(super) fn new(name: String) -> Self {
        Self {
            name,
            store: None,
            nodes: Vec::new(),
            networks: Vec::new(),
            pools: Vec::new(),
            fences: Vec::new(),
            watchdogs: Vec::new(),
            scheduler: Arc::new(FirstFit::default()),
            authorizer: Arc::new(AllowAll),
            secrets: Arc::new(NoSecrets),
            clock: Arc::new(SystemClock),
            ids: Arc::new(SeededIds::from_os()),
            resync: Duration::from_secs(60),
            retention: Retention::default(),
            role: Role::Both,
            process: process_name(),
            lease_ttl: Duration::from_secs(10),
            lost_after: Duration::from_secs(30),
            limits: Limits::default(),
            #[cfg(feature = "peers")]
            peers: None,
        }
    }

    /// Where the records are kept.
    #[must_use]
    pub fn store(mut self, store: impl Store) -> Self {
        self.store = Some(Arc::new(store));
        self
    }

    /// A node: a hypervisor under a name. That it does not answer is the node's status, not an error here.
    #[must_use]
    pub fn node(mut self, name: impl Into<String>, hypervisor: impl Hypervisor) -> Self {
        self.nodes.push((name.into(), Arc::new(hypervisor)));
        self
    }

    /// Who binds the ports of a node's guests; [`HypervisorNetworks`](crate::driver::HypervisorNetworks) if none is
    /// given.
    #[must_use]
    pub fn network(mut self, node: impl Into<String>, driver: impl NetworkDriver) -> Self {
        self.networks.push((node.into(), Arc::new(driver)));
        self
    }

    /// A pool that every node reaches.
    #[must_use]
    pub fn storage(mut self, name: impl Into<String>, backend: impl StorageBackend) -> Self {
        self.pools.push((name.into(), None, Arc::new(backend)));
        self
    }

    /// A pool that only these nodes reach.
    #[must_use]
    pub fn storage_on<N: Into<String>>(
        mut self,
        name: impl Into<String>,
        nodes: impl IntoIterator<Item = N>,
        backend: impl StorageBackend,
    ) -> Self {
        let nodes = nodes.into_iter().map(Into::into).collect();
        self.pools
            .push((name.into(), Some(nodes), Arc::new(backend)));
        self
    }

    /// How a node is fenced when its owner is lost and nobody else drives it: then its VMs are started elsewhere. It need
    /// not be a node of this process: every process that may lead is given the fences of all nodes.
    #[must_use]
    pub fn fence(mut self, node: impl Into<String>, fence: impl Fence) -> Self {
        self.fences.push((node.into(), Arc::new(fence)));
        self
    }

    /// A node of this process whose host ends itself when this process is lost: then its VMs are started elsewhere, also
    /// without a [`fence`](Self::fence). Without this call a host that is cut off keeps its guests (`on_owner_loss = keep`).
    ///
    /// This process runs on that host. It arms the watchdog before the first guest starts there, and feeds it while it is
    /// alive for the others. It is reset, with its guests, when that ends without a [`Cluster::shutdown`]: when the process
    /// is killed and none takes its place in time, too. The watchdog's time is three [`lease_ttl`](Self::lease_ttl) at least.
    #[must_use]
    pub fn self_fence(mut self, node: impl Into<String>, watchdog: impl Watchdog) -> Self {
        self.watchdogs.push((node.into(), Arc::new(watchdog)));
        self
    }

    /// Who places VMs; [`FirstFit`] if none is given.
    #[must_use]
    pub fn scheduler(mut self, scheduler: impl Scheduler) -> Self {
        self.scheduler = Arc::new(scheduler);
        self
    }

    /// Who decides about requests; [`AllowAll`] if none is given.
    #[must_use]
    pub fn authorizer(mut self, authorizer: impl Authorizer) -> Self {
        self.authorizer = Arc::new(authorizer);
        self
    }

    /// Where secrets come from.
    #[must_use]
    pub fn secrets(mut self, secrets: impl SecretSource) -> Self {
        self.secrets = Arc::new(secrets);
        self
    }

    /// The wall clock.
    #[must_use]
    pub fn clock(mut self, clock: impl Clock) -> Self {
        self.clock = Arc::new(clock);
        self
    }

    /// Where ids come from.
    #[must_use]
    pub fn ids(mut self, ids: impl IdSource) -> Self {
        self.ids = Arc::new(ids);
        self
    }

    /// How often hosts and pools are looked at when nothing happens; 60 s if not given, a tenth of a second at least.
    #[must_use]
    pub fn resync(mut self, every: Duration) -> Self {
        self.resync = every;
        self
    }

    /// How long things are kept that nothing needs any more.
    #[must_use]
    pub fn retention(mut self, retention: Retention) -> Self {
        self.retention = retention;
        self
    }

    /// What this process does, where several share a store; both leading and looking after its hosts if not given.
    #[must_use]
    pub fn role(mut self, role: Role) -> Self {
        self.role = role;
        self
    }

    /// What this process is called, for people; `<host name>/<pid>` if not given.
    #[must_use]
    pub fn process(mut self, name: impl Into<String>) -> Self {
        self.process = name.into();
        self
    }

    /// How long a process that does not renew its leases counts as alive, and as the leader; 10 s if not given, a second
    /// at least. It renews them every third of that.
    #[must_use]
    pub fn lease_ttl(mut self, ttl: Duration) -> Self {
        self.lease_ttl = ttl;
        self
    }

    /// How long a node may be without a living owner before its guests count as out of sight; 30 s if not given. Another
    /// process that drives the same hypervisor takes it at once.
    #[must_use]
    pub fn lost_after(mut self, time: Duration) -> Self {
        self.lost_after = time;
        self
    }

    /// How much is done at a time where many VMs change their place. Every process that may lead is given the same.
    #[must_use]
    pub fn limits(mut self, limits: Limits) -> Self {
        self.limits = limits;
        self
    }

    /// How this process reaches the guests on other processes' nodes, and they those on its own; not at all if not given.
    #[cfg(feature = "peers")]
    #[must_use]
    pub fn peers(mut self, peers: crate::peers::Peers) -> Self {
        self.peers = Some(peers);
        self
    }

    /// Opens the records, starts the control loop.
    ///
    /// # Errors
    /// [`ErrorKind::Invalid`](crate::ErrorKind::Invalid) with every wrong name, and a [`Builder::resync`] that is too short;
    /// [`ErrorKind::FailedPrecondition`](crate::ErrorKind::FailedPrecondition) when the store holds a cluster of another name, or
    /// an address to listen on is taken; whatever the store answers.
    pub async fn build(self) -> Result<Cluster> {
        let Some(store) = self.store.clone() else {
            return Err(Error::invalid(
                "cluster.build",
                vec![problem("store", "none was given: see Builder::store")],
            ));
        };
        let Named {
            name,
            nodes,
            networks,
            pools,
            fences,
            watchdogs,
        } = self.names()?;
        crate::store::finished(&*store).await?;
        let cluster = identify(&*store, &name, &*self.clock, &*self.ids).await?;
        let holder = Holder::new(&*store, &*self.ids, self.lease_ttl);
        #[cfg(not(feature = "peers"))]
        let endpoint = None;
        #[cfg(feature = "peers")]
        let (open, endpoint) = match self.peers {
            None => (None, None),
            Some(peers) => {
                let open = peers.open().await?;
                let endpoint = open.endpoint.clone();
                (Some(open), Some(endpoint))
            }
        };
        let this = Joining {
            store: &*store,
            nodes: &nodes,
            pools: &pools,
            name: &self.process,
            role: self.role,
            endpoint,
            holder: &holder,
            clock: &*self.clock,
            ids: &*self.ids,
        };
        let member = this.join().await?;
        let cache = Arc::new(RwLock::new(Cache::default()));
        let feeder = Arc::new(Feeder {
            member,
            cache: Arc::clone(&cache),
            watchdogs: watchdogs.clone().into_iter().collect(),
        });
        let (session, standing) = Session::open(
            Arc::clone(&store),
            Arc::clone(&self.clock),
            member,
            holder.clone(),
            self.role,
            Arc::clone(&feeder),
        )
        .await;
        let nudge = Arc::new(Notify::new());
        let clock = Arc::new(OwnClock::new(self.clock));
        let drivers = Arc::new(Drivers {
            store: Arc::clone(&store),
            clock: Arc::clone(&clock) as Arc<dyn Clock>,
            ids: Arc::clone(&self.ids),
            secrets: self.secrets,
            nodes,
            networks,
            fences,
            watchdogs,
            pools: pools
                .into_iter()
                .map(|(id, (_, backend))| (id, backend))
                .collect(),
            cache: Arc::clone(&cache),
            holder,
        });
        let (progress_tx, progress) = signal::channel(crate::store::Revision::default());
        let waiters = Arc::new(Waiters::default());
        let runtime = Runtime::open(Parts {
            cluster,
            store: Arc::clone(&store),
            clock: Arc::clone(&clock),
            ids: Arc::clone(&self.ids),
            scheduler: Arc::clone(&self.scheduler),
            drivers: Arc::clone(&drivers),
            cache: Arc::clone(&cache),
            progress: progress_tx,
            waiters: Arc::clone(&waiters),
            resync: self.resync,
            retention: self.retention,
            grace: self.lost_after,
            limits: self.limits,
            member,
            standing: standing.clone(),
            nudge: Arc::clone(&nudge),
        })
        .await?;
        let (stop, stopped) = signal::channel(false);
        #[cfg(feature = "peers")]
        let (peers, server) = {
            let stopped = stopped.clone();
            crate::peers::start(open, cluster, member, &drivers, &cache, stopped)?
        };
        let task = tokio::spawn(runtime.run(stopped));
        let session = tokio::spawn(session.run(nudge));
        let inner = Inner {
            id: cluster,
            store,
            clock,
            ids: self.ids,
            authorizer: self.authorizer,
            scheduler: self.scheduler,
            drivers,
            #[cfg(feature = "peers")]
            peers,
            #[cfg(feature = "peers")]
            server: Mutex::new(server),
            member,
            standing,
            session,
            feeder,
            cache,
            progress,
            waiters,
            stop,
            task: Mutex::new(Some(task)),
        };
        Ok(Cluster {
            inner: Arc::new(inner),
            options: RequestOptions::default(),
        })
    }

    fn names(&self) -> Result<Named> {
        let mut problems: Vec<Problem> = Vec::new();
        let name = Name::new(&self.name)
            .map_err(|e| problems.push(problem("name", e.message())))
            .ok();
        if self.resync < MIN_RESYNC {
            let message = format!("{:?}; must be at least {MIN_RESYNC:?}", self.resync);
            problems.push(problem("resync", message));
        }
        if self.lease_ttl < MIN_TTL {
            let message = format!("{:?}; must be at least {MIN_TTL:?}", self.lease_ttl);
            problems.push(problem("lease_ttl", message));
        }
        let looks_after_something = !self.nodes.is_empty() || !self.pools.is_empty();
        if !self.role.owns() && looks_after_something {
            let message = "a controller looks after no node and no pool, and some were given";
            problems.push(problem("role", message));
        }
        let mut nodes = BTreeMap::new();
        for (text, hypervisor) in &self.nodes {
            match NodeId::new(text) {
                Err(e) => problems.push(problem("node", e.message())),
                Ok(id) => {
                    if nodes.insert(id, Arc::clone(hypervisor)).is_some() {
                        problems.push(problem(
                            "node",
                            format!("{text:?} is the name of two nodes"),
                        ));
                    }
                }
            }
        }
        let here = |id: &NodeId| nodes.contains_key(id);
        let networks = by_node("network", &self.networks, here, &mut problems);
        let watchdogs = by_node("self_fence", &self.watchdogs, here, &mut problems);
        let fences = by_node("fence", &self.fences, |_| true, &mut problems);
        // The nodes of other processes are not known here.
        let alone = self.store.as_ref().is_none_or(|store| store.exclusive());
        let mut pools = BTreeMap::new();
        for (text, scope, backend) in &self.pools {
            let scope = match scope {
                None => PoolScope::All,
                Some(names) => {
                    let mut set = BTreeSet::new();
                    for node in names {
                        match NodeId::new(node) {
                            Ok(id) if !alone || nodes.contains_key(&id) => {
                                set.insert(id);
                            }
                            _ => problems.push(problem(
                                format!("storage {text}"),
                                format!("{node:?} is no node of this cluster"),
                            )),
                        }
                    }
                    PoolScope::Nodes(set)
                }
            };
            match PoolId::new(text) {
                Err(e) => problems.push(problem("storage", e.message())),
                Ok(id) => {
                    if pools.insert(id, (scope, Arc::clone(backend))).is_some() {
                        problems.push(problem(
                            "storage",
                            format!("{text:?} is the name of two pools"),
                        ));
                    }
                }
            }
        }
        match name {
            Some(name) if problems.is_empty() => Ok(Named {
                name,
                nodes,
                networks,
                pools,
                fences,
                watchdogs,
            }),
            _ => Err(Error::invalid("cluster.build", problems)),
        }
    }
}

/// What was given to nodes by their names, one to each of those that may be named.
fn by_node<T: ?Sized>(
    field: &str,
    given: &[(String, Arc<T>)],
    may: impl Fn(&NodeId) -> bool,
    problems: &mut Vec<Problem>,
) -> BTreeMap<NodeId, Arc<T>> {
    let mut found = BTreeMap::new();
    for (text, driver) in given {
        let message = match NodeId::new(text) {
            Ok(id) if may(&id) => match found.insert(id, Arc::clone(driver)) {
                None => continue,
                Some(_) => format!("node {text:?} was given two"),
            },
            Ok(_) => format!("{text:?} is no node of this cluster"),
            Err(e) => e.message().to_owned(),
        };
        problems.push(problem(field, message));
    }
    found
}
