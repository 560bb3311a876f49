//! Breaking into a guest, and its memory as a file.

use std::path::Path;

use async_trait::async_trait;
use novacron_core::driver::{Call, Diagnostics, DomainId};
use novacron_core::{Error, ErrorKind, Result};

use super::look::Task;
use super::pool::Effect;
use super::{LibvirtHypervisor, uri};

#[async_trait]
impl Diagnostics for LibvirtHypervisor {
    async fn inject_nmi(&self, call: Call, id: DomainId) -> Result<()> {
        let inject = move |task: &Task| {
            let (found, _) = task.started(id)?;
            task.ok(found.dom.inject_nmi())
        };
        self.state
            .run(call, "libvirt.inject_nmi", Effect::Some, inject)
            .await
    }

    /// libvirt writes over what is there on another host.
    async fn dump_memory(&self, call: Call, id: DomainId, file: &Path) -> Result<()> {
        const OPERATION: &str = "libvirt.dump_memory";
        let refused =
            |kind, message| Error::new(kind, OPERATION, message).with("path", file.display());
        let path = file
            .to_str()
            .ok_or_else(|| refused(ErrorKind::Invalid, "the path is not UTF-8"))?
            .to_owned();
        let local = uri::is_local(&self.state.config.uri);
        if local && tokio::fs::try_exists(file).await.unwrap_or(false) {
            return Err(refused(ErrorKind::AlreadyExists, "the file is there"));
        }
        let dump = move |task: &Task| {
            let (found, _) = task.started(id)?;
            task.ok(found.dom.dump_memory(&path))
        };
        self.state.run(call, OPERATION, Effect::Some, dump).await
    }
}
