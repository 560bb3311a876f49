//! From QEMU's event to the subscriber: QEMU says when it sent it, and `virsh qemu-monitor-event` tells what QEMU said.

use std::process::Stdio;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use futures::StreamExt;
use novacron_benches::Result;
use novacron_benches::figure::{Samples, promised, remark};
use novacron_core::driver::{GuestEvent, Hypervisor};
use tokio::io::{AsyncBufReadExt, BufReader, Lines};
use tokio::process::{ChildStdout, Command};
use tokio::time::timeout;

use crate::daemon::name_of;
use crate::guests::{Site, call};

const EVENTS: usize = 500;
const PATIENCE: Duration = Duration::from_secs(60);

pub(crate) async fn run() -> Result<()> {
    let site = Site::up().await?;
    let spec = site.spec();
    site.start(&spec).await?;
    let mut ours = site.hypervisor.events();
    let mut virsh = Command::new("stdbuf");
    virsh.args(["-oL", "virsh", "-q", "-c", &site.daemon.uri()]);
    virsh.args([
        "qemu-monitor-event",
        &name_of(spec.id),
        "--event",
        "RESET",
        "--loop",
    ]);
    virsh
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .kill_on_drop(true);
    let mut virsh = virsh.spawn()?;
    let lines = virsh.stdout.take().ok_or("virsh without its output")?;
    let mut theirs = BufReader::new(lines).lines();

    let mut latencies = Vec::new();
    while latencies.len() < EVENTS {
        site.hypervisor.reset(call(), spec.id).await?;
        let heard = loop {
            let event = timeout(PATIENCE, ours.next())
                .await?
                .ok_or("the stream ended")?;
            if event.event == GuestEvent::Reset {
                break now()?;
            }
        };
        // Until virsh listens, it tells nothing.
        let patience = if latencies.is_empty() {
            Duration::from_secs(1)
        } else {
            PATIENCE
        };
        match timeout(patience, sent(&mut theirs)).await {
            Ok(sent) => latencies.push((heard - sent?) * 1e3),
            Err(_) if latencies.is_empty() => {}
            Err(late) => return Err(late.into()),
        }
    }
    let latencies = Samples::new(latencies);
    remark(&format!(
        "from QEMU to the subscriber, ms: {}",
        latencies.spread()
    ));
    promised("libvirt-event-p99", latencies.percentile(99), "ms", "< 20");
    Ok(())
}

/// Now, in seconds of the epoch.
#[expect(
    clippy::disallowed_methods,
    reason = "QEMU tells microseconds, and the product's clock milliseconds"
)]
fn now() -> Result<f64> {
    Ok(SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs_f64())
}

/// When QEMU sent the next event that virsh tells, in seconds of the epoch.
async fn sent(lines: &mut Lines<BufReader<ChildStdout>>) -> Result<f64> {
    let line = lines.next_line().await?.ok_or("virsh has ended")?;
    let at = line
        .split_once(" at ")
        .and_then(|(_, rest)| rest.split_once(' '));
    let (at, _) = at.ok_or_else(|| format!("no time in {line:?}"))?;
    Ok(at.parse()?)
}
