//! The stories: what is done to the hosts, the leader and the store, and what must come of it.

use std::time::Duration;

use novacron_core::Phase;
use novacron_core::lifecycle::RunPhase;
use novacron_examples::Result;
use rustix::process::Signal;
use tokio::time::Instant;

use crate::checks::{
    Boots, Moving, boots, fencing, lost, millis, never_fenced, never_lost, next_leader, same_boots,
    started,
};
use crate::ground::{Ground, soon};
use crate::host::{Said, TTL};
use crate::line::{Seen, What};
use crate::net::HOSTS;
use crate::servers::{Place, Servers};
use crate::{reach, upgrade};

/// One of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Story {
    Kill,
    Restart,
    Partition,
    PartitionLeader,
    Flap,
    StopLeader,
    Pause,
    PauseStarting,
    PauseLeader,
    KillLeader,
    Twice,
    RestartAll,
    EtcdLeader,
    PostgresRestart,
    Outage,
    Reach,
    Upgrade,
}

/// All, under their names.
pub(crate) const STORIES: [(&str, Story); 17] = [
    ("kill", Story::Kill),
    ("restart", Story::Restart),
    ("partition", Story::Partition),
    ("partition-leader", Story::PartitionLeader),
    ("flap", Story::Flap),
    ("stop-leader", Story::StopLeader),
    ("pause", Story::Pause),
    ("pause-starting", Story::PauseStarting),
    ("pause-leader", Story::PauseLeader),
    ("kill-leader", Story::KillLeader),
    ("twice", Story::Twice),
    ("restart-all", Story::RestartAll),
    ("etcd-leader", Story::EtcdLeader),
    ("postgres-restart", Story::PostgresRestart),
    ("outage", Story::Outage),
    ("reach", Story::Reach),
    ("upgrade", Story::Upgrade),
];

impl Story {
    /// Whether it can be told over this store.
    pub(crate) fn is_of(self, place: &Place) -> bool {
        match self {
            Self::EtcdLeader => *place == Place::Etcd,
            Self::PostgresRestart => *place == Place::Postgres,
            Self::Upgrade => upgrade::next().is_some(),
            _ => true,
        }
    }

    /// Tells it. In the end everything is as it should be again.
    pub(crate) async fn tell(self, ground: &mut Ground) -> Result<()> {
        ground.spread().await?;
        if self == Self::Upgrade {
            return upgrade::upgrade(ground).await;
        }
        let from = match self {
            Self::Kill => {
                let host = ground.follower()?;
                kill(
                    ground,
                    host,
                    "a host's process and its guests are killed (kill -9)",
                )
                .await
            }
            Self::KillLeader => {
                let host = ground.leader()?;
                kill(
                    ground,
                    host,
                    "the leader and its guests are killed (kill -9)",
                )
                .await
            }
            Self::Twice => twice(ground).await,
            Self::RestartAll => restart_all(ground).await,
            Self::Outage => outage(ground).await,
            Self::Restart => restart(ground).await,
            Self::Partition => {
                let host = ground.follower()?;
                partition(ground, host, "a host is cut off from the network").await
            }
            Self::PartitionLeader => {
                let host = ground.leader()?;
                partition(ground, host, "the leader is cut off from the network").await
            }
            Self::Flap => flap(ground).await,
            Self::StopLeader => stop_leader(ground).await,
            Self::Pause => pause(ground).await,
            Self::PauseStarting => pause_starting(ground).await,
            Self::PauseLeader => pause_leader(ground).await,
            Self::EtcdLeader => etcd_leader(ground).await,
            Self::PostgresRestart => postgres_restart(ground).await,
            Self::Reach => reach::reach(ground).await,
            Self::Upgrade => return Err("told above".into()),
        }?;
        ground.settle(from).await
    }
}

async fn kill(ground: &mut Ground, host: &'static str, title: &str) -> Result<usize> {
    let from = ground.line.begin(title);
    let moving = Moving::from(ground, host).await?;
    ground.line.note(format!(
        "kill -9 of host {host}'s process and of its guests"
    ));
    ground.signal(host, Signal::KILL)?;
    ground.kill_guests(host)?;
    moving.follow(ground, from).await?;
    ground.ended(host).await?;
    Ok(from)
}

