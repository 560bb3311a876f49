//! The screen: a connection to QEMU's VNC server, which listens in the run directory alone.

use std::pin::Pin;

use async_trait::async_trait;
use novacron_core::driver::{ByteStream, Call, DomainId, Screens};
use novacron_core::{Error, ErrorKind, Result};
use tokio::net::UnixStream;
use tokio::time::timeout;

use super::{QemuHypervisor, error};

/// The server's socket.
pub(super) const SOCKET: &str = "vnc";

#[async_trait]
impl Screens for QemuHypervisor {
    async fn vnc(&self, call: Call, id: DomainId) -> Result<Pin<Box<dyn ByteStream>>> {
        const OPERATION: &str = "qemu.vnc";
        let (live, _) = self.state.live(call, id, OPERATION).await?;
        let connect = UnixStream::connect(live.dir.file(SOCKET));
        let connected = timeout(error::remaining(call, OPERATION)?, connect).await;
        let connected = connected.unwrap_or_else(|late| Err(late.into()));
        let stream = connected.map_err(|e| {
            let message = "QEMU's VNC server cannot be connected to";
            let error = Error::new(ErrorKind::Unavailable, OPERATION, message);
            error.with("domain", id).caused_by(e)
        })?;
        Ok(Box::pin(stream))
    }
}
