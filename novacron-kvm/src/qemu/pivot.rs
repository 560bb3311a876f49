//! The hypervisor's step of a live snapshot: the guest's writes go to a new layer.

use std::path::PathBuf;

use async_trait::async_trait;
use novacron_core::driver::{Call, DiskPivot, DomainId};
use novacron_core::model::{SnapshotId, VolumeId};
use novacron_core::{Error, ErrorKind, Result};
use serde_json::json;

use super::devices::{layer, layer_node};
use super::hot_plug::not_attached;
use super::{QemuHypervisor, media};
use crate::media::NO_SNAPSHOT;

#[async_trait]
impl DiskPivot for QemuHypervisor {
    async fn pivot(
        &self,
        call: Call,
        id: DomainId,
        volume: VolumeId,
        snapshot: SnapshotId,
        path: PathBuf,
    ) -> Result<()> {
        const OPERATION: &str = "qemu.pivot";
        let turn = self.state.turn(call, id, OPERATION).await?;
        let monitor = turn.monitor();
        if media::drive_of(monitor, volume).await?.is_some() {
            let error = Error::new(ErrorKind::FailedPrecondition, OPERATION, NO_SNAPSHOT);
            return Err(error.with("volume", volume));
        }
        let top = monitor
            .top_layer(volume)
            .await?
            .ok_or_else(|| not_attached(OPERATION, volume))?;
        let node = layer_node(snapshot);
        // A layer that nothing uses is what an earlier try left; one that is used took the pivot already.
        if top.node == node || monitor.close_unused().await?.contains(&node) {
            return Ok(());
        }
        let options = turn.options(volume, top.cache)?;
        let layer = layer(snapshot, &path, &options);
        monitor.tell("blockdev-add", layer).await?;
        let arguments = json!({ "node": top.node, "overlay": node });
        let pivoted = monitor.tell("blockdev-snapshot", arguments).await;
        if pivoted.is_err() {
            monitor.close_unused().await?;
        }
        pivoted
    }
}
