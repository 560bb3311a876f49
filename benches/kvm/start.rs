//! A guest defined and started, by NovaCron and by `virsh define` and `virsh start --paused` of the same XML, in turns.

use std::time::Instant;

use novacron_benches::Result;
use novacron_benches::figure::{Samples, millis, promised, remark};

use crate::daemon::name_of;
use crate::guests::Site;

const PAIRS: usize = 25;

pub(crate) async fn run() -> Result<()> {
    let site = Site::up().await?;
    // Its description is the peer's, and its folder has the peer's console log.
    let pattern = site.spec();
    site.start(&pattern).await?;
    let described = site.virsh(&["dumpxml", "--inactive", &name_of(pattern.id)])?;

    let (mut ours, mut theirs, mut ratios) = (Vec::new(), Vec::new(), Vec::new());
    for pair in 0..=PAIRS {
        // Who comes first takes turns, too.
        let (novacron, virsh) = if pair % 2 == 0 {
            let novacron = by_novacron(&site).await?;
            (novacron, by_virsh(&site, &described)?)
        } else {
            let virsh = by_virsh(&site, &described)?;
            (by_novacron(&site).await?, virsh)
        };
        // The first pair warms up.
        if pair > 0 {
            ours.push(novacron);
            theirs.push(virsh);
            ratios.push(novacron / virsh);
        }
    }
    let ratios = Samples::new(ratios);
    remark(&format!("NovaCron, ms: {}", Samples::new(ours).spread()));
    remark(&format!("virsh, ms: {}", Samples::new(theirs).spread()));
    remark(&format!("ratios: {}", ratios.spread()));
    promised("libvirt-define-start", ratios.median(), "ratio", "<= 1.1");
    Ok(())
}

async fn by_novacron(site: &Site) -> Result<f64> {
    let spec = site.spec();
    let since = Instant::now();
    site.start(&spec).await?;
    let took = millis(since.elapsed());
    site.remove(spec.id).await?;
    Ok(took)
}

fn by_virsh(site: &Site, described: &str) -> Result<f64> {
    let uuid = site.spec().id.vm;
    let name = format!("peer-{uuid}");
    let mut text = between(described, "<name>", "</name>", &name)?;
    text = between(&text, "<uuid>", "</uuid>", &uuid.to_string())?;
    let file = site.daemon.file("peer.xml");
    std::fs::write(&file, text)?;
    let file = file.to_str().ok_or("a path that is not text")?;

    let since = Instant::now();
    site.virsh(&["define", file])?;
    site.virsh(&["start", "--paused", &name])?;
    let took = millis(since.elapsed());
    site.virsh(&["destroy", &name])?;
    site.virsh(&["undefine", &name])?;
    Ok(took)
}

/// The text with other words between the first two of these marks.
fn between(text: &str, from: &str, to: &str, words: &str) -> Result<String> {
    let (head, rest) = text.split_once(from).ok_or("no such element")?;
    let (_, tail) = rest.split_once(to).ok_or("an element without an end")?;
    Ok(format!("{head}{from}{words}{to}{tail}"))
}
