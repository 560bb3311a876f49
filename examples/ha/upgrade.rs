//! A rolling upgrade: the hosts' processes are replaced by those of another build, one after the other, under running guests.
//!
//! `HA_NEXT` names that build's `ha`, of the next feature level (`make ha-upgrade`). The director's own process is of this
//! build, so the level cannot be raised before it has left; then no process of this build is let in any more. It is the last
//! story: nobody is left here who could ask for the guests' end, so they are ended with the program.

use std::path::PathBuf;

use novacron_examples::Result;
use rustix::process::Signal;

use crate::checks::{boots, never_lost, same_boots};
use crate::ground::{Ground, soon};
use crate::host::Said;
use crate::line::What;
use crate::net::HOSTS;

/// The other build.
pub(crate) fn next() -> Option<PathBuf> {
    std::env::var_os("HA_NEXT").map(PathBuf::from)
}

pub(crate) async fn upgrade(ground: &mut Ground) -> Result<()> {
    let next = next().ok_or("HA_NEXT names no other build: see `make ha-upgrade`")?;
    let boots = boots(ground);
    let from = ground
        .line
        .begin("the hosts' processes are upgraded, one after the other");
    let leader = ground.leader()?;
    let followers = HOSTS.into_iter().filter(|host| *host != leader);
    let order: Vec<_> = followers.chain([leader]).collect();
    for host in &order {
        ground.line.note(format!(
            "host {host}'s process is shut down, the other build's is started"
        ));
        ground.signal(host, Signal::TERM)?;
        ground.ended(host).await?;
        ground.program(host, next.clone());
        ground.start(host).await?;
        ground.available(host).await?;
        if *host == order[0] {
            // Both builds at work: the cluster is at the older one's level, and does what it always did.
            let said = tried(ground, host).await?;
            expect(&said[0], "refused: ", "needs feature level 2")?;
            expect(&said[1], "refused: ", "director")?;
        }
    }
    same_boots(ground, &boots).await?;
    never_lost(ground, from)?;

    ground.line.note("the director, of this build, leaves");
    ground.cluster.shutdown(soon()).await?;
    let said = tried(ground, order[0]).await?;
    expect(&said[1], "raised to ", "2")?;
    expect(&said[2], "done", "")?;

    ground.line.note(format!(
        "host {leader}'s process is taken back to this build"
    ));
    ground.signal(leader, Signal::TERM)?;
    ground.ended(leader).await?;
    ground.program(leader, std::env::current_exe()?);
    let refused = ground.try_start(leader).await.is_err();
    let log = ground.log(leader)?;
    let why = "the cluster is at feature level 2, this build knows level 1: upgrade it";
    if !refused || !log.contains(why) {
        return Err(format!("an old build was let in: {log}").into());
    }
    ground.line.note(format!("it is refused: {why}"));
    ground.program(leader, next);
    ground.start(leader).await?;
    same_boots(ground, &boots).await?;
    ground.line.note("the guests went on all the while");
    Ok(())
}

fn expect(said: &str, begin: &str, what: &str) -> Result<()> {
    if said.starts_with(begin) && said.contains(what) {
        return Ok(());
    }
    Err(format!("{said:?} is not {begin:?} … {what:?}").into())
}

/// What a host's process says to a request of the next level, to the wish to raise the level, and to the same request again.
async fn tried(ground: &Ground, host: &str) -> Result<[String; 3]> {
    let from = ground.line.since(0).len();
    ground.signal(host, Signal::USR1)?;
    let answer = |number| {
        ground
            .line
            .wait(from, soon(), "it has tried", move |seen| match &seen.what {
                What::Said(Said::Tried(n, what)) if *n == number => Some(what.clone()),
                _ => None,
            })
    };
    Ok([answer(0).await?, answer(1).await?, answer(2).await?])
}
