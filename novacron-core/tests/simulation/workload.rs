//! Random requests by a user, and what the user was told about each.

use std::collections::BTreeMap;

use novacron_core::cluster::VolumeSpec;
use novacron_core::model::{
    DiskSource, NetworkId, NetworkKind, NicSpec, NodeId, Power, SnapshotId, VmId, VolumeId,
};
use novacron_core::sim::SimWorld;
use novacron_core::{Bytes, Cluster, MiB, Result, VmSpec};
use rand::Rng;
use rand::rngs::StdRng;

/// What the user knows of an object.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Told<T> {
    /// The last request was acknowledged.
    Sure(T),
    /// The process died over the last request.
    Unsure,
}

/// Everything the user was told.
#[derive(Debug, Default)]
pub(crate) struct Ledger {
    /// The power asked for last; none after a delete.
    pub vms: BTreeMap<VmId, Told<Option<Power>>>,
    /// Whether it should exist.
    pub volumes: BTreeMap<VolumeId, Told<bool>>,
    pub snapshots: BTreeMap<SnapshotId, VolumeId>,
    network: Option<NetworkId>,
    serial: u32,
}

impl Ledger {
    fn pick_vm(&self, rng: &mut StdRng) -> Option<VmId> {
        let alive: Vec<_> = self
            .vms
            .iter()
            .filter(|(_, t)| **t != Told::Sure(None))
            .map(|(id, _)| *id)
            .collect();
        (!alive.is_empty()).then(|| alive[rng.random_range(0..alive.len())])
    }

    fn pick_volume(&self, rng: &mut StdRng) -> Option<VolumeId> {
        let alive: Vec<_> = self
            .volumes
            .iter()
            .filter(|(_, t)| **t != Told::Sure(false))
            .map(|(id, _)| *id)
            .collect();
        (!alive.is_empty()).then(|| alive[rng.random_range(0..alive.len())])
    }

    async fn power(
        &mut self,
        id: VmId,
        power: Option<Power>,
        request: impl Future<Output = Result<impl Sized>>,
    ) {
        let before = self.vms.insert(id, Told::Unsure);
        match request.await {
            Ok(_) => drop(self.vms.insert(id, Told::Sure(power))),
            // Refused: nothing changed.
            Err(_) => drop(self.vms.insert(id, before.unwrap_or(Told::Unsure))),
        }
    }

    /// One random request.
    pub(crate) async fn step(&mut self, cluster: &Cluster, world: &SimWorld, rng: &mut StdRng) {
        self.serial += 1;
        let serial = self.serial;
        let choice = rng.random_range(0..100);
        if choice < 25 || self.vms.is_empty() {
            let power = if rng.random_bool(0.9) {
                Power::On
            } else {
                Power::Off
            };
            let mut spec = VmSpec::new(format!("vm-{serial}"))
                .memory(MiB(1024 * rng.random_range(1..8)))
                .power(power)
                .disk(
                    "root",
                    DiskSource::Blank {
                        size: Bytes::gib(1),
                        pool: None,
                    },
                );
            if self.network.is_none() {
                self.network = cluster
                    .networks()
                    .create(&format!("net-{serial}"), NetworkKind::User)
                    .await
                    .ok()
                    .map(|network| network.id());
            }
            if let Some(network) = self.network.filter(|_| rng.random_bool(0.5)) {
                spec = spec.nic(NicSpec {
                    network,
                    mac: None,
                    forwards: Vec::new(),
                });
            }
            if let Ok(vm) = cluster.vms().create(spec).await {
                self.vms.insert(vm.id(), Told::Sure(Some(power)));
            }
            return;
        }
        if choice < 32 {
            if let Ok(volume) = cluster
                .volumes()
                .create(VolumeSpec::new(format!("vol-{serial}"), Bytes::gib(1)))
                .await
            {
                self.volumes.insert(volume.id(), Told::Sure(true));
            }
            return;
        }
        let Some(id) = self.pick_vm(rng) else { return };
        let vm = cluster.vms().by_id(id);
        let volume = self.pick_volume(rng);
        match choice {
            32..45 => self.power(id, Some(Power::On), vm.start()).await,
            45..55 => self.power(id, Some(Power::Off), vm.stop()).await,
            55..59 => self.power(id, Some(Power::Off), vm.kill()).await,
            59..62 => self.power(id, Some(Power::Paused), vm.pause()).await,
            62..69 => self.power(id, None, vm.delete()).await,
            69..75 => drop(
                vm.move_to(NodeId::new(format!("node-{}", rng.random_range(0..3))).unwrap())
                    .await,
            ),
            75..80 => {
                if let Some(volume) = volume {
                    let _ = vm.attach(&format!("d{serial}"), volume).await;
                }
            }
            80..84 => {
                if let Ok(view) = vm.get().await
                    && let Some(disk) = view.vm.machine.disks.iter().find(|d| !d.delete_with_vm)
                {
                    let _ = vm.detach(&disk.name).await;
                }
            }
            84..88 => {
                if let Some(volume) = volume
                    && let Ok(snapshot) = cluster
                        .snapshots()
                        .create(&format!("snap-{serial}"), volume)
                        .await
                {
                    self.snapshots.insert(snapshot.id(), volume);
                }
            }
            88..90 => {
                if let Some((snapshot, volume)) = self.snapshots.iter().next() {
                    let _ = vm.restore(*volume, *snapshot).await;
                }
            }
            90..92 => drop(vm.reset().await),
            92..94 => {
                if let Some(volume) = volume {
                    let before = self.volumes.insert(volume, Told::Unsure);
                    let told = match cluster.volumes().by_id(volume).delete().await {
                        Ok(_) => Told::Sure(false),
                        Err(_) => before.unwrap_or(Told::Unsure),
                    };
                    self.volumes.insert(volume, told);
                }
            }
            94..96 => {
                if let Some(volume) = volume {
                    let _ = cluster
                        .volumes()
                        .by_id(volume)
                        .grow(Bytes::gib(rng.random_range(2..5)))
                        .await;
                }
            }
            // An operator who has looked: no domain of the VM exists anywhere at this moment.
            _ => {
                if !world.artefacts().domains.iter().any(|d| d.id.vm == id) {
                    let _ = vm.confirm_stopped().await;
                }
            }
        }
    }
}
