//! The few questions that are put to a domain's monitor, and its answers picked apart.

use std::time::Duration;

use novacron_core::driver::{Call, DomainState};
use novacron_core::model::{DiskCache, PortId, VolumeId};
use novacron_core::{Error, ErrorKind, Result};
use serde_json::{Value, json};

use super::devices::{
    is_drive, is_our_node, link_id, on_thread, port_of, volume_of, volume_of_node,
};
use super::error;
use crate::qmp::{Qmp, QmpError};

/// A guest's status, in QEMU's word.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Status(pub(super) String);

impl Status {
    /// Asks for it.
    pub(super) async fn of(qmp: &Qmp, limit: Duration) -> Result<Self, QmpError> {
        let answer = qmp.execute("query-status", json!({}), limit).await?;
        let word = answer
            .get("status")
            .and_then(Value::as_str)
            .unwrap_or("none");
        Ok(Self(word.to_owned()))
    }

    /// Whether the guest has powered off.
    pub(super) fn is_shutdown(&self) -> bool {
        self.0 == "shutdown"
    }

    /// Whether the guest's kernel has panicked.
    pub(super) fn is_panicked(&self) -> bool {
        self.0 == "guest-panicked"
    }

    /// What that is to a caller. A guest that has ended is not asked here.
    pub(super) fn domain_state(&self) -> DomainState {
        match self.0.as_str() {
            "running" => DomainState::Running,
            // `suspended` (to memory, by the guest itself) wakes up by itself: it runs.
            "suspended" => DomainState::Running,
            "prelaunch" | "paused" | "io-error" | "inmigrate" | "postmigrate"
            | "finish-migrate" | "save-vm" | "restore-vm" | "watchdog" | "debug" | "colo" => {
                DomainState::Paused
            }
            other => DomainState::Unknown(format!("QEMU's status is `{other}`")),
        }
    }
}

/// A monitor with the call it is used for.
#[derive(Debug, Clone, Copy)]
pub(super) struct Monitor<'a> {
    pub(super) qmp: &'a Qmp,
    pub(super) call: Call,
    pub(super) operation: &'static str,
}

