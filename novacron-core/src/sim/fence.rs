//! A simulated power switch: it boots a host anew.

use async_trait::async_trait;

use super::state::Place;
use super::world::SimWorld;
use crate::driver::{Call, Fence, FenceTarget};
use crate::error::{Error, ErrorKind, Result};
use crate::model::{FenceReceipt, HostId};

/// The power switch of one host of a [`SimWorld`]. It answers also when the host does not.
#[derive(Clone, Debug)]
pub struct SimFence {
    world: SimWorld,
    host: HostId,
}

impl SimFence {
    /// A host's power switch.
    pub fn new(world: &SimWorld, host: HostId) -> Self {
        Self {
            world: world.clone(),
            host,
        }
    }
}

#[async_trait]
impl Fence for SimFence {
    async fn fence(&self, call: Call, target: &FenceTarget) -> Result<FenceReceipt> {
        let host = self.host;
        if target.host != host {
            let message = format!("the wrong host: this is {host}'s power switch");
            return Err(Error::new(
                ErrorKind::FailedPrecondition,
                "sim.fence",
                message,
            ));
        }
        self.world
            .call("sim.fence", Place::Power(host), None, call, move |state| {
                state.note(|| format!("host {host} is fenced"));
                state.reboot(host);
                Ok(FenceReceipt {
                    method: "power".to_owned(),
                    detail: "booted anew".to_owned(),
                })
            })
            .await
    }
}
