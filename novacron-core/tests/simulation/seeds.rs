//! Running a story for many seeds, or for the one that `NOVACRON_SIM_SEED` names.

use std::collections::BTreeMap;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

use tokio::time::error::Elapsed;

use crate::site::Site;
use crate::workload::Ledger;

/// What became of a seed.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Outcome {
    pub result: Result<(), String>,
    pub log: Vec<String>,
    /// How many requests were acknowledged, by verb.
    pub told: BTreeMap<String, u64>,
}

impl Outcome {
    pub(crate) fn of(
        result: Result<Result<(), String>, Elapsed>,
        site: &Site,
        ledger: Ledger,
    ) -> Self {
        let endless = |_| Err("it did not end within a simulated day".to_owned());
        Self {
            result: result.unwrap_or_else(endless),
            log: site.log(),
            told: ledger.told,
        }
    }
}

/// What all of them together were told, if they were at least `usual` many. Panics if one fails, with the command that
/// repeats the first.
pub(crate) fn seeds(
    name: &str,
    usual: u64,
    simulate: fn(u64) -> Outcome,
) -> Option<BTreeMap<String, u64>> {
    let one = std::env::var("NOVACRON_SIM_SEED").ok();
    let one: Option<u64> = one.map(|seed| seed.parse().unwrap());
    let seeds = match one {
        Some(seed) => seed..seed + 1,
        None => 0..std::env::var("NOVACRON_SIM_SEEDS").map_or(usual, |n| n.parse().unwrap()),
    };
    let (failures, told) = (
        Mutex::new(Vec::new()),
        Mutex::new(BTreeMap::<String, u64>::new()),
    );
    let next = AtomicU64::new(seeds.start);
    let work = || {
        while let Some(seed) = Some(next.fetch_add(1, Ordering::SeqCst)).filter(|s| *s < seeds.end)
        {
            let outcome = simulate(seed);
            for (verb, times) in outcome.told {
                *told.lock().unwrap().entry(verb).or_default() += times;
            }
            if one.is_some() {
                eprintln!("  {}", outcome.log.join("\n  "));
            }
            if let Err(reason) = outcome.result {
                eprintln!("seed {seed}: {reason}");
                failures.lock().unwrap().push(seed);
            }
        }
    };
    // A story has a thread to itself; there are as many at a time as cores.
    std::thread::scope(|threads| {
        for _ in 0..std::thread::available_parallelism().map_or(1, usize::from) {
            threads.spawn(work);
        }
    });
    let (mut failures, told) = (failures.into_inner().unwrap(), told.into_inner().unwrap());
    failures.sort_unstable();
    let (all, failed) = (seeds.end - seeds.start, failures.len());
    println!("simulated {all} seeds, {failed} failed; acknowledged {told:?}");
    if let Some(seed) = failures.first() {
        panic!(
            "{failed} of {all} seeds failed; repeat the first one by\n  NOVACRON_SIM_SEED={seed} cargo test -p novacron-core --features conformance --test simulation -- --nocapture {name}"
        );
    }
    (all >= usual).then_some(told)
}
