//! Many processes over one store, as members of one cluster in this process, on simulated hosts: what the control plane adds
//! when one of them is lost.
//!
//! `lead-*`: 100,000 VMs; the leader is dropped without a word, and another process asks for a VM all the while. The time
//! runs until that VM is placed. `report-*`: every host is looked at every ten seconds, and nothing else happens.
//! `failover-*`: a process and its host are lost and the fence answers at once: the time line of each of its VMs, from the
//! moment when the loss is written down: when the process's lease has run out, and the leader has been granted it.

use std::collections::BTreeMap;
use std::io::Cursor;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures::StreamExt as _;
use novacron_benches::sim::{create, on_hosts, spec, within, world};
use novacron_core::cluster::{Builder, ListRequest};
use novacron_core::model::{MemberState, NodeId, Role};
use novacron_core::sim::{SimFence, SimWorld};
use novacron_core::store::{MemoryStore, Store, dump, load as load_dump};
use novacron_core::{Cluster, Phase, SeededIds, SystemClock};

use crate::Result;
use crate::figure::{Samples, promised, remark, reported};
use crate::site::{cpu_time, load, pass, resident};
use crate::stores::{DURABLE, postgres_store};
use crate::support::etcd::{Etcd, Setup};
use crate::support::postgres::Server;

/// The names under which this program runs itself.
pub(crate) const PARTS: [&str; 5] = [
    "failover-postgres",
    "failover-etcd",
    "lead-postgres",
    "lead-etcd",
    "report-postgres",
];

const TTL: Duration = Duration::from_secs(5);
const NODES: usize = 10_000;
const VMS: usize = 100_000;
const CALLERS: usize = 256;
const REPORT: Duration = Duration::from_secs(10);
/// For etcd; 2 GiB unless said otherwise, which the history of so many records outgrows.
const ROOM: &str = "--quota-backend-bytes=8589934592";
const WATCHED: Duration = Duration::from_secs(120);

/// Where the members of a cluster find their records.
enum Ground {
    Postgres(Server),
    Etcd(Etcd),
}

impl Ground {
    fn start(store: &str) -> Self {
        match store {
            "postgres" => Self::Postgres(Server::start(true, &DURABLE)),
            _ => Self::Etcd(Etcd::start_with(
                1,
                &Setup {
                    args: vec![ROOM.to_owned()],
                    ..Setup::default()
                },
            )),
        }
    }

    async fn store(&self) -> Result<Arc<dyn Store>> {
        Ok(match self {
            Self::Postgres(server) => Arc::new(postgres_store(server, "novacron").await?),
            Self::Etcd(etcd) => Arc::new(etcd.connect().await),
        })
    }

    async fn member(&self, role: Role) -> Result<Builder> {
        Ok(match self {
            Self::Postgres(server) => member(role).store(postgres_store(server, "novacron").await?),
            Self::Etcd(etcd) => member(role).store(etcd.connect().await),
        })
    }
}

fn member(role: Role) -> Builder {
    Cluster::builder("bench").role(role).lease_ttl(TTL)
}

pub(crate) async fn run(name: &str) -> Result<()> {
    let (what, store) = name.split_once('-').ok_or("a part and a store")?;
    match what {
        "failover" => failover(name, store).await,
        "lead" => lead(name, &Ground::start(store)).await,
        _ => report(name, &Ground::start(store)).await,
    }
}

/// [`VMS`] that run, made over a store in memory and then loaded: commit by commit a server would take many minutes.
async fn fill(ground: &Ground, world: &SimWorld) -> Result<()> {
    let store = MemoryStore::new(Arc::new(SystemClock));
    let maker = member(Role::Both).store(store.clone());
    let maker = on_hosts(maker, world, 0..NODES)?.build().await?;
    maker.nodes().wait_available(within(600)).await?;
    create(&maker, VMS, CALLERS).await?;
    maker.shutdown(within(120)).await?;
    let mut state = Vec::new();
    dump(&store, &mut state).await?;
    load_dump(
        &*ground.store().await?,
        &mut Cursor::new(state),
        &SeededIds::from_os(),
    )
    .await?;
    Ok(())
}

/// The leader of 100,000 VMs is lost.
async fn lead(name: &str, ground: &Ground) -> Result<()> {
    let world = world(NODES)?;
    let start = Instant::now();
    fill(ground, &world).await?;
    reported(
        &format!("{name}-made-and-loaded"),
        start.elapsed().as_secs_f64(),
        "s",
    );
    let start = Instant::now();
    let owner = ground.member(Role::Owner).await?;
    let owner = on_hosts(owner, &world, 0..NODES)?.build().await?;
    let first = ground.member(Role::Controller).await?.build().await?;
    owner.nodes().wait_available(within(600)).await?;
    reported(
        &format!("{name}-adopted"),
        start.elapsed().as_secs_f64(),
        "s",
    );
    let second = ground.member(Role::Controller).await?.build().await?;
    pass(TTL).await;

    // A leader that says goodbye.
    let start = Instant::now();
    first.shutdown(within(60)).await?;
    drop(first);
    placed(&second, VMS).await?;
    reported(
        &format!("{name}-handover"),
        start.elapsed().as_secs_f64(),
        "s",
    );

    let third = ground.member(Role::Controller).await?.build().await?;
    pass(TTL).await;
    let start = Instant::now();
    drop(second);
    placed(&third, VMS + 1).await?;
    let whole = start.elapsed();
    reported(
        &format!("{name}-loss-to-decision"),
        whole.as_secs_f64(),
        "s",
    );
    let beyond = whole.saturating_sub(TTL).as_secs_f64();
    promised(&format!("{name}-beyond-ttl"), beyond, "s", "< 5");
    reported(&format!("{name}-resident-3-members"), resident()?, "MiB");
    remark(&format!(
        "{} of {} guests run; load {}",
        world.running_count(),
        VMS + 2,
        load()?
    ));
    third.shutdown(within(60)).await?;
    owner.shutdown(within(60)).await?;
    Ok(())
}