/// The leader is killed, too, in the middle of a failover: the third host finishes it, and takes all.
async fn twice(ground: &mut Ground) -> Result<usize> {
    let (leader, host) = (ground.leader()?, ground.follower()?);
    let from = ground
        .line
        .begin("a host is killed, and then the leader, as it fences it (kill -9)");
    let first = Moving::from(ground, host).await?;
    let second = Moving::from(ground, leader).await?;
    ground.line.note(format!(
        "kill -9 of host {host}'s process and of its guests"
    ));
    ground.signal(host, Signal::KILL)?;
    ground.kill_guests(host)?;
    fencing(ground, from, host).await?;
    ground.signal(leader, Signal::KILL)?;
    ground.kill_guests(leader)?;
    let then = ground.line.since(0).len();
    ground.line.note(format!(
        "kill -9 of host {leader}'s process and of its guests"
    ));
    second.follow(ground, then).await?;
    for (vm, name, epoch) in &first.vms {
        started(ground, from, host, *vm, epoch + 1, RunPhase::Running).await?;
        ground.line.note(format!("{name} runs, too"));
    }
    ground.ended(host).await?;
    ground.ended(leader).await?;
    Ok(from)
}

/// All processes are killed at once, and started again: no guest notices.
async fn restart_all(ground: &mut Ground) -> Result<usize> {
    let boots = boots(ground);
    let from = ground
        .line
        .begin("all three processes are killed, and started again at once");
    for host in HOSTS {
        ground.signal(host, Signal::KILL)?;
    }
    ground.line.note("kill -9 of every host's process");
    for host in HOSTS {
        ground.ended(host).await?;
        ground.start(host).await?;
    }
    for host in HOSTS {
        ground.available(host).await?;
    }
    same_boots(ground, &boots).await?;
    never_fenced(ground, from)?;
    Ok(from)
}

/// The store does not answer for longer than every lease: nobody may do anything, and nobody is to blame.
async fn outage(ground: &mut Ground) -> Result<usize> {
    let boots = boots(ground);
    let from = ground
        .line
        .begin("the store is away for longer than the leases");
    let away = match ground.place {
        Place::Etcd => {
            let leader = Servers::etcd_leader()?;
            let other = HOSTS
                .into_iter()
                .find(|host| *host != leader)
                .ok_or("one host")?;
            vec![leader, other]
        }
        Place::Postgres => vec!["postgres"],
    };
    for server in &away {
        ground.servers.kill(server, Signal::KILL)?;
        ground
            .line
            .note(format!("kill -9 of {} {server}", ground.place.name()));
    }
    let leader = ground.leader()?;
    ground
        .line
        .wait(from, soon(), "the leader steps down", |seen| {
            let host = format!("host {leader}");
            (seen.who == host && seen.what == What::Said(Said::Leads(false))).then_some(())
        })
        .await?;
    // Time enough for each of them to count as gone.
    pass(TTL).await?;
    for server in &away {
        match ground.place {
            Place::Etcd => ground.servers.start_etcd(server, &ground.net)?,
            Place::Postgres => ground.servers.start_postgres()?,
        }
    }
    let back = ground.line.since(0).len();
    ground.line.note(format!("{} is back", ground.place.name()));
    next_leader(ground, back, "").await?;
    // Whoever leads now must not take the others for dead: they could not say that they live.
    same_boots(ground, &boots).await?;
    let started = Instant::now();
    turned_off_and_on(ground, &boots).await?;
    ground.line.note(format!(
        "a VM was turned off and on within {} ms",
        millis(started.elapsed())
    ));
    never_fenced(ground, from)?;
    Ok(from)
}

/// The process alone is killed, and is back before its lease has run out: its guests do not notice.
async fn restart(ground: &mut Ground) -> Result<usize> {
    let host = ground.follower()?;
    let from = ground
        .line
        .begin("a host's process is killed, and started again at once");
    killed_and_started(ground, host, from).await?;
    Ok(from)
}

async fn killed_and_started(ground: &mut Ground, host: &'static str, from: usize) -> Result<()> {
    let boots = boots(ground);
    ground
        .line
        .note(format!("kill -9 of host {host}'s process"));
    ground.signal(host, Signal::KILL)?;
    ground.ended(host).await?;
    ground.start(host).await?;
    ground.available(host).await?;
    ground
        .line
        .note(format!("host {host} is looked after again"));
    same_boots(ground, &boots).await?;
    never_fenced(ground, from)
}

