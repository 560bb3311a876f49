//! Placement: a view in, a decision out. Synchronous, no I/O, no clock, no randomness of its own.
//!
//! A [`Placer`] keeps a view that changes are applied to, never rebuilt per decision; its caches never change a
//! decision. [`FirstFit`] is the plain one: the first host on which everything fits, in a ring of the hosts' names that
//! every request enters where its seed points to.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use crate::model::{Capability, Cpu, Decision, MiB, NodeCapabilities, NodeId, PlaceId, Revision};

/// A host as a scheduler sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Host {
    /// The node.
    pub node: NodeId,
    /// Whether it takes new VMs: schedulable and answering.
    pub open: bool,
    /// What it can do.
    pub capabilities: NodeCapabilities,
    /// vCPUs of the VMs that are placed on it.
    pub used_vcpus: u64,
    /// Memory of the VMs that are placed on it.
    pub used_memory: MiB,
}

/// A change of the view.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum HostChange {
    /// A host came or changed.
    Set(Host),
    /// A host went.
    Removed(NodeId),
}

/// What has to be placed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PlacementRequest {
    /// vCPUs.
    pub vcpus: u32,
    /// Memory.
    pub memory: MiB,
    /// The only node allowed, if one was asked for.
    pub only: Option<NodeId>,
    /// The nodes that reach every volume; any if none.
    pub reachable: Option<BTreeSet<NodeId>>,
    /// The nodes not allowed: those of the other VMs of its anti-affinity group.
    pub avoid: BTreeSet<NodeId>,
    /// Preferred if everything fits there: where its data or its last run is.
    pub prefer: Option<NodeId>,
    /// The CPU: a model that is named, and features that are required, have to be there.
    pub cpu: Cpu,
    /// What the host has to be able to do.
    pub needs: BTreeSet<Capability>,
    /// Whether it is for a VM that lost its host or has to leave it: it may take the room that is kept for such.
    pub recovery: bool,
    /// Breaks ties: as good as random from request to request, and kept in the decision.
    pub seed: u64,
}

/// No place: how many hosts each rule turned down.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rejected {
    /// Rule → number of hosts.
    pub rejections: BTreeMap<String, u32>,
}

impl fmt::Display for Rejected {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.rejections.is_empty() {
            return f.write_str("no place: the cluster has no node");
        }
        f.write_str("no place: ")?;
        for (i, (rule, count)) in self.rejections.iter().enumerate() {
            write!(
                f,
                "{}{count} node(s) {rule}",
                if i == 0 { "" } else { ", " }
            )?;
        }
        Ok(())
    }
}

/// Makes placers.
pub trait Scheduler: fmt::Debug + Send + Sync + 'static {
    /// A placer over this view.
    fn open(&self, hosts: Vec<Host>, revision: Revision) -> Box<dyn Placer>;
}

/// Decides over a view of its own.
pub trait Placer: fmt::Debug + Send {
    /// Takes changes in; the view is then as of `revision`.
    fn apply(&mut self, changes: Vec<HostChange>, revision: Revision);

    /// Finds a place and books it in the view, so that a burst of requests does not land on one host.
    ///
    /// The same view, request and seed give the same answer: of what was decided before, only the booking counts. An
    /// amount beyond reason is turned down like any other that does not fit.
    fn decide(&mut self, request: &PlacementRequest) -> Result<Decision, Rejected>;

    /// The verdict on one host: the rule that turns it down, or none.
    fn explain(&self, request: &PlacementRequest, node: &NodeId) -> Option<String>;

    /// A copy for "what if".
    fn fork(&self) -> Box<dyn Placer>;
}

/// The host that was asked for, else the preferred one, else the first in the order of names on which everything fits,
/// beginning at the host that the request's seed points to (`seed` modulo the number of hosts) and wrapping round. So
/// requests with random seeds spread, and each looks at few hosts even when most are full.
///
/// Memory is never overcommitted; vCPUs up to a factor. Room for the VMs of lost hosts is kept on request, by sums: that
/// each of them fits on one host, and reaches its volumes there, is not looked at
/// ([`Nodes::if_lost`](crate::cluster::Nodes::if_lost) does).
#[derive(Clone, Debug)]
pub struct FirstFit {
    /// vCPUs of guests per CPU of the host.
    pub cpu_overcommit: u32,
    /// For the loss of how many hosts at once, whichever they are, room is kept on the others: N+1 is 1, and 0 keeps none.
    pub spare_hosts: usize,
}

impl Default for FirstFit {
    fn default() -> Self {
        Self {
            cpu_overcommit: 4,
            spare_hosts: 0,
        }
    }
}

impl Scheduler for FirstFit {
    fn open(&self, hosts: Vec<Host>, revision: Revision) -> Box<dyn Placer> {
        let by_name: BTreeMap<_, _> = hosts.into_iter().map(|h| (h.node.clone(), h)).collect();
        Box::new(FirstFitPlacer {
            cpu_overcommit: u64::from(self.cpu_overcommit),
            spare_hosts: self.spare_hosts,
            hosts: by_name.into_values().collect(),
            revision,
        })
    }
}

