//! Every kind of request, and a crash at each of its commits.
//!
//! ```text
//!   furnish ─► stage ─► the request ── commit 1 … n ── until all is quiet ──► what is seen then: the reference
//!                            └─ the same again, the process dying at commit i:
//!                               a new process ─► the request again, if it got no answer ─► quiet ─► the same is seen
//! ```
//! No driver fails here, so a story is exact: with a crash it must come to what it comes to without one. Then everything
//! is deleted, and nothing may be left. In the `late` tempo calls take their time,
//! and what was under way at the crash takes effect behind the new process's back.
//!
//! `NOVACRON_SIM_CASE=vm.stop/on,late,3,amid` tells one story, with the log of the world.

use std::collections::BTreeSet;
use std::str::FromStr;
use std::time::Duration;

use novacron_core::cluster::{CHANGES, Retention};
use novacron_core::model::{OperationId, OperationState};
use novacron_core::sim::Latency;
use novacron_core::{Cluster, Deadline, MiB};
use tokio::time::timeout;

use crate::crash_store::Moment;
use crate::invariants::{converges, nothing_left, one_writer, operations_end, runs_once};
use crate::requests::Request;
use crate::seen::seen;
use crate::site::{Site, bury, pass, running_operations, settled, tell};
use crate::stories::{Objects, STORIES, blank, done, furnish, stage};

const KEPT: Duration = Duration::from_secs(300);
const SECOND: Duration = Duration::from_secs(1);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Tempo {
    /// Calls take no time.
    Prompt,
    /// Calls take some seconds.
    Late,
}

#[derive(Clone, Debug)]
pub(crate) struct Case {
    pub story: String,
    pub tempo: Tempo,
    /// At which commit since the request, and when.
    pub death: Option<(u64, Moment)>,
}

impl std::fmt::Display for Case {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{},{:?}", self.story, self.tempo)?;
        self.death
            .map_or(Ok(()), |(n, moment)| write!(f, ",{n},{moment:?}"))
    }
}

impl FromStr for Case {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        let parts: Vec<&str> = text.split(',').collect();
        let tempo = match parts.get(1) {
            Some(&"Prompt") => Tempo::Prompt,
            Some(&"Late") => Tempo::Late,
            other => return Err(format!("{other:?} is no tempo")),
        };
        let death = match parts[2..] {
            [] => None,
            [n, moment] => {
                let moment = match moment {
                    "Before" => Moment::Before,
                    "After" => Moment::After,
                    "Amid" => Moment::Amid,
                    other => return Err(format!("{other} is no moment")),
                };
                Some((n.parse().map_err(|e| format!("{n}: {e}"))?, moment))
            }
            _ => return Err("as vm.create/blank,Late,3,Amid".to_owned()),
        };
        Ok(Self {
            story: parts[0].to_owned(),
            tempo,
            death,
        })
    }
}

/// What a story came to.
#[derive(Debug, Default)]
struct Told {
    commits: u64,
    seen: Vec<String>,
    log: Vec<String>,
}

fn latency(call: Duration) -> Latency {
    Latency {
        call: call..=call,
        shutdown: SECOND * 10..=SECOND * 10,
    }
}

/// Whether nothing is under way any more.
async fn quiet(site: &Site, cluster: &Cluster) -> Result<(), String> {
    if let Some(operation) = running_operations(cluster).await?.first() {
        return Err(format!("an operation has not ended: {operation}"));
    }
    if site.world.calls_under_way() > 0 {
        return Err("calls are under way".to_owned());
    }
    converges::check(cluster, &site.world).await
}

/// Gives the loop time until nothing is under way, and then some more.
async fn settle(site: &Site, cluster: &Cluster) -> Result<(), String> {
    settled(40, async || quiet(site, cluster).await).await
}

/// Whether the operation has ended well. An action whose process died ends as unknown.
async fn ended(cluster: &Cluster, id: OperationId, died: bool) -> Result<(), String> {
    let operation = cluster.operation(id).get().await;
    let operation = operation.map_err(|e| format!("the acknowledged operation: {e}"))?;
    match &operation.state {
        OperationState::Done => Ok(()),
        OperationState::Failed { reason } if died && reason.contains("outcome is unknown") => {
            Ok(())
        }
        _ => Err(format!("the acknowledged operation: {operation:?}")),
    }
}

