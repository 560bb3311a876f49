//! What nobody asks for: a process is lost, its host is fenced, its VMs start elsewhere; and the leader dies at each of the
//! commits that this takes.
//!
//! ```text
//!   two processes, VMs on the second's host ─► the loss ── the leader's commit 1 … n ── until its VMs run on the leader's host
//!                                                   └─ the same again, the leader dying at commit i: a new one goes on
//!   then what was lost comes back, everything is deleted, and nothing may be left
//! ```
//! With a crash it must come to what it comes to without one. [`LOSSES`] lists the kinds; a new one joins by a line there.
//!
//! `NOVACRON_SIM_LOSS=host,Late,3,Amid` tells one story, with the log of the world.

use std::time::Duration;

use novacron_core::cluster::Retention;
use novacron_core::sim::Latency;
use novacron_core::{Cluster, Deadline, MiB};
use tokio::time::timeout;

use crate::crash_store::{Cut, Moment};
use crate::invariants::{converges, one_writer, operations_end, runs_once};
use crate::requests::Request;
use crate::seen::seen;
use crate::site::{RESYNC, Site, bury, every, node, pass, settled, tell};
use crate::stories::{blank, done};
use crate::systematic::{Case, Tempo, difference};

const SECOND: Duration = Duration::from_secs(1);

/// How the process is lost.
const LOSSES: [&str; 4] = [
    // It dies, and its guests go on until the fence.
    "process", // It dies with its host, which boots and does not answer.
    "host",    // It is cut off from the store, and goes on acting on its host.
    "cut",     // It stands still.
    "still",
];

/// Whether the VMs run on the leader's host, and nothing else is under way.
async fn moved(site: &Site, cluster: &Cluster) -> Result<(), String> {
    for view in every!(cluster.vms()) {
        let on = view.run.as_ref().map(|run| run.node.clone());
        if on != Some(node(0)) {
            return Err(format!("VM {} is on {on:?}: {}", view.vm.id, view.reason));
        }
    }
    if site.world.calls_under_way() > 0 {
        return Err("calls are under way".to_owned());
    }
    converges::check(cluster, &site.world).await
}

async fn settle(site: &Site, cluster: &Cluster) -> Result<(), String> {
    settled(100, async || moved(site, cluster).await).await
}

fn latency(call: Duration) -> Latency {
    Latency {
        call: call..=call,
        shutdown: Duration::ZERO..=Duration::ZERO,
    }
}

/// How many commits of the leader it took, and what was seen then.
type Told = (u64, Vec<String>);

async fn story(case: &Case, site: &Site) -> Result<Told, String> {
    let (store, other) = (site.disk.connect(), site.disk.connect());
    let (post, post_of_other) = (site.post(), site.post());
    let started = site.start_on(store.clone(), 1, [0], &post).await;
    let mut leader = started.map_err(|e| e.to_string())?;
    let started = site.start_on(other.clone(), 2, [1], &post_of_other).await;
    let mut lost = Some(started.map_err(|e| e.to_string())?);
    let deadline = Deadline::after(SECOND * 60);
    let up = leader.nodes().wait_available(deadline).await;
    up.map_err(|e| e.to_string())?;
    for request in [
        Request::Schedulable(node(0), false),
        Request::CreateVm(Box::new(blank("a"))),
        Request::CreateVm(Box::new(blank("b"))),
        Request::Schedulable(node(0), true),
    ] {
        let made = done(&leader, request).await;
        made.map_err(|e| e.to_string())?;
    }
    pass(RESYNC * 3).await;

    let before = store.commits();
    if let Some((n, moment)) = case.death {
        store.dies_at(n, moment);
    }
    let calls = match case.tempo {
        Tempo::Prompt => Duration::ZERO,
        Tempo::Late => SECOND * 3,
    };
    site.world.set_latency(latency(calls));
    let host = site.world.hosts()[1];
    match case.story.as_str() {
        "process" => bury(lost.take()).await,
        "host" => {
            bury(lost.take()).await;
            site.world.set_reachable(host, false);
            site.world.reboot(host);
        }
        "cut" => other.cut(Cut::Everything),
        "still" => {
            other.cut(Cut::Everything);
            post_of_other.line.hold(true);
        }
        unknown => return Err(format!("no loss {unknown}")),
    }
    let died = tokio::select! {
        biased;
        () = store.died() => true,
        result = settle(site, &leader) => {
            result?;
            false
        }
    };
    if died {
        bury(Some(leader)).await;
        let started = site.start_on(site.disk.connect(), 3, [0], &post).await;
        leader = started.map_err(|e| e.to_string())?;
        settle(site, &leader).await?;
    } else if case.death.is_some() {
        return Err("the leader did not die".to_owned());
    }
    let commits = store.commits() - before;
    let seen = seen(site, &leader).await?;

    site.world.set_latency(latency(Duration::ZERO));
    site.world.heal();
    other.cut(Cut::Nothing);
    post_of_other.line.hold(false);
    if lost.is_none() {
        let started = site.start_on(other, 4, [1], &post_of_other).await;
        lost = Some(started.map_err(|e| e.to_string())?);
    }
    pass(SECOND * 60).await;
    moved(site, &leader).await?;
    site.delete_everything(&leader).await?;
    operations_end::check(&leader).await?;
    runs_once::check(&site.world)?;
    one_writer::check(&site.world)?;
    drop(lost);
    Ok((commits, seen))
}