/// Asks for a VM and waits until it runs.
async fn placed(cluster: &Cluster, number: usize) -> Result<()> {
    let vm = cluster.vms().create(spec(number)).await?;
    vm.wait_for(Phase::Running, within(120)).await?;
    Ok(())
}

/// Every host is looked at, and nothing else happens.
async fn report(name: &str, ground: &Ground) -> Result<()> {
    let world = world(NODES)?;
    let half = NODES / 2;
    let mut members = Vec::new();
    for hosts in [0..half, half..NODES] {
        let member = ground.member(Role::Both).await?.resync(REPORT);
        members.push(on_hosts(member, &world, hosts)?.build().await?);
    }
    for member in &members {
        member.nodes().wait_available(within(600)).await?;
    }
    pass(REPORT * 2).await;
    let (start, before) = (Instant::now(), cpu_time()?);
    pass(WATCHED).await;
    let share = (cpu_time()? - before).as_secs_f64() / start.elapsed().as_secs_f64();
    reported(&format!("{name}-cpu-of-one-core"), share * 100.0, "%");
    reported(&format!("{name}-cpu-of-two-cores"), share * 50.0, "%");
    remark(&format!(
        "{NODES} hosts, two members, every {REPORT:?}; the server's CPU is not in it; load {}",
        load()?
    ));
    for member in members {
        member.shutdown(within(60)).await?;
    }
    Ok(())
}

/// A process and its host are lost, again and again.
async fn failover(name: &str, store: &str) -> Result<()> {
    const ROUNDS: usize = 5;
    let (mut control, mut whole) = (Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        for (since_known, since_loss) in lose(&Ground::start(store)).await? {
            control.push(since_known.as_secs_f64());
            whole.push(since_loss.as_secs_f64());
        }
    }
    let control = Samples::new(control);
    promised(
        &format!("{name}-control-plane"),
        control.percentile(100),
        "s",
        "<= 1",
    );
    reported(
        &format!("{name}-control-plane-median"),
        control.median(),
        "s",
    );
    reported(
        &format!("{name}-whole"),
        Samples::new(whole).percentile(100),
        "s",
    );
    remark(&format!("TTL {TTL:?}; load {}", load()?));
    Ok(())
}

/// For each VM of the lost host: from when its process was known to be lost, and from the loss itself, until it runs
/// elsewhere.
async fn lose(ground: &Ground) -> Result<Vec<(Duration, Duration)>> {
    const LOST: usize = 8;
    let world = world(3)?;
    let mut members = Vec::new();
    for n in 0..3 {
        let mut member = ground.member(Role::Both).await?.lost_after(Duration::ZERO);
        for (i, host) in world.hosts().into_iter().enumerate() {
            member = member.fence(format!("node-{i}"), SimFence::new(&world, host));
        }
        members.push(on_hosts(member, &world, n..n + 1)?.build().await?);
    }
    for member in &members {
        member.nodes().wait_available(within(60)).await?;
    }
    let first = members.remove(0);
    let other = &members[1];
    let lost = NodeId::new("node-0")?;
    let mut vms = Vec::new();
    for number in 0..LOST {
        let vm = other.vms().create(spec(number)).await?;
        let view = vm.wait_for(Phase::Running, within(60)).await?;
        if view.run.is_some_and(|run| run.node == lost) {
            vms.push(vm);
        }
    }
    let me = first.members().me();
    let mut changes = other.watch(None).await?;
    let start = Instant::now();
    drop(first);
    world.set_reachable(world.hosts()[0], false);
    let (mut known, mut running) = (None, BTreeMap::new());
    while known.is_none() || running.len() < vms.len() {
        let page = other.members().list(&ListRequest::new()).await?;
        let member = page.items.iter().find(|m| m.id == me);
        if member.is_none_or(|m| matches!(m.state, MemberState::Lost { .. })) {
            known.get_or_insert_with(Instant::now);
        }
        for vm in &vms {
            let view = vm.get().await?;
            let elsewhere = view.run.as_ref().is_some_and(|run| run.node != lost);
            if elsewhere && view.phase == Phase::Running {
                running.entry(vm.id()).or_insert_with(Instant::now);
            }
        }
        let next = tokio::time::timeout(Duration::from_secs(60), changes.next());
        next.await?.ok_or("the watch ended")??;
    }
    let known = known.ok_or("the loss was never known")?;
    remark(&format!(
        "{} VMs; the loss was known after {:.2} s",
        vms.len(),
        (known - start).as_secs_f64()
    ));
    let took = |at: &Instant| (*at - known, *at - start);
    let took = running.values().map(took).collect();
    for member in members {
        member.shutdown(within(30)).await?;
    }
    Ok(took)
}
