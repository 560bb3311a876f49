//! What the drivers were last seen to hold. Kept in memory only: a new process observes before it decides.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use super::retention::Rounds;
use crate::driver::{ArtefactId, Domain, DomainId, PoolInfo, PortArtefact};
use crate::model::{Epoch, HostInfo, MemberId, NodeId, PoolId, PortId, StopProof, VmId};
use crate::time::Timestamp;

#[derive(Clone, Debug, Default)]
pub(crate) struct World {
    pub(crate) nodes: BTreeMap<NodeId, SeenNode>,
    /// The nodes whose hosts end themselves when this process is lost.
    pub(crate) self_fencing: BTreeSet<NodeId>,
    pub(crate) runs: BTreeMap<(NodeId, VmId), SeenRun>,
    pub(crate) pools: BTreeMap<PoolId, SeenPool>,
    pub(crate) rounds: Rounds,
    /// The leases of other processes, as far as is known.
    pub(crate) leases: BTreeMap<MemberId, SeenLease>,
}

impl World {
    /// The clock was put right: what is remembered with a time moves along.
    pub(crate) fn move_times(&mut self, by: i64) {
        for node in self.nodes.values_mut() {
            node.at = node.at.moved(by);
            node.tried.move_times(by);
        }
        for pool in self.pools.values_mut() {
            pool.at = pool.at.moved(by);
            pool.tried.move_times(by);
        }
        for run in self.runs.values_mut() {
            run.asked_at = run.asked_at.map(|at| at.moved(by));
            run.adapted_at = run.adapted_at.map(|at| at.moved(by));
        }
        for lease in self.leases.values_mut() {
            lease.runs_out = lease.runs_out.moved(by);
        }
        self.rounds.move_times(by);
    }
}

/// Another process's lease, as last seen.
#[derive(Clone, Copy, Debug)]
pub(crate) struct SeenLease {
    pub(crate) runs_out: Timestamp,
    /// [`Member::clock_off_secs`](crate::model::Member::clock_off_secs), unless the process has told no time yet.
    pub(crate) clock_off_secs: Option<i64>,
}

/// A host, as last observed.
#[derive(Clone, Debug, Default)]
pub(crate) struct SeenNode {
    /// The last probe, if it answered.
    pub(crate) host: Option<HostInfo>,
    /// Whether a complete list has been read since the node last answered.
    pub(crate) listed: bool,
    /// Why the last observation failed.
    pub(crate) error: Option<String>,
    /// When the last observation ended.
    pub(crate) at: Timestamp,
    /// For how long its watchdog waits to be fed, once this process has armed it.
    pub(crate) watchdog: Option<Duration>,
    /// Observe again as soon as possible.
    pub(crate) stale: bool,
    /// Commands, events or records have been about its runs: what is remembered of them must be gone through.
    pub(crate) active: bool,
    /// Counts the observations that have begun.
    pub(crate) observations: u64,
    /// Its event stream has ended: what happened since must be looked for.
    pub(crate) deaf: bool,
    /// Domains of our cluster by VM and epoch.
    pub(crate) domains: BTreeMap<(VmId, Epoch), Domain>,
    /// What the network driver holds for our cluster's ports.
    pub(crate) ports: BTreeSet<PortArtefact>,
    /// Names of domains that are not ours.
    pub(crate) foreign: BTreeSet<String>,
    /// What was swept, or not, and when.
    pub(crate) tried: Tried<Leftover>,
}

/// Something on a node whose epoch is over.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Leftover {
    Domain(VmId, Epoch),
    Port(PortId, Epoch),
}

/// When the removal of a leftover was last tried: one that does not go must not keep the others, or be tried all the
/// time.
#[derive(Clone, Debug)]
pub(crate) struct Tried<K>(BTreeMap<K, Timestamp>);

impl<K> Default for Tried<K> {
    fn default() -> Self {
        Self(BTreeMap::new())
    }
}

impl<K: Ord> Tried<K> {
    pub(crate) fn now(&mut self, what: K, now: Timestamp) {
        self.0.insert(what, now);
    }

    /// Whether it was not tried within the last `every`.
    pub(crate) fn may(&self, what: &K, every: Duration, now: Timestamp) -> bool {
        self.0.get(what).is_none_or(|at| now.since(*at) >= every)
    }

    fn move_times(&mut self, by: i64) {
        for at in self.0.values_mut() {
            *at = at.moved(by);
        }
    }

    /// Forgets what may be tried again.
    pub(crate) fn prune(&mut self, every: Duration, now: Timestamp) {
        self.0.retain(|_, at| now.since(*at) < every);
    }
}

impl SeenNode {
    pub(crate) fn domain(&self, vm: VmId, epoch: Epoch) -> Option<&Domain> {
        self.domains.get(&(vm, epoch))
    }

    /// Takes in what was seen of one domain.
    pub(crate) fn set(&mut self, id: DomainId, domain: Option<Domain>) {
        match domain {
            Some(domain) => drop(self.domains.insert((id.vm, id.epoch), domain)),
            None => drop(self.domains.remove(&(id.vm, id.epoch))),
        }
    }
}

/// What this process remembers of a run between two looks.
#[derive(Clone, Debug, Default)]
pub(crate) struct SeenRun {
    /// The node's last observation that had begun when a command ended here: what it lists may be older than what the
    /// command saw.
    pub(crate) touched: u64,
    /// An event said that the domain changed.
    pub(crate) stale: bool,
    /// A command's outcome is unknown: it may still take effect until this observation of the node has ended.
    pub(crate) unsettled: Option<u64>,
    /// Why the last start or adaptation failed.
    pub(crate) error: Option<RunError>,
    /// The guest was asked to power off at this time.
    pub(crate) asked_at: Option<Timestamp>,
    /// The domain was retired, with this proof.
    pub(crate) retired: Option<(Epoch, StopProof)>,
    /// The generation that the domain was last started or adapted for.
    pub(crate) adapted: Option<(Epoch, u64)>,
    /// When it was adapted, if it was not just started.
    pub(crate) adapted_at: Option<Timestamp>,
}

/// Why a start or an adaptation failed.
#[derive(Clone, Debug)]
pub(crate) struct RunError {
    pub(crate) epoch: Epoch,
    /// Of the assignment that it was to make true.
    pub(crate) generation: u64,
    pub(crate) detail: String,
    /// Whether another try may help.
    pub(crate) retryable: bool,
}

/// A pool, as last listed.
#[derive(Clone, Debug, Default)]
pub(crate) struct SeenPool {
    /// Our artefacts that no record named when they were listed.
    pub(crate) strays: BTreeSet<ArtefactId>,
    /// The last probe that was answered.
    pub(crate) info: Option<PoolInfo>,
    /// Why it did not answer, if it did not.
    pub(crate) error: Option<String>,
    /// When it was last asked.
    pub(crate) at: Timestamp,
    /// What was swept, or not, and when.
    pub(crate) tried: Tried<ArtefactId>,
}