async fn partition(ground: &mut Ground, host: &'static str, title: &str) -> Result<usize> {
    let from = ground.line.begin(title);
    let moving = Moving::from(ground, host).await?;
    ground.line.note(format!("host {host}'s port goes down"));
    ground.net.cut(host)?;
    // It is out of sight, not dead: until it is fenced its guest writes on.
    for guest in ground.guests_of(host).await? {
        ground.beats(guest).await?;
        ground
            .line
            .note(format!("{} on host {host} runs on", guest.name));
    }
    moving.follow(ground, from).await?;
    ground.ended(host).await?;
    ground.net.mend(host)?;
    ground.line.note(format!("host {host}'s port is up again"));
    Ok(from)
}

/// Each host is cut off for less than a lease: nobody notices.
async fn flap(ground: &mut Ground) -> Result<usize> {
    let boots = boots(ground);
    let from = ground.line.begin("each host is cut off for a short while");
    for host in HOSTS {
        ground.net.cut(host)?;
        ground.line.note(format!("host {host}'s port goes down"));
        pass(TTL * 2 / 5).await?;
        ground.net.mend(host)?;
        ground.line.note(format!("host {host}'s port is up again"));
        // It has to come through, and to renew its lease.
        pass(TTL).await?;
    }
    turned_off_and_on(ground, &boots).await?;
    never_lost(ground, from)?;
    Ok(from)
}

async fn stop_leader(ground: &mut Ground) -> Result<usize> {
    let leader = ground.leader()?;
    let boots = boots(ground);
    let from = ground.line.begin("the leader is shut down (SIGTERM)");
    ground
        .line
        .note(format!("SIGTERM to host {leader}'s process"));
    let asked = Instant::now();
    ground.signal(leader, Signal::TERM)?;
    let next = next_leader(ground, from, leader).await?;
    ground.ended(leader).await?;
    ground.line.note(format!(
        "the lead was handed over within {} ms",
        millis(next - asked)
    ));
    ground.start(leader).await?;
    ground.available(leader).await?;
    same_boots(ground, &boots).await?;
    never_fenced(ground, from)?;
    ground.settle(from).await?;

    let leader = ground.leader()?;
    let from = ground
        .line
        .begin("the leader's process is killed (kill -9), and started again at once");
    let asked = Instant::now();
    killed_and_started(ground, leader, from).await?;
    let next = next_leader(ground, from, "").await?;
    ground.line.note(format!(
        "the next one led after {} ms",
        millis(next - asked)
    ));
    if next - asked > TTL + Duration::from_secs(2) {
        return Err("nobody led for too long".into());
    }
    Ok(from)
}

/// Lets time pass: that nothing happens meanwhile is what is to be seen.
async fn pass(time: Duration) -> Result<()> {
    let passed = tokio::time::timeout(time, std::future::pending::<()>());
    match passed.await {
        Ok(()) => Err("for ever is over".into()),
        Err(_) => Ok(()),
    }
}

async fn pause(ground: &mut Ground) -> Result<usize> {
    let host = ground.follower()?;
    let from = ground
        .line
        .begin("a host's process is stopped (SIGSTOP) for longer than its lease");
    let moving = Moving::from(ground, host).await?;
    ground
        .line
        .note(format!("SIGSTOP to host {host}'s process"));
    ground.signal(host, Signal::STOP)?;
    moving.follow(ground, from).await?;
    ground.ended(host).await?;
    Ok(from)
}

/// It is in the middle of a start: what that has done is ended, and it does no more.
async fn pause_starting(ground: &mut Ground) -> Result<usize> {
    let host = ground.follower()?;
    let id = ground.guests_of(host).await?[0].vm.id();
    let from = ground
        .line
        .begin("a host's process is stopped (SIGSTOP) as it starts a guest");
    let vm = ground.cluster.vms().by_id(id);
    vm.stop().await?.wait(soon()).await?;
    vm.start().await?;
    let starting = |seen: &Seen| {
        let What::Run(v, _, epoch, RunPhase::Starting) = &seen.what else {
            return None;
        };
        (*v == id).then_some(*epoch)
    };
    let epoch = ground
        .line
        .wait(from, soon(), "it starts", starting)
        .await?;
    ground.signal(host, Signal::STOP)?;
    ground
        .line
        .note(format!("SIGSTOP to host {host}'s process"));
    let mut moving = Moving::from(ground, host).await?;
    for (vm, _, last) in &mut moving.vms {
        if *vm == id {
            *last = epoch;
        }
    }
    moving.follow(ground, from).await?;
    ground.ended(host).await?;
    Ok(from)
}

