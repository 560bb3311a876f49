//! The cluster's handle: what a host application holds.
//!
//! [`Cluster::builder`] takes the store, the nodes and the pools; [`Builder::build`] opens the records and starts the
//! control loop as a task of the caller's tokio runtime. Handles (`vms()`, `volumes()`, …) are cheap. Reads are
//! linearizable: the store is asked for its revision, and the answer is given from a cache that has reached it. The
//! guests outlive the handle: dropping the last one ends the loop and touches no guest, [`Cluster::shutdown`] does the
//! same and waits.
//!
//! Inside: every change takes one way (`request`), every kind of object has the same collection and handle (`object`),
//! every list the same pages (`page`).

mod builder;
mod cancel;
mod check;
mod events;
mod images;
mod join;
mod json;
mod loss;
mod members;
mod networks;
mod nodes;
mod object;
mod operations;
mod page;
mod pools;
mod request;
mod snapshots;
mod upgrade;
mod usage;
mod vms;
mod volumes;
mod watch;

use std::borrow::Cow;
use std::fmt;
use std::ops::ControlFlow;
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::Duration;

use tokio::sync::watch as signal;
use tokio::task::JoinHandle;

pub use crate::control::index::Limits;
pub use crate::control::retention::Retention;
#[cfg(feature = "peers")]
pub use crate::peers::Peers;
pub use builder::Builder;
pub use images::{ImageHandle, ImageSpec, ImageView, Images};
pub use json::spec_from_json;
pub use loss::{LossView, LostVm};
pub use members::Members;
pub use networks::{NetworkHandle, Networks};
pub use nodes::{Evidence, NodeView, Nodes};
pub use operations::OperationHandle;
pub use page::{DEFAULT_PAGE, ListRequest, MAX_PAGE, Page, PageToken};
pub use pools::{PoolView, Pools};
pub use request::{CHANGES, RequestOptions};
pub use snapshots::{SnapshotHandle, SnapshotView, Snapshots};
pub use upgrade::FeatureLevel;
pub use usage::Usage;
pub use vms::{PlacementView, Verdict, VmHandle, VmView, Vms};
pub use volumes::{VolumeHandle, VolumeSpec, VolumeView, Volumes};
pub use watch::ObjectChange;

use crate::control::cache::Cache;
use crate::control::commit::{commit_known, finish};
use crate::control::executor::Drivers;
use crate::control::plan::{Draft, ObjectKey};
use crate::control::session::Standing;
use crate::control::waiters::Waiters;
use crate::control::watchdog::Feeder;
use crate::driver::{Authorizer, Call, Scheduler};
use crate::error::{Error, ErrorKind, Result};
use crate::model::{ClusterId, Member, MemberId, MemberState};
use crate::records::{Stored, from_record};
use crate::store::{Revision, Store};
use crate::time::{Clock, Deadline, IdSource};

/// A cluster: many hosts' VMs behind one handle. Cheap to clone.
///
/// Here on simulated hosts; on real ones the lines that change are those of `node` and `storage`.
///
/// ```
/// use std::sync::Arc;
/// use std::time::Duration;
///
/// use novacron_core::cluster::VolumeSpec;
/// use novacron_core::model::{DiskOptions, DiskSource, PoolId};
/// use novacron_core::sim::{SimHypervisor, SimStorage, SimWorld};
/// use novacron_core::store::MemoryStore;
/// use novacron_core::{Bytes, Cluster, Deadline, MiB, Phase, Result, SystemClock, VmSpec};
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<()> {
/// let soon = || Deadline::after(Duration::from_secs(30));
/// let world = SimWorld::new(1);
/// world.add_pool(PoolId::new("shared")?, Bytes::gib(100));
/// let cluster = Cluster::builder("example")
///     .store(MemoryStore::new(Arc::new(SystemClock)))
///     .node("alpha", SimHypervisor::new(&world, world.add_host(8, MiB(16_384))))
///     .storage("shared", SimStorage::new(&world, PoolId::new("shared")?))
///     .build()
///     .await?;
///
/// let root = DiskSource::Blank { size: Bytes::gib(10), pool: None };
/// let vm = cluster.vms().create(VmSpec::new("web-1").disk("root", root)).await?;
/// vm.wait_for(Phase::Running, soon()).await?;
///
/// let volume = cluster.volumes().create(VolumeSpec::new("data", Bytes::gib(1))).await?;
/// vm.attach("data", volume.id(), DiskOptions::default()).await?.wait(soon()).await?;
/// assert_eq!(vm.get().await?.vm.machine.disks.len(), 2);
///
/// // The guests run on; the next program that builds this cluster adopts them.
/// cluster.shutdown(soon()).await
/// # }
/// ```
#[derive(Clone)]
pub struct Cluster {
    pub(crate) inner: Arc<Inner>,
    options: RequestOptions,
}

pub(crate) struct Inner {
    pub(crate) id: ClusterId,
    pub(crate) store: Arc<dyn Store>,
    pub(crate) clock: Arc<dyn Clock>,
    pub(crate) ids: Arc<dyn IdSource>,
    pub(crate) authorizer: Arc<dyn Authorizer>,
    pub(crate) scheduler: Arc<dyn Scheduler>,
    pub(crate) drivers: Arc<Drivers>,
    /// The way to guests that other processes look after.
    #[cfg(feature = "peers")]
    pub(crate) peers: crate::peers::Way,
    /// Lets other processes ask about the guests here.
    #[cfg(feature = "peers")]
    server: Mutex<Option<JoinHandle<()>>>,
    /// This process.
    pub(crate) member: MemberId,
    standing: signal::Receiver<Standing>,
    /// Keeps the leases.
    session: JoinHandle<()>,
    feeder: Arc<Feeder>,
    pub(crate) cache: Arc<RwLock<Cache>>,
    pub(crate) progress: signal::Receiver<Revision>,
    pub(crate) waiters: Arc<Waiters>,
    stop: signal::Sender<bool>,
    task: Mutex<Option<JoinHandle<()>>>,
}

impl fmt::Debug for Cluster {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Cluster")
            .field("id", &self.inner.id)
            .field("store", &self.inner.store)
            .finish_non_exhaustive()
    }
}

