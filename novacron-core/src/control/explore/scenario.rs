//! Where an exploration begins, and how much may go wrong in it.

use std::collections::BTreeMap;
use std::sync::Arc;

use uuid::Uuid;

use super::site::{Machine, Site};
use super::state::{Budget, NOW, Process, Slot, State, View};
use super::steps::put_member;
use crate::control::cache::Cache;
use crate::control::plan::ObjectKey;
use crate::model::{
    Bytes, Disk, DiskRole, Hardware, Machine as Devices, MemberId, Meta, MiB, Name, Node, NodeId,
    NodeState, NodeStatus, Ownership, Pool, PoolId, PoolScope, Power, PowerRequest, RestartPolicy,
    Role, StorageState, StorageStatus, Unexplained, Vm, VmId, Volume, VolumeFormat, VolumeId,
    VolumeSource,
};
use crate::records::{self, NodeOwner, PoolOwner, VolumeStatus};
use crate::store::{Op, Revision};

pub(super) struct SlotOf {
    pub(super) drives: Vec<NodeId>,
    pub(super) role: Role,
}

/// What a user asks of the VM.
#[derive(Clone, Copy, Debug)]
pub(super) enum Ask {
    /// Off, at once.
    Off,
    /// On, on this node.
    OnAt(&'static str),
}

pub(super) struct Scenario {
    pub(super) name: &'static str,
    pub(super) nodes: Vec<NodeId>,
    pub(super) slots: Vec<SlotOf>,
    /// Whether the VM has a volume.
    pub(super) volume: bool,
    /// The most starts.
    pub(super) epochs: u64,
    pub(super) budget: Budget,
    pub(super) requests: Vec<Ask>,
}

pub(super) const NOTHING: Budget = Budget {
    crashes: 0,
    leases: 0,
    leaders: 0,
    failures: 0,
    lost: 0,
    reboots: 0,
    exits: 0,
    requests: 0,
};

pub(super) fn node(name: &str) -> NodeId {
    NodeId::new(name).expect("a name")
}

pub(super) fn pool() -> PoolId {
    PoolId::new("pool").expect("a name")
}

/// Even: so it is placed on the first host.
const VM: VmId = VmId::from_uuid(Uuid::from_u128(2));
const VOLUME: VolumeId = VolumeId::from_uuid(Uuid::from_u128(1));

impl Scenario {
    pub(super) fn leads(&self, n: usize) -> bool {
        self.slots[n].role.leads()
    }

    pub(super) fn role(&self, n: usize) -> Role {
        self.slots[n].role
    }

    pub(super) fn name(&self, n: usize) -> String {
        format!("P{n}")
    }

    /// What processes look at.
    pub(super) fn keys(&self, cache: &Cache) -> Vec<ObjectKey> {
        let members = cache.members.keys().copied().map(ObjectKey::Member);
        let nodes = cache.nodes.keys().cloned().map(ObjectKey::Node);
        let runs = cache.runs.keys().cloned();
        let runs = runs.map(|(node, vm)| ObjectKey::Run(node, vm));
        let vms = cache.vms.keys().copied().map(ObjectKey::Vm);
        let pools = cache.pools.keys().cloned().map(ObjectKey::Pool);
        let volumes = cache.volumes.keys().copied().map(ObjectKey::Volume);
        let keys = members.chain(nodes).chain(runs).chain(vms);
        keys.chain(pools).chain(volumes).collect()
    }

    pub(super) fn asked(&self, ask: Ask, cache: &Cache) -> Vec<Op> {
        let mut vm = cache.vms[&VM].value.clone();
        vm.meta.generation += 1;
        vm.power.serial += 1;
        (vm.power.state, vm.power.force) = match ask {
            Ask::Off => (Power::Off, true),
            Ask::OnAt(name) => {
                vm.node = Some(node(name));
                (Power::On, false)
            }
        };
        vec![records::put(&VM, &vm).expect("a record")]
    }

    /// Every process alive, every node looked after by the first that drives it; the VM should be on, and is not yet.
    pub(super) fn first(&self) -> State {
        let mut ops = Vec::new();
        let mut put = |op: crate::Result<Op>| ops.push(op.expect("a record"));
        let mut site = Site::default();
        let members = (1..).map(MemberId).take(self.slots.len());
        for (member, slot) in members.clone().zip(&self.slots) {
            put(Ok(put_member(member, slot.role)));
        }
        let owner = |node: &NodeId| {
            let of = members.clone().zip(&self.slots);
            let mut of = of.filter(|(_, slot)| slot.drives.contains(node));
            of.next().expect("an owner").0
        };
        let owned = |member| Ownership {
            member,
            since: NOW,
            fencing: None,
            fenced: None,
        };
        for id in &self.nodes {
            let machine = Machine::default();
            let status = NodeStatus {
                state: NodeState::Available,
                message: String::new(),
                host: Some(machine.info(id)),
                member: owner(id),
                watchdog_secs: None,
                unknown_domains: Unexplained::default(),
                since: NOW,
            };
            let record = Node {
                id: id.clone(),
                schedulable: true,
                evacuation: None,
                generation: 1,
            };
            put(records::put(id, &record));
            put(records::put(id, &status));
            put(records::put(id, &NodeOwner(owned(owner(id)))));
            site.hosts.insert(id.clone(), machine);
        }
        let named = |name| {
            Meta::new(
                Name::new(name).expect("a name"),
                Name::new("p").expect("a name"),
                NOW,
            )
        };
        let mut disks = Vec::new();
        if self.volume {
            let record = Pool {
                id: pool(),
                scope: PoolScope::All,
            };
            put(records::put(&pool(), &record));
            put(records::put(&pool(), &PoolOwner(owned(MemberId(1)))));
            let size = Bytes(1);
            let volume = Volume {
                id: VOLUME,
                meta: named("disk"),
                pool: pool(),
                source: VolumeSource::Blank,
                size,
                format: VolumeFormat::Raw,
                made_with: None,
            };
            let status = StorageStatus {
                state: StorageState::Available,
                size,
                generation: 1,
                problem: None,
                since: NOW,
            };
            put(records::put(&VOLUME, &volume));
            put(records::put(&VOLUME, &VolumeStatus(status)));
            disks.push(Disk {
                name: "disk".to_owned(),
                volume: VOLUME,
                delete_with_vm: false,
                options: crate::model::DiskOptions::default(),
                role: DiskRole::Disk,
            });
        }
        let vm = Vm {
            id: VM,
            meta: named("vm"),
            machine: Devices {
                hardware: Hardware::new(1, MiB(512)),
                disks,
                nics: Vec::new(),
                cloud_init: None,
                generation_id: Uuid::nil(),
                stop_grace_secs: 0,
            },
            power: PowerRequest {
                state: Power::On,
                serial: 1,
                force: false,
            },
            restart: RestartPolicy::OnFailure,
            node: None,
            anti_affinity: None,
            delete_protection: false,
            priority: 0,
        };
        put(records::put(&VM, &vm));
        let mut records = BTreeMap::new();
        for op in ops {
            if let Op::Put(key, value) = op {
                records.insert(key, (Revision(1), value));
            }
        }
        let process = |(slot, member)| Process::new(slot, member);
        let slots = members.clone().enumerate().map(process).map(Arc::new);
        let slots = slots.map(|process| Some(Slot { process, at: 0 }));
        State {
            views: vec![Arc::new(View::new(records))],
            slots: slots.collect(),
            site,
            leader: None,
            alive: members.clone().collect(),
            orphans: Vec::new(),
            budget: self.budget,
            members: self.slots.len() as u64,
        }
    }
}
