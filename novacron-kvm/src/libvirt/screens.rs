//! The screen of a local domain: libvirt hands QEMU one end of a new pair of sockets, and this process the other one, so that
//! nothing listens anywhere. It needs a libvirt that can be handed file descriptors: one on this host.

use std::os::unix::net::UnixStream as Socket;
use std::pin::Pin;

use async_trait::async_trait;
use novacron_core::driver::{ByteStream, Call, DomainId, Screens};
use novacron_core::{Error, ErrorKind, Result};
use tokio::net::UnixStream;

use super::LibvirtHypervisor;
use super::look::Task;
use super::pool::Effect;

#[async_trait]
impl Screens for LibvirtHypervisor {
    async fn vnc(&self, call: Call, id: DomainId) -> Result<Pin<Box<dyn ByteStream>>> {
        const OPERATION: &str = "libvirt.vnc";
        let open = move |task: &Task| {
            let (found, _) = task.started(id)?;
            task.ok(found.dom.graphics())
        };
        let opened = self.state.run(call, OPERATION, Effect::None, open).await?;
        let socket = Socket::from(opened);
        let stream = socket
            .set_nonblocking(true)
            .and_then(|()| UnixStream::from_std(socket));
        let stream = stream.map_err(|e| {
            let message = "the socket that libvirt gave is of no use";
            let error = Error::new(ErrorKind::Unavailable, OPERATION, message);
            error.with("domain", id).caused_by(e)
        })?;
        Ok(Box::pin(stream))
    }
}