#[derive(Clone, Debug)]
struct FirstFitPlacer {
    cpu_overcommit: u64,
    spare_hosts: usize,
    /// In the order of their names. Hosts come and go rarely; requests want the n-th at once.
    hosts: Vec<Host>,
    revision: Revision,
}

impl FirstFitPlacer {
    /// Where the node is, or where it would have to be.
    fn find(&self, node: &NodeId) -> Result<usize, usize> {
        self.hosts.binary_search_by(|host| host.node.cmp(node))
    }

    /// Whether what is left on the others would take the VMs of any [`FirstFit::spare_hosts`] hosts, with the request
    /// placed on `at`.
    fn spares(&self, request: &PlacementRequest, at: &Host) -> bool {
        if self.spare_hosts == 0 || request.recovery {
            return true;
        }
        let enough = |capacity: &dyn Fn(&Host) -> u64, used: &dyn Fn(&Host) -> u64, more: u64| {
            let mut free = 0u64;
            // What the loss of a host takes: its VMs need a place, and what was free on it is gone.
            let mut losses = Vec::with_capacity(self.hosts.len());
            for host in &self.hosts {
                let more = if host.node == at.node { more } else { 0 };
                let used = used(host).saturating_add(more);
                let left = if host.open {
                    capacity(host).saturating_sub(used)
                } else {
                    0
                };
                free = free.saturating_add(left);
                losses.push(used.saturating_add(left));
            }
            losses.sort_unstable_by(|a, b| b.cmp(a));
            let lost = losses.iter().take(self.spare_hosts);
            lost.fold(0, |sum: u64, loss| sum.saturating_add(*loss)) <= free
        };
        enough(
            &|h| h.capabilities.memory.0,
            &|h| h.used_memory.0,
            request.memory.0,
        ) && enough(
            &|h| u64::from(h.capabilities.cpus).saturating_mul(self.cpu_overcommit),
            &|h| h.used_vcpus,
            u64::from(request.vcpus),
        )
    }

    fn verdict(&self, request: &PlacementRequest, host: &Host) -> Option<Cow<'static, str>> {
        let caps = &host.capabilities;
        let vcpus = host.used_vcpus.saturating_add(u64::from(request.vcpus));
        let memory = host.used_memory.0.saturating_add(request.memory.0);
        let rule = if request.only.as_ref().is_some_and(|only| *only != host.node) {
            Some("are not the one asked for")
        } else if request
            .reachable
            .as_ref()
            .is_some_and(|r| !r.contains(&host.node))
        {
            Some("cannot reach its volumes")
        } else if request.avoid.contains(&host.node) {
            Some("run a VM of the same anti-affinity group")
        } else if !host.open {
            Some("are cordoned or do not answer")
        } else if let Some(lacking) = caps.lacking(&request.cpu, &request.needs) {
            return Some(lacking.into());
        } else if request.vcpus > caps.max_vcpus
            || vcpus > u64::from(caps.cpus).saturating_mul(self.cpu_overcommit)
        {
            Some("have too few CPUs left")
        } else if memory > caps.memory.0 {
            Some("have too little memory left")
        } else if !self.spares(request, host) {
            Some("would use room that is kept for the VMs of lost hosts")
        } else {
            None
        };
        rule.map(Cow::Borrowed)
    }

    /// Books the request on a host where it fits.
    fn take(
        &mut self,
        at: usize,
        request: &PlacementRequest,
        rejections: BTreeMap<String, u32>,
    ) -> Decision {
        let host = &mut self.hosts[at];
        host.used_vcpus += u64::from(request.vcpus);
        host.used_memory.0 += request.memory.0;
        Decision {
            scheduler: concat!("first-fit/", env!("CARGO_PKG_VERSION")).to_owned(),
            view: self.revision,
            seed: request.seed,
            winner: PlaceId::Node(host.node.clone()),
            rejections,
        }
    }
}

impl Placer for FirstFitPlacer {
    fn apply(&mut self, changes: Vec<HostChange>, revision: Revision) {
        self.revision = revision;
        for change in changes {
            match change {
                HostChange::Set(host) => match self.find(&host.node) {
                    Ok(at) => self.hosts[at] = host,
                    Err(at) => self.hosts.insert(at, host),
                },
                HostChange::Removed(node) => {
                    if let Ok(at) = self.find(&node) {
                        self.hosts.remove(at);
                    }
                }
            }
        }
    }