impl Drop for Inner {
    /// Ends the loop; its tasks are dropped, no guest is touched.
    fn drop(&mut self) {
        self.session.abort();
        #[cfg(feature = "peers")]
        if let Some(server) = taken(&self.server) {
            server.abort();
        }
        if let Some(task) = taken(&self.task) {
            task.abort();
        }
    }
}

impl Cluster {
    /// Begins a cluster named `name`: the name is stored with it, and a store of another cluster is refused.
    pub fn builder(name: impl Into<String>) -> Builder {
        Builder::new(name.into())
    }

    /// The cluster's id: stamped on everything that it makes.
    pub fn id(&self) -> ClusterId {
        self.inner.id
    }

    /// The same cluster, with these options on every request.
    #[must_use]
    pub fn with(&self, options: RequestOptions) -> Self {
        Self {
            inner: Arc::clone(&self.inner),
            options,
        }
    }

    /// Virtual machines.
    pub fn vms(&self) -> Vms {
        Vms(self.clone())
    }

    /// Volumes.
    pub fn volumes(&self) -> Volumes {
        Volumes(self.clone())
    }

    /// Images.
    pub fn images(&self) -> Images {
        Images(self.clone())
    }

    /// Snapshots of volumes.
    pub fn snapshots(&self) -> Snapshots {
        Snapshots(self.clone())
    }

    /// Networks.
    pub fn networks(&self) -> Networks {
        Networks(self.clone())
    }

    /// Nodes.
    pub fn nodes(&self) -> Nodes {
        Nodes(self.clone())
    }

    /// The processes of the cluster.
    pub fn members(&self) -> Members {
        Members(self.clone())
    }

    /// Storage pools.
    pub fn pools(&self) -> Pools {
        Pools(self.clone())
    }

    /// Ends the control loop and waits for it, at most until the deadline. Guests run on, and the next start adopts
    /// them. Where several processes share the store, this one leaves: another leads, and takes what it can, at once. Commits that were under way are either whole or not there. The store stays open: a program that opens the
    /// same database again keeps a clone of its `SqliteStore` and calls `close` on it, as shown there.
    ///
    /// # Errors
    /// [`ErrorKind::DeadlineExceeded`] when the loop did not end in time (it is aborted then), or it could not be written
    /// down that this process left: the others then find out when its lease has run out, and a host that fences itself
    /// does. Those of the store likewise, and of a watchdog that is not stopped.
    pub async fn shutdown(&self, deadline: Deadline) -> Result<()> {
        self.inner.stop.send_replace(true);
        #[cfg(feature = "peers")]
        let answered = match taken(&self.inner.server) {
            Some(server) => end(server, "the questions of others", deadline).await,
            None => Ok(()),
        };
        let Some(task) = taken(&self.inner.task) else {
            return Ok(());
        };
        end(task, "the control loop", deadline).await?;
        #[cfg(feature = "peers")]
        answered?;
        match tokio::time::timeout_at(deadline.instant(), self.inner.leave()).await {
            Ok(left) => left,
            Err(_) => Err(late(
                "it was not written down in time that this process left",
            )),
        }
    }

