//! Fifty guests started at once, and how long other calls on the same hypervisor take meanwhile.

use std::cell::Cell;
use std::time::Instant;

use futures::future::try_join_all;
use novacron_benches::Result;
use novacron_benches::figure::{Samples, millis, promised, remark};
use novacron_core::driver::Hypervisor;

use crate::guests::{Site, call};

const GUESTS: usize = 50;

pub(crate) async fn run() -> Result<()> {
    let site = Site::up().await?;
    let there = site.spec();
    site.start(&there).await?;
    let (hypervisor, id) = (&site.hypervisor, there.id);
    let specs: Vec<_> = (0..GUESTS).map(|_| site.spec()).collect();

    let (since, over) = (Instant::now(), Cell::new(false));
    let starts = async {
        let started = try_join_all(specs.iter().map(|spec| site.start(spec))).await;
        over.set(true);
        started
    };
    let (started, probe, inspect, stats, list) = tokio::join!(
        starts,
        repeated(&over, async || hypervisor.probe(call()).await),
        repeated(&over, async || hypervisor.inspect(call(), id).await),
        repeated(&over, async || hypervisor.stats(call(), id).await),
        repeated(&over, async || hypervisor.list(call()).await),
    );
    started?;
    let took = since.elapsed().as_secs_f64();
    remark(&format!("{GUESTS} starts at once took {took:.1} s"));
    let mut longest: f64 = 0.0;
    for (name, took) in [
        ("probe", probe?),
        ("inspect", inspect?),
        ("stats", stats?),
        ("list", list?),
    ] {
        remark(&format!("{name}, ms: {}", took.spread()));
        longest = longest.max(took.percentile(100));
    }
    promised("libvirt-longest-call", longest / 1e3, "s", "<= 1");
    Ok(())
}

/// Makes a call again and again, at least once, until the starts are over: how long each took, ms.
async fn repeated<T>(
    over: &Cell<bool>,
    call: impl AsyncFn() -> novacron_core::Result<T>,
) -> Result<Samples> {
    let mut took = Vec::new();
    loop {
        let since = Instant::now();
        call().await?;
        took.push(millis(since.elapsed()));
        if over.get() {
            return Ok(Samples::new(took));
        }
    }
}