    fn decide(&mut self, request: &PlacementRequest) -> Result<Decision, Rejected> {
        for wished in [&request.only, &request.prefer].into_iter().flatten() {
            if let Ok(at) = self.find(wished)
                && self.verdict(request, &self.hosts[at]).is_none()
            {
                return Ok(self.take(at, request, BTreeMap::new()));
            }
        }
        let mut rejections: BTreeMap<String, u32> = BTreeMap::new();
        let count = self.hosts.len();
        let entry = usize::try_from(request.seed % count.max(1) as u64).unwrap_or_default();
        for at in (entry..count).chain(0..entry) {
            match self.verdict(request, &self.hosts[at]) {
                None => return Ok(self.take(at, request, rejections)),
                Some(rule) => *rejections.entry(rule.into_owned()).or_default() += 1,
            }
        }
        Err(Rejected { rejections })
    }

    fn explain(&self, request: &PlacementRequest, node: &NodeId) -> Option<String> {
        match self.find(node) {
            Err(_) => Some("no such node".to_owned()),
            Ok(at) => self.verdict(request, &self.hosts[at]).map(Cow::into_owned),
        }
    }

    fn fork(&self) -> Box<dyn Placer> {
        Box::new(self.clone())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn host(name: &str, memory: u64) -> Host {
        let mut host = Host {
            node: NodeId::new(name).unwrap(),
            open: true,
            capabilities: NodeCapabilities::default(),
            used_vcpus: 0,
            used_memory: MiB(0),
        };
        host.capabilities.cpus = 1_000;
        host.capabilities.max_vcpus = 1_000;
        host.capabilities.memory = MiB(memory);
        host
    }

    fn request(seed: u64) -> PlacementRequest {
        PlacementRequest {
            vcpus: 1,
            memory: MiB(1),
            only: None,
            reachable: None,
            avoid: BTreeSet::new(),
            prefer: None,
            cpu: Cpu::default(),
            needs: BTreeSet::new(),
            recovery: false,
            seed,
        }
    }

    fn chosen(placer: &mut dyn Placer, seed: u64) -> (String, u32) {
        let decision = placer.decide(&request(seed)).unwrap();
        (
            decision.winner.to_string(),
            decision.rejections.values().sum(),
        )
    }

    #[test]
    fn the_ring_is_entered_where_the_seed_points_to() {
        let hosts = ["c", "a", "d", "b"].map(|name| host(name, 100)).to_vec();
        let mut placer = FirstFit::default().open(hosts, Revision(1));
        for (seed, wanted) in [(0, "a"), (1, "b"), (3, "d"), (4, "a"), (u64::MAX, "d")] {
            assert_eq!(chosen(&mut *placer, seed), (wanted.to_owned(), 0));
        }
        placer.apply(vec![HostChange::Set(host("aa", 100))], Revision(2));
        assert_eq!(chosen(&mut *placer, 1).0, "aa");
        // What is full is passed over, and the ring closes.
        placer.apply(
            ["c", "d"].map(|n| HostChange::Set(host(n, 0))).to_vec(),
            Revision(3),
        );
        assert_eq!(chosen(&mut *placer, 3), ("a".to_owned(), 2));
    }

    #[test]
    fn room_is_kept_for_the_loss_of_any_host() {
        let scheduler = FirstFit {
            spare_hosts: 1,
            ..FirstFit::default()
        };
        let hosts = ["a", "b", "c"].map(|name| host(name, 100)).to_vec();
        let mut placer = scheduler.open(hosts, Revision(1));
        let mut place = |memory: u64, recovery: bool| {
            let request = PlacementRequest {
                memory: MiB(memory),
                recovery,
                ..request(0)
            };
            placer.decide(&request).map(|d| d.winner.to_string())
        };
        // Of 300, 200 can be used: then the VMs of any one fit on the two others.
        let all: Vec<_> = (0..4).map(|_| place(50, false)).collect();
        assert!(all.iter().all(Result::is_ok), "{all:?}");
        let rejected = place(50, false).unwrap_err().to_string();
        assert!(
            rejected.contains("kept for the VMs of lost hosts"),
            "{rejected}"
        );
        // What is kept is kept for this.
        assert!(place(50, true).is_ok());
        assert!(place(50, true).is_ok());
        assert!(place(1, true).is_err());
    }

    #[test]
    fn a_host_alone_keeps_room_for_nobody_else() {
        let scheduler = FirstFit {
            spare_hosts: 1,
            ..FirstFit::default()
        };
        let mut placer = scheduler.open(vec![host("a", 100)], Revision(1));
        assert!(
            placer.decide(&request(0)).is_err(),
            "its loss could not be borne"
        );
    }

    #[test]
    fn a_request_looks_at_few_hosts_of_many() {
        let hosts = (0..1_000)
            .map(|n| host(&format!("n{n:04}"), if n % 10 == 0 { 4 } else { 0 }))
            .collect();
        let mut placer = FirstFit::default().open(hosts, Revision(1));
        let (mut looks, mut used) = (0, BTreeSet::new());
        for n in 0..100u64 {
            let (node, rejected) = chosen(&mut *placer, n.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 7);
            looks += rejected + 1;
            used.insert(node);
        }
        assert!(looks < 1_500, "{looks} looks for 100 requests");
        assert!(used.len() > 50, "{} hosts of 100 that fit", used.len());
    }
}
