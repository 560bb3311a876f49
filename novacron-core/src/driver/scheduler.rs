//! Placement: a view in, a decision out. Synchronous, no I/O, no clock, no randomness of its own.
//!
//! A [`Placer`] keeps a view that changes are applied to, never rebuilt per decision; its caches never change a
//! decision. [`FirstFit`] is the plain one: the first host on which everything fits, in a ring of the hosts' names that
//! every request enters where its seed points to.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use crate::model::{Decision, MiB, NodeCapabilities, NodeId, PlaceId, Revision};

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
    /// Preferred if everything fits there: where its data or its last run is.
    pub prefer: Option<NodeId>,
    /// UEFI firmware is needed.
    pub uefi: bool,
    /// A bridge is needed.
    pub bridge: bool,
    /// User-mode networking is needed.
    pub user_network: bool,
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
/// Memory is never overcommitted; vCPUs up to a factor.
#[derive(Clone, Debug)]
pub struct FirstFit {
    /// vCPUs of guests per CPU of the host.
    pub cpu_overcommit: u32,
}

impl Default for FirstFit {
    fn default() -> Self {
        Self { cpu_overcommit: 4 }
    }
}

impl Scheduler for FirstFit {
    fn open(&self, hosts: Vec<Host>, revision: Revision) -> Box<dyn Placer> {
        let by_name: BTreeMap<_, _> = hosts.into_iter().map(|h| (h.node.clone(), h)).collect();
        Box::new(FirstFitPlacer {
            cpu_overcommit: u64::from(self.cpu_overcommit),
            hosts: by_name.into_values().collect(),
            revision,
        })
    }
}

#[derive(Clone, Debug)]
struct FirstFitPlacer {
    cpu_overcommit: u64,
    /// In the order of their names. Hosts come and go rarely; requests want the n-th at once.
    hosts: Vec<Host>,
    revision: Revision,
}

impl FirstFitPlacer {
    /// Where the node is, or where it would have to be.
    fn find(&self, node: &NodeId) -> Result<usize, usize> {
        self.hosts.binary_search_by(|host| host.node.cmp(node))
    }

    fn verdict(&self, request: &PlacementRequest, host: &Host) -> Option<&'static str> {
        let caps = &host.capabilities;
        let vcpus = host.used_vcpus.saturating_add(u64::from(request.vcpus));
        let memory = host.used_memory.0.saturating_add(request.memory.0);
        if request.only.as_ref().is_some_and(|only| *only != host.node) {
            Some("are not the one asked for")
        } else if request
            .reachable
            .as_ref()
            .is_some_and(|r| !r.contains(&host.node))
        {
            Some("cannot reach its volumes")
        } else if !host.open {
            Some("are cordoned or do not answer")
        } else if (request.uefi && !caps.uefi)
            || (request.bridge && !caps.bridge)
            || (request.user_network && !caps.user_network)
        {
            Some("lack a capability")
        } else if request.vcpus > caps.max_vcpus
            || vcpus > u64::from(caps.cpus).saturating_mul(self.cpu_overcommit)
        {
            Some("have too few CPUs left")
        } else if memory > caps.memory.0 {
            Some("have too little memory left")
        } else {
            None
        }
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
                Some(rule) => *rejections.entry(rule.to_owned()).or_default() += 1,
            }
        }
        Err(Rejected { rejections })
    }

    fn explain(&self, request: &PlacementRequest, node: &NodeId) -> Option<String> {
        match self.find(node) {
            Err(_) => Some("no such node".to_owned()),
            Ok(at) => self.verdict(request, &self.hosts[at]).map(str::to_owned),
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
            prefer: None,
            uefi: false,
            bridge: false,
            user_network: false,
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
