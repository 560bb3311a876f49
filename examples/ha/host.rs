//! A host's process: what a program of your own would run on every host, over one store.
//!
//! It drives the hypervisor of its host, reaches the shared pool, may lead, and knows how every host is fenced. What it
//! says on its standard output is for the director's time line ([`Said`]).

use std::io::{Read, Write};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use novacron_core::Deadline;
use novacron_core::cluster::{Builder, Cluster, ListRequest, Peers};
use novacron_core::driver::{Call, Fence, FenceTarget};
use novacron_core::model::{FenceReceipt, HostId};
use novacron_core::store::{EtcdOptions, EtcdStore, PostgresOptions, PostgresStore, Store};
use novacron_examples::{Result, leftovers};
use novacron_kvm::QemuHypervisor;
use novacron_kvm::fence::ProcessFence;
use novacron_storage::LocalStorage;
use tokio::signal::unix::{SignalKind, signal};

use crate::net::{HOSTS, address};
use crate::servers::Place;

/// How long a process that says nothing counts as alive.
pub(crate) const TTL: Duration = Duration::from_secs(5);
/// How long a process that was started again has, after the lease of the one before ran out, to take its node back.
pub(crate) const GRACE: Duration = Duration::from_secs(1);
/// How often it is looked whether this process leads.
const LOOK: Duration = Duration::from_millis(10);

/// What a host's process tells the director.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Said {
    /// It has joined, under this number.
    Joined(u64),
    /// It leads, or leads no more.
    Leads(bool),
    /// It begins to fence a host.
    Fencing(String),
    /// The fence of a host has answered.
    Fenced(String, String),
    /// What came of a request of the next feature level (0, 2), and of raising the level (1).
    Tried(u8, String),
}

impl Said {
    fn say(&self) {
        let line = match self {
            Self::Joined(member) => format!("joined {member}"),
            Self::Leads(leads) => format!("leads {leads}"),
            Self::Fencing(node) => format!("fencing {node}"),
            Self::Fenced(node, what) => format!("fenced {node} {what}"),
            Self::Tried(number, what) => format!("tried {number} {what}"),
        };
        let mut out = std::io::stdout().lock();
        // The director is gone: so is who would read it.
        let _ = writeln!(out, "{}", line.replace('\n', " ")).and_then(|()| out.flush());
    }

    pub(crate) fn parse(line: &str) -> Option<Self> {
        let (word, rest) = line.split_once(' ')?;
        Some(match word {
            "joined" => Self::Joined(rest.parse().ok()?),
            "leads" => Self::Leads(rest.parse().ok()?),
            "fencing" => Self::Fencing(rest.to_owned()),
            "fenced" => {
                let (node, what) = rest.split_once(' ')?;
                Self::Fenced(node.to_owned(), what.to_owned())
            }
            "tried" => {
                let (number, what) = rest.split_once(' ')?;
                Self::Tried(number.parse().ok()?, what.to_owned())
            }
            _ => return None,
        })
    }
}

/// The state folder of a host's hypervisor.
pub(crate) fn state(dir: &Path, host: &str) -> PathBuf {
    dir.join("hosts").join(host)
}

/// The folder of the pool that all share.
pub(crate) fn pool(dir: &Path) -> PathBuf {
    dir.join("pool")
}

/// All three are this machine here, so each is given the id of a host of its own.
fn host_id(host: &str) -> Result<HostId> {
    Ok(format!("0{host}000000-0000-4000-8000-000000000000").parse()?)
}

/// The store, and a builder over it: what every process of this cluster begins with.
pub(crate) async fn begin(place: &Place) -> Result<(Arc<dyn Store>, Builder)> {
    let builder = Cluster::builder("ha").lease_ttl(TTL).lost_after(GRACE);
    Ok(match place {
        Place::Etcd => {
            let store = EtcdStore::connect(EtcdOptions::new(Place::endpoints())).await?;
            (Arc::new(store.clone()), builder.store(store))
        }
        Place::Postgres => {
            let options = PostgresOptions::new(&Place::connection())?;
            let store = PostgresStore::connect(options).await?;
            (Arc::new(store.clone()), builder.store(store))
        }
    })
}

/// Runs until it is asked to shut down (SIGTERM), or killed.
pub(crate) async fn run(place: &Place, dir: &Path, host: &str) -> Result<()> {
    end_with_director(dir.to_owned());
    let mut asked = signal(SignalKind::terminate())?;
    let mut upgrade = signal(SignalKind::user_defined1())?;
    let (_, mut builder) = begin(place).await?;
    for other in HOSTS {
        let fence = Told(ProcessFence::new(state(dir, other)));
        builder = builder.fence(other, fence);
    }
    let cluster = builder
        .process(format!("host-{host}/{}", std::process::id()))
        .node(
            host,
            QemuHypervisor::new(state(dir, host)).host_id(host_id(host)?),
        )
        .storage("shared", LocalStorage::open(pool(dir)).await?)
        .peers(Peers::listening(SocketAddr::new(address(host).parse()?, 0)))
        .build()
        .await?;
    Said::Joined(cluster.members().me().0).say();
    let mut led = false;
    let mut look = tokio::time::interval(LOOK);
    loop {
        tokio::select! {
            _ = asked.recv() => break,
            _ = upgrade.recv() => try_upgrade(&cluster).await,
            _ = look.tick() => {
                let leads = cluster.members().leads();
                if leads != led {
                    led = leads;
                    Said::Leads(leads).say();
                }
            }
        }
    }
    Ok(cluster
        .shutdown(Deadline::after(Duration::from_secs(10)))
        .await?)
}

/// Asks for what the next feature level brings, for that level, and again: see [`crate::upgrade`].
async fn try_upgrade(cluster: &Cluster) {
    let annotate = async || {
        let vms = cluster.vms().list(&ListRequest::new()).await?.items;
        let vm = vms.first().map(|vm| cluster.vms().by_id(vm.vm.id));
        let annotations = [("next-level".to_owned(), "yes".to_owned())].into();
        match vm {
            Some(vm) => vm
                .set_annotations(annotations)
                .await
                .map(|_| "done".to_owned()),
            None => Ok("there is no VM".to_owned()),
        }
    };
    let raise = async || {
        let level = cluster.finalize_upgrade().await?;
        Ok(format!("raised to {}", level.cluster))
    };
    let told = |answer: novacron_core::Result<String>| {
        answer.unwrap_or_else(|error| format!("refused: {}", error.report()))
    };
    Said::Tried(0, told(annotate().await)).say();
    Said::Tried(1, told(raise().await)).say();
    Said::Tried(2, told(annotate().await)).say();
}

/// A fence that says when it begins and when it has ended.
#[derive(Debug)]
struct Told<F>(F);

#[async_trait]
impl<F: Fence> Fence for Told<F> {
    async fn fence(&self, call: Call, target: &FenceTarget) -> novacron_core::Result<FenceReceipt> {
        Said::Fencing(target.node.to_string()).say();
        let answer = self.0.fence(call, target).await;
        let what = match &answer {
            Ok(receipt) => format!("{}: {}", receipt.method, receipt.detail),
            Err(error) => format!("failed: {}", error.report()),
        };
        Said::Fenced(target.node.to_string(), what).say();
        answer
    }
}

/// The director holds the other end of our input: when that is closed it is gone, and nobody else would end the guests.
/// A thread of its own, since the runtime's end would wait for tokio's reading of the input.
fn end_with_director(dir: PathBuf) {
    std::thread::spawn(move || {
        let _ = std::io::stdin().read(&mut [0]);
        let _ = leftovers::end_guests(&dir);
        std::process::exit(1);
    });
}
