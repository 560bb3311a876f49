//! What would become of a node's VMs if its host were lost now.

use super::nodes::{Nodes, not_found};
use crate::control::cache::Cache;
use crate::control::placing::host_of;
use crate::control::resolve::resolve;
use crate::control::vm::{Waiting, placement_request};
use crate::driver::{PlacementRequest, Placer};
use crate::error::Result;
use crate::model::{Epoch, Name, NodeId, Power, Vm, VmId};
use crate::store::Revision;

/// What the loss of a host would do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LossView {
    /// Its VMs, in the order in which they would be started again.
    pub vms: Vec<LostVm>,
    /// Whether this process has a fence for it. Without one its VMs wait until it boots again, or an operator says that it is
    /// off.
    pub fenced: bool,
    /// As of which revision.
    pub revision: Revision,
}

/// What would become of one VM.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LostVm {
    /// Which.
    pub vm: VmId,
    /// Its project.
    pub project: Name,
    /// Its name.
    pub name: Name,
    /// Its restart priority.
    pub priority: i32,
    /// The node that would take it, or why none would: no room, or none that reaches its volumes.
    pub place: Result<NodeId, String>,
}

impl LossView {
    /// The VMs that would stay off.
    pub fn stranded(&self) -> impl Iterator<Item = &LostVm> {
        self.vms.iter().filter(|vm| vm.place.is_err())
    }
}

impl Nodes {
    /// What would become of a node's VMs if its host were lost now: decided by the scheduler on a view of its own, one
    /// after the other in the order of their priority, so that nothing is booked.
    ///
    /// # Errors
    /// [`ErrorKind::NotFound`](crate::ErrorKind::NotFound).
    pub async fn if_lost(&self, id: &NodeId) -> Result<LossView> {
        const VERB: &str = "node.if-lost";
        let inner = &self.0.inner;
        inner.authorize(self.0.options(), VERB)?;
        inner
            .read(|cache| {
                if !cache.nodes.contains_key(id) {
                    return Err(not_found(VERB, id));
                }
                let others = cache.nodes.keys().filter(|n| *n != id);
                let others = others.filter_map(|n| host_of(n, cache, None)).collect();
                let mut placer = inner.scheduler.open(others, cache.revision);
                let mut lost: Vec<&Vm> = cache
                    .runs_on(id)
                    .filter(|(vm, run)| {
                        let claim = cache.claims.get(vm);
                        claim.is_some_and(|c| c.is_held() && c.epoch == run.epoch)
                    })
                    .filter_map(|(vm, _)| Some(&cache.vms.get(&vm)?.value))
                    .filter(|vm| vm.power.state != Power::Off && vm.meta.deleted_at.is_none())
                    .collect();
                lost.sort_by_key(|vm| (std::cmp::Reverse(vm.priority), vm.id));
                let mut taken: Vec<(&Vm, NodeId)> = Vec::new();
                let mut vms = Vec::with_capacity(lost.len());
                for vm in lost {
                    let place = place(vm, id, cache, &taken, &mut *placer);
                    if let Ok(node) = &place {
                        taken.push((vm, node.clone()));
                    }
                    vms.push(LostVm {
                        vm: vm.id,
                        project: vm.meta.project.clone(),
                        name: vm.meta.name.clone(),
                        priority: vm.priority,
                        place,
                    });
                }
                Ok(LossView {
                    vms,
                    fenced: inner.drivers.fences.contains_key(id),
                    revision: cache.revision,
                })
            })
            .await?
    }
}

/// Where a VM of the lost node would go; `taken` are those that were placed before it.
fn place(
    vm: &Vm,
    lost: &NodeId,
    cache: &Cache,
    taken: &[(&Vm, NodeId)],
    placer: &mut dyn Placer,
) -> Result<NodeId, String> {
    let assignment = match resolve(vm, Epoch(0), cache) {
        Ok(assignment) => assignment,
        Err(Waiting::For(why) | Waiting::Failed(why)) => return Err(why),
        Err(other) => return Err(format!("{other:?}")),
    };
    let mut request = PlacementRequest {
        recovery: true,
        prefer: None,
        ..placement_request(vm, &assignment, None, cache)
    };
    // Those of its group that are lost with it are where they were placed.
    request.avoid.remove(lost);
    let same_group = |other: &Vm| {
        vm.anti_affinity.is_some()
            && other.anti_affinity == vm.anti_affinity
            && other.meta.project == vm.meta.project
    };
    let together = taken.iter().filter(|(other, _)| same_group(other));
    request.avoid.extend(together.map(|(_, node)| node.clone()));
    match placer.decide(&request) {
        Ok(decision) => decision
            .winner
            .node()
            .cloned()
            .ok_or_else(|| "the scheduler chose no node".to_owned()),
        Err(rejected) => Err(rejected.to_string()),
    }
}
