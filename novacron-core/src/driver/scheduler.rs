//! Placement: a view in, a decision out. Synchronous, no I/O, no clock, no randomness of its own.
//!
//! A [`Placer`] keeps a view that changes are applied to, never rebuilt per decision; its caches never change a
//! decision. [`FirstFit`] is the plain one: the first host by name on which everything fits.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::ops::Bound;

use crate::model::{Decision, MiB, NodeCapabilities, NodeId, PlaceId};
use crate::store::Revision;

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
    /// Breaks ties.
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
    /// The same view, request and seed give the same answer.
    fn decide(&mut self, request: &PlacementRequest) -> Result<Decision, Rejected>;

    /// The verdict on one host: the rule that turns it down, or none.
    fn explain(&self, request: &PlacementRequest, node: &NodeId) -> Option<String>;

    /// A copy for "what if".
    fn fork(&self) -> Box<dyn Placer>;
}

/// The first host, by name, on which everything fits. Memory is never overcommitted; vCPUs up to a factor.
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
        let hosts = hosts.into_iter().map(|h| (h.node.clone(), h)).collect();
        Box::new(FirstFitPlacer {
            cpu_overcommit: u64::from(self.cpu_overcommit),
            hosts,
            revision,
            cursor: None,
        })
    }
}

#[derive(Clone, Debug)]
struct FirstFitPlacer {
    cpu_overcommit: u64,
    hosts: BTreeMap<NodeId, Host>,
    revision: Revision,
    /// The host of the last decision: where every search begins, so that a long run of full hosts is not read again for
    /// each request ("next fit").
    cursor: Option<NodeId>,
}

impl FirstFitPlacer {
    fn verdict(&self, request: &PlacementRequest, host: &Host) -> Option<&'static str> {
        let caps = &host.capabilities;
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
            || host.used_vcpus + u64::from(request.vcpus)
                > u64::from(caps.cpus) * self.cpu_overcommit
        {
            Some("have too few CPUs left")
        } else if host.used_memory.0 + request.memory.0 > caps.memory.0 {
            Some("have too little memory left")
        } else {
            None
        }
    }

    fn take(
        &mut self,
        node: NodeId,
        request: &PlacementRequest,
        rejections: BTreeMap<String, u32>,
    ) -> Decision {
        if let Some(host) = self.hosts.get_mut(&node) {
            host.used_vcpus += u64::from(request.vcpus);
            host.used_memory.0 += request.memory.0;
        }
        Decision {
            scheduler: concat!("first-fit/", env!("CARGO_PKG_VERSION")).to_owned(),
            view: self.revision,
            seed: request.seed,
            winner: PlaceId::Node(node),
            rejections,
        }
    }
}

impl Placer for FirstFitPlacer {
    fn apply(&mut self, changes: Vec<HostChange>, revision: Revision) {
        self.revision = revision;
        for change in changes {
            match change {
                HostChange::Set(host) => drop(self.hosts.insert(host.node.clone(), host)),
                HostChange::Removed(node) => drop(self.hosts.remove(&node)),
            }
        }
    }

    fn decide(&mut self, request: &PlacementRequest) -> Result<Decision, Rejected> {
        for wished in [request.only.as_ref(), request.prefer.as_ref()]
            .into_iter()
            .flatten()
        {
            if self
                .hosts
                .get(wished)
                .is_some_and(|h| self.verdict(request, h).is_none())
            {
                let node = wished.clone();
                return Ok(self.take(node, request, BTreeMap::new()));
            }
        }
        let mut rejections: BTreeMap<String, u32> = BTreeMap::new();
        // A range from the cursor to the end, then from the beginning to the cursor: lazily, for most end at once.
        let cursor = self
            .cursor
            .clone()
            .map_or(Bound::Unbounded, Bound::Included);
        let wrapped = self
            .cursor
            .clone()
            .map(|c| self.hosts.range(..c))
            .into_iter()
            .flatten();
        let ring = self
            .hosts
            .range((cursor, Bound::Unbounded))
            .chain(wrapped)
            .map(|(_, host)| host);
        let mut found = None;
        for host in ring {
            match self.verdict(request, host) {
                None => {
                    found = Some(host.node.clone());
                    break;
                }
                Some(rule) => *rejections.entry(rule.to_owned()).or_default() += 1,
            }
        }
        match found {
            Some(node) => {
                self.cursor = Some(node.clone());
                Ok(self.take(node, request, rejections))
            }
            None => Err(Rejected { rejections }),
        }
    }

    fn explain(&self, request: &PlacementRequest, node: &NodeId) -> Option<String> {
        match self.hosts.get(node) {
            None => Some("no such node".to_owned()),
            Some(host) => self.verdict(request, host).map(str::to_owned),
        }
    }

    fn fork(&self) -> Box<dyn Placer> {
        Box::new(self.clone())
    }
}
