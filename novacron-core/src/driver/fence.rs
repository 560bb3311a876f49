//! Making certain that a host runs nothing: what failover waits for.

use std::fmt;

use async_trait::async_trait;

use super::Call;
use crate::error::Result;
use crate::model::{FenceReceipt, HostId, NodeId};

/// The host to cut off.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FenceTarget {
    /// Its node.
    pub node: NodeId,
    /// The host, as its hypervisor named itself when it was last seen.
    pub host: HostId,
    /// The boot that it was seen under.
    pub boot_id: String,
}

/// Takes from one host the ability to run and to start guests: by its power, by ending the owner and the guests
/// together, or by cutting it off from its storage.
#[async_trait]
pub trait Fence: fmt::Debug + Send + Sync + 'static {
    /// Fences the host.
    ///
    /// *Holds on return:* no guest that ran under the target's boot runs, and nothing that was begun under it can start
    /// one: the host is off, or has booted anew, or can write to no disk any more. *A second identical call* answers the
    /// same; one for a host that has booted anew since may do it again. *Left behind on failure:* perhaps a host that is
    /// off; nothing is proved. *Errors:* any error, also an unknown outcome, releases nothing, and the call is repeated.
    async fn fence(&self, call: Call, target: &FenceTarget) -> Result<FenceReceipt>;
}
