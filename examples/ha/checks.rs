//! What the stories wait for and check, and a failover from end to end ([`Moving`]).

use std::time::Duration;

use novacron_core::lifecycle::RunPhase;
use novacron_core::model::VmId;
use novacron_examples::Result;
use tokio::time::Instant;

use crate::ground::{Ground, Guest, soon};
use crate::host::{GRACE, Said};
use crate::line::{Seen, What};

/// When another than `host` leads.
pub(crate) async fn next_leader(ground: &Ground, from: usize, host: &str) -> Result<Instant> {
    let old = format!("host {host}");
    ground
        .line
        .wait(from, soon(), "another leads", |seen| {
            let leads = seen.what == What::Said(Said::Leads(true)) && seen.who != old;
            leads.then_some(seen.at)
        })
        .await
}

/// Which boot each guest is in.
pub(crate) type Boots = [(VmId, Option<String>)];

pub(crate) fn boots(ground: &Ground) -> Vec<(VmId, Option<String>)> {
    let boot = |vm| ground.witness.last_beat(vm).map(|(boot, _)| boot);
    ground
        .guests
        .iter()
        .map(|guest| (guest.vm.id(), boot(guest.vm.id())))
        .collect()
}

/// The guests go on, and never noticed anything.
pub(crate) async fn same_boots(ground: &Ground, before: &Boots) -> Result<()> {
    for guest in ground.guests.iter() {
        let Some((_, boot)) = before.iter().find(|(vm, _)| *vm == guest.vm.id()) else {
            continue;
        };
        ground.beats(guest).await?;
        let now = ground
            .witness
            .last_beat(guest.vm.id())
            .map(|(boot, _)| boot);
        if now != *boot {
            return Err(format!("{} was booted anew: {boot:?}, {now:?}", guest.name).into());
        }
    }
    Ok(())
}

pub(crate) fn never_fenced(ground: &Ground, from: usize) -> Result<()> {
    let fenced = |seen: &Seen| matches!(seen.what, What::Said(Said::Fencing(_)));
    match ground.line.since(from).iter().find(|seen| fenced(seen)) {
        Some(seen) => Err(format!("nothing had to be fenced: {seen:?}").into()),
        None => Ok(()),
    }
}

pub(crate) fn never_lost(ground: &Ground, from: usize) -> Result<()> {
    let lost = |seen: &Seen| matches!(seen.what, What::Member(_, "lost"));
    match ground.line.since(from).iter().find(|seen| lost(seen)) {
        Some(seen) => Err(format!("no process was lost: {seen:?}").into()),
        None => never_fenced(ground, from),
    }
}

pub(crate) async fn lost(ground: &Ground, from: usize, member: u64) -> Result<Instant> {
    ground
        .line
        .wait(
            from,
            soon(),
            "its process is written down as lost",
            |seen| (seen.what == What::Member(member, "lost")).then_some(seen.at),
        )
        .await
}

/// When the fence of a host begins.
pub(crate) async fn fencing(ground: &Ground, from: usize, host: &str) -> Result<Instant> {
    ground
        .line
        .wait(from, soon(), "the fence begins", |seen| {
            (seen.what == What::Said(Said::Fencing(host.to_owned()))).then_some(seen.at)
        })
        .await
}

/// When a run of a VM elsewhere than on `host` comes to a phase.
pub(crate) async fn started(
    ground: &Ground,
    from: usize,
    host: &str,
    vm: VmId,
    epoch: u64,
    phase: RunPhase,
) -> Result<Instant> {
    ground
        .line
        .wait(from, soon(), "it runs elsewhere", |seen| match &seen.what {
            What::Run(v, node, e, p) if *v == vm && *e == epoch && *p == phase => {
                (node != host).then_some(seen.at)
            }
            _ => None,
        })
        .await
}

/// A host's VMs on their way to others.
pub(crate) struct Moving {
    host: &'static str,
    member: u64,
    /// Each with its name, and the epoch that it is in.
    pub(crate) vms: Vec<(VmId, String, u64)>,
}

impl Moving {
    pub(crate) async fn from(ground: &Ground, host: &'static str) -> Result<Self> {
        let mut vms = Vec::new();
        for Guest { vm, name, .. } in ground.guests_of(host).await? {
            let claim = vm.get().await?.claim.ok_or("a running VM has no claim")?;
            vms.push((vm.id(), name.clone(), claim.epoch.0));
        }
        if vms.is_empty() {
            return Err(format!("host {host} runs nothing: there is nothing to show").into());
        }
        Ok(Self {
            host,
            member: ground.member(host),
            vms,
        })
    }

    /// Follows the failover to the guests' first heartbeats, and shows where the time went.
    pub(crate) async fn follow(&self, ground: &Ground, from: usize) -> Result<()> {
        let (line, host) = (&ground.line, self.host);
        let ran_out = ground.lease_ends(host).await?;
        let lost = lost(ground, from, self.member).await?;
        let ran_out = ran_out.await??;
        let fencing = fencing(ground, from, host).await?;
        let fenced = line
            .wait(from, soon(), "the fence has answered", |seen| {
                match &seen.what {
                    What::Said(Said::Fenced(node, _)) if node == host => Some(seen.at),
                    _ => None,
                }
            })
            .await?;
        let mut rows = vec![
            ("the store let its lease go", ran_out),
            ("it is written down as lost", lost),
            ("its time to come back is over: the fence begins", fencing),
            ("the fence has answered", fenced),
        ];
        for (vm, name, epoch) in &self.vms {
            let next = epoch + 1;
            let starting = started(ground, from, host, *vm, next, RunPhase::Starting).await?;
            let running = started(ground, from, host, *vm, next, RunPhase::Running).await?;
            let beat = line
                .wait(
                    from,
                    soon(),
                    "the first heartbeat elsewhere",
                    |seen| match &seen.what {
                        What::FirstBeat(v, node, e) if v == vm && *e == next => {
                            (node != host).then_some(seen.at)
                        }
                        _ => None,
                    },
                )
                .await?;
            let apart = GRACE + (fenced - fencing) + (running - starting);
            let control = (running - ran_out).saturating_sub(apart);
            rows.extend([
                ("its start elsewhere is written down", starting),
                ("it runs elsewhere, as its record says", running),
                ("its guest's first heartbeat", beat),
            ]);
            line.summary(&format!(
                "{name}: lease to running {} ms = {} ms to come back + {} ms fence + {} ms QEMU's start + {} ms control plane",
                millis(running - ran_out),
                millis(GRACE),
                millis(fenced - fencing),
                millis(running - starting),
                millis(control),
            ));
        }
        for (what, at) in rows {
            line.summary(&format!("{:>7} ms  {what}", line.ms(at)));
        }
        Ok(())
    }
}

pub(crate) fn millis(time: Duration) -> u128 {
    time.as_millis()
}
