//! The simulated fence against the suite: at once, and with calls that take their time.
#![cfg(feature = "conformance")]
#![allow(missing_docs, clippy::unwrap_used)]

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use novacron_core::conformance::fence::{FenceAbility, FenceFixture, HostCondition};
use novacron_core::driver::{Call, DomainId, DomainSpec, Fence, FenceTarget, Hypervisor};
use novacron_core::model::{ClusterId, Epoch, Hardware, HostId, MiB, VmId};
use novacron_core::sim::{Latency, SimFence, SimHypervisor, SimWorld};
use novacron_core::{SeededIds, Timestamp};
use uuid::Uuid;

struct Fixture {
    world: SimWorld,
    host: HostId,
    other: HostId,
    domain: DomainId,
}

impl Fixture {
    fn new() -> Self {
        let (world, ids) = (SimWorld::new(1), SeededIds::from_seed(1));
        let now = Timestamp::from_millis(0);
        Self {
            host: world.add_host(4, MiB(8_192)),
            other: world.add_host(4, MiB(8_192)),
            world,
            domain: DomainId {
                cluster: ClusterId::generate(now, &ids),
                vm: VmId::generate(now, &ids),
                epoch: Epoch(1),
            },
        }
    }

    fn slow() -> Self {
        let fixture = Self::new();
        let latency = Duration::from_millis(1)..=Duration::from_millis(5);
        fixture.world.set_latency(Latency {
            call: latency.clone(),
            shutdown: latency,
        });
        fixture
    }

    fn hypervisor(&self) -> SimHypervisor {
        SimHypervisor::new(&self.world, self.host)
    }
}

#[async_trait]
impl FenceFixture for Fixture {
    fn lacks(&self) -> BTreeSet<FenceAbility> {
        [FenceAbility::Broken, FenceAbility::Secrets].into()
    }

    fn patience(&self) -> Duration {
        Duration::from_secs(5)
    }

    async fn host(&self, condition: HostCondition) -> FenceTarget {
        let spec = DomainSpec {
            id: self.domain,
            name: "web-1".to_owned(),
            hardware: Hardware::new(1, MiB(512)),
            disks: vec![],
            nics: vec![],
            nvram: None,
            generation_id: Uuid::nil(),
            tpm: None,
            seed: None,
        };
        let (call, hypervisor) = (Call::within(self.patience()), self.hypervisor());
        hypervisor.define(call, &spec).await.unwrap();
        hypervisor.start(call, spec.id).await.unwrap();
        hypervisor.resume(call, spec.id).await.unwrap();
        let boot_id = self.world.boot_id(self.host).unwrap();
        match condition {
            HostCondition::Runs => {}
            HostCondition::StandsStill => self.world.set_reachable(self.host, false),
            HostCondition::Died => self.world.reboot(self.host),
        }
        FenceTarget {
            node: "alpha".parse().unwrap(),
            host: self.host,
            boot_id,
        }
    }

    fn fence(&self) -> Arc<dyn Fence> {
        Arc::new(SimFence::new(&self.world, self.host))
    }

    async fn runs(&self) -> bool {
        !self.world.running(self.domain.vm).is_empty()
    }

    async fn provoke(&self) {
        self.world.set_reachable(self.host, true);
        let (call, hypervisor) = (Call::within(self.patience()), self.hypervisor());
        hypervisor.resume(call, self.domain).await.unwrap_err();
    }

    fn wrong(&self, target: &FenceTarget) -> (Arc<dyn Fence>, FenceTarget) {
        let target = FenceTarget {
            host: self.other,
            ..target.clone()
        };
        (self.fence(), target)
    }

    fn broken(&self) -> Vec<Arc<dyn Fence>> {
        Vec::new()
    }

    fn secrets(&self) -> Vec<String> {
        Vec::new()
    }
}

novacron_core::fence_conformance!(Fixture::new());

mod slow {
    use super::*;

    novacron_core::fence_conformance!(Fixture::slow());
}