/// What the story came to, and the log of its world.
fn play(case: &Case) -> (Result<Told, String>, Vec<String>) {
    tell(async {
        let site = Site::shared(1, 2, MiB(48 * 1024), Retention::default());
        let result = timeout(SECOND * 7200, story(case, &site)).await;
        let endless = |_| Err("it did not end".to_owned());
        (result.unwrap_or_else(endless), site.log())
    })
}

fn undisturbed(loss: &str, tempo: Tempo) -> Case {
    Case {
        story: loss.to_owned(),
        tempo,
        death: None,
    }
}

fn check(case: &Case, reference: &[String]) -> Result<u64, String> {
    let (commits, seen) = play(case).0?;
    difference(reference, &seen)?;
    Ok(commits)
}

fn crash_everywhere(tempo: Tempo) {
    let (mut cases, mut failures) = (0, Vec::new());
    for loss in LOSSES {
        let calm = undisturbed(loss, Tempo::Prompt);
        let (_, reference) = play(&calm).0.unwrap_or_else(|e| panic!("{calm}: {e}"));
        let calm = undisturbed(loss, tempo);
        let commits = check(&calm, &reference).unwrap_or_else(|e| panic!("{calm}: {e}"));
        assert!(commits > 5, "{calm}: {commits} commits are no failover");
        for n in 1..=commits {
            for moment in [Moment::Before, Moment::After, Moment::Amid] {
                let death = Some((n, moment));
                let case = Case {
                    death,
                    ..calm.clone()
                };
                cases += 1;
                if let Err(reason) = check(&case, &reference) {
                    failures.push(format!("{case} of {commits}: {reason}"));
                }
            }
        }
    }
    println!("{cases} crashes of the leader");
    assert!(
        failures.is_empty(),
        "{}\nrepeat one by\n  NOVACRON_SIM_LOSS=… cargo test -p novacron-core --features conformance --test simulation -- --nocapture one_loss",
        failures.join("\n")
    );
}

#[test]
fn a_failover_survives_a_crash_of_the_leader_at_each_commit() {
    crash_everywhere(Tempo::Prompt);
}

#[test]
fn a_failover_survives_a_crash_of_the_leader_in_the_middle_of_its_calls() {
    crash_everywhere(Tempo::Late);
}

/// The story that `NOVACRON_SIM_LOSS` names, told in full; one that is known to be right if none.
#[test]
fn one_loss() {
    let case = std::env::var("NOVACRON_SIM_LOSS");
    let case = case.as_deref().unwrap_or("host,Late,3,Amid");
    let case: Case = case.parse().unwrap();
    let (_, reference) = play(&undisturbed(&case.story, Tempo::Prompt)).0.unwrap();
    let (result, log) = play(&case);
    let result = result.and_then(|(_, seen)| difference(&reference, &seen));
    if let Err(reason) = result {
        for line in log {
            eprintln!("  {line}");
        }
        panic!("{case}: {reason}");
    }
}