/// Nothing of what was is in the way of a new request.
async fn still_works(cluster: &Cluster, objects: &Objects) -> Result<(), String> {
    let request = Request::CreateSnapshot("last".to_owned(), objects.data);
    let made = done(cluster, request).await;
    made.map_err(|e| format!("a snapshot at the end: {e}"))?;
    let request = Request::CreateVm(Box::new(blank("last")));
    let made = done(cluster, request).await;
    made.map_err(|e| format!("a VM at the end: {e}"))?;
    Ok(())
}

/// One story, from an empty cluster to an empty cluster.
async fn story(case: &Case, told: &mut Told, site: &Site) -> Result<(), String> {
    let store = site.disk.connect();
    let mut cluster = site.start(store.clone(), 1).await;
    let deadline = Deadline::after(SECOND * 60);
    let up = cluster.nodes().wait_available(deadline).await;
    up.map_err(|e| e.to_string())?;
    let objects = furnish(&cluster).await.map_err(|e| e.to_string())?;
    settle(site, &cluster).await?;
    site.world.set_latency(latency(Duration::ZERO));
    let request = stage(&case.story, site, &cluster, &objects).await;
    let request = request.map_err(|e| e.to_string())?;
    assert_eq!(request.verb(), verb(&case.story), "the story's name");
    let before = store.commits();
    if let Some((n, moment)) = case.death {
        store.dies_at(n, moment);
    }
    let calls = match case.tempo {
        Tempo::Prompt => Duration::ZERO,
        Tempo::Late => SECOND * 3,
    };
    site.world.set_latency(latency(calls));

    let mut answer = None;
    let mut failed = None;
    let life = async {
        let sent = request.send(&cluster, "key").await;
        match sent {
            Ok(sent) => answer = Some(sent.operation),
            Err(e) => return failed = Some(format!("the request: {e}")),
        }
        failed = settle(site, &cluster).await.err();
    };
    let died = tokio::select! {
        biased;
        () = store.died() => true,
        () = life => false,
    };
    if died {
        bury(Some(cluster)).await;
        site.world.set_latency(latency(Duration::ZERO));
        cluster = site.start(site.disk.connect(), 2).await;
        if answer.is_none() {
            let sent = request.send(&cluster, "key").await;
            answer = Some(
                sent.map_err(|e| format!("the request again: {e}"))?
                    .operation,
            );
        }
        settle(site, &cluster).await?;
    } else if let Some(failed) = failed {
        return Err(failed);
    } else if case.death.is_some() {
        return Err("the process did not die".to_owned());
    }
    told.commits = store.commits() - before;
    if let Some(id) = answer {
        ended(&cluster, id, died).await?;
    }
    told.seen = seen(site, &cluster).await?;

    let log = site.log();
    for effect in [" reset", " restored to "] {
        let times = log.iter().filter(|line| line.contains(effect)).count();
        if times > 1 {
            return Err(format!("{times} times:{effect}"));
        }
    }
    site.world.heal();
    still_works(&cluster, &objects).await?;
    site.delete_everything(&cluster).await?;
    operations_end::check(&cluster).await?;
    if !died {
        // Crash or not, it is the same kinds of records that are forgotten: seen once a story.
        pass(KEPT + SECOND * 130).await;
        nothing_left::forgotten(&site.disk).await?;
    }
    runs_once::check(&site.world)?;
    one_writer::check(&site.world)
}

/// Tells a story; what it came to, as far as it came.
fn play(case: &Case) -> (Told, Result<(), String>) {
    let retention = Retention {
        operations: KEPT,
        events: KEPT,
        audit: KEPT,
        idempotency: KEPT,
        graves: KEPT,
        history: SECOND * 30,
    };
    tell(async {
        let site = Site::new(1, 2, MiB(48 * 1024), retention);
        let mut told = Told::default();
        let result = timeout(SECOND * 7200, story(case, &mut told, &site)).await;
        told.log = site.log();
        (
            told,
            result.unwrap_or_else(|_| Err("it did not end".to_owned())),
        )
    })
}