    pub(crate) fn options(&self) -> &RequestOptions {
        &self.options
    }
}

/// How long the stop of a watchdog may take.
const DISARM: Duration = Duration::from_secs(5);

fn late(message: impl Into<Cow<'static, str>>) -> Error {
    Error::new(ErrorKind::DeadlineExceeded, "cluster.shutdown", message)
}

fn taken(task: &Mutex<Option<JoinHandle<()>>>) -> Option<JoinHandle<()>> {
    task.lock().unwrap_or_else(PoisonError::into_inner).take()
}

/// Waits for a task that was told to end; aborts it when that is not in time.
async fn end(mut task: JoinHandle<()>, what: &str, deadline: Deadline) -> Result<()> {
    let ended = tokio::time::timeout_at(deadline.instant(), &mut task).await;
    ended.map(drop).map_err(|_| {
        task.abort();
        late(format!("{what} did not end in time"))
    })
}

impl Inner {
    /// Says that this process has left, and gives its leases back.
    async fn leave(&self) -> Result<()> {
        self.session.abort();
        let key = Member::key(&self.member);
        let left = async {
            let Some(record) = self.store.get(&key).await? else {
                return Ok(());
            };
            let now = self.clock.now();
            let member = Member {
                state: MemberState::Left { at: now },
                ..from_record(&record)?
            };
            let draft = Draft::new()
                .unchanged::<Member>(&self.member, Some(record.version))
                .put(&self.member, &member)?;
            let commit = finish(draft, now, &*self.ids)?;
            commit_known(&*self.store, commit).await.map(drop)
        };
        let left = left.await;
        let standing = self.standing.borrow().clone();
        standing.leave(&*self.store).await;
        left?;
        // Only who has left is not taken for lost: until then the host ends itself.
        self.feeder.disarm(Call::within(DISARM)).await
    }

    /// Reads from the cache once it has everything that was committed before the call.
    pub(crate) async fn read<T>(&self, read: impl FnOnce(&Cache) -> T) -> Result<T> {
        self.is_open()?;
        self.reach(self.store.revision().await?).await?;
        Ok(self.peek(read))
    }

    /// Fails once the cluster was shut down: there is no loop any more to carry a change out.
    pub(crate) fn is_open(&self) -> Result<()> {
        if *self.stop.borrow() {
            let message = "the cluster was shut down";
            return Err(Error::new(ErrorKind::Cancelled, "cluster", message));
        }
        Ok(())
    }

    /// Reads from the cache as it is.
    pub(crate) fn peek<T>(&self, read: impl FnOnce(&Cache) -> T) -> T {
        read(&self.cache.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// Waits until the cache has `revision`.
    async fn reach(&self, revision: Revision) -> Result<()> {
        let mut progress = self.progress.clone();
        let limit = Deadline::after(Duration::from_secs(30));
        match tokio::time::timeout_at(limit.instant(), progress.wait_for(|at| *at >= revision))
            .await
        {
            Ok(Ok(_)) => Ok(()),
            Ok(Err(_)) => Err(Error::new(
                ErrorKind::Cancelled,
                "cluster.read",
                "the cluster was shut down",
            )),
            Err(_) => Err(Error::new(
                ErrorKind::Unavailable,
                "cluster.read",
                "the records do not arrive: is the store slow?",
            )),
        }
    }

    /// Waits until `look` breaks with an answer, looking at the cache whenever the object, or what it is made of,
    /// changed. A look that goes on says how things stand: that is told when the time is up.
    pub(crate) async fn wait<T>(
        &self,
        object: &ObjectKey,
        deadline: Deadline,
        mut look: impl FnMut(&Cache) -> ControlFlow<Result<T>, String>,
    ) -> Result<T> {
        loop {
            let changed = self.waiters.register(object);
            let standing = match self.peek(&mut look) {
                ControlFlow::Break(answer) => return answer,
                ControlFlow::Continue(standing) => standing,
            };
            match tokio::time::timeout_at(deadline.instant(), changed).await {
                Ok(Ok(())) => {}
                Ok(Err(_)) => {
                    return Err(Error::new(
                        ErrorKind::Cancelled,
                        "cluster.wait",
                        "the cluster was shut down",
                    ));
                }
                Err(_) => {
                    let message = format!(
                        "it did not come about in time, last: {standing}; the request goes on, only the waiting ended"
                    );
                    return Err(Error::new(
                        ErrorKind::DeadlineExceeded,
                        "cluster.wait",
                        message,
                    ));
                }
            }
        }
    }
}
