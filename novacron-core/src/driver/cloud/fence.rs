//! Fencing a host that is an instance of a cloud: the cloud stops it by force.

use std::sync::Arc;

use async_trait::async_trait;

use super::{CloudProvider, InstanceId, InstanceState, StopKind};
use crate::driver::{Call, Fence, FenceTarget, Power, PowerSwitch, ensure_off};
use crate::error::{Error, ErrorKind, Result};
use crate::model::{FenceReceipt, RegionId};

const OPERATION: &str = "fence.cloud";

/// Stops an instance that is a node's host (its guests are nested in it), and leaves it stopped.
///
/// It proves that the cloud says "stopped", or "deleted", once the order was given. A hibernated instance keeps its memory
/// and with it its guests: that is no proof.
#[derive(Clone, Debug)]
pub struct CloudFence {
    provider: Arc<dyn CloudProvider>,
    region: RegionId,
    instance: InstanceId,
}

impl CloudFence {
    /// A fence for the host that is this instance.
    pub fn new(provider: Arc<dyn CloudProvider>, region: RegionId, instance: InstanceId) -> Self {
        Self {
            provider,
            region,
            instance,
        }
    }
}

#[async_trait]
impl PowerSwitch for CloudFence {
    async fn power(&self, call: Call) -> Result<Power> {
        let instances = self.provider.instances();
        let seen = instances.inspect(call, &self.region, self.instance).await?;
        Ok(match seen.map(|instance| instance.state) {
            None | Some(InstanceState::Stopped(_) | InstanceState::Deleted) => Power::Off,
            Some(state) => Power::On(format!("{state:?}")),
        })
    }

    async fn switch_off(&self, call: Call) -> Result<()> {
        let instances = self.provider.instances();
        let stop = instances.stop(call, &self.region, self.instance, StopKind::Kill);
        // How far its task is does not matter: the state is read until it is "stopped".
        stop.await.map(drop)
    }

    /// What may start an instance is its VM's claim, which a fence does not have.
    async fn switch_on(&self, _: Call) -> Result<()> {
        let message = "an instance is started by its cluster";
        Err(Error::new(ErrorKind::Unsupported, OPERATION, message))
    }
}

#[async_trait]
impl Fence for CloudFence {
    async fn fence(&self, call: Call, _: &FenceTarget) -> Result<FenceReceipt> {
        let detail = ensure_off(self, call, false, OPERATION).await?;
        Ok(FenceReceipt {
            method: "cloud".to_owned(),
            detail: format!("{detail}: instance {} in {}", self.instance, self.region),
        })
    }
}

#[cfg(test)]
mod tests {
    //! No provider is there yet: the fence is held against what the contract of `CloudInstances` lets one answer.

    use std::sync::Mutex;
    use std::time::Duration;

    use bytes::Bytes;
    use futures::stream::BoxStream;

    use super::super::{
        CloudArtefact, CloudCapabilities, CloudCatalog, CloudInstances, CloudPlace, CloudTask,
        Instance, InstanceRequest, TaskState,
    };
    use super::*;
    use crate::model::{ClusterId, Epoch, Exit, HostId, VmId};

    /// One instance, which goes through these states, one a look; the last one stays.
    #[derive(Debug)]
    struct OneInstance {
        states: Mutex<Vec<InstanceState>>,
        stop: Result<(), ErrorKind>,
        stops: Mutex<Vec<StopKind>>,
    }

    const NOT_ASKED: &str = "a fence does not ask for this";

    #[async_trait]
    impl CloudProvider for OneInstance {
        async fn probe(&self, _: Call) -> Result<CloudCapabilities> {
            unreachable!("{NOT_ASKED}")
        }

        async fn artefacts(
            &self,
            _: Call,
            _: &RegionId,
        ) -> Result<BoxStream<'static, Result<CloudArtefact>>> {
            unreachable!("{NOT_ASKED}")
        }

        async fn task(&self, _: Call, _: &CloudTask) -> Result<TaskState> {
            unreachable!("{NOT_ASKED}")
        }

        fn instances(&self) -> &dyn CloudInstances {
            self
        }