impl Monitor<'_> {
    /// Asks; nothing changes.
    pub(super) async fn ask(&self, command: &str, arguments: Value) -> Result<Value> {
        let limit = error::remaining(self.call, self.operation)?;
        self.qmp
            .execute(command, arguments, limit)
            .await
            .map_err(|e| error::qmp(self.operation, e, false))
    }

    /// Changes something.
    pub(super) async fn tell(&self, command: &str, arguments: Value) -> Result<()> {
        let limit = error::remaining(self.call, self.operation)?;
        let told = self.qmp.execute(command, arguments, limit).await;
        told.map(drop)
            .map_err(|e| error::qmp(self.operation, e, true))
    }

    /// The names in a folder of QEMU's object tree.
    async fn names(&self, path: &str) -> Result<Vec<String>> {
        let list = self.ask("qom-list", json!({ "path": path })).await?;
        let name = |entry: &Value| entry.get("name")?.as_str().map(str::to_owned);
        Ok(list
            .as_array()
            .into_iter()
            .flatten()
            .filter_map(name)
            .collect())
    }

    /// The ids of the devices that are there now.
    pub(super) async fn devices(&self) -> Result<Vec<String>> {
        self.names("/machine/peripheral").await
    }

    /// The volumes and ports that are attached now.
    pub(super) async fn attached(&self) -> Result<(Vec<VolumeId>, Vec<PortId>)> {
        let devices = self.devices().await?;
        let ports = devices.iter().filter_map(|id| port_of(id)).collect();
        let mut disks: Vec<_> = devices.iter().filter_map(|id| volume_of(id)).collect();
        if devices.iter().any(|id| is_drive(id)) {
            let media = self.drives().await?;
            disks.extend(media.into_iter().filter_map(|(_, medium)| medium));
        }
        Ok((disks, ports))
    }

    /// The ways of its NICs to their networks. Only the monitor for people tells which tap one has; it may be somebody
    /// else's, with a name of their own.
    pub(super) async fn links(&self) -> Result<Links> {
        let command = json!({ "command-line": "info network" });
        let text = self.ask("human-monitor-command", command).await?;
        Ok(Links(text.as_str().unwrap_or_default().to_owned()))
    }

    /// The I/O thread of a disk on virtio that comes now, if there are such threads.
    pub(super) async fn next_thread(&self) -> Result<Option<(&'static str, String)>> {
        let threads = self.ask("query-iothreads", json!({})).await?;
        let threads = threads.as_array().map_or(0, Vec::len);
        let disks = self.devices().await?;
        let disks = disks.iter().filter(|id| volume_of(id).is_some()).count();
        Ok(on_thread(disks, threads))
    }

    /// A root port for hot-plug with nothing in it.
    pub(super) async fn free_port(&self) -> Result<String> {
        for spare in 0..super::args::SPARE_PORTS {
            let port = format!("hp{spare}");
            let inside = self
                .names(&format!("/machine/peripheral/{port}/{port}"))
                .await?;
            if !inside.iter().any(|name| name.starts_with("child[")) {
                return Ok(port);
            }
        }
        let message = format!(
            "all {} places for hot-plug are taken",
            super::args::SPARE_PORTS
        );
        Err(Error::new(ErrorKind::Exhausted, self.operation, message))
    }

    /// Its CD-ROM drives, each with its medium if it has one.
    pub(super) async fn drives(&self) -> Result<Vec<(String, Option<VolumeId>)>> {
        let list = self.ask("query-block", json!({})).await?;
        let entries = list.as_array().into_iter().flatten();
        let drive = |entry| {
            let device = device_of(entry).filter(|device| is_drive(device))?;
            Some((device.to_owned(), volume_in(entry)))
        };
        Ok(entries.filter_map(drive).collect())
    }

    /// What is told of the block device that a volume is behind.
    async fn block_entry(&self, volume: VolumeId) -> Result<Option<Value>> {
        let list = self.ask("query-block", json!({})).await?;
        let mut entries = list.as_array().into_iter().flatten();
        let is_it = |entry: &&Value| volume_in(entry) == Some(volume);
        Ok(entries.find(is_it).cloned())
    }

    /// QEMU's name of the block device that a volume is behind.
    pub(super) async fn block_device(&self, volume: VolumeId) -> Result<Option<String>> {
        let entry = self.block_entry(volume).await?;
        let name = entry.and_then(|entry| Some(entry.get("qdev")?.as_str()?.to_owned()));
        Ok(name)
    }

    /// What a volume's device has at the top now.
    pub(super) async fn top_layer(&self, volume: VolumeId) -> Result<Option<TopLayer>> {
        let entry = self.block_entry(volume).await?;
        let inserted = entry.as_ref().and_then(|entry| entry.get("inserted"));
        Ok(inserted.and_then(|inserted| {
            let cache =
                |mode: &str| inserted.pointer(&format!("/cache/{mode}")) == Some(&true.into());
            Some(TopLayer {
                node: inserted.get("node-name")?.as_str()?.to_owned(),
                size: inserted
                    .pointer("/image/virtual-size")
                    .and_then(Value::as_u64),
                cache: match (cache("direct"), cache("no-flush")) {
                    (_, true) => DiskCache::Unsafe,
                    (true, _) => DiskCache::None,
                    (false, false) => DiskCache::WriteBack,
                },
            })
        }))
    }

    /// The block nodes of ours, by name.
    pub(super) async fn nodes(&self) -> Result<Vec<String>> {
        let list = self
            .ask("query-named-block-nodes", json!({ "flat": true }))
            .await?;
        let name = |node: &Value| node.get("node-name")?.as_str().map(str::to_owned);
        Ok(list
            .as_array()
            .into_iter()
            .flatten()
            .filter_map(name)
            .filter(|name| is_our_node(name))
            .collect())
    }

    /// Closes every block node of ours that nothing uses: what a detach leaves (a chain of layers, top first), or an
    /// attach that did not end. QEMU refuses to close a node that is in use; returns those that stayed.
    pub(super) async fn close_unused(&self) -> Result<Vec<String>> {
        loop {
            let nodes = self.nodes().await?;
            let mut progress = false;
            for node in &nodes {
                let limit = error::remaining(self.call, self.operation)?;
                match self
                    .qmp
                    .execute("blockdev-del", json!({ "node-name": node }), limit)
                    .await
                {
                    Ok(_) => progress = true,
                    Err(QmpError::Refused { .. }) => {}
                    Err(e) => return Err(error::qmp(self.operation, e, true)),
                }
            }
            if !progress {
                return Ok(nodes);
            }
        }
    }
}

/// What `info network` shows.
pub(super) struct Links(String);

impl Links {
    /// The tap of a port's link, from a line such as `net-<port>: index=0,type=tap,ifname=tap0,script=no`.
    pub(super) fn tap(&self, port: PortId) -> Option<&str> {
        let id = format!("{}:", link_id(port));
        let line = self.0.lines().find(|line| line.contains(&id))?;
        let (_, name) = line.split_once("ifname=")?;
        name.split(',').next()
    }
}

/// The layer that a device writes to.
#[derive(Debug)]
pub(super) struct TopLayer {
    pub(super) node: String,
    pub(super) size: Option<u64>,
    /// How it is cached, as far as the host is concerned.
    pub(super) cache: DiskCache,
}

/// The volume of an entry of `query-block` or `query-blockstats`: a disk's device is named by it, and in a CD-ROM drive the
/// node is.
pub(super) fn volume_in(entry: &Value) -> Option<VolumeId> {
    let device = device_of(entry)?;
    if !is_drive(device) {
        return volume_of(device);
    }
    let inserted = entry.pointer("/inserted/node-name");
    let node = inserted.or_else(|| entry.get("node-name"))?;
    volume_of_node(node.as_str()?)
}

/// The id of the device of such an entry.
pub(super) fn device_of(entry: &Value) -> Option<&str> {
    let path = entry.get("qdev")?.as_str()?;
    Some(
        path.strip_prefix("/machine/peripheral/")
            .map_or(path, |rest| rest.split('/').next().unwrap_or(rest)),
    )
}