/// Where two accounts differ.
pub(crate) fn difference(reference: &[String], seen: &[String]) -> Result<(), String> {
    let (a, b): (BTreeSet<_>, BTreeSet<_>) = (reference.iter().collect(), seen.iter().collect());
    let lost = a.difference(&b).map(|line| format!("\n  - {line}"));
    let new = b.difference(&a).map(|line| format!("\n  + {line}"));
    let lines: String = lost.chain(new).collect();
    if lines.is_empty() {
        return Ok(());
    }
    Err(format!("it came to something else:{lines}"))
}

/// Tells the case, and compares it with the same story without a crash and without delays.
fn check(case: &Case, reference: &[String]) -> Result<Told, (Told, String)> {
    let (told, result) = play(case);
    match result.and_then(|()| difference(reference, &told.seen)) {
        Ok(()) => Ok(told),
        Err(reason) => Err((told, reason)),
    }
}

fn undisturbed(story: &str, tempo: Tempo) -> Case {
    Case {
        story: story.to_owned(),
        tempo,
        death: None,
    }
}

/// These stories in a tempo, with a crash at each commit: how many crashes there were.
fn crash_everywhere(tempo: Tempo, of: impl Fn(&str) -> bool) -> usize {
    // Without delays, nothing is under way a second later.
    let moments: &[Moment] = match tempo {
        Tempo::Prompt => &[Moment::Before, Moment::After],
        Tempo::Late => &[Moment::Amid],
    };
    let mut failures = Vec::new();
    let mut cases = 0;
    for story in STORIES.into_iter().filter(|story| of(story)) {
        let reference = undisturbed(story, Tempo::Prompt);
        let (told, result) = play(&reference);
        result.unwrap_or_else(|e| panic!("{reference}: {e}"));
        let reference = told.seen;
        let calm = undisturbed(story, tempo);
        let commits = match check(&calm, &reference) {
            Ok(told) => told.commits,
            Err((_, reason)) => panic!("{calm}: {reason}"),
        };
        for n in 1..=commits {
            for &moment in moments {
                let death = Some((n, moment));
                let case = Case {
                    death,
                    ..calm.clone()
                };
                cases += 1;
                if let Err((_, reason)) = check(&case, &reference) {
                    failures.push((case, format!("of {commits}: {reason}")));
                }
            }
        }
    }
    if let Some((first, _)) = failures.first() {
        let all = failures.iter().map(|(case, why)| format!("{case} {why}\n"));
        panic!(
            "{}{} of {cases} crashes failed; repeat the first one by\n  NOVACRON_SIM_CASE={first} cargo test -p novacron-core --features conformance --test simulation -- --nocapture one_case",
            all.collect::<String>(),
            failures.len()
        );
    }
    cases
}

fn verb(story: &str) -> &str {
    story.split('/').next().unwrap_or(story)
}

fn of_vms(story: &str) -> bool {
    story.starts_with("vm.")
}

#[test]
fn every_change_has_a_story() {
    let told: BTreeSet<_> = STORIES.map(verb).into();
    assert_eq!(told, BTreeSet::from(CHANGES));
}

#[test]
fn requests_on_vms_survive_a_crash_at_each_commit() {
    println!("{} crashes", crash_everywhere(Tempo::Prompt, of_vms));
}

#[test]
fn other_requests_survive_a_crash_at_each_commit() {
    println!(
        "{} crashes",
        crash_everywhere(Tempo::Prompt, |story| !of_vms(story))
    );
}

#[test]
fn requests_on_vms_survive_a_crash_in_the_middle_of_their_calls() {
    println!("{} crashes", crash_everywhere(Tempo::Late, of_vms));
}

#[test]
fn other_requests_survive_a_crash_in_the_middle_of_their_calls() {
    println!(
        "{} crashes",
        crash_everywhere(Tempo::Late, |story| !of_vms(story))
    );
}

/// The case that `NOVACRON_SIM_CASE` names, told in full; one that is known to be right if none.
#[test]
fn one_case() {
    let case = std::env::var("NOVACRON_SIM_CASE");
    let case: Case = case
        .as_deref()
        .unwrap_or("vm.create/blank,Late,3,Amid")
        .parse()
        .unwrap();
    let (reference, result) = play(&undisturbed(&case.story, Tempo::Prompt));
    result.unwrap();
    if let Err((told, reason)) = check(&case, &reference.seen) {
        for line in told.log {
            eprintln!("  {line}");
        }
        panic!("{case}: {reason}");
    }
}
