//! Why a VM is where it is, and where else it could be.

use std::collections::BTreeMap;

use super::super::object::find;
use super::VmHandle;
use crate::control::cache::Cache;
use crate::control::placing::host_of;
use crate::control::resolve::resolve;
use crate::control::vm::{Waiting, placement_request};
use crate::error::{Error, ErrorKind, Result};
use crate::model::{Assignment, Decision, Epoch, NodeId, Vm};
use crate::store::Revision;

/// The placement of a VM, explained.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PlacementView {
    /// The decision that its last start followed: scheduler, seed, winner, and how many nodes each rule turned down then.
    pub decision: Option<Decision>,
    /// What the scheduler says of each node now, for this VM as it is now; what the VM itself takes up is left out.
    pub verdicts: BTreeMap<NodeId, Verdict>,
    /// As of which revision the verdicts are.
    pub revision: Revision,
}

/// What the scheduler says of a node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// The VM could be placed there.
    Fits,
    /// This rule turns it down, as `have too little memory left`.
    TurnedDown(String),
}

impl VmHandle {
    /// Explains its placement: computed anew by the scheduler, on a view of its own, so that nothing is booked.
    ///
    /// # Errors
    /// [`ErrorKind::NotFound`]; [`ErrorKind::FailedPrecondition`] when it cannot be placed at all, as while one of its
    /// volumes is being made, or after one failed.
    pub async fn explain(&self) -> Result<PlacementView> {
        const VERB: &str = "vm.explain";
        let options = self.cluster.options();
        self.inner().authorize(options, VERB)?;
        self.inner()
            .read(|cache| {
                let vm = find::<Vm>(cache, options, VERB, self.id)?;
                let claim = cache.claims.get(&vm.id).map(|c| &c.value);
                let placed = assignment(vm, cache)?;
                let request = placement_request(vm, &placed, claim, cache);
                let hosts = cache.nodes.keys();
                let hosts = hosts.filter_map(|n| host_of(n, cache, Some(vm.id)));
                let hosts = hosts.collect();
                let placer = self.inner().scheduler.open(hosts, cache.revision);
                let verdict = |node: &NodeId| match placer.explain(&request, node) {
                    None => Verdict::Fits,
                    Some(_) if !cache.node_status.contains_key(node) => {
                        Verdict::TurnedDown("has not answered yet".to_owned())
                    }
                    Some(rule) => Verdict::TurnedDown(rule),
                };
                let verdicts = cache
                    .nodes
                    .keys()
                    .map(|n| (n.clone(), verdict(n)))
                    .collect();
                Ok(PlacementView {
                    decision: claim.map(|c| c.decision.clone()),
                    verdicts,
                    revision: cache.revision,
                })
            })
            .await?
    }
}

/// The machine that is to be placed, with its references resolved.
fn assignment(vm: &Vm, cache: &Cache) -> Result<Assignment> {
    match resolve(vm, Epoch(0), cache) {
        Ok(assignment) => Ok(assignment),
        Err(Waiting::For(why) | Waiting::Failed(why)) => Err(Error::new(
            ErrorKind::FailedPrecondition,
            "vm.explain",
            format!("it cannot be placed: {why}"),
        )),
        Err(other) => Err(Error::new(
            ErrorKind::Internal,
            "vm.explain",
            format!("it cannot be resolved: {other:?}"),
        )),
    }
}