/// A leader without guests is not fenced: it comes back, and finds that it leads no more.
async fn pause_leader(ground: &mut Ground) -> Result<usize> {
    let leader = ground.leader()?;
    let follower = ground.follower()?;
    for guest in ground.guests_of(leader).await? {
        ground.put(guest, follower).await?;
    }
    let member = ground.member(leader);
    let from = ground
        .line
        .begin("the leader, without guests, is stopped (SIGSTOP) for longer than its lease");
    ground
        .line
        .note(format!("SIGSTOP to host {leader}'s process"));
    ground.signal(leader, Signal::STOP)?;
    next_leader(ground, from, leader).await?;
    lost(ground, from, member).await?;
    // What is decided meanwhile must stand.
    let guest = &ground.guests[0];
    let before = guest.vm.get().await?.claim.ok_or("it has no claim")?.epoch;
    guest.vm.stop().await?.wait(soon()).await?;
    guest.vm.start().await?.wait(soon()).await?;
    let cont = ground.line.since(0).len();
    ground
        .line
        .note(format!("SIGCONT to host {leader}'s process"));
    ground.signal(leader, Signal::CONT)?;
    ground
        .line
        .wait(cont, soon(), "it is alive again", |seen| {
            (seen.what == What::Member(member, "alive")).then_some(())
        })
        .await?;
    let view = ground.guests[0].vm.wait_for(Phase::Running, soon()).await?;
    let epoch = view.claim.ok_or("it has no claim")?.epoch;
    if epoch.0 != before.0 + 1 {
        return Err(format!("epoch {epoch} after {before}: it was started twice").into());
    }
    if ground.leader()? == leader {
        return Err("the one that was stopped leads, beside another".into());
    }
    never_fenced(ground, from)?;
    Ok(from)
}

async fn etcd_leader(ground: &mut Ground) -> Result<usize> {
    let from = ground.line.begin("etcd's leader is killed (kill -9)");
    let boots = boots(ground);
    let member = Servers::etcd_leader()?;
    ground.line.note(format!(
        "kill -9 of etcd's member on host {member}, which leads"
    ));
    ground.servers.kill(member, Signal::KILL)?;
    let asked = Instant::now();
    turned_off_and_on(ground, &boots).await?;
    ground.line.note(format!(
        "a VM was turned off and on within {} ms",
        millis(asked.elapsed())
    ));
    never_lost(ground, from)?;
    ground.servers.start_etcd(member, &ground.net)?;
    ground
        .line
        .note(format!("etcd's member on host {member} is started again"));
    Ok(from)
}

async fn postgres_restart(ground: &mut Ground) -> Result<usize> {
    let from = ground.line.begin("PostgreSQL is restarted, and killed");
    let boots = boots(ground);
    for (signal, name) in [
        (Signal::INT, "fast shutdown"),
        (Signal::QUIT, "immediate shutdown"),
    ] {
        ground
            .line
            .note(format!("{name} of PostgreSQL, and a start"));
        ground.servers.kill("postgres", signal)?;
        ground.servers.start_postgres()?;
        let asked = Instant::now();
        turned_off_and_on(ground, &boots).await?;
        ground.line.note(format!(
            "a VM was turned off and on within {} ms",
            millis(asked.elapsed())
        ));
        ground.beats(&ground.guests[0]).await?;
    }
    never_lost(ground, from)?;
    Ok(from)
}

/// The first VM; the others' guests do not notice.
async fn turned_off_and_on(ground: &Ground, boots: &Boots) -> Result<()> {
    let guest = &ground.guests[0];
    guest.vm.stop().await?.wait(soon()).await?;
    guest.vm.start().await?.wait(soon()).await?;
    same_boots(ground, &boots[1..]).await
}