        fn catalog(&self) -> &dyn CloudCatalog {
            unreachable!("{NOT_ASKED}")
        }
    }

    #[async_trait]
    impl CloudInstances for OneInstance {
        async fn create(&self, _: Call, _: &InstanceRequest) -> Result<CloudTask> {
            unreachable!("{NOT_ASKED}")
        }

        async fn inspect(
            &self,
            _: Call,
            region: &RegionId,
            id: InstanceId,
        ) -> Result<Option<Instance>> {
            let mut states = self.states.lock().unwrap();
            let state = if states.len() > 1 {
                states.remove(0)
            } else {
                states[0].clone()
            };
            Ok(Some(Instance {
                id: Some(id),
                epoch: Some(Epoch(1)),
                cloud_id: "i-1".to_owned(),
                place: CloudPlace {
                    region: region.clone(),
                    zone: None,
                },
                kind: "m5.metal".to_owned(),
                state,
                addresses: vec![],
                disks: vec![],
                interrupted_at: None,
            }))
        }

        async fn list(
            &self,
            _: Call,
            _: &RegionId,
        ) -> Result<BoxStream<'static, Result<Instance>>> {
            unreachable!("{NOT_ASKED}")
        }

        async fn start(&self, _: Call, _: &RegionId, _: InstanceId, _: Epoch) -> Result<CloudTask> {
            unreachable!("{NOT_ASKED}")
        }

        async fn stop(
            &self,
            _: Call,
            region: &RegionId,
            _: InstanceId,
            kind: StopKind,
        ) -> Result<CloudTask> {
            self.stops.lock().unwrap().push(kind);
            let task = CloudTask {
                region: region.clone(),
                token: "task".to_owned(),
            };
            self.stop
                .map(|()| task)
                .map_err(|kind| Error::new(kind, "cloud.stop", "no"))
        }

        async fn reset(&self, _: Call, _: &RegionId, _: InstanceId) -> Result<CloudTask> {
            unreachable!("{NOT_ASKED}")
        }

        async fn change_type(
            &self,
            _: Call,
            _: &RegionId,
            _: InstanceId,
            _: &str,
        ) -> Result<CloudTask> {
            unreachable!("{NOT_ASKED}")
        }

        async fn delete(&self, _: Call, _: &RegionId, _: InstanceId) -> Result<CloudTask> {
            unreachable!("{NOT_ASKED}")
        }

        async fn console_output(&self, _: Call, _: &RegionId, _: InstanceId) -> Result<Bytes> {
            unreachable!("{NOT_ASKED}")
        }
    }

    /// What came of a fence, and how the instance was stopped.
    async fn fenced(
        states: &[InstanceState],
        stop: Result<(), ErrorKind>,
    ) -> (Result<FenceReceipt>, Vec<StopKind>) {
        let cloud = Arc::new(OneInstance {
            states: Mutex::new(states.to_vec()),
            stop,
            stops: Mutex::default(),
        });
        let instance = InstanceId {
            cluster: ClusterId::from_uuid(uuid::Uuid::from_u128(1)),
            vm: VmId::from_uuid(uuid::Uuid::from_u128(2)),
        };
        let fence = CloudFence::new(
            Arc::clone(&cloud) as Arc<dyn CloudProvider>,
            "eu-1".parse().unwrap(),
            instance,
        );
        let target = FenceTarget {
            node: "alpha".parse().unwrap(),
            host: HostId::from_uuid(uuid::Uuid::from_u128(3)),
            boot_id: "boot".to_owned(),
        };
        let receipt = fence.fence(Call::within(Duration::from_secs(60)), &target);
        let receipt = receipt.await;
        let stops = cloud.stops.lock().unwrap().clone();
        (receipt, stops)
    }

    #[tokio::test(start_paused = true)]
    async fn an_instance_is_stopped_by_force_and_seen_to_be() {
        use InstanceState::{Deleted, Hibernated, Running, Stopped, Stopping, Unknown};
        let stopped = || Stopped(Exit::Requested);
        for end in [stopped(), Deleted] {
            let states = [Running, Stopping, Unknown("?".to_owned()), end];
            for stop in [Ok(()), Err(ErrorKind::OutcomeUnknown)] {
                let (receipt, stops) = fenced(&states, stop).await;
                assert_eq!(receipt.unwrap().method, "cloud");
                assert_eq!(stops, [StopKind::Kill]);
            }
        }
        let (receipt, stops) = fenced(&[stopped()], Ok(())).await;
        assert!(receipt.unwrap().detail.contains("off already"));
        assert_eq!(stops, []);
        for (states, stop, kind) in [
            (vec![Running, Stopping], Ok(()), ErrorKind::OutcomeUnknown),
            (vec![Hibernated], Ok(()), ErrorKind::OutcomeUnknown),
            (
                vec![Running],
                Err(ErrorKind::PermissionDenied),
                ErrorKind::PermissionDenied,
            ),
        ] {
            let (receipt, stops) = fenced(&states, stop).await;
            assert_eq!(receipt.unwrap_err().kind(), kind);
            assert_eq!(stops, [StopKind::Kill]);
        }
    }
}
