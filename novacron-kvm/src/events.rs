//! What a hypervisor pushes, for one reader.

use futures::StreamExt;
use futures::stream::{self, BoxStream};
use novacron_core::driver::HypervisorEvent;
use tokio::sync::broadcast::Receiver;

/// A lag ends the stream, as the end of the hypervisor does.
pub(crate) fn pushed(receiver: Receiver<HypervisorEvent>) -> BoxStream<'static, HypervisorEvent> {
    stream::unfold(receiver, async |mut receiver| {
        Some((receiver.recv().await.ok()?, receiver))
    })
    .boxed()
}
