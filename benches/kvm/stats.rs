//! Two hundred guests listed and their numbers read, by NovaCron and by `virsh domstats`, in turns; and what each guest
//! costs this process in memory.

use std::time::Instant;

use futures::{StreamExt, TryStreamExt, stream};
use novacron_benches::Result;
use novacron_benches::figure::{Samples, millis, promised, remark};
use novacron_benches::site::resident;
use novacron_core::driver::{DomainOwner, Hypervisor};

use crate::guests::{Site, call};

const GUESTS: usize = 200;
const PAIRS: usize = 11;

pub(crate) async fn run() -> Result<()> {
    let site = Site::up().await?;
    // Somebody listens, as in every host application.
    let _events = site.hypervisor.events();
    // Threads, connections and buffers for a few guests are there before the first is counted.
    for spec in site.start_all(8).await? {
        site.remove(spec.id).await?;
    }
    by_novacron(&site, 0).await?;
    let before = resident()?;
    let since = Instant::now();
    site.start_all(GUESTS).await?;
    remark(&format!(
        "{GUESTS} guests started in {:.1} s",
        since.elapsed().as_secs_f64()
    ));

    let (mut ours, mut theirs, mut ratios) = (Vec::new(), Vec::new(), Vec::new());
    for pair in 0..=PAIRS {
        let (novacron, virsh) = if pair % 2 == 0 {
            let novacron = by_novacron(&site, GUESTS).await?;
            (novacron, by_virsh(&site)?)
        } else {
            let virsh = by_virsh(&site)?;
            (by_novacron(&site, GUESTS).await?, virsh)
        };
        // The first pair warms up.
        if pair > 0 {
            ours.push(novacron);
            theirs.push(virsh);
            ratios.push(novacron / virsh);
        }
    }
    let grown = (resident()? - before) * 1024.0 / GUESTS as f64;
    let ratios = Samples::new(ratios);
    remark(&format!("NovaCron, ms: {}", Samples::new(ours).spread()));
    remark(&format!("virsh, ms: {}", Samples::new(theirs).spread()));
    remark(&format!("ratios: {}", ratios.spread()));
    promised("libvirt-list-stats", ratios.median(), "ratio", "<= 1.0");
    promised("libvirt-memory-per-guest", grown, "KiB", "< 200");
    Ok(())
}

async fn by_novacron(site: &Site, guests: usize) -> Result<f64> {
    let since = Instant::now();
    let listed = site.hypervisor.list(call()).await?;
    let ids = listed.iter().filter_map(|domain| match domain.owner {
        DomainOwner::NovaCron(id) => Some(id),
        DomainOwner::Foreign(_) => None,
    });
    let numbers: Vec<_> = stream::iter(ids)
        .map(|id| site.hypervisor.stats(call(), id))
        .buffer_unordered(16)
        .try_collect()
        .await?;
    let took = millis(since.elapsed());
    if numbers.len() != guests {
        return Err(format!("{} guests, not {guests}", numbers.len()).into());
    }
    Ok(took)
}

fn by_virsh(site: &Site) -> Result<f64> {
    let since = Instant::now();
    let printed = site.virsh(&["domstats"])?;
    let took = millis(since.elapsed());
    let guests = printed.matches("Domain: ").count();
    if guests != GUESTS {
        return Err(format!("virsh told of {guests} guests, not {GUESTS}").into());
    }
    Ok(took)
}
