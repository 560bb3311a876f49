//! No node is given more memory than it has.

use std::collections::BTreeMap;

use novacron_core::{Cluster, MiB};

use crate::site::every;

pub(crate) async fn check(cluster: &Cluster, memory: MiB) -> Result<(), String> {
    let mut used: BTreeMap<String, u64> = BTreeMap::new();
    for view in every!(cluster.vms()) {
        if let (Some(claim), Some(machine)) = (view.claim, view.machine) {
            *used.entry(claim.place.to_string()).or_default() += machine.hardware.memory.0;
        }
    }
    match used.iter().find(|(_, used)| **used > memory.0) {
        Some((node, used)) => Err(format!("node {node} was given {used} MiB of {memory}")),
        None => Ok(()),
    }
}
