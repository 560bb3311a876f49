//! `<disk>`: a disk, or a CD-ROM drive.

use serde::{Deserialize, Serialize};

use super::{Alias, Boot, Empty, Target};

/// `<disk>`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, rename = "disk")]
pub(in super::super) struct Disk {
    #[serde(rename = "@type")]
    pub(in super::super) kind: String,
    #[serde(rename = "@device")]
    pub(in super::super) device: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(in super::super) driver: Option<DiskDriver>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(in super::super) source: Option<DiskSource>,
    pub(in super::super) target: Target,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(in super::super) iotune: Option<IoTune>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(in super::super) readonly: Option<Empty>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(in super::super) serial: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(in super::super) boot: Option<Boot>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(in super::super) alias: Option<Alias>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(in super::super) address: Option<Address>,
}

/// `<address>`, as far as SCSI and SATA disks and drives have one.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub(in super::super) struct Address {
    #[serde(rename = "@type")]
    pub(in super::super) kind: String,
    #[serde(rename = "@controller", skip_serializing_if = "Option::is_none")]
    pub(in super::super) controller: Option<String>,
    #[serde(rename = "@bus", skip_serializing_if = "Option::is_none")]
    pub(in super::super) bus: Option<String>,
    #[serde(rename = "@target", skip_serializing_if = "Option::is_none")]
    pub(in super::super) target: Option<String>,
    #[serde(rename = "@unit", skip_serializing_if = "Option::is_none")]
    pub(in super::super) unit: Option<String>,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub(in super::super) struct DiskDriver {
    #[serde(rename = "@name")]
    pub(in super::super) name: String,
    #[serde(rename = "@type")]
    pub(in super::super) format: String,
    #[serde(rename = "@cache", skip_serializing_if = "Option::is_none")]
    pub(in super::super) cache: Option<String>,
    #[serde(rename = "@io", skip_serializing_if = "Option::is_none")]
    pub(in super::super) io: Option<String>,
    #[serde(rename = "@discard", skip_serializing_if = "Option::is_none")]
    pub(in super::super) discard: Option<String>,
    /// Counted from 1.
    #[serde(rename = "@iothread", skip_serializing_if = "Option::is_none")]
    pub(in super::super) io_thread: Option<u32>,
}

/// `<iotune>`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub(in super::super) struct IoTune {
    #[serde(rename = "total_bytes_sec", skip_serializing_if = "Option::is_none")]
    pub(in super::super) bytes: Option<u64>,
    #[serde(rename = "read_bytes_sec", skip_serializing_if = "Option::is_none")]
    pub(in super::super) read_bytes: Option<u64>,
    #[serde(rename = "write_bytes_sec", skip_serializing_if = "Option::is_none")]
    pub(in super::super) write_bytes: Option<u64>,
    #[serde(rename = "total_iops_sec", skip_serializing_if = "Option::is_none")]
    pub(in super::super) iops: Option<u64>,
    #[serde(rename = "read_iops_sec", skip_serializing_if = "Option::is_none")]
    pub(in super::super) read_iops: Option<u64>,
    #[serde(rename = "write_iops_sec", skip_serializing_if = "Option::is_none")]
    pub(in super::super) write_iops: Option<u64>,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub(in super::super) struct DiskSource {
    #[serde(rename = "@file", skip_serializing_if = "Option::is_none")]
    pub(in super::super) file: Option<String>,
    #[serde(rename = "@dev", skip_serializing_if = "Option::is_none")]
    pub(in super::super) device: Option<String>,
    #[serde(rename = "@protocol", skip_serializing_if = "Option::is_none")]
    pub(in super::super) protocol: Option<String>,
    #[serde(rename = "@name", skip_serializing_if = "Option::is_none")]
    pub(in super::super) name: Option<String>,
    #[serde(rename = "host", skip_serializing_if = "Option::is_none")]
    pub(in super::super) host: Option<SourceHost>,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub(in super::super) struct SourceHost {
    #[serde(rename = "@transport", skip_serializing_if = "Option::is_none")]
    pub(in super::super) transport: Option<String>,
    #[serde(rename = "@socket", skip_serializing_if = "Option::is_none")]
    pub(in super::super) socket: Option<String>,
}
