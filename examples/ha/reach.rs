//! A story without a failover: the director looks after no guest, and reads each one's console and statistics through the
//! process of its host.

use std::time::Duration;

use novacron_core::ErrorKind;
use novacron_core::driver::{Call, ConsoleStart};
use novacron_examples::Result;
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::time::Instant;

use crate::checks::{millis, never_lost};
use crate::ground::{Ground, Guest, soon, within};
use crate::net::HOSTS;

/// How long a host may take to answer; less than the lease of its process.
const ANSWER: Duration = Duration::from_secs(1);

/// Tells it.
pub(crate) async fn reach(ground: &Ground) -> Result<usize> {
    let from = ground
        .line
        .begin("the director reads the guests' consoles, through their hosts");
    for host in HOSTS {
        for guest in ground.guests_of(host).await? {
            read(ground, guest, host).await?;
        }
    }
    let host = ground.follower()?;
    let cut_off = ground.guests_of(host).await?;
    let guest = cut_off.first().ok_or("the host has no guest")?;
    ground.net.cut(host)?;
    let asked = Instant::now();
    let answer = guest.vm.stats(Call::within(ANSWER)).await;
    let took = asked.elapsed();
    ground.net.mend(host)?;
    match answer {
        Err(error)
            if matches!(
                error.kind(),
                ErrorKind::DeadlineExceeded | ErrorKind::Unavailable
            ) && took < ANSWER * 2 =>
        {
            ground.line.note(format!(
                "host {host} is cut off, and that is told after {} ms: {}",
                millis(took),
                error.report()
            ));
        }
        other => return Err(format!("host {host} was cut off: {other:?} after {took:?}").into()),
    }
    read(ground, guest, host).await?;
    never_lost(ground, from)?;
    Ok(from)
}

/// Reads on until the guest's next heartbeat.
async fn read(ground: &Ground, guest: &Guest, host: &str) -> Result<()> {
    let asked = Instant::now();
    // One that was cut off a moment ago is not reached at once.
    let stats = within(soon(), "the host answers", async || {
        guest
            .vm
            .stats(Call::within(ANSWER))
            .await
            .map_err(Into::into)
    });
    let stats = stats.await?;
    let took = asked.elapsed();
    let cpu: Duration = stats
        .vcpu_ns
        .iter()
        .copied()
        .map(Duration::from_nanos)
        .sum();
    if cpu.is_zero() {
        return Err(format!("guest {} has not run: {stats:?}", guest.name).into());
    }
    let call = Call::within(soon().remaining());
    let console = guest.vm.console(call, ConsoleStart::Last(0)).await?;
    let mut lines = BufReader::new(console.stream).lines();
    let beat = async {
        while let Some(line) = lines.next_line().await? {
            if line.trim_end().starts_with("BEAT ") {
                return Ok(line);
            }
        }
        Err(std::io::Error::from(std::io::ErrorKind::UnexpectedEof))
    };
    let beat = tokio::time::timeout(ANSWER * 20, beat).await??;
    ground.line.note(format!(
        "guest {} on host {host}: its statistics came in {} ms, its console says {:?}",
        guest.name,
        millis(took),
        beat.trim_end()
    ));
    Ok(())
}
