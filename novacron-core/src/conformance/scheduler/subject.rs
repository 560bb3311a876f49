//! Random clusters and requests, and a plain account of what fits, to hold a scheduler against.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use super::SchedulerFixture;
use crate::driver::{Host, PlacementRequest, Placer, Rejected};
use crate::model::{Capability, Cpu, CpuModel, Decision, MiB, NodeCapabilities, NodeId};
use crate::store::Revision;

/// How many random clusters each behaviour looks at.
const SEEDS: u64 = 64;

/// CPU models and features that a host may have.
const MODELS: [&str; 2] = ["Nehalem", "Haswell"];
const FEATURES: [&str; 2] = ["aes", "avx2"];

/// The revision of the first view.
pub(super) const VIEW: Revision = Revision(7);

/// Calls `look` with a generator for each seed; a failure names the seed.
pub(super) fn each_seed(look: impl Fn(&mut StdRng)) {
    for seed in 0..SEEDS {
        let _named = Named(seed);
        look(&mut StdRng::seed_from_u64(seed));
    }
}

/// Tells the seed when the stack unwinds past it.
struct Named(u64);

impl Drop for Named {
    #[expect(clippy::print_stderr, reason = "belongs to the panic's message")]
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("in the cluster of seed {}", self.0);
        }
    }
}

pub(super) fn node(n: usize) -> NodeId {
    NodeId::new(format!("node-{n:03}")).unwrap()
}

/// A host that takes everything.
pub(super) fn host(n: usize, cpus: u32, memory: u64) -> Host {
    Host {
        node: node(n),
        open: true,
        capabilities: NodeCapabilities {
            cpus,
            memory: MiB(memory),
            max_vcpus: cpus,
            cpu_models: Arc::new(MODELS.map(str::to_owned).into()),
            cpu_features: Arc::new(FEATURES.map(str::to_owned).into()),
            can: Capability::ALL.into(),
            ..NodeCapabilities::default()
        },
        used_vcpus: 0,
        used_memory: MiB(0),
    }
}

/// A request that any host could take.
pub(super) fn request(vcpus: u32, memory: u64) -> PlacementRequest {
    PlacementRequest {
        vcpus,
        memory: MiB(memory),
        only: None,
        reachable: None,
        avoid: BTreeSet::new(),
        prefer: None,
        cpu: Cpu::default(),
        needs: BTreeSet::new(),
        recovery: false,
        seed: 1,
    }
}

/// Hosts of every kind.
pub(super) fn cluster(rng: &mut StdRng) -> Vec<Host> {
    let count = rng.random_range(1..12);
    let hosts = (0..count).map(|n| {
        let mut host = host(n, rng.random_range(1..17), rng.random_range(256..16_384));
        host.open = rng.random_bool(0.8);
        let can = &mut host.capabilities;
        can.can.retain(|_| rng.random_bool(0.7));
        Arc::make_mut(&mut can.cpu_models).retain(|_| rng.random_bool(0.7));
        Arc::make_mut(&mut can.cpu_features).retain(|_| rng.random_bool(0.7));
        host.used_vcpus = rng.random_range(0..=u64::from(host.capabilities.cpus));
        host.used_memory = MiB(rng.random_range(0..=host.capabilities.memory.0));
        host
    });
    hosts.collect()
}

/// A request of every kind.
pub(super) fn any_request(rng: &mut StdRng) -> PlacementRequest {
    let mut some = |p: f64| rng.random_bool(p);
    let (only, prefer, limited) = (some(0.1), some(0.3), some(0.3));
    let apart = some(0.3);
    let needs = Capability::ALL.into_iter().filter(|_| some(0.2)).collect();
    let mut cpu = Cpu::default();
    if some(0.3) {
        cpu.model = CpuModel::Named(MODELS[usize::from(some(0.5))].to_owned());
    }
    for feature in FEATURES {
        if some(0.2) {
            cpu.features.insert(feature.to_owned(), some(0.5));
        }
    }
    let mut any = || node(rng.random_range(0..13));
    PlacementRequest {
        only: only.then(&mut any),
        prefer: prefer.then(&mut any),
        reachable: limited.then(|| (0..6).map(|_| any()).collect::<BTreeSet<_>>()),
        avoid: if apart {
            (0..3).map(|_| any()).collect()
        } else {
            BTreeSet::new()
        },
        cpu,
        needs,
        seed: rng.random(),
        ..request(rng.random_range(1..9), rng.random_range(64..4_096))
    }
}

/// What is used on each host, counted by the suite itself.
#[derive(Clone)]
pub(super) struct Account {
    pub(super) hosts: BTreeMap<NodeId, Host>,
    overcommit: u32,
}

impl Account {
    pub(super) fn new(fixture: &dyn SchedulerFixture, hosts: &[Host]) -> Self {
        Self {
            hosts: hosts.iter().map(|h| (h.node.clone(), h.clone())).collect(),
            overcommit: fixture.cpu_overcommit(),
        }
    }

    /// Whether a host may take a request.
    pub(super) fn fits(&self, request: &PlacementRequest, node: &NodeId) -> bool {
        let Some(host) = self.hosts.get(node) else {
            return false;
        };
        let can = &host.capabilities;
        let cpus = u64::from(can.cpus) * u64::from(self.overcommit);
        host.open
            && request.only.as_ref().is_none_or(|only| only == node)
            && request.reachable.as_ref().is_none_or(|r| r.contains(node))
            && !request.avoid.contains(node)
            && request.needs.is_subset(&can.can)
            && match &request.cpu.model {
                CpuModel::Named(name) => can.cpu_models.contains(name),
                _ => true,
            }
            && (request.cpu.features.iter())
                .all(|(name, wanted)| !wanted || can.cpu_features.contains(name))
            && request.vcpus <= can.max_vcpus
            && host.used_vcpus + u64::from(request.vcpus) <= cpus
            && host.used_memory.0 + request.memory.0 <= can.memory.0
    }

    /// Takes down what a decision books.
    pub(super) fn book(&mut self, request: &PlacementRequest, node: &NodeId) {
        let host = self.hosts.get_mut(node).unwrap();
        host.used_vcpus += u64::from(request.vcpus);
        host.used_memory.0 += request.memory.0;
    }

    pub(super) fn hosts(&self) -> Vec<Host> {
        self.hosts.values().cloned().collect()
    }
}

/// The node that was chosen.
pub(super) fn winner(decision: &Decision) -> NodeId {
    match decision.winner.node() {
        Some(node) => node.clone(),
        None => panic!("a scheduler over nodes chose {}", decision.winner),
    }
}

pub(super) fn decide(placer: &mut dyn Placer, request: &PlacementRequest) -> Option<NodeId> {
    placer.decide(request).ok().as_ref().map(winner)
}

/// A burst of requests.
pub(super) fn burst(rng: &mut StdRng) -> Vec<PlacementRequest> {
    (0..rng.random_range(1..40))
        .map(|_| any_request(rng))
        .collect()
}

/// What each request of a burst came to.
pub(super) fn answers(
    placer: &mut dyn Placer,
    burst: &[PlacementRequest],
) -> Vec<Result<Decision, Rejected>> {
    burst.iter().map(|request| placer.decide(request)).collect()
}
